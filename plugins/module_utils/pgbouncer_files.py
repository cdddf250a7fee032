# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a database host's PgBouncer, from `causeway_databases`: pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.pgbouncer import PgBouncerError

DIRECTORY = "etc/causeway/pgbouncer"
AUTH_USER = "pgbouncer"
STATS_USER = "monitor"  # reads the console's numbers and can change nothing there
# Client connections beside those of the clusters: people and exporters at the console.
CONSOLE_CLIENTS = 20


@dataclass(frozen=True)
class Options:
    """What holds for the whole host."""

    socket: str = "/run/postgresql"
    port: int = 6432
    user: str = "postgres"
    state: str = "/var/lib/causeway/pgbouncer"
    tls: str = "/etc/causeway/tls/database/current"
    settings: Mapping[str, Any] = field(default_factory=dict)


def here(databases: Mapping[str, Mapping[str, Any]], host: str) -> dict[str, Mapping[str, Any]]:
    """Clusters that a host's pooler offers: those with a member there, and all shards of a service whose own cluster
    has one. Raises PgBouncerError when two of them offer the same database.
    """
    found = {
        name: databases[name]
        for name in sorted(databases)
        if any(one["host"] == host for one in (*databases[name]["members"], *_sharding(databases[name])["poolers"]))
    }
    owners: dict[str, str] = {}
    for name, cluster in found.items():
        for database in (cluster["database"], f"{cluster['database']}_ro"):
            if database in owners:
                raise PgBouncerError(f"host {host}: clusters {owners[database]} and {name} both offer {database}")
            owners[database] = name
    return found


def _sharding(cluster: Mapping[str, Any]) -> Mapping[str, Any]:
    return cluster.get("sharding") or {"poolers": []}


def tenancies(databases: Mapping[str, Mapping[str, Any]], host: str) -> dict[str, Any]:
    """Services whose tenants a host's pooler offers, by their own cluster: {tenants: database by tenant, shards:
    cluster by shard}.
    """
    result = {}
    for name, cluster in here(databases, host).items():
        sharding = _sharding(cluster)
        if sharding.get("home") == name and any(one["host"] == host for one in sharding["poolers"]):
            result[name] = {
                "tenants": {tenant: one["database"] for tenant, one in sharding["tenants"].items()},
                "shards": {shard: one["cluster"] for shard, one in sharding["shards"].items()},
            }
    return result


def user_connections(cluster: Mapping[str, Any]) -> int:
    """Server connections of one pooler for the role of a service with shards, all its tenants and shards together."""
    return 2 * (int(cluster["pool"]["size"]) + int(cluster["pool"]["reserve"]))


def clusters(databases: Mapping[str, Mapping[str, Any]], host: str, options: Options) -> dict[str, Any]:
    """clusters.json: what the callback and the following unit know."""
    result = {}
    for name, cluster in here(databases, host).items():
        pool = cluster["pool"]
        result[name] = {
            "database": cluster["database"],
            "port": int(cluster["port"]),
            "rest_port": int(cluster["rest_port"]),
            "max_lag": int(cluster["max_lag"]),
            "members": {member["host"]: member["address"] for member in cluster["members"]},
            "options": {
                "pool_size": int(pool["size"]),
                "reserve_pool_size": int(pool["reserve"]),
                "max_db_client_connections": int(pool["clients"]),
                # Passwords are looked up at the local member, which is there also while nobody leads.
                "auth_dbname": f"{cluster['database']}_ro",
                # Here and not for all: passwords for the console are looked up nowhere.
                "auth_user": AUTH_USER,
            },
        }
    return {
        "host": host,
        "socket": options.socket,
        "port": options.port,
        "user": options.user,
        "state": options.state,
        "tls": options.tls,
        "clusters": result,
        **({"tenancies": tenancies(databases, host)} if tenancies(databases, host) else {}),
    }


