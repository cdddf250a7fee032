# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Normal mixtures, Lambert's W, asymptotic sequences and the sequential t-test."""

from __future__ import annotations

import math
import random

import pytest
from scipy import integrate, optimize, special, stats

from ansible_collections.causeway.platform.plugins.module_utils.statistics import means
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    StatisticsError,
)


def test_published_values() -> None:
    rho = means.best_rho(100, 0.05)
    assert rho == pytest.approx(12.60056, abs=5e-6)
    assert means.normal_mixture_boundary(100, 0.05, rho) == pytest.approx(30.35209, abs=5e-6)


@pytest.mark.parametrize("x", [-0.3678, -0.35, -0.3, -0.1, -1e-3, -1e-10, -1e-100, -1e-300])
def test_lambert(x: float) -> None:
    assert means.lambert_w_minus1(x) == pytest.approx(special.lambertw(x, -1).real, rel=1e-13)


def test_lambert_at_the_branch_point() -> None:
    assert means.lambert_w_minus1(-math.exp(-1)) == pytest.approx(-1, abs=1e-7)
    for x in (0.0, 0.1, -0.5, float("nan")):
        with pytest.raises(StatisticsError):
            means.lambert_w_minus1(x)


@pytest.mark.parametrize("v", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_optimal_rho_is_the_optimum(v: float, alpha: float) -> None:
    found = optimize.minimize_scalar(
        lambda log_rho: means.normal_mixture_boundary(v, alpha, math.exp(log_rho)),
        bounds=(math.log(v) - 8, math.log(v) + 8),
        method="bounded",
        options={"xatol": 1e-10},
    )
    best = means.optimal_rho(v, alpha)
    assert best == pytest.approx(math.exp(found.x), rel=1e-4)
    assert best == pytest.approx(v / (-special.lambertw(-(alpha**2) / math.e, -1).real - 1), rel=1e-12)
    usual = means.normal_mixture_boundary(v, alpha, means.best_rho(v, alpha))
    assert 1 <= usual / means.normal_mixture_boundary(v, alpha, best) < 1.01


@pytest.mark.parametrize("s", [-40.0, -3.0, 0.0, 12.0, 50.0])
def test_mixtures_match_quadrature(s: float) -> None:
    v, rho = 80.0, 12.0

    def component(lam: float) -> float:
        return math.exp(lam * s - lam * lam * v / 2) * stats.norm.pdf(lam, scale=rho**-0.5)

    peak = s / (v + rho)
    both = integrate.quad(component, peak - 2, peak + 2, epsabs=0, epsrel=1e-11, points=[peak])[0]
    assert means.normal_mixture_log_e_value(s, v, rho) == pytest.approx(math.log(both), abs=1e-8)
    upper = 2 * integrate.quad(component, 0, max(peak, 0) + 2, epsabs=0, epsrel=1e-11, points=[max(peak, 0.01)])[0]
    assert means.one_sided_normal_mixture_log_e_value(s, v, rho) == pytest.approx(math.log(upper), abs=1e-7)


def test_log_cdf_in_the_far_tail() -> None:
    for z in (-500.0, -60.0, -30.5, -29.5, -5.0, 0.0, 9.0):
        assert means._log_cdf(z) == pytest.approx(stats.norm.logcdf(z), rel=1e-8)


def test_boundaries_invert_the_e_values() -> None:
    for v in (0.0, 1.0, 30.0, 1e5):
        two = means.boundary_function(0.05, 100)(v)
        assert means.normal_mixture_log_e_value(two, v, means.best_rho(100, 0.05)) == pytest.approx(math.log(20))
        one = means.boundary_function(0.05, 100, one_sided=True)(v)
        rho = means.best_rho_one_sided(100, 0.05)
        assert means.one_sided_normal_mixture_log_e_value(one, v, rho) == pytest.approx(math.log(20))
        assert one < means.normal_mixture_boundary(v, 0.05, rho)


def test_streams_add_up() -> None:
    values = [1e9 + x for x in (1.0, 2.5, 7.0, 7.0, -3.0)]
    whole = means.moments(values)
    parts = means.moments(values[:2]) + means.moments(values[2:])
    assert (parts.n, parts.mean, parts.m2) == pytest.approx((whole.n, whole.mean, whole.m2))
    assert whole.variance == pytest.approx(stats.tvar([1.0, 2.5, 7.0, 7.0, -3.0]), rel=1e-6)
    assert means.moments([]) + means.moments([]) == means.Moments(0, 0, 0)


def test_asymptotic_sequence_is_that_of_the_paper() -> None:
    """Waudby-Smith et al., theorem 2.2: sqrt(2 (t r^2 + 1) / (t^2 r^2) log(sqrt(t r^2 + 1) / alpha)) times sigma."""
    t, alpha, sigma, optimal = 250.0, 0.05, 3.0, 100.0
    r2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / optimal
    width = sigma * math.sqrt(2 * (t * r2 + 1) / (t * t * r2) * math.log(math.sqrt(t * r2 + 1) / alpha))
    low, high = means.asymptotic_sequence(7.0, sigma / math.sqrt(t), t, alpha, optimal)
    assert (low, high) == pytest.approx((7 - width, 7 + width))


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_t_e_value_is_the_mixture_of_invariant_likelihood_ratios(c: float) -> None:
    """Mixture over the effect size of the ratio of t densities (noncentral against central)."""
    values = [0.3, 1.1, -0.2, 0.8, 1.9, 0.4]
    n = len(values)
    t = stats.ttest_1samp(values, 0).statistic

    def component(effect: float) -> float:
        return stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) * stats.norm.pdf(effect, scale=c**-0.5)

    expected = integrate.quad(component, -12 * c**-0.5, 12 * c**-0.5, limit=200)[0] / stats.t.pdf(t, n - 1)
    assert means.t_log_e_value(means.moments(values), 0.0, c) == pytest.approx(math.log(expected), abs=1e-6)


