# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on a candidate: docs/judge.md has its tables, docs/design.md section 8 the shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.statistics.alpha import split_alpha
from ansible_collections.causeway.platform.plugins.module_utils.statistics.common import Comparison, StatisticsError
from ansible_collections.causeway.platform.plugins.module_utils.statistics.counts import compare_errors, interval
from ansible_collections.causeway.platform.plugins.module_utils.statistics.means import compare_paired
from ansible_collections.causeway.platform.plugins.module_utils.statistics.quantiles import (
    Histogram,
    compare_quantile,
    histogram,
    quantile_estimate,
)

from .client import AnalysisError, Prometheus, Unseen
from .instances import Instance, bins, by_side, horizon
from .samples import Notes, Step, Tally, matrix, steps, tally

if TYPE_CHECKING:
    from typing import TypeAlias

PASS, FAIL, INCONCLUSIVE, INSUFFICIENT = "pass", "fail", "inconclusive", "insufficient_data"
KINDS = ("errors", "latency", "saturation", "business")
METHODS = ("sequential", "kayenta")
MIN_PAIRS = 3
SKEW = 1.0  # seconds that are the network's, not the clocks'
HISTORY = 3600.0  # seconds before the switch that tell how much stable moves by itself
SPAN = 300.0  # seconds that one look at this history is long at most
MIN_SPANS = 3
ANYTHING = 1e6  # a margin that nothing exceeds
UNSEEN = "; too little was seen before the switch to judge by"


@dataclass(frozen=True)
class Metric:
    """One metric of `release.analysis.metrics`."""

    name: str
    kind: str
    query: str = ""
    worse: str = "higher"
    margin: float = 0.0
    quantile: float = 0.99
    limit: float | None = None
    group: str = ""  # this and what follows is for method kayenta
    critical: bool = False
    allowed_increase: float = 1.0
    allowed_decrease: float = 1.0


@dataclass(frozen=True)
class Request:
    """What is to be judged. Times are epoch seconds of the caller's clock; `until` None is now."""

    service: str
    since: float
    metrics: tuple[Metric, ...]
    candidate: str = "candidate"
    stable: str = "stable"
    baseline: str = ""  # pool of fresh instances of the old version, where there is one
    weights: tuple[tuple[float, float], ...] = ()
    until: float | None = None
    step: int = 0
    weight: float = 0.0
    interval: float = 30.0
    alpha: float = 0.05
    min_requests: int = 100
    max_age: float = 60.0
    max_skew: float = 60.0
    scrape_interval: float = 15.0
    method: str = METHODS[0]
    groups: tuple[tuple[str, float], ...] = ()
    pass_score: float = 95.0
    marginal_score: float = 75.0
    final: bool = True
    instances: tuple[Instance, ...] = ()  # two groups of these are compared instead of two pools


