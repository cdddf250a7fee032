# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans a judged release: its candidates, its steps, and what a run does with what an earlier one left. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import pools
from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError, batch_size, current_version
from ansible_collections.causeway.platform.plugins.module_utils.release_record import candidate_count, next_action
from ansible_collections.causeway.platform.plugins.module_utils.release_steps import Cursor, iterations, resume, steps

# States after which no step is left.
_JUDGED = ("promoted",)


@dataclass(frozen=True)
class PoolPlan:
    """A judged release, ready to run.

    ``action`` is start, resume, settle or undo. These map a host to slots: ``candidates``, the pool while traffic
    shifts; ``deploy``, those of it that do not run the version yet; ``grow``, what must join before the pool gets all
    traffic; ``leftovers``, every candidate slot to empty in the end. ``slots`` are the stable ones that settling
    replaces, ``hosts`` their hosts zone by zone and ``serial`` how many of these at a time. ``steps``: weights and
    checks and the pools' ``weights``; ``baseline``: the old version beside the candidates, ``baseline_deploy`` those of
    it that do not run and are needed; ``shift_checks`` and ``bake_checks``: the most that they can take; ``cursor``:
    where to begin.
    """

    service: str
    version: str
    undo: str
    strategy: str
    action: str
    reason: str
    id: str
    state: str
    candidates: dict[str, list[int]]
    deploy: dict[str, list[int]]
    grow: dict[str, list[int]]
    leftovers: dict[str, list[int]]
    slots: dict[str, list[int]]
    hosts: list[str]
    serial: list[int]
    steps: list[dict[str, Any]]
    shift_checks: int
    bake_checks: int
    cursor: dict[str, Any]
    baseline: dict[str, list[int]]
    baseline_deploy: dict[str, list[int]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _by_host(instances: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for host, slot in instances:
        if slot not in found.setdefault(host, []):
            found[host].append(slot)
    return found


def pool_plan(
    service: Mapping[str, Any],
    version: str,
    strategy: str,
    known: Mapping[str, Any],
    *,
    identifier: str,
) -> PoolPlan:
    """Plan a canary or blue-green release of a normalised service (docs/design.md sections 1 and 8).

    ``known`` is what registry_info returns of the service: instances, release (its record), traffic (weights),
    command. An empty ``version`` means the record's previous one, an empty ``strategy`` the service file's.
    ``identifier`` names a release that begins. Raises ReleaseError when it cannot begin, before anything changes.
    """
    name = str(service["name"])
    strategy = strategy or str(service["release"]["strategy"])
    live: Sequence[Mapping[str, Any]] = known.get("instances") or []
    record: Mapping[str, Any] = known.get("release") or {}
    track = steps(service, strategy)
    current = current_version(service, record)
    action = next_action(
        record,
        str(version or record.get("previous") or ""),
        current=current,
        strategy=strategy,
        live=live,
        weights=(known.get("traffic") or {}).get("weights"),
        command=known.get("command"),
    )
    if action.action == "refuse":
        raise ReleaseError(f"service {name}: {action.reason}")
    placed = sorted(
        service["instances"]["placed"], key=lambda one: (one["region"], one["zone"], one["host"], one["slot"])
    )
    if not placed:
        raise ReleaseError(f"service {name}: no instance is placed on any host, so there is nothing to release")
    count = candidate_count(service["release"], len(placed), strategy)
    beside: list[tuple[str, int]] = []
    try:
        whole = [(str(one["host"]), int(one["slot"])) for one in pools.candidates(service)]
        if strategy == "canary":
            beside = [(str(one["host"]), int(one["slot"])) for one in pools.baselines(service, count)]
        weights = [pools.weights_of(one.weight, baseline=bool(beside)) for one in track]
    except pools.PoolsError as error:
        raise ReleaseError(str(error)) from error
    wanted = whole[:count]
    running = {(str(one["host"]), int(one["slot"])): str(one["version"]) for one in live}
    goal = action.version or str(version)
    registered = [where for where in running if where[1] >= pools.CANDIDATE_SLOT]
    slots = _by_host((str(one["host"]), int(one["slot"])) for one in placed)
    # A stable instance of the new version was replaced by a run that died while it settled.
    behind = _by_host(
        (host, slot) for host, listed in slots.items() for slot in listed if running.get((host, slot)) != goal
    )
    zones: dict[str, list[str]] = {}
    for one in placed:
        if one["host"] in behind and one["host"] not in zones.setdefault(one["zone"], []):
            zones[one["zone"]].append(one["host"])
    size = batch_size(service["release"]["batch"], len(behind))
    judged = action.state in _JUDGED
    begins = action.action in ("start", "undo_then_start")
    cursor = Cursor() if begins else resume(track, action.step)
    undo = action.from_version or current
    # Once the candidates have all traffic nobody needs a baseline that is not there.
    missing = [where for where in beside if running.get(where) != undo and not track[cursor.step].baking]
    return PoolPlan(
        service=name,
        version=goal,
        undo=undo,
        strategy=strategy,
        action="start" if begins else action.action,
        reason=action.reason,
        id=action.id or identifier,
        state=action.state,
        candidates=_by_host(wanted),
        deploy=_by_host(where for where in wanted if running.get(where) != goal),
        grow=_by_host(where for where in whole if where not in wanted and running.get(where) != goal),
        leftovers=_by_host(sorted({*whole, *beside, *registered})),
        slots=behind,
        hosts=list(behind),
        serial=[min(size, len(hosts) - start) for hosts in zones.values() for start in range(0, len(hosts), size)],
        steps=[{**asdict(one), "weights": split} for one, split in zip(track, weights)],
        shift_checks=0 if judged else iterations([one for one in track if not one.baking]),
        bake_checks=0 if judged else iterations([one for one in track if one.baking]),
        cursor=cursor.as_dict(),
        baseline=_by_host(beside),
        baseline_deploy=_by_host(missing),
    )
