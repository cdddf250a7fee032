# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tenant's database on one server: what it holds, its copy by logical replication, its checksum, what a move left.

All of it talks to the local server as superuser over the unix socket; only the schema's dump and the subscription go
to the other shard, as the role that copies.
"""

from __future__ import annotations

import contextlib
import grp
import pwd
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import (
    PostgresqlError,
    Psql,
    literal,
    quote,
)
from ansible_collections.causeway.platform.plugins.module_utils.tenants import TenantError

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

PUBLICATION = SUBSCRIPTION = "causeway_move"
MARK_TABLE = "causeway.move_mark"
# Where dbmate notes what was applied.
MIGRATIONS = "public.schema_migrations"
# Comments by which a database is known that is part of a move.
LEAVING, COPY, LEFT = "causeway.platform: moves to ", "causeway.platform: copy from ", "causeway.platform: left behind "
SYSTEM = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_OF_EXTENSION = (
    "EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"
)

# Logical replication carries rows of ordinary tables; for changed and deleted ones it must know which row is meant
# (PostgreSQL documentation, chapter 29, "Restrictions" and "Publication").
FACTS = f"""
SELECT json_build_object(
  'size', pg_database_size(current_database()),
  'tables', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {SYSTEM}),
  'sequences', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND {SYSTEM}),
  'rows', (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND {SYSTEM}),
  'matviews', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY c.oid), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'm' AND c.relispopulated AND {SYSTEM}),
  'without_identity', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {SYSTEM} AND c.relreplident <> 'f'
      AND NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)),
  'unlogged', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND {SYSTEM}),
  'of_extensions', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND {SYSTEM} AND {_OF_EXTENSION} AND pg_relation_size(c.oid) > 0),
  'row_security', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relrowsecurity AND {SYSTEM}),
  'large_objects', (SELECT count(*) FROM pg_largeobject_metadata),
  'prepared', (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
  'slots', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots WHERE database = current_database()),
  'subscriptions', (SELECT coalesce(json_agg(subname), '[]')
    FROM pg_subscription s JOIN pg_database b ON b.oid = s.subdbid
    WHERE b.datname = current_database()),
  'publications', (SELECT coalesce(json_agg(pubname), '[]') FROM pg_publication),
  'settings', (SELECT coalesce(json_agg(DISTINCT split_part(one, '=', 1)), '[]')
    FROM pg_db_role_setting s JOIN pg_database b ON b.oid = s.setdatabase, unnest(s.setconfig) one
    WHERE b.datname = current_database()))
