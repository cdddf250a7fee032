# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mann-Whitney: R's published results, SciPy, enumeration, and an own copy of R's root search on ranks."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import optimize, stats

from ansible_collections.causeway.platform.plugins.module_utils.statistics import ranks
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import StatisticsError

# Hollander & Wolfe (1973), table 5.4, permeability of the human placenta: the example of R's ?wilcox.test.
AT_TERM = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
EARLY = [1.15, 0.88, 0.90, 0.74, 1.21]


def test_published_interval() -> None:
    found = ranks.wilcox([10, 20, 30, 40], [1, 2, 3, 4], 0.98)
    assert (found.lower, found.upper, found.estimate) == (6, 39, 22.5)
    assert found.exact and found.p_value == pytest.approx(2 / 70)
    normal = ranks.wilcox([10, 20, 30, 40], [1, 2, 3, 4], 0.98, exact=False)
    assert (normal.lower, normal.upper, normal.estimate) == (6, 39, 22.5)


def test_the_example_of_r() -> None:
    found = ranks.wilcox(AT_TERM, EARLY, alternative="greater")
    assert found.statistic == 35
    assert found.p_value == pytest.approx(0.1272, abs=5e-5)
    assert found.estimate == pytest.approx(0.305)
    assert found.upper == math.inf


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 6), (3, 4), (5, 2)])
def test_distribution_is_that_of_all_orders(m: int, n: int) -> None:
    expected = [0] * (m * n + 1)
    for places in itertools.combinations(range(m + n), m):
        expected[sum(places) - m * (m - 1) // 2] += 1
    assert list(ranks.rank_sum_distribution(m, n)) == expected


def test_distribution_of_the_largest_exact_samples() -> None:
    ways = ranks.rank_sum_distribution(49, 49)
    assert sum(ways) == math.comb(98, 49)
    assert ways == ways[::-1] and min(ways) == 1


@pytest.mark.parametrize("alternative", ranks.ALTERNATIVES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 12), (30, 45), (60, 55)])
def test_p_values_are_those_of_scipy(m: int, n: int, ties: bool, alternative: str) -> None:
    rng = np.random.default_rng(m * n)
    x, y = rng.normal(0.4, 1, m), rng.normal(0, 1, n)
    if ties:
        x, y = np.round(x * 2) / 2, np.round(y * 2) / 2
    found = ranks.wilcox(x.tolist(), y.tolist(), alternative=alternative)
    assert found.exact == (not ties and m < 50)
    expected = stats.mannwhitneyu(x, y, alternative=alternative, method="exact" if found.exact else "asymptotic")
    assert found.statistic == expected.statistic
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-10)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.98])
def test_exact_interval_holds_the_shifts_that_are_not_rejected(confidence: float) -> None:
    found = ranks.wilcox(AT_TERM, EARLY, confidence)
    for shift, inside in (
        (found.lower - 1e-6, False),
        (found.lower + 1e-6, True),
        (found.upper - 1e-6, True),
        (found.upper + 1e-6, False),
    ):
        p = stats.mannwhitneyu(np.array(AT_TERM) - shift, EARLY, method="exact").pvalue
        assert (p > 1 - confidence) == inside


def r_root(x: np.ndarray, y: np.ndarray, z: float) -> float:
    """What wilcox.test does for the interval of the normal approximation, with a far smaller tolerance."""
    m, n = len(x), len(y)

    def standardised(shift: float) -> float:
        ranked = stats.rankdata(np.concatenate([x - shift, y]))
        dz = ranked[:m].sum() - m * (m + 1) / 2 - m * n / 2
        ties = (np.unique(ranked, return_counts=True)[1].astype(float) ** 3).sum() - m - n
        sigma = math.sqrt(m * n / 12 * ((m + n + 1) - (ties - 0) / ((m + n) * (m + n - 1))))
        return (dz - 0.5 * np.sign(dz)) / sigma - z

    low, high = x.min() - y.max(), x.max() - y.min()
    if standardised(low) <= 0:
        return low
    if standardised(high) >= 0:
        return high
    return optimize.brentq(standardised, low, high, xtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("confidence", [0.9, 0.98])
def test_normal_interval_is_the_limit_of_rs_root_search(seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.exponential(2, 53 + seed), rng.exponential(1.5, 60)
    z = stats.norm.isf((1 - confidence) / 2)
    found = ranks.wilcox(x.tolist(), y.tolist(), confidence)
    assert not found.exact
    assert (found.lower, found.upper) == pytest.approx((r_root(x, y, z), r_root(x, y, -z)), abs=1e-9)
    assert found.estimate == pytest.approx(float(np.median(x[:, None] - y[None, :])))


def test_normal_interval_with_ties() -> None:
    rng = np.random.default_rng(12)
    x, y = np.round(rng.gamma(3, 1, 90) * 2) / 2, np.round(rng.gamma(3, 1.2, 90) * 2) / 2
    z = stats.norm.isf(0.025)
    found = ranks.wilcox(x.tolist(), y.tolist())
    assert (found.lower, found.upper) == pytest.approx((r_root(x, y, z), r_root(x, y, -z)), abs=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_scale_shift_and_swap(exact: bool) -> None:
    base = ranks.wilcox(AT_TERM, EARLY, 0.9, exact=exact)
    for factor in (1e-9, 1e9):
        found = ranks.wilcox([factor * a for a in AT_TERM], [factor * b for b in EARLY], 0.9, exact=exact)
        assert (found.lower, found.upper, found.estimate) == pytest.approx(
            (factor * base.lower, factor * base.upper, factor * base.estimate)
        )
        assert found.p_value == base.p_value
    swapped = ranks.wilcox(EARLY, AT_TERM, 0.9, exact=exact)
    assert (swapped.lower, swapped.upper, swapped.estimate) == (-base.upper, -base.lower, -base.estimate)
    assert swapped.p_value == pytest.approx(base.p_value)


def test_coverage() -> None:
    rng = random.Random(19)
    missed = 0
    for _number in range(400):
        x, y = [rng.gauss(1, 1) for _number in range(8)], [rng.gauss(0, 1) for _number in range(9)]
        found = ranks.wilcox(x, y, 0.9)
        missed += not found.lower <= 1 <= found.upper
    assert missed <= 0.1 * 400 + 3 * math.sqrt(0.09 * 400)


def test_constant_samples() -> None:
    found = ranks.wilcox([5.0] * 6, [3.0] * 6, exact=False)
    assert (found.lower, found.upper, found.estimate) == (2, 2, 2)
    same = ranks.wilcox([3.0] * 6, [3.0] * 6)
    assert same.p_value == 1 and (same.lower, same.upper) == (0, 0)
    assert ranks.wilcox([1.0], [0.0]).p_value == 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(StatisticsError, match="x needs at least 1"):
        ranks.wilcox([], [1.0])
    with pytest.raises(StatisticsError, match=r"y\[1\]"):
        ranks.wilcox([1.0], [1.0, float("nan")])
    with pytest.raises(StatisticsError, match="confidence"):
        ranks.wilcox([1.0], [2.0], 1.0)
    with pytest.raises(StatisticsError, match="alternative"):
        ranks.wilcox([1.0], [2.0], 0.9, "up")
    with pytest.raises(StatisticsError, match="ties"):
        ranks.wilcox([1.0], [1.0], exact=True)
    with pytest.raises(StatisticsError, match="pairs"):
        ranks.wilcox([1.0] * 3000, [2.0] * 3000)
