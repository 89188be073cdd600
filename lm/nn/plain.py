"""The same training step in ordinary PyTorch, as a good port of awd-lstm-lm has it, for `lm.bench` to compare with.

No kernel, mask or allocator of this project is used: `torch._VF.lstm` with a functionally dropped weight,
`F.dropout` masks, `F.cross_entropy`, `clip_grad_norm_` and SGD. LSTM with tied weights only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.config.schema import TrainConfig


class PlainLM(nn.Module):
    """Embedding, LSTM layers and tied decoder."""

    def __init__(self, vocab_size: int, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoder = nn.Embedding(vocab_size, config.emsize)
        self.rnns = nn.ModuleList(nn.LSTM(i, h) for i, h in zip([config.emsize, *widths[:-1]], widths, strict=True))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.state = [[torch.zeros(1, config.batch_size, h) for _ in range(2)] for h in widths]

    def _mask(self, x: Tensor, p: float) -> Tensor:
        """Dropout whose mask is shared over time, or drawn for every element."""
        if self.config.dropout_kind == "standard":
            return F.dropout(x, p)
        return x * F.dropout(torch.ones_like(x[:1]), p)

    def loss(self, tokens_TB: Tensor, targets_TB: Tensor) -> Tensor:
        """Cross entropy with AR and TAR of a window that follows the last one."""
        config = self.config
        rows = self.encoder.weight.new_ones(self.encoder.num_embeddings, 1)
        x = F.embedding(tokens_TB, self.encoder.weight * F.dropout(rows, config.dropoute))
        x = self._mask(x, config.dropouti)
        for layer, rnn in enumerate(self.rnns):
            w_ih, w_hh, b_ih, b_hh = rnn.parameters()
            weights = [w_ih, F.dropout(w_hh, config.wdrop), b_ih, b_hh]
            raw, *state = torch._VF.lstm(x, self.state[layer], weights, True, 1, 0.0, True, False, False)
            self.state[layer] = [tensor.detach() for tensor in state]
            x = self._mask(raw, config.dropout if rnn is self.rnns[-1] else config.dropouth)
        logits = F.linear(x.flatten(0, 1), self.encoder.weight, self.bias)
        loss = F.cross_entropy(logits, targets_TB.flatten())
        if config.alpha:
            loss = loss + config.alpha * x.pow(2).mean()
        if config.beta:
            loss = loss + config.beta * (raw[1:] - raw[:-1]).pow(2).mean()
        return loss


def plain_step(model: PlainLM, optimizer: torch.optim.Optimizer, tokens_TB: Tensor, targets_TB: Tensor) -> Tensor:
    """One update; returns the loss, without waiting for it."""
    optimizer.zero_grad()
    loss = model.loss(tokens_TB, targets_TB)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), model.config.clip)
    optimizer.step()
    return loss.detach()
