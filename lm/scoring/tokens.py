"""What a model predicts at each token of given text: the one pass behind scores, surprisal and minimal pairs.

A text is read on, as `lm.evaluate` reads a split in one column (`read_running`; the model may adapt), or each of its
lines alone, after `<eos>` from a zero state (`read_independent`). What is computed of a prediction is a `Describe`.

Shapes: T time, B batch (lines), N tokens, H units of the last layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import CorpusError
from lm.nn.model import AWDLSTM, Output
from lm.scoring.adapt import Adapt, read_adapting
from lm.scoring.cache import History, Votes
from lm.scoring.reading import read
from lm.text.batching import Window, batchify
from lm.text.tokenizer import TextTokenizer
from lm.training.divergence import check_loss

# Lines that are read together when each stands alone.
_LINES = 64
# Logits of which details are computed at a time: 16 MB in fp32.
_LOGITS = 1 << 22
# Nats of a word whose probability is 0 in float64, so that it adds 0 to the entropy, and not infinity times 0.
_LEAST_LIKELY = 1e4


class Describe(Protocol):
    """Rows of the last layer's output and the target after each, to figures of N rows, of which the first are nats."""

    def __call__(
        self, model: AWDLSTM, h_NH: Tensor, targets_N: Tensor, votes: Votes | None = None, /
    ) -> tuple[Tensor, ...]:
        """`votes`: of the cache that these rows are mixed with."""


