"""Runs of one configuration, with estimates of their metrics over seeds and differences to the baseline."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Any

from lm.base.numbers import is_number
from lm.study.records import METRICS
from lm.tables.stats import Difference, Estimate, estimate, paired_difference, welch_difference


@dataclass(frozen=True)
class Configuration:
    """Runs of one configuration: finished ones by seed, (seed, what became of it) of others, the seeds asked for.

    `label` says what differs from the baseline, as `alpha 2`; the baseline's own says all, as `alpha 0, beta 0`.
    """

    values: dict[str, Any]
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    others: tuple[tuple[int, str], ...] = ()
    asked: frozenset[int] = frozenset()
    estimates: dict[str, Estimate | None] = field(default_factory=dict)
    differences: dict[str, Difference | None] = field(default_factory=dict)
    label: str = ""

    @property
    def diverged(self) -> frozenset[int]:
        """Seeds whose runs diverged."""
        return frozenset(seed for seed, fate in self.others if fate.startswith("diverged"))

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> finite value of the metric."""
        found = {seed: METRICS[metric](record) for seed, record in self.runs.items()}
        return {seed: float(value) for seed, value in found.items() if is_number(value)}

    def devices(self) -> dict[int, Any]:
        """Seed -> kind of device (cpu, cuda) that the run was on; None where its line does not say."""
        return {seed: (record.get("versions") or {}).get("device") for seed, record in self.runs.items()}

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


def unlike_devices(ours: Configuration, theirs: Configuration) -> list[int]:
    """Seeds with which the two ran on different kinds of device, where one seed draws other weights and masks."""
    here, there = ours.devices(), theirs.devices()
    return sorted(seed for seed in here.keys() & there.keys() if here[seed] != there[seed])


def difference_by_seed(ours: Configuration, theirs: Configuration, metric: str) -> Difference | None:
    """ours - theirs over the seeds that both have: paired by seed, or by Welch's test if some of these are no pairs.

    Not tested where one of the two diverged on some seed, for those that are left are chosen by that.
    """
    a, b = ours.by_seed(metric), theirs.by_seed(metric)
    if not a.keys() & b.keys() & set(unlike_devices(ours, theirs)):
        difference = paired_difference(a, b)
    else:
        seeds = sorted(a.keys() & b.keys())
        difference = welch_difference([a[seed] for seed in seeds], [b[seed] for seed in seeds])
    return difference.untested() if difference and (ours.diverged or theirs.diverged) else difference


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
