"""The AWD-LSTM language model (Merity, Keskar, Socher 2018, arXiv 1708.02182, sec. 2-4).

Shapes: T time, B batch, E embedding, H hidden, V vocabulary; tensors are time-major.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lm.base.ranks import Columns
from lm.config.schema import TrainConfig
from lm.nn.adaptive import AdaptiveDecoder
from lm.nn.dropout import EmbeddingDropout, LockedDropout, StandardDropout
from lm.nn.loss import LinearDecoder
from lm.nn.lstm import WeightDropLSTM
from lm.nn.qrnn import WeightDropQRNN

Layer = WeightDropLSTM | WeightDropQRNN
# One tuple a layer: (h_BH, c_BH) for LSTM, (c_BH,) for QRNN and with window 2 (c_BH, x_BI), else (h_BH,).
State = list[tuple[Tensor, ...]]
# Half-width of the embeddings' uniform initial distribution (sec. 5).
_EMBEDDING_RANGE = 0.1


class Output(NamedTuple):
    """What a forward pass computed, one entry a layer: outputs h_TBH, the same after dropout, the last state."""

    raw: list[Tensor]
    after_dropout: list[Tensor]
    state: State


class AWDLSTM(nn.Module):
    """Embedding, recurrent layers, and a decoder that is tied to the embedding.

    Every layer is `nhid` wide but, when tied, the last, which is `emsize` wide so that it can meet the embedding.
    All dropout masks are drawn anew in each forward pass in training mode.

    >>> import lm
    >>> model = lm.AWDLSTM(10_000, lm.make_config(emsize=40, nhid=60, nlayers=2))  # published values for all else
    >>> state = model.initial_state(batch_size=8)
    >>> output = model(torch.zeros(35, 8, dtype=torch.long), state)
    >>> logits_TBV = model.decoder(output.after_dropout[-1])
    >>> logits_TBV.shape
    torch.Size([35, 8, 10000])
    """

    def __init__(self, vocab_size: int, config: TrainConfig, precision: str = "fp32") -> None:
        """Draw initial weights on the default device.

        Args:
            vocab_size: V. With `config.cutoffs`, ids are ranks: the most frequent word is 0.
            config: sizes, dropouts, cell and kernel, as `lm.config.values.make_config` puts them together.
            precision: `fp32` or `bf16`: the type of the matrix products' inputs; parameters stay as they are.

        Raises:
            ConfigError: the last of `config.cutoffs` is not below `vocab_size`.
            ValueError: the precision is unknown; all else is checked by `config` itself.
        """
        super().__init__()
        self.precision = precision
        widths = config.widths
        dropout = LockedDropout if config.dropout_kind == "locked" else StandardDropout
        self.encoder = nn.Embedding(vocab_size, config.emsize)
        self.embedding_dropout = EmbeddingDropout(config.dropoute)
        self.input_dropout = dropout(config.dropouti)
        self.rnns = nn.ModuleList(
            _recurrent_layer(config, layer, inputs, width, precision)
            for layer, (inputs, width) in enumerate(zip([config.emsize, *widths], widths, strict=False))
        )
        self.output_dropouts = nn.ModuleList(
            [dropout(config.dropouth) for _ in widths[:-1]] + [dropout(config.dropout)]
        )
        self.decoder = (
            AdaptiveDecoder(widths[-1], vocab_size, config.cutoffs)
            if config.cutoffs
            else LinearDecoder(widths[-1], vocab_size)
        )
        nn.init.uniform_(self.encoder.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        nn.init.uniform_(self.decoder.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        nn.init.zeros_(self.decoder.bias)
        if config.tied:
            self.decoder.weight = self.encoder.weight

    def share_masks(self, columns: Columns) -> None:
        """Take dropout masks in training from those of the whole batch, of which this model computes `columns`."""
        if columns.count < columns.total:
            zoned = [rnn for rnn in self.rnns if isinstance(rnn, WeightDropQRNN)]
            for dropout in (self.input_dropout, *self.output_dropouts, *zoned):
                dropout.columns = columns

    def initial_state(self, batch_size: int) -> State:
        """Zeros for every layer, on the model's device."""
        return [rnn.initial_state(batch_size) for rnn in self._layers()]

    def forward(self, tokens_TB: Tensor, state: State) -> Output:
        """Outputs of every layer for a window of tokens that follows `state`."""
        x_TBE = self.input_dropout(self.embedding_dropout(tokens_TB, self.encoder.weight))
        raw = []
        after_dropout = []
        new_state = []
        for rnn, dropout, layer_state in zip(self.rnns, self.output_dropouts, state, strict=True):
            h_TBH, layer_state = rnn(x_TBE, layer_state)
            x_TBE = dropout(h_TBH)
            raw.append(h_TBH)
            after_dropout.append(x_TBE)
            new_state.append(layer_state)
        return Output(raw, after_dropout, new_state)

    def _layers(self) -> list[Layer]:
        """`rnns` with their type, which an `nn.ModuleList` does not tell."""
        return [rnn for rnn in self.rnns if isinstance(rnn, Layer)]

    @property
    def kernels(self) -> str:
        """What computes the layers: `native`, `fused`, `triton`, or those of several, joined by `+`."""
        return "+".join(sorted({rnn.chosen_kernel()[0] for rnn in self._layers()}))

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in fp32 (or the parameters' type, if wider) within: for figures that are reported."""
        before = self.precision
        self._set_precision("fp32")
        try:
            yield
        finally:
            self._set_precision(before)

    def _set_precision(self, precision: str) -> None:
        self.precision = precision
        for rnn in self._layers():
            rnn.precision = precision

    def without_dropout(self) -> AWDLSTM:
        """A copy in fp32 that computes in training mode, in which alone cuDNN gives gradients, what evaluation does."""
        model = copy.deepcopy(self).train()
        for dropout in (model.embedding_dropout, model.input_dropout, *model.output_dropouts):
            dropout.p = 0.0
        for rnn in model._layers():
            rnn.without_dropout()
        model._set_precision("fp32")
        return model

    def loss(self, output: Output, targets_TB: Tensor) -> Tensor:
        """Cross entropy in nats per target, without penalties."""
        h_NH = output.after_dropout[-1].flatten(0, 1)
        return self.decoder.loss(h_NH, targets_TB.flatten(), self.precision)

    def token_loss(self, output: Output, targets_TB: Tensor) -> Tensor:
        """Nats of every target, (T, B), without a graph: for evaluation."""
        nats_N = self.row_loss(output.after_dropout[-1].flatten(0, 1), targets_TB.flatten())
        return nats_N.view(targets_TB.shape)

    def row_loss(self, h_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Nats of targets, (N,), of which each is predicted from a row of the last layer's output."""
        return self.decoder.nats(h_NH, targets_N, self.precision)


def _recurrent_layer(config: TrainConfig, layer: int, inputs: int, width: int, precision: str) -> Layer:
    """One layer of the stack. A QRNN's first layer sees two words at a time, the others one (awd-lstm-lm)."""
    if config.model == "QRNN":
        window = 2 if layer == 0 else 1
        return WeightDropQRNN(inputs, width, window, config.wdrop, config.zoneout, config.kernel, precision)
    return WeightDropLSTM(config.model, inputs, width, config.wdrop, config.kernel, precision)


def detach(state: State) -> State:
    """Cut the state from the graph of the window that computed it."""
    return [tuple(tensor.detach() for tensor in layer) for layer in state]


@torch.no_grad()
def carry_state(kept: State, state: State) -> None:
    """Copy `state` into the tensors of `kept`, where the next window starts."""
    for places, layer in zip(kept, state, strict=True):
        for place, tensor in zip(places, layer, strict=True):
            place.copy_(tensor)


def count_parameters(model: nn.Module) -> int:
    """Number of trained values; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
