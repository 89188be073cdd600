"""What the plots of a study share: colours, the slice of configurations that a plot shows, scales, ticks and legend."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lm.base.numbers import is_number
from lm.base.plotting import BASELINE, CHOSEN, OTHER, new_figure
from lm.study.records import show
from lm.study.specification import identity
from lm.tables.analysis import Analysis
from lm.tables.configurations import Configuration
from lm.tables.stats import Estimate

Plot = tuple[Figure, str]  # with its caption
# Of the lines beside the baseline and the chosen one, best first; what is left is pale.
MORE = (OTHER, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# What an axis calls a field or a metric.
NAMES = {
    "alpha": "alpha (coefficient of AR)", "beta": "beta (coefficient of TAR)",
    "rms": "rms of the activations h", "temporal_rms": "rms of h[t+1] - h[t]",
}  # fmt: skip


def new_panels(panels: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of this width and height in inches with so many panels side by side."""
    figure = new_figure(size)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def colour_of(analysis: Analysis, configuration: Configuration, other: str = OTHER) -> str:
    """Black for the baseline, orange for the one chosen on valid, `other` for every other."""
    if analysis.chosen is not None and configuration is analysis.configurations[analysis.chosen]:
        return CHOSEN
    return BASELINE if configuration is analysis.base else other


def differing(analysis: Analysis, configuration: Configuration, *free: str) -> dict[str, Any]:
    """What differs from the baseline outside the fields `free`: field -> value."""
    base = analysis.base.values if analysis.base else {}
    return {f: v for f, v in configuration.values.items() if f not in free and identity(v) != identity(base.get(f))}


def configurations_over(analysis: Analysis, *free: str) -> list[Configuration]:
    """The baseline, and what differs from it in the fields `free` alone, which hold numbers."""
    if analysis.base is None:
        return []
    same = [configuration for configuration in analysis.configurations if not differing(analysis, configuration, *free)]
    return [configuration for configuration in same if all(is_number(configuration.values.get(name)) for name in free)]


def slices_over(analysis: Analysis, name: str, most: int) -> dict[str, list[Configuration]]:
    """Further lines of a plot over the number `name`: label -> the finished configurations that differ so.

    What differs in words, such as another norm, has a line from two configurations on; what differs in numbers, if it
    has every value of `name` that the baseline's line has. At most `most`, those with the most configurations.
    """
    every = {c.values[name] for c in configurations_over(analysis, name) if c.mean("valid_ppl") is not None}
    found: dict[str, list[Configuration]] = {}
    in_words: dict[str, bool] = {}
    for configuration in analysis.configurations if analysis.base else ():
        values = differing(analysis, configuration, name)
        if values and is_number(configuration.values.get(name)) and configuration.mean("valid_ppl") is not None:
            label = ", ".join(f"{field} {show(value)}" for field, value in values.items())
            found.setdefault(label, []).append(configuration)
            in_words[label] = not any(is_number(value) for value in values.values())
    lines = {
        label: line
        for label, line in found.items()
        if len(line) > 1 and (in_words[label] or every <= {configuration.values[name] for configuration in line})
    }
    return dict(sorted(lines.items(), key=lambda item: -len(item[1]))[:most])


def held_fixed(analysis: Analysis, *free: str) -> str:
    """What is held fixed in a slice, in words."""
    base = analysis.configurations[analysis.baseline or 0].values
    fixed = ", ".join(f"{name} {show(value)}" for name, value in base.items() if name not in free)
    return f" at {fixed}" if fixed else ""


def cut_scale(ax: Axes, estimates: Sequence[Estimate], baseline: Estimate | None) -> float:
    """Cut the scale where an outlier would flatten all differences; returns the largest mean that stays in."""
    means = [e.mean for e in estimates]
    top = ceiling(means, baseline.mean if baseline else None)
    if max(means) > top:
        inside = [(e.mean - (e.sd or 0), e.mean + (e.sd or 0)) for e in estimates if e.mean <= top]
        low, high = min(a for a, _ in inside), max(b for _, b in inside)
        ax.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
    return top


def ceiling(means: Sequence[float], baseline: float | None) -> float:
    """The largest mean that is not far off."""
    best = min(means)
    return best + 4 * max((baseline or best) - best, statistics.median(means) - best, 0.01 * best)


def places_of(values: Sequence[float]) -> dict[float, float]:
    """Value -> place on the axis: linear for a narrow range, else logarithmic with 0 one step to the left."""
    ordered = sorted(set(values))
    positive = [v for v in ordered if v > 0]
    if len(positive) < 2 or ordered[0] < 0 or positive[-1] / positive[0] <= 4:
        return {v: float(v) for v in ordered}
    logs = [math.log(v) for v in positive]
    step = statistics.median(b - a for a, b in zip(logs, logs[1:], strict=False))
    step = max(step, (logs[-1] - logs[0]) / 8)
    return dict(zip(positive, logs, strict=True)) | ({0: logs[0] - step} if ordered[0] == 0 else {})


def set_ticks(axis: Any, places: dict[float, float], diverged: set[float]) -> None:
    """Label the places with their values, leaving out labels that would touch the one before."""
    span = max(places.values()) - min(places.values())
    kept: list[tuple[float, str]] = []
    for value, place in sorted(places.items(), key=lambda item: item[1]):
        if not kept or place - kept[-1][0] >= 0.06 * span:
            kept.append((place, show(value) + "\ndiverged" * (value in diverged)))
    axis.set_ticks([place for place, _ in kept], [text for _, text in kept])


def legend_below(
    figure: Figure,
    analysis: Analysis,
    configurations: Sequence[Configuration],
    base_line: Literal["--", "none"] = "none",
    more: Sequence[Line2D] = (),
) -> str:
    """One legend below the panels, with `more` at its end; returns the end of the caption."""
    spread = " ± sd" if any(len(configuration.runs) > 1 for configuration in configurations) else ""
    colours = {colour_of(analysis, configuration) for configuration in configurations}
    entries: list[tuple[str, str, Literal["--", "none"]]] = [
        (BASELINE, "baseline", base_line),
        (CHOSEN, "chosen on valid", "none"),
        (OTHER, "other configurations", "none"),
    ]
    handles = [
        Line2D([], [], color=colour, linestyle=line, label=text + spread, marker="o", linewidth=1)
        for colour, text, line in entries
        if colour in colours
    ]
    handles += more
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return "; bars: sd over seeds." if spread else "; one seed a configuration."
