"""Runs of one configuration: their metrics, estimates over seeds, and how a configuration is named.

For runs on characters or BPE, perplexity and nats are per word (`lm.units`), so that they stand beside those of words,
where a token is a word.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from lm.config import with_defaults
from lm.stats import Difference, Estimate, estimate
from lm.study import identity


def _positive_log(value: Any) -> float:
    return math.log(value) if is_number(value) and value > 0 else math.nan


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number (true and false are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def loss_of(record: Mapping[str, Any], split: str) -> float:
    """Nats per word of a split, NaN where there are none."""
    if f"{split}_word_ppl" in record:
        return _positive_log(record[f"{split}_word_ppl"])
    loss = record.get(f"{split}_loss")
    return float(loss) if is_number(loss) else _positive_log(record.get(f"{split}_ppl"))


def ppl_of(loss: float) -> float:
    """Perplexity of a loss in nats."""
    return math.exp(min(loss, 300.0))  # so that its square, in a variance, is a float still


def _activation(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: (record.get("activation") or {}).get(name)


# Value in a ledger record; losses and the gap in nats per word, time in seconds.
METRICS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "valid_loss": lambda record: loss_of(record, "valid"),
    "test_loss": lambda record: loss_of(record, "test"),
    "valid_ppl": lambda record: ppl_of(loss_of(record, "valid")),
    "test_ppl": lambda record: ppl_of(loss_of(record, "test")),
    "train_ppl": lambda record: record.get("train_word_ppl", record.get("train_ppl")),
    "gap": lambda record: loss_of(record, "valid") - _positive_log(METRICS["train_ppl"](record)),
    "valid_bits_per_char": lambda record: record.get("valid_bits_per_char"),
    "test_bits_per_char": lambda record: record.get("test_bits_per_char"),
    "rms": _activation("rms"),
    "mean_abs": _activation("mean_abs"),
    "frac_small": _activation("frac_small"),
    "temporal_rms": _activation("temporal_rms"),
    "best_epoch": lambda record: record.get("best_epoch"),
    "seconds": lambda record: record.get("seconds"),
}


@dataclass(frozen=True)
class Cell:
    """Runs of one configuration: finished ones by seed, (seed, what became of it) of others, the seeds asked for.

    `label` says what differs from the baseline, as `alpha 2`; the baseline's own says all, as `alpha 0, beta 0`.
    """

    values: dict[str, Any]
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    others: tuple[tuple[int, str], ...] = ()
    diverged: bool = False
    asked: frozenset[int] = frozenset()
    estimates: dict[str, Estimate | None] = field(default_factory=dict)
    differences: dict[str, Difference | None] = field(default_factory=dict)
    label: str = ""

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> finite value of the metric."""
        found = {seed: METRICS[metric](record) for seed, record in self.runs.items()}
        return {seed: float(value) for seed, value in found.items() if is_number(value)}

    def mean(self, metric: str) -> float | None:
        """Mean of the metric over seeds; None where no run has it."""
        estimate = self.estimates.get(metric)
        return estimate.mean if estimate else None


def label(values: Mapping[str, Any]) -> str:
    """A configuration in words, as `alpha 2, beta 1`."""
    return ", ".join(f"{name} {show(value)}" for name, value in values.items()) or "all runs"


def cell_name(values: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """A cell by what `base`, the baseline, does not have or has another value of; the baseline by all it has."""
    other = {name: v for name, v in values.items() if name not in base or identity(v) != identity(base[name])}
    return label(other or values)


def show(value: Any) -> str:
    """A configuration value as a user writes it: 1.0 as 1, true, 10,20."""
    if isinstance(value, (list, tuple)):
        return ",".join(show(item) for item in value) or "none"
    if not is_number(value):
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)
    return f"{value:.6g}"


def with_estimates(cell: Cell) -> Cell:
    """The cell with an estimate of every metric."""
    return replace(cell, estimates={metric: estimate(cell.by_seed(metric).values()) for metric in METRICS})


def on_seeds(cell: Cell, seeds: Set[int]) -> Cell:
    """The cell with its runs of these seeds only; differences stay."""
    return with_estimates(replace(cell, runs={seed: run for seed, run in cell.runs.items() if seed in seeds}))


def config_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of a run; younger fields, which an older line lacks, at their defaults."""
    return with_defaults(record.get("config") or {})
