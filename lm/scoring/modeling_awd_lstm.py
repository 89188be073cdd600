"""AWD-LSTM for the transformers library: plain PyTorch layers under the names of a checkpoint.

`lm.evaluate RUN_DIR --export DIR --format transformers` copies this file into DIR, where
`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` loads it. It imports nothing of the project that
trained the model. There is no dropout: the model is for inference.

Shapes: B batch, T time, E embedding, H hidden, V vocabulary; tensors are batch-first, as the library has them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

if "cache" not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
    raise ImportError("AWD-LSTM needs a transformers that passes states as `cache`: 5.24 or later")

# One tuple a layer: (h_BH, c_BH) for LSTM, (h_BH,) for the other cells.
State = list[tuple[Tensor, ...]]


class AWDLSTMConfig(PreTrainedConfig):
    """Sizes of the model; `cell` is LSTM, GRU, RNN_TANH or RNN_RELU, `tie_word_embeddings` narrows the last layer."""

    model_type = "awd-lstm"

    def __init__(
        self,
        vocab_size: int = 10_000,
        cell: str = "LSTM",
        emsize: int = 400,
        nhid: int = 1150,
        nlayers: int = 3,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.cell = cell
        self.emsize = emsize
        self.nhid = nhid
        self.nlayers = nlayers
        self.hidden_size = nhid
        self.num_hidden_layers = nlayers
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)


class RecurrentCache:
    """The state of every layer after the last token that was read; `generate` carries it from step to step."""

    is_compileable = False
    is_croppable = False

    def __init__(self, state: State, tokens: int) -> None:
        self.state = state
        self.tokens = tokens

    @property
    def is_linear(self) -> list[bool]:
        """That no layer has keys and values of earlier tokens."""
        return [True] * len(self.state)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included."""
        return self.tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the states of the chosen hypotheses."""
        self.state = [tuple(tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in s) for s in self.state]


@dataclass
class AWDLSTMOutput(ModelOutput):
    """Mean loss in nats a label, logits (B, T, V), the state after them, and outputs (B, T, .): embedding, layers."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: RecurrentCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class _Order:
    """Moves the tokens that a mask keeps to the front of each row, where layers read them packed, and back."""

    def __init__(self, mask_BT: Tensor) -> None:
        self._order = torch.argsort(~mask_BT, dim=1, stable=True)
        self._lengths = mask_BT.sum(1)
        self._empty = self._lengths == 0

    def pack(self, x_BTE: Tensor) -> PackedSequence:
        x_BTE = x_BTE.gather(1, self._order.unsqueeze(2).expand_as(x_BTE))
        lengths = self._lengths.clamp(min=1).cpu()  # no row can be empty: its state is put back below
        return pack_padded_sequence(x_BTE, lengths, batch_first=True, enforce_sorted=False)

    def unpack(self, packed: PackedSequence) -> Tensor:
        """Back in place, zeros where nothing was read."""
        h_BTH, _ = pad_packed_sequence(packed, batch_first=True, total_length=self._order.shape[1])
        return torch.zeros_like(h_BTH).scatter(1, self._order.unsqueeze(2).expand_as(h_BTH), h_BTH)

    def kept(self, after: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(torch.where(self._empty.unsqueeze(1), b, a) for a, b in zip(after, before, strict=True))


class AWDLSTMForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, recurrent layers, and a decoder that may be tied to the embedding."""

    config_class = AWDLSTMConfig
    _is_stateful = True
    _tied_weights_keys = {"decoder.weight": "encoder.weight"}

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__(config)
        last = config.emsize if config.tie_word_embeddings else config.nhid
        self.widths = [*[config.nhid] * (config.nlayers - 1), last]
        self.encoder = nn.Embedding(config.vocab_size, config.emsize)
        self.rnns = nn.ModuleList(
            _layer(config.cell, *pair) for pair in zip([config.emsize, *self.widths], self.widths, strict=False)
        )
        self.decoder = nn.Linear(last, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.encoder

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Take another embedding."""
        self.encoder = value

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Take another decoder."""
        self.decoder = new_embeddings

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward pass makes the cache

    def initial_state(self, batch_size: int) -> State:
        """Zeros for every layer."""
        kinds = 2 if self.config.cell == "LSTM" else 1
        weight = self.decoder.weight
        return [tuple(weight.new_zeros(batch_size, width) for _ in range(kinds)) for width in self.widths]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RecurrentCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **loss_arguments: Any,
    ) -> AWDLSTMOutput | tuple[Any, ...]:
        """Logits of the token after each of `input_ids` (B, T), which follow what `cache` has read.

        Args:
            input_ids: or their embeddings, (B, T, E), as `inputs_embeds`.
            attention_mask: 0 for padding, at whichever side: it changes no state. Longer than T, its end counts.
            cache: of an earlier output; None: a state of zeros.
            labels: (B, T), shifted here, as the library has it; -100 where no loss counts.
            use_cache: return the state, by default unless in training.
            output_hidden_states: return outputs of the embedding and of every layer.
            return_dict: False: a tuple.
            logits_to_keep: the last positions, or those of these indices; 0: all.
            **loss_arguments: go to the library's loss.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x_BTE = self.encoder(input_ids) if inputs_embeds is None else inputs_embeds
        batch, time = x_BTE.shape[:2]
        outputs, state = self._read(x_BTE, cache.state if cache else self.initial_state(batch), attention_mask)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.decoder(outputs[-1][:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **loss_arguments)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = AWDLSTMOutput(
            loss=loss,
            logits=logits_BTV,
            cache=RecurrentCache(state, time + (cache.tokens if cache else 0)) if use_cache else None,
            hidden_states=tuple(outputs) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _read(self, x_BTE: Tensor, state: State, mask: Tensor | None) -> tuple[list[Tensor], State]:
        """The embedding and the output of every layer, and the state at the end."""
        order = None
        if mask is not None and not (mask_BT := mask[:, -x_BTE.shape[1] :].bool()).all():
            order = _Order(mask_BT)
        x = order.pack(x_BTE) if order else x_BTE
        outputs = [x_BTE]
        after = []
        for rnn, before in zip(self.rnns, state, strict=True):
            given = tuple(tensor.unsqueeze(0).to(x_BTE.dtype) for tensor in before)
            x, last = rnn(x, given if len(given) == 2 else given[0])
            found = tuple(tensor.squeeze(0) for tensor in (last if len(given) == 2 else (last,)))
            after.append(order.kept(found, before) if order else found)
            outputs.append(order.unpack(x) if order else x)
        return outputs, after


def _layer(cell: str, inputs: int, width: int) -> nn.RNNBase:
    if cell.startswith("RNN"):
        return nn.RNN(inputs, width, nonlinearity=cell.removeprefix("RNN_").lower(), batch_first=True)
    return {"LSTM": nn.LSTM, "GRU": nn.GRU}[cell](inputs, width, batch_first=True)
