# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of releases as one HTML page that needs nothing else: no network, no script. For the controller only.

What registry_info returns as ``services`` goes in. Every text from it is escaped by the template engine, and the page's
own policy forbids scripts and loading anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.release_record import Release, pending_command

try:
    import jinja2

    HAS_JINJA2 = True
except ImportError:  # only where Ansible itself does not run
    HAS_JINJA2 = False

TEMPLATE = Path(__file__).resolve().parents[2] / "playbooks" / "templates" / "release_status.html.j2"

# Shape and word of each verdict: colour alone tells nobody anything.
VERDICTS = {
    "pass": ("pass", "passed"),
    "fail": ("fail", "failed"),
    "inconclusive": ("unsure", "not decided yet"),
    "insufficient_data": ("empty", "too few data"),
}
STRATEGIES = {"rolling": "instance by instance", "blue_green": "blue-green", "canary": "canary"}
STATES = {
    "planned": "is planned",
    "preparing": "starts its candidates",
    "testing": "is tested before users meet it",
    "shifting": "takes traffic step by step",
    "baking": "is watched with all of the traffic",
    "promoted": "has all of the traffic; the version before stays warm",
    "settled": "is live",
    "rolled back": "was rolled back",
    "aborted": "was aborted by an operator",
}
KINDS = {
    "live": "good",
    "settled": "good",
    "promoted": "good",
    "rolled back": "bad",
    "failed": "bad",
    "aborted": "bad",
    "": "calm",
}
SHOWN_ANALYSES = 12

# A plot, in the units of its own coordinate system; small enough to stay readable on a telephone.
WIDTH, HEIGHT = 480, 190
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 22, 30


def parse_time(text: Any) -> float | None:
    """Seconds since the epoch of an RFC 3339 time, ``None`` for anything else."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def show_time(text: Any) -> str:
    """A time for people, in UTC to the second."""
    seconds = parse_time(text)
    if seconds is None:
        return str(text or "unknown")
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def show_span(seconds: float) -> str:
    """A span of time for people: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def show_number(value: Any, unit: str = "") -> str:
    """A number with its unit: ratios as per cent, seconds as milliseconds where these read better."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "-"
    if unit == "ratio":
        return f"{value * 100:.3g} %"
    if unit in ("seconds", "s"):
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def show_change(value: Any) -> str:
    """A change relative to the version before, as the judge gives it: 0.5 is half as much again."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "-"
    percent = value * 100
    return f"{percent:+,.0f} %" if abs(percent) >= 1000 else f"{percent:+.3g} %"


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover ``low`` to ``high`` (Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990)."""
    if not high > low:
        pad = abs(low) or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass
class Mark:
    """A point of a plot; ``shape`` tells the verdict, ``text`` says everything."""

    x: float
    y: float
    shape: str
    text: str


@dataclass
class Plot:
    """Geometry of one plot, ready to draw."""

    title: str
    description: str
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    line: str = ""
    area: str = ""
    bars: list[tuple[float, float, float]] = field(default_factory=list)
    zero: float | None = None
    marks: list[Mark] = field(default_factory=list)
    events: list[tuple[float, str, str]] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """Maps values of ``low`` to ``high`` onto ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        share = min(1.0, max(0.0, (value - self.low) / span))
        return round(self.start + share * (self.end - self.start), 1)


def _time_axis(begin: float, end: float) -> tuple[Scale, list[tuple[float, str]]]:
    span = max(end - begin, 1.0)
    unit, name = next(((size, text) for size, text in ((3600, "h"), (60, "min")) if span >= 3 * size), (1, "s"))
    scale = Scale(begin, begin + span, LEFT, WIDTH - RIGHT)
    ticks = [tick for tick in nice_ticks(0, span / unit, 5) if tick <= span / unit + 1e-9]
    return scale, [(scale(begin + tick * unit), f"{tick:g} {name}" if tick else "start") for tick in ticks]


def _span(release: Release) -> tuple[float, float]:
    """When the plots of a release begin and end."""
    times = [parse_time(release.started), parse_time(release.changed)]
    for series in (release.transitions, release.weights, release.analyses):
        times += [parse_time(one.get("at")) for one in series]
    known = [one for one in times if one is not None]
    return (min(known), max(known)) if known else (0.0, 1.0)


