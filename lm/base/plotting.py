"""The look of every plot: colours, style, and PNG files that are the same bytes whenever they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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
    frame = ax.get_window_extent()
    dots = [tuple(ax.transData.transform(point)) for point in points]
    taken: list[tuple[float, float, float, float]] = []
    spots = [(r, math.radians(a)) for r in (9, 22, 34, 46) for a in (30, 330, 150, 210, 90, 270, 60, 300, 120, 240)]
    for i, (point, text) in enumerate(zip(points, texts, strict=True)):
        near = [(x - 10, y - 10, x + 10, y + 10) for j, (x, y) in enumerate(dots) if j != i]
        for radius, angle in spots:
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            side: Literal["center", "left", "right"] = "center" if abs(dx) < 1 else "left" if dx > 0 else "right"
            line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkB": 4} if radius > 9 else None
            note = ax.annotate(
                text,
                point,
                (dx, dy),
                textcoords="offset points",
                arrowprops=line,
                ha=side,
                va="center",
                fontsize=8.5,
                color="#333333",
            )
            note.update_positions(renderer)
            x0, y0, x1, y1 = Text.get_window_extent(note, renderer).extents  # the words without their line
            inside = x0 > frame.x0 and x1 < frame.x1 and y0 > frame.y0 and y1 < frame.y1
            if inside and not any(x0 < r and x1 > left and y0 < t and y1 > b for left, b, r, t in taken + near):
                taken.append((x0, y0, x1, y1))
                break
            note.remove()