def parse_time(value: Any, where: str) -> float:
    """Epoch seconds from a number or an RFC 3339 text. Raises AnalysisError."""
    try:
        number = float(value)
        if math.isfinite(number):
            return number
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise AnalysisError(f"{where}: {value!r} is neither epoch seconds nor an RFC 3339 time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def parse_metric(data: Mapping[str, Any], where: str) -> Metric:
    """A metric with its defaults. Raises AnalysisError."""
    kind = str(data.get("kind") or "")
    if kind not in KINDS:
        raise AnalysisError(f"{where}.kind: {kind!r} is unknown; allowed: {', '.join(KINDS)}")
    query = str(data.get("query") or "").strip()
    if (kind in KINDS[2:]) != bool(query):
        raise AnalysisError(f"{where}.query: needed for saturation and business metrics, and only for them")
    worse = data.get("worse") or ("lower" if kind == "business" else "higher")
    if worse not in ("higher", "lower") or (worse == "lower" and kind in KINDS[:2]):
        raise AnalysisError(
            f"{where}.worse: {worse!r} is not allowed for {kind}; allowed: higher, for queries also lower"
        )
    try:
        margin = float(data["margin"]) if data.get("margin") is not None else 0.2 if kind == "latency" else 0.0
        quantile = float(data.get("quantile") or 0.99)
        limit = None if data.get("limit") is None else float(data["limit"])
        effect = dict(data.get("effect") or {})
        increase = float(effect.get("allowed_increase", 1 + margin))
        decrease = float(effect.get("allowed_decrease", max(1 - margin, 0.0)))
    except (TypeError, ValueError):
        raise AnalysisError(f"{where}: margin, quantile, limit and the ratios of effect are numbers") from None
    if not (math.isfinite(margin) and margin >= 0 and 0 < quantile < 1 and (limit is None or math.isfinite(limit))):
        raise AnalysisError(f"{where}: margin is at least 0, quantile between 0 and 1, limit a finite number")
    if not (1 <= increase < math.inf and 0 <= decrease <= 1):
        raise AnalysisError(f"{where}.effect: allowed_increase is at least 1, allowed_decrease is 0 to 1")
    critical = data.get("critical") or False
    if not isinstance(critical, bool):
        raise AnalysisError(f"{where}.critical: {critical!r} is not allowed; allowed: true, false")
    name, group = str(data.get("name") or kind), str(data.get("group") or kind)
    return Metric(name, kind, query, worse, margin, quantile, limit, group, critical, increase, decrease)


@dataclass
class Part:
    """One comparison: both pools at the same time, or the candidate after the switch with stable before it."""

    stable: list[Step] = field(default_factory=list)
    candidate: list[Step] = field(default_factory=list)
    pairs: list[tuple[list[Step], list[Step]]] = field(default_factory=list)


@dataclass
class View:
    """All that was seen, in Prometheus' time."""

    now: float
    since: float
    phases: list[tuple[float, float]]  # (start, weight of the candidate), rising
    together: Part
    before: Part
    current: list[Step]
    history: list[Step] = field(default_factory=list)  # of the last hour before the switch

    @property
    def switched(self) -> bool:
        """Whether the candidate has all traffic now."""
        return self.phases[-1][1] >= 100


def with_sides(request: Request, all_steps: Sequence[Step], old: Sequence[str]) -> list[Step]:
    """The steps with what these pools did together as `request.stable`."""
    found = []
    for step in all_steps:
        counts = {key: n for key, n in step.counts.items() if key[0] == request.candidate}
        for (pool, name), n in step.counts.items():
            if pool in old:
                counts[request.stable, name] = counts.get((request.stable, name), 0.0) + n
        found.append(replace(step, counts=counts))
    return found


def view(
    request: Request, all_steps: Sequence[Step], since: float, until: float, phases: list[tuple[float, float]]
) -> View:
    """Sort steps into the comparison of the same time and the one with the time before the switch.

    With a baseline the first is with that alone. Before the switch all of the old version counts: stable may have had
    no traffic any more.
    """
    past = beside = all_steps
    if request.baseline:
        beside = with_sides(request, all_steps, (request.baseline,))
        past = with_sides(request, all_steps, (request.stable, request.baseline))
    inside = [s for s in beside if s.start >= since - 0.5 and s.end <= until + 0.5]
    start, weight = phases[-1]
    current = [s for s in inside if s.start >= start - 0.5]
    together, before = Part(), Part()
    history: list[Step] = []
    shared = [s for s in inside if weight < 100 or s.end <= start]
    if phases[0][1] < 100:
        together.stable = together.candidate = shared
        together.pairs = [([s], [s]) for s in shared]
    if weight >= 100:
        history = [s for s in past if start - HISTORY <= s.start and s.end <= start]
        # Nobody is left to compare with at the same time: pair the time since the switch with its mirror image.
        width, number = 2 * request.scrape_interval, 0
        while start + (number + 1) * width <= until + 0.5:
            low, high = start + number * width, start - (number + 1) * width
            after = [s for s in current if low <= s.end < low + width]
            mirror = [s for s in past if high <= s.end < high + width and s.end <= start]
            before.candidate += after
            before.stable += mirror
            before.pairs.append((mirror, after))
            number += 1
    return View(until, since, phases, together, before, current, history)


def group_view(
    request: Request, all_steps: Sequence[Step], since: float, until: float, phases: list[tuple[float, float]]
) -> View:
    """Two groups of instances side by side. Nothing is compared with the time before: old instances are there, or the
    release is not judged any more.
    """
    end = horizon(all_steps, until, 3 * request.scrape_interval)
    inside = [s for s in all_steps if s.start >= since - 0.5 and s.end <= end + 0.5]
    pairs = [(some, some) for some in bins(inside, since, 2 * request.scrape_interval)]
    below = [(at, min(weight, 99.0)) for at, weight in phases]
    return View(until, since, below, Part(inside, inside, pairs), Part(), inside)


def _thinned(request: Request, seen: View, part: Part) -> tuple[Histogram, Histogram] | None:
    """Histograms of both pools with the same mixture of times.

    Within a step of the canary the share is constant; over several steps the candidate's requests are the later
    ones. So stable's requests of each step are thinned to the same ratio: fewer than there are, which is conservative.
    """
    edges = [*(start for start, _weight in seen.phases), math.inf]
    found = []
    for low, high in zip(edges, edges[1:]):
        mine = [s for s in part.stable if part is seen.before or low <= s.end < high]
        theirs = [s for s in part.candidate if low <= s.end < high]
        a, b = tally(mine, request.stable), tally(theirs, request.candidate)
        if a.buckets.get(math.inf) and b.buckets.get(math.inf):
            found.append((a, b, b.buckets[math.inf] / a.buckets[math.inf]))
    if not found:
        return None
    best = max(ratio for _a, _b, ratio in found)
    bounds = sorted(set.intersection(*({*a.buckets} | {*b.buckets} for a, b, _r in found)))
    totals: tuple[list[float], list[float]] = ([], [])
    for bound in bounds:
        totals[0].append(sum(_at(a, bound) * ratio / best for a, _b, ratio in found))
        totals[1].append(sum(_at(b, bound) for _a, b, _ratio in found))
    for counts in totals:
        for position in range(1, len(counts)):
            counts[position] = max(counts[position], counts[position - 1])
    return histogram(bounds, totals[0]), histogram(bounds, totals[1])


def _at(one: Tally, bound: float) -> float:
    """Requests at most `bound`; a bucket that did not grow is not in the tally, it is as large as the one below it."""
    return max((n for b, n in one.buckets.items() if b <= bound), default=0.0)


def quantile_of(some: Sequence[Step], pool: str, quantile: float) -> float | None:
    """A quantile (seconds) of what a pool answered in these steps; None without any."""
    buckets = tally(some, pool).buckets
    if not buckets.get(math.inf):
        return None
    bounds, counts, top = sorted(buckets), [], 0.0
    for bound in bounds:
        # Buckets of several proxies may be torn by a scrape that one of them missed.
        top = max(top, buckets[bound])
        counts.append(top)
    return quantile_estimate(histogram(bounds, counts), quantile)


def slowest_before(request: Request, seen: View, quantile: float) -> float | None:
    """The highest quantile (seconds) that stable had in any span of the last hour before the switch, each as long as
    the time since the switch; None when too few spans had traffic to say how much stable moves by itself.
    """
    start = seen.phases[-1][0]
    width = min(max(seen.now - start, 2 * request.scrape_interval), SPAN)
    spans: dict[int, list[Step]] = {}
    for step in seen.history:
        spans.setdefault(int((start - step.end) // width), []).append(step)
    found = [quantile_of(some, request.stable, quantile) for some in spans.values()]
    known = [one for one in found if one is not None]
    return max(known) if len(known) >= MIN_SPANS else None


def worst_before(history: Mapping[int, float], length: int, worse: str) -> float | None:
    """The worst mean of `length` successive values of a query up to number 0; None with fewer than three means."""
    means = []
    for last in range(0, min(history, default=0) - 1, -length):
        some = [history[k] for k in range(last - length + 1, last + 1) if k in history]
        if len(some) == length:
            means.append(math.fsum(some) / length)
    if len(means) < MIN_SPANS:
        return None
    return max(means) if worse == "higher" else min(means)


def _result(metric: Metric, verdict: str, reason: str, unit: str, counts: tuple[float, float]) -> dict[str, Any]:
    empty = dict.fromkeys(("stable", "candidate", "difference", "lower", "upper", "e_value"))
    return {
        "name": metric.name,
        "kind": metric.kind,
        "verdict": verdict,
        "reason": f"{metric.name}: {reason}",
        **empty,
        "unit": unit,
        "requests": {"stable": round(counts[0]), "candidate": round(counts[1])},
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.8g}")


def _decide(
    level: float, parts: Sequence[Comparison], expected: int, *, enough: str, over: str, facts: str
) -> tuple[str, str, float]:
    """Verdict, reason and evidence of one metric; `enough` says what lacks, `over` what breaks the limit."""
    # The mean of e-values is one, whatever their dependence; a comparison that has not begun is worth 1.
    values = [one.e_value if one.e_value is not None else 1.0 for one in parts]
    evidence = (math.fsum(values) + max(expected - len(values), 0)) / max(expected, len(values), 1)
    needed = 1 / level
    said = f"{facts}; evidence e = {evidence:.3g} where {needed:.4g} is enough"
    if parts and evidence >= needed:
        return FAIL, f"worse than stable, {said}", evidence
    if over:
        return FAIL, f"{over}; {facts}", evidence
    if enough:
        return INSUFFICIENT, enough, evidence
    if evidence >= math.sqrt(needed):
        return INCONCLUSIVE, f"it looks worse than stable but that is not certain yet, {said}", evidence
    return PASS, f"no sign that it is worse than stable, {said}", evidence


def _fill(
    result: dict[str, Any], verdict: str, reason: str, evidence: float, last: Comparison | None
) -> dict[str, Any]:
    result.update(verdict=verdict, reason=f"{result['name']}: {reason}", e_value=_number(evidence))
    if last is not None:
        for key in ("stable", "candidate", "difference", "lower", "upper"):
            result[key] = _number(getattr(last, key))
    return result


def _lacking(request: Request, seen: View, mine: float, theirs: float) -> str:
    """What lacks for a verdict without harm, in words; empty when there is enough."""
    least, now = request.min_requests, tally(seen.current, request.candidate).requests
    when = "before the switch" if seen.switched else "since the release began"
    if mine + theirs == 0:
        return f"no traffic at all since the release began: {least} requests on each side are needed"
    if mine < least:
        return f"{request.stable} had {mine:,.0f} requests {when}, {least} are needed"
    if theirs < least:
        return f"{request.candidate} had {theirs:,.0f} requests, {least} are needed"
    if now < max(1.0, least / 10):
        return f"{request.candidate} had {now:,.0f} requests since its last step, a tenth of {least} is needed"
    return ""


def _parts(seen: View) -> list[Part]:
    return [part for part, used in ((seen.together, seen.phases[0][1] < 100), (seen.before, seen.switched)) if used]


def _requests(request: Request, seen: View) -> tuple[Tally, Tally]:
    part = seen.before if seen.switched else seen.together
    return tally(part.stable, request.stable), tally(part.candidate, request.candidate)


def judge_errors(request: Request, metric: Metric, level: float, seen: View) -> dict[str, Any]:
    """Share of failed requests."""
    found = []
    for part in _parts(seen):
        rows = []
        for mine, theirs in part.pairs:
            a, b = tally(mine, request.stable), tally(theirs, request.candidate)
            row = interval(b.errors, b.requests, a.errors, a.requests)
            if row:
                rows.append(row)
        totals = tally(part.stable, request.stable).requests, tally(part.candidate, request.candidate).requests
        if rows:
            share = seen.phases[0][1] / 100 if part is seen.together and 0 < seen.phases[0][1] < 100 else 0.5
            if request.baseline:
                share = 0.5
            found.append(compare_errors(rows, level, metric.margin, reference=share, requests=totals))
    a, b = _requests(request, seen)
    facts = (
        f"{b.errors:,.0f} of {b.requests:,.0f} requests failed on {request.candidate}, "
        f"{a.errors:,.0f} of {a.requests:,.0f} on {request.stable}"
    )
    if a.errors and a.requests and b.requests:
        facts += f", {b.errors / b.requests / (a.errors / a.requests):.3g} times as often"
    over = ""
    for some in (seen.current, seen.together.candidate):
        own = tally(some, request.candidate)
        if (
            metric.limit is not None
            and own.requests >= request.min_requests
            and own.errors / own.requests > metric.limit
        ):
            over = f"{own.errors / own.requests:.3%} of requests failed, the limit is {metric.limit:.3%}"
            break
    lacking = _lacking(request, seen, a.requests, b.requests)
    verdict, reason, evidence = _decide(level, found, len(_parts(seen)), enough=lacking, over=over, facts=facts)
    result = _result(metric, verdict, reason, "ratio", (a.requests, b.requests))
    _fill(result, verdict, reason, evidence, found[-1] if found else None)
    result["stable"] = _number(a.errors / a.requests) if a.requests else None
    result["candidate"] = _number(b.errors / b.requests) if b.requests else None
    return result


def judge_latency(request: Request, metric: Metric, level: float, seen: View) -> dict[str, Any]:
    """A quantile of the latency of answered requests."""
    found, beside = [], ""
    for part in _parts(seen):
        both = _thinned(request, seen, part)
        if not both:
            continue
        margin = metric.margin
        if part is seen.before:
            # What else moves the latency is not known: only what is worse than stable's worst hour counts.
            mine_before, worst = (
                quantile_estimate(both[0], metric.quantile),
                slowest_before(request, seen, metric.quantile),
            )
            if worst is None or not mine_before:
                margin, beside = ANYTHING, UNSEEN
            else:
                margin = (1 + metric.margin) * max(1.0, worst / mine_before) - 1
                beside = f"; stable at its slowest within the hour before: {worst:.4g} s"
        found.append(compare_quantile(*both, metric.quantile, level, margin))
    a, b = _requests(request, seen)
    mine, theirs = a.buckets.get(math.inf, 0.0), b.buckets.get(math.inf, 0.0)
    last = found[-1] if found else None
    facts, over, name = "no latency was measured", "", f"p{metric.quantile * 100:g}"
    if last is not None and last.stable is not None and last.candidate is not None:
        facts = (
            f"{name} is {last.candidate:.4g} s on {request.candidate} and {last.stable:.4g} s on {request.stable}, "
            f"{metric.margin:.0%} more is tolerated"
        )
        if metric.limit is not None and theirs >= request.min_requests and last.candidate > metric.limit:
            over = f"{name} is over the limit of {metric.limit:g} s"
    facts += beside
    lacking = _lacking(request, seen, mine, theirs)
    verdict, reason, evidence = _decide(level, found, len(_parts(seen)), enough=lacking, over=over, facts=facts)
    return _fill(_result(metric, verdict, reason, "seconds", (mine, theirs)), verdict, reason, evidence, last)


def expand(query: str, service: str, pool: str, window: float) -> str:
    """The user's PromQL with $service, $pool and $window filled in."""
    for name, value in (("$service", service), ("$pool", pool), ("$window", f"{math.ceil(window)}s")):
        query = query.replace(name, value)
    return query


Ask: TypeAlias = "Callable[[str, float, float, float], Mapping[float, float]]"  # in quotes for Python 3.8


def _margin_beyond(metric: Metric, base: float, worst: float | None) -> float:
    """The margin relative to `base` (stable's mean) that lies `metric.margin` beyond stable's worst."""
    if metric.worse == "higher":
        if worst is None:
            return ANYTHING
        return (1 + metric.margin) * max(1.0, worst / base) - 1 if base > 0 else metric.margin
    if worst is None:
        return 1.0
    return 1 - (1 - metric.margin) * min(1.0, max(worst, 0.0) / base) if base > 0 else metric.margin


def judge_query(request: Request, metric: Metric, level: float, seen: View, ask: Ask) -> dict[str, Any]:
    """A user's PromQL, one pair of values per interval."""
    tick = max(request.interval, 2 * request.scrape_interval)
    start, weight = seen.phases[-1]
    values: dict[str, dict[float, float]] = {}
    low = min(seen.since, 2 * start - seen.now, start - HISTORY) if weight >= 100 else seen.since
    # The grid hangs on the last switch or on the beginning, so that a later look sees the same points again.
    anchor = start if weight >= 100 else seen.since
    first = anchor - math.floor((anchor - low) / tick) * tick
    for pool in dict.fromkeys((request.stable, request.candidate, request.baseline or request.stable)):
        found = ask(expand(metric.query, request.service, pool, tick), first, seen.now, tick)
        values[pool] = {round((t - anchor) / tick): v for t, v in found.items()}
    beside_us = values[request.baseline or request.stable]
    # The old version before the switch: stable, and the baseline where stable had no traffic any more.
    mine, theirs = {**beside_us, **values[request.stable]}, values[request.candidate]
    groups: list[list[tuple[float, float]]] = []
    begun = round((seen.since - anchor) / tick, 6)
    last_shared = 0 if weight >= 100 else math.inf
    if seen.phases[0][1] < 100:
        both = [k for k in sorted(beside_us) if k in theirs and begun + 1 <= k <= last_shared]
        groups.append([(beside_us[k], theirs[k]) for k in both])
    if weight >= 100:
        groups.append([(mine[1 - k], theirs[k]) for k in sorted(theirs) if k >= 1 and 1 - k in mine])
    parts, beside = [], ""
    for group in groups:
        margin = metric.margin
        if weight >= 100 and group and group is groups[-1]:
            base = math.fsum(pair[0] for pair in group) / len(group)
            length = max(1, min(len(group), round(SPAN / tick)))
            worst = worst_before({int(k): v for k, v in mine.items() if k <= 0}, length, metric.worse)
            margin = _margin_beyond(metric, base, worst)
            beside = UNSEEN
            if worst is not None:
                beside = f"; stable at its worst within the hour before: {worst:.4g}"
        if group:
            parts.append(compare_paired(group, level, metric.worse, margin))
    pairs = sum(len(group) for group in groups)
    a, b = _requests(request, seen)
    last = parts[-1] if parts else None
    facts = over = ""
    if last is not None and last.stable is not None and last.candidate is not None:
        facts = (
            f"{last.candidate:.4g} on {request.candidate} and {last.stable:.4g} on {request.stable} "
            f"over {pairs} intervals, {metric.worse} is worse, {metric.margin:.0%} is tolerated"
        )
        beyond = metric.limit is not None and (
            last.candidate > metric.limit if metric.worse == "higher" else last.candidate < metric.limit
        )
        if beyond and b.requests >= request.min_requests:
            over = f"beyond the limit of {metric.limit:g}"
    facts += beside
    lacking = ""
    if pairs < MIN_PAIRS:
        lacking = f"{pairs} intervals with a value for both pools, {MIN_PAIRS} are needed"
    elif groups[-1] == [] and weight >= 100:
        lacking = f"no value of {request.candidate} since the switch"
    verdict, reason, evidence = _decide(level, parts, len(groups), enough=lacking, over=over, facts=facts)
    result = _fill(_result(metric, verdict, reason, "query", (a.requests, b.requests)), verdict, reason, evidence, last)
    base = abs(last.stable) if last is not None and last.stable else 0.0
    for key in ("difference", "lower", "upper"):
        result[key] = _number(result[key] / base) if base and result[key] is not None else None
    return result


def overall(metrics: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The verdict of all metrics and its reason: the worst one rules."""
    for verdict in (FAIL, INSUFFICIENT, INCONCLUSIVE):
        found = [one["reason"] for one in metrics if one["verdict"] == verdict]
        if found:
            return verdict, "; ".join(found)
    return PASS, "; ".join(one["reason"] for one in metrics)


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Judge:
    """Asks one Prometheus and judges what it says. The caller's clock is `clock` (epoch seconds)."""

    def __init__(self, prometheus: Prometheus, request: Request, clock: Callable[[], float] = time.time) -> None:
        if not request.metrics:
            raise AnalysisError("analysis.metrics: at least one metric is needed")
        if len({metric.name for metric in request.metrics}) < len(request.metrics):
            raise AnalysisError("analysis.metrics: names must differ")
        self.prometheus, self.request, self.clock = prometheus, request, clock
        self.notes, self.skew = Notes(), 0.0
        self.age: float | None = None

    def run(self) -> dict[str, Any]:
        """`analysis` and `prometheus` of the module. Raises AnalysisError for a wrong question, for nothing else."""
        blind = ""
        now = self.clock()
        analysis: dict[str, Any] = {}
        try:
            now, seen = self._look()
            analysis = self._judge(seen)
        except (Unseen, StatisticsError) as error:
            blind = str(error)
            metrics = [_result(m, INSUFFICIENT, blind, "", (0, 0)) for m in self.request.metrics]
            analysis = {"verdict": INSUFFICIENT, "reason": blind, "metrics": metrics}
        head: dict[str, Any] = {"at": _stamp(now), "step": self.request.step, "weight": self.request.weight}
        if self.request.baseline:
            head["against"] = self.request.stable
        state = {
            "ok": not blind,
            "url": self.prometheus.url,
            "reason": blind,
            "failures": dict(self.prometheus.failures),
            "skew": round(self.skew, 3),
            "age": None if self.age is None else round(self.age, 3),
            "warnings": self.notes.words(),
        }
        return {"analysis": {**head, **analysis}, "prometheus": state}

    def _look(self) -> tuple[float, View]:
        request = self.request
        answer = self.prometheus.query("time()")
        try:
            theirs = float(answer.data["result"][1])
        except (KeyError, IndexError, TypeError, ValueError):
            raise Unseen("Prometheus does not tell its time") from None
        middle = self.clock() - (answer.answered - answer.asked) / 2
        self.skew = theirs - middle
        if abs(self.skew) > request.max_skew:
            raise Unseen(
                f"Prometheus' clock differs from this host's by {self.skew:.1f} s, {request.max_skew:g} s are tolerated"
            )
        shift = self.skew if abs(self.skew) > SKEW else 0.0
        until = theirs if request.until is None else min(theirs, request.until + shift)
        since = request.since + shift
        if since > until:
            raise Unseen("the release begins in the future of Prometheus: nothing was seen of it yet")
        phases = [(max(at + shift, since), weight) for at, weight in sorted(request.weights) if at + shift <= until]
        phases = phases or [(since, request.weight)]
        groups = bool(request.instances)
        begin = since
        if phases[-1][1] >= 100 and not groups:
            begin = min(since, 2 * phases[-1][0] - until, phases[-1][0] - HISTORY)
        window = f"[{math.ceil(until - begin + 4 * request.scrape_interval + 60)}s]"
        if request.baseline and phases[-1][1] < 100:
            # Until the switch nothing but the baseline is compared, and named.
            request = self.request = replace(request, stable=request.baseline)
        pools = "|".join(one for one in dict.fromkeys((request.stable, request.candidate, request.baseline)) if one)
        selector = f'{{service="{request.service}",direction="outbound",pool=~"{pools}"}}{window}'
        names = ["envoy_cluster_upstream_rq_xx", "envoy_cluster_upstream_rq_retry_success"]
        if groups:
            # A sidecar passes each attempt on once: it retries nothing.
            selector, names = f'{{service="{request.service}",direction="inbound"}}{window}', names[:1]
        if any(metric.kind == "latency" for metric in request.metrics):
            names.append("envoy_cluster_upstream_rq_time_bucket")

        def series(expression: str) -> list[Any]:
            return matrix(self.prometheus.query(expression, until).data, until, self.notes)

        counters = [one for name in names for one in series(name + selector)]
        if not counters:
            raise Unseen(
                f"Prometheus has no series of service {request.service}: no traffic at all, or no proxy is scraped"
            )
        newest = max(one.samples[-1][0] for one in counters)
        self.age = until - newest
        if self.age > request.max_age:
            raise Unseen(f"the newest sample is {self.age:.0f} s old, {request.max_age:g} s are tolerated")
        found = steps(counters, series(f'up{{job="envoy"}}{window}'), self.notes, "slot" if groups else "pool")
        if groups:
            found = by_side(found, request.instances, request.stable, request.candidate, shift)
            return until, group_view(request, found, since, until, phases)
        return until, view(request, found, since, until, phases)

    def _judge(self, seen: View) -> dict[str, Any]:
        request = self.request
        levels = split_alpha(request.alpha, {metric.name: 1.0 for metric in request.metrics})
        results = []
        for metric in request.metrics:
            level = levels[metric.name]
            try:
                if metric.kind == "errors":
                    results.append(judge_errors(request, metric, level, seen))
                elif metric.kind == "latency":
                    results.append(judge_latency(request, metric, level, seen))
                else:
                    results.append(judge_query(request, metric, level, seen, self._values))
            except AnalysisError as error:
                raise AnalysisError(f"metric {metric.name}: {error}") from error
            except (Unseen, StatisticsError) as error:
                # One metric that cannot be seen does not hide the harm that another shows.
                results.append(_result(metric, INSUFFICIENT, str(error), "", (0, 0)))
        verdict, reason = overall(results)
        return {"verdict": verdict, "reason": reason, "metrics": results}

    def _values(self, expression: str, start: float, end: float, step: float) -> dict[float, float]:
        found = matrix(self.prometheus.query_range(expression, start, end, step).data, end, self.notes)
        if len(found) > 1:
            raise Unseen(f"the query yields {len(found)} series for one pool, one number is needed")
        return dict(found[0].samples) if found else {}
