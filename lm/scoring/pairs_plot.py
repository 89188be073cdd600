"""Accuracies on minimal pairs as a picture: `python -m lm.evaluate RUN_DIR --pairs PATH --plot PNG`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm.base.plotting import BASELINE, CHOSEN, OTHER, PALE, house_style, new_figure, save_png

# Percent of the pairs that a coin gets right.
_CHANCE = 50


def draw(path: Path, title: str, report: dict[str, Any]) -> None:
    """Draw a row for each phenomenon, the best on top: its accuracy with interval, and its sets.

    Args:
        path: the PNG file.
        title: what was scored.
        report: from `lm.scoring.pairs.score_pairs`.
    """
    rows = sorted(report["phenomena"], key=lambda row: row["accuracy"])
    rows.append({"phenomenon": "overall"} | report["overall"])
    places = {row["phenomenon"]: place for place, row in enumerate(rows)}
    with house_style():
        figure = new_figure((8, 1.6 + 0.32 * len(rows)))
        ax = figure.subplots()
        ax.axvline(_CHANCE, color=BASELINE, linewidth=0.8, linestyle=":", label="chance")
        for published, style in zip(report["published"], ("-", "--", "-.", ":"), strict=False):
            label = f"{published['model']}, published: {published['accuracy']:.1f}"
            ax.axvline(published["accuracy"], color=OTHER, linewidth=0.9, linestyle=style, label=label)
        set_places = [places[one["phenomenon"]] for one in report["sets"]]
        ax.scatter([one["accuracy"] for one in report["sets"]], set_places, s=22, color=PALE, label="a set")
        accuracy = [row["accuracy"] for row in rows]
        reach = [[row["accuracy"] - row["low"] for row in rows], [row["high"] - row["accuracy"] for row in rows]]
        label = "a phenomenon, 95 % interval"
        ax.errorbar(accuracy, range(len(rows)), xerr=reach, fmt="o", color=CHOSEN, markersize=5, capsize=3, label=label)
        ax.set_yticks(range(len(rows)), [row["phenomenon"].replace("_", " ") for row in rows], parse_math=False)
        ax.set(xlim=(0, 100), xlabel="pairs whose good sentence is likelier, %")
        ax.set_title(title, loc="left", parse_math=False)
        figure.legend(loc="outside lower center", ncols=2)
        save_png(figure, path)
