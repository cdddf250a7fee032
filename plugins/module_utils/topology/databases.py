# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases of services: defaults, rules and what is derived (docs/design.md, section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.postgresql import extensions, parameters
from ansible_collections.causeway.platform.plugins.module_utils.topology import shards
from ansible_collections.causeway.platform.plugins.module_utils.topology.placement import Site, place
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import choices, show, suggest
from ansible_collections.causeway.platform.plugins.module_utils.topology.units import parse_size

if TYPE_CHECKING:
    from ansible_collections.causeway.platform.plugins.module_utils.topology.model import Service, Topology

DEFAULT_MEMBERS = 3
# A second copy must be left after one member is gone, or nothing could be written then.
STRICT_MEMBERS = 3
POSTGRESQL_PORT, REST_PORT, EXPORTER_PORT, PORT_STEP = 15000, 17000, 19000, 10
# 5432 and 5433: the sidecars' writer and reader; 6432 PgBouncer, 8432 pgBackRest, 9103 metrics of the poolers' proxy,
# 9104 PgBouncer's exporter; then PostgreSQL, Patroni and the exporters of clusters, 200 of each.
PORTS = frozenset({5432, 5433, 6432, 8432, 9103, 9104, *range(POSTGRESQL_PORT, EXPORTER_PORT + 200 * PORT_STEP)})
SCHEDULES = ("full", "differential", "incremental", "restore_test")
# Roles and databases that each cluster has anyway, and the names that PostgreSQL and PgBouncer keep for themselves.
RESERVED_NAMES = frozenset(
    {"postgres", "template0", "template1", "replicator", "rewind", "pgbouncer", "monitor", "causeway", "public", "none"}
    | {"all", "replication", "sameuser", "samerole", "samegroup", "user", "current_user", "session_user"}
)


def build_database(data: dict[str, Any] | None, service: str) -> dict[str, Any]:
    """``database:`` of a service file with its defaults; ``members`` 0 stands for as many as fit, see settle."""
    data = data or {}
    placement, pool, backup = data.get("placement") or {}, data.get("pool") or {}, data.get("backup") or {}
    retention = backup.get("retention") or {}
    return {
        "name": data.get("name", service.replace("-", "_")),
        "members": data.get("members", 0),
        "placement": {key: sorted(item for item in placement.get(key) or [] if item) for key in ("regions", "zones")},
        "strict": data.get("strict", False),
        "max_lag": parse_size(data.get("max_lag", "16M")),
        "extensions": extensions.created([item for item in data.get("extensions") or [] if item]),
        "pool": {
            "size": pool.get("size", 20),
            "reserve": pool.get("reserve", 5),
            "clients": pool.get("clients", 400),
        },
        "settings": parameters.normalised(data.get("settings") or {}),
        "backup": {
            "full": backup.get("full", "Sun *-*-* 02:00:00"),
            "differential": backup.get("differential", "Mon..Sat *-*-* 02:00:00"),
            "incremental": backup.get("incremental", "*-*-* 00/4:30:00"),
            "restore_test": backup.get("restore_test", "Sun *-*-* 05:00:00"),
            "retention": {"full": retention.get("full", 2), "differential": retention.get("differential", 7)},
            "checks": [query.strip() for query in backup.get("checks") or [] if query],
        },
        "shards": shards.build_shards(data.get("shards")),
        "tenants": shards.build_tenants(data.get("tenants")),
    }


def sites(topology: Topology, service: Service, region: str = "") -> list[Site]:
    """Hosts that may hold a member of a service's database; with a region, of a shard that is there."""
    placement = service.spec["database"]["placement"]
    return [
        Site(host.name, host.zone, host.region)
        for host in topology.with_component("database")
        if (not placement["regions"] or host.region in placement["regions"])
        and (not placement["zones"] or host.zone in placement["zones"])
        and (not region or host.region == region)
    ]


def settle(topology: Topology, service: Service) -> None:
    """Fills in the number of members that the file leaves open."""
    database = service.spec["database"]
    if database and not database["members"]:
        database["members"] = min(DEFAULT_MEMBERS, *(len(found) for found in _shard_sites(topology, service).values()))


def _shard_sites(topology: Topology, service: Service) -> dict[str, list[Site]]:
    """Hosts that may hold a member, by shard; without shards under an empty name."""
    named = service.spec["database"]["shards"].get("named") or {"": {"region": ""}}
    known = {region.name for region in topology.regions}  # another one is reported where it stands
    return {
        name: sites(topology, service, one["region"] if one["region"] in known else "") for name, one in named.items()
    }


