# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Kayenta-compatible judge: classes, scores, and where it is told to differ."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.statistics import kayenta
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import StatisticsError
from ansible_collections.causeway.platform.plugins.module_utils.statistics.kayenta import MetricConfig, MetricResult

LOW_VALUES = [1.0, 2.0, 3.0, 4.0]
HIGH_VALUES = [10.0, 20.0, 30.0, 40.0]


def noise(seed: int, n: int, scale: float = 1.0) -> list[float]:
    rng = random.Random(seed)
    return [scale * rng.gauss(10, 1) for _number in range(n)]


@pytest.mark.parametrize(
    ("direction", "control", "experiment", "expected"),
    [
        ("either", LOW_VALUES, HIGH_VALUES, "High"),
        ("increase", LOW_VALUES, HIGH_VALUES, "High"),
        ("decrease", LOW_VALUES, HIGH_VALUES, "Pass"),
        ("either", HIGH_VALUES, LOW_VALUES, "Low"),
        ("decrease", HIGH_VALUES, LOW_VALUES, "Low"),
        ("increase", HIGH_VALUES, LOW_VALUES, "Pass"),
        ("either", LOW_VALUES, LOW_VALUES[::-1], "Pass"),
        ("either", noise(1, 60), noise(2, 60), "Pass"),
        ("either", [0.0] * 5, [0.0] * 7, "Pass"),
    ],
)
def test_classes(direction: str, control: list[float], experiment: list[float], expected: str) -> None:
    found = kayenta.classify_metric(MetricConfig("m", direction=direction), control, experiment)
    assert found.classification == expected
    assert "m" in found.reason and not found.critical


def test_the_tolerance_is_a_part_of_the_estimate() -> None:
    """High needs lower > tolerance * |estimate|: 6 of 22.5 is above a quarter, not above 0.3."""
    config = MetricConfig("m")
    assert kayenta.classify_metric(config, LOW_VALUES, HIGH_VALUES, 0.26).classification == "High"
    assert kayenta.classify_metric(config, LOW_VALUES, HIGH_VALUES, 0.27).classification == "Pass"


def test_no_data() -> None:
    gaps = [None, math.nan]
    assert kayenta.classify_metric(MetricConfig("m"), gaps, [1.0]).classification == "Nodata"
    critical = kayenta.classify_metric(MetricConfig("m", critical=True), [1.0], [])
    assert critical.classification == "Nodata" and critical.critical
    required = kayenta.classify_metric(MetricConfig("m", must_have_data=True), [1.0], [])
    assert required.classification == "NodataFailMetric" and not required.critical
    replaced = MetricConfig("m", nan_strategy="replace", critical=True)
    assert kayenta.classify_metric(replaced, [1.0], []).classification == "Pass"
    filled = kayenta.classify_metric(replaced, [None] * 6, [5.0] * 6)
    assert filled.classification == "High"


def test_effect_sizes() -> None:
    control, experiment = noise(1, 60), [1.2 * x for x in noise(2, 60)]
    assert kayenta.classify_metric(MetricConfig("m"), control, experiment).classification == "High"
    allowed = MetricConfig("m", allowed_increase=1.4)
    assert kayenta.classify_metric(allowed, control, experiment).classification == "Pass"
    cles = MetricConfig("m", measure="cles", allowed_increase=0.99)
    assert kayenta.classify_metric(cles, control, experiment).classification == "Pass"
    assert kayenta.classify_metric(replace(cles, allowed_increase=0.6), control, experiment).classification == "High"
    # Stable at zero: there is no ratio, so the ratio stops nothing.
    assert kayenta.classify_metric(allowed, [0.0] * 10, experiment[:10]).classification == "High"
    critical = MetricConfig("m", critical=True, critical_increase=1.5)
    found = kayenta.classify_metric(critical, control, experiment)
    assert found.classification == "High" and not found.critical
    found = kayenta.classify_metric(replace(critical, critical_increase=1.05), control, experiment)
    assert found.classification == "High" and found.critical


def test_effect_measures() -> None:
    assert kayenta.mean_ratio([1, 3], [4, 4]) == 2
    assert kayenta.mean_ratio([0, 0], [4, 4]) is None
    assert kayenta.mean_ratio([-2, -2], [-1, -1]) is None
    assert kayenta.cles([1, 2, 3], [2, 3, 4]) == pytest.approx(7 / 9)
    assert kayenta.cles([1, 1], [1, 1]) == 0.5


