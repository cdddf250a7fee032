# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The candidate pool of a service: where its instances would run, and the token that leads a test to it.

docs/design.md, section 8. Pure functions; used by the inventory, the proxies' configuration and the release verbs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

STABLE = "stable"
CANDIDATE = "candidate"
BASELINE = "baseline"
CANDIDATE_SLOT = 5  # the candidate of slot n runs in slot n + 5
BASELINE_SLOT = 7  # and, where the service has a baseline pool, the baseline of slot n in slot n + 7
BASELINE_PER_HOST = BASELINE_SLOT - CANDIDATE_SLOT
BASELINE_WEIGHT = 50  # the baseline takes as much as the candidates
MAX_SLOT = 9
TOKEN_HEADER = "x-causeway-pool"
TOKEN_LENGTH = 32


class PoolsError(Exception):
    """What is wrong, in one sentence."""


def has_baseline(service: Mapping[str, Any]) -> bool:
    """Whether releases of a normalised service compare the candidates with fresh instances of the old version."""
    release = service.get("release") or {}
    return release.get("strategy") == "canary" and bool((release.get("canary") or {}).get("baseline"))


def pools_of(service: Mapping[str, Any]) -> tuple[str, ...]:
    """The pools of a service in the order in which users are placed: one moves from stable outwards, never across."""
    return (BASELINE, STABLE, CANDIDATE) if has_baseline(service) else (STABLE, CANDIDATE)


def weights_of(weight: int, *, baseline: bool = False) -> dict[str, int]:
    """Weights of all pools with the candidates at `weight` percent. Raises PoolsError where they do not fit."""
    if not baseline or weight in (0, 100):
        return {STABLE: 100 - weight, CANDIDATE: weight}
    if not 0 < weight <= BASELINE_WEIGHT:
        raise PoolsError(
            f"weight: the baseline takes as much as the candidates; allowed are 0 to {BASELINE_WEIGHT} and 100, "
            f"got {weight}"
        )
    return {STABLE: 100 - 2 * weight, CANDIDATE: weight, BASELINE: weight}


def pool_of(slot: int, *, baseline: bool = False) -> str:
    """Pool of a slot: stable 0..4, candidate 5..9; with a baseline candidate 5..6, baseline 7..8."""
    if baseline and slot >= BASELINE_SLOT:
        return BASELINE
    return CANDIDATE if slot >= CANDIDATE_SLOT else STABLE


def mirrored(entry: Mapping[str, Any], slot: int, pool: str = CANDIDATE) -> dict[str, Any]:
    """A placed instance as the one of `pool` in `slot` of the same host."""
    return {
        **entry,
        "slot": slot,
        "id": f"{entry['host']}-{slot}",
        "port": int(entry["port"]) - int(entry["slot"]) + slot,
        "pool": pool,
    }


def mirrored_slots(placed: Iterable[Mapping[str, Any]], *, baseline: bool = False) -> list[dict[str, Any]]:
    """The candidates of these instances, as far as their slots exist; for who must be ready for any of them.

    With `baseline` their baselines too.
    """
    entries = list(placed)
    taken = {(entry["host"], int(entry["slot"])) for entry in entries}
    result = []
    for entry in entries:
        slot = int(entry["slot"]) + CANDIDATE_SLOT
        if slot <= MAX_SLOT and (entry["host"], slot) not in taken:
            result.append(mirrored(entry, slot))
    for entry in entries if baseline else ():
        slot = int(entry["slot"]) + BASELINE_SLOT
        if int(entry["slot"]) < BASELINE_PER_HOST and (entry["host"], slot) not in taken:
            result.append(mirrored(entry, slot, BASELINE))
    return result


