"""Pictures of the autoencoders of results/digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from lm.base.plotting import BASELINE, CHOSEN, OTHER, house_style, new_figure, save_png

_ROWS, _COLUMNS = 6, 10  # features that are shown of an autoencoder
_PANELS = {
    "zeros": "share of exact zeros in the code",
    "missed": "variance that is missed",
    "probe_test": "accuracy of a linear probe",
}


def draw_features(path: Path, features: Mapping[float, Tensor]) -> None:
    """Decoder weights of the units with the largest ones, by strength of L1: features (units, 64) as 8x8 images."""
    with house_style():
        figure = new_figure((5.2 * len(features), 3.6))
        for part, (l1, weights) in zip(figure.subfigures(1, len(features)), features.items(), strict=True):
            part.suptitle(f"L1 {l1:g}")
            largest = weights.norm(dim=1).argsort(descending=True)[: _ROWS * _COLUMNS]
            axes: Sequence[Axes] = part.subplots(_ROWS, _COLUMNS).ravel()
            for ax, image in zip(axes, weights[largest].reshape(-1, 8, 8), strict=True):
                reach = float(image.abs().max())
                ax.imshow(image.numpy(), cmap="RdBu", vmin=-reach, vmax=reach)
                ax.set_axis_off()
        save_png(figure, path)


def draw_autoencoders(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Zeros, error and probe over the strength of L1, a line a code size and input; ReLU, means over seeds."""
    strengths = sorted({run["l1"] for run in runs})
    places = list(range(len(strengths)))
    colours = dict(zip(sorted({run["code"] for run in runs}), (BASELINE, OTHER, CHOSEN), strict=True))
    with house_style():
        figure = new_figure((12, 3.8))
        for ax, (metric, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
            for code, colour in colours.items():
                for inputs, line in (("standardised", "-"), ("raw", ":")):
                    means = [
                        fmean(r[metric] for r in runs if (r["l1"], r["code"], r["inputs"], r["activation"]) == where)
                        for where in ((l1, code, inputs, "relu") for l1 in strengths)
                    ]
                    ax.plot(places, means, line, color=colour, marker="o", label=f"code {code}, {inputs}")
            ax.set_xticks(places, [f"{l1:g}" for l1 in strengths])
            ax.set_xlabel("L1")
            ax.set_title(title)
            ax.set_ylim(0, 1)
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) // 2)
        save_png(figure, path)
