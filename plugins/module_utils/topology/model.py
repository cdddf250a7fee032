# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a description says, with every default filled in. Values that the schema refused are absent (None)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.topology.databases import (
    PORT_STEP,
    POSTGRESQL_PORT,
    build_database,
)
from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Document
from ansible_collections.causeway.platform.plugins.module_utils.topology.placement import Site
from ansible_collections.causeway.platform.plugins.module_utils.topology.schema import (
    CALL_PORTS,
    COMPONENTS,
    HOOK_STAGES,
    MESH_PORTS,
    SLOTS,
)
from ansible_collections.causeway.platform.plugins.module_utils.topology.units import parse_duration


@dataclass(frozen=True)
class Host:
    """A machine of the platform."""

    name: str
    address: str | None
    zone: str
    region: str
    components: tuple[str, ...]
    vars: dict[Any, Any]

    @property
    def path(self) -> tuple[Any, ...]:
        """Where the host is written in platform.yml."""
        return ("regions", self.region, "zones", self.zone, "hosts", self.name)


@dataclass(frozen=True)
class Region:
    """A region with its zones in order."""

    name: str
    state: str
    zones: tuple[str, ...]
    address: str
    port: int
    router_id: int


@dataclass
class Service:
    """A service: its file, and its normalised form as in docs/design.md section 1."""

    name: str
    document: Document
    spec: dict[str, Any]
    count: int = 0


@dataclass
class Topology:
    """The whole description."""

    document: Document
    platform: str = ""
    domain: str = ""
    regions: list[Region] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    services: dict[str, Service] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)  # services whose file could not be read
    doubtful: set[str] = field(default_factory=set)  # components that a misspelt one was probably meant to be
    vars: dict[Any, Any] = field(default_factory=dict)
    lab: dict[str, Any] = field(default_factory=dict)

    def with_component(self, component: str, region: str | None = None) -> list[Host]:
        """Hosts of a component, of one region or of all."""
        return [host for host in self.hosts if component in host.components and region in (None, host.region)]

    def sites(self, service: Service) -> list[Site]:
        """Hosts that may run a service."""
        regions, zones = service.spec["placement"]["regions"], service.spec["placement"]["zones"]
        return [
            Site(host.name, host.zone, host.region)
            for host in self.hosts
            if "services" in host.components
            and (not regions or host.region in regions)
            and (not zones or host.zone in zones)
        ]


