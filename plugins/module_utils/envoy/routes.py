# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Route configurations: what the agent completes with weights and hands to Envoy over RDS."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .clusters import POOLS, pool_name
from .common import EnvoyConfigError, Json, duration, header, typed
from .settings import Settings

# RFC 9110 section 9.2.1: methods that change nothing, so that any failure of them may be retried.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_NEVER_REACHED = "connect-failure,refused-stream,reset-before-request"
_SAFE = "connect-failure,refused-stream,reset,retriable-status-codes"
RATE_LIMIT_FILTER = "envoy.filters.http.local_ratelimit"
_UNLIMITED = 4294967295


def path_match(prefix: str) -> Json:
    """Match on whole path segments: /orders matches /orders and /orders/1, not /ordersheet."""
    if not prefix.startswith("/") or any(char in prefix for char in "?#"):
        raise EnvoyConfigError(f"route prefix {prefix!r}: must begin with '/' and hold neither '?' nor '#'")
    trimmed = prefix.rstrip("/")
    return {"path_separated_prefix": trimmed} if trimmed else {"prefix": "/"}


def _methods(methods: Iterable[str]) -> list[Json]:
    return [{"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(methods)}}}]


def retry_policy(retries: Json, safe: bool) -> Json | None:
    """Envoy's retry policy; None when nothing may be retried.

    Unsafe methods are repeated only where the request cannot have reached the service, and have no limit per try:
    a slow POST must not be cut off while it works.
    """
    attempts = int(retries.get("attempts", 0))
    if attempts <= 0:
        return None
    backoff = retries.get("backoff", {})
    base = float(backoff.get("base", 0.025))
    policy: Json = {
        "retry_on": _SAFE if safe else _NEVER_REACHED,
        "num_retries": attempts,
        "retry_back_off": {
            "base_interval": duration(max(base, 0.001)),
            "max_interval": duration(max(float(backoff.get("max", base * 10)), base, 0.001)),
        },
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            }
        ],
        "host_selection_retry_max_attempts": 5,
    }
    if safe:
        policy["retriable_status_codes"] = [502, 503, 504]
        if retries.get("per_try_timeout"):
            policy["per_try_timeout"] = duration(retries["per_try_timeout"])
    return policy


def _action(service: str, timeout: float, retries: Json, safe: bool, settings: Settings) -> Json:
    weights = [{"name": pool_name(service, pool), "weight": 100 if pool == "stable" else 0} for pool in POOLS]
    action: Json = {
        "weighted_clusters": {"clusters": weights},
        "timeout": duration(timeout),
        "idle_timeout": duration(max(timeout, settings.stream_idle_timeout)),
    }
    policy = retry_policy(retries, safe)
    if policy:
        action["retry_policy"] = policy
    return action


def routes_to(
    service: str,
    name: str,
    prefix: str,
    *,
    methods: list[str],
    timeout: float,
    retries: Json,
    settings: Settings,
    metadata: Json | None = None,
) -> list[Json]:
    """The Envoy routes of one route of a service: safe methods, the others, and 405 for what is not allowed."""
    path = path_match(prefix)
    allowed = [method.upper() for method in methods]
    safe = [method for method in SAFE_METHODS if not allowed or method in allowed]
    other = [method for method in allowed if method not in SAFE_METHODS]
    common: Json = {"metadata": {"filter_metadata": {"causeway": metadata}}} if metadata else {}
    result: list[Json] = []
    if safe:
        result.append(
            {
                "name": f"{name}-safe",
                "match": {**path, "headers": _methods(safe)},
                "route": _action(service, timeout, retries, True, settings),
                **common,
            }
        )
    if other or not allowed:
        result.append(
            {
                "name": name,
                "match": {**path, **({"headers": _methods(other)} if other else {})},
                "route": _action(service, timeout, retries, False, settings),
                **common,
            }
        )
    if allowed:
        result.append(
            {
                "name": f"{name}-method",
                "match": path,
                "direct_response": {"status": 405},
                "response_headers_to_add": [header("allow", ", ".join(allowed))],
            }
        )
    return result


def public_routes(services: dict[str, Json]) -> list[tuple[str, Json, Json]]:
    """(name, service, route) of every public route, longest prefix first. A prefix belongs to one service."""
    found: list[tuple[str, Json, Json]] = []
    owners: dict[str, str] = {}
    for service_name in sorted(services):
        service = services[service_name]
        for number, route in enumerate(service.get("routes") or []):
            prefix = str(route["prefix"]).rstrip("/") or "/"
            if prefix in owners:
                raise EnvoyConfigError(
                    f"service {service_name}, routes[{number}].prefix: {prefix} is taken by {owners[prefix]}"
                )
            owners[prefix] = f"service {service_name}, routes[{number}]"
            found.append((f"{service_name}-{number}", service, route))
    return sorted(found, key=lambda item: (-len(str(item[2]["prefix"]).rstrip("/")), item[0]))


