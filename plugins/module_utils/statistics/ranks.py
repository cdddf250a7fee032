# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mann-Whitney (Wilcoxon rank-sum) test with the Hodges-Lehmann estimate and its confidence interval.

Gives what R's `wilcox.test(x, y, conf.int = TRUE)` gives (Hollander & Wolfe 1999, sections 4.1 to 4.3; Bauer 1972),
except that the interval of the normal approximation is found exactly among the differences x_i - y_j instead of by a
root finder with an absolute tolerance of 1e-4: results scale with the data. A test for one look, not for peeking.
The standard library only.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    StatisticsError,
    finite,
    fraction,
    sample,
)

TWO_SIDED, GREATER, LESS = "two-sided", "greater", "less"
ALTERNATIVES = (TWO_SIDED, GREATER, LESS)
EXACT_BELOW = 50  # R: exact for fewer than 50 values on both sides, without ties
MAX_PAIRS = 5_000_000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class RankTest:
    """`statistic` is R's W (pairs with x above y, ties half); `lower`, `upper`, `estimate`: shift of x against y."""

    statistic: float
    p_value: float
    estimate: float
    lower: float
    upper: float
    exact: bool


@lru_cache(maxsize=64)
def rank_sum_distribution(m: int, n: int) -> tuple[int, ...]:
    """How many of the C(m+n, m) orders give each W = 0 .. m*n, by the recursion of Mann & Whitney (1947).

    The generating function prod over i of (1 - q^(n+i)) / (1 - q^i), multiplied and divided in place: O(m * m * n).
    Raises StatisticsError for sizes below 1.
    """
    if m < 1 or n < 1:
        raise StatisticsError(f"both samples need at least 1 value, got {m} and {n}")
    size = m * n + 1
    ways = [0] * size
    ways[0] = 1
    for i in range(1, m + 1):
        for total in range(size - 1, n + i - 1, -1):
            ways[total] -= ways[total - n - i]
        for total in range(i, size):
            ways[total] += ways[total - i]
    return tuple(ways)


def _quantile(probability: float, m: int, n: int) -> int:
    """R's qwilcox: the smallest w with P(W <= w) >= probability (a hair of tolerance, as R has)."""
    ways = rank_sum_distribution(m, n)
    orders = math.comb(m + n, m)
    running = 0
    for w, number in enumerate(ways):
        running += number
        if running / orders >= probability - 1e-15:
            return w
    return len(ways) - 1


def _exact_p(statistic: float, m: int, n: int, alternative: str) -> float:
    ways, orders = rank_sum_distribution(m, n), math.comb(m + n, m)
    w = round(statistic)
    below, above = sum(ways[: w + 1]) / orders, sum(ways[w:]) / orders
    if alternative == GREATER:
        return above
    if alternative == LESS:
        return below
    return min(1.0, 2 * min(below, above))


def _correction(alternative: str, dz: float) -> float:
    if alternative == GREATER:
        return 0.5
    if alternative == LESS:
        return -0.5
    return 0.5 * ((dz > 0) - (dz < 0))


def _sigma(m: int, n: int, groups: Sequence[int]) -> float:
    """Standard deviation of W with `groups` of equal values."""
    ties = sum(size**3 - size for size in groups)
    total = m + n
    return math.sqrt(max(m * n / 12 * (total + 1 - ties / (total * (total - 1))), 0.0))


