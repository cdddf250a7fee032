# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which gateway holds the region's virtual address, and who its VRRP peers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .common import EnvoyConfigError, Json

_HIGHEST = 200
_STEP = 10


def instance(host_name: str, hosts: Mapping[str, Json], regions: Mapping[str, Json]) -> Json:
    """VRRP instance of one gateway: {address, router_id, priority, source, peers}; {} without a virtual address.

    Priorities follow the hosts' names, so that they never depend on the order of the inventory.
    """
    host = hosts.get(host_name)
    if host is None:
        raise EnvoyConfigError(f"host {host_name!r}: not in causeway_hosts")
    gateway = (regions.get(host["region"]) or {}).get("gateway") or {}
    if not gateway.get("address"):
        return {}
    members = sorted(
        name
        for name, other in hosts.items()
        if other["region"] == host["region"] and "gateway" in other.get("components", [])
    )
    if host_name not in members:
        raise EnvoyConfigError(f"host {host_name}: is no gateway, its components are {host.get('components', [])}")
    rank = members.index(host_name)
    return {
        "address": gateway["address"],
        "router_id": int(gateway.get("router_id", 51)),
        "priority": max(1, _HIGHEST - _STEP * rank),
        "source": host["address"],
        "peers": [hosts[name]["address"] for name in members if name != host_name],
    }


def interface(facts: Mapping[str, Any], address: str) -> str:
    """Name of the network interface that carries an IPv4 address, from Ansible's network facts."""
    names = list(facts.get("interfaces") or [])
    for name in names:
        details = facts.get(str(name).replace("-", "_").replace(".", "_")) or {}
        entries = [details.get("ipv4") or {}, *(details.get("ipv4_secondaries") or [])]
        if any(entry.get("address") == address for entry in entries):
            return str(details.get("device", name))
    raise EnvoyConfigError(
        f"no network interface has the address {address} (interfaces: {', '.join(map(str, names)) or 'none'}); "
        "set gateway_interface"
    )
