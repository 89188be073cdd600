"""Exact perplexity of a text, and statistics of the activations that read it.

perplexity = exp(nats / targets), in fp32 without dropout. Nats are summed in float64 and divided once, and the hidden
state is carried from the first token of each column to its last, so the windows do not change the result. For the last
layer's raw output h, over time, columns and units:

    rms = sqrt(mean h^2)    mean_abs = mean |h|    frac_small = share of |h| < 0.01
    frac_zero = share of h = 0    temporal_rms = sqrt(mean (h[t+1] - h[t])^2)
    histogram = shares of h in 20 bins of 0.1 from -1 to 1, the outermost with all beyond

Shapes: T time, B columns of the text, H units.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.base.numbers import perplexity
from lm.base.ranks import ALONE, Ranks
from lm.config.schema import TrainConfig
from lm.nn.model import AWDLSTM
from lm.nn.regularization import INACTIVE
from lm.scoring.reading import read
from lm.text.batching import batchify, evaluation_rows
from lm.text.corpus import Corpus
from lm.text.units import split_units
from lm.training.divergence import check_loss

_BINS = 20


@dataclass(frozen=True)
class Evaluation:
    """Sum of nats and number of targets apart, divided once; `activation` describes the last layer's raw output."""

    nats: float
    targets: int
    activation: dict[str, Any]
    sample_TBH: Tensor
    """raw outputs of the last window, for TensorBoard"""

    @property
    def loss(self) -> float:
        """Cross entropy in nats per target."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


class _ActivationSums:
    """Running sums over raw outputs h_TBH, in float64, across windows."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._counts = torch.zeros(_BINS, dtype=torch.int64, device=device)
        self._values = self._steps = 0
        self._last_BH: Tensor | None = None

    def add(self, h_TBH: Tensor) -> None:
        h_TBH = h_TBH.float()
        joined = h_TBH if self._last_BH is None else torch.cat([self._last_BH.unsqueeze(0), h_TBH])
        change = (joined[1:] - joined[:-1]).square().sum(dtype=torch.float64)
        square = h_TBH.square().sum(dtype=torch.float64)
        magnitude = h_TBH.abs().sum(dtype=torch.float64)
        small = (h_TBH.abs() < INACTIVE).sum(dtype=torch.float64)
        zero = (h_TBH == 0).sum(dtype=torch.float64)
        self._sums += torch.stack([square, magnitude, small, zero, change])
        bins = ((h_TBH + 1) * (_BINS / 2)).long().clamp_(0, _BINS - 1).flatten()
        self._counts.index_add_(0, bins, torch.ones_like(bins))  # `bincount` would wait for a GPU, twice
        self._values += h_TBH.numel()
        self._steps += (len(joined) - 1) * h_TBH[0].numel()
        self._last_BH = h_TBH[-1]

    def state(self) -> Tensor:
        """Every sum and count, for `means`; those of parts of a text may be added."""
        return torch.cat([self._sums, self._sums.new_tensor([self._values, self._steps]), self._counts])


def _means(sums: Sequence[float]) -> dict[str, Any]:
    square, magnitude, small, zero, change, values, steps, *counts = sums
    return {
        "rms": math.sqrt(square / values),
        "mean_abs": magnitude / values,
        "frac_small": small / values,
        "frac_zero": zero / values,
        "temporal_rms": math.sqrt(change / max(steps, 1)),
        "histogram": [round(count / values, 6) for count in counts],
    }


@torch.no_grad()
def evaluate(
    model: AWDLSTM,
    ids: np.ndarray,
    batch_size: int,
    *,
    window: int | None = None,
    between_windows: Callable[[], None] = lambda: None,
    watch: Callable[[Tensor, Tensor], None] = lambda h_TBH, nats_TB: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Cross entropy of a text in fp32, hidden state carried from its start to its end.

    Args:
        model: evaluated in evaluation mode and left in the mode it was in.
        ids: word ids of the split.
        batch_size: columns the text is cut into; the remainder is dropped, a column's first token is no target.
        window: rows a forward pass, which does not change the result; None: as many as run fast.
        between_windows: called before each window; may raise to stop.
        watch: shown each window's raw output of the last layer and the nats of its targets.
        ranks: the processes that share the columns; each gets the result of all, with a sample of its own.

    Raises:
        CorpusError: the text is too short for `batch_size`.
    """
    device = model.decoder.bias.device
    mine = ranks.columns(batch_size)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    sums = _ActivationSums(device)
    was_training = model.training
    model.eval()
    try:
        with model.exact():
            columns_NB = batchify(ids, batch_size, device)[:, mine.place]
            for part, output in read(model, columns_NB, window or evaluation_rows(batch_size), between_windows):
                nats_TB = model.token_loss(output, part.targets_TB)
                nats += nats_TB.sum(dtype=torch.float64)
                targets += part.targets_TB.numel()
                sums.add(output.raw[-1])
                watch(output.raw[-1], nats_TB)
    finally:
        model.train(was_training)
    total = torch.cat([torch.stack([nats, nats.new_tensor(targets)]), sums.state()]) * bool(mine.count)
    ranks.add(total)
    all_nats, all_targets, *activation = total.tolist()
    return Evaluation(all_nats, int(all_targets), _means(activation), output.raw[-1].float())


def protocol_columns(config: TrainConfig, split: str) -> int:
    """Columns that the run's protocol cuts a split into."""
    return config.test_batch_size if split == "test" else config.eval_batch_size


def split_report(model: AWDLSTM, corpus: Corpus, split: str, columns: int) -> dict[str, Any]:
    """Loss, perplexity and activations of one split. Raises DivergedError where they are no numbers."""
    started = time.perf_counter()
    result = evaluate(model, corpus.splits[split], columns)
    check_loss(result.loss, split, "the weights are too large; train again with a lower --lr", result.activation)
    return {
        "split": split, "adapt": "none", "loss": result.loss, "ppl": result.perplexity, "targets": result.targets,
        "batch_size": columns, "seconds": round(time.perf_counter() - started, 2), "activation": result.activation,
    } | split_units(corpus, split, result.loss)  # fmt: skip
