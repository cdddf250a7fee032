# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequential tests of counts: does the candidate get more of the errors than of the traffic?

Source: Lindon & Malek (2022), "Anytime-Valid Inference for Multinomial Count Data", arXiv 2011.03567. Under the null
each error falls on the candidate with probability equal to the candidate's share of the requests in that interval.
The standard library only.

Why the interval test is valid for every sequence of shares. Let the candidate's error rate be `multiplier` times that
of stable. An error of an interval with share w then falls on the candidate with probability
p(multiplier) = multiplier*w / (multiplier*w + 1 - w), so odds are multiplied by it. For one alternative the product
over errors of p(alternative)/p(null) (or of the ratio of the complements) is a likelihood ratio, hence a martingale
under the null whatever the shares are, as long as each share is known before the interval's errors are looked at. A
mixture over alternatives with weights fixed in advance is one too. By Ville's inequality it ever reaches 1/alpha with
probability at most alpha. When the share is the realised share of requests and errors are not rare, the errors of an
interval follow the hypergeometric instead of the binomial distribution; a likelihood ratio is convex in the candidate's
count, so its mean is at most that of the binomial (Hoeffding 1963, theorem 4), and the test stays valid (it is
conservative).

One-sided tests put the mixture on one side of the null only. Each component is then a supermartingale under every
multiplier of the composite null: with alternative > null, E[ratio] rises with the true multiplier and is 1 at the
boundary. So testing at the boundary is enough, also with a practical-effect margin (null: multiplier <= 1 + margin).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
)

CONCENTRATION = 20.0
GREATER, LESS, TWO_SIDED = "greater", "less", "two-sided"
SIDES = (GREATER, LESS, TWO_SIDED)
_CUT = 42.0  # exp(-42) of the peak is beyond double precision
_GROWTH = 1.6
_POINTS = 10
_LIMIT = 600.0  # of log multipliers: exp() of more is no number
_FAR = 30.0  # exp(-30) is small enough to swap the two forms of the logarithm below


@dataclass(frozen=True)
class Interval:
    """Errors of one interval: the candidate's share of the requests (0..1) and how many errors each side had."""

    share: float
    candidate: float
    stable: float


def interval(
    candidate_errors: float, candidate_requests: float, stable_errors: float, stable_requests: float
) -> Interval | None:
    """An Interval from counts of errors and requests; None where a side had no requests, which tells nothing.

    Dropping such an interval is allowed: it depends on the traffic, not on the errors.
    Raises StatisticsError for negative or non-finite counts and for more errors than requests.
    """
    pairs = []
    for side, errors, requests in (
        ("candidate", candidate_errors, candidate_requests),
        ("stable", stable_errors, stable_requests),
    ):
        bad, all_of = count(f"{side} errors", errors), count(f"{side} requests", requests)
        # Prometheus extrapolates each series by itself: a hair more errors than requests is no error of ours.
        if bad > all_of * (1 + 1e-6) + 1:
            raise StatisticsError(f"{side} has more errors ({bad:g}) than requests ({all_of:g})")
        pairs.append((bad, all_of))
    (bad_candidate, candidate), (bad_stable, stable) = pairs
    if candidate <= 0 or stable <= 0:
        return None
    return Interval(candidate / (candidate + stable), bad_candidate, bad_stable)


# Closed form ---------------------------------------------------------------------------------------------------------


def multinomial_log_e_value(
    counts: Sequence[float], null: Sequence[float], concentration: float = CONCENTRATION
) -> float:
    """log e-value of counts against constant null probabilities, Dirichlet(concentration * null) mixture.

    `counts` and `null`: one value per category, at least two; `null` sums to 1. Lindon & Malek 2022, the Bayes factor
    of their sequential multinomial test: B(a + counts) / B(a) / prod(null ** counts), a = concentration * null.
    Raises StatisticsError for negative counts, nulls outside (0, 1) or that do not sum to 1, lengths that differ.
    """
    observed = [count(f"counts[{i}]", value) for i, value in enumerate(counts)]
    probabilities = [fraction(f"null[{i}]", value) for i, value in enumerate(null)]
    k = positive("concentration", concentration)
    if len(observed) < 2 or len(observed) != len(probabilities):
        raise StatisticsError(
            f"counts and null must have the same length of at least 2, got {len(observed)} and {len(probabilities)}"
        )
    if abs(math.fsum(probabilities) - 1) > 1e-9:
        raise StatisticsError(f"null must sum to 1, got {math.fsum(probabilities)!r}")
    terms = [math.lgamma(k), -math.lgamma(k + math.fsum(observed))]
    for n, p in zip(observed, probabilities):
        terms += [math.lgamma(k * p + n), -math.lgamma(k * p), -n * math.log(p)]
    return math.fsum(terms)