def with_database(topology: Topology) -> list[Service]:
    """Services that have one."""
    return [service for service in topology.services.values() if service.spec["database"]]


def check_database(topology: Topology, service: Service) -> None:
    """Rules of one service's database."""
    if not service.spec["database"]:
        return
    data = (service.document.data or {}).get("database") or {}
    _check_name(service)
    _check_members(topology, service, data)
    _check_extensions(service, data)
    _check_settings(service, data)
    _check_backup(service, data)
    shards.check_shards(topology, service, data)


def _check_name(service: Service) -> None:
    name, report = service.spec["database"]["name"], service.document.report
    if name in RESERVED_NAMES or name.startswith("pg_"):
        report(("database", "name"), "a name of PostgreSQL's or the platform's own", show(name), "any other name")


def _check_members(topology: Topology, service: Service, data: dict[str, Any]) -> None:
    report, database, path = service.document.report, service.spec["database"], ("database",)
    for kind, known in (
        ("regions", [region.name for region in topology.regions]),
        ("zones", [zone for region in topology.regions for zone in region.zones]),
    ):
        for number, name in enumerate((data.get("placement") or {}).get(kind) or []):
            if name and name not in known:
                text = f"unknown {kind[:-1]}{suggest(name, known)}"
                report((*path, "placement", kind, number), text, show(name), choices(known))
    if "database" in topology.doubtful or service.document.refused(*path, "placement"):
        return
    fitting = min(len(found) for found in _shard_sites(topology, service).values())
    if not topology.with_component("database"):
        report(path, "no host for it", None, "one or more hosts with the component database in platform.yml")
    elif not fitting:
        names = ", ".join(f"{host.name} in {host.zone}" for host in topology.with_component("database"))
        report((*path, "placement"), "no database host is there", None, f"where database hosts are: {names}")
    elif database["members"] > fitting:
        where = "hosts with the component database" + (
            " in its placement" if any(database["placement"].values()) else ""
        )
        report((*path, "members"), "more than there are hosts", str(database["members"]), f"at most {fitting} {where}")
    elif database["strict"] and database["members"] < STRICT_MEMBERS and not service.document.refused(*path, "members"):
        may = f"strict with {STRICT_MEMBERS} or more members: with fewer, the loss of one stops every write"
        report((*path, "strict"), "too few members", f"{database['members']} members", may)


def _check_extensions(service: Service, data: dict[str, Any]) -> None:
    for number, name in enumerate(data.get("extensions") or []):
        if name and name not in extensions.EXTENSIONS:
            text = f"unknown extension{suggest(name, extensions.EXTENSIONS)}"
            allowed = choices(sorted(extensions.EXTENSIONS), limit=len(extensions.EXTENSIONS))
            service.document.report(("database", "extensions", number), text, show(name), allowed)


def _check_settings(service: Service, data: dict[str, Any]) -> None:
    report, declared = service.document.report, service.spec["database"]["extensions"]
    for key, value in (data.get("settings") or {}).items():
        if service.document.refused("database", "settings", key):
            continue
        found = parameters.problem(key, value, declared)
        if found:
            report(("database", "settings", key), *found)


def _check_backup(service: Service, data: dict[str, Any]) -> None:
    backup, report, path = service.spec["database"]["backup"], service.document.report, ("database", "backup")
    if backup["full"] or service.document.refused(*path):
        return
    for key in SCHEDULES[1:]:
        if backup[key]:
            place: tuple[Any, ...] = (*path, key) if key in (data.get("backup") or {}) else (*path, "full")
            may = f'a schedule for full backups, or "" for {key} too'
            report(place, f"{key} without full backups, on which all others build", show(backup[key]), may)
            return


