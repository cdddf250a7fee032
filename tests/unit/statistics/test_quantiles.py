# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quantile bands: the paper's constants, coverage, histograms, comparisons."""

from __future__ import annotations

import math
import random

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.statistics import quantiles
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    StatisticsError,
)

INF = math.inf
PROMETHEUS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, INF]
FINE = [0.001 * 1.1**i for i in range(110)]


def lognormal(rng: random.Random, n: int, scale: float = 1.0) -> list[float]:
    return [scale * rng.lognormvariate(-3, 0.5) for _number in range(n)]


@pytest.mark.parametrize("alpha", [1e-4, 0.001, 0.01, 0.05, 0.25])
def test_the_papers_constants(alpha: float) -> None:
    """Theorem 2 with A = 0.85 and C = 0.8 log(1612/alpha) has error at most alpha; the least C is a little smaller."""
    published = 0.8 * math.log(1612 / alpha)
    assert quantiles.dkw_error(0.85, published) <= alpha
    assert quantiles.dkw_error(0.85, quantiles.dkw_constant(alpha)) == pytest.approx(alpha, rel=1e-6)
    assert 0.9 * published < quantiles.dkw_constant(alpha) <= published


def test_dkw_half_width() -> None:
    expected = 0.85 * math.sqrt((math.log(math.log(math.e * 1000)) + 0.8 * math.log(1612 / 0.05)) / 1000)
    assert quantiles.dkw_half_width(1000, 0.05) == pytest.approx(expected)
    assert quantiles.dkw_half_width(99, 0.05, 100) == INF
    assert quantiles.dkw_half_width(0, 0.05) == INF
    # Wider than the fixed-time inequality sqrt(log(2/alpha)/2n), by about a factor of two.
    assert 1.5 < expected / math.sqrt(math.log(40) / 2000) < 2.7


def test_dkw_band_is_hardly_ever_left() -> None:
    rng = random.Random(3)
    left, runs = 0, 100
    for _number in range(runs):
        counts = [0] * 20
        for n in range(1, 301):
            counts[int(rng.random() * 20)] += 1
            if n % 20 == 0:
                running, worst = 0, 0.0
                for i, number in enumerate(counts):
                    running += number
                    worst = max(worst, abs(running / n - (i + 1) / 20))
                if worst > quantiles.dkw_half_width(n, 0.1):
                    left += 1
                    break
    assert left <= 0.1 * runs


def test_histogram() -> None:
    data = quantiles.histogram([1, 2, INF], [3, 7, 10])
    assert data.total == 10
    assert [data.at_most(x) for x in (0.5, 1, 1.5, 2, 99, INF)] == [0, 3, 3, 7, 7, 10]
    assert [data.below(x, 0.0) for x in (0, 0.5, 1, 1.5, 2, 99, INF)] == [0, 1.5, 3, 5, 7, 7, 10]
    assert quantiles.histogram_of([0.5, 1, 1.5, 2, 7], [1, 2]).cumulative == (2, 4, 5)
    # Prometheus extrapolates each bucket by itself.
    assert quantiles.histogram([1, 2, INF], [7.0000001, 7, 10]).cumulative == (7.0000001, 7.0000001, 10)


@pytest.mark.parametrize(
    ("bounds", "cumulative", "said"),
    [
        ([1, 2], [1, 2], "Inf"),
        ([2, 1, INF], [1, 2, 3], "rise strictly"),
        ([1, 1, INF], [1, 2, 3], "rise strictly"),
        ([1, 2, INF], [5, 2, 8], "must not fall"),
        ([1, INF], [-1, 2], "negative"),
        ([1, INF], [1, float("nan")], "finite"),
        ([1, INF], [1], "as many"),
        ([], [], "as many"),
        ([float("nan"), INF], [1, 2], "rise strictly"),
    ],
)
def test_bad_histograms_are_refused(bounds: list[float], cumulative: list[float], said: str) -> None:
    with pytest.raises(StatisticsError, match=said):
        quantiles.histogram(bounds, cumulative)


