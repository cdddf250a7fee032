# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host runs which instance of a service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A host that may run instances."""

    host: str
    zone: str
    region: str


def _rank(service: str, name: str) -> str:
    return hashlib.sha256(f"{service}/{name}".encode()).hexdigest()


def place(service: str, count: int, per_host: int, sites: Iterable[Site]) -> list[tuple[Site, int]]:
    """``count`` pairs (site, slot), fewer if the sites are full; slots of a host are 0 .. per_host - 1.

    Each instance goes to the zone that has the fewest so far, then the region, then the host. Ties are broken by
    rendezvous hashing (Thaler and Ravishankar, 1998) of service and name: services do not all begin on the same host,
    and a new host takes over only what falls to it. Instance n depends on instances 0 .. n-1 only, so a higher count
    moves nothing.
    """
    zones: dict[str, list[Site]] = {}
    for site in sites:
        zones.setdefault(site.zone, []).append(site)
    waiting: dict[str, Iterator[tuple[Site, int]]] = {}
    for zone, members in zones.items():
        members.sort(key=lambda site: (_rank(service, site.host), site.host))
        waiting[zone] = iter([(site, slot) for slot in range(per_host) for site in members])
    used = dict.fromkeys(zones, 0)
    regions = {members[0].region: 0 for members in zones.values()}
    rank = {zone: _rank(service, zone) for zone in zones}
    placed: list[tuple[Site, int]] = []
    while waiting and len(placed) < count:
        zone = min(waiting, key=lambda name: (used[name], regions[zones[name][0].region], rank[name], name))
        following = next(waiting[zone], None)
        if following is None:
            del waiting[zone]
            continue
        placed.append(following)
        used[zone] += 1
        regions[following[0].region] += 1
    return placed
