# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a description must keep to beyond its shape. Each rule reports on the document where the mistake is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import migrations
from ansible_collections.causeway.platform.plugins.module_utils.pools import BASELINE_PER_HOST, BASELINE_WEIGHT
from ansible_collections.causeway.platform.plugins.module_utils.topology import databases, object_storage
from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Document, Vaulted
from ansible_collections.causeway.platform.plugins.module_utils.topology.model import Host, Service, Topology
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import choices, nearest, show, suggest
from ansible_collections.causeway.platform.plugins.module_utils.topology.schema import (
    COMPONENTS,
    HOOK_KINDS,
    MESH_PORTS,
    SLOTS,
    network_of,
)

QUORUM = (3, 5, 7)
RESERVED_HOSTS = frozenset({*COMPONENTS, "all", "ungrouped", "localhost"})
RESERVED_SERVICES = frozenset({"gateway", "metrics", "operator", "host", "database", "backup", "object-storage"})
# ssh, etcd, Prometheus, exporters and agent, Envoy metrics (9110 + service index), databases, object storage
RESERVED_PORTS = (databases.PORTS | object_storage.PORTS).union(
    {22, 2379, 2380, 9090, 9100, 9101, 9102, *range(9110, 9110 + (MESH_PORTS[1] - MESH_PORTS[0]) // SLOTS + 1)}
)
SECRET_NAME = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|token|pin|api_?key|private_?key|credentials?)\Z", re.IGNORECASE
)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
DERIVED = frozenset(
    {
        "causeway_platform",
        "causeway_domain",
        "causeway_regions",
        "causeway_hosts",
        "causeway_services",
        "causeway_databases",
        "causeway_object_storage",
        "causeway_backups",
        "causeway_secrets",
        "causeway_lab",
        "causeway_host",
        "causeway_instances",
        "ansible_host",
    }
)
VAULT = "a !vault value (ansible-vault encrypt_string)"


def doubtful_components(document: Document) -> set[str]:
    """Components that a misspelt one was probably meant to be; call before the schema takes the misspelt ones out."""
    doubtful: set[str] = set()
    regions = document.data.get("regions") if isinstance(document.data, dict) else None
    for region in _mappings(regions):
        for zone in _mappings(region.get("zones")):
            for host in _mappings(zone.get("hosts")):
                components = host.get("components")
                for item in components if isinstance(components, list) else ():
                    found = None if item in COMPONENTS else nearest(item, COMPONENTS)
                    doubtful |= {found} if found else set()
    return doubtful


def hosts_complete(data: dict[str, Any], dropped: Iterable[tuple[Any, ...]]) -> bool:
    """Whether all hosts and their components came through the schema, so that counting them makes sense."""
    for path in dropped:  # regions, <region>, zones, <zone>, hosts, <host>, components
        if path[0] == "regions" and (len(path) in (1, 2, 4, 6) or path[-1] in ("zones", "hosts", "components")):
            return False
    regions = _mappings(data.get("regions"))
    zones = [zone for region in regions for zone in _mappings(region.get("zones"))]
    return bool(regions) and all("zones" in region for region in regions) and all("hosts" in zone for zone in zones)


def _mappings(value: Any) -> Iterable[dict[Any, Any]]:
    return [item for item in value.values() if isinstance(item, dict)] if isinstance(value, dict) else []


def check_names(topology: Topology) -> None:
    """Names are unique: hosts and zones over the whole platform, hosts against groups and services."""
    report = topology.document.report
    hosts: dict[str, Host] = {}
    for host in topology.hosts:
        first = hosts.setdefault(host.name, host)
        if first is not host:
            report(
                host.path,
                "duplicate host name",
                show(host.name),
                f"a name of its own; the first is in zone {first.zone}",
            )
        if host.name in RESERVED_HOSTS:
            report(host.path, "a host named like a group", show(host.name), "any other name")
        if host.name in topology.services:
            report(
                host.path,
                "a host named like a service",
                show(host.name),
                "names that differ: both get a name in the domain",
            )
    zones: dict[str, str] = {}
    for region in topology.regions:
        for zone in region.zones:
            if zones.setdefault(zone, region.name) != region.name:
                path = ("regions", region.name, "zones", zone)
                report(
                    path, "duplicate zone name", show(zone), f"a name of its own; the first is in region {zones[zone]}"
                )