def test_t_sequence_inverts_the_test_and_scales() -> None:
    values = [10.1, 9.4, 11.0, 10.7, 9.9, 10.2, 10.5]
    low, high = means.t_sequence(means.moments(values), 0.05)
    assert means.t_log_e_value(means.moments(values), low) == pytest.approx(math.log(20))
    assert means.t_log_e_value(means.moments(values), high) == pytest.approx(math.log(20))
    scaled = means.t_sequence(means.moments(1e-9 * value for value in values), 0.05)
    assert scaled == pytest.approx((low * 1e-9, high * 1e-9))
    assert means.t_sequence(means.moments(values[:2]), 0.05) == (-math.inf, math.inf)


def test_t_false_alarms_under_peeking() -> None:
    rng = random.Random(41)
    alarms, runs, alpha = 0, 1500, 0.1
    for _number in range(runs):
        data = means.Moments(0, 0, 0)
        for _step in range(40):
            data = data + means.Moments(1, rng.gauss(0, 3), 0)
            if means.t_log_e_value(data) >= -math.log(alpha):
                alarms += 1
                break
    assert 0 < alarms <= alpha * runs


def test_means_false_alarms_under_peeking() -> None:
    rng = random.Random(43)
    alarms, runs, alpha = 0, 300, 0.1
    for _number in range(runs):
        stable = candidate = means.Moments(0, 0, 0)
        for _step in range(20):
            stable = stable + means.moments(rng.expovariate(1) for _number in range(20))
            candidate = candidate + means.moments(rng.expovariate(1) for _number in range(10))
            if means.compare_means(stable, candidate, alpha, minimum=30).decision == WORSE:
                alarms += 1
                break
    assert alarms <= alpha * runs


