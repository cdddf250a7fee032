# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The complete documents of a gateway and of the sidecars of a host, from the causeway_* variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from .. import object_storage as storage
from .. import pools as pool_shapes
from . import bootstrap as boot
from . import databases as db
from .clusters import admin, application, local_metrics, pool_name, service_pool, telemetry
from .common import CLUSTER, LISTENER, RUN_ROOT, XDS_ROOT, EnvoyConfigError, Json, discovery
from .listeners import gateway_listeners, inbound_listener, metrics_listener, outbound_listener
from .routes import gateway_routes, outbound_name, outbound_routes
from .settings import Settings
from .tls import secrets, spiffe

GATEWAY = "gateway"
DATABASE = "database"
DEFAULT_BUDGET = 20.0
# Group that Envoy and the node agent share: who may read a file with a token in it.
READERS = "causeway-envoy"
DOCUMENTS = ("bootstrap", "cds", "check", "lds", "local", "sds-identity", "sds-trust")


@dataclasses.dataclass(frozen=True)
class Platform:
    """The description as docs/design.md section 1 has it: what every host knows of all others."""

    domain: str
    hosts: Mapping[str, Json]
    services: dict[str, Json]
    regions: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    # From which the tokens of the header x-causeway-pool derive; "" for none.
    pool_secret: str = dataclasses.field(default="", repr=False)
    databases: Mapping[str, Json] = dataclasses.field(default_factory=dict)


def _host(hosts: Mapping[str, Json], name: str) -> Json:
    try:
        return hosts[name]
    except KeyError:
        raise EnvoyConfigError(
            f"host {name!r}: not in causeway_hosts ({', '.join(sorted(hosts)) or 'empty'})"
        ) from None


def _budget(parts: list[Json]) -> float:
    """The largest retry budget asked for: a cluster has only one."""
    budgets = [float((part.get("retries") or {}).get("budget", DEFAULT_BUDGET)) for part in parts]
    return max(budgets, default=DEFAULT_BUDGET)


def _documents(
    proxy: str,
    *,
    identity: str,
    host: Json,
    local: list[Json],
    listeners: list[Json],
    clusters: list[Json],
    pools: dict[str, Json],
    routes: dict[str, Json],
    settings: Settings,
    checked_routes: dict[str, Json] | None = None,
) -> Json:
    """All documents; `checked_routes` stand for the routes in the document to check when those hold tokens."""
    private = checked_routes is not None
    return {
        "bootstrap": boot.bootstrap(proxy, host, settings),
        "lds": discovery(LISTENER, listeners),
        "cds": discovery(CLUSTER, clusters),
        **secrets(identity),
        "local": boot.local_cluster(proxy, local),
        "check": boot.check_document(
            proxy, host, listeners=listeners, clusters=clusters, routes=checked_routes or routes, settings=settings
        ),
        "targets": _targets(proxy, listeners),
        "proxy": {
            "proxy": proxy,
            "admin": f"{RUN_ROOT}/{proxy}/admin.sock",
            "output": f"{XDS_ROOT}/{proxy}",
            "clusters": pools,
            "routes": routes,
            **({"group": READERS} if private else {}),
        },
        "group": f"causeway-tls-{identity}",
    }


