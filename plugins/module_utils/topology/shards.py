# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shards and tenants of a service's database: defaults, rules and what is derived (docs/sharding.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils import sharding
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import choices, show, suggest

if TYPE_CHECKING:
    from ansible_collections.causeway.platform.plugins.module_utils.topology.model import Service, Topology

# What PostgreSQL's names may have, less the ending of a copy that a move left behind.
MAX_NAME = 63 - len("_moved")
# Endings by which the poolers' and the verbs' own names end.
RESERVED_ENDINGS = ("ro", "owner", "mover", "across", "moved")


def build_shards(data: Any) -> dict[str, Any]:
    """``database.shards`` with its defaults: {by, named: {<shard>: {weight, region, number}}, read_across}; {} without.

    The shard with number 1 is the service's own cluster.
    """
    if data is None:
        return {}
    if isinstance(data, int):
        data = {"count": data}
    given: dict[str, Any] = data.get("named") or {f"s{number}": {} for number in range(1, data.get("count", 1) + 1)}
    named = {
        name: {
            "weight": float((options or {}).get("weight", 1.0)),
            "region": (options or {}).get("region", ""),
            "number": (options or {}).get("number", position),
        }
        for position, (name, options) in enumerate(given.items(), start=1)
    }
    across = [table for table in data.get("read_across") or [] if table]
    return {"by": data.get("by", "tenant"), "named": named, "read_across": across}


def build_tenants(data: Any) -> dict[str, dict[str, str]]:
    """``database.tenants`` by name: {shard: the pin or "", region}."""
    entries = [{"name": one} if isinstance(one, str) else one for one in data or [] if one]
    return {
        one["name"]: {"shard": one.get("shard") or "", "region": one.get("region") or ""}
        for one in entries
        if one.get("name")
    }


def cluster_of(service: str, shard: str, number: int) -> str:
    """Name of a shard's cluster."""
    return service if number == 1 else f"{service}-{shard}"


def database_of(name: str, part: str) -> str:
    """Name of a tenant's database, or of a further shard's own one. ``name``: that of the service's database."""
    return f"{name}_{part.replace('-', '_')}"


def parsed(database: dict[str, Any]) -> list[sharding.Shard]:
    """The shards as the functions of placement take them."""
    return [
        sharding.Shard(name, one["weight"], one["region"]) for name, one in sorted(database["shards"]["named"].items())
    ]


def belong(database: dict[str, Any]) -> dict[str, str]:
    """Where each tenant belongs, by pins, regions and weights; raises ShardingError."""
    tenants = database["tenants"]
    regions = {name: one["region"] for name, one in tenants.items()}
    pins = {name: one["shard"] for name, one in tenants.items() if one["shard"]}
    return sharding.place(tenants, parsed(database), database["shards"]["by"], regions, pins)


def check_shards(topology: Topology, service: Service, data: dict[str, Any]) -> None:
    """Rules of one service's shards and tenants."""
    report, database = service.document.report, service.spec["database"]
    if not database["shards"]:
        if "tenants" in data and not service.document.refused("database", "shards"):
            report(
                ("database", "tenants"), "tenants without shards", None, "the key shards beside it; shards: 1 will do"
            )
        return
    shards = data.get("shards")
    if isinstance(shards, dict) and not service.document.refused("database", "shards"):
        _check_form(service, shards)
        _check_named(topology, service, shards.get("named") or {})
    if service.document.refused("database", "shards"):
        return
    if not any(one["weight"] > 0 for one in database["shards"]["named"].values()):
        report(("database", "shards"), "no shard takes tenants", "weight 0 for all", "a weight above 0 for one")
        return
    _check_tenants(service, data.get("tenants") or [])


def _check_form(service: Service, shards: dict[str, Any]) -> None:
    report, path = service.document.report, ("database", "shards")
    if ("count" in shards) == ("named" in shards):
        got = "both" if "count" in shards else "neither"
        report(path, "count or named", got, "one of both: count for s1, s2 and so on, or named")
    elif shards.get("by") == "region" and "count" in shards:
        report((*path, "count"), "shards by region without regions", None, "named, with a region for each shard")


def _check_named(topology: Topology, service: Service, named: dict[str, Any]) -> None:
    report, path, shards = service.document.report, ("database", "shards", "named"), service.spec["database"]["shards"]
    regions = [region.name for region in topology.regions]
    owners: dict[int, str] = {}
    for name in named:
        one = shards["named"][name]
        region, number = one["region"], one["number"]
        if region and region not in regions:
            report((*path, name, "region"), f"unknown region{suggest(region, regions)}", show(region), choices(regions))
        elif not region and shards["by"] == "region":
            report((*path, name), "a shard by region without one", None, f"region: one of {choices(regions)}")
        if number in owners:
            may = "a number of its own; without the key it is the place in the list"
            report((*path, name), f"the number of shard {owners[number]}", str(number), may)
        owners.setdefault(number, name)
    if named and 1 not in owners:
        may = "number 1 for the shard that is the service's own cluster"
        report(path, "no shard has number 1", choices(map(str, sorted(owners))), may)