def natural(text: str) -> list[Any]:
    """Sort key that puts app2 before app10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", text) if part]


def build_topology(document: Document) -> Topology:
    """Regions and hosts of platform.yml, in natural order of their names whatever the order in the file."""
    data = document.data or {}
    topology = Topology(document, data.get("platform") or "", data.get("domain") or "")
    topology.vars = data.get("vars") or {}
    topology.lab = data.get("lab") or {}
    regions = data.get("regions") or {}
    for rank, name in enumerate(sorted(regions, key=natural)):
        region = regions[name]
        zones = region.get("zones") or {}
        gateway = region.get("gateway") or {}
        names = tuple(sorted(zones, key=natural))
        topology.regions.append(
            Region(
                name,
                region.get("state", "active"),
                names,
                gateway.get("address", ""),
                gateway.get("port", 443),
                gateway.get("router_id", 51 + rank),
            )
        )
        for zone in names:
            hosts = zones[zone].get("hosts") or {}
            for host in sorted(hosts, key=natural):
                entry = hosts[host]
                chosen = entry.get("components") or []
                components = tuple(item for item in COMPONENTS if item in chosen)
                topology.hosts.append(Host(host, entry.get("address"), zone, name, components, entry.get("vars") or {}))
    return topology


def _seconds(data: dict[str, Any], key: str, default: float) -> float:
    return parse_duration(data[key]) if key in data else default


def _share(timeout: float, attempts: Any) -> float:
    """Seconds of one attempt when the first and all repetitions share ``timeout``."""
    tries = attempts + 1 if isinstance(attempts, int) and attempts >= 0 else 1
    return round(timeout / tries, 3)


def _retries(data: dict[str, Any], timeout: float) -> dict[str, Any]:
    backoff = data.get("backoff") or {}
    base = _seconds(backoff, "base", 0.025)
    attempts = data.get("attempts", 2)
    return {
        "attempts": attempts,
        # all attempts fit into the timeout; a junk value is told by the schema, not here
        "per_try_timeout": _seconds(data, "per_try_timeout", _share(timeout, attempts)),
        "backoff": {"base": base, "max": _seconds(backoff, "max", round(base * 10, 6))},
        "budget": float(data.get("budget", 20.0)),
    }


def _route(data: dict[str, Any]) -> dict[str, Any]:
    timeout = _seconds(data, "timeout", 10.0)
    rate = data.get("rate_limit") or {}
    requests = rate.get("requests", 1000)
    return {
        "prefix": data.get("prefix", ""),
        "timeout": timeout,
        "methods": [method for method in data.get("methods") or [] if method],
        "retries": _retries(data.get("retries") or {}, timeout),
        "rate_limit": {
            "requests": requests,
            "per": _seconds(rate, "per", 1.0),
            "burst": rate.get("burst", 2 * requests),
        },
    }


def _call(position: int, data: Any) -> dict[str, Any]:
    data = {"service": data} if isinstance(data, str) else data
    timeout = _seconds(data, "timeout", 3.0)
    return {
        "service": data.get("service", ""),
        "port": data.get("port", CALL_PORTS[0] + position),
        "timeout": timeout,
        "retries": _retries(data.get("retries") or {}, timeout),
    }


# Weights and times of a canary whose file names none.
DEFAULT_STEPS = ((5, 60.0), (25, 60.0), (50, 60.0))
# A slowdown below this share of the stable latency does not fail a release.
LATENCY_MARGIN = 0.2


def _metric(data: dict[str, Any]) -> dict[str, Any]:
    kind = data.get("kind", "")
    return {
        "name": data.get("name", ""),
        "kind": kind,
        "query": (data.get("query") or "").strip(),
        "worse": data.get("worse", "lower" if kind == "business" else "higher"),
        "margin": float(data.get("margin", LATENCY_MARGIN if kind == "latency" else 0.0)),
        "quantile": float(data.get("quantile", 0.99)),
        "limit": None if data.get("limit") is None else float(data["limit"]),
        **_scored_metric(data, kind),
    }


def _scored_metric(data: dict[str, Any], kind: str) -> dict[str, Any]:
    """What method kayenta needs of a metric besides: the margin is the effect that is tolerated by default."""
    effect = data.get("effect") or {}
    margin = float(data.get("margin", LATENCY_MARGIN if kind == "latency" else 0.0))
    return {
        "group": data.get("group", kind),
        "critical": data.get("critical", False),
        "effect": {
            "allowed_increase": float(effect.get("allowed_increase", 1 + margin)),
            "allowed_decrease": float(effect.get("allowed_decrease", max(1 - margin, 0.0))),
        },
    }


def _judged(release: dict[str, Any]) -> dict[str, Any]:
    """What a judged release goes by (docs/design.md, section 8)."""
    canary, blue_green, analysis = (release.get(key) or {} for key in ("canary", "blue_green", "analysis"))
    rolling = release.get("rolling") or {}
    cohort, sticky = canary.get("cohort") or {}, canary.get("sticky", "cookie")
    steps = [
        {"weight": step["weight"], "duration": _seconds(step, "duration", 60.0)}
        for step in canary.get("steps") or []
        if step and "weight" in step
    ]
    metrics = [_metric(metric) for metric in analysis.get("metrics") or [] if metric]
    return {
        "canary": {
            "steps": steps or [{"weight": weight, "duration": duration} for weight, duration in DEFAULT_STEPS],
            # Names of headers do not depend on case; Envoy wants them in lower case.
            "sticky": sticky.lower(),
            "cohort": {"header": cohort.get("header", "").lower(), "value": cohort.get("value", "")},
            "instances": canary.get("instances", 0),
            "baseline": canary.get("baseline", False),
        },
        "blue_green": {
            "bake": _seconds(blue_green, "bake", 60.0),
            "mirror": {"percent": float((blue_green.get("mirror") or {}).get("percent", 0.0))},
        },
        "rolling": {"judge": rolling.get("judge", True), "require": rolling.get("require", False)},
        "rollback_window": _seconds(release, "rollback_window", 300.0),
        "analysis": {
            "interval": _seconds(analysis, "interval", 30.0),
            "alpha": float(analysis.get("alpha", 0.05)),
            "min_requests": analysis.get("min_requests", 100),
            "method": analysis.get("method", "sequential"),
            "groups": {name: float(weight) for name, weight in (analysis.get("groups") or {}).items()},
            "thresholds": {
                "pass": float((analysis.get("thresholds") or {}).get("pass", 95.0)),
                "marginal": float((analysis.get("thresholds") or {}).get("marginal", 75.0)),
            },
            "metrics": metrics or [_metric({"name": kind, "kind": kind}) for kind in ("errors", "latency")],
        },
    }


def _hook(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One hook of releases (docs/hooks.md); the kinds that it is not are empty."""
    webhook, mail = data.get("webhook") or {}, data.get("mail") or {}

    def file(name: Any) -> str:
        return str((folder / name).resolve()) if name else ""

    return {
        "name": data.get("name", ""),
        "stages": [stage for stage in HOOK_STAGES if stage in (data.get("stages") or [])],
        "playbook": file(data.get("playbook")),
        "webhook": {
            "url": webhook.get("url", ""),
            "secret": webhook.get("secret", ""),
            "ca_file": file(webhook.get("ca_file")),
        }
        if webhook
        else {},
        "mail": {"to": [one for one in mail.get("to") or [] if one]} if mail else {},
        "timeout": _seconds(data, "timeout", 60.0),
        # A mail asks nobody: that it cannot be sent is no reason to go back.
        "failure": data.get("failure", "ignore" if mail else "stop"),
    }


