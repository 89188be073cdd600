"""The look of every plot: colours, style, and PNG files that are the same bytes whenever they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lm.base.files import write_atomic

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008).
BASELINE = "#000000"
CHOSEN = "#D55E00"
OTHER = "#0072B2"
PALE = "#BBBBBB"
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 6,
}  # fmt: skip


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save within this context: it holds whatever the user's matplotlibrc says."""
    with style.context(["default", _STYLE]):
        yield


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of this width and height in inches, on a canvas of its own: no state is shared."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure, complete or not at all."""
    options: dict[str, Any] = {"format": "png", "dpi": 120, "metadata": {"Software": None}, "bbox_inches": "tight"}
    write_atomic(path, lambda file: figure.savefig(file, **options))


def place_labels(ax: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Label every point near by, or at the end of a line; where all places are taken it stays unlabelled."""
    canvas = ax.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg), "a figure of `new_figure`"
    renderer = canvas.get_renderer()
    pixels = ax.figure.dpi / 72  # of a point
    frame = ax.get_window_extent()
    dots = ax.transData.transform(np.array(points).reshape(-1, 2))
    taken = np.concatenate([dots - 10, dots + 10], 1)  # left, bottom, right, top: the dots, and labels from there on
    spots = [(r, math.radians(a)) for r in (9, 22, 34, 46) for a in (30, 330, 150, 210, 90, 270, 60, 300, 120, 240)]
    for i, (point, text) in enumerate(zip(points, texts, strict=True)):
        look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": "#333333"}
        unplaced = ax.annotate(text, point, (0, 0), ha="left", **look)
        width, height = Text.get_window_extent(unplaced, renderer).size
        unplaced.remove()
        left, bottom, right, top = np.delete(taken, i, 0).T
        for radius, angle in spots:
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            side: Literal["center", "left", "right"] = "center" if abs(dx) < 1 else "left" if dx > 0 else "right"
            x0 = dots[i, 0] + dx * pixels - {"left": 0, "center": width / 2, "right": width}[side]
            y0 = dots[i, 1] + dy * pixels - height / 2
            x1, y1 = x0 + width, y0 + height
            inside = x0 > frame.x0 and x1 < frame.x1 and y0 > frame.y0 and y1 < frame.y1
            if inside and not ((x0 < right) & (x1 > left) & (y0 < top) & (y1 > bottom)).any():
                line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkB": 4} if radius > 9 else None
                ax.annotate(text, point, (dx, dy), ha=side, arrowprops=line, **look)
                taken = np.concatenate([taken, [[x0, y0, x1, y1]]])
                break
