# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sequential test of errors: published values, martingales by enumeration, false alarms under peeking."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence

import pytest
from scipy import integrate, special, stats

from ansible_collections.causeway.platform.plugins.module_utils.statistics import counts
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    StatisticsError,
    sequential_p,
)
from ansible_collections.causeway.platform.plugins.module_utils.statistics.counts import Interval


def test_published_value() -> None:
    assert counts.multinomial_e_value((20, 80), (0.1, 0.9), 100) == pytest.approx(6.825899, abs=5e-7)
    assert math.exp(counts.bernoulli_log_e_value(20, 80, 0.1, 100)) == pytest.approx(6.825899, abs=5e-7)
    assert counts.e_value([Interval(0.1, 20, 80)], "two-sided", 1.0, 100) == pytest.approx(6.825899, abs=5e-7)


@pytest.mark.parametrize("k", [0.5, 1, 20, 100])
@pytest.mark.parametrize("observed", [(0, 0, 0), (3, 1, 0), (17, 40, 8), (1000, 300, 20)])
def test_multinomial_is_the_dirichlet_multinomial_ratio(k: float, observed: tuple[int, ...]) -> None:
    null = (0.2, 0.7, 0.1)
    n = sum(observed)
    expected = stats.dirichlet_multinomial.logpmf(observed, [k * p for p in null], n)
    expected -= stats.multinomial.logpmf(observed, n, null)
    assert counts.multinomial_log_e_value(observed, null, k) == pytest.approx(expected, abs=1e-9)


def test_multinomial_is_a_martingale() -> None:
    null = (0.2, 0.5, 0.3)
    for before in [(0, 0, 0), (4, 1, 0), (2, 30, 9)]:
        after = 0.0
        for category, p in enumerate(null):
            grown = [n + (i == category) for i, n in enumerate(before)]
            after += p * counts.multinomial_e_value(grown, null)
        assert after == pytest.approx(counts.multinomial_e_value(before, null), rel=1e-12)


