# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading tables of all tenants from one database, wherever the tenants are: postgres_fdw.

Schema ``across`` has a view for each table, with the tenant's name before its columns. Below it are foreign tables in a
schema for each tenant (``across_<tenant>``). The views belong to the owner of the service's databases, and so do the
ways to the tenants; who may read a view needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import Psql, literal, quote

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

SCHEMA = "across"
EXTENSION = "CREATE EXTENSION IF NOT EXISTS postgres_fdw;"

COLUMNS = """
SELECT json_build_object('columns', coalesce((SELECT json_agg(json_build_array(
    n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY n.nspname, c.relname, a.attnum)
  FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  WHERE n.nspname LIKE 'across\\_%'), '[]'))
"""
STATE = """
SELECT json_build_object(
  'note', coalesce((SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'across'), ''),
  'schemas', (SELECT coalesce(json_agg(nspname), '[]') FROM pg_namespace WHERE nspname LIKE 'across\\_%'),
  'servers', (SELECT coalesce(json_agg(srvname), '[]') FROM pg_foreign_server WHERE srvname LIKE 'across\\_%'))
"""


@dataclass(frozen=True)
class Tenant:
    """One tenant: its database, and the members of its shard."""

    name: str
    database: str
    hosts: Sequence[str]
    port: int


@dataclass(frozen=True)
class Way:
    """How other shards are reached."""

    user: str
    password: str
    tls: str
    mode: str = "verify-full"


def _name(tenant: str) -> str:
    return f"{SCHEMA}_{tenant}"


def _connect(tenant: Tenant, way: Way, owner: str) -> list[str]:
    """A foreign server and the owner's mapping to it."""
    options = {
        "host": ",".join(tenant.hosts),
        "port": ",".join([str(tenant.port)] * len(tenant.hosts)),
        "dbname": tenant.database,
        # The leader, whoever it is by now.
        "target_session_attrs": "read-write",
        "connect_timeout": "3",
        "keepalives_idle": "2",
        "keepalives_interval": "1",
        "keepalives_count": "3",
        "sslmode": way.mode,
        "fetch_size": "1000",
    }
    if way.tls:
        options.update(sslcert=f"{way.tls}/cert.pem", sslkey=f"{way.tls}/key.pem", sslrootcert=f"{way.tls}/ca.pem")
    text = ", ".join(f"{name} {literal(value)}" for name, value in options.items())
    server, mapping = quote(_name(tenant.name)), f"user {literal(way.user)}, password {literal(way.password)}"
    return [
        f"CREATE SERVER {server} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({text});",
        f"CREATE USER MAPPING FOR {quote(owner)} SERVER {server} OPTIONS ({mapping});",
        f"CREATE USER MAPPING FOR CURRENT_USER SERVER {server} OPTIONS ({mapping});",
    ]


def _import(tenant: Tenant, tables: Sequence[str]) -> list[str]:
    server, names = quote(_name(tenant.name)), ", ".join(map(quote, tables))
    return [
        f"CREATE SCHEMA {server};",
        f"IMPORT FOREIGN SCHEMA public LIMIT TO ({names}) FROM SERVER {server} INTO {server};",
    ]


def clear(state: Mapping[str, Any]) -> list[str]:
    """Statements that take everything away."""
    lines = [f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE;"]
    lines += [f"DROP SCHEMA {quote(name)} CASCADE;" for name in state["schemas"]]
    return lines + [f"DROP SERVER {quote(name)} CASCADE;" for name in state["servers"]]


def views(columns: Sequence[Sequence[str]], tenants: Sequence[Tenant], owner: str, application: str) -> list[str]:
    """A view over the tenants for each table that any of them has. A tenant without one of the columns has null."""
    shapes: dict[str, dict[str, dict[str, str]]] = {}
    for schema, table, column, kind in columns:
        shapes.setdefault(table, {}).setdefault(schema, {})[column] = kind
    lines = [f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {quote(owner)};"]
    for table, by_schema in sorted(shapes.items()):
        kinds: dict[str, str] = {}
        for shape in by_schema.values():
            for column, kind in shape.items():
                kinds.setdefault(column, kind)
        parts = []
        for tenant in tenants:
            own = by_schema.get(_name(tenant.name))
            if own is None:
                continue
            chosen = [
                f"{quote(name)}::{kind}" + f" AS {quote(name)}" if name in own else f"NULL::{kind} AS {quote(name)}"
                for name, kind in kinds.items()
            ]
            listed = ", ".join([f"{literal(tenant.name)}::text AS tenant", *chosen])
            parts.append(f"SELECT {listed} FROM {quote(_name(tenant.name))}.{quote(table)}")
        lines.append(f"CREATE VIEW {SCHEMA}.{quote(table)} AS {' UNION ALL '.join(parts)};")
        lines.append(f"ALTER VIEW {SCHEMA}.{quote(table)} OWNER TO {quote(owner)};")
        lines.append(f"GRANT SELECT ON {SCHEMA}.{quote(table)} TO {quote(application)};")
    lines.append(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {quote(application)};")
    return lines


def note(tenants: Sequence[Tenant], way: Way, columns: Sequence[Any]) -> str:
    """What everything was made from, without the password."""
    ways = [[one.name, one.database, list(one.hosts), one.port] for one in tenants]
    return "causeway.platform " + json.dumps([ways, way.user, way.tls, way.mode, columns], separators=(",", ":"))


def bring(
    psql: Psql,
    database: str,
    *,
    tenants: Sequence[Tenant],
    tables: Sequence[str],
    way: Way,
    owner: str,
    application: str,
    check_mode: bool = False,
) -> bool:
    """Make views of ``tables`` over ``tenants``, or take all of them away without tables or tenants; whether anything
    was, or would be, changed. Raises PostgresqlError.
    """
    state = psql.ask(database, STATE)
    if not tables or not tenants:
        there = bool(state["schemas"] or state["servers"] or state["note"])
        if there and not check_mode:
            psql.run(database, "BEGIN;\n" + "\n".join(clear(state)) + "\nCOMMIT;")
        return there
    begin = ["BEGIN;", EXTENSION, *clear(state)]
    for tenant in tenants:
        begin += [*_connect(tenant, way, owner), *_import(tenant, tables)]
    lines = "\n".join(begin)
    # Whether a tenant's tables have changed, only the tenant knows: import, look, and forget it again.
    columns = psql.ask(database, f"{lines}\n{COLUMNS.strip()};\nROLLBACK;")["columns"]
    text = note(tenants, way, columns)
    if text == state["note"]:
        return False
    if not check_mode:
        grants = [
            f"GRANT USAGE ON SCHEMA {quote(_name(one.name))} TO {quote(owner)};"
            f" GRANT SELECT ON ALL TABLES IN SCHEMA {quote(_name(one.name))} TO {quote(owner)};"
            f" DROP USER MAPPING FOR CURRENT_USER SERVER {quote(_name(one.name))};"
            for one in tenants
        ]
        made = [*grants, *views(columns, tenants, owner, application)]
        made.append(f"COMMENT ON SCHEMA {SCHEMA} IS {literal(text)};")
        psql.run(database, lines + "\n" + "\n".join(made) + "\nCOMMIT;")
    return True