def weights_plot(release: Release) -> Plot:
    """The candidate's share of the traffic as steps over time, with the states that matter to users."""
    begin, end = _span(release)
    x, ticks = _time_axis(begin, end)
    y = Scale(0, 100, HEIGHT - BOTTOM, TOP)
    plot = Plot(
        title=f"Traffic to version {release.version}",
        description=f"Percentage of the traffic that version {release.version} got over time, in steps.",
        x_ticks=ticks,
        y_ticks=[(y(value), f"{value} %") for value in (0, 25, 50, 75, 100)],
    )
    points: list[tuple[float, float]] = []
    for one in release.weights:
        at, weight = parse_time(one.get("at")), one.get("weight")
        if at is None or not isinstance(weight, (int, float)):
            continue
        if points:
            points.append((x(at), points[-1][1]))
        points.append((x(at), y(weight)))
        plot.rows.append((show_time(one.get("at")), f"{weight:g} %"))
    if points:
        # What ended sends nothing to candidates; what runs keeps its weight until now.
        points.append((x(end), points[-1][1]))
        plot.line = " ".join(f"{px:g},{py:g}" for px, py in points)
        plot.area = f"{points[0][0]:g},{y(0):g} {plot.line} {points[-1][0]:g},{y(0):g}"
    last = -math.inf
    for one in release.transitions:
        at, state = parse_time(one.get("at")), str(one.get("to"))
        if at is None or state in ("planned", "preparing", "testing"):
            continue
        place = x(at)
        # A label that would cover the one before is left out; the table of states has them all.
        label = state if place - last > 7 * len(state) else ""
        anchor = "end" if place > WIDTH - RIGHT - 4 * len(state) else "middle"
        last = place if label else last
        plot.events.append((place, label, anchor))
    return plot


def metric_names(release: Release) -> list[str]:
    """Metrics of all analyses, in the order of their first appearance."""
    return list(dict.fromkeys(str(one["name"]) for entry in release.analyses for one in entry.get("metrics") or ()))


def metric_plot(release: Release, name: str) -> Plot:
    """The relative change of one metric with its confidence band, one mark for each verdict."""
    begin, end = _span(release)
    found = [
        (entry, one)
        for entry in release.analyses
        for one in entry.get("metrics") or ()
        if one.get("name") == name and parse_time(entry.get("at")) is not None
    ]
    values = [
        float(one[key])
        for _entry, one in found
        for key in ("difference", "lower", "upper")
        if isinstance(one.get(key), (int, float))
    ]
    x, ticks = _time_axis(begin, end)
    levels = nice_ticks(min([0.0, *values]), max([0.0, *values])) if values else [-1.0, 0.0, 1.0]
    y = Scale(levels[0], levels[-1], HEIGHT - BOTTOM, TOP)
    plot = Plot(
        title=f"{name}: version {release.version} against {release.from_version}",
        description=f"Change of {name} relative to the version before with its confidence band, over time.",
        x_ticks=ticks,
        y_ticks=[(y(level), show_change(level) if abs(level) > 1e-12 else "0 %") for level in levels],
        zero=y(0.0),
    )
    upper: list[tuple[float, float]] = []
    lower: list[tuple[float, float]] = []
    middle: list[tuple[float, float]] = []
    for entry, one in found:
        at = x(parse_time(entry["at"]) or begin)
        shape, word = VERDICTS.get(str(one.get("verdict")), ("unsure", "unknown"))
        low, high, difference = (one.get(key) for key in ("lower", "upper", "difference"))
        if low is not None or high is not None:
            # A side without a bound reaches to the edge.
            lower.append((at, y(low if low is not None else levels[0])))
            upper.append((at, y(high if high is not None else levels[-1])))
        if difference is not None:
            middle.append((at, y(difference)))
        text = f"{show_time(entry['at'])}: {word}"
        if difference is not None:
            text += f", {show_change(difference)}"
        plot.marks.append(Mark(at, y(difference if difference is not None else 0.0), shape, text))
    plot.line = " ".join(f"{px:g},{py:g}" for px, py in middle)
    if len(upper) > 1:
        plot.area = " ".join(f"{px:g},{py:g}" for px, py in [*upper, *reversed(lower)])
    # One band alone has no width, so it is drawn as a bar.
    plot.bars = [(px, py, low[1]) for (px, py), low in zip(upper, lower)] if len(upper) == 1 else []
    return plot


