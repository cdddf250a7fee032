# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tenants in the description, gates and reports of the verbs for tenants: pure functions behind filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import sharding
from ansible_collections.causeway.platform.plugins.module_utils.patroni_report import gate_problems

# A copy needs its tables and indexes, and the write-ahead log of making them.
SPACE = 2.0


def services(databases: Mapping[str, Any]) -> dict[str, Any]:
    """Services with shards, by their own cluster: {belongs: shard by tenant, shards: cluster by shard}."""
    return {
        name: {
            "belongs": {tenant: one["belongs"] for tenant, one in cluster["sharding"]["tenants"].items()},
            "shards": {shard: one["cluster"] for shard, one in cluster["sharding"]["shards"].items()},
        }
        for name, cluster in sorted(databases.items())
        if (cluster.get("sharding") or {}).get("home") == name
    }


def databases_here(cluster: Mapping[str, Any], places: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Databases of the tenants that live in a cluster. ``places``: by tenant, as registry_tenants returns them."""
    own = cluster.get("sharding") or {}
    return [
        one["database"]
        for tenant, one in sorted((own.get("tenants") or {}).items())
        if tenant in places and places[tenant]["shard"] == own["shard"]
    ]


def ways(databases: Mapping[str, Any], service: str, places: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each tenant's database is reached: {name, database, hosts, port}."""
    own, found = databases[service]["sharding"], []
    for tenant, one in sorted(own["tenants"].items()):
        shard = own["shards"].get((places.get(tenant) or {}).get("shard", ""))
        if shard:
            cluster = databases[shard["cluster"]]
            hosts = [str(member["address"]) for member in cluster["members"]]
            found.append({"name": tenant, "database": one["database"], "hosts": hosts, "port": int(cluster["port"])})
    return found


def problems(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    activity: Mapping[str, Any] | None = None,
    *,
    longest: float = 30.0,
    max_lag: int = 16 << 20,
) -> list[str]:
    """Why a tenant should not move now. ``source`` and ``target``: as patroni_info returns their clusters;
    ``activity``: of the source's leader, as postgresql_activity_info returns it.
    """
    found = [f"the shard that it leaves: {one}" for one in gate_problems(source, activity, longest=longest)]
    return found + [f"the shard that it goes to: {one}" for one in gate_problems(target, max_lag=max_lag)]


def space_problem(size: int, free: int) -> str:
    """Why a copy of ``size`` bytes does not fit into ``free`` ones; empty if it does."""
    needed = int(size * SPACE)
    if free >= needed:
        return ""
    return f"the copy may need {_bytes(needed)}, and the target's leader has {_bytes(free)} left"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def report(
    service: str,
    tenant: str,
    facts: Mapping[str, Any],
    hosts: Iterable[Mapping[str, Any]] = (),
    *,
    failure: str = "",
    check_mode: bool = False,
) -> dict[str, Any]:
    """The end of a move as data and as readable lines (``text``).

    ``facts``: origin, destination, copied ({seconds, check_seconds}), published (facts of the database), cleared
    (steps). ``hosts``: what postgresql_tenant with state switched returned as ``moved``, of each host.
    """
    origin, destination = str(facts.get("origin") or ""), str(facts.get("destination") or "")
    switched = [dict(one) for one in hosts if one]
    pauses = [float(one["pause"]) for one in switched if one.get("pause") is not None]
    verified = next((one for one in switched if "rows" in one), {})
    published, copied = facts.get("published") or {}, facts.get("copied") or {}
    moved = bool(verified) and not check_mode
    nothing = bool(origin) and origin == destination
    outcome = "failed" if failure else "planned" if check_mode else "nothing to do" if nothing else "done"
    if failure and moved:
        outcome = "done, but not cleared away"
    pause = max(pauses) if pauses else None
    lines = [f"tenant_move of {tenant} of {service}: {outcome}"]
    if nothing:
        lines.append(f"  it is on shard {origin}")
    elif origin:
        lines.append(f"  {origin} -> {destination}")
    if published:
        lines.append(f"  {_bytes(int(published['size']))} in {len(published['tables'])} tables")
    if copied and not check_mode:
        lines.append(f"  copied in {float(copied['seconds']):g} s")
    if verified:
        sums = f", checksum {verified['checksum']}" if verified.get("checksum") else ""
        lines.append(f"  {verified['rows']} rows in {verified['tables']} tables are equal on both{sums}")
        lines.append(f"  {verified['sequences']} sequences set; level with the source at {verified['lsn']}")
    if pause is not None:
        lines.append(f"  clients waited at the poolers for at most {pause:g} s")
    steps = list(facts.get("cleared") or [])
    lines += [f"  {one}" for one in steps]
    if failure:
        lines.append(f"  {failure}")
    return {
        "verb": "tenant_move",
        "service": service,
        "tenant": tenant,
        "outcome": outcome,
        "from": origin,
        "to": destination,
        "bytes": int(published.get("size") or 0),
        "rows": verified.get("rows"),
        "tables": verified.get("tables"),
        "checksum": verified.get("checksum", ""),
        "lsn": verified.get("lsn", ""),
        "copy_seconds": copied.get("seconds"),
        "pause": pause,
        "pauses": pauses,
        "times": {name: value for one in switched for name, value in (one.get("times") or {}).items()},
        "sessions_ended": verified.get("sessions_ended"),
        "steps": steps,
        "failure": failure,
        "text": lines,
    }


def status(
    service: str,
    own: Mapping[str, Any],
    places: Mapping[str, Mapping[str, Any]],
    seen: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Where tenants are and which should move, as data and as readable lines (``text``).

    ``own``: ``sharding`` of the service's cluster. ``seen``: databases of each shard's leader by shard, as
    postgresql_tenant with state observed returns them.
    """
    tenants, seen = own["tenants"], seen or {}
    shards = {name: {"weight": one["weight"], "region": one["region"]} for name, one in own["shards"].items()}
    here = {tenant: str(place["shard"]) for tenant, place in sorted(places.items()) if tenant in tenants}
    plan = sharding.plan(
        here,
        sharding.parse_shards(shards),
        own["by"],
        {tenant: one["region"] for tenant, one in tenants.items()},
        {tenant: one["pin"] for tenant, one in tenants.items() if one["pin"] and tenant in here},
    )
    left = {shard: {name: one for name, one in known.items() if one["move"]} for shard, known in sorted(seen.items())}
    lines = [f"tenants of {service}: {len(here)} on {len(shards)} shards"]
    for shard in sorted(shards):
        names = [tenant for tenant, place in here.items() if place == shard]
        known = seen.get(shard, {})
        sizes = [known[name]["size"] for name in (tenants[one]["database"] for one in names) if name in known]
        size = f", {_bytes(sum(sizes))}" if shard in seen else ", nobody asked"
        lines.append(f"  {shard}: {len(names)}{size}{': ' + _some(names) if names else ''}")
    for tenant in sorted(set(tenants) - set(here)):
        lines.append(f"  {tenant} has no place yet; site.yml gives it one")
    for tenant in sorted(set(places) - set(tenants)):
        lines.append(f"  {tenant} is on {places[tenant]['shard']} and no longer in the description")
    for move in plan["moves"]:
        lines.append(f"  to move: {move['tenant']} from {move['from']} to {move['to']} ({move['reason']})")
    for shard, found in left.items():
        lines += [f"  {shard} has {name}, {_bytes(one['size'])}: {one['note']}" for name, one in found.items()]
    return {
        "service": service,
        "tenants": {tenant: dict(places[tenant]) for tenant in here},
        "moves": plan["moves"],
        "share": plan["share"],
        "left": {shard: sorted(known) for shard, known in left.items() if known},
        "text": lines,
    }


def _some(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