def gateway(host_name: str, platform: Platform, settings: Settings) -> Json:
    """Documents of the gateway of one host: bootstrap, lds, cds, sds, local, check, proxy (for the agent), group."""
    domain, hosts, services = platform.domain, platform.hosts, platform.services
    host = _host(hosts, host_name)
    public = {name: service for name, service in services.items() if service.get("routes")}
    tokens = {name: pool_shapes.pool_token(platform.pool_secret, name) for name in public}
    # Envoy checks a copy without the tokens: it is staged like any other file, and shown in diffs.
    redacted = dict.fromkeys(public, "0" * pool_shapes.TOKEN_LENGTH) if platform.pool_secret else None
    pools: dict[str, Json] = {}
    clusters: list[Json] = []
    for name in sorted(public):
        for pool in pool_shapes.pools_of(public[name]):
            pools[pool_name(name, pool)] = {"service": name, "pool": pool}
            clusters.append(
                service_pool(
                    GATEWAY, domain, public[name], pool, retry_budget=_budget(public[name]["routes"]), settings=settings
                )
            )
    clusters += [admin(GATEWAY), telemetry(settings)]
    listeners = gateway_listeners(settings)
    listeners.append(
        metrics_listener(GATEWAY, host["address"], settings.metrics_port, spiffe(domain, "metrics"), settings)
    )
    # Behind a virtual address one gateway of the region carries all the load: were the standby counted,
    # half of the instances (those in its zone) would stay idle.
    virtual = ((platform.regions.get(host["region"]) or {}).get("gateway") or {}).get("address")
    peers = [
        peer for peer in hosts.values() if peer["region"] == host["region"] and GATEWAY in peer.get("components", [])
    ]
    local = [host] if virtual or not peers else peers
    return _documents(
        GATEWAY,
        identity=GATEWAY,
        host=host,
        local=local,
        listeners=listeners,
        clusters=clusters,
        pools=pools,
        routes={"gateway": gateway_routes(services, settings, tokens)},
        checked_routes={"gateway": gateway_routes(services, settings, redacted)} if redacted is not None else None,
        settings=settings,
    )


def callers(name: str, services: Mapping[str, Json], domain: str) -> list[str]:
    """SPIFFE identities that may call a service: every service that lists it, and the gateway if it has routes."""
    allowed = [
        spiffe(domain, other)
        for other in sorted(services)
        if any(call["service"] == name for call in services[other].get("calls") or [])
    ]
    if services[name].get("routes"):
        allowed.append(spiffe(domain, GATEWAY))
    return allowed


def sidecar_name(service: str) -> str:
    """Proxy name of a service's sidecar."""
    return f"sidecar-{service}"


def sidecar(host_name: str, service_name: str, platform: Platform, settings: Settings) -> Json:
    """Documents of the sidecar of one service on one host; same keys as gateway()."""
    domain, hosts, services = platform.domain, platform.hosts, platform.services
    host = _host(hosts, host_name)
    if service_name not in services:
        raise EnvoyConfigError(f"service {service_name!r}: not in causeway_services")
    service = services[service_name]
    proxy = sidecar_name(service_name)
    placed = service["instances"]["placed"]
    index = int(service["index"])
    network = f"10.89.{index}"
    allowed = callers(service_name, services, domain)
    listeners: list[Json] = []
    clusters: list[Json] = []
    here = [instance for instance in placed if instance["host"] == host_name]
    # Ready for a candidate of each instance from the beginning: a release changes no listener.
    ready = pool_shapes.mirrored_slots(here, baseline=pool_shapes.has_baseline(service))
    for instance in sorted([*here, *ready], key=lambda i: int(i["slot"])):
        slot = int(instance["slot"])
        listeners.append(
            inbound_listener(proxy, service, instance, allowed, scraper=spiffe(domain, "metrics"), settings=settings)
        )
        clusters.append(application(f"inbound_{slot}", f"{network}.{10 + slot}", service["port"], settings))
    pools: dict[str, Json] = {}
    routes: dict[str, Json] = {}
    for call in service.get("calls") or []:
        callee = services.get(call["service"])
        if callee is None:
            raise EnvoyConfigError(f"service {service_name}: calls {call['service']!r}, which does not exist")
        name = outbound_name(call["service"])
        routes[name] = outbound_routes(call, callee, settings)
        listeners.append(outbound_listener(proxy, service, call, address=f"{network}.1", settings=settings))
        for pool in pool_shapes.pools_of(callee):
            pools[pool_name(call["service"], pool)] = {"service": call["service"], "pool": pool}
            clusters.append(service_pool(proxy, domain, callee, pool, retry_budget=_budget([call]), settings=settings))
    database = platform.databases.get(service_name)
    if database:
        listeners += db.sidecar_listeners(proxy, database, address=f"{network}.1", settings=settings)
        clusters += db.sidecar_clusters(proxy, domain, database, settings)
    clusters += [admin(proxy), telemetry(settings)]
    listeners.append(
        metrics_listener(
            proxy, host["address"], settings.metrics_base_port + index, spiffe(domain, "metrics"), settings
        )
    )
    local = [hosts[name] for name in sorted({i["host"] for i in placed}) if name in hosts] or [host]
    return _documents(
        proxy,
        identity=f"svc-{service_name}",
        host=host,
        local=local,
        listeners=listeners,
        clusters=clusters,
        pools=pools,
        routes=routes,
        settings=settings,
    )


