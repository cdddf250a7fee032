# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans releases: which instances change, in which order, and whether that may begin. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# A tag of the OCI distribution specification, section "Pulling manifests".
VERSION = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
_ENDED = ("settled", "rolled back", "aborted")


class ReleaseError(Exception):
    """The release cannot begin; the message says why and what is allowed."""


@dataclass(frozen=True)
class RollingPlan:
    """A rolling release, ready to run.

    ``hosts`` are in the order to visit, zone by zone; ``serial`` is the number of hosts of each batch; ``slots`` maps a
    host to the slots to replace there; ``undo`` is the version that a failure goes back to.
    """

    service: str
    version: str
    undo: str
    hosts: list[str]
    serial: list[int]
    slots: dict[str, list[int]]
    skipped: list[str]
    resumes: bool
    available: int
    minimum: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def batch_size(batch: int | str, count: int) -> int:
    """Hosts per batch from a number or a percentage (rounded down, at least one), as Kubernetes' maxUnavailable does.

    >>> batch_size("25%", 9)
    2
    """
    text = str(batch).strip()
    size = count * int(text[:-1]) // 100 if text.endswith("%") else int(text)
    return max(1, min(size, max(count, 1)))


def current_version(service: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    """The version that a fresh instance gets: what the release record says, else what the description says."""
    return str((record or {}).get("current") or service["version"])


def rolling_plan(
    service: Mapping[str, Any],
    version: str,
    live: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any] | None = None,
) -> RollingPlan:
    """Plan the replacement of every placed instance of ``service`` that does not run ``version``, or that a dead run
    left drained.

    ``service`` is a normalised description (docs/design.md section 1), ``live`` the instances registered now, each with
    host, slot and version; ``record`` the service's release record, if any. An empty ``version`` means the record's
    previous one. Raises ReleaseError before anything
    changes when the version is malformed or already live everywhere, or when a batch would leave fewer instances than
    the service's minimum, and while a judged release of the service has not ended.
    """
    name = service["name"]
    judged = (record or {}).get("release") or {}
    if judged.get("strategy", "rolling") != "rolling" and judged.get("state") not in _ENDED:
        raise ReleaseError(
            f"service {name}: the {judged['strategy']} release of {judged['version']} (state {judged['state']}) is "
            f"under way; go on with release_{judged['strategy']}, or end it first with release_rollback"
        )
    if not version:
        version = str((record or {}).get("previous") or "")
        if not version:
            raise ReleaseError(f"service {name}: there is no version before to go back to; give release_version")
    if not VERSION.match(str(version)):
        raise ReleaseError(
            f"release_version: {version!r} is not a version; allowed: letters, digits, '.', '_' and '-', at most 128"
        )
    placed = sorted(
        service["instances"]["placed"], key=lambda one: (one["region"], one["zone"], one["host"], one["slot"])
    )
    if not placed:
        raise ReleaseError(f"service {name}: no instance is placed on any host, so there is nothing to release")
    running = {(one["host"], int(one["slot"])): str(one["version"]) for one in live}
    state = str((record or {}).get("state") or "")
    drained = {(one["host"], int(one["slot"])) for one in live if one.get("draining") and state == "rolling"}
    todo = [
        one
        for one in placed
        if running.get((one["host"], int(one["slot"]))) != version or (one["host"], int(one["slot"])) in drained
    ]
    skipped = [one["id"] for one in placed if one not in todo]
    undo = current_version(service, record)
    if not todo and undo == version and state != "rolling":
        raise ReleaseError(f"service {name}: version {version} is already live on all {len(placed)} instances")
    slots: dict[str, list[int]] = {}
    zones: dict[str, list[str]] = {}
    for one in todo:
        slots.setdefault(one["host"], []).append(int(one["slot"]))
        hosts = zones.setdefault(one["zone"], [])
        if one["host"] not in hosts:
            hosts.append(one["host"])
    size = batch_size(service["release"]["batch"], len(slots))
    # A batch never spans two zones: one failure domain at a time.
    serial = [min(size, len(hosts) - start) for hosts in zones.values() for start in range(0, len(hosts), size)]
    minimum = int(service["instances"]["min"])
    # A host replaces its slots one after the other, so a batch takes one instance per host out at a time.
    worst = max(serial, default=0)
    dead = sum(1 for one in placed if (one["host"], int(one["slot"])) not in running)
    dead_elsewhere = max(0, dead - worst)
    available = len(placed) - worst - dead_elsewhere
    if todo and available < minimum:
        raise ReleaseError(
            f"service {name}: a batch of {worst} would leave {available} of {len(placed)} instances "
            f"({dead} not registered now), below its minimum of {minimum}; raise instances.count, lower instances.min "
            f"or release.batch, or repair the missing instances first"
        )
    return RollingPlan(
        service=name,
        version=str(version),
        undo=undo,
        hosts=list(slots),
        serial=serial,
        slots=slots,
        skipped=skipped,
        resumes=state == "rolling",
        available=available,
        minimum=minimum,
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell; the last column is left as it is."""
    cells = [list(header), *([" ".join(str(cell).split()) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]


def _overview(services: Mapping[str, Any]) -> list[str]:
    """One line for each service: what is live, and how the release under way (or the last one) stands."""
    rows = []
    for name, one in sorted(services.items()):
        record = one.get("release") or {}
        release = record.get("release") or {}
        analyses = release.get("analyses") or [{}]
        weights = (one.get("traffic") or {}).get("weights") or {}
        open_now = bool(release) and release.get("state") not in _ENDED
        rolling = open_now and release.get("strategy") == "rolling"  # its new instances are in the stable pool
        rows.append(
            [
                name,
                record.get("current") or "as described",
                release["state"] if open_now else record.get("state") or "never released",
                f"{release['version']} ({release['strategy']})" if open_now else "-",
                f"{release.get('weight') or 0 if rolling else weights.get('candidate') or 0} %",
                (analyses[-1].get("verdict") or "-") if release else "-",
                ((one.get("command") or {}).get("command") or "-") if open_now else "-",
            ]
        )
    return table(["SERVICE", "LIVE", "STATE", "COMING", "WEIGHT", "VERDICT", "ASKED"], rows)


def history_lines(services: Mapping[str, Any]) -> list[str]:
    """All recorded releases as a table for a terminal, the newest of each service first."""
    rows = []
    for name, one in sorted(services.items()):
        for entry in reversed((one.get("release") or {}).get("history") or []):
            rows.append(
                [
                    name,
                    entry.get("started") or "-",
                    entry.get("finished") or "-",
                    entry.get("from") or "-",
                    entry.get("version") or "-",
                    entry.get("strategy") or "rolling",
                    entry.get("outcome") or "under way or cut short",
                    " ".join(f"{phase}={state}" for phase, state in (entry.get("migrations") or {}).items()) or "-",
                    entry.get("reason") or "",
                ]
            )
    if not rows:
        return ["no release is recorded"]
    return table(["SERVICE", "BEGUN", "ENDED", "FROM", "TO", "HOW", "OUTCOME", "DATABASE", "REASON"], rows)


def status_lines(services: Mapping[str, Any]) -> list[str]:
    """What ``registry_info`` returns as services, as lines for a terminal: a table, then state, instances, lock, last
    verdict and last releases of each.
    """
    lines = [*_overview(services), ""] if services else ["the registry knows no service"]
    for name, one in sorted(services.items()):
        record, lock = one.get("release") or {}, one.get("lock") or {}
        state = record.get("state") or "never released"
        back = f", before that {record['previous']}" if record.get("previous") else ""
        lines.append(f"{name}: {state}; current {record.get('current') or 'as described'}{back}")
        for instance in one.get("instances") or []:
            drain = ", draining" if instance.get("draining") else ""
            pool = f", {instance['pool']}" if instance.get("pool", "stable") != "stable" else ""
            lines.append(f"  {instance['instance']:<14} {instance['version']:<12} {instance['zone']}{pool}{drain}")
        weights = (one.get("traffic") or {}).get("weights") or {}
        if weights.get("baseline"):
            lines.append(f"  traffic: {', '.join(f'{pool} {share} %' for pool, share in weights.items())}")
        judged = (record.get("release") or {}).get("analyses") or []
        if judged:
            last = judged[-1]
            lines.append(f"  verdict of {last.get('at')}: {last.get('verdict')}: {last.get('reason')}")
        for phase in (record.get("release") or {}).get("migrations") or []:
            took = f" after {phase['took']:g} s" if phase.get("took") else ""
            reason = f": {phase['reason']}" if phase.get("reason") else ""
            lines.append(f"  database {phase['phase']}: {phase['state']} at {phase['at']}{took}{reason}")
        if lock:
            lines.append(f"  locked for {lock.get('purpose') or 'no stated purpose'} since {lock.get('at')}")
        for entry in (record.get("history") or [])[-3:]:
            outcome = entry.get("outcome") or "under way or killed"
            reason = f": {entry['reason']}" if entry.get("reason") else ""
            lines.append(f"  {entry['started']} {entry.get('from', '?')} -> {entry['version']}: {outcome}{reason}")
    return lines