def band(metric: Mapping[str, Any]) -> str:
    """The confidence band in words."""
    low, high = metric.get("lower"), metric.get("upper")
    if low is None and high is None:
        return "no band yet"
    if low is None:
        return f"at most {show_change(high)}"
    if high is None:
        return f"at least {show_change(low)}"
    return f"{show_change(low)} to {show_change(high)}"


def score_words(analysis: Mapping[str, Any]) -> str:
    """The score of an analysis by method kayenta with its groups; empty for the sequential one."""
    if analysis.get("score") is None:
        return ""
    groups = ", ".join(f"{name} {show_number(score)}" for name, score in (analysis.get("groups") or {}).items())
    return f"score {show_number(analysis['score'])} of 100{f' ({groups})' if groups else ''}"


def _verdict(value: Any) -> tuple[str, str]:
    return VERDICTS.get(str(value), ("unsure", str(value)))


def _metric_view(release: Release, name: str, number: int) -> dict[str, Any]:
    """One metric: its plot, its last values and what they mean."""
    last: Mapping[str, Any] = {}
    against = "stable"
    for entry in release.analyses:
        found = next((one for one in entry.get("metrics") or () if one.get("name") == name), None)
        if found is not None:
            last, against = found, str(entry.get("against") or "stable")
    unit = str(last.get("unit") or "")
    requests = last.get("requests") or {}
    facts = [
        (
            f"{release.from_version} ({against})",
            show_number(last.get("stable"), unit),
            show_number(requests.get("stable")),
        ),
        (f"{release.version} (new)", show_number(last.get("candidate"), unit), show_number(requests.get("candidate"))),
    ]
    e_value = last.get("e_value")
    return {
        "id": f"m{number}",
        "name": name,
        "kind": last.get("kind") or "",
        "verdict": _verdict(last.get("verdict")),
        "reason": last.get("reason") or "",
        "facts": facts,
        "difference": show_change(last.get("difference")),
        "band": band(last),
        "worse": "above zero is worse" if last.get("kind") in ("errors", "latency") else "",
        "evidence": f"e-value {show_number(e_value)}" if e_value is not None else "",
        "plot": metric_plot(release, name),
    }


def _release_view(release: Release, number: int) -> dict[str, Any]:
    begin, end = _span(release)
    moments = [parse_time(one.get("at")) for one in release.transitions]
    transitions = []
    for index, one in enumerate(release.transitions):
        at, following = moments[index], moments[index + 1] if index + 1 < len(moments) else None
        evidence = one.get("evidence")
        transitions.append(
            {
                "at": show_time(one.get("at")),
                "state": one.get("to"),
                "kind": KINDS.get(str(one.get("to")), "busy"),
                "reason": one.get("reason") or "",
                "evidence": json.dumps(evidence, indent=1, sort_keys=True) if evidence else "",
                "lasted": show_span(following - at) if at is not None and following is not None else "",
            }
        )
    analyses = [
        {
            "at": show_time(one.get("at")),
            "step": int(one.get("step") or 0) + 1,
            "weight": show_number(one.get("weight")),
            "verdict": _verdict(one.get("verdict")),
            "reason": one.get("reason") or "",
            "score": score_words(one),
        }
        for one in reversed(release.analyses)
    ]
    migrations = [
        {
            "phase": str(one.get("phase")),
            "state": str(one.get("state")),
            "kind": {"done": "good", "failed": "bad", "undone": "bad"}.get(str(one.get("state")), "busy"),
            "at": show_time(one.get("at")),
            "took": show_span(float(one.get("took") or 0)) if one.get("took") else "-",
            "versions": ", ".join(str(version) for version in one.get("versions") or ()) or "-",
            "reason": one.get("reason") or "-",
        }
        for one in release.migrations
    ]
    return {
        "release": release,
        "strategy": STRATEGIES.get(release.strategy, release.strategy),
        "sentence": STATES.get(release.state, release.state),
        "ended": release.ended,
        "took": show_span(end - begin),
        "started": show_time(release.started),
        "changed": show_time(release.changed),
        "weights": weights_plot(release) if len(release.weights) > 1 else None,
        "metrics": [_metric_view(release, name, index) for index, name in enumerate(metric_names(release))],
        "verdict": analyses[0] if analyses else None,
        "analyses": analyses[:SHOWN_ANALYSES],
        "older": analyses[SHOWN_ANALYSES:],
        "transitions": transitions,
        "migrations": migrations,
        "id": f"r{number}",
    }