@pytest.mark.parametrize("share", [1e-6, 0.01, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("errors", [(0, 1), (1, 0), (3, 5), (200, 1500), (10_000, 90_000)])
def test_integral_equals_the_closed_form(share: float, errors: tuple[int, int]) -> None:
    closed = counts.bernoulli_log_e_value(*errors, share)
    # A second share that hardly differs leads past the closed form.
    other = [Interval(share, *errors), Interval(share * (1 - 1e-13), 0, 1e-300)]
    assert counts.log_e_value(other, "two-sided") == pytest.approx(closed, abs=1e-7)


@pytest.mark.parametrize("side", ["greater", "less"])
@pytest.mark.parametrize("null_multiplier", [0.5, 1.0, 1.3])
def test_one_sided_is_the_truncated_beta(side: str, null_multiplier: float) -> None:
    share, k, c, s = 0.1, 20, 9, 41
    null = counts.implied_probability(share, null_multiplier)
    a, b = k * share, k * (1 - share)

    def mass(x: float, y: float) -> float:
        return special.betaincc(x, y, null) if side == "greater" else special.betainc(x, y, null)

    expected = special.betaln(a + c, b + s) - special.betaln(a, b) + math.log(mass(a + c, b + s) / mass(a, b))
    expected -= c * math.log(null) + s * math.log(1 - null)
    assert counts.log_e_value([Interval(share, c, s)], side, null_multiplier, k) == pytest.approx(expected, abs=1e-9)


def test_drifting_shares_match_scipy_quadrature() -> None:
    intervals = [Interval(0.05, 2, 9), Interval(0.2, 4, 20), Interval(0.5, 11, 8)]
    k, r = 20.0, 0.05

    def density(lam: float) -> float:
        p = 1 / (1 + math.exp(-lam) * (1 - r) / r)
        prior = k * r * math.log(p) + k * (1 - r) * math.log(1 - p) - special.betaln(k * r, k * (1 - r))
        for one in intervals:
            prior += one.candidate * lam - (one.candidate + one.stable) * math.log(1 + one.share * math.expm1(lam))
        return math.exp(prior)

    expected = integrate.quad(density, -20, 20, epsabs=0, epsrel=1e-11, points=[0, 1])[0]
    assert counts.e_value(intervals, "two-sided") == pytest.approx(expected, rel=1e-8)


def enumerate_mean(
    shares: Sequence[float], sizes: Sequence[int], side: str, null: float, true: float, reference: float | None = None
) -> float:
    """The exact mean of the e-value when the true multiplier is `true`."""
    mean = 0.0
    for split in itertools.product(*(range(n + 1) for n in sizes)):
        weight = 1.0
        for share, n, c in zip(shares, sizes, split):
            weight *= stats.binom.pmf(c, n, counts.implied_probability(share, true))
        rows = [Interval(share, c, n - c) for share, n, c in zip(shares, sizes, split)]
        mean += weight * counts.e_value(rows, side, null, reference=reference)
    return mean


@pytest.mark.parametrize("side", counts.SIDES)
@pytest.mark.parametrize("null", [1.0, 1.5])
def test_mean_under_the_null_is_one(side: str, null: float) -> None:
    assert enumerate_mean([0.05, 0.2, 0.6], [3, 4, 2], side, null, null) == pytest.approx(1, abs=1e-9)


def test_composite_null_is_covered() -> None:
    shares, sizes = [0.1, 0.3], [5, 4]
    assert enumerate_mean(shares, sizes, "greater", 1.2, 1.0) < 1
    assert enumerate_mean(shares, sizes, "greater", 1.2, 2.0) > 1
    assert enumerate_mean(shares, sizes, "less", 1.2, 1.5) < 1


def test_realised_shares_of_frequent_errors_are_conservative() -> None:
    """With the realised share the errors split hypergeometrically: the mean stays at most 1."""
    for bad in (1, 7, 12):
        split = stats.hypergeom(20, 5, bad)
        mean = sum(
            split.pmf(c) * counts.e_value([Interval(0.25, c, bad - c)], side)
            for c in range(max(0, bad - 15), min(5, bad) + 1)
            for side in ("greater",)
        )
        assert mean <= 1 + 1e-9


def test_more_errors_on_the_candidate_are_more_evidence() -> None:
    values = [counts.log_e_value([Interval(0.1, c, 100 - c)]) for c in range(0, 101, 5)]
    assert values == sorted(values)
    values = [counts.log_e_value([Interval(0.1, c, 100 - c)], "less") for c in range(0, 101, 5)]
    assert values == sorted(values, reverse=True)


def test_swapping_the_sides_changes_nothing() -> None:
    intervals = [Interval(0.2, 4, 9), Interval(0.35, 7, 3)]
    mirrored = [Interval(1 - one.share, one.stable, one.candidate) for one in intervals]
    assert counts.log_e_value(intervals, "two-sided") == pytest.approx(counts.log_e_value(mirrored, "two-sided"))
    assert counts.log_e_value(intervals, "greater") == pytest.approx(counts.log_e_value(mirrored, "less"))
    low, high = counts.multiplier_sequence(intervals, 0.1)
    low_mirrored, high_mirrored = counts.multiplier_sequence(mirrored, 0.1)
    assert (low, high) == pytest.approx((1 / high_mirrored, 1 / low_mirrored))


def test_order_of_intervals_does_not_matter_with_a_reference() -> None:
    intervals = [Interval(0.1, 1, 9), Interval(0.3, 4, 5), Interval(0.1, 0, 7)]
    assert counts.log_e_value(intervals, reference=0.1) == pytest.approx(
        counts.log_e_value(intervals[::-1], reference=0.1), abs=1e-10
    )


@pytest.mark.parametrize("intervals", [[Interval(0.1, 12, 60)], [Interval(0.1, 3, 40), Interval(0.3, 30, 20)]])
def test_confidence_sequence_inverts_the_test(intervals: list[Interval]) -> None:
    low, high = counts.multiplier_sequence(intervals, 0.05)
    assert low < high
    for end in (low, high):
        assert counts.e_value(intervals, "two-sided", end) == pytest.approx(20, rel=1e-6)


def test_confidence_sequences_at_the_edges() -> None:
    assert counts.multiplier_sequence([], 0.05) == (0, math.inf)
    assert counts.multiplier_sequence([Interval(0.1, 0, 0)], 0.05) == (0, math.inf)
    low, high = counts.multiplier_sequence([Interval(0.1, 0, 50)], 0.05)
    assert low == 0
    assert counts.e_value([Interval(0.1, 0, 50)], "two-sided", high) == pytest.approx(20)
    low, high = counts.multiplier_sequence([Interval(0.1, 50, 0)], 0.05)
    assert high == math.inf
    assert counts.e_value([Interval(0.1, 50, 0)], "two-sided", low) == pytest.approx(20)


def test_probability_sequences_invert_the_multinomial_test() -> None:
    observed, null = (20, 80), (0.1, 0.9)
    (low, high), (other_low, other_high) = counts.probability_sequences(observed, null, 0.05)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))
    mixture = special.betaln(2 + 20, 18 + 80) - special.betaln(2, 18)
    for end in (low, high):
        assert 20 * math.log(end) + 80 * math.log(1 - end) == pytest.approx(mixture + math.log(0.05))
    zero, most, rest = counts.probability_sequences((0, 80, 3), (0.1, 0.8, 0.1), 0.05)
    assert zero[0] == 0 < zero[1] < 0.2 and most[0] < 80 / 83 < most[1] < 1 and rest[0] > 0


