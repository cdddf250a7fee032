# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all statistics of the release judge share: the domain exception, guards, the result of a comparison.

The whole package uses the standard library only: it also runs where SciPy is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORSE = "worse"
NOT_WORSE = "not_worse"
UNDECIDED = "undecided"
LOG_MAX = 700.0  # exp() of more overflows


class StatisticsError(Exception):
    """What is wrong with the data or the settings, in one sentence."""


@dataclass(frozen=True)
class Comparison:
    """Candidate against stable, in one metric, at one moment.

    `decision` is V(worse), V(not_worse) or V(undecided); `reason` says why in words.
    `stable` and `candidate` are the point estimates in the metric's unit, or None where there are no data.
    `difference`, `lower` and `upper` are the estimated change and its time-uniform confidence interval in `unit`:
    V(relative) (0.5 is half as much again) or V(absolute) (the metric's own unit); None where unbounded or unknown.
    `e_value` is the evidence for V(worse) (at least 1/alpha when worse); `e_value_not_worse` that for the contrary.
    """

    decision: str
    reason: str
    unit: str
    stable: float | None = None
    candidate: float | None = None
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None
    e_value: float | None = None
    e_value_not_worse: float | None = None


def finite(name: str, value: float) -> float:
    """`value` as a float. Raises StatisticsError where it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise StatisticsError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def count(name: str, value: float) -> float:
    """A count as a float, at least 0; fractions are allowed because Prometheus extrapolates. Raises StatisticsError."""
    number = finite(name, value)
    if number < 0:
        raise StatisticsError(f"{name} must not be negative, got {value!r}")
    return number


def positive(name: str, value: float) -> float:
    """A finite number above 0. Raises StatisticsError."""
    number = finite(name, value)
    if number <= 0:
        raise StatisticsError(f"{name} must be above 0, got {value!r}")
    return number


def fraction(name: str, value: float) -> float:
    """A number strictly between 0 and 1 (an alpha, a share, a quantile). Raises StatisticsError."""
    number = finite(name, value)
    if not 0 < number < 1:
        raise StatisticsError(f"{name} must lie strictly between 0 and 1, got {value!r}")
    return number


def sample(name: str, values: Iterable[float], minimum: int = 1) -> list[float]:
    """The values as floats, at least `minimum` of them. Raises StatisticsError."""
    result = [finite(f"{name}[{position}]", value) for position, value in enumerate(values)]
    if len(result) < minimum:
        raise StatisticsError(f"{name} needs at least {minimum} value(s), got {len(result)}")
    return result


def e_from_log(log_e: float) -> float:
    """exp of a log e-value, cut at the largest value that a float (and JSON) holds well."""
    return math.exp(min(log_e, LOG_MAX))


def sequential_p(e_values: Sequence[float]) -> list[float]:
    """Always-valid p-values: min(1, 1 / the largest e-value so far), one per e-value.

    Under the null P(any of them <= alpha) <= alpha by Ville's inequality (Lindon & Malek 2022, arXiv 2011.03567,
    section on sequential p-values; Johari et al. 2015, arXiv 1512.04922).
    Raises StatisticsError for a negative or NaN e-value; infinity is allowed and gives 0.
    """
    result: list[float] = []
    best = 1.0
    for position, value in enumerate(e_values):
        if math.isnan(value) or value < 0:
            raise StatisticsError(f"e_values[{position}] must be a number of at least 0, got {value!r}")
        best = max(best, value)
        result.append(1.0 / best)
    return result
