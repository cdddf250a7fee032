# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Route configurations: what the agent completes with weights and hands to Envoy over RDS."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..pools import CANDIDATE, STABLE, TOKEN_HEADER, pools_of
from .clusters import POOLS, pool_name
from .common import EnvoyConfigError, Json, duration, header, typed
from .settings import Settings

# RFC 9110 section 9.2.1: methods that change nothing, so that any failure of them may be retried.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_NEVER_REACHED = "connect-failure,refused-stream,reset-before-request"
_SAFE = "connect-failure,refused-stream,reset,retriable-status-codes"
RATE_LIMIT_FILTER = "envoy.filters.http.local_ratelimit"
_UNLIMITED = 4294967295
_COOKIE_SECONDS = 86400


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


@dataclasses.dataclass(frozen=True)
class Steering:
    """How requests find the pools of a service (docs/design.md, section 8). Empty: by weight alone."""

    cookie: str = ""
    header: str = ""
    cohort: tuple[str, str] = ("", "")
    token: str = ""
    mirror: float = 0.0
    pools: tuple[str, ...] = POOLS

    @classmethod
    def of(cls, service: Json, token: str = "") -> Steering:
        """What the service's file asks of a gateway; `token` opens the candidate pool to tests."""
        release = service.get("release") or {}
        canary = (release.get("canary") or {}) if release.get("strategy") == "canary" else None
        mirror = (release.get("blue_green") or {}).get("mirror") or {}
        sticky = "none" if canary is None else str(canary.get("sticky") or "cookie")
        cohort = (canary or {}).get("cohort") or {}
        return cls(
            cookie=f"causeway-{service['name']}" if sticky == "cookie" else "",
            header=sticky.partition(":")[2] if sticky.startswith("header:") else "",
            cohort=(str(cohort.get("header") or ""), str(cohort.get("value") or "")),
            token=token,
            mirror=float(mirror.get("percent") or 0.0) if release.get("strategy") == "blue_green" else 0.0,
            pools=pools_of(service),
        )

    @classmethod
    def between(cls, service: Json) -> Steering:
        """What it asks of the sidecars of its callers: no cookies, no cohorts and no tests between services."""
        return cls(header=cls.of(service).header, pools=pools_of(service))

    def hash_policy(self) -> list[Json]:
        """What decides a user's place between the pools; a user without it is placed anew with each request.

        Envoy does not make cookies when it picks a pool (seen with 1.40), so a new user is placed by the request's id,
        and gets that as cookie: both have the same hash.
        """
        if self.cookie:
            return [{"cookie": {"name": self.cookie}, "terminal": True}, {"header": {"header_name": "x-request-id"}}]
        return [{"header": {"header_name": self.header}}] if self.header else []


@dataclasses.dataclass(frozen=True)
class Way:
    """One kind of requests of a route: how to tell them, and what is different for them.

    `pool`: the pool they go to whatever the weights are. `needs`: the agent leaves the way out while the candidate
    pool has no endpoint or no weight.
    """

    suffix: str = ""
    match: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pool: str = ""
    retried: bool = True
    needs: bool = False
    cookie: str = ""


def ways(steering: Steering) -> list[Way]:
    """The ways of a route, in the order in which they are tried; the last one takes what is left."""
    result = []
    if steering.token:
        match = {"headers": [_exact(TOKEN_HEADER, steering.token)]}
        # A test wants to see each failure.
        result.append(Way("-test", match, CANDIDATE, retried=False))
    if steering.cohort[0]:
        result.append(Way("-cohort", {"headers": [_exact(*steering.cohort)]}, CANDIDATE, needs=True))
    if steering.cookie:
        present = {"name": steering.cookie, "string_match": {"safe_regex": {"regex": ".+"}}}
        result.append(Way("-new", {"cookies": [{**present, "invert_match": True}]}, needs=True, cookie=steering.cookie))
    return [*result, Way()]


def _exact(name: str, value: str) -> Json:
    return {"name": name, "string_match": {"exact": value}}