def multinomial_e_value(counts: Sequence[float], null: Sequence[float], concentration: float = CONCENTRATION) -> float:
    """The e-value of `multinomial_log_e_value`; counts (20, 80), null (.1, .9), concentration 100 give 6.825899."""
    return e_from_log(multinomial_log_e_value(counts, null, concentration))


def bernoulli_log_e_value(
    successes: float, failures: float, null: float, concentration: float = CONCENTRATION
) -> float:
    """log e-value of successes and failures against a constant probability: two categories of the multinomial test."""
    p = fraction("null", null)
    return multinomial_log_e_value((successes, failures), (p, 1 - p), concentration)


def probability_sequences(
    counts: Sequence[float], null: Sequence[float], alpha: float, concentration: float = CONCENTRATION
) -> list[tuple[float, float]]:
    """Time-uniform confidence intervals of the categories' probabilities, all at once with error `alpha`.

    The confidence set of Lindon & Malek 2022 holds every theta whose likelihood exceeds alpha * the mixture's; each
    interval is its projection (the other categories at their most likely values). `null` only centres the prior.
    Returns one (lower, upper) per category. Raises StatisticsError as `multinomial_log_e_value` does.
    """
    level = math.log(fraction("alpha", alpha))
    log_e = multinomial_log_e_value(counts, null, concentration)
    observed = [float(n) for n in counts]
    total = math.fsum(observed)
    threshold = log_e + math.fsum(n * math.log(p) for n, p in zip(observed, null)) + level
    result = []
    for n in observed:
        rest = total - n
        # What the other categories add at their most likely split of 1 - theta.
        others = [m for m in observed if m > 0]
        constant = (
            math.fsum(m * math.log(m / rest) for m in others) - (n * math.log(n / rest) if n > 0 else 0.0)
            if rest > 0
            else 0.0
        )

        def likelihood(theta: float, n: float = n, rest: float = rest, constant: float = constant) -> float:
            own = n * math.log(theta) if n > 0 else 0.0
            return own + (rest * math.log1p(-theta) if rest > 0 else 0.0) + constant - threshold

        peak = n / total if total > 0 else 0.5
        result.append(
            (_root(likelihood, 0.0, peak) if n > 0 else 0.0, _root(likelihood, 1.0, peak) if rest > 0 else 1.0)
        )
    return result


def _root(function: Callable[[float], float], outside: float, inside: float) -> float:
    """Where `function` changes sign between `outside` (negative or undefined) and `inside` (positive), by bisection."""
    if inside in (0.0, 1.0):
        # The likelihood is largest at the edge itself; step off it by less than any count can resolve.
        inside = abs(inside - 1e-15)
    for _step in range(200):
        middle = (outside + inside) / 2
        if middle in (outside, inside):
            break
        if function(middle) > 0:
            inside = middle
        else:
            outside = middle
    return outside


# Mixture over the odds multiplier -------------------------------------------------------------------------------------


def _legendre(points: int) -> list[tuple[float, float]]:
    """Nodes and weights of Gauss-Legendre quadrature on [-1, 1] (Abramowitz & Stegun 25.4.29)."""
    result = []
    for i in range(points):
        x = math.cos(math.pi * (i + 0.75) / (points + 0.5))
        slope = 1.0
        for _step in range(50):
            previous, current = 1.0, x
            for n in range(2, points + 1):
                previous, current = current, ((2 * n - 1) * x * current - (n - 1) * previous) / n
            slope = points * (x * current - previous) / (x * x - 1)
            x, moved = x - current / slope, current / slope
            if abs(moved) < 1e-15:
                break
        result.append((x, 2 / ((1 - x * x) * slope * slope)))
    return result


