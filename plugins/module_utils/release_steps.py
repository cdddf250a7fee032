# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steers a judged release: its steps of weight and time, and what follows from each verdict. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError

STRATEGIES = ("blue_green", "canary")
# A step whose data do not suffice is held at its weight for so many more checks before the release goes back.
MIN_HOLDS = 4
ABORT, BACK, HOLD, NEXT, PAUSE, PROMOTE = "abort", "back", "hold", "next", "pause", "promote"


@dataclass(frozen=True)
class Step:
    """The candidate's ``weight`` in percent for ``checks`` judgements; ``baking`` when all traffic is on it.

    ``at_end``: judged once, at the last of its checks, because the method (kayenta) is not valid at several looks.
    """

    weight: int
    checks: int
    baking: bool
    at_end: bool = False

    @property
    def holds(self) -> int:
        """Further checks that missing data may cost."""
        return max(MIN_HOLDS, self.checks)


@dataclass(frozen=True)
class Cursor:
    """Where a release is and what to do now.

    ``checks`` judgements of step ``step`` have passed, ``holds`` more were without enough data. ``action``: ``hold``
    (judge again), ``next`` (put the weight of ``step`` in force), ``promote`` (all steps done), ``back``, ``abort``,
    ``pause``.
    """

    step: int = 0
    checks: int = 0
    holds: int = 0
    action: str = NEXT
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def steps(service: Mapping[str, Any], strategy: str) -> list[Step]:
    """The steps of a release of a normalised service (docs/design.md section 8): the shifts, then the bake.

    Raises ReleaseError for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ReleaseError(f"strategy: {strategy!r} is not judged; allowed: {', '.join(STRATEGIES)}")
    spec = service["release"]
    interval = float(spec["analysis"]["interval"])

    def checks(seconds: float) -> int:
        return max(1, math.ceil(float(seconds) / interval))

    shifts = spec["canary"]["steps"] if strategy == "canary" else []
    at_end = spec["analysis"].get("method") == "kayenta"
    result = [Step(int(one["weight"]), checks(one["duration"]), False, at_end) for one in shifts]
    return [*result, Step(100, checks(spec["blue_green"]["bake"]), True, at_end)]


def iterations(plan: list[Step]) -> int:
    """The most judgements that a release can take: each step's checks and its holds."""
    return sum(one.checks + one.holds for one in plan)


def is_last_check(plan: list[Step], cursor: Cursor) -> bool:
    """Whether the next judgement ends its step, so that a method which may look only once looks now."""
    return cursor.checks + 1 >= plan[cursor.step].checks


def decide(plan: list[Step], cursor: Cursor, verdict: str, reason: str, command: str = "") -> Cursor:
    """What follows from a verdict and an operator's command.

    ``verdict``: pass, fail, inconclusive or insufficient_data. Only ``pass`` counts towards the end of a step, so
    silence never promotes. After ``holds`` checks without one, a candidate that nobody could judge goes back, and one
    that is suspicious (``inconclusive``) waits for an operator: to go back then would break the promise that a healthy
    version is rolled back with probability alpha at most. Of a step that is judged ``at_end`` only the last check
    counts, but a ``fail`` before it (a hard limit) goes back at once; an ``inconclusive`` at its end is not looked at
    again: it waits for an operator. ``command``: "", abort, pause, promote or resume.
    """
    if command == "abort":
        return replace(cursor, action=ABORT, reason="an operator asked to abort")
    if verdict == "fail":
        return replace(cursor, action=BACK, reason=reason)
    if command == "promote":
        last = len(plan) - 1
        done = cursor.step == last
        return Cursor(last, 0, 0, PROMOTE if done else NEXT, "an operator asked to promote")
    if command == "pause":
        return replace(cursor, action=PAUSE, reason="an operator asked to pause")
    step = plan[cursor.step]
    if step.at_end and not is_last_check(plan, cursor):
        return replace(cursor, checks=cursor.checks + 1, action=HOLD, reason=reason)
    if step.at_end and verdict == "inconclusive":
        return replace(cursor, action=PAUSE, reason=f"marginal at the end of {step.weight} %: {reason}")
    if verdict == "pass":
        passed = replace(cursor, checks=cursor.checks + 1, action=HOLD, reason=reason)
        if passed.checks < step.checks:
            return passed
        if cursor.step + 1 < len(plan):
            return Cursor(cursor.step + 1, 0, 0, NEXT, reason)
        return replace(passed, action=PROMOTE)
    if verdict not in ("inconclusive", "insufficient_data"):
        raise ReleaseError(f"verdict: {verdict!r} is unknown; allowed: pass, fail, inconclusive, insufficient_data")
    held = replace(cursor, holds=cursor.holds + 1, action=HOLD, reason=reason)
    if held.holds <= step.holds:
        return held
    words = f"no verdict at {step.weight} % after {held.holds} checks without one: {reason}"
    return replace(held, action=PAUSE if verdict == "inconclusive" else BACK, reason=words)


def resume(plan: list[Step], step: int) -> Cursor:
    """Where a release goes on whose controller died or paused in step ``step``: at the beginning of that step."""
    return Cursor(min(max(step, 0), len(plan) - 1))