def test_outliers() -> None:
    values = [float(i) for i in range(100)] + [1e6, 2e6, 3e6]
    assert kayenta.without_outliers(values, 3.0)[-1] < 3e6
    assert kayenta.without_outliers(LOW_VALUES, 3.0) == LOW_VALUES
    assert kayenta.without_outliers([], 3.0) == []
    spiky = noise(3, 60) + [500.0]
    config = MetricConfig("m", outliers="remove")
    assert kayenta.classify_metric(config, noise(4, 60), spiky).classification == "Pass"


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e-3, 1e3, 1e9])
def test_scale_changes_no_verdict(factor: float) -> None:
    for seed in range(12):
        control, experiment = noise(seed, 40), noise(seed + 100, 40, 1 + 0.01 * seed)
        plain = kayenta.classify_metric(MetricConfig("m"), control, experiment)
        scaled = kayenta.classify_metric(
            MetricConfig("m"), [factor * x for x in control], [factor * x for x in experiment]
        )
        assert scaled.classification == plain.classification
        assert scaled.lower == pytest.approx(factor * (plain.lower or 0))


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0])
def test_constants_need_no_noise(value: float) -> None:
    found = kayenta.classify_metric(MetricConfig("m"), [value] * 10, [value + 1] * 10)
    assert (found.classification, found.lower, found.upper) == ("High", 1, 1)


def result(name: str, label: str, *groups: str, critical: bool = False, muted: bool = False) -> MetricResult:
    return MetricResult(name, label, f"{name} is {label}", 1.0, critical, groups, muted)


def test_groups_and_weights() -> None:
    results = [
        result("a", "Pass", "errors"),
        result("b", "High", "errors"),
        result("c", "Pass", "latency"),
        result("d", "Pass", "rest"),
        result("e", "Low", "rest"),
        result("f", "Nodata", "rest"),
        result("g", "NodataFailMetric", "rest"),
    ]
    found = kayenta.judge(results, {"errors": 50.0})
    # errors 50 of 100 at weight 50, latency 100 and rest 1 of 3 at 25 each.
    assert found.score == 58.33
    assert found.groups == pytest.approx({"errors": 50, "latency": 100, "rest": 100 / 3})
    assert found.classification == "Fail"
    assert "b" in found.reason and "e" in found.reason and "g" in found.reason
    assert kayenta.judge(results, {"errors": 50.0}, 58.33, 50).classification == "Pass"
    assert kayenta.judge(results, {"errors": 50.0}, 90, 50).classification == "Marginal"


def test_groups_without_data_count_as_passed() -> None:
    results = [result("a", "Pass", "x"), result("b", "Pass", "x"), result("c", "Nodata", "y")]
    found = kayenta.judge(results, {"x": 40.0, "y": 60.0})
    assert (found.score, found.classification) == (100, "Pass")


def test_critical_metric_and_too_little_data() -> None:
    results = [result("a", "Pass", "x") for _number in range(9)] + [result("b", "High", "x", critical=True)]
    found = kayenta.judge(results)
    assert (found.score, found.classification) == (0, "Fail") and "b is High" in found.reason
    half = [result("a", "Pass", "x"), result("b", "Nodata", "x")]
    assert kayenta.judge(half).score == 0
    assert kayenta.judge([*half, result("c", "Pass", "x")]).score == 100


def test_muted_metrics_do_not_count() -> None:
    results = [result("a", "Pass", "x"), result("b", "High", "x", critical=True, muted=True)]
    found = kayenta.judge(results)
    assert found.classification == "Pass" and len(found.metrics) == 2


def test_bad_settings_are_refused() -> None:
    good = [result("a", "Pass", "x")]
    with pytest.raises(StatisticsError, match="no metric"):
        kayenta.judge([])
    with pytest.raises(StatisticsError, match="exceed 100"):
        kayenta.judge(good, {"x": 80.0, "y": 30.0})
    with pytest.raises(StatisticsError, match="negative"):
        kayenta.judge(good, {"x": -1.0})
    with pytest.raises(StatisticsError, match="marginal"):
        kayenta.judge(good, None, 50, 75)
    with pytest.raises(StatisticsError, match="direction of metric m"):
        kayenta.classify_metric(MetricConfig("m", direction="up"), [1.0], [2.0])
    with pytest.raises(StatisticsError, match="finite"):
        kayenta.classify_metric(MetricConfig("m"), [1.0], [math.inf])