def baselines(service: Mapping[str, Any], count: int = 0) -> list[dict[str, Any]]:
    """As many instances of the old version as there are candidates, each beside one; none without `canary.baseline`.

    Raises PoolsError like `candidates`, and where more than two instances are on a host.
    """
    if not has_baseline(service):
        return []
    # All of them: the candidate of a third instance on a host would need the baseline's slot, if not now then later.
    top = max((int(entry["slot"]) - CANDIDATE_SLOT for entry in candidates(service)), default=0)
    if top >= BASELINE_PER_HOST:
        raise PoolsError(
            f"services.{service['name']}.instances.per_host: slot {top} has no room for a baseline; "
            f"allowed with release.canary.baseline are at most {BASELINE_PER_HOST} instances on a host"
        )
    shift = BASELINE_SLOT - CANDIDATE_SLOT
    return [mirrored(entry, int(entry["slot"]) + shift, BASELINE) for entry in candidates(service, count)]


def candidates(service: Mapping[str, Any], count: int = 0) -> list[dict[str, Any]]:
    """Candidate instances of a normalised service: the mirror of `instances.placed`, all of it or `count` of it.

    The first n are spread over the zones as evenly as possible, then over the hosts; the order depends on the
    description alone, so that a later and larger count only adds. Raises PoolsError when the mirror has no room or
    has fewer than `count` places.
    """
    name = str(service["name"])
    placed: Sequence[Mapping[str, Any]] = (service.get("instances") or {}).get("placed") or []
    beyond = sorted({int(entry["slot"]) for entry in placed if int(entry["slot"]) >= CANDIDATE_SLOT})
    if beyond:
        raise PoolsError(
            f"services.{name}.instances.per_host: slot {beyond[0]} belongs to the candidate pool; "
            f"allowed with a judged release are at most {CANDIDATE_SLOT} instances on a host"
        )
    if count < 0 or count > len(placed):
        raise PoolsError(f"service {name}: {count} candidates asked for, allowed are 0 (all) to {len(placed)}")
    waiting: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(placed, key=lambda item: (int(item["slot"]), str(item["host"]))):
        waiting.setdefault(str(entry.get("zone") or ""), []).append(
            mirrored(entry, int(entry["slot"]) + CANDIDATE_SLOT)
        )
    # The zone with the most stable instances first, as the candidates' share should look like theirs.
    order = sorted(waiting, key=lambda zone: (-len(waiting[zone]), zone))
    result: list[dict[str, Any]] = []
    while any(waiting.values()):
        result += [waiting[zone].pop(0) for zone in order if waiting[zone]]
    return result[:count] if count else result


def split_key(key: str) -> tuple[str, int]:
    """`orders@5` as ("orders", 5)."""
    service, _at, slot = key.rpartition("@")
    return service, int(slot)


def on_host(
    placed: Sequence[Mapping[str, Any]],
    installed: Mapping[str, str],
    wanted: Iterable[str] = (),
    with_baseline: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The host's placed instances and its candidates: those a release has installed, and those wanted now.

    Keys are `<service>@<slot>`; `installed` has the pool of each, or "". `with_baseline`: the services whose slots from
    7 on are their baselines. An installed one keeps its pool, whatever became of its service's file since. A candidate
    stays as long as its service has an instance placed on this host (without one there is no sidecar either). Raises
    PoolsError for a wanted one without.
    """
    result = [dict(entry) for entry in placed]
    present = {f"{entry['service']}@{entry['slot']}" for entry in result}
    models: dict[str, dict[str, Any]] = {}
    for entry in sorted(result, key=lambda item: int(item["slot"])):
        models.setdefault(str(entry["service"]), entry)
    required = set(wanted)
    for key in sorted({*installed, *required} - present):
        service, slot = split_key(key)
        if slot < CANDIDATE_SLOT:
            continue
        if service in models:
            pool = installed.get(key, "") if key not in required else ""
            pool = pool if pool in (CANDIDATE, BASELINE) else pool_of(slot, baseline=service in with_baseline)
            result.append(mirrored(models[service], slot, pool))
        elif key in required:
            raise PoolsError(f"{key}: no instance of {service} is placed on this host, so it can have no candidate")
    return result


def pool_token(secret: str, service: str) -> str:
    """Value of the header x-causeway-pool that leads a request to the candidates of a service; "" without a secret."""
    if not secret:
        return ""
    return hmac.new(secret.encode(), f"pool/{service}".encode(), hashlib.sha256).hexdigest()[:TOKEN_LENGTH]
