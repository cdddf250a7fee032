# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters: pools of a service behind mutual TLS, the service's own process, the admin socket."""

from __future__ import annotations

from ..pools import CANDIDATE, STABLE
from .common import (
    RUN_ROOT,
    XDS_ROOT,
    EnvoyConfigError,
    Json,
    duration,
    file_source,
    pipe,
    socket,
    static_endpoints,
    typed,
)
from .settings import Settings
from .tls import client

POOLS = (STABLE, CANDIDATE)
ADMIN = "admin"
TELEMETRY = "telemetry"
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def pool_name(service: str, pool: str) -> str:
    """Envoy's name of a pool of a service."""
    return f"{service}_{pool}"


def _http(settings: Settings, explicit: Json, idle: float) -> Json:
    return {
        _PROTOCOL: typed(
            "extensions.upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config=explicit,
            common_http_protocol_options={
                "idle_timeout": duration(idle),
                "max_headers_count": settings.max_headers,
            },
        )
    }


def circuit_breakers(settings: Settings, retry_budget: float) -> Json:
    """Limits of concurrency; retries may be at most retry_budget percent of the requests in flight."""
    limit = {
        "max_connections": settings.cluster_connections,
        "max_pending_requests": settings.cluster_pending,
        "max_requests": settings.cluster_requests,
        "track_remaining": True,
        "retry_budget": {
            "budget_percent": {"value": float(retry_budget)},
            # A small service has few requests in flight, of which 20 % would be no retry at all.
            "min_retry_concurrency": settings.retry_concurrency,
        },
    }
    return {"thresholds": [{"priority": "DEFAULT", **limit}, {"priority": "HIGH", **limit}]}


def outlier_detection(settings: Settings) -> Json:
    """Eject an endpoint after consecutive failures, never more than the given share of a pool."""
    return {
        "consecutive_5xx": settings.outlier_5xx,
        "enforcing_consecutive_5xx": 100,
        "consecutive_gateway_failure": settings.outlier_gateway,
        "enforcing_consecutive_gateway_failure": 100,
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": settings.outlier_gateway,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": duration(settings.outlier_interval),
        "base_ejection_time": duration(settings.outlier_ejection),
        "max_ejection_time": duration(settings.outlier_ejection_max),
        "max_ejection_percent": settings.outlier_percent,
        "always_eject_one_host": False,
        # A service may answer its health check and still fail its routes: only time ends an ejection.
        "successful_active_health_check_uneject_host": False,
    }


def health_check(settings: Settings, host: str, path: str) -> Json:
    """Active check through the service's sidecar; as frequent without traffic as with it."""
    interval = duration(settings.health_interval)
    edge = duration(min(0.25, settings.health_interval))
    return {
        "timeout": duration(settings.health_timeout),
        "interval": interval,
        "no_traffic_interval": interval,
        "no_traffic_healthy_interval": interval,
        "unhealthy_edge_interval": edge,
        "healthy_edge_interval": edge,
        "interval_jitter_percent": 10,
        "unhealthy_threshold": settings.health_unhealthy,
        "healthy_threshold": settings.health_healthy,
        "http_health_check": {"host": host, "path": path, "codec_client_type": "HTTP2"},
    }


def service_pool(proxy: str, domain: str, service: Json, pool: str, *, retry_budget: float, settings: Settings) -> Json:
    """Cluster of one pool: endpoints from the agent's file, mutual TLS to the sidecars, every protection on."""
    name = pool_name(service["name"], pool)
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": file_source(f"{XDS_ROOT}/{proxy}/eds/{name}.json")},
        "connect_timeout": duration(settings.connect_timeout),
        "per_connection_buffer_limit_bytes": settings.connection_buffer,
        "lb_policy": "LEAST_REQUEST",
        "least_request_lb_config": {
            "choice_count": 2,
            "active_request_bias": {"default_value": 1.0, "runtime_key": f"causeway.{name}.active_request_bias"},
        },
        "common_lb_config": {
            # Only a pool with nothing healthy left falls back to "try them all"; 50 % would send
            # half of the requests of a degraded pool to dead endpoints.
            "healthy_panic_threshold": {"value": 1.0},
            "zone_aware_lb_config": {"routing_enabled": {"value": 100.0}, "min_cluster_size": 2},
        },
        "circuit_breakers": circuit_breakers(settings, retry_budget),
        "outlier_detection": outlier_detection(settings),
        "health_checks": [health_check(settings, f"{service['name']}.{domain}", service["health"]["path"])],
        # The registry took it out on purpose: do not wait until health checks agree.
        "ignore_health_on_host_removal": True,
        "transport_socket": client(proxy, domain, service["name"]),
        "typed_extension_protocol_options": _http(
            settings,
            {
                "http2_protocol_options": {
                    "max_concurrent_streams": 1000,
                    "initial_stream_window_size": 65536,
                    "initial_connection_window_size": 1048576,
                    # Finds a host that lost its power under an open connection.
                    "connection_keepalive": {"interval": "1s", "timeout": "2s"},
                }
            },
            settings.idle_timeout,
        ),
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 2}
        },
        "track_cluster_stats": {"timeout_budgets": False, "request_response_sizes": False},
    }


def application(name: str, address: str, port: int, settings: Settings) -> Json:
    """The service's own process on the container network of this host, plain HTTP/1.1."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": duration(settings.connect_timeout),
        "per_connection_buffer_limit_bytes": settings.connection_buffer,
        "load_assignment": static_endpoints(name, [socket(address, port)]),
        "circuit_breakers": circuit_breakers(settings, 20.0),
        "typed_extension_protocol_options": _http(settings, {"http_protocol_options": {}}, settings.app_idle_timeout),
    }


def admin(proxy: str) -> Json:
    """This Envoy's own admin socket, from which only the metrics path is published."""
    return {
        "name": ADMIN,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": static_endpoints(ADMIN, [pipe(f"{RUN_ROOT}/{proxy}/admin.sock")]),
    }


def local_metrics(name: str, port: int) -> Json:
    """A process of this host that offers its metrics on the loopback address alone."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": static_endpoints(name, [socket("127.0.0.1", port)]),
    }


def telemetry(settings: Settings) -> Json:
    """OTLP/HTTP collector of spans; without one a cluster that has no endpoint."""
    address, separator, port = settings.trace_collector.rpartition(":")
    if settings.trace_collector and not (separator and port.isdigit()):
        raise EnvoyConfigError(f"proxy settings: trace_collector {settings.trace_collector!r}: must be address:port")
    endpoints = [socket(address, int(port))] if settings.trace_collector else []
    return {
        "name": TELEMETRY,
        "type": "STRICT_DNS" if endpoints else "STATIC",
        "connect_timeout": duration(settings.connect_timeout),
        "load_assignment": static_endpoints(TELEMETRY, endpoints),
    }
