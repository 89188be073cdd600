"""The look of every plot: colours, style, and PNG files that are the same bytes whenever they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lm.files import write_atomic

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008).
BASELINE, CHOSEN, OTHER, PALE = "#000000", "#D55E00", "#0072B2", "#BBBBBB"
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
    options = {"format": "png", "dpi": 120, "metadata": {"Software": None}, "bbox_inches": "tight"}
    write_atomic(path, lambda file: figure.savefig(file, **options))