def check_addresses(topology: Topology) -> None:
    """Every address belongs to one thing; in a lab all lie in its network."""
    report = topology.document.report
    claims: list[tuple[tuple[Any, ...], str, str]] = []
    for host in topology.hosts:
        claims.append(((*host.path, "address"), host.address or "", f"host {host.name}"))
    for region in topology.regions:
        claims.append(
            (("regions", region.name, "gateway", "address"), region.address, f"the gateways of {region.name}")
        )
    claims.append((("lab", "gateway"), topology.lab.get("gateway", ""), "the lab's bridge"))
    network = network_of(topology.lab["network"]) if topology.lab.get("network") else None
    if network:  # role lab: the first address is this machine's, the second the package cache's
        claims.insert(0, (("lab", "network"), str(network[2]), "the lab's package cache"))
        if "gateway" not in topology.lab:
            claims.insert(0, (("lab", "network"), str(network[1]), "the lab's bridge"))
    owners: dict[str, str] = {}
    for path, address, owner in claims:
        if not address:
            continue
        first = owners.setdefault(address, owner)
        if first is not owner:
            report(path, "duplicate address", address, f"an address of its own; this one belongs to {first}")
        if network:
            inside = {str(network.network_address), str(network.broadcast_address)}
            parts = [int(part) for part in address.split(".")]
            number = int.from_bytes(bytes(parts), "big")
            if address in inside or not int(network.network_address) < number < int(network.broadcast_address):
                report(path, "address outside the lab's network", address, f"a host address of {network}")


def check_regions(topology: Topology) -> None:
    """At least one region is active; gateways fit their region."""
    report = topology.document.report
    if topology.regions and all(region.state != "active" for region in topology.regions):
        report(("regions",), "no region is active", "only standby", "at least one with state: active")
    routers: dict[int, str] = {}
    for region in topology.regions:
        path = ("regions", region.name, "gateway")
        first = routers.setdefault(region.router_id, region.name)
        if first != region.name:
            report(
                (*path, "router_id"),
                "duplicate virtual router",
                str(region.router_id),
                f"a number that region {first} has not",
            )
        gateways = topology.with_component("gateway", region.name)
        if region.address and not gateways and "gateway" not in topology.doubtful:
            report(
                (*path, "address"),
                "a virtual address without a gateway",
                region.address,
                "a host with the component gateway",
            )
        if region.port in RESERVED_PORTS or MESH_PORTS[0] <= region.port < MESH_PORTS[1] + SLOTS:
            report(
                (*path, "port"), "a port that the platform itself uses", str(region.port), "443 or another free port"
            )


def check_components(topology: Topology) -> None:
    """Quorum components have an odd number of hosts, the HSM token one."""
    report = topology.document.report
    if "registry" not in topology.doubtful:
        count = len(topology.with_component("registry"))
        if count not in QUORUM:
            problem = (
                "no quorum"
                if count < QUORUM[0]
                else "an even number adds no safety"
                if count % 2 == 0
                else "too many members"
            )
            report(
                ("regions",),
                f"registry: {problem}",
                f"{count} hosts",
                f"{choices(map(str, QUORUM))} hosts with this component",
            )
    if "trust" not in topology.doubtful:
        count = len(topology.with_component("trust"))
        if count != 1:
            names = ", ".join(host.name for host in topology.with_component("trust")) or "none"
            report(
                ("regions",), "trust: not exactly one host", names, "1 host with this component: it holds the HSM token"
            )


