"""Statistics over seeds: means, differences with t-intervals, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

# Confidence level of every interval.
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation over n seeds; one seed has no sd."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference in nats over n pairs (or two samples), its 95 % t-interval and p; None where n tells nothing.

    `welch`: between two samples, by Welch's t-test, and not over pairs.
    """

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    welch: bool = False

    def untested(self) -> Difference:
        """The distance alone: what has another text or protocol, or lacks the seeds that diverged, is no fair draw."""
        return Difference(self.mean, self.n, welch=self.welch)


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean, sd (n - 1 in the denominator) and n; None for no values."""
    array = np.array(list(values), dtype=float)
    if not array.size:
        return None
    return Estimate(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, array.size)


def no_spread(*samples: Sequence[float]) -> bool:
    """Whether no sample varies by more than rounding: then there is no noise to test a difference against."""
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    scale = max(1.0, *(float(np.abs(array).max()) for array in arrays))
    return all(float(np.ptp(array)) <= 1e-12 * scale for array in arrays)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Mean of ours - theirs over the seeds that both have, by the one-sample t-test on the differences.

    Without spread there is no test: equal values give p = 1, a constant difference gives no p and no interval.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean = float(np.mean(differences))
    n = len(seeds)
    if n == 1:
        return Difference(mean, n)
    if no_spread(differences):
        return Difference(0.0, n, 0.0, 0.0, 1.0) if abs(mean) <= 1e-12 else Difference(mean, n)
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(LEVEL)
    return Difference(mean, n, float(interval.low), float(interval.high), float(test.pvalue))


def welch_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """mean(ours) - mean(theirs), n of the smaller, with Welch's t-test; no test for one value or without any spread."""
    mean = float(np.mean(ours) - np.mean(theirs))
    n = min(len(ours), len(theirs))
    if n < 2 or no_spread(ours, theirs):
        return Difference(mean, n, welch=True)
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    bounds = test.confidence_interval(LEVEL)
    return Difference(mean, n, float(bounds.low), float(bounds.high), float(test.pvalue), welch=True)


def draw_difference(single: float, sample: Sequence[float]) -> Difference:
    """single - mean(sample), tested as one further draw from the normal distribution that the sample is from.

    t = difference / (sd sqrt(1 + 1/n)) with n - 1 degrees of freedom: the prediction interval. n: the sample's size.
    """
    mean = float(single - np.mean(sample))
    n = len(sample)
    if n < 2 or no_spread(sample):
        return Difference(mean, n)
    scale = float(np.std(sample, ddof=1)) * math.sqrt(1 + 1 / n)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * scale
    return Difference(mean, n, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / scale, n - 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given; None takes no part."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def with_holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The differences with `p_holm` over all that have a p."""
    adjusted = holm([d.p if d else None for d in differences])
    return [replace(d, p_holm=p) if d else None for d, p in zip(differences, adjusted, strict=True)]


def pooled_sd(samples: Iterable[Iterable[float]]) -> float | None:
    """Seed noise: sd within configurations, pooled over the configurations with at least two seeds."""
    spreads = [(e.n - 1, e.sd) for e in map(estimate, samples) if e and e.sd is not None]
    freedom = sum(degrees for degrees, _ in spreads)
    return math.sqrt(sum(degrees * sd**2 for degrees, sd in spreads) / freedom) if freedom else None
