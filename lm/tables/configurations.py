"""Runs of one configuration, with estimates of their metrics over seeds and differences to the baseline."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Any

from lm.base.numbers import is_number
from lm.study.records import METRICS
from lm.tables.stats import Difference, Estimate, estimate


@dataclass(frozen=True)
class Configuration:
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
        found = self.estimates.get(metric)
        return found.mean if found else None

    def estimated(self, metric: str) -> Estimate:
        """Estimate of a metric that some run has. Raises KeyError where none has it."""
        found = self.estimates.get(metric)
        if found is None:
            raise KeyError(metric)
        return found


def with_estimates(configuration: Configuration) -> Configuration:
    """The configuration with an estimate of every metric."""
    return replace(
        configuration, estimates={metric: estimate(configuration.by_seed(metric).values()) for metric in METRICS}
    )


def on_seeds(configuration: Configuration, seeds: Set[int]) -> Configuration:
    """The configuration with its runs of these seeds only; differences stay."""
    return with_estimates(
        replace(configuration, runs={seed: run for seed, run in configuration.runs.items() if seed in seeds})
    )
