# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time-uniform statements about quantiles of latency, from histograms as Prometheus keeps them.

Source: Howard & Ramdas (2022), "Sequential estimation of quantiles with applications to A/B testing and best-arm
identification", Bernoulli 28(3), arXiv 1906.09712. Two kinds of band:

- `dkw`: on the whole distribution function at once (theorem 2: DKW uniform in time). Its half-width does not depend on
  the quantile, so at the 99th percentile it says nothing before some 100,000 requests.
- `fixed`: on one quantile that is named in advance (theorem 1: whether a request is below the quantile is a Bernoulli
  trial; here with the Beta mixture of Lindon & Malek 2022). It needs some hundred requests. The judge's default.

Requests are assumed independent and each version's latency distribution steady for the time of the analysis.
A histogram knows only between which bounds a value lies. There are two ways to be right about it:

- `interpolate` (the default): what is judged is the quantile that Prometheus' `histogram_quantile` tends to, with
  values spread evenly inside a bucket. Both versions are seen through the same buckets, so equal versions stay equal.
  The tests stay exact: an interpolated count is a sum of values between 0 and 1, the likelihood ratio is convex in each
  of them, so its mean is at most that of a Bernoulli trial of the same mean.
- without it every interval ends at bucket bounds: true of the real latencies, but a change that stays inside a bucket,
  or is smaller than a bucket with the margin, is never proved. Wants buckets that grow by less than the margin.

The standard library only.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
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
from ansible_collections.causeway.platform.plugins.module_utils.statistics.counts import (
    CONCENTRATION,
    GREATER,
    LESS,
    Interval,
    log_e_value,
)

DKW, FIXED = "dkw", "fixed"
METHODS = (FIXED, DKW)
DKW_A = 0.85  # the paper's leading constant


# Bands on the distribution function -----------------------------------------------------------------------------------


