# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several metrics, one error: splitting alpha and combining evidence. The standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import (
    StatisticsError,
    count,
    fraction,
    positive,
)


def split_alpha(alpha: float, weights: Mapping[str, float]) -> dict[str, float]:
    """Each metric's part of `alpha` in proportion to its weight (Bonferroni; any dependence between metrics).

    The parts sum to at most alpha. Raises StatisticsError for no metrics, weights of 0 or less, alpha outside (0, 1).
    """
    level = fraction("alpha", alpha)
    if not weights:
        raise StatisticsError("alpha cannot be split over no metrics")
    checked = {name: positive(f"the weight of {name}", weight) for name, weight in weights.items()}
    total = math.fsum(checked.values())
    return {name: level * weight / total for name, weight in checked.items()}


def _e_values(values: Mapping[str, float]) -> dict[str, float]:
    for name, value in values.items():
        if math.isnan(value) or value < 0:
            raise StatisticsError(f"the e-value of {name} must be a number of at least 0, got {value!r}")
    return dict(values)


def combine_e_values(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Weighted mean of e-values: an e-value for "no metric is worse", whatever their dependence.

    Vovk & Wang (2021), "E-values: calibration, combination and applications", arXiv 1912.06116, proposition 3.1.
    """
    checked = list(_e_values({str(i): value for i, value in enumerate(values)}).values())
    if not checked:
        raise StatisticsError("there are no e-values to combine")
    parts = [1.0] * len(checked) if weights is None else [count("weight", weight) for weight in weights]
    if len(parts) != len(checked) or math.fsum(parts) <= 0:
        raise StatisticsError("weights must be as many as the e-values and sum to more than 0")
    return math.fsum(part * value for part, value in zip(parts, checked) if part) / math.fsum(parts)


def e_holm(values: Mapping[str, float], alpha: float) -> list[str]:
    """Metrics that are rejected with family-wise error `alpha` by Holm's procedure on 1/e (Holm 1979), strongest first.

    More powerful than equal Bonferroni parts: reject the strongest at K/alpha, the next at (K-1)/alpha and so on.
    """
    level = fraction("alpha", alpha)
    checked = _e_values(values)
    rejected: list[str] = []
    for position, name in enumerate(sorted(checked, key=lambda key: (-checked[key], key))):
        if checked[name] * level < len(checked) - position:
            break
        rejected.append(name)
    return rejected


def e_bh(values: Mapping[str, float], alpha: float) -> list[str]:
    """Metrics rejected with false discovery rate `alpha` under any dependence, strongest first.

    e-BH: the largest k whose k-th largest e-value is at least K / (alpha k). Wang & Ramdas (2022), arXiv 2009.02824.
    """
    level = fraction("alpha", alpha)
    checked = _e_values(values)
    ordered = sorted(checked, key=lambda key: (-checked[key], key))
    best = 0
    for k, name in enumerate(ordered, start=1):
        if checked[name] * level * k >= len(ordered):
            best = k
    return ordered[:best]
