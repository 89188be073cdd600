"""Ledgers of results/, read as their pages put them into words."""

import functools
import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev

from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
THREE = {"AR, alpha 2": (2, 0), "TAR, beta 4": (0, 4), "alpha 1 and beta 1": (1, 1)}


@functools.cache
def ledger(study: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "results" / study / "runs.jsonl").read_text().splitlines()]


def runs(alpha: float, beta: float, dropout: float = 0.2, norm: str = "l2", study: str = "ptb-200") -> dict[int, dict]:
    """Seed -> record of one configuration."""
    wanted = {"alpha": alpha, "beta": beta, "ar_norm": norm} | ({"dropout": dropout} if study == "ptb-200" else {})
    return {r["seed"]: r for r in ledger(study) if all(r["config"][name] == value for name, value in wanted.items())}


def values(records: dict[int, dict], metric: str, seeds: tuple[int, ...] = ()) -> list[float]:
    return [record[metric] for seed, record in sorted(records.items()) if not seeds or seed in seeds]


def bracket(low: float, high: float, digits: int) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def mean_sd(records: dict[int, dict], metric: str, *, interval: bool = False) -> str:
    """`87.24 ± 0.26`, with `interval` also the 95 % t-interval of the mean."""
    found = values(records, metric)
    text = f"{fmean(found):.2f}" + (f" ± {stdev(found):.2f}" if len(found) > 1 else "")
    if not interval:
        return text
    reach = stats.t.ppf(0.975, len(found) - 1) * stdev(found) / math.sqrt(len(found))
    return f"{text} {bracket(fmean(found) - reach, fmean(found) + reach, 2)}"


def pair(record: dict, valid: str = "valid_ppl", test: str = "test_ppl", sign: str = " / ") -> str:
    return f"{record[valid]:.2f}{sign}{record[test]:.2f}"


def gain(ours: dict, base: dict, split: str) -> float:
    return base[f"{split}_loss"] - ours[f"{split}_loss"]


def activation(records: dict[int, dict], name: str) -> float:
    return fmean(record["activation"][name] for record in records.values())


def percent_less(ours: float, base: float) -> float:
    return 100 * (1 - ours / base)


def only(study: str, index: int = 0) -> dict:
    return ledger(study)[index]


def welch(base: dict[int, dict], ours: dict[int, dict]):
    """Welch's test of what `ours` gains on test over `base`, over all their seeds."""
    return stats.ttest_ind(values(base, "test_loss"), values(ours, "test_loss"), equal_var=False)


def mean_gain(base: dict[int, dict], ours: dict[int, dict], loss: str = "test_loss") -> float:
    return fmean(values(base, loss)) - fmean(values(ours, loss))


def adapted(study: str) -> dict[str, dict[tuple[str, str], float]]:
    """Run -> (split, mode) -> perplexity, from the kept output of lm.evaluate."""
    text = (ROOT / "results" / study / "adapt.txt").read_text()
    found: dict[str, dict[tuple[str, str], float]] = {}
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^(valid|test) +(\S+) +([\d.]+)", block, re.MULTILINE)
        of_run = found.setdefault(re.search(r"runs/[\w-]+/(\w+)", block)[1], {})
        of_run |= {(split, mode): float(ppl) for split, mode, ppl in rows}
    return found


def minutes(record: dict) -> str:
    return f"{record['seconds'] / 60:.0f}"