_NODES = _legendre(_POINTS)


def _log_scale(share: float, lam: float) -> float:
    """log(share * exp(lam) + 1 - share) without overflow or loss of digits."""
    if lam > _FAR:
        return lam + math.log(share + (1 - share) * math.exp(-lam))
    return math.log1p(share * math.expm1(lam))


@dataclass(frozen=True)
class _LogConcave:
    """g(lam) = slope * lam - sum of weight * log(share * exp(lam) + 1 - share) over the terms; strictly concave."""

    slope: float
    terms: tuple[tuple[float, float], ...]

    def value(self, lam: float) -> float:
        if lam > _FAR:
            return self.slope * lam - math.fsum([w * _log_scale(s, lam) for w, s in self.terms])
        grown, log1p = math.expm1(lam), math.log1p
        return self.slope * lam - math.fsum([w * log1p(s * grown) for w, s in self.terms])

    def derivatives(self, lam: float) -> tuple[float, float]:
        first, second = self.slope, 0.0
        for w, s in self.terms:
            p = s / (s + (1 - s) * math.exp(-lam)) if lam > 0 else s * math.exp(lam) / (1 + s * math.expm1(lam))
            first -= w * p
            second -= w * p * (1 - p)
        return first, second

    def mode(self) -> float:
        """Where the derivative is 0; it lies between the solutions for the smallest and for the largest share."""
        total = math.fsum([w for w, _s in self.terms])
        odds = math.log(self.slope) - math.log(total - self.slope)
        shares = [s for _w, s in self.terms]
        low = odds - math.log(max(shares)) + math.log1p(-max(shares))
        high = odds - math.log(min(shares)) + math.log1p(-min(shares))
        lam = (low + high) / 2
        for _step in range(100):
            first, second = self.derivatives(lam)
            if first > 0:
                low = lam
            else:
                high = lam
            step = lam - first / second if second < 0 else low
            if not low <= step <= high:
                step = (low + high) / 2
            if abs(step - lam) <= 1e-9 * max(1.0, abs(lam)) or high - low < 1e-13:
                return step
            lam = step
        return lam

    def log_integral(self, low: float, high: float) -> float:
        """log of the integral of exp(g) from low to high (may be infinite): panels that grow outwards from the peak."""
        peak = min(max(self.mode(), low), high)
        top = self.value(peak)
        first, second = self.derivatives(peak)
        # Beyond 0.5 the logistic terms bend, however flat the peak is.
        width = min(1 / max(abs(first), math.sqrt(-second), 1e-300), 0.5)
        total: list[float] = []
        for direction, bound in ((-1.0, low), (1.0, high)):
            edge, step = peak, width
            while edge != bound:
                outer = edge + direction * step
                if (outer - bound) * direction >= 0:
                    outer = bound
                middle, half = (edge + outer) / 2, abs(outer - edge) / 2
                if half <= 0:
                    break
                total += [half * w * math.exp(self.value(middle + half * x) - top) for x, w in _NODES]
                if self.value(outer) < top - _CUT:
                    break
                edge, step = outer, step * _GROWTH
        mass = math.fsum(total)
        return top + math.log(mass) if mass > 0 else -math.inf


def _side_range(side: str, null_log: float) -> tuple[float, float]:
    if side == GREATER:
        return null_log, math.inf
    if side == LESS:
        return -math.inf, null_log
    if side == TWO_SIDED:
        return -math.inf, math.inf
    raise StatisticsError(f"side must be one of {', '.join(SIDES)}, got {side!r}")


@lru_cache(maxsize=256)
def _log_prior_mass(a: float, b: float, reference: float, low: float, high: float) -> float:
    if low == -math.inf and high == math.inf:
        beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        return beta - a * math.log(reference) - b * math.log1p(-reference)
    return _LogConcave(a, ((a + b, reference),)).log_integral(low, high)


def _checked(intervals: Sequence[Interval]) -> list[Interval]:
    for position, one in enumerate(intervals):
        fraction(f"intervals[{position}].share", one.share)
        count(f"intervals[{position}].candidate", one.candidate)
        count(f"intervals[{position}].stable", one.stable)
    return list(intervals)