def _check_tenants(service: Service, tenants: list[Any]) -> None:
    report, database = service.document.report, service.spec["database"]
    known, seen = database["shards"]["named"], set()
    for position, entry in enumerate(tenants):
        if not entry or (isinstance(entry, dict) and not entry.get("name")):
            continue  # reported already
        path: tuple[Any, ...] = ("database", "tenants", position)
        tenant = entry if isinstance(entry, str) else entry["name"]
        own = {"shard": "", "region": ""} if isinstance(entry, str) else {**database["tenants"][tenant]}
        if tenant in seen:
            report(path, "a tenant given twice", show(tenant), "each tenant once")
            continue
        seen.add(tenant)
        if _check_name(service, path, tenant):
            continue
        if own["shard"] and own["shard"] not in known:
            text = f"tenant {tenant} is on no shard{suggest(own['shard'], known)}"
            report((*path, "shard"), text, show(own["shard"]), choices(known))
            continue
        try:
            pins = {tenant: own["shard"]} if own["shard"] else {}
            sharding.place([tenant], parsed(database), database["shards"]["by"], {tenant: own["region"]}, pins)
        except sharding.ShardingError:
            fitting = sorted({one["region"] for one in known.values() if one["weight"] > 0})
            got = show(own["region"]) if own["region"] else "no region"
            report(path, f"tenant {tenant} is on no shard", got, f"region: one of {choices(fitting)}; or a pin, shard")


def _check_name(service: Service, path: tuple[Any, ...], tenant: str) -> bool:
    """Whether the name of a tenant was refused."""
    report, database = service.document.report, service.spec["database"]
    whole = database_of(database["name"], tenant)
    if tenant.rpartition("_")[2] in RESERVED_ENDINGS:
        may = f"a name that does not end in {choices(RESERVED_ENDINGS)}"
        report(path, "a tenant's name with an ending of the platform's own", show(tenant), may)
    elif tenant in {name.replace("-", "_") for name in database["shards"]["named"]}:
        report(path, "a tenant named like a shard", show(tenant), "another name: shards have a database of their own")
    elif len(whole) > MAX_NAME:
        report(path, "a name that is too long", show(whole), f"at most {MAX_NAME} characters with database.name before")
    else:
        return False
    return True


def names_of(service: Service) -> list[tuple[tuple[Any, ...], str]]:
    """Further names that a service's shards and tenants take at the poolers, each with its place in the file."""
    database = service.spec["database"]
    found: list[tuple[tuple[Any, ...], str]] = []
    refused = service.document.refused("database", "shards") or service.document.refused("database", "tenants")
    if database["shards"] and not refused:
        path: tuple[Any, ...] = ("database", "shards")
        named = [name for name, one in database["shards"]["named"].items() if one["number"] != 1]
        found += [(path, database_of(database["name"], name)) for name in named]
        found += [(("database", "tenants"), database_of(database["name"], name)) for name in database["tenants"]]
    return found


def describe(service: Service, members: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What all clusters of a sharded service know of each other. ``members``: {host, address, ...} by shard.

    {home, by, shards: {<shard>: {cluster, weight, region}}, tenants: {<tenant>: {database, region, pin, belongs}},
    poolers, peers, read_across}. ``home``: the service's own cluster, whose members' poolers offer all tenants.
    ``peers``: members of any shard.
    """
    database = service.spec["database"]
    named, where = database["shards"]["named"], belong(database)
    home = next(name for name, one in named.items() if one["number"] == 1)
    peers = {one["host"]: {key: one[key] for key in ("host", "address")} for many in members.values() for one in many}
    return {
        "home": service.name,
        "by": database["shards"]["by"],
        "shards": {
            name: {
                "cluster": cluster_of(service.name, name, one["number"]),
                "weight": one["weight"],
                "region": one["region"],
            }
            for name, one in named.items()
        },
        "tenants": {
            name: {
                "database": database_of(database["name"], name),
                "region": one["region"],
                "pin": one["shard"],
                "belongs": where[name],
            }
            for name, one in sorted(database["tenants"].items())
        },
        "poolers": [{key: one[key] for key in ("host", "address")} for one in members[home]],
        "peers": [peers[host] for host in sorted(peers)],
        "read_across": list(database["shards"]["read_across"]),
    }