def encode_lines(tokenizer: TextTokenizer, lines: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each line, `<eos>` at its end. Raises CorpusError where there is none."""
    if not lines:
        raise CorpusError("an empty text has nothing to score")
    return [tokenizer.encode(line + "\n") for line in lines]


def nats(model: AWDLSTM, h_NH: Tensor, targets_N: Tensor, votes: Votes | None = None, /) -> tuple[Tensor, ...]:
    """Nats of each target, in float64."""
    nats_N = model.row_loss(h_NH, targets_N)
    return (votes.on_targets(nats_N, targets_N) if votes else nats_N.double(),)


def details(top: int) -> Describe:
    """Of each target nats, rank (1: no token is likelier) and the entropy in nats of the prediction; and of the `top`
    likeliest tokens the ids (N, top) and probabilities (N, top)."""

    def describe(model: AWDLSTM, h_NH: Tensor, targets_N: Tensor, votes: Votes | None = None, /) -> tuple[Tensor, ...]:
        size = max(1, _LOGITS // model.decoder.out_features)
        parts = []
        for start in range(0, len(h_NH), size):
            rows = slice(start, start + size)
            log_p = torch.log_softmax(model.decoder(h_NH[rows]), 1)
            if votes:
                log_p = -votes.on_all(-log_p, rows).clamp(max=_LEAST_LIKELY)
            parts.append(_details(log_p, targets_N[rows], top))
        return *nats(model, h_NH, targets_N, votes), *map(torch.cat, zip(*parts, strict=True))

    return describe


def _details(log_p: Tensor, targets_N: Tensor, top: int) -> tuple[Tensor, ...]:
    rank = 1 + (log_p > log_p.gather(1, targets_N.unsqueeze(1))).sum(1)
    entropy = -(log_p.exp() * log_p).sum(1, dtype=torch.float64)
    likeliest = log_p.topk(top, dim=1)
    return rank, entropy, likeliest.indices, likeliest.values.double().exp()


@torch.no_grad()
def _read(
    model: AWDLSTM, columns_NB: Tensor, describe: Describe, wanted_NB: Tensor | None = None
) -> tuple[np.ndarray, ...]:
    """Figures of the targets of columns read from a zero state, in fp32: all, or those that `wanted_NB` marks.

    The target of row n is the token of row n + 1, so `wanted_NB` has a row less. Figures come row by row.
    """
    parts: list[tuple[Tensor, ...]] = []
    row = 0
    with model.exact():
        for window, output in read(model, columns_NB):
            h_TBH, targets_TB = output.after_dropout[-1], window.targets_TB
            rows = slice(row, row := row + len(targets_TB))
            if wanted_NB is None:
                parts.append(describe(model, h_TBH.flatten(0, 1), targets_TB.flatten()))
            elif (wanted_TB := wanted_NB[rows]).any():
                parts.append(describe(model, h_TBH[wanted_TB], targets_TB[wanted_TB]))
    return _together(parts, "the weights are too large; train again with a lower --lr")


def _together(parts: list[tuple[Tensor, ...]], remedy: str) -> tuple[np.ndarray, ...]:
    """Figures of all rows. Raises DivergedError, with the remedy, where their nats are no numbers."""
    figures = tuple(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    check_loss(float(figures[0].mean()), "the text's score", remedy)
    return figures


def _read_adapting(model: AWDLSTM, column_N1: Tensor, describe: Describe, adapt: Adapt) -> tuple[np.ndarray, ...]:
    """As `_read`, of all targets of one column, by a model that adapts to it."""
    parts: list[tuple[Tensor, ...]] = []
    cache = adapt.cache if adapt.cache and adapt.cache.lam else None  # at lambda 0 the model predicts alone
    history = History(cache.window if cache else 0)

    @torch.no_grad()
    def score(reader: AWDLSTM, output: Output, window: Window) -> None:
        votes = Votes(cache, *history.extend(output.raw[-1], window.targets_TB)) if cache else None
        parts.append(describe(reader, output.after_dropout[-1][:, 0], window.targets_TB[:, 0], votes))

    read_adapting(model, column_N1, score, adapt.dynamic, adapt.rms)
    return _together(parts, "try a lower --dynamic-lr")


def read_running(
    model: AWDLSTM, ids: np.ndarray, describe: Describe = nats, adapt: Adapt | None = None
) -> tuple[np.ndarray, ...]:
    """Figures (N - 1, ...) of every token of a text but the first, which is context only, as `lm.evaluate` has them.

    Args:
        model: in evaluation mode; computed in fp32.
        ids: (N,).
        describe: what is computed.
        adapt: how the model adapts to the text; it is not changed. None: not at all.

    Raises:
        CorpusError: there are fewer than two tokens.
    """
    column_N1 = batchify(ids, 1, model.decoder.bias.device)
    return _read_adapting(model, column_N1, describe, adapt) if adapt else _read(model, column_N1, describe)


def read_independent(
    model: AWDLSTM, lines: Sequence[np.ndarray], eos_id: int, describe: Describe = nats
) -> tuple[np.ndarray, ...]:
    """Figures of every token of every line, one line after the other, each read alone: after `<eos>` from a zero state.

    A prediction depends on what came before alone, so beginnings that lines share are computed once, and equal lines
    have equal figures. Lines of similar length share a forward pass, which does not change their figures. Arguments as
    above, of lines with at least one token each.
    """
    lengths = np.array([len(line) for line in lines])
    starts = np.cumsum(lengths) - lengths
    order = sorted(range(len(lines)), key=lambda index: lines[index].astype(">i4").tobytes())
    shared = np.zeros_like(lengths)
    for before, index in zip(order, order[1:], strict=False):
        shared[index] = _common(lines[before], lines[index])
    figures: tuple[np.ndarray, ...] = ()
    for batch in _batches(lengths, shared):
        columns_NB = np.full((1 + lengths[batch[-1]], len(batch)), eos_id)
        for column, index in enumerate(batch):
            columns_NB[1 : 1 + lengths[index], column] = lines[index]
        row = np.arange(len(columns_NB) - 1)[:, None]
        wanted_NB = (shared[batch] <= row) & (row < lengths[batch])
        device = model.decoder.bias.device
        found = _read(model, torch.from_numpy(columns_NB).to(device), describe, torch.from_numpy(wanted_NB).to(device))
        figures = figures or tuple(np.empty((lengths.sum(), *one.shape[1:]), one.dtype) for one in found)
        rows, columns = wanted_NB.nonzero()
        for figure, one in zip(figures, found, strict=True):
            figure[starts[batch][columns] + rows] = one
    for before, index in zip(order, order[1:], strict=False):
        for figure in figures:
            source = figure[starts[before] : starts[before] + shared[index]]
            figure[starts[index] : starts[index] + shared[index]] = source
    return figures


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the beginning that both have."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _batches(lengths: np.ndarray, shared: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of lines with something to compute, the shortest first, a batch at a time."""
    by_length = np.argsort(lengths, kind="stable")
    fresh = by_length[(shared < lengths)[by_length]]
    return (fresh[start : start + _LINES] for start in range(0, len(fresh), _LINES))