def check_vars(topology: Topology) -> None:
    """Free variables have usable names, leave the derived ones alone and hold no secret in plain text."""
    places: list[tuple[tuple[Any, ...], dict[Any, Any]]] = [(("vars",), topology.vars)]
    places += [((*host.path, "vars"), host.vars) for host in topology.hosts if host.vars]
    for path, values in places:
        for key, value in values.items():
            where = (*path, key)
            if not isinstance(key, str) or not VARIABLE.match(key):
                topology.document.report(where, "bad variable name", show(key), "letters, digits and _, first no digit")
            elif key in DERIVED:
                topology.document.report(where, "this variable is derived by the plugin", None, "any other name")
            elif _plain_secret(key, value):
                topology.document.report(where, "a secret in plain text", None, VAULT)


def _plain_secret(name: str, value: Any) -> bool:
    if (
        not SECRET_NAME.search(name)
        or isinstance(value, Vaulted)
        or value is None
        or isinstance(value, (bool, dict, list))
    ):
        return False
    text = str(value)
    return bool(text) and not ("{{" in text and "}}" in text)  # a template looks it up elsewhere


def check_ports(topology: Topology) -> None:
    """Mesh ports of services are ten apart, because a service has up to ten instances on a host."""
    taken: list[tuple[int, Service]] = []
    for service in topology.services.values():
        port = service.spec["mesh_port"]
        if port is None:
            continue
        own = sorted(RESERVED_PORTS.intersection(range(port, port + SLOTS)))
        if own:
            text = f"port {own[0]} is the platform's own"
            service.document.report(("mesh_port",), text, str(port), f"{_free_port(topology)}, for example")
        for other, owner in taken:
            if abs(other - port) < SLOTS:
                text = f"ports {port} to {port + SLOTS - 1} are taken: {owner.name} has {other} to {other + SLOTS - 1}"
                service.document.report(("mesh_port",), text, str(port), f"{_free_port(topology)}, for example")
                break
        taken.append((port, service))


def _free_port(topology: Topology) -> int:
    used = [service.spec["mesh_port"] or 0 for service in topology.services.values()]
    used += [port for port in RESERVED_PORTS if MESH_PORTS[0] <= port < MESH_PORTS[1] + SLOTS]
    free = (port for port in range(7100, MESH_PORTS[1] + 1, SLOTS) if all(abs(port - other) >= SLOTS for other in used))
    return next(free, MESH_PORTS[0])


def check_service(topology: Topology, service: Service) -> None:
    """Rules that concern one service alone."""
    report, spec, data = service.document.report, service.spec, service.document.data or {}
    if data.get("name") and data["name"] != service.document.path.stem:
        report(
            ("name",),
            "not the name of its file",
            show(service.name),
            f'"{service.document.path.stem}", or rename the file',
        )
    if service.name in RESERVED_SERVICES:
        report(("name",), "a name of the platform's own identities", show(service.name), "any other name")
    image = data.get("image")
    if image is not None and ("archive" in image) == ("repository" in image) and not _refused(service, "image"):
        got = "both" if "archive" in image else "neither"
        report(("image",), "one source is needed", got, "archive or repository")
    if spec["health"]["timeout"] > 10 * spec["health"]["interval"]:
        report(
            ("health", "timeout"),
            "much longer than the interval",
            f"{spec['health']['timeout']:g}s",
            "at most 10 times health.interval",
        )
    if spec["metrics"]["path"] == spec["health"]["path"]:
        # Only Prometheus may read that path, so that callers' health checks would be refused.
        report(("metrics", "path"), "the path of the health check", spec["metrics"]["path"], "another path")
    for key, value in spec["environment"].items():
        if _plain_secret(key, value):
            report(("environment", key), "a secret in plain text", None, VAULT)
    _check_instances(topology, service)
    _check_routes(service)
    _check_verify(service)
    _check_release(service)
    _check_hooks(service)
    _check_migrations(topology, service)
    databases.check_database(topology, service)


