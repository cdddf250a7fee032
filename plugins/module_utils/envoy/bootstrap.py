# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootstrap: the part of a proxy that never changes while it runs, and the self-contained document to check."""

from __future__ import annotations

from typing import Any

from .common import CONFIG_ROOT, ENDPOINTS, RUN_ROOT, Json, discovery, file_source, named, pipe
from .settings import Settings

LOCAL = "local_cluster"
# Milliseconds. A quantile that is read from a histogram is as exact as its buckets are narrow: the series R10 of
# preferred numbers (ISO 3) has steps of 25 % and holds the round limits that people choose (25, 50, 100, 250 ms, 1 s).
_R10 = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
LATENCY_BUCKETS = [
    *(0.5, 1.0, 2.0, 3.15, 4.0),
    *(round(step * 10**power, 2) for power in range(4) for step in _R10 if step * 10**power >= 5),
    *(10000.0, 15000.0, 30000.0, 60000.0),
]
# Only of the pools: they are what a release is judged by, and each bucket is a series for Prometheus.
LATENCY_STATS = r"cluster\.[^.]+_(stable|candidate|baseline)\.upstream_rq_time"


def node(proxy: str, host: Json) -> Json:
    """Who this proxy is and where it stands."""
    return {
        "id": f"{host['name']}/{proxy}",
        "cluster": proxy,
        "locality": {"region": host["region"], "zone": host["zone"]},
    }


def overload_manager(settings: Settings) -> Json:
    """Shed load before memory runs out, and cap connections, after Envoy's edge best practices."""

    def trigger(name: str, value: float) -> list[Json]:
        return [{"name": name, "threshold": {"value": value}}]

    heap = "envoy.resource_monitors.fixed_heap"
    return {
        "refresh_interval": "0.250s",
        "resource_monitors": [
            named(
                heap,
                "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=settings.max_heap,
            ),
            named(
                "envoy.resource_monitors.global_downstream_max_connections",
                "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=settings.max_connections,
            ),
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": trigger(heap, 0.9)},
            {"name": "envoy.overload_actions.disable_http_keepalive", "triggers": trigger(heap, 0.92)},
            {"name": "envoy.overload_actions.stop_accepting_connections", "triggers": trigger(heap, 0.95)},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": trigger(heap, 0.98)},
        ],
    }


def local_cluster(proxy: str, members: list[Json]) -> Json:
    """EDS document of the proxies that share this proxy's load, by zone: the reference for zone-aware balancing."""
    localities: dict[tuple[str, str], list[str]] = {}
    for member in members:
        localities.setdefault((member["region"], member["zone"]), []).append(member["address"])
    endpoints = [
        {
            "locality": {"region": region, "zone": zone},
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 1}}}}
                for address in sorted(addresses)
            ],
        }
        for (region, zone), addresses in sorted(localities.items())
    ]
    return discovery(ENDPOINTS, [{"cluster_name": LOCAL, "endpoints": endpoints}])


def bootstrap(proxy: str, host: Json, settings: Settings) -> Json:
    """Constant part; listeners, clusters, secrets and the local cluster are files that are watched."""
    root = f"{CONFIG_ROOT}/{proxy}"
    return {
        "node": node(proxy, host),
        "admin": {
            "address": pipe(f"{RUN_ROOT}/{proxy}/admin.sock", 0o660),
            "ignore_global_conn_limit": True,
        },
        "dynamic_resources": {
            "lds_config": file_source(f"{root}/lds.yaml"),
            "cds_config": file_source(f"{root}/cds.yaml"),
        },
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"safe_regex": {"regex": LATENCY_STATS}}, "buckets": LATENCY_BUCKETS},
            ]
        },
        "cluster_manager": {"local_cluster_name": LOCAL},
        "static_resources": {
            "clusters": [
                {
                    "name": LOCAL,
                    "type": "EDS",
                    "connect_timeout": "1s",
                    "eds_cluster_config": {"eds_config": file_source(f"{root}/local.yaml")},
                }
            ]
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        # One connection may not starve the others (CVE-2023-44487 and its kin).
                        "http.max_requests_per_io_cycle": 1,
                        # Zone-aware balancing decides by locality counts; our pools are small.
                        "upstream.zone_routing.min_cluster_size": 2,
                    },
                },
                {"name": "admin", "admin_layer": {}},
            ]
        },
        "overload_manager": overload_manager(settings),
    }


_NOWHERE: Json = {"ads": {}, "resource_api_version": "V3"}
# Envoy sets static clusters up before there is an ADS stream, and crashes (1.40.0) on a secret from it.
_EMPTY: Json = {"path_config_source": {"path": "/dev/null"}, "resource_api_version": "V3"}


def _static(value: Any, routes: dict[str, Json], source: Json | None = None) -> Any:
    """Replace what only exists on the host (files of the agent, secrets) so that the rest can be checked anywhere."""
    source = _NOWHERE if source is None else source
    if isinstance(value, list):
        return [_static(item, routes, source) for item in value]
    if not isinstance(value, dict):
        return value
    if "path_config_source" in value:
        return source
    if value.get("type") == "STATIC":
        source = _EMPTY
    result = {key: _static(item, routes, source) for key, item in value.items() if key not in ("rds", "@type")}
    if "@type" in value:
        result["@type"] = value["@type"]
    if "rds" in value:
        result["route_config"] = _static(routes[value["rds"]["route_config_name"]], routes)
    return result


def check_document(
    proxy: str, host: Json, *, listeners: list[Json], clusters: list[Json], routes: dict[str, Json], settings: Settings
) -> Json:
    """Bootstrap with everything static, for `envoy --mode validate` where neither agent nor certificates are."""
    document = bootstrap(proxy, host, settings)
    del document["dynamic_resources"], document["cluster_manager"]
    document["static_resources"] = {"listeners": _static(listeners, routes), "clusters": _static(clusters, routes)}
    return document