def test_quantile_estimate_is_prometheus() -> None:
    data = quantiles.histogram([1, 2, 4, INF], [50, 90, 100, 100])
    assert quantiles.quantile_estimate(data, 0.5) == pytest.approx(1)
    assert quantiles.quantile_estimate(data, 0.7) == pytest.approx(1.5)
    assert quantiles.quantile_estimate(data, 0.99) == pytest.approx(3.8)
    assert quantiles.quantile_estimate(quantiles.histogram([1, INF], [1, 100]), 0.99) == 1
    assert quantiles.quantile_estimate(quantiles.histogram([1, INF], [0, 0]), 0.99) is None


@pytest.mark.parametrize("method", quantiles.METHODS)
@pytest.mark.parametrize("interpolate", [True, False])
def test_intervals_hold_the_quantile_and_shrink(method: str, interpolate: bool) -> None:
    rng = random.Random(11)
    true = math.exp(-3)
    widths = []
    for n in (300, 3000, 30000):
        data = quantiles.histogram_of(lognormal(rng, n), FINE)
        low, high = quantiles.quantile_sequence(data, 0.5, 0.05, method, interpolate=interpolate)
        assert low < true < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.25 * true


def test_interpolation_narrows_inside_the_bucket() -> None:
    data = quantiles.histogram_of(lognormal(random.Random(2), 20000), PROMETHEUS)
    wide = quantiles.quantile_sequence(data, 0.99, 0.05, interpolate=False)
    narrow = quantiles.quantile_sequence(data, 0.99, 0.05)
    assert wide == (0.1, 0.25)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_fixed_is_sharper_than_dkw_at_the_tail() -> None:
    data = quantiles.histogram_of(lognormal(random.Random(2), 5000), FINE)
    assert quantiles.quantile_sequence(data, 0.99, 0.05, "dkw")[1] == INF
    assert quantiles.quantile_sequence(data, 0.99, 0.05, "fixed")[1] < INF


def test_without_data_nothing_is_known() -> None:
    empty = quantiles.histogram([1, INF], [0, 0])
    for method in quantiles.METHODS:
        assert quantiles.quantile_sequence(empty, 0.9, 0.05, method) == (0, INF)
    with pytest.raises(StatisticsError, match="histogram of candidate is empty"):
        quantiles.compare_quantile(quantiles.histogram([1, INF], [1, 2]), empty, 0.9, 0.05)


@pytest.mark.parametrize("bounds", [PROMETHEUS, FINE])
def test_twice_as_slow_is_found_and_equal_is_not(bounds: list[float]) -> None:
    rng = random.Random(7)
    stable = quantiles.histogram_of(lognormal(rng, 20000), bounds)
    slow = quantiles.histogram_of(lognormal(rng, 3000, 2.0), bounds)
    equal = quantiles.histogram_of(lognormal(rng, 20000), bounds)
    found = quantiles.compare_quantile(stable, slow, 0.99, 0.025, 0.2)
    assert found.decision == WORSE
    assert found.e_value is not None and found.e_value >= 40
    assert found.lower is not None and found.difference is not None and 0.2 < found.lower < found.difference
    assert quantiles.compare_quantile(stable, equal, 0.99, 0.025, 0.2).decision == NOT_WORSE
    assert quantiles.compare_quantile(stable, equal, 0.99, 0.025, 0.0).decision == UNDECIDED
    assert quantiles.compare_quantile(slow, stable, 0.99, 0.025, 0.0).decision == NOT_WORSE


def test_whole_buckets_prove_only_what_they_show() -> None:
    rng = random.Random(7)
    stable = quantiles.histogram_of(lognormal(rng, 20000), PROMETHEUS)
    slow = quantiles.histogram_of(lognormal(rng, 3000, 2.0), PROMETHEUS)
    slower = quantiles.histogram_of(lognormal(rng, 3000, 6.0), PROMETHEUS)
    settings = {"alpha": 0.025, "margin": 0.2, "interpolate": False}
    # p99 is 0.16 and 0.32: in (0.1, 0.25] and (0.25, 0.5], which may be a factor of 1.
    assert quantiles.compare_quantile(stable, slow, 0.99, **settings).decision == UNDECIDED
    assert quantiles.compare_quantile(stable, slower, 0.99, **settings).decision == WORSE