def rate_limits(routes: list[tuple[str, Json, Json]], settings: Settings) -> Json | None:
    """Local rate limit with one token bucket per route and client address; None when no route has a limit."""
    descriptors: list[Json] = []
    for name, _service, route in routes:
        limit = route.get("rate_limit")
        if not limit:
            continue
        # Envoy refills every 50 ms at the fastest, and wants multiples of the default bucket's interval.
        per = max(0.05, round(float(limit["per"]) / 0.05) * 0.05)
        descriptors.append(
            {
                "entries": [{"key": "route", "value": name}, {"key": "remote_address"}],
                "token_bucket": {
                    "max_tokens": max(int(limit.get("burst") or 0), int(limit["requests"])),
                    "tokens_per_fill": int(limit["requests"]),
                    "fill_interval": duration(per),
                },
            }
        )
    if not descriptors:
        return None
    everything = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    route_name = {
        "metadata": {
            "descriptor_key": "route",
            "metadata_key": {"key": "causeway", "path": [{"key": "route"}]},
            "source": "ROUTE_ENTRY",
        }
    }
    return typed(
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="client",
        token_bucket={"max_tokens": _UNLIMITED, "tokens_per_fill": _UNLIMITED, "fill_interval": "0.050s"},
        always_consume_default_token_bucket=False,
        filter_enabled={**everything, "runtime_key": "causeway.rate_limit.enabled"},
        filter_enforced={**everything, "runtime_key": "causeway.rate_limit.enforced"},
        rate_limits=[{"actions": [route_name, {"remote_address": {}}]}],
        descriptors=descriptors,
        max_dynamic_descriptors=settings.rate_limit_clients,
        response_headers_to_add=[header("retry-after", "%METADATA(ROUTE:causeway:retry_after)%")],
    )


def _retry_after(route: Json) -> str:
    """Seconds until one token is back, rounded up (RFC 9110 section 10.2.3 knows whole seconds only)."""
    limit = route.get("rate_limit") or {}
    requests = max(1.0, float(limit.get("requests", 1)))
    return str(max(1, math.ceil(float(limit.get("per", 1)) / requests)))


def gateway_routes(services: dict[str, Json], settings: Settings) -> Json:
    """RouteConfiguration of the gateway, weights at 100 % stable."""
    routes = public_routes(services)
    entries: list[Json] = [
        {
            "name": "trace-refused",
            "match": {"prefix": "/", "headers": _methods(["TRACE", "TRACK"])},
            "direct_response": {"status": 405},
        }
    ]
    for name, service, route in routes:
        metadata = {"route": name, "service": service["name"], "retry_after": _retry_after(route)}
        entries += routes_to(
            service["name"],
            name,
            str(route["prefix"]),
            methods=list(route.get("methods") or []),
            timeout=float(route.get("timeout", 15.0)),
            retries=route.get("retries") or {},
            settings=settings,
            metadata=metadata,
        )
    host: Json = {"name": "public", "domains": list(settings.domains), "routes": entries}
    limits = rate_limits(routes, settings)
    if limits:
        host["typed_per_filter_config"] = {RATE_LIMIT_FILTER: limits}
    return {"name": "gateway", "virtual_hosts": [host]}


def outbound_name(service: str) -> str:
    """Name of the route configuration (and of the listener) towards a called service."""
    return f"outbound_{service}"


def outbound_routes(call: Json, settings: Settings) -> Json:
    """RouteConfiguration of a sidecar towards one called service."""
    name = outbound_name(call["service"])
    routes = routes_to(
        call["service"],
        name,
        "/",
        methods=[],
        timeout=float(call.get("timeout", 5.0)),
        retries=call.get("retries") or {},
        settings=settings,
    )
    return {"name": name, "virtual_hosts": [{"name": call["service"], "domains": ["*"], "routes": routes}]}


def inline_routes(name: str, cluster: str, match: Json | None = None, **action: Any) -> Json:
    """RouteConfiguration with one cluster, inside a listener. Limits in time are the caller's."""
    return {
        "name": name,
        # Listeners and clusters are two files: neither may be refused because the other comes a moment later.
        "validate_clusters": False,
        "virtual_hosts": [
            {
                "name": name,
                "domains": ["*"],
                "routes": [
                    {"match": match or {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s", **action}}
                ],
            }
        ],
    }
