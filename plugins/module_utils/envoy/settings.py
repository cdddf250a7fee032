# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator may tune: one dataclass, checked once, with the reasons for its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .common import EnvoyConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tunables of a proxy. Durations in seconds, sizes in bytes unless the name says otherwise."""

    # listeners of the gateway
    listen_addresses: tuple[str, ...] = ("0.0.0.0",)
    port: int = 443
    domains: tuple[str, ...] = ("*",)
    # proxies of our own in front of the gateway whose x-forwarded-for entry is believed
    trusted_hops: int = 0
    # limits after Envoy's edge best practices
    max_connections: int = 20000
    max_heap: int = 1 << 30
    connection_buffer: int = 32768
    max_headers: int = 100
    max_header_kb: int = 32
    max_streams: int = 100
    header_timeout: float = 10.0
    request_timeout: float = 60.0
    stream_idle_timeout: float = 60.0
    idle_timeout: float = 300.0
    hsts_max_age: int = 31536000
    rate_limit_clients: int = 10000
    # upstream
    connect_timeout: float = 1.0
    cluster_connections: int = 4096
    cluster_pending: int = 2048
    cluster_requests: int = 8192
    retry_concurrency: int = 20
    health_interval: float = 1.0
    health_timeout: float = 1.0
    health_unhealthy: int = 2
    health_healthy: int = 1
    outlier_5xx: int = 10
    outlier_gateway: int = 5
    outlier_interval: float = 1.0
    outlier_ejection: float = 5.0
    outlier_ejection_max: float = 60.0
    outlier_percent: int = 50
    # The service's own keep-alive timeout must be longer than this, else a request can meet a closing connection.
    app_idle_timeout: float = 1.0
    # OTLP/HTTP collector (address:port) and the percentage of requests that begin a sampled trace
    trace_collector: str = ""
    trace_sampling: float = 0.0
    metrics_port: int = 9102
    metrics_base_port: int = 9110

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None) -> Settings:
        """Build from a plain mapping; unknown names and wrong types are refused, all at once."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        problems: list[str] = []
        result: dict[str, Any] = {}
        for name, value in (values or {}).items():
            field = known.get(name)
            if field is None:
                problems.append(f"{name}: unknown, allowed are {', '.join(sorted(known))}")
                continue
            try:
                result[name] = _convert(field.default, value)
            except (TypeError, ValueError) as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise EnvoyConfigError("proxy settings: " + "; ".join(problems))
        return cls(**result)


def _convert(default: Any, value: Any) -> Any:
    """Value in the type of the default. Raises TypeError or ValueError."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{value!r} must be true or false")
        return bool(value)
    if isinstance(default, tuple):
        if isinstance(value, str) or not isinstance(value, (list, tuple)) or not value:
            raise TypeError(f"{value!r} must be a list with at least one entry")
        return tuple(str(item) for item in value)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise TypeError(f"{value!r} must be a string")
        return str(value)
    if isinstance(value, bool):
        raise TypeError(f"{value!r} must be a number")
    number = type(default)(value)
    if number < 0:
        raise ValueError(f"{value!r} must not be negative")
    return number