def _grouped(intervals: Sequence[Interval]) -> tuple[float, dict[float, float]]:
    """Errors of the candidate, and errors of both sides by share: all that the likelihood depends on."""
    totals: dict[float, float] = {}
    for one in intervals:
        if one.candidate or one.stable:
            totals[one.share] = totals.get(one.share, 0.0) + one.candidate + one.stable
    return math.fsum([one.candidate for one in intervals]), totals


def _log_likelihood(errors: float, totals: dict[float, float], log_multiplier: float) -> float:
    """Log likelihood of a multiplier relative to that of multiplier 1."""
    return errors * log_multiplier - math.fsum([n * _log_scale(share, log_multiplier) for share, n in totals.items()])


def log_e_value(
    intervals: Sequence[Interval],
    side: str = GREATER,
    null_multiplier: float = 1.0,
    concentration: float = CONCENTRATION,
    reference: float | None = None,
) -> float:
    """log e-value against "the candidate's error rate is (at most, at least) `null_multiplier` times that of stable".

    `side`: V(greater) has the null multiplier <= null_multiplier, V(less) the null >=, V(two-sided) the point.
    The prior of the multiplier is the one that Beta(k*r, k*(1-r)) (k = `concentration`) gives at the share r =
    `reference`, cut to the alternative; by default r is the share of the first interval, which is known before its
    errors. With a constant share the two-sided value equals `bernoulli_log_e_value` (Lindon & Malek 2022). The integral
    is done around its peak to about 1e-10.
    Valid at every interval, however often it is looked at: reject when it reaches log(1/alpha).
    Returns 0.0 for no intervals. Raises StatisticsError for shares outside (0, 1), negative or non-finite counts.
    """
    checked = _checked(intervals)
    null_log = math.log(positive("null_multiplier", null_multiplier))
    k = positive("concentration", concentration)
    low, high = _side_range(side, null_log)
    if not checked:
        return 0.0
    r = fraction("reference", checked[0].share if reference is None else reference)
    errors, totals = _grouped(checked)
    if not totals:
        return 0.0
    a, b = k * r, k * (1 - r)
    if side == TWO_SIDED and list(totals) == [r]:
        n = totals[r]
        mixture = bernoulli_log_e_value(errors, max(n - errors, 0.0), r, k)
    else:
        terms = dict(totals)
        terms[r] = terms.get(r, 0.0) + a + b
        posterior = _LogConcave(a + errors, tuple((n, share) for share, n in terms.items()))
        mixture = posterior.log_integral(low, high) - _log_prior_mass(a, b, r, low, high)
    return mixture - _log_likelihood(errors, totals, null_log)


def e_value(
    intervals: Sequence[Interval],
    side: str = GREATER,
    null_multiplier: float = 1.0,
    concentration: float = CONCENTRATION,
    reference: float | None = None,
) -> float:
    """The e-value of `log_e_value`, cut at exp(700)."""
    return e_from_log(log_e_value(intervals, side, null_multiplier, concentration, reference))