def _refused(service: Service, *path: Any) -> bool:
    """Whether something at or below a path of the file has been reported already."""
    return service.document.refused(*path)


def _check_instances(topology: Topology, service: Service) -> None:
    report, numbers, sites = service.document.report, service.spec["instances"], topology.sites(service)
    low, high, count = numbers["min"], numbers["max"], service.count
    if low > high:
        report(("instances", "min"), "above the maximum", str(low), f"at most instances.max, {high}")
    elif not low <= count <= high:
        report(("instances", "count"), "outside min and max", str(count), f"{low} to {high}")
    for kind, known in (
        ("regions", [r.name for r in topology.regions]),
        ("zones", [z for r in topology.regions for z in r.zones]),
    ):
        for number, name in enumerate((service.document.data or {}).get("placement", {}).get(kind) or []):
            if name and name not in known:
                report(
                    ("placement", kind, number),
                    f"unknown {kind[:-1]}{suggest(name, known)}",
                    show(name),
                    choices(known),
                )
    capacity = len(sites) * numbers["per_host"]
    if "services" in topology.doubtful or _refused(service, "placement"):
        return
    if max(high, count) > capacity:
        key = "max" if "max" in ((service.document.data or {}).get("instances") or {}) else "min"
        where = f"{len(sites)} hosts with the component services" + (
            " in its placement" if any(service.spec["placement"].values()) else ""
        )
        report(
            ("instances", key),
            "more than the hosts can hold",
            str(max(high, count)),
            f"at most {capacity}: {where}, {numbers['per_host']} each",
        )
    if service.spec["release"]["batch"] > count and not _refused(service, "instances"):
        report(
            ("release", "batch"),
            "more than there are instances",
            str(service.spec["release"]["batch"]),
            f"at most {count}",
        )


def _check_retries(service: Service, path: tuple[Any, ...], timeout: float, retries: dict[str, Any]) -> None:
    if retries["per_try_timeout"] > timeout:
        got = f"{retries['per_try_timeout']:g}s"
        service.document.report(
            (*path, "retries", "per_try_timeout"), "longer than the whole timeout", got, f"at most {timeout:g}s"
        )
    backoff = retries["backoff"]
    if backoff["base"] > backoff["max"]:
        where = (*path, "retries", "backoff", "base")
        service.document.report(
            where, "above the maximum", f"{backoff['base']:g}s", f"at most backoff.max, {backoff['max']:g}s"
        )


def _check_routes(service: Service) -> None:
    for number, route in enumerate(service.spec["routes"]):
        path = ("routes", number)
        _check_retries(service, path, route["timeout"], route["retries"])
        limit = route["rate_limit"]
        if limit["burst"] < limit["requests"]:
            where = (*path, "rate_limit", "burst")
            service.document.report(
                where, "below the rate itself", str(limit["burst"]), f"at least {limit['requests']}"
            )


def _check_verify(service: Service) -> None:
    data = ((service.document.data or {}).get("release") or {}).get("verify") or {}
    prefixes = [route["prefix"] for route in service.spec["routes"] if route["prefix"]]
    if "path" not in data or _refused(service, "routes"):
        return
    if not any(under(data["path"], prefix) for prefix in prefixes):
        service.document.report(
            ("release", "verify", "path"), "not on a route of this service", show(data["path"]), choices(prefixes)
        )


# What is filled into a query; "$" before anything but a name is left alone, as in the end of a regular expression.
PLACEHOLDERS = ("service", "pool", "window")
_PLACEHOLDER = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
# The gateway uses it to lead our own tests to the candidates, and takes it from everybody else.
TEST_HEADER = "x-causeway-pool"