def dkw_error(a: float, c: float) -> float:
    """Probability bound that the band with constants `a` (> 1/sqrt(2)) and `c` is ever left: theorem 2 of the paper.

    The smallest over eta in (1, 2 a^2) of 4 exp(-g c) (1 + 1 / ((g - 1) log eta)) where
    g = (2/eta) (a - sqrt(2 (eta-1)/c))^2 > 1. Raises StatisticsError for an `a` that is too small.
    """
    if finite("a", a) <= 1 / math.sqrt(2):
        raise StatisticsError(f"a must be above 1/sqrt(2), got {a!r}")
    positive("c", c)

    def bound(eta: float) -> float:
        inner = a - math.sqrt(2 * (eta - 1) / c)
        g = 2 / eta * inner * inner
        if inner <= 0 or g <= 1:
            return math.inf
        return 4 * math.exp(-g * c) * (1 + 1 / ((g - 1) * math.log(eta)))

    # One valley between 1 and 2 a^2, infinite outside: a grid finds it, golden sections narrow it down.
    low, high = 1.0, 2 * a * a
    steps = 400
    grid = [low + (high - low) * i / steps for i in range(1, steps)]
    best = min(range(len(grid)), key=lambda i: bound(grid[i]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _step in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if bound(left) < bound(right):
            high = right
        else:
            low = left
    return bound((low + high) / 2)


@lru_cache(maxsize=64)
def dkw_constant(alpha: float, a: float = DKW_A) -> float:
    """The smallest `c` for which `dkw_error` is at most alpha; for a = 0.85 a little below 0.8 log(1612/alpha)."""
    fraction("alpha", alpha)
    low, high = 1e-3, 1.0
    while dkw_error(a, high) > alpha:
        low, high = high, high * 2
    for _step in range(80):
        middle = (low + high) / 2
        if dkw_error(a, middle) > alpha:
            low = middle
        else:
            high = middle
    return high


def dkw_half_width(n: float, alpha: float, minimum: float = 1.0) -> float:
    """Half-width of a band on the distribution function after `n` requests, valid at all n >= `minimum` at once.

    0.85 sqrt((log log(e n / minimum) + 0.8 log(1612 / alpha)) / n): Howard & Ramdas 2022, eq. (4) and theorem 2.
    Infinite below `minimum`, which must be fixed in advance. Raises StatisticsError for bad counts or alpha.
    """
    fraction("alpha", alpha)
    size, first = count("n", n), finite("minimum", minimum)
    if first < 1:
        raise StatisticsError(f"minimum must be at least 1, got {minimum!r}")
    if size < first:
        return math.inf
    return DKW_A * math.sqrt((math.log1p(math.log(size / first)) + 0.8 * math.log(1612 / alpha)) / size)


# Histograms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Histogram:
    """Upper bounds in rising order (the last is infinity) and how many requests are at most each bound."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]

    @property
    def total(self) -> float:
        """How many requests there are."""
        return self.cumulative[-1]

    def at_most(self, bound: float) -> float:
        """Requests that are surely at most `bound`: those of the buckets that end at or below it."""
        position = bisect_right(self.bounds, bound)
        return self.cumulative[position - 1] if position else 0.0

    def below(self, value: float, floor: float) -> float:
        """Requests at most `value`, spread evenly in each bucket from `floor` on; the last one is not spread."""
        position = bisect_right(self.bounds, value)
        before = self.cumulative[position - 1] if position else 0.0
        if position >= len(self.bounds) - 1:
            return before if value < math.inf else self.total
        left = self.bounds[position - 1] if position else floor
        if value <= left:
            return before
        return before + (self.cumulative[position] - before) * (value - left) / (self.bounds[position] - left)


def histogram(bounds: Sequence[float], cumulative: Sequence[float]) -> Histogram:
    """A Histogram from upper bounds (strictly rising, +Inf last) and cumulative counts (not falling), same length.

    Counts may fall by one millionth of the total, which happens when Prometheus extrapolates; that is smoothed.
    Raises StatisticsError for anything else.
    """
    if len(bounds) != len(cumulative) or not bounds:
        raise StatisticsError(
            f"a histogram needs as many counts as bounds and at least one, got {len(cumulative)} and {len(bounds)}"
        )
    uppers = [float(b) for b in bounds]
    if uppers[-1] != math.inf:
        raise StatisticsError(f"the last bound of a histogram must be +Inf, got {uppers[-1]!r}")
    if any(math.isnan(b) for b in uppers) or any(a >= b for a, b in zip(uppers, uppers[1:])):
        raise StatisticsError("the bounds of a histogram must rise strictly")
    counts = [count(f"the count of bucket {i}", value) for i, value in enumerate(cumulative)]
    smooth: list[float] = []
    for position, value in enumerate(counts):
        before = smooth[-1] if smooth else 0.0
        if value < before - 1e-6 * max(counts[-1], 1.0):
            raise StatisticsError(f"counts of a histogram must not fall, bucket {position} has {value:g} < {before:g}")
        smooth.append(max(value, before))
    return Histogram(tuple(uppers), tuple(smooth))


def histogram_of(values: Sequence[float], bounds: Sequence[float]) -> Histogram:
    """The histogram of raw values with these upper bounds (+Inf is added where it is missing)."""
    uppers = list(bounds) if bounds and bounds[-1] == math.inf else [*bounds, math.inf]
    ordered = sorted(finite("value", value) for value in values)
    return histogram(uppers, [float(bisect_right(ordered, bound)) for bound in uppers])


def quantile_estimate(data: Histogram, quantile: float, floor: float = 0.0) -> float | None:
    """The quantile by linear interpolation inside its bucket (as Prometheus' histogram_quantile); None without data.

    In the last bucket it is the largest finite bound. `floor` is where the first bucket begins.
    """
    p = fraction("quantile", quantile)
    if data.total <= 0:
        return None
    rank = p * data.total
    position = min(bisect_left(data.cumulative, rank), len(data.bounds) - 1)
    lower = data.bounds[position - 1] if position else floor
    upper = data.bounds[position]
    if upper == math.inf:
        return lower
    before = data.cumulative[position - 1] if position else 0.0
    inside = data.cumulative[position] - before
    return lower + (upper - lower) * ((rank - before) / inside if inside > 0 else 1.0)


# Quantiles of one sample ----------------------------------------------------------------------------------------------


def _evidence(inside: float, total: float, p: float, side: str, concentration: float) -> float:
    """log e-value against P(value <= place) = p, `inside` of `total` values being there."""
    return log_e_value((Interval(p, inside, max(total - inside, 0.0)),), side, 1.0, concentration) if total > 0 else 0.0


def quantile_sequence(
    data: Histogram,
    quantile: float,
    alpha: float,
    method: str = FIXED,
    *,
    floor: float = 0.0,
    concentration: float = CONCENTRATION,
    minimum: float = 1.0,
    interpolate: bool = True,
) -> tuple[float, float]:
    """Time-uniform confidence interval (lower, upper) of a quantile, in the bounds' unit.

    V(dkw): corollary 2 of Howard & Ramdas 2022 (valid for all quantiles at once, after `minimum` requests).
    V(fixed): their theorem 1 with a Beta mixture, alpha/2 on each side; no correction for the number of places is
    needed, for the evidence at a place rises and falls with the count below it, so that the place of the true
    quantile is the first to err. `floor` (the least possible value) when nothing is known below, infinity when nothing
    is known above. `interpolate`: see the top of this file; otherwise both ends are bucket bounds.
    Raises StatisticsError for a quantile or alpha outside (0, 1) or an unknown method.
    """
    p, level = fraction("quantile", quantile), fraction("alpha", alpha)
    if method not in METHODS:
        raise StatisticsError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    total = data.total
    width = dkw_half_width(total, level, minimum)
    if total <= 0 or (method == DKW and width == math.inf):
        return floor, math.inf
    threshold = math.log(2 / level)

    def is_above(inside: float) -> bool:
        """The quantile is above a place with so many values up to it."""
        if method == DKW:
            return inside / total + width < p
        return inside < p * total and _evidence(inside, total, p, LESS, concentration) >= threshold

    def is_at_most(inside: float) -> bool:
        if method == DKW:
            return inside / total - width >= p
        return inside > p * total and _evidence(inside, total, p, GREATER, concentration) >= threshold

    last = len(data.bounds) - 1
    # Both are monotone in the count: search the counts, not the bounds.
    first_open = _first(last, lambda i: not is_above(data.cumulative[i]))
    first_sure = _first(last, lambda i: is_at_most(data.cumulative[i]))
    lower = data.bounds[first_open - 1] if first_open else floor
    upper = data.bounds[first_sure] if first_sure < last else math.inf
    if interpolate and first_open < last:
        lower = _narrow(lower, data.bounds[first_open], lambda x: is_above(data.below(x, floor)))
    if interpolate and first_sure < last:
        edge = data.bounds[first_sure - 1] if first_sure else floor
        upper = _narrow(upper, edge, lambda x: is_at_most(data.below(x, floor)))
    return lower, upper


def _first(size: int, holds: Callable[[int], bool]) -> int:
    """The first index below `size` from which on a monotone predicate holds; `size` if there is none."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _narrow(sure: float, other: float, holds: Callable[[float], bool]) -> float:
    """The place nearest to `other` at which `holds` (true at `sure`) still is true, to a thousandth of the bucket."""
    for _step in range(10):
        middle = (sure + other) / 2
        if holds(middle):
            sure = middle
        else:
            other = middle
    return sure


# Two samples ----------------------------------------------------------------------------------------------------------


def _combined(first: float, second: float) -> float:
    """log of the mean of two independent e-values and of their product: good also where one of them says little."""
    parts = (first, second, first + second)
    top = max(parts)
    return top + math.log(math.fsum(math.exp(part - top) for part in parts) / 3)


@dataclass(frozen=True)
class _Pair:
    """Everything that the evidence about a stretch of places depends on."""

    stable: Histogram
    candidate: Histogram
    p: float
    factor: float
    floor: float
    concentration: float
    interpolate: bool

    def worse(self, low: float, high: float) -> float:
        """Evidence that excludes: stable's quantile is in (low, high] and the candidate's at most factor times it."""
        mine = self._log_e(self.stable, low, GREATER) if low > self.floor else 0.0
        return _combined(mine, self._log_e(self.candidate, self.factor * high, LESS))

    def not_worse(self, low: float, high: float) -> float:
        """Evidence that excludes: stable's quantile is in (low, high] and the candidate's above factor times it."""
        theirs = self._log_e(self.candidate, self.factor * low, GREATER) if low > self.floor else 0.0
        return _combined(self._log_e(self.stable, high, LESS), theirs)

    def _log_e(self, data: Histogram, place: float, side: str) -> float:
        """Evidence that P(value <= place) is above (GREATER) or below (LESS) p, never more than the buckets allow."""
        largest = data.bounds[-2] if len(data.bounds) > 1 else -math.inf
        if place > largest:
            # Inside the bucket that never ends: perhaps all values are below it, perhaps none.
            if side == LESS:
                return 0.0
            inside = data.at_most(largest)
        elif self.interpolate:
            inside = data.below(place, self.floor)
        elif side == GREATER:
            inside = data.at_most(place)
        else:
            inside = data.cumulative[bisect_left(data.bounds, place)]
        return _evidence(inside, data.total, self.p, side, self.concentration)

    def smallest(self, evidence: Callable[[float, float], float]) -> float:
        """The smallest evidence over all places: bucket by bucket, and finer in the buckets that decide."""
        edges = [self.floor, *(b for b in self.stable.bounds if b > self.floor)]
        queue = sorted((evidence(low, high), low, high) for low, high in zip(edges, edges[1:]))
        if not self.interpolate:
            return queue[0][0]
        best = math.inf
        for coarse, low, high in queue:
            # The bound of a whole bucket is at most the evidence in it, so those above the best need no second look.
            if coarse >= best:
                break
            best = min(best, coarse if high == math.inf else self._fine(evidence, low, high))
        return best

    def _fine(self, evidence: Callable[[float, float], float], low: float, high: float) -> float:
        steps = 16 if low <= 0 else max(2, min(64, math.ceil(math.log(high / low) / math.log(1.03))))
        places = [low + (high - low) * i / steps for i in range(steps + 1)]
        return min(evidence(a, b) for a, b in zip(places, places[1:]))


def log_e_quantile_worse(
    stable: Histogram,
    candidate: Histogram,
    quantile: float,
    margin: float,
    *,
    floor: float = 0.0,
    concentration: float = CONCENTRATION,
    interpolate: bool = True,
) -> float:
    """log e-value against "the candidate's quantile is at most (1 + margin) times that of stable".

    For every place q where stable's quantile may be: evidence that it is lower than q, combined with evidence that the
    candidate's is higher than (1 + margin) q; the smallest over all q counts, so at the true q it is an e-process
    (the construction of the A/B test of Howard & Ramdas 2022, section 5, with Beta mixtures). Places are taken in small
    stretches whose evidence is that of their outer ends, hence never too large.
    """
    p, factor = fraction("quantile", quantile), 1 + count("margin", margin)
    pair = _Pair(stable, candidate, p, factor, floor, concentration, interpolate)
    return pair.smallest(pair.worse)


def log_e_quantile_not_worse(
    stable: Histogram,
    candidate: Histogram,
    quantile: float,
    margin: float,
    *,
    floor: float = 0.0,
    concentration: float = CONCENTRATION,
    interpolate: bool = True,
) -> float:
    """log e-value against "the candidate's quantile is above (1 + margin) times that of stable"; as its counterpart."""
    p, factor = fraction("quantile", quantile), 1 + count("margin", margin)
    pair = _Pair(stable, candidate, p, factor, floor, concentration, interpolate)
    return pair.smallest(pair.not_worse)


def compare_quantile(
    stable: Histogram,
    candidate: Histogram,
    quantile: float,
    alpha: float,
    margin: float = 0.0,
    *,
    method: str = FIXED,
    floor: float = 0.0,
    concentration: float = CONCENTRATION,
    minimum: float = 1.0,
    interpolate: bool = True,
) -> Comparison:
    """A quantile of the candidate against stable's: V(worse) above (1 + margin) times, at level alpha at any time.

    Both histograms are cumulative over the whole analysis so far. V(fixed) decides by the e-values above; V(dkw) by
    bands of alpha/2 each that do not meet. `lower` and `upper` bound the relative change with coverage 1 - alpha.
    Quantiles beyond the largest finite bound cannot be told apart: choose bounds beyond the SLO.
    Raises StatisticsError for negative margins, quantiles or alphas outside (0, 1), empty histograms.
    """
    level, factor = fraction("alpha", alpha), 1 + count("margin", margin)
    for side, data in (("stable", stable), ("candidate", candidate)):
        if data.total <= 0:
            raise StatisticsError(f"the histogram of {side} is empty")
    (stable_low, stable_high), (low, high) = (
        quantile_sequence(
            data,
            quantile,
            level / 2,
            method,
            floor=floor,
            concentration=concentration,
            minimum=minimum,
            interpolate=interpolate,
        )
        for data in (stable, candidate)
    )
    worse_e = better_e = None
    if method == FIXED:
        worse_log, better_log = (
            evidence(
                stable, candidate, quantile, margin, floor=floor, concentration=concentration, interpolate=interpolate
            )
            for evidence in (log_e_quantile_worse, log_e_quantile_not_worse)
        )
        worse, better = worse_log >= -math.log(level), better_log >= -math.log(level)
        worse_e, better_e = e_from_log(worse_log), e_from_log(better_log)
    else:
        worse, better = low >= factor * stable_high, high <= factor * stable_low
    decision = WORSE if worse else NOT_WORSE if better else UNDECIDED
    ours, theirs = (quantile_estimate(data, quantile, floor) for data in (stable, candidate))
    change = theirs / ours - 1 if ours is not None and theirs is not None and ours > 0 else None
    lower = low / stable_high - 1 if 0 < stable_high < math.inf else None
    upper = high / stable_low - 1 if stable_low > 0 and high < math.inf else None
    name = f"p{quantile * 100:g}"
    said = {
        WORSE: f"is above {factor:g} times that of stable",
        NOT_WORSE: f"is below {factor:g} times that of stable",
        UNDECIDED: f"is not shown to be above or below {factor:g} times that of stable",
    }[decision]
    reason = (
        f"{name} of the candidate {said}: between {low:.4g} and {high:.4g} after {candidate.total:.6g} requests, "
        f"stable between {stable_low:.4g} and {stable_high:.4g} after {stable.total:.6g}"
    )
    return Comparison(decision, reason, "relative", ours, theirs, change, lower, upper, worse_e, better_e)
