# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates and reports of the verbs for databases: pure functions behind filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def gate_problems(
    cluster: Mapping[str, Any],
    activity: Mapping[str, Any] | None = None,
    *,
    members: int = 0,
    max_lag: int | None = None,
    longest: float | None = None,
    synchronous: int = 0,
) -> list[str]:
    """Why a verb should not begin, empty if it may.

    cluster: as patroni_info returns it. activity: of the leader, as postgresql_activity_info returns it. members:
    members that must lead or follow. max_lag: bytes a replica may be behind. longest: seconds of a transaction.
    """
    problems = []
    if not cluster.get("leader"):
        problems.append("there is no leader")
    if cluster.get("paused"):
        problems.append("Patroni is paused: resume it first")
    well = len(cluster.get("streaming") or []) + (1 if cluster.get("leader") else 0)
    if well < members:
        problems.append(f"{well} members are well, {members} are needed")
    held = len(cluster.get("sync_standbys") or [])
    if held < synchronous:
        problems.append(f"{held} of {synchronous} synchronous standbys follow")
    if max_lag is not None:
        for one in cluster.get("members") or []:
            lag = one.get("lag")
            if one["name"] in (cluster.get("streaming") or []) and (lag is None or lag > max_lag):
                problems.append(
                    f"{one['name']} is behind by {'unknown' if lag is None else lag} bytes, allowed {max_lag}"
                )
    if longest is not None and activity:
        for one in activity.get("transactions") or []:
            if one["seconds"] > longest:
                problems.append(
                    f"a transaction of {one['role']} in {one['database']} ({one['application'] or 'no name'}, pid "
                    f"{one['pid']}) is open for {one['seconds']:g} s, allowed are {longest:g}"
                )
        problems += [
            f"prepared transaction {one['gid']} in {one['database']}" for one in activity.get("prepared") or []
        ]
    return problems


def _table(cluster: Mapping[str, Any]) -> list[str]:
    rows = [("member", "role", "state", "timeline", "lag", "restart")]
    for one in cluster.get("members") or []:
        lag = "-" if one["name"] == cluster.get("leader") else "unknown" if one["lag"] is None else str(one["lag"])
        pending = "pending" if one["pending_restart"] else "-"
        rows.append((one["name"], one["role"], one["state"], str(one["timeline"] or "-"), lag, pending))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def report(
    verb: str,
    name: str,
    cluster: Mapping[str, Any] | None,
    *,
    steps: Iterable[Mapping[str, Any]] = (),
    switchover: Mapping[str, Any] | None = None,
    pause: float | None = None,
    problems: Iterable[str] = (),
    check_mode: bool = False,
    outcome: str = "",
) -> dict[str, Any]:
    """The end of a verb as data and as readable lines (``text``)."""
    cluster, steps, problems = cluster or {}, [dict(one) for one in steps], list(problems)
    outcome = outcome or ("refused" if problems else "planned" if check_mode else "done")
    lines = [f"{verb} of {name}: {outcome}"]
    lines += [f"  not allowed: {one}" for one in problems]
    if switchover:
        took = f" in {switchover['seconds']:g} s" if "seconds" in switchover else ""
        lines.append(
            f"  leadership: {switchover.get('from') or '-'} -> {switchover.get('to') or 'the best replica'}{took}"
        )
    if pause is not None:
        lines.append(f"  clients waited at the poolers for at most {pause:g} s")
    for one in steps:
        took = f" ({one['seconds']:g} s)" if "seconds" in one else ""
        lines.append(f"  {one['member']}: {one.get('said') or 'would be done'}{took}")
    lines += [f"  {line}" for line in (_table(cluster) if cluster.get("members") else ["no member answers"])]
    return {
        "verb": verb,
        "cluster": name,
        "outcome": outcome,
        "problems": problems,
        "switchover": dict(switchover or {}),
        "pause": pause,
        "steps": steps,
        "state": dict(cluster),
        "text": lines,
    }