def _history(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for one in reversed(entries):
        begin, end = parse_time(one.get("started")), parse_time(one.get("finished"))
        outcome = str(one.get("outcome") or "")
        rows.append(
            {
                "started": show_time(one.get("started")),
                "from": one.get("from") or "-",
                "version": one.get("version"),
                "strategy": STRATEGIES.get(str(one.get("strategy")), "-"),
                "took": show_span(end - begin) if begin is not None and end is not None else "-",
                "outcome": outcome or "under way or cut short",
                "kind": KINDS.get(outcome, "busy") if outcome else "busy",
                "reason": one.get("reason") or "",
            }
        )
    return rows


def service_view(name: str, value: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """Everything that the page says of one service; only texts and numbers, nothing is decided in the template."""
    record, lock, command = (value.get(key) or {} for key in ("release", "lock", "command"))
    release = Release.of(record.get("release"))
    weights = (value.get("traffic") or {}).get("weights") or {"stable": 100, "candidate": 0}
    state = str(record.get("state") or "")
    if release and not release.ended:
        state = release.state
    instances: Iterable[Mapping[str, Any]] = value.get("instances") or ()
    rows = [
        {
            "instance": f"{one.get('host')}/{one.get('slot')}",
            "zone": one.get("zone") or "-",
            "pool": one.get("pool") or "stable",
            "version": one.get("version"),
            "draining": bool(one.get("draining")),
        }
        for one in sorted(
            instances, key=lambda one: (str(one.get("pool")) != "stable", str(one.get("host")), one["slot"])
        )
    ]
    versions = {
        pool: " and ".join(sorted({str(one["version"]) for one in rows if one["pool"] == pool}))
        for pool in ("stable", "candidate", "baseline")
    }
    return {
        "name": name,
        "number": number,
        "state": state or "never released",
        "kind": KINDS.get(state, "busy"),
        "current": record.get("current") or versions["stable"] or "as described",
        "previous": record.get("previous") or "",
        "weights": {pool: int(weights.get(pool) or 0) for pool in ("stable", "candidate", "baseline")},
        "versions": versions,
        "instances": rows,
        "candidates": any(one["pool"] == "candidate" for one in rows),
        "lock": {"purpose": lock.get("purpose") or "no stated purpose", "at": show_time(lock.get("at"))}
        if lock
        else None,
        "command": {**command, "at": show_time(command.get("at"))} if pending_command(record, command) else None,
        "judged": _release_view(release, number) if release else None,
        "history": _history(record.get("history") or ()),
    }


def page_model(services: Mapping[str, Any], platform: str, generated: str) -> dict[str, Any]:
    """What the template shows."""
    views = [service_view(name, services[name], number) for number, name in enumerate(sorted(services))]
    busy = [one for one in views if one["judged"] and not one["judged"]["ended"]]
    return {
        "platform": platform,
        "generated": show_time(generated),
        "services": [*busy, *(one for one in views if one not in busy)],
        "busy": len(busy),
        "size": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    }


def render_page(services: Mapping[str, Any], platform: str, generated: str) -> str:
    """The page, from what registry_info returns as ``services``; ``generated`` is its time, RFC 3339."""
    if not HAS_JINJA2:
        raise RuntimeError("the page needs the Python library Jinja2, which every Ansible controller has")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        page_model(services, platform, generated)
    )