def _set_cookie(name: str) -> Json:
    value = f"{name}=%REQ(X-REQUEST-ID)%; Max-Age={_COOKIE_SECONDS}; Path=/; Secure; HttpOnly; SameSite=Lax"
    # Beside the service's own cookies.
    return header("set-cookie", value, "APPEND_IF_EXISTS_OR_ADD")


def _pools(service: str, steering: Steering, safe: bool) -> Json:
    """By weight. Candidates are last, a baseline is first: as their weights rise to at most half each, a place can only
    move from stable to one of them.
    """
    weights = [{"name": pool_name(service, pool), "weight": 100 if pool == STABLE else 0} for pool in steering.pools]
    action: Json = {"weighted_clusters": {"clusters": weights}}
    policy = steering.hash_policy()
    if policy:
        action["weighted_clusters"]["use_hash_policy"] = True
        action["hash_policy"] = policy
    if safe and steering.mirror > 0:
        action["request_mirror_policies"] = [
            {
                # The agent takes this out while the candidate pool has no endpoint, and once it has weight.
                "cluster": pool_name(service, CANDIDATE),
                "runtime_fraction": {
                    "default_value": {"numerator": round(steering.mirror * 10000), "denominator": "MILLION"}
                },
                "disable_shadow_host_suffix_append": True,
            }
        ]
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
    steering: Steering | None = None,
) -> list[Json]:
    """The Envoy routes of one route of a service: safe methods, the others, and 405 for what is not allowed."""
    path = path_match(prefix)
    steering = steering or Steering()
    allowed = [method.upper() for method in methods]
    safe_methods = [method for method in SAFE_METHODS if not allowed or method in allowed]
    other_methods = [method for method in allowed if method not in SAFE_METHODS]
    result: list[Json] = []

    def add(way: Way, safe: bool, names: list[str]) -> None:
        headers = [*(_methods(names) if names else []), *way.match.get("headers", [])]
        match: Json = {**path, **way.match, **({"headers": headers} if headers else {})}
        action: Json = {"cluster": pool_name(service, way.pool)} if way.pool else _pools(service, steering, safe)
        action["timeout"] = duration(timeout)
        action["idle_timeout"] = duration(max(timeout, settings.stream_idle_timeout))
        policy = retry_policy(retries, safe) if way.retried else None
        if policy:
            action["retry_policy"] = policy
        notes: Json = {**(metadata or {}), **({"needs": pool_name(service, CANDIDATE)} if way.needs else {})}
        entry: Json = {"name": f"{name}{way.suffix}{'-safe' if safe else ''}", "match": match, "route": action}
        if notes:
            entry["metadata"] = {"filter_metadata": {"causeway": notes}}
        if way.cookie:
            entry["response_headers_to_add"] = [_set_cookie(way.cookie)]
        result.append(entry)

    for way in ways(steering):
        if safe_methods:
            add(way, True, safe_methods)
        if other_methods or not allowed:
            add(way, False, other_methods)
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


def gateway_routes(services: dict[str, Json], settings: Settings, tokens: Mapping[str, str] | None = None) -> Json:
    """RouteConfiguration of the gateway, weights at 100 % stable. `tokens`: by service, for tests of its candidates."""
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
            steering=Steering.of(service, (tokens or {}).get(service["name"], "")),
        )
    host: Json = {"name": "public", "domains": list(settings.domains), "routes": entries}
    limits = rate_limits(routes, settings)
    if limits:
        host["typed_per_filter_config"] = {RATE_LIMIT_FILTER: limits}
    # The token is nobody's but ours: it goes no further, right or wrong.
    return {"name": "gateway", "virtual_hosts": [host], "request_headers_to_remove": [TOKEN_HEADER]}


def outbound_name(service: str) -> str:
    """Name of the route configuration (and of the listener) towards a called service."""
    return f"outbound_{service}"


def outbound_routes(call: Json, callee: Json, settings: Settings) -> Json:
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
        steering=Steering.between(callee),
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
