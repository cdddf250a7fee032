# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to databases: a sidecar's writer and reader ports, and the proxy before a database host's pooler."""

from __future__ import annotations

from collections.abc import Mapping

from .clusters import circuit_breakers
from .common import Json, duration, named, pipe, socket, static_endpoints
from .settings import Settings
from .tls import client, server_mutual, spiffe

IDENTITY = "database"
WRITER, READER = "writer", "reader"
PORTS = {WRITER: 5432, READER: 5433}
POOLER_PORT = 6432
METRICS_PORT = 9103
POOLER = "pooler"
SOCKET = f"/run/postgresql/.s.PGSQL.{POOLER_PORT}"
# Seconds after which a peer that acknowledges nothing is dead, with data on its way or without. TCP alone would go on
# for a quarter of an hour (tcp(7), tcp_retries2).
DEAD_AFTER = 5
_TCP_USER_TIMEOUT = {"description": "dead host", "level": 6, "name": 18, "int_value": DEAD_AFTER * 1000}


def cluster_name(service: str, role: str) -> str:
    """Envoy's name of the members of a service's database that serve a role."""
    return f"db_{service}_{role}"


def server_name(cluster: str, domain: str) -> str:
    """SNI by which the pooler's proxy knows the cluster."""
    return f"{cluster}.{IDENTITY}.{domain}"


def access_log(proxy: str, **extra: str) -> list[Json]:
    """One JSON object for each connection on standard output."""
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "direction": "database",
        "proxy": proxy,
        "flags": "%RESPONSE_FLAGS%",
        "details": "%CONNECTION_TERMINATION_DETAILS%",
        "duration_ms": "%DURATION%",
        "upstream_host": "%UPSTREAM_HOST%",
        "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
        "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        **extra,
    }
    return [
        named(
            "envoy.access_loggers.stdout",
            "extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": fields, "omit_empty_values": True},
        )
    ]


def _tcp_proxy(name: str, cluster: str, log: list[Json], attempts: int) -> Json:
    return named(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=name,
        cluster=cluster,
        # Applications keep their connections for as long as they like.
        idle_timeout="0s",
        max_connect_attempts=attempts,
        access_log=log,
    )


def _keepalive() -> Json:
    return {"tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 2, "keepalive_interval": 1}}


def _health(path: str, domain: str, settings: Settings) -> Json:
    """Patroni's answer about a member. A 503 counts at once, silence after two tries."""
    interval = duration(settings.health_interval)
    return {
        "timeout": duration(settings.health_timeout),
        "interval": interval,
        "no_traffic_interval": interval,
        "no_traffic_healthy_interval": interval,
        "interval_jitter_percent": 10,
        "unhealthy_threshold": settings.health_unhealthy,
        "healthy_threshold": settings.health_healthy,
        "http_health_check": {"host": f"{IDENTITY}.{domain}", "path": path, "codec_client_type": "HTTP1"},
    }


def _members(proxy: str, domain: str, database: Json, role: str, settings: Settings) -> Json:
    """Members fit for a role.

    A connection is not closed when its member is no longer fit. The writers' is held by the pooler there, which sends
    it to the new leader after a switchover; a reader's goes to the leader while its member lags.
    """
    name = cluster_name(database["name"], role)
    path = "/primary" if role == WRITER else f"/replica?lag={int(database['max_lag'])}"
    endpoints = [
        {
            "endpoint": {
                "address": socket(member["address"], POOLER_PORT),
                "health_check_config": {"port_value": int(database["rest_port"])},
            },
            "metadata": {"filter_metadata": {"envoy.lb": {"instance": member["host"]}}},
        }
        for member in sorted(database["members"], key=lambda member: str(member["host"]))
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": duration(settings.connect_timeout),
        "per_connection_buffer_limit_bytes": settings.connection_buffer,
        "lb_policy": "LEAST_REQUEST",
        # So many draws that the member with the fewest connections is hardly ever missed.
        "least_request_lb_config": {"choice_count": 10},
        "common_lb_config": {
            # While nobody leads, any member will do: in a switchover its pooler keeps the query until somebody does.
            # Readers have the writers' members then.
            "healthy_panic_threshold": {"value": 1.0 if role == WRITER else 0.0},
            # By default Envoy gathers changes of health for a second before its workers hear of them.
            "update_merge_window": "0s",
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints}],
            # One fit member is enough: with Envoy's 140 % a part of the readers would go to the leader all the time,
            # because that is no replica.
            "policy": {"overprovisioning_factor": 100000},
        },
        "circuit_breakers": circuit_breakers(settings, 20.0),
        "health_checks": [_health(path, domain, settings)],
        "transport_socket": client(proxy, domain, IDENTITY, server_name(database["name"], domain), alpn=[]),
        "upstream_connection_options": _keepalive(),
        "upstream_bind_config": {"socket_options": [_TCP_USER_TIMEOUT]},
    }


