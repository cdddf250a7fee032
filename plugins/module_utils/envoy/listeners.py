# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listeners: the public one, the mesh's inbound and outbound ones, and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .clusters import ADMIN, TELEMETRY
from .common import XDS_ROOT, Json, duration, file_source, header, named, socket, typed
from .routes import RATE_LIMIT_FILTER, inline_routes, outbound_name
from .settings import Settings
from .tls import server_mutual, server_public

# Texts of local replies: what a client may know, without the names of our machinery.
_REPLIES = {
    400: "bad request",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    408: "request timeout",
    413: "content too large",
    421: "misdirected request",
    429: "too many requests",
    431: "request header fields too large",
    500: "internal error",
    502: "bad gateway",
    503: "service unavailable",
    504: "gateway timeout",
}
_COMPRESSIBLE = [
    "application/javascript",
    "application/json",
    "application/ld+json",
    "application/problem+json",
    "application/wasm",
    "application/xhtml+xml",
    "application/xml",
    "image/svg+xml",
    "text/css",
    "text/csv",
    "text/html",
    "text/javascript",
    "text/markdown",
    "text/plain",
    "text/xml",
]
_COMPRESSORS: tuple[tuple[str, str, str, Json], ...] = (
    ("br", "envoy.compression.brotli.compressor", "extensions.compression.brotli.compressor.v3.Brotli", {"quality": 4}),
    ("zstd", "envoy.compression.zstd.compressor", "extensions.compression.zstd.compressor.v3.Zstd", {}),
    ("gzip", "envoy.compression.gzip.compressor", "extensions.compression.gzip.compressor.v3.Gzip", {}),
)


def access_log(direction: str, proxy: str, extra: Json | None = None) -> list[Json]:
    """One JSON object per request on standard output. The path is logged without its query, which may hold secrets."""
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "direction": direction,
        "proxy": proxy,
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY)%",
        "path": "%PATH(NQ)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "upstream_ms": "%COMMON_DURATION(US_TX_BEG:US_RX_BEG:ms)%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "upstream_host": "%UPSTREAM_HOST%",
        "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
        "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "route": "%ROUTE_NAME%",
        "instance": "%UPSTREAM_METADATA(envoy.lb:instance)%",
        "version": "%UPSTREAM_METADATA(envoy.lb:version)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "correlation_id": "%REQ(X-CORRELATION-ID)%",
        "trace_id": "%TRACE_ID%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "tls_version": "%DOWNSTREAM_TLS_VERSION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "user_agent": "%REQ(USER-AGENT)%",
        **(extra or {}),
    }
    log: Json = named(
        "envoy.access_loggers.stdout",
        "extensions.access_loggers.stream.v3.StdoutAccessLog",
        log_format={"json_format": fields, "omit_empty_values": True},
    )
    # Once a second from every proxy: health checks would drown the requests.
    log["filter"] = {"not_health_check_filter": {}}
    return [log]


def local_replies() -> Json:
    """JSON bodies for what the proxy answers itself."""
    return {
        "mappers": [
            {
                "filter": {
                    "status_code_filter": {
                        "comparison": {
                            "op": "EQ",
                            "value": {"default_value": code, "runtime_key": f"causeway.local_reply.{code}"},
                        }
                    }
                },
                "body": {"inline_string": text},
            }
            for code, text in _REPLIES.items()
        ],
        "body_format": {
            "json_format": {
                "status": "%RESPONSE_CODE%",
                "error": "%LOCAL_REPLY_BODY%",
                "request_id": "%REQ(X-REQUEST-ID)%",
            }
        },
    }


def tracing(service_name: str, settings: Settings) -> Json:
    """W3C trace context, made or continued on every hop.

    Envoy makes none without an exporter, so there always is one; until a collector is configured its cluster has no
    endpoint and nothing is sampled. What a caller has sampled stays marked so for the services.
    """
    samplers = "extensions.tracers.opentelemetry.samplers.v3"
    return {
        "provider": named(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            service_name=service_name,
            http_service={
                "http_uri": {"uri": f"http://{TELEMETRY}/v1/traces", "cluster": TELEMETRY, "timeout": "1s"},
            },
            # By the trace id, not by Envoy's request id: that one belongs to the caller and stays as it is.
            sampler=named(
                "envoy.tracers.opentelemetry.samplers.parent_based",
                f"{samplers}.ParentBasedSamplerConfig",
                wrapped_sampler=named(
                    "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
                    f"{samplers}.TraceIdRatioBasedSamplerConfig",
                    sampling_percentage={
                        "numerator": round(settings.trace_sampling * 10000),
                        "denominator": "MILLION",
                    },
                ),
            ),
        ),
    }