def _check_release(service: Service) -> None:
    """Rules of a judged release; they hold whatever the strategy is, so that a change of it brings no surprise."""
    data, report = (service.document.data or {}).get("release") or {}, service.document.report
    canary, path = data.get("canary") or {}, ("release", "canary")
    last = 0
    for number, step in enumerate(canary.get("steps") or []):
        weight = (step or {}).get("weight")
        if weight is None:
            continue
        if weight <= last:
            may = f"{last + 1} to 99" if last < 99 else "no further step"
            report((*path, "steps", number, "weight"), "steps do not rise", str(weight), may)
        last = max(last, weight)
    if canary.get("sticky", "").lower() == f"header:{TEST_HEADER}":
        report((*path, "sticky"), "a header of the platform's own", show(canary["sticky"]), "any other header")
    cohort = canary.get("cohort") or {}
    if cohort.get("header", "").lower() == TEST_HEADER:
        report((*path, "cohort", "header"), "a header of the platform's own", TEST_HEADER, "any other header")
    if bool(cohort.get("header")) != bool(cohort.get("value")) and not _refused(service, *path, "cohort"):
        got = "header" if cohort.get("header") else "value"
        report((*path, "cohort"), "one half of a cohort", f"only {got}", "both header and value, or neither")
    if canary.get("instances", 0) > service.count and not _refused(service, "instances"):
        may = f"0 (as many as the largest weight needs) to {service.count}, the number of stable instances"
        report((*path, "instances"), "more candidates than stable instances", str(canary["instances"]), may)
    if canary.get("baseline") is True and not _refused(service, *path) and not _refused(service, "instances"):
        _check_baseline(service)
    names: set[str] = set()
    for number, metric in enumerate((data.get("analysis") or {}).get("metrics") or []):
        where = ("release", "analysis", "metrics", number)
        name = (metric or {}).get("name")
        if name in names:
            report((*where, "name"), "given twice", show(name), "each name once")
        names |= {name} if name else set()
        _check_metric(service, where, metric or {})
    if not _refused(service, "release"):
        _check_scores(service, data)


def _check_baseline(service: Service) -> None:
    """Stable, candidates and as large a baseline must fit: into the traffic and onto the ports of a host."""
    report, path = service.document.report, ("release", "canary")
    for number, step in enumerate(service.spec["release"]["canary"]["steps"]):
        if step["weight"] > BASELINE_WEIGHT:
            may = f"at most {BASELINE_WEIGHT}: with baseline the old version gets as much beside it"
            report((*path, "steps", number, "weight"), "no room for the baseline", str(step["weight"]), may)
    per_host = service.spec["instances"]["per_host"]
    if per_host > BASELINE_PER_HOST:
        may = f"baseline with instances.per_host of at most {BASELINE_PER_HOST}, or no baseline"
        report((*path, "baseline"), "no room for the baseline on a host", f"per_host {per_host}", may)


# Fewer values on a side cannot differ at 98 % in the Mann-Whitney test, whatever they are.
MIN_VALUES = 5