def test_dkw_comparison() -> None:
    rng = random.Random(7)
    stable = quantiles.histogram_of(lognormal(rng, 30000), FINE)
    slow = quantiles.histogram_of(lognormal(rng, 5000, 2.0), FINE)
    assert quantiles.compare_quantile(stable, slow, 0.5, 0.025, 0.2, method="dkw").decision == WORSE
    assert quantiles.compare_quantile(slow, stable, 0.5, 0.025, 0.2, method="dkw").decision == NOT_WORSE
    assert quantiles.compare_quantile(stable, slow, 0.99, 0.025, 0.2, method="dkw").decision == UNDECIDED


def test_all_beyond_the_largest_bound() -> None:
    """A candidate whose requests all time out is worse than a stable that answers below the largest bound."""
    stable = quantiles.histogram([0.1, 1, INF], [900, 1000, 1000])
    hanging = quantiles.histogram([0.1, 1, INF], [0, 0, 200])
    assert quantiles.compare_quantile(stable, hanging, 0.9, 0.05).decision == WORSE
    assert quantiles.compare_quantile(hanging, hanging, 0.9, 0.05).decision == UNDECIDED
    assert quantiles.compare_quantile(hanging, stable, 0.9, 0.05).decision == NOT_WORSE


def test_different_buckets_can_be_compared() -> None:
    rng = random.Random(17)
    stable = quantiles.histogram_of(lognormal(rng, 20000), PROMETHEUS)
    slow = quantiles.histogram_of(lognormal(rng, 5000, 3.0), FINE)
    assert quantiles.compare_quantile(stable, slow, 0.9, 0.05, 0.2).decision == WORSE
    assert quantiles.compare_quantile(slow, stable, 0.9, 0.05, 0.2).decision == NOT_WORSE


def test_more_slow_requests_are_more_evidence() -> None:
    stable = quantiles.histogram(PROMETHEUS, [0, 0, 0, 500, 900, 990, 1000, 1000, 1000, 1000, 1000, 1000])
    values = []
    for late in range(0, 60, 6):
        inside = [min(n, 200 - late) for n in (0, 0, 0, 100, 180, 198, 200, 200, 200, 200, 200)]
        values.append(
            quantiles.log_e_quantile_worse(stable, quantiles.histogram(PROMETHEUS, [*inside, 200]), 0.99, 0.1)
        )
    assert values == sorted(values)
    assert values[0] < 0 < values[-1]


def test_units_do_not_matter() -> None:
    rng = random.Random(23)
    fast, slow = lognormal(rng, 3000), lognormal(rng, 600, 1.4)
    found = []
    for unit in (1.0, 1000.0):
        bounds = [unit * b for b in PROMETHEUS]
        one, other = (quantiles.histogram_of([unit * x for x in xs], bounds) for xs in (fast, slow))
        found.append(quantiles.log_e_quantile_worse(one, other, 0.9, 0.1))
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("interpolate", [True, False])
def test_false_alarms_under_peeking(interpolate: bool) -> None:
    rng = random.Random(29)
    runs, alpha, alarms = 40, 0.1, 0
    for _number in range(runs):
        stable, candidate = [0.0] * len(PROMETHEUS), [0.0] * len(PROMETHEUS)
        for _look in range(6):
            for target, n in ((stable, 90), (candidate, 30)):
                fresh = quantiles.histogram_of(lognormal(rng, n), PROMETHEUS)
                for i, number in enumerate(fresh.cumulative):
                    target[i] += number
            pair = (quantiles.histogram(PROMETHEUS, side) for side in (stable, candidate))
            if quantiles.log_e_quantile_worse(*pair, 0.95, 0.0, interpolate=interpolate) >= -math.log(alpha):
                alarms += 1
                break
    assert alarms <= alpha * runs


def test_bad_settings_are_refused() -> None:
    data = quantiles.histogram([1, INF], [5, 6])
    with pytest.raises(StatisticsError, match="method"):
        quantiles.quantile_sequence(data, 0.9, 0.05, "other")
    with pytest.raises(StatisticsError, match="quantile"):
        quantiles.compare_quantile(data, data, 1.0, 0.05)
    with pytest.raises(StatisticsError, match="margin"):
        quantiles.compare_quantile(data, data, 0.9, 0.05, -0.1)
    with pytest.raises(StatisticsError, match="minimum"):
        quantiles.dkw_half_width(10, 0.05, 0)
    with pytest.raises(StatisticsError, match="a must be"):
        quantiles.dkw_error(0.5, 3)
