# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict by method kayenta: one value per interval and pool, a score at the end of a step (docs/judge.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.statistics import kayenta
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import StatisticsError

from .client import AnalysisError, Unseen
from .judge import (
    FAIL,
    INCONCLUSIVE,
    INSUFFICIENT,
    PASS,
    Judge,
    Metric,
    View,
    _number,
    _result,
    expand,
    quantile_of,
)
from .samples import Step, tally

MIN_VALUES = 5  # with fewer on a side the Mann-Whitney test cannot differ at 98 %, whatever they are
UNITS = {"errors": "ratio", "latency": "seconds"}


def parse_scores(analysis: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    """`groups`, `pass_score` and `marginal_score` of a Request. Raises AnalysisError."""
    try:
        groups = {str(name): float(weight) for name, weight in dict(analysis.get("groups") or {}).items()}
        limits = dict(analysis.get("thresholds") or {})
        good, marginal = float(limits.get("pass", 95.0)), float(limits.get("marginal", 75.0))
    except (TypeError, ValueError):
        raise AnalysisError("analysis: the weights of groups and both thresholds are numbers") from None
    used = {metric.group for metric in metrics}
    total = math.fsum(groups.values())
    for name in sorted(set(groups) - used):
        raise AnalysisError(f"analysis.groups: no metric is in group {name!r}; allowed: {', '.join(sorted(used))}")
    if not all(0 <= weight <= 100 for weight in groups.values()) or total > 100 + 1e-9:
        raise AnalysisError("analysis.groups: weights are 0 to 100, and at most 100 in all")
    if groups and (used == set(groups)) != (total > 100 - 1e-9):
        raise AnalysisError(
            f"analysis.groups: the weights are {total:g} in all; allowed: 100 if every group has one, else less"
        )
    if not 0 <= marginal <= good <= 100:
        raise AnalysisError("analysis.thresholds: allowed is 0 <= marginal <= pass <= 100")
    return {"groups": tuple(sorted(groups.items())), "pass_score": good, "marginal_score": marginal}


def ticks(some: Iterable[Step], start: float, width: float, number: int, *, mirrored: bool = False) -> list[list[Step]]:
    """Steps sorted into `number` intervals from `start` on, or backwards from it; by their end, or by their beginning.

    A scrape that ends exactly on an edge belongs to the interval that it closes.
    """
    found: list[list[Step]] = [[] for _number in range(number)]
    for step in some:
        distance = start - step.start if mirrored else step.end - start
        place = math.ceil(distance / width - 1e-9) - 1
        if 0 <= place < number:
            found[place].append(step)
    return found


def _ratio(some: Iterable[Step], pool: str) -> float | None:
    one = tally(some, pool)
    return one.errors / one.requests if one.requests else None


class ScoreJudge(Judge):
    """Judges the last step alone: its values were not looked at when the step before was judged."""

    def _judge(self, seen: View) -> dict[str, Any]:
        request = self.request
        start, width = seen.phases[-1][0], max(request.interval, 2 * request.scrape_interval)
        # The controller notes a weight before the proxies have it and looks when the last interval is just over.
        number = math.floor((seen.now - start) / width + 0.1)
        theirs = seen.before.candidate if seen.switched else seen.current
        mine = seen.before.stable if seen.switched else seen.current
        parts = (
            ticks(mine, start, width, number, mirrored=seen.switched),
            ticks(theirs, start, width, number),
        )
        requests = (
            sum(tally(some, request.stable).requests for some in parts[0]),
            sum(tally(some, request.candidate).requests for some in parts[1]),
        )
        results, found, broken = [], [], []
        for metric in request.metrics:
            result = _result(metric, INSUFFICIENT, "", UNITS.get(metric.kind, "query"), requests)
            try:
                values = self._series(metric, seen, parts, width)
                one = self._one(metric, values, requests, result)
                over = self._over(metric, result["candidate"], requests[1])
                if over:
                    result.update(verdict=FAIL, reason=f"{metric.name}: {over}")
                    broken.append(result["reason"])
            except AnalysisError as error:
                raise AnalysisError(f"metric {metric.name}: {error}") from error
            except (Unseen, StatisticsError) as error:
                result["reason"] = f"{metric.name}: {error}"
                one = kayenta.classify_metric(_config(metric), [], [])
            results.append(result)
            found.append(one)
        return self._scored(results, found, broken)

    def _series(
        self, metric: Metric, seen: View, parts: tuple[list[list[Step]], list[list[Step]]], width: float
    ) -> tuple[list[float | None], list[float | None]]:
        """The values of both pools, one for each interval."""
        request, start, number = self.request, seen.phases[-1][0], len(parts[1])
        pools = (request.stable, request.candidate)
        if metric.kind == "errors":
            first, second = ([_ratio(some, pool) for some in listed] for listed, pool in zip(parts, pools))
            return first, second
        if metric.kind == "latency":
            first, second = (
                [quantile_of(some, pool, metric.quantile) for some in listed] for listed, pool in zip(parts, pools)
            )
            return first, second
        result: list[list[float | None]] = []
        for pool in pools:
            # A value at the end of an interval; of the time before a switch, at the ends of the mirrored ones.
            places = range(1, number + 1) if pool == request.candidate or not seen.switched else range(1 - number, 1)
            if not number:
                return [], []
            low, high = start + places[0] * width, start + places[-1] * width
            values: dict[int, float] = {}
            # The old version before a switch is the baseline too, where stable had no traffic any more.
            for one in (pool,) if pool == request.candidate else dict.fromkeys((request.baseline or pool, pool)):
                query = expand(metric.query, request.service, one, width)
                found = self._values(query, low, high, width)
                values.update((round((t - start) / width), v) for t, v in found.items())
            result.append([values.get(place) for place in places])
        return result[0], result[1]

    def _one(
        self,
        metric: Metric,
        values: tuple[list[float | None], list[float | None]],
        requests: tuple[float, float],
        result: dict[str, Any],
    ) -> kayenta.MetricResult:
        """Classify one metric and fill its `result`."""
        request = self.request
        mine, theirs = ([value for value in side if value is not None] for side in values)
        if mine:
            result["stable"] = _number(math.fsum(mine) / len(mine))
        if theirs:
            result["candidate"] = _number(math.fsum(theirs) / len(theirs))
        least = request.min_requests
        lacking = ""
        if min(len(mine), len(theirs)) < MIN_VALUES:
            lacking = (
                f"{len(mine)} intervals with a value for {request.stable} and {len(theirs)} for {request.candidate}, "
                f"{MIN_VALUES} each are needed"
            )
        elif min(requests) < least:
            lacking = (
                f"{request.stable} had {requests[0]:,.0f} requests in this step and {request.candidate} had "
                f"{requests[1]:,.0f}, {least} each are needed"
            )
        if lacking:
            result["reason"] = f"{metric.name}: {lacking}"
            return kayenta.classify_metric(_config(metric), [], [])
        one = kayenta.classify_metric(_config(metric), mine, theirs)
        base = abs(result["stable"])
        for key, shift in (("difference", one.estimate), ("lower", one.lower), ("upper", one.upper)):
            result[key] = _number(shift / base) if base and shift is not None else None
        good = one.classification == kayenta.PASS
        result["verdict"] = PASS if good else FAIL if request.final else INCONCLUSIVE
        changed = "" if one.effect is None or good else f", {one.effect:.3g} times {request.stable}"
        result["reason"] = f"{one.reason}{changed}"
        return one

    def _over(self, metric: Metric, value: float | None, requests: float) -> str:
        """How the mean of the candidate's values breaks the hard limit; empty where it does not."""
        if metric.limit is None or value is None or requests < self.request.min_requests:
            return ""
        beyond = value > metric.limit if metric.worse == "higher" else value < metric.limit
        return f"{value:.4g} is beyond the limit of {metric.limit:g}" if beyond else ""

    def _scored(
        self, results: list[dict[str, Any]], found: list[kayenta.MetricResult], broken: list[str]
    ) -> dict[str, Any]:
        request = self.request
        scored = kayenta.judge(found, dict(request.groups), request.pass_score, request.marginal_score)
        blind = [one for one in found if one.classification == kayenta.NODATA]
        silent = sorted(
            group
            for group in {metric.group for metric in request.metrics}
            if all(one.classification == kayenta.NODATA for one in found if group in one.groups)
        )
        shown = {
            "groups": {group: _number(score) for group, score in scored.groups.items() if group not in silent},
            "metrics": results,
        }
        if broken:
            return {"verdict": FAIL, "reason": "; ".join(broken), "score": 0.0, **shown}
        critical = [one.name for one in blind if one.critical]
        if critical or silent or 2 * len(blind) >= len(found):
            reasons = [one["reason"] for one in results if one["verdict"] == INSUFFICIENT]
            return {"verdict": INSUFFICIENT, "reason": "; ".join(reasons), "score": None, **shown}
        verdict = {kayenta.PASS: PASS, kayenta.MARGINAL: INCONCLUSIVE, kayenta.FAIL: FAIL}[scored.classification]
        reason = scored.reason
        if scored.classification == kayenta.MARGINAL:
            reason = f"{reason}, below {request.marginal_score:g} fails"
        if not request.final:
            verdict, reason = INCONCLUSIVE, f"only shown, judged at the end of the step: {reason}"
        return {"verdict": verdict, "reason": reason, "score": _number(scored.score), **shown}


def _config(metric: Metric) -> kayenta.MetricConfig:
    return kayenta.MetricConfig(
        metric.name,
        (metric.group,),
        direction="increase" if metric.worse == "higher" else "decrease",
        critical=metric.critical,
        allowed_increase=metric.allowed_increase,
        allowed_decrease=metric.allowed_decrease,
    )
