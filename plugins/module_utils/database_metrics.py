# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the exporters of a database host are told, and where Prometheus finds them: pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

FOLDER = "etc/causeway/database_metrics"
TARGETS = "etc/causeway/agent/targets.d/database-metrics.json"
PGBOUNCER_PORT = 9104  # 9110 and above are the sidecars'
ROLE = "monitor"


class DatabaseMetricsError(Exception):
    """What is wrong with the input, in one sentence."""


def source(user: str, database: str, sockets: str, port: int) -> str:
    """lib/pq's URL of a server behind a unix socket. The password stands in a file (PGPASSFILE), never here.

    >>> source("monitor", "orders", "/run/postgresql", 15100)
    'postgres://monitor@/orders?host=/run/postgresql&port=15100&sslmode=disable'
    """
    options = urlencode({"host": sockets, "port": port, "sslmode": "disable"}, safe="/")
    return f"postgres://{quote(user, safe='')}@/{quote(database, safe='')}?{options}"


def clusters(databases: Mapping[str, Any], host: str) -> dict[str, dict[str, Any]]:
    """The clusters that have a member on a host: {name: {address, port, rest_port, exporter_port, database, service}}.

    databases: shape of `causeway_databases` (docs/design.md section 9). Raises DatabaseMetricsError.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, cluster in sorted(databases.items()):
        try:
            own = next((member for member in cluster["members"] if member["host"] == host), None)
            if own is not None:
                found[name] = {
                    "address": str(own["address"]),
                    "port": int(cluster["port"]),
                    "rest_port": int(cluster["rest_port"]),
                    "exporter_port": int(cluster["exporter_port"]),
                    "database": str(cluster["database"]),
                    "service": str(cluster["service"]),
                }
        except (KeyError, TypeError, ValueError) as error:
            raise DatabaseMetricsError(
                f"database cluster {name!r}: {error!r} is missing or of the wrong type"
            ) from error
    return found


def targets(databases: Mapping[str, Any], host: str) -> list[dict[str, Any]]:
    """Scrape targets of a host (docs/design.md section 5), jobs `postgresql`, `patroni` and `pgbouncer`."""
    own = clusters(databases, host)
    result = []
    for name, one in own.items():
        labels = {"cluster": name, "service": one["service"]}
        for job, port in (("postgresql", one["exporter_port"]), ("patroni", one["rest_port"])):
            result.append({"job": job, "address": f"{one['address']}:{port}", "labels": labels})
    if own:
        # One pooler for all clusters of the host: its metrics name the database themselves.
        address = next(iter(own.values()))["address"]
        result.append({"job": "pgbouncer", "address": f"{address}:{PGBOUNCER_PORT}", "labels": {}})
    return result


def environment(values: Mapping[str, str]) -> str:
    """An EnvironmentFile= of systemd."""
    lines = [f'{name}="{value}"' for name, value in values.items()]
    return "\n".join(["# Managed by causeway.platform, role database_metrics.", *lines, ""])


def files(
    databases: Mapping[str, Any], host: str, sockets: str, pooler: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Files of a host by path, as module config_tree takes them. Those with a password are templates that get the
    cluster's name; PgBouncer, which serves all clusters, counts as a cluster `pgbouncer` there.

    sockets: directory of PostgreSQL's unix sockets. pooler: where PgBouncer's is, {sockets, port}.
    """

    def password(name: str) -> dict[str, Any]:
        return {"template": "pgpass.j2", "vars": {"database_metrics_cluster": name}}

    result: dict[str, dict[str, Any]] = {
        TARGETS: {"content": json.dumps(targets(databases, host), indent=2, sort_keys=True) + "\n"}
    }
    own = clusters(databases, host)
    for name, one in own.items():
        result[f"{FOLDER}/{name}.pgpass"] = password(name)
        result[f"{FOLDER}/{name}.env"] = {
            "content": environment(
                {
                    "DATA_SOURCE_NAME": source(ROLE, one["database"], sockets, one["port"]),
                    "LISTEN": f"{one['address']}:{one['exporter_port']}",
                }
            )
        }
    if own and pooler:
        address = next(iter(own.values()))["address"]
        # A leading dash: no cluster is called so.
        result[f"{FOLDER}/-pgbouncer.pgpass"] = password("pgbouncer")
        result[f"{FOLDER}/-pgbouncer.conf"] = {
            "content": environment(
                {
                    "PGBOUNCER_EXPORTER_CONNECTION_STRING": source(
                        ROLE, "pgbouncer", str(pooler["sockets"]), int(pooler["port"])
                    ),
                    "LISTEN": f"{address}:{PGBOUNCER_PORT}",
                }
            )
        }
    return result
