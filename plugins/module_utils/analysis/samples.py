# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From raw samples of counters to increments between scrapes, whatever Prometheus holds: resets, gaps, nonsense.

`rate()` and `increase()` are not used: they extrapolate, and they lose what a counter counted before its first scrape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .client import Unseen

# Names of counters within a pool: requests by class of status, requests saved by a retry, buckets of latency.
FAILED = "class:5"
RETRIED = "retried"
BUCKET = "le:"
FUTURE = 1.0  # seconds of rounding that are no sample from the future


@dataclass(frozen=True)
class Series:
    """One series: its labels and its samples (epoch seconds, value), in order of time."""

    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


@dataclass
class Notes:
    """What was wrong with the samples, counted."""

    not_numbers: int = 0
    future: int = 0
    duplicates: int = 0
    resets: int = 0
    impossible: int = 0

    def words(self) -> list[str]:
        """One sentence per kind of trouble."""
        said = (
            (self.not_numbers, "samples that are no number were dropped"),
            (self.future, "samples from the future were dropped"),
            (self.duplicates, "duplicate series were dropped"),
            (self.resets, "counters started again (a proxy was restarted)"),
            (self.impossible, "intervals were dropped because a counter fell without a restart"),
        )
        return [f"{count} {words}" for count, words in said if count]


@dataclass(frozen=True)
class Step:
    """What one proxy counted between two of its scrapes: increments by (pool, name)."""

    target: str
    start: float
    end: float
    counts: Mapping[tuple[str, str], float]


@dataclass
class Tally:
    """Requests of one pool: all, failed, and at most each bound (seconds)."""

    requests: float = 0.0
    errors: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)


def matrix(data: Mapping[str, Any], now: float, notes: Notes) -> list[Series]:
    """The series of an answer without NaN, infinite and future samples. Raises Unseen for another shape."""
    if data.get("resultType") != "matrix" or not isinstance(data.get("result"), list):
        raise Unseen(f"Prometheus answered with {data.get('resultType')!r}, not with a matrix")
    found = []
    for one in data["result"]:
        try:
            labels = {str(k): str(v) for k, v in one["metric"].items()}
            raw = sorted((float(t), float(v)) for t, v in one.get("values", ()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unseen(f"Prometheus answered with a series that cannot be read: {error}") from error
        kept: dict[float, float] = {}
        for t, v in raw:
            if not math.isfinite(v) or not math.isfinite(t):
                notes.not_numbers += 1
            elif t > now + FUTURE:
                notes.future += 1
            else:
                kept[t] = v
        if kept:
            found.append(Series(labels, tuple(kept.items())))
    return found


def target_of(labels: Mapping[str, str]) -> str:
    """The proxy that a series comes from. Jobs do not count: two that scrape one proxy see the same requests."""
    if labels.get("host") and labels.get("proxy"):
        return f"{labels['host']}/{labels['proxy']}"
    return labels.get("instance", "")


def name_of(labels: Mapping[str, str]) -> str:
    """The counter's name within its pool; empty for one that is not known."""
    metric = labels.get("__name__", "")
    if metric == "envoy_cluster_upstream_rq_xx":
        return f"class:{labels.get('envoy_response_code_class', '')}"
    if metric == "envoy_cluster_upstream_rq_retry_success":
        return RETRIED
    if metric == "envoy_cluster_upstream_rq_time_bucket":
        return BUCKET + labels.get("le", "")
    return ""


def _single(series: Sequence[Series], notes: Notes) -> dict[float, float]:
    """The samples of series that are one counter: parts that follow in time, of overlapping ones the longest."""
    chosen: list[Series] = []
    for one in sorted(series, key=lambda s: -len(s.samples)):
        first, last = one.samples[0][0], one.samples[-1][0]
        if all(last < other.samples[0][0] or first > other.samples[-1][0] for other in chosen):
            chosen.append(one)
        else:
            notes.duplicates += 1
    return {t: v for one in chosen for t, v in one.samples}


def _increment(before: float, after: float, notes: Notes) -> float | None:
    if after >= before:
        return after - before
    if after <= before / 2:
        notes.resets += 1
        return after  # as Prometheus does: it counted from zero again
    # A counter that falls a little was not restarted; what it counted meanwhile is unknown.
    notes.impossible += 1
    return None


def _steps(
    target: str, counters: Mapping[tuple[str, str], dict[float, float]], up: set[float], notes: Notes
) -> list[Step]:
    spans = {key: (min(points), max(points)) for key, points in counters.items()}
    times = sorted(up.union(*counters.values()))
    # A scrape that lacks a counter which is there before and after would tear requests and errors apart.
    common = [
        t for t in times if all(t in counters[key] or not first < t < last for key, (first, last) in spans.items())
    ]
    found = []
    for start, end in zip(common, common[1:]):
        counts: dict[tuple[str, str], float] = {}
        whole = True
        for key, points in counters.items():
            if end not in points:
                continue
            # Envoy shows a counter from its first event on: at the scrape before it was zero.
            before = points.get(start, 0.0 if start < spans[key][0] else None)
            grown = None if before is None else _increment(before, points[end], notes)
            if grown is None:
                whole = False
                break
            if grown:
                counts[key] = grown
        if whole:
            found.append(Step(target, start, end, counts))
    return found


def steps(series: Iterable[Series], up: Iterable[Series], notes: Notes, by: str = "pool") -> list[Step]:
    """Increments of all proxies between their scrapes, by time. `up`: their ``up`` series, which show every scrape.

    `by` is the label that tells apart what is compared.
    """
    scraped: dict[str, set[float]] = {}
    for one in up:
        scraped.setdefault(target_of(one.labels), set()).update(t for t, v in one.samples if v == 1)
    grouped: dict[str, dict[tuple[str, str], list[Series]]] = {}
    for one in series:
        key = (one.labels.get(by, ""), name_of(one.labels))
        if all(key):
            grouped.setdefault(target_of(one.labels), {}).setdefault(key, []).append(one)
    found = []
    for target, counters in grouped.items():
        single = {key: _single(parts, notes) for key, parts in counters.items()}
        found += _steps(target, single, scraped.get(target, set()), notes)
    return sorted(found, key=lambda step: (step.end, step.target))


def tally(some: Iterable[Step], pool: str) -> Tally:
    """What a pool did in these steps.

    A failed request is one that was answered with 5xx in the end, or that only a retry saved: each is counted once.
    """
    total = Tally()
    for step in some:
        requests = math.fsum(n for (p, name), n in step.counts.items() if p == pool and name.startswith("class:"))
        errors = step.counts.get((pool, FAILED), 0.0) + step.counts.get((pool, RETRIED), 0.0)
        total.requests += requests
        # A request that was retried and then answered with 500 is in both counters.
        total.errors += min(errors, requests)
        for (p, name), n in step.counts.items():
            if p == pool and name.startswith(BUCKET):
                bound = float(name[len(BUCKET) :])
                bound = bound if math.isinf(bound) else bound / 1000  # Envoy counts milliseconds
                total.buckets[bound] = total.buckets.get(bound, 0.0) + n
    return total