def _check_scores(service: Service, data: dict[str, Any]) -> None:
    """What method kayenta needs, and what has a meaning with it only."""
    report, given, path = service.document.report, data.get("analysis") or {}, ("release", "analysis")
    if service.spec["release"]["analysis"]["method"] != "kayenta":
        for key in ("groups", "thresholds"):
            if key in given:
                report((*path, key), "scores without their method", None, "with method kayenta only")
        for number, metric in enumerate(given.get("metrics") or []):
            for key in ("group", "critical", "effect"):
                if key in (metric or {}):
                    found = (*path, "metrics", number, key)
                    report(found, "scores without their method", None, "with method kayenta only")
        return
    analysis = service.spec["release"]["analysis"]
    groups, used = analysis["groups"], {metric["group"] for metric in analysis["metrics"]}
    for name in sorted(set(groups) - used):
        report((*path, "groups", name), "no metric is in this group", show(name), choices(sorted(used)))
    total, rest = sum(groups.values()), sorted(used - set(groups))
    if groups and not rest and abs(total - 100) > 1e-9:
        report((*path, "groups"), "the weights do not add up", f"{total:g} in all", "100 in all")
    elif groups and rest and total > 100 - 1e-9:
        may = f"below 100 in all: {choices(rest)} shares the rest"
        report((*path, "groups"), "no weight is left", f"{total:g} in all", may)
    limits = analysis["thresholds"]
    if limits["marginal"] > limits["pass"]:
        may = f"at most thresholds.pass, {limits['pass']:g}"
        report((*path, "thresholds"), "marginal is above pass", f"{limits['marginal']:g}", may)
    for number, metric in enumerate(given.get("metrics") or []):
        if number >= len(analysis["metrics"]):
            break
        worse = analysis["metrics"][number]["worse"]
        unused = "allowed_decrease" if worse == "higher" else "allowed_increase"
        if unused in ((metric or {}).get("effect") or {}):
            may = "allowed_increase" if worse == "higher" else "allowed_decrease"
            effect = (*path, "metrics", number, "effect", unused)
            report(effect, f"a change that is not worse, for worse is {worse}", None, may)
    strategy = service.spec["release"]["strategy"]
    if strategy == "rolling":
        return
    least = MIN_VALUES * analysis["interval"]
    may = f"at least {least:g}s, {MIN_VALUES} times analysis.interval: method kayenta judges one value per interval"
    for number, step in enumerate(service.spec["release"]["canary"]["steps"] if strategy == "canary" else []):
        if step["duration"] < least:
            written = (data.get("canary") or {}).get("steps")
            steps: tuple[Any, ...] = ("release", "canary", "steps")
            place = (*steps, number, "duration") if written else steps
            report(place, "too short for its method", f"{step['duration']:g}s", may)
    if service.spec["release"]["blue_green"]["bake"] < least:
        bake = service.spec["release"]["blue_green"]["bake"]
        report(("release", "blue_green", "bake"), "too short for its method", f"{bake:g}s", may)


def _check_migrations(topology: Topology, service: Service) -> None:
    """The files' names, and where they run; what they say is checked when they do."""
    spec, report, path = service.spec["migrations"], service.document.report, ("migrations",)
    if not spec or _refused(service, "migrations"):
        return
    folder = Path(spec["directory"])
    if not folder.is_dir():
        report((*path, "directory"), "no such directory", show(spec["directory"]), "a directory with the migrations")
    elif not any((folder / phase).is_dir() for phase in migrations.PHASES):
        report((*path, "directory"), "none of its phases is there", None, choices(migrations.PHASES))
    else:
        for entry in sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")):
            if entry.name not in migrations.PHASES:
                report((*path, "directory"), "unknown phase", show(entry.name), choices(migrations.PHASES))
                continue
            names = [item.name for item in entry.iterdir() if item.is_file() and not item.name.startswith(".")]
            for name, what, may in migrations.check_names(names):
                report((*path, "directory"), what, show(f"{entry.name}/{name}"), may)
    database, hosts = spec["database"], [host.name for host in topology.hosts]
    given = (service.document.data or {}).get("migrations") or {}
    if not given.get("database") and not service.spec["database"] and not _refused(service, *path, "database"):
        may = "the database to migrate, or the service's own with the section database"
        report(path, "the key database is missing", None, may)
    if spec["cluster"]:
        for key in ("run_on", "secret"):
            if spec[key]:
                may = f"no {key}: they run on the host that leads, with a password of the platform's"
                report((*path, key), f"{key} for a database that the platform runs", show(spec[key]), may)
    if bool(database["cert"]) != bool(database["key"]):
        report((*path, "database"), "one half of a certificate", None, "both cert and key, or neither")
    if spec["run_on"] and spec["run_on"] not in hosts:
        text = "unknown host" + suggest(spec["run_on"], hosts)
        report((*path, "run_on"), text, show(spec["run_on"]), choices(hosts))
    if spec["backoff"]["base"] > spec["backoff"]["max"]:
        report((*path, "backoff", "base"), "above backoff.max", f"{spec['backoff']['base']:g}s", "at most backoff.max")


