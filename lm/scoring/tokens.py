"""What a model predicts at each token of given text: the one pass behind scores, surprisal and minimal pairs.

A text is read on, as `lm.evaluate` reads a split in one column (`read_running`), or each of its lines alone, after
`<eos>` from a zero state (`read_independent`). What is computed of a prediction is a `Describe`.

Shapes: T time, B batch (lines), N tokens, H units of the last layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import CorpusError
from lm.nn.model import AWDLSTM
from lm.scoring.reading import read
from lm.text.batching import batchify
from lm.text.tokenizer import TextTokenizer
from lm.training.divergence import check_loss

# Rows of the last layer's output (N, H) and the target after each, to figures of N rows, of which the first are nats.
Describe = Callable[[AWDLSTM, Tensor, Tensor], tuple[Tensor, ...]]
# Lines that are read together when each stands alone.
_LINES = 64
# Logits of which details are computed at a time: 16 MB in fp32.
_LOGITS = 1 << 22


def encode_lines(tokenizer: TextTokenizer, lines: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each line, `<eos>` at its end. Raises CorpusError where there is none."""
    if not lines:
        raise CorpusError("an empty text has nothing to score")
    return [tokenizer.encode(line + "\n") for line in lines]


def nats(model: AWDLSTM, h_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
    """Nats of each target, in float64."""
    return (model.row_loss(h_NH, targets_N).double(),)


def details(top: int) -> Describe:
    """Of each target nats, rank (1: no token is likelier) and the entropy in nats of the prediction; and of the `top`
    likeliest tokens the ids (N, top) and probabilities (N, top)."""

    def describe(model: AWDLSTM, h_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        rows = max(1, _LOGITS // model.decoder.out_features)
        blocks = zip(h_NH.split(rows), targets_N.split(rows), strict=True)
        parts = [_details(model.decoder(h), targets, top) for h, targets in blocks]
        return *nats(model, h_NH, targets_N), *map(torch.cat, zip(*parts, strict=True))

    return describe


def _details(logits_NV: Tensor, targets_N: Tensor, top: int) -> tuple[Tensor, ...]:
    log_p = torch.log_softmax(logits_NV, 1)
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
    figures = tuple(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    check_loss(float(figures[0].mean()), "the text's score", "the weights are too large; train again with a lower --lr")
    return figures


def read_running(model: AWDLSTM, ids: np.ndarray, describe: Describe = nats) -> tuple[np.ndarray, ...]:
    """Figures (N - 1, ...) of every token of a text but the first, which is context only, as `lm.evaluate` has them.

    Args:
        model: in evaluation mode; computed in fp32.
        ids: (N,).
        describe: what is computed.

    Raises:
        CorpusError: there are fewer than two tokens.
    """
    return _read(model, batchify(ids, 1, model.decoder.bias.device), describe)


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