def compressors() -> list[Json]:
    """Brotli, Zstandard and gzip, in this order of preference where the client has none."""
    return [
        {
            "name": f"envoy.filters.http.compressor.{encoding}",
            "typed_config": typed(
                "extensions.filters.http.compressor.v3.Compressor",
                response_direction_config={
                    "common_config": {
                        "min_content_length": 512,
                        "content_type_matcher": [{"exact": content} for content in _COMPRESSIBLE],
                    },
                    "weaken_etag_on_compress": True,
                },
                compressor_library={"name": name, "typed_config": typed(extension, **options)},
                choose_first=encoding == "br",
            ),
        }
        for encoding, name, extension, options in _COMPRESSORS
    ]


def identifiers() -> Json:
    """Correlation id: the caller's, else the request id; both go back with the response."""
    return {
        "request_mutations": [{"append": header("x-correlation-id", "%REQ(X-REQUEST-ID)%", "ADD_IF_ABSENT")}],
        "response_mutations": [{"append": header("x-correlation-id", "%REQ(X-CORRELATION-ID)%")}],
    }


def router() -> Json:
    """The last filter; tells nobody about Envoy's own headers."""
    return named("envoy.filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)


def _principal(name: str) -> Json:
    return {"authenticated": {"principal_name": {"exact": name}}}


def rbac(principals: list[str], scraper: str = "", metrics_path: str = "") -> Json:
    """Refuse with 403 whoever is not one of these SPIFFE identities; an empty list refuses everybody.

    With a `metrics_path`, that path is the `scraper`'s alone, to GET, and the scraper may do nothing else.
    """
    policies: Json = {}
    path = {"url_path": {"path": {"exact": metrics_path}}}
    if principals:
        policies["callers"] = {
            "permissions": [{"not_rule": path} if metrics_path else {"any": True}],
            "principals": [_principal(name) for name in sorted(principals)],
        }
    if metrics_path:
        get = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
        policies["metrics"] = {
            "permissions": [{"and_rules": {"rules": [path, get]}}],
            "principals": [_principal(scraper)],
        }
    return named(
        "envoy.filters.http.rbac",
        "extensions.filters.http.rbac.v3.RBAC",
        rules={"action": "ALLOW", "policies": policies},
    )


def _manager(stat_prefix: str, settings: Settings, filters: list[Json], **options: Any) -> Json:
    return named(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        **{
            "stat_prefix": stat_prefix,
            "codec_type": "AUTO",
            "http_filters": filters,
            "server_header_transformation": "PASS_THROUGH",
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "stream_idle_timeout": duration(settings.stream_idle_timeout),
            "request_headers_timeout": duration(settings.header_timeout),
            "request_timeout": "0s",
            "drain_timeout": "1s",
            "delayed_close_timeout": "1s",
            "max_request_headers_kb": settings.max_header_kb,
            "common_http_protocol_options": {
                "idle_timeout": duration(settings.idle_timeout),
                "max_headers_count": settings.max_headers,
                "headers_with_underscores_action": "REJECT_REQUEST",
            },
            "http2_protocol_options": {
                "max_concurrent_streams": settings.max_streams,
                "initial_stream_window_size": 65536,
                "initial_connection_window_size": 1048576,
            },
            "generate_request_id": True,
            "preserve_external_request_id": True,
            "request_id_extension": {
                "typed_config": typed(
                    "extensions.request_id.uuid.v3.UuidRequestIdConfig",
                    # The id belongs to the caller: Envoy must not write sampling decisions into it.
                    pack_trace_reason=False,
                    use_request_id_for_trace_sampling=False,
                )
            },
            "local_reply_config": local_replies(),
            **options,
        },
    )


def _listener(
    name: str, address: Json, manager: Json, transport: Json | None, settings: Settings, **options: Any
) -> Json:
    chain: Json = {"filters": [manager]}
    if transport:
        # A TCP connection that never finishes its handshake must not hold a slot.
        chain.update(transport_socket=transport, transport_socket_connect_timeout="5s")
    return {
        "name": name,
        "stat_prefix": name,
        "address": address,
        "per_connection_buffer_limit_bytes": settings.connection_buffer,
        "filter_chains": [chain],
        **options,
    }


def _rds(proxy: str, name: str) -> Json:
    return {"route_config_name": name, "config_source": file_source(f"{XDS_ROOT}/{proxy}/rds/{name}.json")}


def gateway_listeners(settings: Settings) -> list[Json]:
    """The public HTTPS listener, one per listen address."""
    hygiene = identifiers()
    hygiene["response_mutations"] += [
        {"append": header("strict-transport-security", f"max-age={settings.hsts_max_age}; includeSubDomains")},
        {"append": header("x-content-type-options", "nosniff", "ADD_IF_ABSENT")},
        {"remove": "server"},
        {"remove": "x-powered-by"},
    ]
    filters = [
        named(
            "envoy.filters.http.header_mutation",
            "extensions.filters.http.header_mutation.v3.HeaderMutation",
            mutations=hygiene,
        ),
        named(RATE_LIMIT_FILTER, "extensions.filters.http.local_ratelimit.v3.LocalRateLimit", stat_prefix="client"),
        *compressors(),
        router(),
    ]
    manager = _manager(
        "public",
        settings,
        filters,
        rds=_rds("gateway", "gateway"),
        request_timeout=duration(settings.request_timeout),
        use_remote_address=True,
        xff_num_trusted_hops=settings.trusted_hops,
        # Nobody out there is "internal": x-envoy-* and x-forwarded-client-cert of every client are dropped,
        # also when it comes from a private address.
        # An empty list would mean "all private addresses", so one address nobody has (RFC 5737).
        internal_address_config={"cidr_ranges": [{"address_prefix": "192.0.2.0", "prefix_len": 32}]},
        forward_client_cert_details="SANITIZE",
        strip_matching_host_port=True,
        always_set_request_id_in_response=True,
        tracing=tracing("gateway", settings),
        access_log=access_log("gateway", "gateway"),
    )
    return [
        _listener(
            f"public_{number}",
            socket(address, settings.port),
            manager,
            server_public("gateway"),
            settings,
            connection_balance_config={"exact_balance": {}},
        )
        for number, address in enumerate(settings.listen_addresses)
    ]


def inbound_listener(
    proxy: str, service: Json, instance: Json, principals: list[str], *, scraper: str, settings: Settings
) -> Json:
    """Mesh listener of one instance: mutual TLS, known callers only, then the process itself.

    `scraper`: who may read the service's metrics path, if it has one.
    """
    name = f"inbound_{instance['slot']}"
    health = named(
        "envoy.filters.http.health_check",
        "extensions.filters.http.health_check.v3.HealthCheck",
        # The answer is the service's own, until this proxy is told to drain: then it fails and callers leave.
        pass_through_mode=True,
        headers=[{"name": ":path", "string_match": {"exact": service["health"]["path"]}}],
    )
    manager = _manager(
        name,
        settings,
        [rbac(principals, scraper, (service.get("metrics") or {}).get("path") or ""), health, router()],
        route_config=inline_routes(name, name),
        # Callers' proxies multiplex everything over few connections.
        http2_protocol_options={
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1048576,
        },
        use_remote_address=False,
        skip_xff_append=True,
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
        tracing=tracing(service["name"], settings),
        access_log=access_log(
            "inbound",
            proxy,
            {
                "service": service["name"],
                "instance": instance["id"],
                # The process may tell its version; the registry knows it in any case.
                "version": "%RESP(X-SERVICE-VERSION)%",
                "client": "%REQ(X-FORWARDED-FOR)%",
            },
        ),
    )
    port = int(service["mesh_port"]) + int(instance["slot"])
    return _listener(name, socket(instance["address"], port), manager, server_mutual(proxy), settings)


def outbound_listener(proxy: str, service: Json, call: Json, *, address: str, settings: Settings) -> Json:
    """Plain HTTP listener on the container network for calls to one other service."""
    name = outbound_name(call["service"])
    correlation = named(
        "envoy.filters.http.header_mutation",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": identifiers()["request_mutations"]},
    )
    manager = _manager(
        name,
        settings,
        [correlation, router()],
        rds=_rds(proxy, name),
        use_remote_address=False,
        skip_xff_append=True,
        forward_client_cert_details="SANITIZE",
        tracing=tracing(service["name"], settings),
        access_log=access_log("outbound", proxy, {"service": service["name"], "callee": call["service"]}),
    )
    # The bridge of the container network comes and goes with the containers.
    return _listener(name, socket(address, int(call["port"])), manager, None, settings, freebind=True)


def metrics_listener(
    proxy: str, address: str, port: int, principal: str, settings: Settings, *, others: Mapping[str, str] | None = None
) -> Json:
    """Prometheus metrics for the metrics identity only; no other admin path can be reached.

    others: paths below which processes behind the proxy offer ``/metrics``, each with its cluster.
    """
    get = [{"name": ":method", "string_match": {"exact": "GET"}}]
    routes = inline_routes("metrics", ADMIN, {"path": "/stats/prometheus", "headers": get})
    for path, cluster in (others or {}).items():
        routes["virtual_hosts"][0]["routes"].append(
            {
                "match": {"path": path, "headers": get},
                "route": {"cluster": cluster, "timeout": "10s", "prefix_rewrite": "/metrics"},
            }
        )
    manager = _manager(
        "metrics",
        settings,
        [rbac([principal]), router()],
        route_config=routes,
        access_log=[],
    )
    return _listener(
        "metrics", socket(address, port), manager, server_mutual(proxy), settings, ignore_global_conn_limit=True
    )
