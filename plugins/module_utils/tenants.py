# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where tenants are, as the registry keeps it.

``<platform>/tenants/<service>/<tenant>`` holds ``{shard, since, before}`` and is the only truth: the description says
where a tenant belongs, a move alone changes where it is. ``<platform>/shards/<service>`` holds the cluster of each
shard, so that a shard that is renumbered by mistake is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.etcd import (
    EtcdClient,
    KeyValue,
    compare_absent,
    op_get,
    op_put,
)
from ansible_collections.causeway.platform.plugins.module_utils.registry import Keys, now


class TenantError(Exception):
    """Something about a tenant does not fit; the message says which tenant, what, and what is allowed."""


@dataclass(frozen=True)
class Place:
    """Where a tenant is. ``before``: where it came from, empty for its first place; ``since``: RFC 3339."""

    shard: str
    revision: int = 0
    since: str = ""
    before: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Ready to return from a module."""
        return dict(self.__dict__)


def place_key(keys: Keys, service: str, tenant: str) -> str:
    """The key of a tenant."""
    return keys.of("tenants", service, tenant)


def record(shard: str, before: str = "") -> str:
    """The value of a tenant's key."""
    return json.dumps({"shard": shard, "since": now(), "before": before}, sort_keys=True)


def parse_place(kv: KeyValue) -> Place:
    """A tenant's place out of its key; raises TenantError."""
    try:
        value = kv.json()
        return Place(str(value["shard"]), kv.mod_revision, str(value.get("since", "")), str(value.get("before", "")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TenantError(f"the registry's key {kv.key} says nothing about a shard: {error!r}") from error


def read_places(client: EtcdClient, keys: Keys, service: str) -> dict[str, Place]:
    """Places of all tenants of a service that ever had one."""
    prefix = place_key(keys, service, "")
    kvs, _revision = client.range(prefix)
    return {kv.key[len(prefix) :]: parse_place(kv) for kv in kvs}


def read_place(client: EtcdClient, keys: Keys, service: str, tenant: str) -> Place | None:
    """The place of one tenant."""
    kv = client.get(place_key(keys, service, tenant))
    return parse_place(kv) if kv else None


def read_shards(client: EtcdClient, keys: Keys, service: str) -> dict[str, str]:
    """Cluster of each shard as it was noted."""
    kv = client.get(keys.of("shards", service))
    value = kv.json() if kv else {}
    return {str(name): str(cluster) for name, cluster in value.items()}


def check(
    service: str,
    places: Mapping[str, Place],
    *,
    belongs: Mapping[str, str],
    shards: Mapping[str, str],
    noted: Mapping[str, str],
) -> None:
    """Refuse a description under which data would be looked for where it is not.

    ``belongs``: shard of each tenant by the description; ``shards``: cluster of each shard by the description;
    ``noted``: by the registry. Raises TenantError with all problems.
    """
    found = []
    for shard, cluster in sorted(noted.items()):
        if shard in shards and shards[shard] != cluster:
            found.append(
                f"shard {shard} is in cluster {cluster} and the description puts it into {shards[shard]}; "
                "write the number that it had"
            )
    for tenant in sorted(belongs):
        place = places.get(tenant)
        if place and place.shard not in shards:
            found.append(
                f"tenant {tenant} is on shard {place.shard}, which the description does not have (it has "
                f"{', '.join(sorted(shards))}); put the shard back with weight 0, move its tenants, then remove it"
            )
    if found:
        raise TenantError(f"shards of {service}: {'; '.join(found)}")


def assign(
    client: EtcdClient,
    keys: Keys,
    service: str,
    *,
    belongs: Mapping[str, str],
    shards: Mapping[str, str],
    check_mode: bool = False,
) -> tuple[list[str], dict[str, Place]]:
    """Note where tenants live that have no place yet; returns those, and all places. Nobody who has one is moved."""
    places, noted = read_places(client, keys, service), read_shards(client, keys, service)
    check(service, places, belongs=belongs, shards=shards, noted=noted)
    new = sorted(set(belongs) - set(places))
    if not check_mode:
        for tenant in new:
            name = place_key(keys, service, tenant)
            result = client.txn(
                [compare_absent(name)], [op_put(name, record(belongs[tenant])), op_get(name)], [op_get(name)]
            )
            places[tenant] = parse_place(result.kvs(1 if result.succeeded else 0)[0])
        # What was noted stays: a shard that comes back must be where it was.
        wanted = {**noted, **shards}
        if wanted != noted:
            client.put(keys.of("shards", service), json.dumps(wanted, sort_keys=True))
    else:
        places.update({tenant: Place(belongs[tenant]) for tenant in new})
    return new, {tenant: places[tenant] for tenant in sorted(places)}