def _check_metric(service: Service, where: tuple[Any, ...], metric: dict[str, Any]) -> None:
    report, kind, query = service.document.report, metric.get("kind"), metric.get("query")
    if kind in ("errors", "latency"):
        if query is not None:
            may = "no query: the platform has its own; only saturation and business metrics have one"
            report((*where, "query"), f"a query for {kind}", show(query), may)
        if metric.get("worse") == "lower":
            report((*where, "worse"), f"fewer {kind} are not worse", "lower", "higher")
    elif kind in ("saturation", "business") and not _refused(service, *where, "query"):
        wanted = _PLACEHOLDER.findall(query or "")
        if not (query or "").strip():
            may = "PromQL that yields one number for each $pool"
            report(where, "the key query is missing", None, may)
        elif "pool" not in wanted:
            may = "a query with $pool: it is asked once for stable and once for candidate"
            report((*where, "query"), "the query does not tell the pools apart", show(query), may)
        for unknown in sorted(set(wanted) - set(PLACEHOLDERS)):
            may = choices(f"${one}" for one in PLACEHOLDERS)
            report((*where, "query"), f"unknown placeholder{suggest(unknown, PLACEHOLDERS)}", f"${unknown}", may)
    if "quantile" in metric and kind not in (None, "latency"):
        report((*where, "quantile"), f"a quantile of {kind}", show(metric["quantile"]), "with kind latency only")


# What no hook may sign with: the platform derives its own passwords and tokens from these.
OWN_SECRETS = ("registry", "hsm_pin", "hsm_so_pin", "database", "backup", "object_storage")
# Needed only where a service has a database.
DATABASE_SECRETS = ("database", "backup")
# Needed only where a host has the component.
OBJECT_STORAGE_SECRETS = ("object_storage",)
# What has happened at these stages stays, so no hook can stop it.
TOLD_ONLY = ("promoted", "rolled_back")


def _check_hooks(service: Service) -> None:
    report, names = service.document.report, set()
    written = ((service.document.data or {}).get("release") or {}).get("hooks") or []
    for number, (data, hook) in enumerate(zip(written, service.spec["release"]["hooks"])):
        where, name = ("release", "hooks", number), hook["name"]
        if data is None:  # refused as a whole
            continue
        if name and name in names:
            report((*where, "name"), "given twice", show(name), "each name once")
        names.add(name)
        kinds = [kind for kind in HOOK_KINDS if kind in data]
        if len(kinds) != 1 and not any(_refused(service, *where, kind) for kind in HOOK_KINDS):
            report(where, "a hook does one thing", " and ".join(kinds) or "nothing", f"one of {choices(HOOK_KINDS)}")
        for path, file, said in (
            (("playbook",), hook["playbook"], data.get("playbook")),
            (("webhook", "ca_file"), hook["webhook"].get("ca_file"), (data.get("webhook") or {}).get("ca_file")),
        ):
            if file and not Path(file).is_file():
                report((*where, *path), "no such file", show(said), "a file, its path relative to this one")
        if hook["webhook"].get("secret") in OWN_SECRETS:
            may = "any other name in the secrets file"
            report((*where, "webhook", "secret"), "a secret of the platform's own", hook["webhook"]["secret"], may)
        if data.get("failure") == "stop" and hook["stages"] and set(hook["stages"]) <= set(TOLD_ONLY):
            may = "ignore: what has happened at promoted and rolled_back stays"
            report((*where, "failure"), "nothing is left to stop", "stop", may)


def under(path: str, prefix: str) -> bool:
    """Whether a URL path belongs to a route's prefix, segment by segment."""
    return prefix in ("/", path) or path.startswith(prefix + "/")