def sidecars(host_name: str, platform: Platform, settings: Settings) -> dict[str, Json]:
    """Documents of every sidecar that belongs on a host, by proxy name."""
    return {
        sidecar_name(name): sidecar(host_name, name, platform, settings)
        for name in sorted(platform.services)
        if any(instance["host"] == host_name for instance in platform.services[name]["instances"]["placed"])
    }


def database(host_name: str, platform: Platform, settings: Settings) -> dict[str, Json]:
    """Documents of the proxy before a database host's pooler, by proxy name; {} where no cluster has a member."""
    host = _host(platform.hosts, host_name)
    here = {
        name: one
        for name, one in platform.databases.items()
        if any(member["host"] == host_name for member in one["members"])
    }
    if not here:
        return {}
    proxy, domain = DATABASE, platform.domain
    listeners = [
        db.pooler_listener(proxy, domain, host["address"], here, settings),
        metrics_listener(proxy, host["address"], db.METRICS_PORT, spiffe(domain, "metrics"), settings),
    ]
    return {
        proxy: _documents(
            proxy,
            identity=db.IDENTITY,
            host=host,
            local=[host],
            listeners=listeners,
            clusters=[db.pooler_cluster(settings), admin(proxy), telemetry(settings)],
            pools={},
            routes={},
            settings=settings,
        )
    }


def object_storage(host_name: str, platform: Platform, hosts: Sequence[Json], settings: Settings) -> dict[str, Json]:
    """Documents of the proxy before the metrics of an object storage host, by proxy name; {} on other hosts.

    hosts: ``causeway_object_storage.hosts``. SeaweedFS knows no TLS for metrics, so that they stay on 127.0.0.1.
    """
    running = storage.processes(hosts, host_name)
    if not running:
        return {}
    proxy, host = storage.IDENTITY, _host(platform.hosts, host_name)
    clusters = {process: f"metrics_{process}" for process in running}
    listener = metrics_listener(
        proxy,
        host["address"],
        storage.METRICS_PORT,
        spiffe(platform.domain, "metrics"),
        settings,
        others={f"/{process}": cluster for process, cluster in clusters.items()},
    )
    return {
        proxy: _documents(
            proxy,
            identity=storage.IDENTITY,
            host=host,
            local=[host],
            listeners=[listener],
            clusters=[
                *(local_metrics(cluster, storage.PORTS[process]["metrics"]) for process, cluster in clusters.items()),
                admin(proxy),
                telemetry(settings),
            ],
            pools={},
            routes={},
            settings=settings,
        )
    }


def files(proxies: Mapping[str, Json]) -> dict[str, Json]:
    """What Envoy itself reads, as the files of one config_tree (paths relative to /)."""
    return {
        f"etc/envoy/{proxy}/{name}.yaml": {"content": documents[name]}
        for proxy, documents in sorted(proxies.items())
        for name in DOCUMENTS
    }


def agent_files(proxies: Mapping[str, Json]) -> dict[str, Json]:
    """What the node agent reads, as the files of one config_tree (paths relative to /)."""
    result: dict[str, Json] = {}
    for proxy, documents in sorted(proxies.items()):
        result[f"etc/causeway/agent/targets.d/{proxy}.json"] = {"content": documents["targets"]}
        group = documents["proxy"].get("group")
        result[f"etc/causeway/agent/proxies.d/{proxy}.json"] = {
            "content": documents["proxy"],
            **({"mode": "0640", "group": group, "secret": True} if group else {}),
        }
    return result


def _targets(proxy: str, listeners: Sequence[Json]) -> list[Json]:
    """Scrape targets of a proxy (docs/design.md section 5): where its metrics listener is."""
    (address,) = (one["address"]["socket_address"] for one in listeners if one["name"] == "metrics")
    return [{"job": "envoy", "address": f"{address['address']}:{address['port_value']}", "labels": {"proxy": proxy}}]
