# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A judge that decides as Kayenta's (Spinnaker) NetflixACAJudge-v1.0 does: Mann-Whitney, groups, weights, scores.

For teams that come from there: the words of its canary configuration keep their meaning. It judges a finished window;
looking at it again and again raises the false alarms (the sequential tests of this package do not have that).

Where it differs from Kayenta, on purpose:
1. Kayenta finds the confidence interval with Brent's method and an absolute tolerance of 1e-4, so the verdict on the
   same data in microseconds and in hours differs. Here the ends are the exact differences: multiplying all values of a
   metric by any positive number changes no verdict.
2. Two constant samples that differ get random noise of 1e-5 of their size in Kayenta; here the interval is the
   difference itself. Same verdict, no chance in it.
3. Where ties leave no variance at a shift that its root finder tries, Kayenta calls the metric Error; here the ties
   inside each sample count, and the interval always exists.
4. The ratio of means exists for positive means only: with negative ones Kayenta takes a rise for a fall.
5. Weights above 100 in all are refused; Kayenta computes a negative weight for the other groups.
The standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    StatisticsError,
    count,
    finite,
    fraction,
    positive,
)
from ansible_collections.causeway.platform.plugins.module_utils.statistics.ranks import wilcox

PASS, HIGH, LOW, NODATA, NODATA_FAIL = "Pass", "High", "Low", "Nodata", "NodataFailMetric"
FAIL, MARGINAL = "Fail", "Marginal"
TOLERANCE = 0.25
CONFIDENCE = 0.98
NODATA_PERCENT = 50.0
MEAN_RATIO, CLES = "meanRatio", "cles"


@dataclass(frozen=True)
class MetricConfig:
    """One metric: Kayenta's `analysisConfigurations.canary` by its own names.

    `direction`: increase, decrease, either (which change is bad). `nan_strategy`: remove, replace (by 0).
    `outliers`: keep, remove (with `outlier_factor`). `measure`: meanRatio (allowed_* default 1.0) or cles (0.5).
    """

    name: str
    groups: tuple[str, ...] = ()
    direction: str = "either"
    nan_strategy: str = "remove"
    outliers: str = "keep"
    outlier_factor: float = 3.0
    critical: bool = False
    must_have_data: bool = False
    muted: bool = False
    measure: str = MEAN_RATIO
    allowed_increase: float | None = None
    allowed_decrease: float | None = None
    critical_increase: float | None = None
    critical_decrease: float | None = None


@dataclass(frozen=True)
class MetricResult:
    """`classification` of a metric, why, mean ratio `deviation` and `effect`; `critical`: it fails the whole canary."""

    name: str
    classification: str
    reason: str
    deviation: float
    critical: bool
    groups: tuple[str, ...] = ()
    muted: bool = False
    effect: float | None = None
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Judgement:
    """Score 0..100, V(Pass), V(Marginal) or V(Fail), why, the groups' scores and the metrics' results."""

    score: float
    classification: str
    reason: str
    groups: dict[str, float]
    metrics: tuple[MetricResult, ...] = field(default_factory=tuple)


def mean_ratio(control: Sequence[float], experiment: Sequence[float]) -> float | None:
    """Mean of experiment / mean of control; None where either is 0 or less (Kayenta: NaN at 0)."""
    ours, theirs = math.fsum(control) / len(control), math.fsum(experiment) / len(experiment)
    return None if ours <= 0 or theirs <= 0 else theirs / ours


def cles(control: Sequence[float], experiment: Sequence[float]) -> float:
    """Common-language effect size: share of pairs in which experiment is higher, ties half (Vargha & Delaney 2000)."""
    return wilcox(experiment, control, CONFIDENCE, exact=False).statistic / (len(control) * len(experiment))


def _percentile(ordered: Sequence[float], percent: float) -> float:
    """R's type 7."""
    place = (len(ordered) - 1) * percent / 100
    lower = math.floor(place)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (place - lower)


