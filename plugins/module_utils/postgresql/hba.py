# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect to a cluster: the lines of pg_hba.conf (PostgreSQL documentation, section 20.1)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

LOCAL = "127.0.0.1"
# Everybody who comes over the network shows a certificate of the trust root and knows a password.
_REMOTE = "scram-sha-256 clientcert=verify-ca"


class HbaError(Exception):
    """A cluster from which no lines can be made."""


def lines(cluster: Mapping[str, Any]) -> list[str]:
    """Lines of pg_hba.conf in their order; what none of them names is refused by PostgreSQL.

    cluster: an entry of causeway_databases; read are ``database``, ``role``, ``sharding`` and ``members`` ({host,
    address}). Over the network only members come in, for the poolers run there; migrations run on the leader. With
    shards also the poolers of the service's own cluster, and members of the other shards. The superuser comes through
    the unix socket only, as the system's user of the same name.
    """
    name = str(cluster.get("database") or "")
    if not name:
        raise HbaError("the key database is missing: the name of the application's database")
    role, sharding = str(cluster.get("role") or name), cluster.get("sharding") or {}
    members = _addresses(entry.get("address") for entry in cluster.get("members") or [])
    if not members:
        raise HbaError("the key members is missing: without members nobody could replicate")
    # Tenants' databases come and go without new lines: which of them a role may enter, privileges say.
    database = f'"/^{role}(_[a-z0-9_]+)?$"' if sharding else name
    users = f"{role},{role}_owner,pgbouncer"
    result = [
        _line("local", "all", "postgres", "", "peer"),
        _line("local", "replication", "postgres", "", "peer"),
        _line("local", "replication", "replicator", "", "scram-sha-256"),
        _line("local", "postgres", "rewind", "", "scram-sha-256"),
        _line("local", database, users, "", "scram-sha-256"),
        _line("local", "all", "monitor", "", "scram-sha-256"),
    ]
    for address in dict.fromkeys([LOCAL, *members]):
        result += [
            _line("hostssl", "replication", "replicator", address, _REMOTE),
            _line("hostssl", "postgres", "rewind", address, _REMOTE),
            _line("hostssl", database, users, address, _REMOTE),
        ]
    if sharding:
        inside = {LOCAL, *members}
        poolers = _addresses(entry["address"] for entry in sharding["poolers"])
        result += [_line("hostssl", database, users, one, _REMOTE) for one in poolers if one not in inside]
        # Other shards: they copy tenants that move, and read across.
        others = f"{role}_mover,{role}_across"
        for one in dict.fromkeys([LOCAL, *members, *_addresses(entry["address"] for entry in sharding["peers"])]):
            result.append(_line("hostssl", database, others, one, _REMOTE))
    result.append(_line("hostssl", "all", "monitor", LOCAL, _REMOTE))
    return result


def _addresses(values: Iterable[Any]) -> list[str]:
    found = []
    for value in values:
        try:
            found.append(str(ipaddress.ip_address(str(value))))
        except ValueError as error:
            raise HbaError(f"{value!r} is no IP address") from error
    return found


def _line(kind: str, database: str, user: str, address: str, method: str) -> str:
    if address:
        address = f"{address}/{ipaddress.ip_address(address).max_prefixlen}"
    return " ".join(part for part in (kind, database, user, address, method) if part)