def sidecar_clusters(proxy: str, domain: str, database: Json, settings: Settings) -> list[Json]:
    """Writers, readers, and readers with the writer as the last resort."""
    name = cluster_name(database["name"], "readers")
    return [
        _members(proxy, domain, database, WRITER, settings),
        _members(proxy, domain, database, READER, settings),
        {
            "name": name,
            "connect_timeout": duration(settings.connect_timeout),
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": named(
                "envoy.clusters.aggregate",
                "extensions.clusters.aggregate.v3.ClusterConfig",
                clusters=[cluster_name(database["name"], READER), cluster_name(database["name"], WRITER)],
            ),
        },
    ]


def _listener(name: str, address: Json, chains: list[Json], settings: Settings, **options: object) -> Json:
    return {
        "name": name,
        "stat_prefix": name,
        "address": address,
        "per_connection_buffer_limit_bytes": settings.connection_buffer,
        "filter_chains": chains,
        **options,
    }


def sidecar_listeners(proxy: str, database: Json, *, address: str, settings: Settings) -> list[Json]:
    """Plain TCP on the container network: 5432 the leader, 5433 readers."""
    result = []
    for role, cluster in ((WRITER, WRITER), (READER, "readers")):
        name = f"database_{role}"
        log = access_log(proxy, service=database["service"], role=role)
        filters = [_tcp_proxy(name, cluster_name(database["name"], cluster), log, len(database["members"]) + 1)]
        # The bridge of the container network comes and goes with the containers.
        result.append(_listener(name, socket(address, PORTS[role]), [{"filters": filters}], settings, freebind=True))
    return result


def _allowed(database: Json, domain: str) -> Json:
    """The service's own identity, from hosts that run it."""
    addresses = sorted({str(one["address"]) for one in database["clients"]})
    remote = [{"direct_remote_ip": {"address_prefix": address, "prefix_len": 32}} for address in addresses]
    identity = {"authenticated": {"principal_name": {"exact": spiffe(domain, database["service"])}}}
    policy = {
        "permissions": [{"any": True}],
        "principals": [{"and_ids": {"ids": [identity, {"or_ids": {"ids": remote}}]}}],
    }
    return named(
        "envoy.filters.network.rbac",
        "extensions.filters.network.rbac.v3.RBAC",
        stat_prefix=f"database_{database['name']}",
        # No host, no policy: nobody gets in.
        rules={"action": "ALLOW", "policies": {"service": policy} if remote else {}},
    )


def pooler_listener(proxy: str, domain: str, address: str, databases: Mapping[str, Json], settings: Settings) -> Json:
    """Mutual TLS before this host's pooler: each cluster under a name of its own, for its service alone."""
    chains = []
    for name in sorted(databases):
        log = access_log(proxy, database=name)
        chains.append(
            {
                "name": name,
                "filter_chain_match": {"server_names": [server_name(name, domain)]},
                "filters": [_allowed(databases[name], domain), _tcp_proxy(f"pooler_{name}", POOLER, log, 1)],
                "transport_socket": server_mutual(proxy, alpn=[]),
                "transport_socket_connect_timeout": "5s",
            }
        )
    inspector = named(
        "envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector"
    )
    return _listener(
        POOLER,
        socket(address, POOLER_PORT),
        chains,
        settings,
        listener_filters=[inspector],
        socket_options=[_TCP_USER_TIMEOUT],
        tcp_keepalive={"keepalive_probes": 3, "keepalive_time": 2, "keepalive_interval": 1},
    )


def pooler_cluster(settings: Settings) -> Json:
    """This host's PgBouncer on its unix socket."""
    return {
        "name": POOLER,
        "type": "STATIC",
        "connect_timeout": duration(settings.connect_timeout),
        "per_connection_buffer_limit_bytes": settings.connection_buffer,
        "load_assignment": static_endpoints(POOLER, [pipe(SOCKET)]),
        "circuit_breakers": circuit_breakers(settings, 20.0),
    }