def _migrations(data: dict[str, Any] | None, folder: Path, name: str, own: dict[str, Any]) -> dict[str, Any]:
    """Migrations of the service's database; empty for none. `own`: how its cluster of the platform is reached, or {}.

    Those of a cluster of the platform run on the host that leads it, through the server's unix socket.
    """
    if data is None:
        return {}
    database, backoff = data.get("database") or own, data.get("backoff") or {}
    base = _seconds(backoff, "base", 0.5)
    return {
        "directory": str((folder / (data.get("directory") or f"migrations/{name}")).resolve()),
        "database": {
            "host": database.get("host", ""),
            "port": database.get("port", 5432),
            "name": database.get("name", ""),
            "user": database.get("user", ""),
            "sslmode": database.get("sslmode", "verify-full"),
            "ca": database.get("ca", ""),
            "cert": database.get("cert", ""),
            "key": database.get("key", ""),
        },
        "cluster": name if own and not data.get("database") else "",
        "secret": data.get("secret", ""),
        "lock_timeout": _seconds(data, "lock_timeout", 2.0),
        "statement_timeout": _seconds(data, "statement_timeout", 60.0),
        "retries": data.get("retries", 5),
        "backoff": {"base": base, "max": _seconds(backoff, "max", max(30.0, base))},
        "batch_pause": _seconds(data, "batch_pause", 0.1),
        "run_on": data.get("run_on", ""),
        "lint": {"exclude": sorted(rule for rule in (data.get("lint") or {}).get("exclude") or [] if rule)},
    }


def own_database(data: dict[str, Any], name: str) -> dict[str, Any]:
    """How the owner of the database that the platform runs for a service reaches its server; empty without one."""
    if "database" not in data:
        return {}
    database = build_database(data["database"], name)["name"]
    port = POSTGRESQL_PORT + PORT_STEP * service_index(data.get("mesh_port"))
    return {"host": "/run/postgresql", "port": port, "name": database, "user": f"{database}_owner"}


def service_index(mesh_port: int | None) -> int:
    """The number of a service, from its port: unlike a rank it does not change when other services come and go."""
    return ((mesh_port or MESH_PORTS[0]) - MESH_PORTS[0]) // SLOTS