@pytest.mark.parametrize("side", counts.SIDES)
@pytest.mark.parametrize(
    "row", [(0.1, 1e8, 9e8), (1e-6, 1e3, 1e9), (1e-6, 0, 1e9), (0.999999, 1e9, 0), (1e-6, 1e9, 0), (0.5, 1e9, 1e9)]
)
def test_huge_counts_and_tiny_shares(side: str, row: tuple[float, float, float]) -> None:
    value = counts.log_e_value([Interval(*row)], side)
    drifting = counts.log_e_value([Interval(*row), Interval(row[0] * 0.9, 1, 10)], side)
    assert math.isfinite(value) and math.isfinite(drifting)
    assert math.isfinite(counts.e_value([Interval(*row)], side))


def test_fast_enough_for_500_intervals() -> None:
    rng = random.Random(1)
    rows = [Interval(rng.uniform(0.05, 0.4), rng.randint(0, 5), rng.randint(0, 20)) for _number in range(500)]
    counts.log_e_value(rows)
    spent = []
    for _number in range(5):
        started = time.process_time()
        counts.log_e_value(rows)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.05


def test_false_alarms_under_peeking() -> None:
    """Identical versions, shares that drift, a look after every interval: at most alpha of the runs ever alarm."""
    rng = random.Random(20260722)
    runs, alpha, alarms = 400, 0.1, 0
    for _number in range(runs):
        rows: list[Interval] = []
        for minute in range(12):
            share = 0.05 + 0.03 * minute
            n = rng.randint(0, 12)
            c = sum(rng.random() < share for _number in range(n))
            rows.append(Interval(share, c, n - c))
            if counts.log_e_value(rows) >= -math.log(alpha):
                alarms += 1
                break
    # 400 runs at exactly 10 % would exceed 58 in one of 1,000 cases.
    assert 0 < alarms <= 58
    assert alarms <= alpha * runs


def test_comparison() -> None:
    worse = counts.compare_errors([Interval(0.1, 40, 60)], 0.05, requests=(9000, 1000))
    assert worse.decision == WORSE
    assert worse.e_value is not None and worse.e_value > 20
    assert worse.candidate == pytest.approx(0.04)
    assert worse.difference == pytest.approx(5)
    assert worse.lower is not None and worse.upper is not None and 0 < worse.lower < 5 < worse.upper
    assert counts.compare_errors([Interval(0.1, 10, 90)], 0.05).decision == UNDECIDED
    assert counts.compare_errors([Interval(0.1, 100, 900)], 0.05, margin=1.0).decision == NOT_WORSE
    assert counts.compare_errors([Interval(0.1, 130, 900)], 0.05, margin=1.0).decision == NOT_WORSE
    assert counts.compare_errors([], 0.05).decision == UNDECIDED
    assert counts.compare_errors([Interval(0.1, 5, 0)], 0.05).upper is None


def test_interval_from_requests() -> None:
    assert counts.interval(3, 100, 7, 300) == Interval(0.25, 3, 7)
    assert counts.interval(0, 0, 7, 300) is None
    assert counts.interval(1, 100, 0, 0) is None
    with pytest.raises(StatisticsError, match="more errors"):
        counts.interval(30, 10, 7, 300)


def test_sequential_p_never_rises() -> None:
    assert sequential_p([0.5, 4, 2, 10]) == [1, 0.25, 0.25, 0.1]
    with pytest.raises(StatisticsError):
        sequential_p([float("nan")])


@pytest.mark.parametrize(
    "row",
    [(0.0, 1, 1), (1.0, 1, 1), (float("nan"), 1, 1), (0.1, -1, 1), (0.1, 1, float("inf")), (0.1, float("nan"), 1)],
)
def test_bad_intervals_are_refused(row: tuple[float, float, float]) -> None:
    with pytest.raises(StatisticsError, match=r"^intervals\[0\]"):
        counts.log_e_value([Interval(*row)])


def test_bad_settings_are_refused() -> None:
    good = [Interval(0.1, 1, 1)]
    for alpha in (0, 1, -0.1, float("nan")):
        with pytest.raises(StatisticsError, match="alpha"):
            counts.compare_errors(good, alpha)
    with pytest.raises(StatisticsError, match="side"):
        counts.log_e_value(good, "worse")
    with pytest.raises(StatisticsError, match="margin"):
        counts.compare_errors(good, 0.05, margin=-0.1)
    with pytest.raises(StatisticsError, match="concentration"):
        counts.log_e_value(good, concentration=0)
    with pytest.raises(StatisticsError, match="sum to 1"):
        counts.multinomial_e_value((1, 2), (0.5, 0.4))
    with pytest.raises(StatisticsError, match="same length"):
        counts.multinomial_e_value((1, 2, 3), (0.5, 0.5))
