"""Plots of a study, as PNG files that are the same bytes whenever they are drawn from the same ledger.

Everywhere the baseline is black and the configuration chosen on valid is orange (`lm.tables.axes`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lm.base.plotting import BASELINE, CHOSEN, OTHER, house_style, place_labels, save_png
from lm.config.schema import TrainConfig
from lm.study.records import show
from lm.tables.analysis import Analysis
from lm.tables.axes import (
    MORE,
    NAMES,
    Plot,
    ceiling,
    colour_of,
    configurations_over,
    cut_scale,
    differing,
    held_fixed,
    legend_below,
    new_panels,
    places_of,
    set_ticks,
    slices_over,
)
from lm.tables.configurations import Configuration
from lm.tables.lines import curves, distribution
from lm.tables.text import number


def draw_plots(analysis: Analysis, folder: Path) -> list[tuple[str, str]]:
    """Draw every plot that has data into `folder`, and delete those of an earlier ledger that have none any more.

    Returns (file name, caption) of each.
    """
    drawn = []
    with house_style():
        plots = {f"{name}.png": _over_field(analysis, name) for name in analysis.fields}
        plots |= {"heatmap.png": _heatmap(analysis), "activations.png": _activations(analysis)}
        plots |= {"distribution.png": distribution(analysis), "curves.png": curves(analysis)}
        for name, plot in plots.items():
            if plot is not None:
                figure, caption = plot
                save_png(figure, folder / name)
                drawn.append((name, caption))
    possible = [field.name for field in dataclasses.fields(TrainConfig)]
    possible += ["heatmap", "activations", "distribution", "curves"]
    for name in {f"{name}.png" for name in possible} - {name for name, _ in drawn}:
        (folder / name).unlink(missing_ok=True)
    return drawn


def _over_field(analysis: Analysis, name: str) -> Plot | None:
    """Perplexity over one field, everything else as in the baseline, whose band is shown; and further lines."""
    configurations = configurations_over(analysis, name)
    done = [configuration for configuration in configurations if configuration.mean("valid_ppl") is not None]
    if len({configuration.values[name] for configuration in done}) < 2:
        return None
    slices = slices_over(analysis, name, len(MORE) - 1)
    beside = [configuration for line in slices.values() for configuration in line]
    splits = [split for split in ("valid", "test") if any(configuration.mean(f"{split}_ppl") for configuration in done)]
    figure, axes = new_panels(len(splits), (1.0 + 4.4 * len(splits), 3.8 + 0.25 * bool(slices)))
    places = places_of([configuration.values[name] for configuration in (*configurations, *beside)])
    for ax, split in zip(axes, splits, strict=True):
        _panel(ax, analysis, [done, *slices.values()], name, f"{split}_ppl", places)
        set_ticks(
            ax.xaxis, places, {configuration.values[name] for configuration in configurations if configuration.diverged}
        )
        ax.set(xlabel=NAMES.get(name, name), ylabel=f"{split} perplexity")
    caption = f"Perplexity over {name}{held_fixed(analysis, name)}"
    figure.suptitle(caption, fontsize=12)
    more = [
        Line2D([], [], color=colour, marker="o", linewidth=1, label=label)
        for label, colour in zip(slices, MORE[1:], strict=False)
    ]
    others = f"; beside it {'; '.join(slices)}" if slices else ""
    return figure, caption + others + legend_below(figure, analysis, [*done, *beside], "--", more)


def _panel(
    ax: Axes,
    analysis: Analysis,
    lines: Sequence[Sequence[Configuration]],
    name: str,
    metric: str,
    places: dict[float, float],
) -> None:
    """One metric over a field: the first line in the colours of the analysis, the others each in its own."""
    base = analysis.base.estimates[metric] if analysis.base else None
    if base is not None:
        ax.axhline(base.mean, color=BASELINE, linestyle="--", linewidth=1)
        ax.axhspan(base.mean - (base.sd or 0), base.mean + (base.sd or 0), color=BASELINE, alpha=0.1, linewidth=0)
    drawn = []
    for line, colour in zip(lines, MORE, strict=False):
        known = sorted((c for c in line if c.mean(metric)), key=lambda configuration: configuration.values[name])
        points = [(places[c.values[name]], c.estimated(metric), colour_of(analysis, c, colour)) for c in known]
        ax.plot([x for x, _, _ in points], [e.mean for _, e, _ in points], color=colour, zorder=2)
        for x, e, point_colour in points:
            ax.errorbar(x, e.mean, yerr=e.sd, color=point_colour, marker="o", capsize=4, zorder=3)
        drawn += points
    top = cut_scale(ax, [e for _, e, _ in drawn], base)
    for x, e, _ in drawn:
        if e.mean > top:
            ax.annotate(
                f"{number(e.mean, 1)} ↑",
                (x, 1.0),
                (0, -2),
                ax.get_xaxis_transform(),
                "offset points",
                ha="center",
                va="top",
                fontsize=9,
            )


def _heatmap(analysis: Analysis) -> Plot | None:
    """Mean valid perplexity over alpha x beta, when at least one 2 x 2 square of it has run."""
    if not {"alpha", "beta"} <= set(analysis.fields):
        return None
    found = {
        (configuration.values["alpha"], configuration.values["beta"]): (configuration, mean)
        for configuration in configurations_over(analysis, "alpha", "beta")
        if (mean := configuration.mean("valid_ppl")) is not None
    }
    alphas = sorted({a for a, _ in found})
    betas = sorted({b for _, b in found})
    rows = [{b for b in betas if (a, b) in found} for a in alphas]
    if not any(len(rows[i] & rows[j]) > 1 for i in range(len(rows)) for j in range(i)):
        return None
    values = [mean for _, mean in found.values()]
    means = [[found[a, b][1] if (a, b) in found else math.nan for a in alphas] for b in betas]
    low, top = min(values), max(values)
    base = analysis.base.mean("valid_ppl") if analysis.base else None
    high = max(min(top, ceiling(values, base)), low + 1e-9)
    figure, (ax,) = new_panels(1, (2.6 + 0.95 * len(alphas), 1.9 + 0.6 * len(betas)))
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="#F2F2F2")
    image = ax.imshow(means, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")
    for (a, b), (configuration, mean) in found.items():
        x, y = alphas.index(a), betas.index(b)
        ink = "white" if mean < low + 0.5 * (high - low) else "black"
        ax.text(x, y, number(mean, 2), ha="center", va="center", color=ink)
        if (colour := colour_of(analysis, configuration)) != OTHER:
            for edge, width in (("white", 5.5), (colour, 3)):
                ax.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=edge, linewidth=width))
    ax.set_xticks(range(len(alphas)), [show(a) for a in alphas])
    ax.set_yticks(range(len(betas)), [show(b) for b in betas])
    ax.set(
        xlabel=NAMES["alpha"], ylabel=NAMES["beta"], title=f"Valid perplexity{held_fixed(analysis, 'alpha', 'beta')}"
    )
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="valid perplexity", extend="max" if top > high else "neither")
    chosen = any(colour_of(analysis, configuration) == CHOSEN for configuration, _ in found.values())
    frames = "black frame: baseline" + "; orange frame: chosen on valid" * chosen
    figure.text(0.5, -0.01, frames, ha="center", va="top", fontsize=9)
    return figure, f"Mean valid perplexity over alpha and beta; {frames}."


def _activations(analysis: Analysis) -> Plot | None:
    """Perplexity against the size and the speed of the activations, a point a configuration."""
    metric = f"{analysis.split}_ppl"
    done = [configuration for configuration in analysis.configurations if configuration.mean(metric) is not None]
    panels = [(m, [c for c in done if c.mean(m) is not None]) for m in ("rms", "temporal_rms")]
    panels = [(name, configurations) for name, configurations in panels if len(configurations) > 1]
    if not panels:
        return None
    base = analysis.base.estimates[metric] if analysis.base else None
    figure, axes = new_panels(len(panels), (1.0 + 4.6 * len(panels), 4.8))
    for ax, (name, configurations) in zip(axes, panels, strict=True):
        for configuration in configurations:
            x, y = configuration.estimated(name), configuration.estimated(metric)
            ax.errorbar(
                x.mean, y.mean, xerr=x.sd, yerr=y.sd, color=colour_of(analysis, configuration), marker="o", elinewidth=1
            )
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.margins(0.14)
        cut_scale(ax, [configuration.estimated(metric) for configuration in configurations], base)
        ax.set(xlabel=NAMES[name], ylabel=f"{analysis.split} perplexity")
    main: list[str] = [name for name in ("alpha", "beta") if name in analysis.fields] or list(analysis.fields)
    cut = any(
        c.estimated(metric).mean > ax.get_ylim()[1]
        for ax, (_, configurations) in zip(axes, panels, strict=True)
        for c in configurations
    )
    labels = f"labels: {'/'.join(main)}" + "; triangles: above the scale" * cut
    figure.suptitle(f"Perplexity and activations of the last layer ({labels})", fontsize=12)
    ending = legend_below(figure, analysis, done)
    figure.canvas.draw()  # the layout must stand before labels can be kept apart
    for ax, (name, configurations) in zip(axes, panels, strict=True):
        top = ax.get_ylim()[1]
        points = []
        texts = []
        for configuration in configurations:
            size = configuration.estimated(name).mean
            ppl = configuration.estimated(metric).mean
            text = _short(analysis, configuration, main)
            points.append((size, min(ppl, top)))
            texts.append(text if ppl <= top else f"{text}: {number(ppl, 1)}")
            if ppl > top:
                ax.plot(size, top, color=colour_of(analysis, configuration), marker="^", clip_on=False)
        place_labels(ax, points, texts)
    return figure, f"Perplexity on {analysis.split} against rms activation and its change ({labels}){ending}"


def _short(analysis: Analysis, configuration: Configuration, main: Sequence[str]) -> str:
    """`2/1`, and what else differs from the baseline."""
    text = "/".join(show(configuration.values.get(name)) for name in main)
    others = differing(analysis, configuration, *main)
    return " ".join([text, *(f"{name} {show(value)}" for name, value in others.items())])
