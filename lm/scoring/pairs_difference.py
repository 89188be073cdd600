"""Two models on the same minimal pairs: `python -m lm.evaluate RUN_DIR --pairs PATH --beside RUN_DIR`.

Differences are in points, the first model's accuracy less the second's, with Student's interval over the pairs, which
both models answer. It holds for these pairs. Pairs of a set are made from one pattern, so that for other patterns the
interval over sets, each of which counts once, says more; neither knows how far two seeds of a model are apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from lm.scoring.pairs import LEVEL, Answers, PairSet, parts


def differences(sets: Sequence[PairSet], mine: Answers, theirs: Answers) -> dict[str, Any]:
    """`overall`, over the pairs and over the sets (`over_sets`), and of each of `phenomena`, see `_difference`."""
    points = 100.0 * (mine.right.astype(int) - theirs.right.astype(int))
    phenomena: dict[str, list[np.ndarray]] = {}
    for one, part in parts(sets):
        phenomena.setdefault(one.phenomenon, []).append(points[part])
    means = [part.mean() for by_set in phenomena.values() for part in by_set]
    return {
        "overall": _difference(points),
        "over_sets": _difference(np.array(means)),
        "phenomena": [{"phenomenon": name, **_difference(np.concatenate(of))} for name, of in phenomena.items()],
    }


def _difference(points: np.ndarray) -> dict[str, float | None]:
    """Mean of n paired differences as `difference`, with Student's 95 % interval `low` to `high` (None for n = 1)."""
    mean = float(points.mean())
    if len(points) < 2:
        return {"difference": mean, "low": None, "high": None}
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(points) - 1) * points.std(ddof=1) / len(points) ** 0.5)
    return {"difference": mean, "low": mean - reach, "high": mean + reach}


def table(names: Sequence[str], reports: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
    """Both models' accuracies and what `differences` found, for a human reader."""
    lines = [f"A: {names[0]}", f"B: {names[1]}", f"{'':42} {'pairs':>6} {'A':>6} {'B':>6} {'A - B':>6}  95 % interval"]
    rows = [("overall", *(one["overall"] for one in reports), found["overall"])]
    rows += [
        (mine["phenomenon"], mine, theirs, difference)
        for mine, theirs, difference in zip(*(one["phenomena"] for one in (*reports, found)), strict=True)
    ]
    for name, mine, theirs, difference in rows:
        accuracies = f"{mine['accuracy']:6.1f} {theirs['accuracy']:6.1f}"
        lines.append(f"{name[:42]:42} {mine['pairs']:6,} {accuracies} {_text(difference)}")
    label = f"mean of the sets, n = {len(reports[0]['sets'])}"
    lines.append(f"{label:63} {_text(found['over_sets'])}")
    return "\n".join(lines)


def _text(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f"  [{row['low']:+.1f}, {row['high']:+.1f}]"
    return f"{row['difference']:+6.1f}{interval}"
