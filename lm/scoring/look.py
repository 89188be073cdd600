"""What the last layer does while it reads a text, as a picture: `python -m lm.evaluate RUN_DIR --activations PNG`.

Shapes: T time, B columns of the text, H units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from lm.base.plotting import BASELINE, CHOSEN, house_style, new_figure, save_png
from lm.nn.regularization import INACTIVE

# Activations that the histogram is made of, about, however long the text: 16 MB.
_SAMPLE = 4_000_000
# Words that one row of the picture has room for.
_WORDS_A_ROW = 50
# Letters of a word that are shown.
_LETTERS = 16


class Activations:
    """Collects, window by window, what `lm.scoring.evaluation.evaluate` shows to its `watch`.

    Of a column's words each has the nats that it cost, and mean |h| of the output that it was predicted from.
    """

    def __init__(self, tokens: int, start: int, count: int) -> None:
        """Watch a text of `tokens` tokens; of its first column the targets `start` to `start + count`, word by word.

        Args:
            tokens: length of the whole text.
            start: 0 is the first target, which is the text's second word.
            count: fewer where the column ends before.
        """
        self._tokens = tokens
        self._start = start
        self._stop = start + count
        self._row = self._read = 0
        self._small: list[np.ndarray] = []
        self._sample: list[np.ndarray] = []
        self._nats: list[np.ndarray] = []
        self._mean_abs: list[np.ndarray] = []

    def add(self, h_TBH: Tensor, nats_TB: Tensor) -> None:
        """Take in a window: raw output of the last layer, and the nats of each target."""
        rows, columns, units = h_TBH.shape
        self._small.append((h_TBH.abs() < INACTIVE).sum((0, 1)).cpu().numpy())
        self._read += rows * columns
        every = math.ceil(self._tokens * units / _SAMPLE)
        self._sample.append(h_TBH[-self._row % every :: every].flatten().float().cpu().numpy())
        shown = slice(max(self._start - self._row, 0), max(self._stop - self._row, 0))
        self._nats.append(nats_TB[shown, 0].cpu().numpy())
        self._mean_abs.append(h_TBH[shown, 0].abs().mean(1).cpu().numpy())
        self._row += rows

    @property
    def sample(self) -> np.ndarray:
        """Activations of all units at evenly spaced times, for a histogram."""
        return np.concatenate(self._sample)

    @property
    def inactive(self) -> np.ndarray:
        """The fraction of time that each unit is inactive, (H,)."""
        return np.sum(self._small, axis=0) / self._read

    @property
    def nats(self) -> np.ndarray:
        """What each of the words shown cost."""
        return np.concatenate(self._nats)

    @property
    def mean_abs(self) -> np.ndarray:
        """Mean |h| of the output from which each of the words shown was predicted."""
        return np.concatenate(self._mean_abs)

    def as_json(self) -> dict[str, Any]:
        """What the picture shows but for the histogram, as plain values."""
        return {
            "unit_inactive": self.inactive.tolist(),
            "word_loss": self.nats.tolist(),
            "word_mean_abs": self.mean_abs.tolist(),
        }


def draw(path: Path, title: str, seen: Mapping[str, Activations], words: Sequence[str]) -> None:
    """Draw one run, or two in the same axes, as a PNG file.

    Args:
        path: the file.
        title: what was read.
        seen: one or two, by their labels.
        words: the text of the words shown.
    """
    pieces = [range(len(words))[i : i + _WORDS_A_ROW] for i in range(0, len(words), _WORDS_A_ROW)]
    colours = dict(zip(seen.values(), (BASELINE, CHOSEN), strict=False))
    with house_style():
        figure = new_figure((13, 3.4 + 4.0 * len(pieces)))
        above, *below = figure.subfigures(1 + len(pieces), 1, height_ratios=[3.4] + [4.0] * len(pieces), squeeze=False)
        histogram, sparsity = above[0].subplots(1, 2)
        _histogram(histogram, colours)
        _sparsity(sparsity, colours)
        for part, piece in zip(below, pieces, strict=True):
            _words(part[0], colours, words, piece)
        lines = [Line2D([], [], color=colours[one], label=label) for label, one in seen.items()]
        legend = figure.legend(
            handles=lines, loc="outside upper left", title=title, alignment="left", title_fontsize=12
        )
        for text in (legend.get_title(), *legend.get_texts()):
            text.set_parse_math(False)  # a name's $ is a dollar
        save_png(figure, path)


def _histogram(ax: Axes, colours: dict[Activations, str]) -> None:
    samples = {one: one.sample for one in colours}
    reach = max(np.abs(sample).max() for sample in samples.values())
    edges = np.linspace(-reach, reach, 121).tolist()
    for one, colour in colours.items():
        ax.hist(samples[one], edges, density=True, histtype="step", color=colour, linewidth=1.4)
    ax.set(xlabel="activation h", ylabel="density", title="Activations of the last layer", yscale="log")


def _sparsity(ax: Axes, colours: dict[Activations, str]) -> None:
    for one, colour in colours.items():
        inactive = np.sort(one.inactive)
        ax.plot(np.linspace(0, 100, len(inactive)), 100 * inactive, color=colour)
    ax.set(xlabel="units, % (sorted)", ylabel=f"% of the time with |h| < {INACTIVE}", title="Sparsity of each unit")
    ax.set_ylim(bottom=0)


def _words(part: Figure, colours: dict[Activations, str], words: Sequence[str], piece: range) -> None:
    """Loss above mean |h|, word by word, for one row of words."""
    loss, size = part.subplots(2, 1, sharex=True)
    for one, colour in colours.items():
        for ax, values in ((loss, one.nats), (size, one.mean_abs)):
            ax.plot(piece, values[piece.start : piece.stop], color=colour, marker="o", markersize=3.5, linewidth=1.2)
    size.set_xlim(piece.start - 0.5, piece.start + _WORDS_A_ROW - 0.5)
    cut = [word if len(word) <= _LETTERS else word[: _LETTERS - 1] + "…" for word in words[piece.start : piece.stop]]
    size.set_xticks(piece, cut, rotation=90, fontsize=9, parse_math=False)  # a text's $ is a dollar
    loss.set_title("Loss of each word", loc="left")
    loss.set_ylabel("nats")
    size.set_title("Size of the activations that it is predicted from", loc="left")
    size.set_ylabel("mean |h|")
    for ax, name in ((loss, "nats"), (size, "mean_abs")):
        ax.set_ylim(0, 1.05 * max(getattr(one, name).max() for one in colours))
        ax.tick_params(axis="x", length=0)
