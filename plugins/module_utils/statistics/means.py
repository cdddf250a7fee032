# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time-uniform statements about means (business metrics, saturation) by normal mixtures.

Sources: Robbins (1970); Howard, Ramdas, McAuliffe, Sekhon (2021), "Time-uniform, nonparametric, nonasymptotic
confidence sequences", arXiv 1810.08240 (boundaries); Waudby-Smith et al. (2021), "Time-uniform central limit theory
and asymptotic confidence sequences", arXiv 2103.06476 (unknown variance, many samples); Lai (1976) and Wang & Ramdas
(2023), "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", arXiv 2310.03722
(few samples). The standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    Comparison,
    StatisticsError,
    count,
    e_from_log,
    finite,
    fraction,
    positive,
    sample,
)

HIGHER, LOWER = "higher", "lower"
DIRECTIONS = (HIGHER, LOWER)
T_CONCENTRATION = 1.0
OPTIMAL_SAMPLES = 100.0
MINIMUM_SAMPLES = 30


# Normal mixture with known variance -----------------------------------------------------------------------------------


def lambert_w_minus1(x: float) -> float:
    """The branch W_{-1} of Lambert's function: the w <= -1 with w exp(w) = x, for -1/e <= x < 0.

    Halley's iteration from the series at the branch point or from the logarithms (Corless et al. 1996, eq. 4.19, 5.9),
    kept inside a bracket. Raises StatisticsError outside the domain.
    """
    finite("x", x)
    if x >= 0 or x < -math.exp(-1) * (1 + 4e-16):
        raise StatisticsError(f"Lambert's W_-1 is defined from -1/e to 0, got {x!r}")
    # w = -1 - u with u >= 0: log(-x) = -1 - u + log(1 + u), so u - log1p(u) = rest.
    rest = -1 - math.log(-x)
    if rest <= 0:
        return -1.0
    return -1 - _inverse_excess(rest)


def _inverse_excess(rest: float) -> float:
    """The u > 0 with u - log(1 + u) = rest > 0: convex and rising, so Newton from above falls straight to the root."""
    u = rest + math.sqrt(2 * rest) + (math.log1p(rest) if rest > 1 else rest)
    for _step in range(100):
        # For small u the difference loses its digits: the series of u - log1p(u) does not.
        excess = u - math.log1p(u) if u > 1e-3 else u * u * (0.5 - u * (1 / 3 - u * (0.25 - u * (0.2 - u / 6))))
        step = (excess - rest) * (1 + u) / u
        u -= step
        if abs(step) <= 4e-16 * u:
            break
    return u


def best_rho(v: float, alpha: float) -> float:
    """The usual rho for a boundary that is low at intrinsic time `v`: v / (2 log(1/alpha) + log(1 + 2 log(1/alpha))).

    The closed-form approximation of `optimal_rho` by Howard et al. 2021, section 3.5, and Waudby-Smith et al. 2021,
    appendix B.2; the boundary at `v` is less than 0.01 % higher for alpha <= 0.1. v=100, alpha=.05: 12.60056.
    """
    time, log_alpha = positive("v", v), -2 * math.log(fraction("alpha", alpha))
    return time / (log_alpha + math.log1p(log_alpha))


def optimal_rho(v: float, alpha: float) -> float:
    """The rho that makes the two-sided boundary lowest at intrinsic time `v`: v / (-W_{-1}(-alpha^2 / e) - 1).

    Howard et al. 2021, proposition 3. v=100, alpha=.05: 12.17735.
    """
    time, level = positive("v", v), fraction("alpha", alpha)
    return time / _inverse_excess(-2 * math.log(level))


def best_rho_one_sided(v: float, alpha: float) -> float:
    """A nearly best rho for the one-sided boundary: the two-sided one at 2 alpha (same section). alpha < 1/2."""
    if fraction("alpha", alpha) >= 0.5:
        raise StatisticsError(f"alpha must be below 1/2 for one side, got {alpha!r}")
    return best_rho(v, 2 * alpha)


def normal_mixture_boundary(v: float, alpha: float, rho: float) -> float:
    """Two-sided boundary of a 1-sub-Gaussian sum at intrinsic time `v` >= 0 (variance summed so far).

    sqrt((v + rho) log((v + rho) / (alpha^2 rho))): Howard et al. 2021, eq. (14). P(any |S_t| >= u(V_t)) <= alpha.
    v=100, alpha=.05 with `best_rho`: 30.35209.
    """
    time, level, r = count("v", v), fraction("alpha", alpha), positive("rho", rho)
    return math.sqrt((time + r) * (math.log1p(time / r) - 2 * math.log(level)))