"""

# One hash of everything that has a definition: what a change of the schema during a copy would alter.
FINGERPRINT = f"""
SELECT json_build_object('hash', md5(coalesce(string_agg(line, E'\\n' ORDER BY line COLLATE "C"), ''))) FROM (
  SELECT format('column %I.%I.%I %s %s %s %s', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
      a.attnotnull, a.attidentity, a.attgenerated) AS line
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND {SYSTEM}
  UNION ALL SELECT format('default %I.%I.%I %s', n.nspname, c.relname, a.attname, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {SYSTEM}
  UNION ALL SELECT format('constraint %I.%I %s', n.nspname, c.conname, pg_get_constraintdef(c.oid))
    FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE {SYSTEM}
  UNION ALL SELECT 'index ' || pg_get_indexdef(i.indexrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {SYSTEM}
  UNION ALL SELECT 'view ' || format('%I.%I ', n.nspname, c.relname) || pg_get_viewdef(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm') AND {SYSTEM}
  UNION ALL SELECT 'trigger ' || pg_get_triggerdef(t.oid)
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT t.tgisinternal AND {SYSTEM}
  UNION ALL SELECT format('function %I.%I(%s) %s', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid),
      md5(p.prosrc))
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {SYSTEM}
  UNION ALL SELECT format('sequence %I.%I', n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND {SYSTEM}
  UNION ALL SELECT format('enum %I.%I %s', n.nspname, t.typname, string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder))
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace WHERE {SYSTEM}
    GROUP BY n.nspname, t.typname
) lines
"""

# The text of a row must not depend on a server's or a role's settings.
_FIXED = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'; SET search_path = pg_catalog; SET statement_timeout = 0;\n"
)

DATABASES = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'databases', (SELECT coalesce(json_object_agg(datname, json_build_object(
      'size', pg_database_size(oid), 'limit', datconnlimit, 'owner', pg_get_userbyid(datdba),
      'comment', coalesce(shobj_description(oid, 'pg_database'), ''),
      'slots', (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots s WHERE s.database = datname),
      'subscriptions', (SELECT coalesce(json_agg(subname), '[]') FROM pg_subscription s
        WHERE s.subdbid = pg_database.oid))), '{}') FROM pg_database WHERE NOT datistemplate))
"""


@dataclass(frozen=True)
class Source:
    """How the other shard is reached: its leader's address, the role that copies, and this host's certificate."""

    host: str
    port: int
    user: str
    password: str
    tls: str = "/etc/causeway/tls/database/current"
    mode: str = "verify-full"

    def parameters(self, database: str) -> dict[str, str]:
        """libpq's connection parameters, without the password."""
        found = {"host": self.host, "port": str(self.port), "user": self.user, "dbname": database, "sslmode": self.mode}
        if self.tls:
            found.update(sslcert=f"{self.tls}/cert.pem", sslkey=f"{self.tls}/key.pem", sslrootcert=f"{self.tls}/ca.pem")
            if Path(self.tls, "crl.pem").exists():
                found["sslcrl"] = f"{self.tls}/crl.pem"
        # A leader that loses its power closes nothing.
        found.update(connect_timeout="5", keepalives_idle="2", keepalives_interval="1", keepalives_count="3")
        return found

    def conninfo(self, database: str) -> str:
        """The connection string of a subscription."""

        def text(value: str) -> str:
            return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

        values = {**self.parameters(database), "password": self.password}
        return " ".join(f"{name}={text(value)}" for name, value in values.items())


def slot_of(database: str) -> str:
    """Name of the replication slot of a tenant that moves; at most 63 characters."""
    return f"move_{database}"


def left_behind(database: str) -> str:
    """Name that a database gets when its tenant has moved away."""
    return f"{database}_moved"


def databases(psql: Psql) -> dict[str, Json]:
    """Databases of the server by name: {size, limit, owner, comment, slots, subscriptions}; raises TenantError on a
    replica.
    """
    state = psql.ask("postgres", DATABASES)
    if state["recovery"]:
        raise TenantError(f"the server on port {psql.port} is a replica; run this where the leader is")
    return dict(state["databases"])


def objections(database: str, facts: Mapping[str, Any]) -> list[str]:
    """Why a database cannot move by logical replication; one sentence each."""

    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    found = []
    if facts["without_identity"]:
        found.append(f"tables without a primary key or another replica identity: {some(facts['without_identity'])}")
    if facts["unlogged"]:
        found.append(f"unlogged tables, which are not replicated: {some(facts['unlogged'])}")
    if facts["of_extensions"]:
        found.append(f"tables of extensions that hold rows: {some(facts['of_extensions'])}")
    if facts["row_security"]:
        found.append(
            f"tables with row-level security, of which the copy would get a part: {some(facts['row_security'])}"
        )
    if facts["large_objects"]:
        found.append(f"{facts['large_objects']} large objects, which are not replicated")
    if facts["prepared"]:
        found.append(f"{facts['prepared']} prepared transactions")
    others = sorted({*facts["slots"], *facts["subscriptions"]} - {slot_of(database), SUBSCRIPTION})
    if others:
        found.append(f"replication of somebody else: {some(others)}")
    if facts["settings"]:
        found.append(f"parameters set for this database, which do not move: {some(facts['settings'])}")
    return found


def comment(psql: Psql, database: str, text: str) -> None:
    """Note on a database what it is in a move; empty for nothing."""
    psql.run("postgres", f"COMMENT ON DATABASE {quote(database)} IS {literal(text) if text else 'NULL'};")


def publish(psql: Psql, database: str, target: str) -> Json:
    """Offer a tenant's tables for copying to shard ``target``; returns its facts. Raises TenantError, with nothing
    changed, when it cannot move.
    """
    known = databases(psql)
    if database not in known:
        raise TenantError(f"database {database} is not on this server")
    if left_behind(database) in known:
        raise TenantError(
            f"{left_behind(database)} is still here from an earlier move of the same tenant: remove it first, with the"
            " playbook tenant_purge"
        )
    facts = psql.ask(database, FACTS)
    found = objections(database, facts)
    if found:
        raise TenantError(f"database {database} cannot move: {'; '.join(found)}")
    comment(psql, database, LEAVING + target)
    psql.run(
        database,
        f"CREATE SCHEMA IF NOT EXISTS causeway; CREATE TABLE IF NOT EXISTS {MARK_TABLE} (token text PRIMARY KEY);",
    )
    if PUBLICATION not in facts["publications"]:
        psql.run(database, f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES;")
    return facts


def _dump(psql: Psql, source: Source, database: str, program: str, options: Sequence[str] = ("--schema-only",)) -> str:
    """The schema of the source, or what other options of pg_dump say; raises TenantError."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE", "sslmode": "PGSSLMODE"}
    names.update(sslcert="PGSSLCERT", sslkey="PGSSLKEY", sslrootcert="PGSSLROOTCERT", sslcrl="PGSSLCRL")
    names.update(connect_timeout="PGCONNECT_TIMEOUT")
    given = source.parameters(database)
    environment = {names[key]: value for key, value in given.items() if key in names}
    # Not on the command line, where every user could read it.
    environment.update(PGPASSWORD=source.password, PATH="/usr/bin:/bin", LC_ALL="C.UTF-8")
    command = [program, *options, "--no-publications", "--no-subscriptions", "--no-tablespaces"]
    command.append("--lock-wait-timeout=5s")
    identity: Json = {}
    if psql.system_user:
        identity = {"user": psql.system_user, "group": psql.system_user, "extra_groups": _groups(psql.system_user)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd="/", timeout=600, **identity
        )
    except (OSError, KeyError, LookupError, subprocess.TimeoutExpired) as error:
        raise TenantError(f"pg_dump of the schema of {database}: {error}") from error
    if done.returncode:
        raise TenantError(f"pg_dump of the schema of {database}: {done.stderr.strip()}")
    # Restricted mode of newer dumps is for those who do not trust the source; psql reads this one from standard input.
    return "".join(line for line in done.stdout.splitlines(True) if not line.startswith(("\\restrict", "\\unrestrict")))


def _groups(user: str) -> list[int]:
    """Groups of a user, which open its certificates."""
    entry = pwd.getpwnam(user)
    return [entry.pw_gid, *(one.gr_gid for one in grp.getgrall() if user in one.gr_mem)]


def begin_copy(
    psql: Psql,
    database: str,
    owner: str,
    *,
    connect: Sequence[str],
    source: Source,
    origin: str,
    program: str = "pg_dump",
) -> None:
    """Make the database with the schema of the source, and subscribe to its rows. ``connect``: roles that may come in;
    ``origin``: the source's shard.
    """
    known = databases(psql)
    if database in known:
        raise TenantError(f"database {database} is on this server already, and is not the copy of a move")
    psql.run("postgres", f"CREATE DATABASE {quote(database)} OWNER {quote(owner)} TEMPLATE template0;")
    comment(psql, database, COPY + origin)
    psql.run("postgres", f"REVOKE ALL ON DATABASE {quote(database)} FROM PUBLIC;")
    for role in connect:
        psql.run("postgres", f"GRANT CONNECT, TEMPORARY ON DATABASE {quote(database)} TO {quote(role)};")
    text = _dump(psql, source, database, program)
    # template0 has schema public, which the dump brings, too, where somebody changed its owner.
    psql.run(
        database,
        "BEGIN;\n" + text.replace("CREATE SCHEMA public;", "CREATE SCHEMA IF NOT EXISTS public;") + "\nCOMMIT;",
    )
    psql.run(
        database,
        f"CREATE SUBSCRIPTION {SUBSCRIPTION} CONNECTION {literal(source.conninfo(database))} PUBLICATION {PUBLICATION}"
        f" WITH (slot_name = {literal(slot_of(database))}, disable_on_error = true);",
    )


def fill(psql: Psql, database: str, source: Source, template: str, program: str = "pg_dump") -> bool:
    """Give a database without tables the schema of another one, with what is known of its migrations; whether anything
    was to be done. Raises TenantError.
    """
    facts = psql.ask(database, FACTS)
    if facts["tables"]:
        return False
    text = _dump(psql, source, template, program, ("--schema-only", "--exclude-schema=causeway"))
    if "CREATE TABLE" not in text:
        return False
    if f"CREATE TABLE {MIGRATIONS} " in text:
        text += _dump(psql, source, template, program, ("--data-only", f"--table={MIGRATIONS}"))
    text = text.replace("CREATE SCHEMA public;", "CREATE SCHEMA IF NOT EXISTS public;")
    psql.run(database, f"BEGIN;\n{text}\nCOMMIT;")
    return True


COPY_STATE = """
SELECT json_build_object(
  'enabled', (SELECT subenabled FROM pg_subscription s JOIN pg_database b ON b.oid = s.subdbid
    WHERE subname = 'causeway_move' AND b.datname = current_database()),
  'waiting', (SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'),
  'tables', (SELECT count(*) FROM pg_subscription_rel))
"""


def copied(state: Mapping[str, Any], database: str) -> bool:
    """Whether all tables are copied and follow; raises TenantError when the copy has stopped."""
    if state["enabled"] is None:
        raise TenantError(f"database {database} has no subscription here: the copy was taken back meanwhile")
    if not state["enabled"]:
        raise TenantError(f"the copy of {database} stopped on an error; PostgreSQL's log on this host says which")
    return int(state["waiting"]) == 0


def wait_copy(psql: Psql, database: str, timeout: float) -> float:
    """Wait until all rows are copied and changes follow; returns seconds. Raises TenantError."""
    started = time.monotonic()
    while True:
        state = psql.ask(database, COPY_STATE)
        if copied(state, database):
            return time.monotonic() - started
        if time.monotonic() - started > timeout:
            raise TenantError(
                f"after {timeout:g} s {state['waiting']} of {state['tables']} tables of {database} are not copied yet"
            )
        time.sleep(0.5)


def wait_mark(psql: Psql, database: str, token: str, timeout: float) -> float:
    """Wait until a mark that was written at the source has come through, and with it all that was committed before;
    returns seconds. Raises TenantError.
    """
    started = time.monotonic()
    sql = f"SELECT json_build_object('there', EXISTS (SELECT 1 FROM {MARK_TABLE} WHERE token = {literal(token)}));"
    while not psql.ask(database, sql)["there"]:
        if time.monotonic() - started > timeout:
            raise TenantError(f"the copy of {database} was not level with the source after {timeout:g} s")
        time.sleep(0.02)
    return time.monotonic() - started


def write_mark(psql: Psql, database: str, token: str) -> str:
    """Write a mark at the source; returns the position in its write-ahead log."""
    sql = f"INSERT INTO {MARK_TABLE} VALUES ({literal(token)}); SELECT json_build_object('lsn', pg_current_wal_lsn());"
    return str(psql.ask(database, sql)["lsn"])


def sums(psql: Psql, database: str, tables: Sequence[str], checksum: bool = True) -> dict[str, list[Any]]:
    """[rows, checksum] of each table, all of one moment. The checksum is the sum of a 64-bit hash of each row's text,
    so that the order of rows does not count; without ``checksum`` it is empty.
    """
    hashed = 'coalesce(sum(hashtextextended(t::text COLLATE "C", 0)), 0)::text' if checksum else "''"
    parts = [
        f"SELECT {literal(table)} AS name, count(*) AS rows, {hashed} AS hash FROM ONLY {table} t" for table in tables
    ]
    if not parts:
        return {}
    sql = (
        f"{_FIXED}BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
        f"SELECT json_object_agg(name, json_build_array(rows, hash)) FROM ({' UNION ALL '.join(parts)}) found;\nCOMMIT;"
    )
    return dict(psql.ask(database, sql))


def differences(source: Mapping[str, Sequence[Any]], target: Mapping[str, Sequence[Any]]) -> list[str]:
    """Tables that differ; one sentence each."""
    found = []
    for name in sorted({*source, *target}):
        here, there = source.get(name), target.get(name)
        if here is None or there is None:
            found.append(f"{name} is only at the {'target' if here is None else 'source'}")
        elif here[0] != there[0]:
            found.append(f"{name} has {here[0]} rows at the source and {there[0]} at the target")
        elif here[1] != there[1]:
            found.append(f"{name} has other contents at the target")
    return found


def sequences(psql: Psql, database: str, names: Sequence[str]) -> list[list[Any]]:
    """[name, last_value, is_called] of sequences."""
    if not names:
        return []
    parts = [f"SELECT {literal(name)} AS name, last_value, is_called FROM {name}" for name in names]
    whole = "json_build_object('found', json_agg(json_build_array(name, last_value, is_called)))"
    sql = f"SELECT {whole} FROM ({' UNION ALL '.join(parts)}) s;"
    return list(psql.ask(database, sql)["found"])


def set_sequences(psql: Psql, database: str, values: Sequence[Sequence[Any]]) -> None:
    """Set sequences to what they were at the source."""
    lines = [
        f"SELECT setval({literal(str(name))}::regclass, {int(last)}, {'true' if called else 'false'});"
        for name, last, called in values
    ]
    if lines:
        psql.run(database, "BEGIN;\n" + "\n".join(lines) + "\nCOMMIT;")


def fingerprint(psql: Psql, database: str) -> str:
    """One hash of the schema."""
    return str(psql.ask(database, "SET search_path = pg_catalog;" + FINGERPRINT)["hash"])


def throw_out(psql: Psql, database: str, timeout: float = 5.0) -> int:
    """End all sessions of clients in a database, until none comes any more; returns how many there were."""
    kill = (
        "SELECT json_build_object('ended', count(pg_terminate_backend(pid))) FROM pg_stat_activity"
        f" WHERE datname = {literal(database)} AND pid <> pg_backend_pid() AND backend_type = 'client backend';"
    )
    ended, quiet, deadline = 0, 0, time.monotonic() + timeout
    while quiet < 2:
        count = int(psql.ask("postgres", kill)["ended"])
        ended, quiet = ended + count, 0 if count else quiet + 1
        if time.monotonic() > deadline:
            raise TenantError(f"sessions of {database} did not end within {timeout:g} s")
        time.sleep(0.01)
    return ended


def fence(psql: Psql, database: str) -> int:
    """Let nobody but the superuser into a database, and end who is in; returns how many sessions were ended.

    It is in the catalogue, so that it outlives a failover.
    """
    psql.run("postgres", f"ALTER DATABASE {quote(database)} CONNECTION LIMIT 0;")
    return throw_out(psql, database)


def open_again(psql: Psql, database: str) -> None:
    """Take the fence away."""
    psql.run("postgres", f"ALTER DATABASE {quote(database)} CONNECTION LIMIT -1;")


def _drop_subscription(psql: Psql, database: str) -> None:
    # Without a slot's name the other shard is not needed; its slots go when it is settled.
    psql.run(
        database,
        f"ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE; ALTER SUBSCRIPTION {SUBSCRIPTION} SET (slot_name = NONE);"
        f" DROP SUBSCRIPTION {SUBSCRIPTION};",
    )


def drop_slots(psql: Psql, database: str, timeout: float = 15.0) -> int:
    """Drop the logical slots of a database; returns how many there were."""
    where = f"FROM pg_replication_slots WHERE database = {literal(database)}"
    count = int(psql.ask("postgres", f"SELECT json_build_object('slots', count(*)) {where};")["slots"])
    deadline = time.monotonic() + timeout
    while True:
        psql.run("postgres", f"SELECT pg_terminate_backend(active_pid) {where} AND active;")
        with contextlib.suppress(PostgresqlError):
            psql.run("postgres", f"SELECT pg_drop_replication_slot(slot_name) {where} AND NOT active;")
        if not int(psql.ask("postgres", f"SELECT json_build_object('slots', count(*)) {where};")["slots"]):
            return count
        if time.monotonic() > deadline:
            raise TenantError(f"the replication slots of {database} are still in use after {timeout:g} s")
        time.sleep(0.2)


def drop(psql: Psql, database: str) -> None:
    """Drop a database with all that holds it."""
    drop_slots(psql, database)
    psql.run("postgres", f"DROP DATABASE IF EXISTS {quote(database)} WITH (FORCE);")


def _has_tables(psql: Psql, database: str) -> bool:
    facts = psql.ask(database, FACTS)
    return bool(facts["tables"])


def settle(psql: Psql, database: str, here: bool, now: str, check_mode: bool = False) -> list[str]:
    """Bring a tenant's database to what it should be after a move, or a part of one, by whether the tenant lives here.

    Here: nothing of the move is left and everybody may come in. Elsewhere: a copy that was not finished is dropped; the
    original of a finished move is renamed and stays closed. ``now``: the time, for the note on it. Returns what was
    done; raises TenantError.
    """
    known = databases(psql)
    entry = known.get(database)
    if entry is None:
        return []
    steps: list[tuple[str, Any]] = []
    if entry["subscriptions"]:
        steps.append(("dropped the subscription", lambda: _drop_subscription(psql, database)))
    if here:
        steps += _settle_here(psql, database, entry)
    elif entry["comment"].startswith(LEAVING):
        name = left_behind(database)

        def rename() -> None:
            fence(psql, database)
            drop_slots(psql, database)
            psql.run(database, f"DROP PUBLICATION IF EXISTS {PUBLICATION};")
            throw_out(psql, database)
            psql.run("postgres", f"ALTER DATABASE {quote(database)} RENAME TO {quote(name)};")
            comment(psql, name, f"{LEFT}{now}")

        steps.append((f"renamed {database} to {name}", rename))
    elif entry["comment"].startswith(COPY) or not _has_tables(psql, database):
        steps.append((f"dropped the unfinished copy {database}", lambda: drop(psql, database)))
    else:
        raise TenantError(
            f"database {database} is on this server, and its tenant lives on another shard: look what is in it, and "
            "rename or drop it by hand"
        )
    if not check_mode:
        for _told, act in steps:
            act()
    return [told for told, _act in steps]


def _settle_here(psql: Psql, database: str, entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    steps: list[tuple[str, Any]] = []
    facts = psql.ask(database, FACTS)
    if entry["slots"]:
        steps.append(("dropped the slot", lambda: drop_slots(psql, database)))
    if PUBLICATION in facts["publications"]:
        steps.append(("dropped the publication", lambda: psql.run(database, f"DROP PUBLICATION {PUBLICATION};")))
    if MARK_TABLE in facts["tables"]:
        steps.append(("dropped the marks", lambda: psql.run(database, f"DROP TABLE {MARK_TABLE};")))
    if entry["limit"] == 0:
        steps.append(("let clients in", lambda: open_again(psql, database)))
    if entry["comment"].startswith((LEAVING, COPY)):
        steps.append(("took the note of the move away", lambda: comment(psql, database, "")))
    return steps


def describe(entry: Mapping[str, Any]) -> Json:
    """A database for people: {size, open, move}."""
    text = str(entry["comment"])
    move = next(
        (word for word, mark in (("leaving", LEAVING), ("copy", COPY), ("left", LEFT)) if text.startswith(mark)), ""
    )
    return {"size": int(entry["size"]), "open": entry["limit"] != 0, "move": move, "note": text}
