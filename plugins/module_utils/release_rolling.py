# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steers a rolling release: what a run does with the record that it finds, which instances run which version since
when, and what follows after each batch. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.release import (
    ReleaseError,
    RollingPlan,
    rolling_plan,
)
from ansible_collections.causeway.platform.plugins.module_utils.release_record import EARLY, Release, pending_command

START, RESUME, UNDO = "start", "resume", "undo"
NEXT, HOLD, BACK, ABORT, PAUSE = "next", "hold", "back", "abort", "pause"
# A batch that must be judged (release.rolling.require) waits for data for so many further checks.
HOLDS = 4


@dataclass(frozen=True)
class Run:
    """What one run of release_rolling does.

    ``action``: ``start``, ``resume`` (finish what a dead run left) or ``undo`` (bring back what it left). ``back`` maps
    a host to slots that an earlier run touched: they go back too when this one fails. ``judge`` tells whether the judge
    may be asked at all: not on a way back.
    """

    action: str
    id: str
    reason: str
    judge: bool
    back: dict[str, list[int]]
    plan: RollingPlan

    def as_dict(self) -> dict[str, Any]:
        """One flat mapping, the plan's fields beside these."""
        own = {"action": self.action, "id": self.id, "reason": self.reason, "judge": self.judge, "back": self.back}
        return {**asdict(self.plan), **own}


def _slots(instances: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in instances:
        found.setdefault(str(one["host"]), []).append(int(one["slot"]))
    return found


def rolling_run(service: Mapping[str, Any], version: str, known: Mapping[str, Any], identifier: str) -> Run:
    """Decide what to do, under the service's lock.

    ``known`` is what registry_info returns of the service: instances, release (its record), command. An empty
    ``version`` undoes a rolling release that was cut short, else it means the record's previous one. ``identifier``
    names a release that begins. Raises ReleaseError, one sentence, before anything changes.
    """
    record: Mapping[str, Any] = known.get("release") or {}
    live: Sequence[Mapping[str, Any]] = known.get("instances") or []
    name = service["name"]
    found = Release.of(record.get("release"))
    if found is None or found.ended or found.strategy != "rolling":
        plan = rolling_plan(service, version, live, record)
        return Run(START, identifier, "the plan stands", bool(version) and plan.version != plan.undo, {}, plan)
    what = f"the rolling release of {found.version} (state {found.state})"
    asked = pending_command(record, known.get("command"))
    placed = sorted(
        service["instances"]["placed"], key=lambda one: (one["region"], one["zone"], one["host"], one["slot"])
    )
    running = {(one["host"], int(one["slot"])): one for one in live}
    if asked == "abort" or not version:
        # Whatever does not serve the old version now: also what the dead run took down and did not bring back.
        wrong = [
            one
            for one in placed
            if str(running.get((one["host"], int(one["slot"])), {}).get("version")) != found.from_version
            or running[one["host"], int(one["slot"])].get("draining")
        ]
        plan = RollingPlan(
            service=name,
            version=found.version,
            undo=found.from_version,
            hosts=[],
            serial=[],
            slots={},
            skipped=[],
            resumes=True,
            available=len(placed) - len(wrong),
            minimum=int(service["instances"]["min"]),
        )
        who = (known.get("command") or {}).get("by") or "an operator"
        reason = f"{what} was cut short, and {who} asked to abort it" if asked == "abort" else f"{what} is undone"
        return Run(UNDO, found.id, reason, False, _slots(wrong), plan)
    if version != found.version:
        raise ReleaseError(
            f"service {name}: {what} is under way; end it first with release_rollback, or finish it with "
            f"release_rolling of {found.version}"
        )
    if asked == "pause":
        raise ReleaseError(f"service {name}: {what} is paused; release_resume lets it go on, release_rollback ends it")
    plan = rolling_plan(service, version, live, record)
    judge = plan.version != plan.undo
    if found.state in EARLY:
        return Run(START, found.id, f"{what} was cut short before any user met it: it starts over", judge, {}, plan)
    done = [
        one
        for one in placed
        if str(running.get((one["host"], int(one["slot"])), {}).get("version")) == found.version
        and int(one["slot"]) not in plan.slots.get(one["host"], [])
    ]
    return Run(
        RESUME,
        found.id,
        f"{what} was cut short after {len(done)} instances",
        judge,
        _slots(done) if judge else {},
        plan,
    )


def instance_sides(
    service: Mapping[str, Any],
    plan: Mapping[str, Any],
    switched: Mapping[str, Mapping[str, Mapping[str, float]]],
    started: float,
) -> dict[str, Any]:
    """How far a rolling release is, and since when each instance runs what.

    ``switched`` has host, slot (text) and the epoch seconds ``until`` which it ran the old and ``since`` when it runs
    the new version; ``started`` is when this run began: what ran the new version then counts as new from there on.

    Returns ``instances`` (the option of module canary_analysis), ``since`` (when the first new one began, 0 if none),
    ``share`` (percentage of the placed instances that are new) and ``left`` (instances that are not).
    """
    slots: Mapping[str, Sequence[int]] = plan["slots"]
    found: dict[str, dict[str, float | None]] = {}
    for one in service["instances"]["placed"]:
        host, slot = str(one["host"]), int(one["slot"])
        times: Mapping[str, float] = {}
        if slot not in slots.get(host, []):
            times = {"until": started, "since": started}
        else:
            times = (switched.get(host) or {}).get(str(slot)) or {}
        found[f"{host}/{slot}"] = {"until": times.get("until"), "since": times.get("since")}
    begun = [one["since"] for one in found.values() if one["since"] is not None]
    return {
        "instances": found,
        "since": min(begun, default=0.0),
        "share": 100 * len(begun) // len(found) if found else 0,
        "left": len(found) - len(begun),
    }


def decide_batch(
    verdict: str, reason: str, command: str = "", *, holds: int = 0, left: int = 1, require: bool = False
) -> dict[str, Any]:
    """What follows after a batch: ``{action, reason, holds, judge}``.

    ``verdict`` is the judge's, empty when it was not asked; ``holds`` counts checks of this batch without a verdict;
    ``left`` instances still run the old version. ``action``: ``next``, ``hold`` (judge again), ``back``, ``abort`` or
    ``pause``; ``judge`` tells whether later batches are judged. Each batch has passed its health checks and test
    requests before: so without ``require`` only harm that was seen stops the release.
    """

    def said(action: str, why: str, judge: bool = True) -> dict[str, Any]:
        return {"action": action, "reason": why, "holds": holds + 1 if action == HOLD else 0, "judge": judge}

    if command == "abort":
        return said(ABORT, "an operator asked to abort")
    if verdict == "fail":
        return said(BACK, reason)
    if command == "promote":
        return said(NEXT, "an operator asked to promote: it is not judged any further", False)
    if command == "pause" and left:
        return said(PAUSE, "an operator asked to pause")
    if verdict not in ("", "pass", "inconclusive", "insufficient_data"):
        raise ReleaseError(f"verdict: {verdict!r} is unknown; allowed: pass, fail, inconclusive, insufficient_data")
    if verdict in ("", "pass") or not require:
        return said(NEXT, reason)
    if holds < HOLDS:
        return said(HOLD, reason)
    words = f"no verdict after {holds + 1} checks: {reason}"
    # To go back on a mere suspicion would break the promise that alpha is; an operator decides.
    return said(PAUSE if verdict == "inconclusive" else BACK, words)
