"""Statistics against scipy and numbers worked out by hand."""

import math
import random
import warnings

import numpy as np
import pytest
from scipy import optimize, special, stats

from lm.tables.stats import draw_difference, holm, paired_difference, pooled_sd, welch_difference
from lm.tables.text import verdict


def test_holm_equals_numbers_worked_out_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last is raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.02), None, pytest.approx(0.02)]
    assert holm([]) == []


def test_paired_difference_agrees_with_the_paired_t_test_and_a_quantile_found_by_root_search():
    generator = random.Random(3)
    ours = {seed: 4.4 + generator.gauss(0, 0.01) for seed in range(6)}
    theirs = {seed: 4.5 + generator.gauss(0, 0.01) for seed in range(1, 7)}
    seeds = range(1, 6)
    difference = paired_difference(ours, theirs)
    assert difference.n == 5
    assert difference.p == pytest.approx(stats.ttest_rel([ours[s] for s in seeds], [theirs[s] for s in seeds]).pvalue)
    d = [ours[s] - theirs[s] for s in seeds]
    mean = sum(d) / 5
    error = math.sqrt(sum((x - mean) ** 2 for x in d) / 4 / 5)
    quantile = optimize.brentq(lambda t: special.stdtr(4, t) - 0.975, 0, 100)
    assert difference.mean == pytest.approx(mean)
    assert (difference.low, difference.high) == pytest.approx((mean - quantile * error, mean + quantile * error))


def test_one_common_seed_gives_a_difference_without_interval_and_none_gives_nothing():
    difference = paired_difference({1: 4.0, 2: 4.1}, {2: 4.3, 3: 4.4})
    assert (difference.mean, difference.n) == (pytest.approx(-0.2), 1)
    assert (difference.low, difference.high, difference.p) == (None, None, None)
    assert "n = 1" in verdict(difference)
    assert paired_difference({1: 4.0}, {2: 4.0}) is None


def test_differences_without_spread_are_not_tested_and_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tie = paired_difference({1: 4.1, 2: 4.2, 3: 4.3}, {1: 4.1, 2: 4.2, 3: 4.3})
        constant = paired_difference({1: 4.1, 2: 4.2, 3: 4.3}, {1: 4.0, 2: 4.1, 3: 4.2})
        welch = welch_difference([4.0, 4.0], [4.1, 4.1])
    assert (tie.mean, tie.low, tie.high, tie.p) == (0, 0, 0, 1)
    assert (constant.mean, constant.low, constant.p) == (pytest.approx(0.1), None, None)
    assert (welch.mean, welch.p) == (pytest.approx(-0.1), None)
    assert "cannot test" in verdict(constant)


def test_welch_difference_equals_welchs_formula():
    a, b = [4.0, 4.1, 4.3, 4.2], [4.4, 4.5, 4.9]
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    difference = welch_difference(a, b)
    assert difference.p == pytest.approx(2 * special.stdtr(freedom, -abs(t)))
    assert difference.high == pytest.approx(difference.mean + special.stdtrit(freedom, 0.975) * math.sqrt(va + vb))
    assert difference.n == 3


def test_a_published_figure_is_a_draw_so_a_true_one_is_rejected_in_one_case_of_twenty():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(4000, 4))
    rejected = np.mean([draw_difference(row[3], row[:3]).p < 0.05 for row in samples])
    assert rejected == pytest.approx(0.05, abs=0.012)


def test_pooled_sd_weights_configurations_by_their_degrees_of_freedom():
    # Variances 0.02 (1 degree of freedom) and 0.01 (2): (0.02 + 2 * 0.01) / 3.
    assert pooled_sd([[0.0, 0.2], [0.0, 0.1, 0.2], [5.0], []]) == pytest.approx(math.sqrt(0.04 / 3))
    assert pooled_sd([[1.0]]) is None