def check_databases(topology: Topology) -> None:
    """Rules over all databases: names differ, and one host keeps the backups."""
    owners: dict[str, str] = {}
    databases = with_database(topology)
    for service in databases:
        name = service.spec["database"]["name"]
        for path, one in [(("database", "name"), name), *shards.names_of(service)]:
            mine = (one, f"{one}_ro", f"{one}_owner")
            taken = next((owners[other] for other in mine if other in owners), "")
            if taken:
                may = f"a name of its own: service {taken} has it, or its _ro or _owner, on the same poolers"
                service.document.report(path, "duplicate database name", show(one), may)
            for taken in mine:
                owners.setdefault(taken, service.name)
        groups = {other.replace("-", "_") for other in topology.services}
        for shard, entry in (service.spec["database"]["shards"].get("named") or {}).items():
            cluster = shards.cluster_of(service.name, shard, entry["number"])
            if entry["number"] != 1 and cluster.replace("-", "_") in groups:
                may = f"another name: its cluster {cluster} would be called like a service"
                service.document.report(("database", "shards"), "duplicate cluster name", show(shard), may)
    if databases and "backup" not in topology.doubtful:
        hosts = topology.with_component("backup")
        if len(hosts) != 1:
            names = ", ".join(host.name for host in hosts) or "none"
            may = f"1 host with this component: it keeps the backups of {choices((s.name for s in databases), 5)}"
            topology.document.report(("regions",), "backup: not exactly one host", names, may)


def synchronous(members: int) -> int:
    """Synchronous standbys of a cluster: every commit is on that many further members before it returns."""
    return 0 if members < 2 else 1 if members < 4 else 2


def derive(topology: Topology, services: dict[str, Any], hosts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``causeway_databases``: each cluster by name, as docs/design.md section 9 describes it."""
    result = {}
    for name, spec in services.items():
        if not spec["database"]:
            continue
        service = topology.services[name]
        members = {shard: _members(topology, service, shard, hosts) for shard in _shard_sites(topology, service)}
        sharded = shards.describe(service, members) if spec["database"]["shards"] else {}
        for shard, chosen in members.items():
            one = _cluster(service, shard, chosen, hosts)
            one["sharding"] = {"shard": shard, **sharded} if sharded else {}
            result[one["name"]] = one
    return result


def _members(
    topology: Topology, service: Service, shard: str, hosts: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    database = service.spec["database"]
    # The first shard's members are those that the service had without shards.
    number = database["shards"]["named"][shard]["number"] if shard else 1
    key = f"{service.name}/database" if number == 1 else f"{service.name}/database/{shard}"
    fitting = _shard_sites(topology, service)[shard]
    chosen = {site.host for site, _slot in place(key, database["members"], 1, fitting)}
    return [
        {"host": host, **{key: entry[key] for key in ("address", "zone", "region")}}
        for host, entry in hosts.items()
        if host in chosen
    ]


def _cluster(
    service: Service, shard: str, members: list[dict[str, Any]], hosts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    spec = service.spec
    database = spec["database"]
    number = database["shards"]["named"][shard]["number"] if shard else 1
    # Ports in steps of ten: one for each shard of a service.
    offset = PORT_STEP * spec["index"] + number - 1
    clients = {instance["host"] for instance in spec["instances"]["placed"]}
    return {
        "name": shards.cluster_of(service.name, shard, number),
        "service": service.name,
        "database": database["name"] if number == 1 else shards.database_of(database["name"], shard),
        "role": database["name"],
        "index": spec["index"],
        "port": POSTGRESQL_PORT + offset,
        "rest_port": REST_PORT + offset,
        "exporter_port": EXPORTER_PORT + offset,
        "members": members,
        "synchronous": synchronous(len(members)),
        **{key: database[key] for key in ("strict", "max_lag", "extensions", "pool", "settings", "backup")},
        "clients": [{"host": host, "address": entry["address"]} for host, entry in hosts.items() if host in clients],
    }


def advice(topology: Topology) -> list[str]:
    """What is allowed but a poor idea."""
    found = []
    databases = with_database(topology)
    for service in databases:
        database, named = service.spec["database"], f"service {service.name}: database:"
        members, zones = database["members"], {site.zone for site in sites(topology, service)}
        if members == 1:
            found.append(
                f"{named} a single member has no standby: its host's loss is an outage, and the newest commits go"
            )
        elif members % 2 == 0:
            found.append(f"{named} {members} members: an odd number spreads better over zones and halves of a network")
        if members > 1 and len(zones) == 1 and len({zone for region in topology.regions for zone in region.zones}) > 1:
            found.append(f"{named} all its hosts are in zone {zones.pop()}: losing it loses the database")
        if not any(database["backup"][key] for key in SCHEDULES[:3]):
            found.append(f"{named} no backup is scheduled, so that its write-ahead log is kept for ever")
    both = [host.name for host in topology.with_component("backup") if "database" in host.components]
    if databases and both:
        found.append(f"host {both[0]} holds databases and their backups: its loss takes both")
    return found