def differences(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """All x_i - y_j, sorted. Raises StatisticsError for more than 5,000,000 pairs."""
    if len(x) * len(y) > MAX_PAIRS:
        raise StatisticsError(f"{len(x)} times {len(y)} values are more than {MAX_PAIRS} pairs: take longer intervals")
    return sorted(a - b for a in x for b in y)


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def wilcox(
    x: Sequence[float],
    y: Sequence[float],
    confidence: float = 0.95,
    alternative: str = TWO_SIDED,
    *,
    shift: float = 0.0,
    exact: bool | None = None,
    correct: bool = True,
) -> RankTest:
    """The rank-sum test of x against y, with the Hodges-Lehmann estimate of the shift and its confidence interval.

    `exact` None: the exact distribution when both samples have fewer than 50 values and no two are equal, otherwise the
    normal approximation with tie correction and (`correct`) continuity correction. `alternative`: V(two-sided),
    V(greater) (x is above y; the interval has no upper end) or V(less). `shift` is the null's.
    [10, 20, 30, 40] against [1, 2, 3, 4] at 0.98: (6, 39), estimate 22.5.
    Raises StatisticsError for empty samples, NaN, a confidence outside (0, 1), exact = True with ties.
    """
    ours, theirs = sample("x", x), sample("y", y)
    level, null = 1 - fraction("confidence", confidence), finite("shift", shift)
    if alternative not in ALTERNATIVES:
        raise StatisticsError(f"alternative must be one of {', '.join(ALTERNATIVES)}, got {alternative!r}")
    m, n = len(ours), len(theirs)
    groups = list(Counter([a - null for a in ours] + theirs).values())
    ties = len(groups) < m + n
    if exact and ties:
        raise StatisticsError("the exact distribution needs samples without ties")
    use_exact = not ties and m < EXACT_BELOW and n < EXACT_BELOW if exact is None else exact
    pairs = differences(ours, theirs)
    below, at_most = bisect_left(pairs, null), _count_at_most(pairs, null)
    statistic = len(pairs) - at_most + (at_most - below) / 2
    if use_exact:
        p_value = _exact_p(statistic, m, n, alternative)
        lower, upper = _exact_interval(pairs, m, n, level, alternative)
    else:
        dz = statistic - m * n / 2
        sigma = _sigma(m, n, groups)
        z = (dz - (_correction(alternative, dz) if correct else 0.0)) / sigma if sigma > 0 else 0.0
        tails = {GREATER: _upper_tail(z), LESS: _upper_tail(-z), TWO_SIDED: min(1.0, 2 * _upper_tail(abs(z)))}
        p_value = tails[alternative]
        # The ties between the samples depend on the shift that is tried; those inside a sample do not.
        within = list(Counter(ours).values()) + list(Counter(theirs).values())
        lower, upper = _normal_interval(
            pairs, m, n, sigma=_sigma(m, n, within), alpha=level, alternative=alternative, correct=correct
        )
    return RankTest(statistic, p_value, _median(pairs), lower, upper, use_exact)


def _upper_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def _count_at_most(ordered: Sequence[float], value: float) -> int:
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


def _exact_interval(pairs: Sequence[float], m: int, n: int, alpha: float, alternative: str) -> tuple[float, float]:
    tail = alpha / 2 if alternative == TWO_SIDED else alpha
    rank = max(_quantile(tail, m, n), 1)
    return (
        -math.inf if alternative == LESS else pairs[rank - 1],
        math.inf if alternative == GREATER else pairs[m * n - rank],
    )


def _normal_interval(
    pairs: Sequence[float], m: int, n: int, *, sigma: float, alpha: float, alternative: str, correct: bool
) -> tuple[float, float]:
    """Where the standardised W of x - d against y crosses the normal quantiles: it steps at each of `pairs`."""
    tail = alpha / 2 if alternative == TWO_SIDED else alpha
    z = _NORMAL.inv_cdf(1 - tail)

    def root(target: float) -> float:
        # Between pairs[i-1] and pairs[i] there are len(pairs) - i differences above d, and no ties between the samples.
        low, high = 0, len(pairs)
        while low < high:
            middle = (low + high) // 2
            dz = len(pairs) - middle - m * n / 2
            corrected = dz - (_correction(alternative, dz) if correct else 0.0)
            if corrected > target * sigma:
                low = middle + 1
            else:
                high = middle
        # The first stretch at or below the target begins at this difference.
        return pairs[min(max(low - 1, 0), len(pairs) - 1)]

    return (
        -math.inf if alternative == LESS else root(z),
        math.inf if alternative == GREATER else root(-z),
    )