def settings(databases: Mapping[str, Mapping[str, Any]], host: str, options: Options) -> dict[str, str]:
    """Section [pgbouncer]; raises PgBouncerError for settings that belong to the platform."""
    fixed = {
        # No TCP port: the proxy in front has the certificates, the revocation lists and the services' identities.
        "listen_port": str(options.port),
        "unix_socket_dir": options.socket,
        "auth_type": "hba",
        "auth_hba_file": f"/{DIRECTORY}/hba.conf",
        "auth_file": f"/{DIRECTORY}/userlist.txt",
        "stats_users": STATS_USER,
        "auth_query": "SELECT * FROM causeway.user_lookup($1)",
        "pool_mode": "transaction",
        "max_client_conn": str(
            CONSOLE_CLIENTS + 2 * sum(int(one["pool"]["clients"]) for one in here(databases, host).values())
        ),
        "client_tls_sslmode": "disable",
        "server_tls_sslmode": "verify-full",
        "server_tls_protocols": "tlsv1.3",
        "server_tls_ca_file": f"{options.tls}/ca.pem",
        "server_tls_cert_file": f"{options.tls}/cert.pem",
        "server_tls_key_file": f"{options.tls}/key.pem",
    }
    tunable = {
        "max_prepared_statements": "200",
        "ignore_startup_parameters": "extra_float_digits",
        "server_connect_timeout": "3",
        # Without a server connection PgBouncer fails queries until a login succeeds, and tries no sooner than this:
        # with the default of 15 that would go on long after a new leader is there.
        "server_login_retry": "0.2",
        "server_lifetime": "3600",
        "server_idle_timeout": "600",
        # Longer than a switchover, also one that goes wrong and ends in a failover.
        "query_wait_timeout": "60",
        # A host that lost its power is noticed in about 5 seconds, with data on its way (milliseconds) or without.
        "tcp_user_timeout": "5000",
        "tcp_keepalive": "1",
        "tcp_keepidle": "2",
        "tcp_keepintvl": "1",
        "tcp_keepcnt": "3",
        "log_connections": "0",
        "log_disconnections": "0",
        "log_stats": "0",
    }
    refused = sorted(set(options.settings) & set(fixed))
    if refused:
        raise PgBouncerError(f"pgbouncer_settings: {', '.join(refused)}: set by the platform, not to be changed here")
    for name, value in options.settings.items():
        if "\n" in str(value) or not str(name).replace("_", "").isalnum():
            raise PgBouncerError(f"pgbouncer_settings.{name}: one line, and a name of letters, digits and '_'")
    return {**fixed, **tunable, **{name: str(value) for name, value in options.settings.items()}}


def ini(databases: Mapping[str, Mapping[str, Any]], host: str, options: Options) -> str:
    """pgbouncer.ini. The databases are in files of their own, which change with the leader."""
    lines = ["; Managed by causeway.platform, role pgbouncer."]
    lines += [f"%include {options.state}/{name}.ini" for name in here(databases, host)]
    lines += ["", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in settings(databases, host, options).items()]
    # A database for each tenant has a pool of its own: what all of them open is bounded by their role.
    limits = {str(one["role"]): user_connections(one) for one in here(databases, host).values() if one.get("sharding")}
    if limits:
        lines += ["", "[users]", *(f"{role} = max_user_connections={limit}" for role, limit in limits.items())]
    return "\n".join(lines) + "\n"


def hba(databases: Mapping[str, Mapping[str, Any]], host: str) -> str:
    """Who may connect through the socket: each application to its own database, the exporter to the console.

    For changes the console needs no line: who runs PgBouncer may use it as user `pgbouncer`.
    """
    lines = ["# Managed by causeway.platform, role pgbouncer.", f"local pgbouncer {STATS_USER} scram-sha-256"]
    offered = tenancies(databases, host)
    for cluster in here(databases, host).values():
        tenants = offered.get(cluster["name"], {}).get("tenants", {}) if offered else {}
        for name in (cluster["database"], *tenants.values()):
            lines.append(f"local {name},{name}_ro {cluster.get('role') or name} scram-sha-256")
    return "\n".join(lines) + "\n"


def files(
    databases: Mapping[str, Mapping[str, Any]], host: str, password: str, options: Options, monitor: str = ""
) -> dict[str, dict[str, Any]]:
    """Files for config_tree. `password`: of role pgbouncer, which may look passwords up; `monitor`: of the exporter,
    which cannot log in without one.
    """
    if not password or set(password + monitor) & set('"\n\r\0'):
        raise PgBouncerError("pgbouncer_password: empty, or with a quote or a line break")
    users = {AUTH_USER: password, **({STATS_USER: monitor} if monitor else {})}
    private = {"mode": "0640", "group": options.user}
    return {
        f"{DIRECTORY}/pgbouncer.ini": {"content": ini(databases, host, options), **private},
        f"{DIRECTORY}/hba.conf": {"content": hba(databases, host), **private},
        f"{DIRECTORY}/userlist.txt": {
            "content": "".join(f'"{name}" "{word}"\n' for name, word in users.items()),
            "secret": True,
            **private,
        },
        f"{DIRECTORY}/clusters.json": {
            "content": json.dumps(clusters(databases, host, options), indent=2, sort_keys=True) + "\n",
            **private,
        },
    }