def build_service(document: Document, folder: Path) -> Service:
    """A service with its defaults; ``folder`` is what a relative archive path starts from."""
    data = document.data or {}
    name = data.get("name") or document.path.stem
    image, health, number = data.get("image") or {}, data.get("health") or {}, data.get("instances") or {}
    placement, resources = data.get("placement") or {}, data.get("resources") or {}
    release, slo = data.get("release") or {}, data.get("slo") or {}
    archive = (image.get("archive") or "").replace("{service}", name)
    repository = image.get("repository") or ""
    reference = image.get("reference") or (repository or f"localhost/causeway/{name}") + ":{version}"
    # A refused value leaves a hole: routes and calls keep their positions, so that messages point at the right one.
    routes = [_route(route or {}) for route in data.get("routes") or []]
    calls = [_call(position, call or {}) for position, call in enumerate(data.get("calls") or [])]
    low = number.get("min", 2)
    verify = release.get("verify") or {}
    environment = data.get("environment") or {}
    spec = {
        "name": name,
        "version": data.get("version"),
        "image": {
            "archive": str((folder / archive).resolve()) if archive else "",
            "repository": repository,
            "reference": reference.replace("{service}", name),
        },
        "port": data.get("port"),
        "mesh_port": data.get("mesh_port"),
        "index": service_index(data.get("mesh_port")),
        "health": {
            "path": health.get("path", "/healthz"),
            "interval": _seconds(health, "interval", 0.5),
            "timeout": _seconds(health, "timeout", 1.0),
            "unhealthy": health.get("unhealthy", 2),
            "healthy": health.get("healthy", 1),
            "start_timeout": _seconds(health, "start_timeout", 60.0),
        },
        "metrics": {"path": (data.get("metrics") or {}).get("path", "")},
        "instances": {
            "min": low,
            "max": number.get("max", low),
            "per_host": number.get("per_host", 2),
            "placed": [],
        },
        "placement": {
            "regions": sorted((item for item in placement.get("regions") or [] if item), key=natural),
            "zones": sorted((item for item in placement.get("zones") or [] if item), key=natural),
        },
        "routes": routes,
        "calls": calls,
        "resources": {
            "memory": resources.get("memory", "256M"),
            "cpus": float(resources.get("cpus", 1.0)),
            "pids": resources.get("pids", 200),
        },
        "environment": {
            key: str(value) if isinstance(value, (int, float)) else value for key, value in sorted(environment.items())
        },
        "release": {
            "strategy": release.get("strategy", "rolling"),
            "batch": release.get("batch", 1),
            "pause": _seconds(release, "pause", 2.0),
            "drain_timeout": _seconds(release, "drain_timeout", 30.0),
            "health_timeout": _seconds(release, "health_timeout", 60.0),
            "verify": {
                "path": verify.get("path", routes[0]["prefix"] if routes else ""),
                "requests": verify.get("requests", 20),
            },
            **_judged(release),
            "hooks": [_hook(hook or {}, folder) for hook in release.get("hooks") or []],
        },
        "migrations": _migrations(data.get("migrations"), folder, name, own_database(data, name)),
        "database": build_database(data["database"], name) if "database" in data else {},
        "slo": {
            "availability": float(slo.get("availability", 99.9)),
            "latency_p99": _seconds(slo, "latency_p99", 0.25),
        },
    }
    return Service(name, document, spec, number.get("count", low))


def settle_instances(service: Service, capacity: int) -> None:
    """Fills in a count, and then a maximum, that the file leaves open; ``capacity`` is what the hosts can hold.

    The default count leaves room for a release to take out a batch without going below the minimum.
    """
    given = (service.document.data or {}).get("instances") or {}
    numbers = service.spec["instances"]
    if "count" not in given:
        wanted = min(numbers["min"] + service.spec["release"]["batch"], given.get("max", capacity), capacity)
        service.count = max(numbers["min"], wanted)
    if "max" not in given:
        numbers["max"] = max(numbers["min"], service.count)