def normal_mixture_log_e_value(s: float, v: float, rho: float) -> float:
    """log e-value of a sum `s` at intrinsic time `v`: N(0, 1/rho) mixture of exp(lambda s - lambda^2 v / 2)."""
    total, time, r = finite("s", s), count("v", v), positive("rho", rho)
    return total * total / (2 * (time + r)) - 0.5 * math.log1p(time / r)


def _log_cdf(z: float) -> float:
    """log of the normal distribution function, also far left (Abramowitz & Stegun 26.2.12)."""
    if z > -30:
        return math.log(0.5 * math.erfc(-z / math.sqrt(2)))
    inverse = 1 / (z * z)
    return -z * z / 2 - math.log(-z) - 0.5 * math.log(2 * math.pi) + math.log1p(-inverse * (1 - 3 * inverse))


def one_sided_normal_mixture_log_e_value(s: float, v: float, rho: float) -> float:
    """log e-value for "the mean is above 0": half-normal mixture (Howard et al. 2021, proposition 6)."""
    total, time, r = finite("s", s), count("v", v), positive("rho", rho)
    return (
        math.log(2)
        + total * total / (2 * (time + r))
        - 0.5 * math.log1p(time / r)
        + _log_cdf(total / math.sqrt(time + r))
    )


def one_sided_normal_mixture_boundary(v: float, alpha: float, rho: float) -> float:
    """One-sided boundary: the s >= 0 at which the one-sided e-value is 1/alpha. P(any S_t >= u(V_t)) <= alpha."""
    level = fraction("alpha", alpha)
    # At most the two-sided one at the same alpha: Phi >= 1/2 for s >= 0 makes the e-value at least that one's.
    high = normal_mixture_boundary(v, level, rho)
    low = 0.0
    for _step in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if one_sided_normal_mixture_log_e_value(middle, v, rho) >= -math.log(level):
            high = middle
        else:
            low = middle
    return high


# Streams --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """How many values, their mean and M2, the sum of the squared distances from the mean."""

    n: float
    mean: float
    m2: float

    @property
    def variance(self) -> float:
        """The unbiased variance; 0 for fewer than two values."""
        return self.m2 / (self.n - 1) if self.n > 1 else 0.0

    def __add__(self, other: Moments) -> Moments:
        """Both streams together (Chan, Golub & LeVeque 1983)."""
        n = self.n + other.n
        if n <= 0:
            return Moments(0.0, 0.0, 0.0)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.n / n
        return Moments(n, mean, self.m2 + other.m2 + delta * delta * self.n * other.n / n)


def moments(values: Iterable[float]) -> Moments:
    """Moments of values by Welford's updates (1962). Raises StatisticsError for NaN or infinite values."""
    n, mean, m2 = 0, 0.0, 0.0
    for value in values:
        number = finite("value", value)
        n += 1
        delta = number - mean
        mean += delta / n
        m2 += delta * (number - mean)
    return Moments(float(n), mean, m2)


def _checked(name: str, data: Moments) -> Moments:
    return Moments(count(f"n of {name}", data.n), finite(f"mean of {name}", data.mean), count(f"M2 of {name}", data.m2))


def asymptotic_sequence(
    mean: float, standard_error: float, samples: float, alpha: float, optimal_samples: float = OPTIMAL_SAMPLES
) -> tuple[float, float]:
    """Asymptotic confidence sequence (lower, upper) of a mean with an estimated standard error.

    mean -/+ u(t)/t * s with s = standard_error * sqrt(t) and the normal mixture boundary at t = `samples` with
    `best_rho` at `optimal_samples`: Waudby-Smith et al. 2021, theorem 2.2 and appendix B.2, with rho = 1/their rho^2.
    Sound for many samples only (the caller guards the first). Raises StatisticsError.
    """
    centre, error, t = finite("mean", mean), count("standard_error", standard_error), positive("samples", samples)
    boundary = normal_mixture_boundary(t, alpha, best_rho(optimal_samples, alpha))
    width = boundary / t * error * math.sqrt(t)
    return centre - width, centre + width


def _contrast(stable: Moments, candidate: Moments, factor: float) -> tuple[float, float, float]:
    """Mean, standard error and effective samples of candidate - factor * stable."""
    mean = candidate.mean - factor * stable.mean
    error = math.sqrt(candidate.variance / candidate.n + factor * factor * stable.variance / stable.n)
    return mean, error, candidate.n * stable.n / (candidate.n + stable.n)


