"""Plots with a line for each of the best configurations, which a legend names: learning curves, distributions of h."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lm.base.plotting import BASELINE, CHOSEN, OTHER, PALE
from lm.study.records import curve_of, histogram_of
from lm.tables.analysis import Analysis
from lm.tables.axes import MORE, Plot, colour_of, differing, new_panels
from lm.tables.configurations import Configuration

# Characters of a name beside which axes of 7.6 inches keep half of their width.
_LONGEST_BESIDE = 55
_INCHES_A_NAME = 0.23


def _legend(figure: Figure, handles: Sequence[Artist], title: str) -> None:
    """Names beside the axes, or where one is too long for that, below them."""
    if max(len(str(handle.get_label())) for handle in handles) <= _LONGEST_BESIDE:
        figure.legend(handles=handles, loc="outside right upper", title=title)
    else:
        figure.set_figheight(figure.get_figheight() + _INCHES_A_NAME * (len(handles) + 1))
        figure.legend(handles=handles, loc="outside lower left", title=title, alignment="left")


def _label(analysis: Analysis, configuration: Configuration) -> str:
    marks = {BASELINE: " (baseline)", CHOSEN: " (chosen)"}
    return configuration.label + marks.get(colour_of(analysis, configuration), "")


def _best_first(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Finished configurations by their valid perplexity, those that diverged on some seed last."""
    return sorted(configurations, key=lambda c: (bool(c.diverged), c.mean("valid_ppl")))


def _histogram(configuration: Configuration) -> list[float]:
    """Shares of h in bins from -1 to 1, means over the runs that have them; empty where none has."""
    known = [found for record in configuration.runs.values() if (found := histogram_of(record))]
    return [statistics.fmean(shares) for shares in zip(*known, strict=True)]


def distribution(analysis: Analysis) -> Plot | None:
    """How the activations spread: the baseline, and of each norm of AR the strength that is best on valid."""
    if "ar_norm" not in analysis.fields or analysis.base is None:
        return None
    known = [c for c in analysis.configurations if not differing(analysis, c, "alpha", "ar_norm") and _histogram(c)]
    best: dict[str, Configuration] = {}
    for configuration in _best_first(known):
        penalised = configuration.values.get("alpha") != 0
        best.setdefault(str(configuration.values["ar_norm"]) if penalised else "none", configuration)
    if len(best) < 2:
        return None
    figure, (ax,) = new_panels(1, (7.6, 4.2))
    more = iter(MORE)
    for configuration in best.values():
        shares = _histogram(configuration)
        colour = colour_of(analysis, configuration, "")
        edges = [2 * at / len(shares) - 1 for at in range(len(shares) + 1)]
        text = _label(analysis, configuration)
        ax.stairs(shares, edges, baseline=None, color=colour or next(more), linewidth=1.5, label=text)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    ax.set(xlabel="activation h of the last layer on valid", ylabel="share of the activations")
    _legend(figure, ax.get_legend_handles_labels()[0], "best of each norm")
    which = "the baseline and, of each norm of AR, the best strength"
    return figure, f"Activations of the last layer by their size, the outermost bins with all beyond: {which}."


def _curve(configuration: Configuration) -> tuple[list[float], list[float]]:
    """Epochs and the mean over seeds of valid perplexity, where all seeds have it."""
    values: dict[float, list[float]] = {}
    curves = [curve_of(record) for record in configuration.runs.values()]
    for epoch, ppl in (row for curve in curves for row in curve):
        values.setdefault(epoch, []).append(ppl)
    full = {epoch: statistics.fmean(found) for epoch, found in sorted(values.items()) if len(found) == len(curves)}
    return list(full), list(full.values())


def curves(analysis: Analysis) -> Plot | None:
    """Valid perplexity over epochs: baseline, chosen and the best others in colour, the rest pale."""
    ranked = _best_first(c for c in analysis.configurations if len(_curve(c)[0]) > 1)
    if not ranked:
        return None
    others = [configuration for configuration in ranked if colour_of(analysis, configuration) == OTHER]
    colours = {id(configuration): colour_of(analysis, configuration, PALE) for configuration in ranked}
    colours |= {id(configuration): colour for configuration, colour in zip(others, MORE, strict=False)}
    figure, (ax,) = new_panels(1, (7.6, 4.2))
    lines = [(_curve(configuration), colours[id(configuration)]) for configuration in reversed(ranked)]
    for curve, colour in lines:
        front = colour in (BASELINE, CHOSEN)
        ax.plot(*curve, color=colour, linewidth=2 if front else 1.2, zorder=3 if front else 2)
    values = [value for (_, ys), _ in lines for value in ys]
    top = min(max(values), 1.3 * statistics.median(ys[-1] for (_, ys), _ in lines))
    ax.set_ylim(min(values) - 0.05 * (top - min(values)), top)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="perplexity", title="valid")
    shown = [(_label(analysis, configuration), colours[id(configuration)]) for configuration in ranked]
    handles = [Line2D([], [], color=colour, label=text) for text, colour in shown if colour != PALE]
    if pale := sum(colour == PALE for _, colour in shown):
        handles.append(Line2D([], [], color=PALE, label=f"{pale} more"))
    _legend(figure, handles, "best first")
    return figure, "Learning curves, means over seeds; the start is cut off."