def without_outliers(values: Sequence[float], factor: float) -> list[float]:
    """Values inside the wider of Tukey's fences (`factor` interquartile ranges) and the 1st to 99th percentile."""
    times = positive("outlier_factor", factor)
    if not values:
        return []
    ordered = sorted(values)
    low, high = _percentile(ordered, 25), _percentile(ordered, 75)
    spread = times * (high - low)
    lower = min(_percentile(ordered, 1), low - spread)
    upper = max(_percentile(ordered, 99), high + spread)
    return [value for value in values if lower <= value <= upper]


def _prepared(config: MetricConfig, values: Sequence[float | None]) -> list[float]:
    result = []
    for value in values:
        if value is None or math.isnan(value):
            if config.nan_strategy == "replace":
                result.append(0.0)
            continue
        result.append(finite(f"a value of {config.name}", value))
    return without_outliers(result, config.outlier_factor) if config.outliers == "remove" else result


def _checked(config: MetricConfig) -> None:
    for name, value, allowed in (
        ("direction", config.direction, ("increase", "decrease", "either")),
        ("nan_strategy", config.nan_strategy, ("remove", "replace")),
        ("outliers", config.outliers, ("keep", "remove")),
        ("measure", config.measure, (MEAN_RATIO, CLES)),
    ):
        if value not in allowed:
            raise StatisticsError(f"{name} of metric {config.name} must be one of {', '.join(allowed)}, got {value!r}")


def _limit(value: float | None, default: float) -> float:
    return default if value is None else finite("effect size", value)


def classify_metric(
    config: MetricConfig,
    control: Sequence[float | None],
    experiment: Sequence[float | None],
    tolerance: float = TOLERANCE,
    confidence: float = CONFIDENCE,
) -> MetricResult:
    """Pass, High, Low, Nodata or NodataFailMetric for one metric; values are one per time step, None or NaN for a gap.

    High: the whole confidence interval of the shift lies above `tolerance` times the size of the Hodges-Lehmann
    estimate, the direction allows it, and the effect size reaches `allowed_increase`; Low mirrors it.
    Raises StatisticsError for unknown words, infinite values, a tolerance below 0.
    """
    _checked(config)
    share = count("tolerance", tolerance)
    fraction("confidence", confidence)
    ours, theirs = _prepared(config, control), _prepared(config, experiment)

    def result(classification: str, reason: str, critical: bool = False, deviation: float = 1.0) -> MetricResult:
        return MetricResult(config.name, classification, reason, deviation, critical, config.groups, config.muted)

    if not ours or not theirs:
        if config.nan_strategy == "replace":
            return result(PASS, f"no data for {config.name}, taken as zero")
        reason = f"no data for {config.name}"
        if config.must_have_data and not config.critical:
            return result(NODATA_FAIL, reason)
        return result(NODATA, reason, config.critical)
    if sorted(ours) == sorted(theirs):
        return result(PASS, f"canary and baseline of {config.name} are identical")
    lower, upper, estimate = shift_interval(theirs, ours, confidence)
    ratio = mean_ratio(ours, theirs)
    effect: float | None = cles(ours, theirs) if config.measure == CLES else ratio
    default = 0.5 if config.measure == CLES else 1.0
    bound = share * abs(estimate)

    def reaches(limit: float | None, up: bool) -> bool:
        if effect is None:  # an effect that cannot be computed stops nothing
            return True
        return effect >= _limit(limit, default) if up else effect <= _limit(limit, default)

    classification = PASS
    if config.direction != "decrease" and lower > bound and reaches(config.allowed_increase, True):
        classification = HIGH
    elif config.direction != "increase" and upper < -bound and reaches(config.allowed_decrease, False):
        classification = LOW
    critical = config.critical and (
        (classification == HIGH and reaches(config.critical_increase, True))
        or (classification == LOW and reaches(config.critical_decrease, False))
    )
    verdict = "passes" if classification == PASS else f"is {classification}{' (critical)' if critical else ''}"
    reason = (
        f"{config.name} {verdict}: canary minus baseline {estimate:.6g}, "
        f"{confidence:.0%} between {lower:.6g} and {upper:.6g}"
    )
    return MetricResult(
        config.name,
        classification,
        reason,
        math.nan if ratio is None else ratio,
        critical,
        config.groups,
        config.muted,
        effect,
        estimate,
        lower,
        upper,
    )