def _worse_factor(direction: str, margin: float, stable_mean: float) -> tuple[float, float]:
    """Sign that makes "worse" positive, and by which factor stable's mean is multiplied at the margin."""
    tolerated = count("margin", margin)
    if direction not in DIRECTIONS:
        raise StatisticsError(f"worse must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    sign = 1.0 if direction == HIGHER else -1.0
    # A margin of a negative mean is still a step towards the worse side.
    return sign, 1 + sign * tolerated * (1 if stable_mean >= 0 else -1)


def compare_means(
    stable: Moments,
    candidate: Moments,
    alpha: float,
    worse: str = HIGHER,
    margin: float = 0.0,
    *,
    optimal_samples: float = OPTIMAL_SAMPLES,
    minimum: int = MINIMUM_SAMPLES,
) -> Comparison:
    """Two independent samples, from their streaming sums; many values each (e.g. requests).

    V(worse) when the candidate's mean is more than `margin` (relative to stable's mean) on the `worse` side, by an
    asymptotic one-sided confidence sequence of candidate - (1 +/- margin) * stable. `lower`/`upper`: confidence
    sequence (two-sided, alpha) of the plain difference in the metric's unit. V(undecided) with fewer than
    `minimum` values on a side. Raises StatisticsError for empty samples, negative margins, bad numbers.
    """
    level = fraction("alpha", alpha)
    ours, theirs = _checked("stable", stable), _checked("candidate", candidate)
    for side, data in (("stable", ours), ("candidate", theirs)):
        if data.n <= 0:
            raise StatisticsError(f"the sample of {side} is empty")
    sign, factor = _worse_factor(worse, margin, ours.mean)
    difference, error, samples = _contrast(ours, theirs, 1.0)
    few = min(ours.n, theirs.n) < max(minimum, 2)
    if few:
        reason = f"{ours.n:g} values of stable and {theirs.n:g} of the candidate, {max(minimum, 2)} each are needed"
        return Comparison(UNDECIDED, reason, "absolute", ours.mean, theirs.mean, difference)
    lower, upper = asymptotic_sequence(difference, error, samples, level, optimal_samples)
    contrast, contrast_error, _samples = _contrast(ours, theirs, factor)
    logs = [
        _one_sided_log_e(side * sign * contrast, contrast_error, samples, level, optimal_samples)
        for side in (1.0, -1.0)
    ]
    return _mean_comparison(
        logs,
        alpha=level,
        stable=ours.mean,
        candidate=theirs.mean,
        difference=difference,
        lower=lower,
        upper=upper,
        direction=worse,
        margin=margin,
    )


def _one_sided_log_e(mean: float, error: float, samples: float, alpha: float, optimal_samples: float) -> float:
    if error <= 0:
        # No spread at all: the sign is certain.
        return math.inf if mean > 0 else -math.inf if mean < 0 else 0.0
    rho = best_rho_one_sided(optimal_samples, min(alpha, 0.49))
    return one_sided_normal_mixture_log_e_value(mean / error * math.sqrt(samples), samples, rho)


def _mean_comparison(
    logs: Sequence[float],
    *,
    alpha: float,
    stable: float,
    candidate: float,
    difference: float,
    lower: float | None,
    upper: float | None,
    direction: str,
    margin: float,
) -> Comparison:
    worse, better = (value >= -math.log(alpha) for value in logs)
    decision = WORSE if worse else NOT_WORSE if better else UNDECIDED
    said = {
        WORSE: f"is {direction} than stable's by more than {margin:g} of it",
        NOT_WORSE: f"is not {direction} than stable's by more than {margin:g} of it",
        UNDECIDED: f"is not shown to be {direction} than stable's by more than {margin:g} of it, nor the contrary",
    }[decision]
    interval = "unbounded" if lower is None or upper is None else f"between {lower:.4g} and {upper:.4g}"
    reason = f"the candidate's mean {candidate:.6g} {said} ({stable:.6g}); difference {difference:.4g}, {interval}"
    return Comparison(
        decision,
        reason,
        "absolute",
        stable,
        candidate,
        difference,
        lower,
        upper,
        e_from_log(logs[0]),
        e_from_log(logs[1]),
    )


# Few samples: the sequential t-test -----------------------------------------------------------------------------------


def t_log_e_value(data: Moments, null_mean: float = 0.0, concentration: float = T_CONCENTRATION) -> float:
    """log e-value against "normal values with mean `null_mean`, whatever their variance".

    With c = `concentration`, S the sum and V the sum of squares of the values less `null_mean`:
    sqrt(c / (n + c)) * (((n + c) V) / ((n + c) V - S^2)) ** (n / 2), an N(0, 1/c) mixture over the effect size
    mean/sd, scale-invariant (Lai 1976; Wang & Ramdas 2023, section on Gaussian mixture of scale-invariant likelihood
    ratios). Exact for normal values from the second on. 0 for fewer than two values; infinite where all are the same.
    """
    checked = _checked("the sample", data)
    c, shift = positive("concentration", concentration), checked.mean - finite("null_mean", null_mean)
    n = checked.n
    if n < 2:
        return 0.0
    squares = checked.m2 + n * shift * shift
    if squares <= 0:
        return 0.0
    left = (n + c) * checked.m2 + n * c * shift * shift  # (n + c) V - S^2 without cancellation
    if left <= 0:
        return math.inf
    return 0.5 * math.log(c / (n + c)) + n / 2 * (math.log((n + c) * squares) - math.log(left))


def t_sequence(data: Moments, alpha: float, concentration: float = T_CONCENTRATION) -> tuple[float, float]:
    """Time-uniform confidence interval (lower, upper) of the mean of normal values: every null mean not rejected.

    Infinite while there are too few values for this alpha.
    """
    checked, level = _checked("the sample", data), fraction("alpha", alpha)
    c, n = positive("concentration", concentration), checked.n
    if n < 2:
        return -math.inf, math.inf
    # S^2 / V >= ratio rejects; with S = n d, V = M2 + n d^2 that is d^2 >= ratio M2 / (n (n - ratio)).
    ratio = (n + c) * -math.expm1((2 * math.log(level) + math.log(c / (n + c))) / n)
    if ratio >= n:
        return -math.inf, math.inf
    width = math.sqrt(ratio * checked.m2 / (n * (n - ratio)))
    return checked.mean - width, checked.mean + width


def compare_paired(
    pairs: Sequence[tuple[float, float]],
    alpha: float,
    worse: str = HIGHER,
    margin: float = 0.0,
    concentration: float = T_CONCENTRATION,
) -> Comparison:
    """One (stable, candidate) value per interval, e.g. a business metric: the day's ups and downs cancel in each pair.

    A sequential t-test of candidate - (1 +/- margin) * stable, margin relative to stable. The evidence counts only when
    the mean is on that side: a shift of all values towards the null lowers the t statistic, so the two-sided test's
    error holds for the one-sided composite null. Exact for normal, independent differences at any number of pairs; the
    e-value is cut at 2^n, what n equal signs are worth to a sign test. `lower`/`upper` bound the plain mean
    difference. Raises StatisticsError for no pairs, bad numbers.
    """
    level = fraction("alpha", alpha)
    ours = sample("stable", [pair[0] for pair in pairs])
    theirs = sample("candidate", [pair[1] for pair in pairs])
    stable, candidate = moments(ours), moments(theirs)
    sign, factor = _worse_factor(worse, margin, stable.mean)
    contrast = moments(sign * (b - factor * a) for a, b in zip(ours, theirs))
    # Equal differences (gauges at rest) look like no variance at all: never claim more than a sign test could.
    evidence = min(t_log_e_value(contrast, 0.0, concentration), contrast.n * math.log(2))
    logs = [
        evidence if contrast.mean > 0 else min(evidence, 0.0),
        evidence if contrast.mean < 0 else min(evidence, 0.0),
    ]
    lower, upper = t_sequence(moments(b - a for a, b in zip(ours, theirs)), level, concentration)
    bounded = lower > -math.inf
    return _mean_comparison(
        logs,
        alpha=level,
        stable=stable.mean,
        candidate=candidate.mean,
        difference=candidate.mean - stable.mean,
        lower=lower if bounded else None,
        upper=upper if bounded else None,
        direction=worse,
        margin=margin,
    )


def boundary_function(alpha: float, optimal_v: float, one_sided: bool = False) -> Callable[[float], float]:
    """The boundary as a function of intrinsic time, with rho best at `optimal_v`."""
    if one_sided:
        rho = best_rho_one_sided(optimal_v, alpha)
        return lambda v: one_sided_normal_mixture_boundary(v, alpha, rho)
    rho = best_rho(optimal_v, alpha)
    return lambda v: normal_mixture_boundary(v, alpha, rho)
