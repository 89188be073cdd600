"""A study as one web page to look through: `python -m lm.report STUDY --html`.

Tables that sort and filter, curves whose lines switch on and off, two runs side by side. The page holds all that it
needs, Bokeh's script of 1.3 MB included, and asks no network for anything.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import write_bytes
from lm.study.records import curve_of, histogram_of
from lm.tables.analysis import Analysis
from lm.tables.answer import answer
from lm.tables.page import below_table, table
from lm.tables.text import number

_TEMPLATE = Path(__file__).with_suffix(".html")
# Heading of a run's value -> its metric, a factor and decimals.
_COLUMNS = {
    "best epoch": ("best_epoch", 1, 0), "valid ppl": ("valid_ppl", 1, 2), "test ppl": ("test_ppl", 1, 2),
    "train ppl": ("train_ppl", 1, 2), "gap": ("gap", 1, 3), "rms h": ("rms", 1, 4), "mean abs h": ("mean_abs", 1, 4),
    "near 0, %": ("frac_small", 100, 1), "rms dh": ("temporal_rms", 1, 4), "min": ("seconds", 1 / 60, 1),
}  # fmt: skip


def require_bokeh() -> None:
    """Raise ConfigError where Bokeh is not installed."""
    if importlib.util.find_spec("bokeh") is None:
        raise ConfigError("--html: Bokeh is not installed; pip install bokeh")


def _runs(analysis: Analysis) -> Iterator[list[str]]:
    """A row a run: configuration, seed, how it ended, and its values."""
    for configuration in analysis.configurations:
        values = {name: configuration.by_seed(metric) for name, (metric, _, _) in _COLUMNS.items()}
        for seed in configuration.runs:
            shown = [
                number(None if seed not in values[name] else factor * values[name][seed], digits)
                for name, (_, factor, digits) in _COLUMNS.items()
            ]
            yield [configuration.label, str(seed), "completed", *shown]
        for seed, fate in configuration.others:
            yield [configuration.label, str(seed), fate, *[""] * len(_COLUMNS)]


def _histograms(analysis: Analysis) -> list[list[float] | None]:
    """The histogram of each of `_runs`, as `lm.scoring.evaluation` makes it; None for runs that are older."""
    found: list[list[float] | None] = []
    for configuration in analysis.configurations:
        found += [histogram_of(record) for record in configuration.runs.values()]
        found += [None] * len(configuration.others)
    return found


def _curves(analysis: Analysis) -> str:
    """Valid perplexity by epoch, a line a run and a colour a configuration, as HTML; empty where no run has one."""
    from bokeh.embed import components
    from bokeh.models import HoverTool, Legend, LegendItem
    from bokeh.palettes import Category20_20
    from bokeh.plotting import figure

    plot = figure(
        height=max(400, 25 * len(analysis.configurations)),  # room for the legend
        sizing_mode="stretch_width",
        x_axis_label="epoch",
        y_axis_label="valid perplexity",
        y_axis_type="log",
        tools="pan,wheel_zoom,box_zoom,reset,save",
    )
    items = []
    for i, configuration in enumerate(analysis.configurations):
        lines = []
        for seed, record in configuration.runs.items():
            curve = curve_of(record)
            source: dict[str, Any] = {
                "epoch": [epoch for epoch, _ in curve], "ppl": [ppl for _, ppl in curve],
                "configuration": [configuration.label] * len(curve), "seed": [seed] * len(curve),
            }  # fmt: skip
            if curve:
                lines.append(plot.line("epoch", "ppl", source=source, color=Category20_20[i % 20], line_width=1.5))
        if lines:
            items.append(LegendItem(label=configuration.label, renderers=lines))
    if not items:
        return ""
    tips = [("", "@configuration, seed @seed"), ("epoch", "@epoch"), ("valid ppl", "@ppl{0.00}")]
    plot.add_tools(HoverTool(tooltips=tips, mode="mouse"))
    plot.add_layout(Legend(items=items, click_policy="hide", label_text_font_size="12px"), "right")
    return "\n".join(components(plot)[::-1])


def page(analysis: Analysis) -> str:
    """The page as HTML. Words of the study and the ledger are escaped, whatever they hold."""
    from bokeh.resources import Resources
    from jinja2 import Environment  # Bokeh brings it

    header, rows = table(analysis)
    runs = list(_runs(analysis))
    return Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=analysis.study.title, question=analysis.study.question, answer=answer(analysis),
        header=header, rows=rows, notes=below_table(analysis), curves=_curves(analysis),
        run_header=["configuration", "seed", "status", *_COLUMNS], run_rows=runs, histograms=_histograms(analysis),
        library=Resources(mode="inline", components=["bokeh"]).render_js(),
    )  # fmt: skip


def write_page(analysis: Analysis, path: Path) -> None:
    """Write the page to a file. Raises OSError, naming the file, where that cannot be done."""
    write_bytes(path, page(analysis).encode())
