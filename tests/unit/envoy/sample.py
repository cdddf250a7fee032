# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small platform in the shapes of docs/design.md: two gateways, two zones, orders calls catalog."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.envoy.proxies import Platform

DOMAIN = "shop.internal"
RETRIES = {"attempts": 2, "per_try_timeout": 1.0, "backoff": {"base": 0.025, "max": 0.25}, "budget": 20.0}
REGIONS = {
    "north": {
        "state": "active",
        "zones": ["north-a", "north-b"],
        "gateway": {"address": "10.77.1.10", "port": 443, "router_id": 51},
    }
}


def _host(name: str, last: int, zone: str, components: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "address": f"10.77.1.{last}",
        "zone": zone,
        "region": "north",
        "components": components,
    }


HOSTS = {
    "edge1": _host("edge1", 11, "north-a", ["gateway"]),
    "edge2": _host("edge2", 12, "north-b", ["gateway"]),
    "app1": _host("app1", 31, "north-a", ["services"]),
    "app2": _host("app2", 32, "north-b", ["services"]),
}


def service(name: str, index: int, **changes: Any) -> dict[str, Any]:
    """A normalised service with one instance on each application host."""
    mesh_port = 7100 + 10 * index
    placed = [
        {
            "service": name,
            "host": host,
            "slot": 0,
            "id": f"{host}-0",
            "address": HOSTS[host]["address"],
            "port": mesh_port,
            "zone": HOSTS[host]["zone"],
            "region": "north",
            "pool": "stable",
        }
        for host in ("app1", "app2")
    ]
    result = {
        "name": name,
        "version": "1.0.0",
        "port": 8080,
        "mesh_port": mesh_port,
        "index": index,
        "health": {"path": "/healthz", "interval": 0.5, "timeout": 1.0, "unhealthy": 2, "healthy": 1},
        "instances": {"min": 2, "max": 6, "per_host": 2, "placed": placed},
        "routes": [],
        "calls": [],
    }
    result.update(copy.deepcopy(changes))
    return result


def route(prefix: str, **changes: Any) -> dict[str, Any]:
    """A normalised route."""
    result: dict[str, Any] = {
        "prefix": prefix,
        "timeout": 5.0,
        "methods": [],
        "retries": copy.deepcopy(RETRIES),
        "rate_limit": {"requests": 1000, "per": 1.0, "burst": 2000},
    }
    result.update(changes)
    return result


def services() -> dict[str, Any]:
    """orders (public) calls catalog (internal)."""
    return {
        "catalog": service("catalog", 0),
        "orders": service(
            "orders",
            1,
            routes=[route("/orders")],
            calls=[{"service": "catalog", "port": 9001, "timeout": 2.0, "retries": copy.deepcopy(RETRIES)}],
        ),
    }


def platform(described: dict[str, Any] | None = None) -> Platform:
    """The whole description."""
    return Platform(DOMAIN, HOSTS, services() if described is None else described, REGIONS)