def multiplier_sequence(
    intervals: Sequence[Interval],
    alpha: float,
    concentration: float = CONCENTRATION,
    reference: float | None = None,
) -> tuple[float, float]:
    """Time-uniform confidence interval (lower, upper) of the candidate's error rate divided by that of stable.

    Holds every multiplier that the two-sided test does not reject: likelihood > alpha * mixture (Lindon & Malek 2022,
    inversion of the sequential test). The likelihood is log-concave, so the set is an interval. Without errors it is
    (0, inf); upper is inf where stable had none, lower is 0 where the candidate had none.
    Raises StatisticsError as `log_e_value` does and for an alpha outside (0, 1).
    """
    level = math.log(fraction("alpha", alpha))
    threshold = log_e_value(intervals, TWO_SIDED, 1.0, concentration, reference) + level
    errors, totals = _grouped(intervals)
    total = math.fsum(totals.values())
    if total <= 0:
        return 0.0, math.inf

    def excess(lam: float) -> float:
        return _log_likelihood(errors, totals, lam) - threshold

    stable_errors = total - errors
    if errors > 0 and stable_errors > 1e-12 * total:
        peak = _LogConcave(errors, tuple((n, share) for share, n in totals.items())).mode()
    else:
        peak = 0.0
    bounds = []
    for direction, open_end in ((-1.0, errors <= 0), (1.0, stable_errors <= 1e-12 * total)):
        if open_end:
            bounds.append(direction * math.inf)
            continue
        inside, step = peak, 0.01
        # One-sided data: the likelihood rises towards the open end for ever; start from a point that is inside.
        while excess(inside) <= 0 and abs(inside) < _LIMIT:
            inside, step = inside - direction * step, step * 2
        outside, step = inside, 0.01
        while excess(outside) > 0 and abs(outside) < _LIMIT:
            outside, step = outside + direction * step, step * 2
        for _step in range(200):
            middle = (inside + outside) / 2
            if middle in (inside, outside):
                break
            if excess(middle) > 0:
                inside = middle
            else:
                outside = middle
        bounds.append(outside)
    return (math.exp(max(bounds[0], -_LIMIT)) if bounds[0] > -math.inf else 0.0), (
        math.exp(min(bounds[1], _LIMIT)) if bounds[1] < math.inf else math.inf
    )


def compare_errors(
    intervals: Sequence[Interval],
    alpha: float,
    margin: float = 0.0,
    *,
    concentration: float = CONCENTRATION,
    reference: float | None = None,
    requests: tuple[float, float] | None = None,
) -> Comparison:
    """Candidate's errors against stable's: V(worse) when its rate is above (1 + margin) times stable's, at level alpha.

    V(not_worse) when the rate is shown to be below that (also at level alpha: the two mistakes are different ones).
    `requests`: (stable, candidate) totals, only for the estimates. `lower` and `upper` are relative changes with a
    time-uniform coverage of 1 - alpha. Valid however often it is called as the intervals grow.
    Raises StatisticsError for a negative margin and as `log_e_value` does.
    """
    level = fraction("alpha", alpha)
    tolerated = 1 + count("margin", margin)
    worse = log_e_value(intervals, GREATER, tolerated, concentration, reference)
    better = log_e_value(intervals, LESS, tolerated, concentration, reference)
    lower, upper = multiplier_sequence(intervals, alpha, concentration, reference)
    errors, totals = _grouped(intervals)
    total = math.fsum(totals.values())
    estimate = None
    if errors > 0 and total - errors > 1e-12 * total:
        estimate = math.exp(_LogConcave(errors, tuple((n, share) for share, n in totals.items())).mode())
    elif total > 0 and errors <= 0:
        estimate = 0.0
    threshold = -math.log(level)
    stable_rate = candidate_rate = None
    if requests is not None:
        stable_all, candidate_all = count("stable requests", requests[0]), count("candidate requests", requests[1])
        stable_rate = (total - errors) / stable_all if stable_all > 0 else None
        candidate_rate = errors / candidate_all if candidate_all > 0 else None
    decision = WORSE if worse >= threshold else NOT_WORSE if better >= threshold else UNDECIDED
    said = {
        WORSE: f"fails more often than {tolerated:g} times stable",
        NOT_WORSE: f"fails less often than {tolerated:g} times stable",
        UNDECIDED: f"is not shown to differ from {tolerated:g} times stable's error rate",
    }[decision]
    top = "any number of" if upper == math.inf else f"{upper:.4g}"
    reason = (
        f"the candidate {said}: {errors:.6g} of {total:.6g} errors, between {lower:.4g} and {top} times stable's rate, "
        f"e-value {e_from_log(worse):.3g} of {1 / level:g}"
    )
    return Comparison(
        decision,
        reason,
        "relative",
        stable_rate,
        candidate_rate,
        None if estimate is None else estimate - 1,
        lower - 1,
        None if upper == math.inf else upper - 1,
        e_from_log(worse),
        e_from_log(better),
    )


def implied_probability(share: float, multiplier: float) -> float:
    """Probability that an error falls on the candidate: multiplier*share / (multiplier*share + 1 - share)."""
    w, m = fraction("share", share), positive("multiplier", finite("multiplier", multiplier))
    return m * w / (m * w + 1 - w)