def check_route_table(topology: Topology) -> None:
    """A prefix belongs to one service; the same service may split one by method."""
    owners: dict[str, list[tuple[Service, set[str]]]] = {}
    for service in topology.services.values():
        for number, route in enumerate(service.spec["routes"]):
            prefix, methods = route["prefix"], set(route["methods"])
            if not prefix:
                continue
            for owner, others in owners.get(prefix, []):
                path = ("routes", number, "prefix")
                if owner is not service:
                    service.document.report(
                        path, f"this prefix belongs to {owner.name}", show(prefix), "a prefix of its own"
                    )
                elif not methods or not others or methods & others:
                    service.document.report(path, "given twice", show(prefix), "once, or with methods that differ")
                else:
                    continue
                break
            owners.setdefault(prefix, []).append((service, methods))


def check_calls(topology: Topology) -> None:
    """Calls lead to services that exist, once each; cycles are allowed. Each service can be reached somehow."""
    known = sorted({*topology.services, *topology.unread})
    called: set[str] = set()
    for service in topology.services.values():
        report = service.document.report
        seen: set[str] = set()
        ports: set[int] = set()
        data = (service.document.data or {}).get("calls") or []
        for number, call in enumerate(service.spec["calls"]):
            name, port = call["service"], call["port"]
            path = ("calls", number) if isinstance(data[number], str) else ("calls", number, "service")
            if not name:
                continue
            if name == service.name:
                report(path, "a service that calls itself", show(name), "other services")
            elif name not in known:
                others = [item for item in known if item != service.name]
                report(path, f"unknown service{suggest(name, others)}", show(name), choices(others))
            elif name in seen:
                report(path, "called twice", show(name), "each service once")
            if port in ports:
                report(("calls", number, "port"), "two calls on one port", str(port), "a port of its own")
            _check_retries(service, ("calls", number), call["timeout"], call["retries"])
            seen.add(name)
            ports.add(port)
        called |= seen - {service.name}
    if topology.unread:  # the unread file may hold the missing call
        return
    for service in topology.services.values():
        if not service.spec["routes"] and service.name not in called and not _refused(service, "routes"):
            service.document.report(
                (), "nobody can reach this service", "no route and no caller", "routes, or a call from another service"
            )


def check_gateways(topology: Topology) -> None:
    """A region that may run a routed service has a gateway."""
    if "gateway" in topology.doubtful:
        return
    with_gateway = {host.region for host in topology.with_component("gateway")}
    lacking: dict[str, list[str]] = {}
    for service in topology.services.values():
        if service.spec["routes"]:
            for region in {site.region for site in topology.sites(service)} - with_gateway:
                lacking.setdefault(region, []).append(service.name)
    for region, names in lacking.items():
        path = ("regions", region)
        topology.document.report(
            path, "no gateway for its routed services", choices(names, 5), "a host with the component gateway"
        )


def check_all(topology: Topology) -> None:
    """Runs every rule."""
    rules: list[Callable[[Topology], None]] = [
        check_names,
        check_addresses,
        check_regions,
        check_components,
        check_vars,
        check_ports,
        check_route_table,
        check_calls,
        check_gateways,
        databases.check_databases,
        object_storage.check,
    ]
    for service in topology.services.values():
        check_service(topology, service)
    for rule in rules:
        rule(topology)


def advice(topology: Topology) -> list[str]:
    """What is allowed but a poor idea."""
    registry = topology.with_component("registry")
    majority = len(registry) // 2 + 1
    found = []
    for zone in {host.zone for host in registry}:
        members = [host.name for host in registry if host.zone == zone]
        if len(members) >= majority:
            found.append(
                f"zone {zone} holds {len(members)} of {len(registry)} registry hosts: losing it loses the quorum"
            )
    found.sort()
    for service in topology.services.values():
        low, batch = service.spec["instances"]["min"], service.spec["release"]["batch"]
        if service.count - batch < low:
            found.append(
                f"service {service.name}: a release takes {batch} of {service.count} instances out at once, which goes"
                f" below instances.min, {low}, and will be refused; raise instances.count"
            )
    return found + databases.advice(topology) + object_storage.advice(topology)