def test_compare_means() -> None:
    rng = random.Random(5)
    stable = means.moments(rng.gauss(10, 2) for _number in range(2000))
    worse = means.moments(rng.gauss(12, 2) for _number in range(500))
    same = means.moments(rng.gauss(10, 2) for _number in range(500))
    found = means.compare_means(stable, worse, 0.05, "higher", 0.05)
    assert found.decision == WORSE and found.lower is not None and found.upper is not None
    assert 1 < found.lower < 2 < found.upper < 3
    assert means.compare_means(stable, worse, 0.05, "lower").decision == NOT_WORSE
    assert means.compare_means(stable, worse, 0.05, "higher", 0.5).decision == NOT_WORSE
    assert means.compare_means(stable, same, 0.05).decision == UNDECIDED
    assert means.compare_means(stable, means.moments([12.0] * 5), 0.05).decision == UNDECIDED
    assert means.compare_means(means.moments([5.0] * 40), means.moments([6.0] * 40), 0.05).decision == WORSE
    assert means.compare_means(means.moments([5.0] * 40), means.moments([5.0] * 40), 0.05).decision == UNDECIDED


def test_negative_means_have_margins_too() -> None:
    stable = means.moments([-10.0, -10.2, -9.8] * 20)
    candidate = means.moments([-10.5, -10.4, -10.6] * 20)
    assert means.compare_means(stable, candidate, 0.05, "lower").decision == WORSE
    assert means.compare_means(stable, candidate, 0.05, "lower", 0.2).decision == NOT_WORSE


def test_compare_paired() -> None:
    day = [100.0, 140.0, 90.0, 60.0, 55.0, 120.0, 180.0, 150.0, 130.0, 90.0]
    rng = random.Random(9)
    dropped = [(x * rng.gauss(1, 0.02), 0.8 * x * rng.gauss(1, 0.02)) for x in day]
    equal = [(x * rng.gauss(1, 0.02), x * rng.gauss(1, 0.02)) for x in day]
    assert means.compare_paired(dropped, 0.05, "lower", 0.05).decision == WORSE
    assert means.compare_paired(dropped, 0.05, "higher", 0.05).decision == NOT_WORSE
    assert means.compare_paired(equal, 0.05, "lower", 0.05).decision == NOT_WORSE
    assert means.compare_paired(equal, 0.05, "lower").decision == UNDECIDED
    assert means.compare_paired([(5.0, 4.0)], 0.05, "lower").decision == UNDECIDED
    # Gauges at rest: four equal pairs prove nothing at 5 %, five do (a sign test's 1/32).
    assert means.compare_paired([(5.0, 4.0)] * 4, 0.05, "lower").decision == UNDECIDED
    assert means.compare_paired([(5.0, 4.0)] * 5, 0.05, "lower").decision == WORSE
    assert means.compare_paired([(5.0, 5.0)] * 50, 0.05, "lower").decision == UNDECIDED


def test_bad_input_is_refused() -> None:
    good = means.moments([1.0, 2.0])
    with pytest.raises(StatisticsError, match="empty"):
        means.compare_means(means.Moments(0, 0, 0), good, 0.05)
    with pytest.raises(StatisticsError, match="worse must be"):
        means.compare_means(means.moments([1.0] * 40), means.moments([1.0] * 40), 0.05, "up")
    with pytest.raises(StatisticsError, match="margin"):
        means.compare_paired([(1.0, 2.0)], 0.05, margin=-1)
    with pytest.raises(StatisticsError, match=r"candidate\[0\]"):
        means.compare_paired([(1.0, float("nan"))], 0.05)
    with pytest.raises(StatisticsError, match="at least 1"):
        means.compare_paired([], 0.05)
    with pytest.raises(StatisticsError, match="rho"):
        means.normal_mixture_boundary(1, 0.05, 0)
    with pytest.raises(StatisticsError, match="M2"):
        means.t_log_e_value(means.Moments(3, 1, -1))
    with pytest.raises(StatisticsError, match="alpha"):
        means.best_rho(1, 1)