def shift_interval(
    experiment: Sequence[float], control: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """(lower, upper, estimate) of the shift as Kayenta computes it: always the normal approximation, exact ends."""
    test = wilcox(experiment, control, confidence, exact=False)
    return test.lower, test.upper, test.estimate


def _group_scores(results: Sequence[MetricResult]) -> dict[str, float | None]:
    labels: dict[str, list[str]] = {}
    for one in results:
        for group in one.groups:
            labels.setdefault(group, []).append(one.classification)
    scores: dict[str, float | None] = {}
    for group, found in labels.items():
        judged = [label for label in found if label != NODATA]
        scores[group] = 100.0 * judged.count(PASS) / len(judged) if judged else None
    return scores


def judge(
    results: Sequence[MetricResult],
    weights: Mapping[str, float] | None = None,
    pass_score: float = 95.0,
    marginal_score: float = 75.0,
) -> Judgement:
    """The score of a canary: each group's share of metrics that pass, weighted; then Pass, Marginal or Fail.

    `weights` (percent): groups without one share what is left of 100 equally; a group whose metrics all have no data
    counts as 100. A critical metric that does not pass, or no data in half the metrics or more, makes the score 0.
    Muted metrics do not count. Raises StatisticsError for no metrics, negative weights, weights above 100 in all,
    thresholds that are not 0 <= marginal <= pass <= 100.
    """
    limits = finite("pass_score", pass_score), finite("marginal_score", marginal_score)
    if not 0 <= limits[1] <= limits[0] <= 100:
        raise StatisticsError(f"scores must be 0 <= marginal <= pass <= 100, got {marginal_score!r}, {pass_score!r}")
    given = {group: count(f"the weight of group {group}", weight) for group, weight in (weights or {}).items()}
    if math.fsum(given.values()) > 100 + 1e-9:
        raise StatisticsError(
            f"the weights of the groups must not exceed 100 in all, got {math.fsum(given.values()):g}"
        )
    counted = [one for one in results if not one.muted]
    if not counted:
        raise StatisticsError("there is no metric to judge")
    scores = _group_scores(counted)
    shown = {group: 0.0 if score is None else score for group, score in scores.items()}
    failures = [one for one in counted if one.critical and one.classification != PASS]
    missing = 100.0 * sum(one.classification == NODATA for one in counted) / len(counted)
    if failures:
        return Judgement(0.0, _label(0.0, limits), f"critical metric: {failures[0].reason}", shown, tuple(results))
    if missing >= NODATA_PERCENT:
        reason = f"{missing:.0f} % of the metrics have no data, fewer than {NODATA_PERCENT:.0f} % may"
        return Judgement(0.0, _label(0.0, limits), reason, shown, tuple(results))
    others = [group for group in scores if group not in given]
    left = (100 - math.fsum(given.values())) / len(others) if others else 0.0
    total = math.fsum(
        (100.0 if score is None else score) * given.get(group, left) / 100 for group, score in scores.items()
    )
    score = float(Decimal(repr(total)).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))
    label = _label(score, limits)
    bad = [one.name for one in counted if one.classification in (HIGH, LOW, NODATA_FAIL)]
    reason = f"score {score:g}, {limits[0]:g} passes" + (f"; not passing: {', '.join(bad)}" if bad else "")
    return Judgement(score, label, reason, shown, tuple(results))


def _label(score: float, limits: tuple[float, float]) -> str:
    return PASS if score >= limits[0] else MARGINAL if score >= limits[1] else FAIL
