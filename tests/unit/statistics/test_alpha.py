# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Splitting alpha and combining evidence."""

from __future__ import annotations

import math
import random

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.statistics import alpha
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import StatisticsError


def test_split_by_weight() -> None:
    parts = alpha.split_alpha(0.05, {"errors": 2, "latency": 1, "orders": 1})
    assert parts == pytest.approx({"errors": 0.025, "latency": 0.0125, "orders": 0.0125})
    assert math.fsum(parts.values()) <= 0.05 * (1 + 1e-12)
    assert alpha.split_alpha(0.05, {"errors": 7}) == {"errors": 0.05}


def test_holm_goes_on_after_the_first() -> None:
    assert alpha.e_holm({"a": 60, "b": 41, "c": 20}, 0.05) == ["a", "b", "c"]
    assert alpha.e_holm({"a": 60, "b": 19, "c": 1e9}, 0.05) == ["c", "a"]
    assert alpha.e_holm({"a": 59, "b": 41}, 0.05) == ["a", "b"]
    assert alpha.e_holm({"a": 39, "b": 38}, 0.05) == []
    assert alpha.e_holm({"a": math.inf}, 0.05) == ["a"]
    assert alpha.e_holm({}, 0.05) == []


def test_e_bh() -> None:
    assert alpha.e_bh({"a": 30, "b": 31, "c": 0.1}, 0.05) == ["b", "a"]
    assert alpha.e_bh({"a": 30, "b": 0.2, "c": 0.1}, 0.05) == []
    assert alpha.e_bh({"a": 60, "b": 0.2, "c": 0.1}, 0.05) == ["a"]


def test_mean_of_e_values() -> None:
    assert alpha.combine_e_values([1, 5]) == 3
    assert alpha.combine_e_values([1, 5], [3, 1]) == 2
    assert alpha.combine_e_values([2, math.inf], [1, 0]) == 2
    rng = random.Random(1)
    # Likelihood ratios of a fair coin against 0.8: the mean of e-values that hang together is still an e-value.
    total = 0.0
    for _number in range(4000):
        x = rng.random() < 0.5
        total += alpha.combine_e_values([1.6 if x else 0.4, 0.4 if x else 1.6, 1.6 if x else 0.4])
    assert total / 4000 == pytest.approx(1, abs=0.02)


def test_bad_input_is_refused() -> None:
    with pytest.raises(StatisticsError, match="no metrics"):
        alpha.split_alpha(0.05, {})
    with pytest.raises(StatisticsError, match="weight of a"):
        alpha.split_alpha(0.05, {"a": 0})
    with pytest.raises(StatisticsError, match="alpha"):
        alpha.split_alpha(1.5, {"a": 1})
    with pytest.raises(StatisticsError, match="e-value of a"):
        alpha.e_holm({"a": float("nan")}, 0.05)
    with pytest.raises(StatisticsError, match="combine"):
        alpha.combine_e_values([])
    with pytest.raises(StatisticsError, match="weights"):
        alpha.combine_e_values([1, 2], [1])
