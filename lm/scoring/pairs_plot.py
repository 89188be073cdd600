"""Accuracies on minimal pairs as a picture: `python -m lm.evaluate RUN_DIR --pairs PATH --plot PNG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.base.plotting import BASELINE, CHOSEN, OTHER, PALE, house_style, new_figure, save_png

# Percent of the pairs that a coin gets right.
_CHANCE = 50


def draw(path: Path, title: str, reports: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Draw a row for each phenomenon, the best of the first model on top: accuracies with intervals, and its sets.

    Args:
        path: the PNG file.
        title: what was scored.
        reports: of one or two models, from `lm.scoring.pairs.report`, over the same sets.
        names: the models.
    """
    first = reports[0]
    order = [row["phenomenon"] for row in sorted(first["phenomena"], key=lambda row: row["accuracy"])]
    places = {name: place for place, name in enumerate([*order, "overall"])}
    with house_style():
        figure = new_figure((8, 1.6 + 0.32 * len(places)))
        ax = figure.subplots()
        ax.axvline(_CHANCE, color=BASELINE, linewidth=0.8, linestyle=":", label="chance")
        for published, line in zip(first["published"], ("-", "--", "-.", ":"), strict=False):
            label = f"{published['model']}, published: {published['accuracy']:.1f}"
            ax.axvline(published["accuracy"], color=PALE, linewidth=1.2, linestyle=line, label=label)
        set_places = [places[one["phenomenon"]] for one in first["sets"]]
        ax.scatter(
            [one["accuracy"] for one in first["sets"]], set_places, s=22, color=PALE, label="its sets, first model"
        )
        looks = ((CHOSEN, "o"), (OTHER, "D"))
        for number, (report, name, (color, marker)) in enumerate(zip(reports, names, looks, strict=False)):
            rows = [{"phenomenon": "overall"} | report["overall"], *report["phenomena"]]
            accuracy = [row["accuracy"] for row in rows]
            reach = [[row["accuracy"] - row["low"] for row in rows], [row["high"] - row["accuracy"] for row in rows]]
            ax.errorbar(
                accuracy,
                [places[row["phenomenon"]] - 0.25 * number for row in rows],
                xerr=reach,
                fmt=marker,
                color=color,
                markersize=5,
                capsize=3,
                label=name,
            )
        ax.set_yticks(list(places.values()), [name.replace("_", " ") for name in places], parse_math=False)
        ax.set(xlim=(0, 100), xlabel="pairs whose good sentence is likelier, %")
        ax.set_title(title, loc="left", parse_math=False)
        figure.legend(loc="outside lower center", ncols=2)
        save_png(figure, path)
