# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles, database, privileges and extensions of a service's PostgreSQL: state, plan, SQL. Standard library and psql."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

NAME = re.compile(r"^[a-z_][a-z0-9_-]{0,62}$")
ATTRIBUTES = {"LOGIN": "rolcanlogin", "REPLICATION": "rolreplication"}
SCRAM = re.compile(r"^SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)$")

# auth_query of PgBouncer: only ordinary roles that may log in, so that nobody becomes superuser through the pooler.
# The wait of a reader: READ COMMITTED takes a new snapshot for the next statement, which then sees what was waited for.
HELPERS = """
CREATE SCHEMA IF NOT EXISTS causeway;
REVOKE ALL ON SCHEMA causeway FROM PUBLIC;
GRANT USAGE ON SCHEMA causeway TO {application}, {owner}, pgbouncer;
GRANT CREATE ON SCHEMA causeway TO {owner};
CREATE OR REPLACE FUNCTION causeway.user_lookup(name text, OUT usename text, OUT passwd text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $causeway$
  SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid
  WHERE rolname = $1 AND rolcanlogin AND NOT rolsuper AND NOT rolreplication AND NOT rolbypassrls
    AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())
$causeway$;
REVOKE ALL ON FUNCTION causeway.user_lookup(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION causeway.user_lookup(text) TO pgbouncer;
CREATE OR REPLACE FUNCTION causeway.wait_for_lsn(target pg_lsn, timeout interval DEFAULT '5 seconds') RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $causeway$
DECLARE
  until timestamptz := pg_catalog.clock_timestamp() + timeout;
BEGIN
  LOOP
    IF NOT pg_catalog.pg_is_in_recovery() OR pg_catalog.pg_last_wal_replay_lsn() >= target THEN
      RETURN true;
    END IF;
    IF pg_catalog.clock_timestamp() >= until THEN
      RETURN false;
    END IF;
    PERFORM pg_catalog.pg_sleep(0.002);
  END LOOP;
END
$causeway$;
REVOKE ALL ON FUNCTION causeway.wait_for_lsn(pg_lsn, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION causeway.wait_for_lsn(pg_lsn, interval) TO {application}, {owner};
COMMENT ON SCHEMA causeway IS '{mark}';
"""

SERVER_STATE = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'roles', (SELECT coalesce(json_object_agg(rolname, json_build_object(
      'rolcanlogin', rolcanlogin, 'rolreplication', rolreplication, 'rolsuper', rolsuper, 'password', rolpassword,
      'member_of', (SELECT coalesce(json_agg(g.rolname), '[]') FROM pg_auth_members m
                    JOIN pg_authid g ON g.oid = m.roleid WHERE m.member = r.oid))), '{}')
    FROM pg_authid r WHERE rolname !~ '^pg_'),
  'databases', (SELECT json_object_agg(datname, json_build_object('owner', pg_get_userbyid(datdba),
      'public', has_database_privilege('public', d.oid, 'CONNECT') OR has_database_privilege('public', d.oid, 'TEMP'),
      'connect', (SELECT coalesce(json_agg(DISTINCT pg_get_userbyid(a.grantee)), '[]') FROM aclexplode(d.datacl) a
                  WHERE a.privilege_type = 'CONNECT' AND a.grantee <> 0)))
    FROM pg_database d),
  'available', (SELECT coalesce(json_agg(name), '[]') FROM pg_available_extensions))
"""

DATABASE_STATE = """
SELECT json_build_object(
  'extensions', (SELECT json_agg(extname) FROM pg_extension),
  'mark', (SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'causeway'),
  'defaults', (SELECT coalesce(json_agg(DISTINCT concat(pg_get_userbyid(d.defaclrole), '>', pg_get_userbyid(a.grantee),
      ':', d.defaclobjtype::text, ':', a.privilege_type)), '[]')
    FROM pg_default_acl d, aclexplode(d.defaclacl) a WHERE d.defaclnamespace = 0 AND a.grantee <> 0))
"""

ACTIVITY = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'transactions', (SELECT coalesce(json_agg(t ORDER BY t.seconds DESC), '[]') FROM (
      SELECT pid, datname AS database, usename AS role, application_name AS application, state,
             round(extract(epoch FROM clock_timestamp() - xact_start)::numeric, 1)::float AS seconds
      FROM pg_stat_activity
      WHERE xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()) t),
  'prepared', (SELECT coalesce(json_agg(p), '[]') FROM (
      SELECT gid, database, owner AS role,
             round(extract(epoch FROM clock_timestamp() - prepared)::numeric, 1)::float AS seconds
      FROM pg_prepared_xacts) p),
  'replication', (SELECT coalesce(json_agg(r), '[]') FROM (
      SELECT application_name AS member, state, sync_state,
             (CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) END)::float
               AS lag
      FROM pg_stat_replication ORDER BY 1) r),
  'slots', (SELECT coalesce(json_agg(s), '[]') FROM (
      SELECT slot_name AS name, slot_type AS type, active, wal_status,
             (CASE WHEN pg_is_in_recovery() THEN NULL
              ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END)::float
               AS retained
      FROM pg_replication_slots ORDER BY 1) s))
"""


class PostgresqlError(Exception):
    """PostgreSQL does not answer or refuses; the message says where and why."""


@dataclass(frozen=True)
class Step:
    """One statement: what it does in words without passwords, where it runs and as what SQL."""

    told: str
    sql: str
    database: str = "postgres"


# Options that the modules share, documented in plugins/doc_fragments/postgresql.py.
SERVER: dict[str, Any] = {
    "socket_path": {"type": "path", "default": "/run/postgresql"},
    "system_user": {"type": "str", "default": "postgres"},
}


class Psql:
    """psql on this host over the unix socket, as PostgreSQL's superuser by peer authentication."""

    def __init__(self, port: int, socket: str, system_user: str, timeout: float, program: str = "psql") -> None:
        self.port, self.socket, self.timeout, self.program = port, socket, timeout, program
        self.system_user = system_user if os.geteuid() == 0 else ""

    def run(self, database: str, sql: str) -> str:
        """Run SQL from standard input, where no other process can read it, and return what it prints.

        :raises PostgresqlError: it failed.
        """
        # The server's log must not get what is set here either.
        quiet = (
            "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic';\n"
        )
        command = [self.program, "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.socket, "-p", str(self.port)]
        command += ["-U", "postgres", "-d", database]
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PGAPPNAME": "causeway", "LC_ALL": "C.UTF-8"}
        identity: Json = {"user": self.system_user, "extra_groups": []} if self.system_user else {}
        if self.system_user:
            identity["group"] = self.system_user
        try:
            done = subprocess.run(
                command,
                input=quiet + sql,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.timeout,
                env=environment,
                cwd="/",
                **identity,
            )
        except (OSError, KeyError, LookupError, subprocess.TimeoutExpired) as error:
            raise PostgresqlError(f"psql on port {self.port}: {error}") from error
        if done.returncode:
            raise PostgresqlError(f"PostgreSQL on port {self.port}, database {database}: {done.stderr.strip()}")
        return done.stdout

    def ask(self, database: str, sql: str) -> Json:
        """Run a query that returns one JSON object."""
        value = json.loads(self.run(database, sql.rstrip().rstrip(";") + ";"))
        return dict(value)


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A string constant, quoted."""
    return "'" + value.replace("'", "''") + "'"


def scram_verifier(password: str, salt: bytes = b"", iterations: int = 4096) -> str:
    """What PostgreSQL keeps of an ASCII password (RFC 5802, RFC 7677), so that the password itself never travels."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    server_key = hmac.new(salted, b"Server Key", hashlib.sha256).digest()
    texts = [base64.b64encode(one).decode() for one in (salt, hashlib.sha256(client_key).digest(), server_key)]
    return f"SCRAM-SHA-256${iterations}:{texts[0]}${texts[1]}:{texts[2]}"


def has_password(verifier: str | None, password: str, wanted: bytes = b"") -> bool:
    """Whether a stored verifier belongs to the password, and has the salt that is wanted, if any is."""
    found = SCRAM.match(verifier or "")
    if not found:
        return False
    try:
        salt = base64.b64decode(found[2])
    except ValueError:
        return False
    if wanted and salt != wanted:
        return False
    return hmac.compare_digest(scram_verifier(password, salt, int(found[1])), verifier or "")


def helpers(application: str, owner: str) -> tuple[str, str]:
    """SQL of schema ``causeway`` and the mark by which it is known again."""
    body = HELPERS.replace("{application}", quote(application)).replace("{owner}", quote(owner))
    mark = f"causeway.platform {hashlib.sha256(body.encode()).hexdigest()[:16]}"
    return body.replace("{mark}", mark), mark


def check_names(names: Iterable[str]) -> None:
    """Refuse names that are not plain."""
    for name in names:
        if not NAME.match(name):
            raise PostgresqlError(
                f"'{name}' is not a name here: lower-case letters, digits, dashes and underscores, not a digit first, "
                f"at most 63"
            )


def _salt(role: str, text: str) -> bytes:
    try:
        salt = bytes.fromhex(text)
    except ValueError:
        salt = b"?"
    if salt and len(salt) != 16:
        raise PostgresqlError(f"role {role}: the salt is not 32 hexadecimal digits")
    return salt


def plan_server(
    state: Mapping[str, Any], database: str, owner: str, roles: Sequence[Mapping[str, Any]], connect: Sequence[str]
) -> list[Step]:
    """Roles, the database and who may connect."""
    steps: list[Step] = []
    for role in roles:
        name = str(role["name"])
        have = state["roles"].get(name)
        wanted = [str(one).upper() for one in role.get("attributes") or ["LOGIN"]]
        unknown = sorted(set(wanted) - set(ATTRIBUTES))
        if unknown:
            raise PostgresqlError(f"role {name}: attribute '{unknown[0]}' is not one of {', '.join(ATTRIBUTES)}")
        if have is None:
            steps.append(Step(f"create role {name}", f"CREATE ROLE {quote(name)} {' '.join(wanted)};"))
        else:
            missing = [one for one in wanted if not have[ATTRIBUTES[one]]]
            if missing:
                steps.append(
                    Step(f"alter role {name} {' '.join(missing)}", f"ALTER ROLE {quote(name)} {' '.join(missing)};")
                )
        password = role.get("password")
        salt = _salt(name, str(role.get("salt") or ""))
        if password and not has_password((have or {}).get("password"), str(password), salt):
            sql = f"ALTER ROLE {quote(name)} PASSWORD {literal(scram_verifier(str(password), salt))};"
            steps.append(Step(f"set the password of {name}", sql))
        for group in role.get("member_of") or []:
            if group not in (have or {}).get("member_of", []):
                steps.append(Step(f"grant {group} to {name}", f"GRANT {quote(group)} TO {quote(name)};"))
    found = state["databases"].get(database)
    if found is None:
        sql = f"CREATE DATABASE {quote(database)} OWNER {quote(owner)};"
        steps.append(Step(f"create database {database}", sql))
    elif found["owner"] != owner:
        sql = f"ALTER DATABASE {quote(database)} OWNER TO {quote(owner)};"
        steps.append(Step(f"give database {database} to {owner}", sql))
    if found is None or found["public"]:
        sql = f"REVOKE ALL ON DATABASE {quote(database)} FROM PUBLIC;"
        steps.append(Step(f"keep others out of database {database}", sql))
    for name in connect:
        if name not in (found or {}).get("connect", []):
            sql = f"GRANT CONNECT, TEMPORARY ON DATABASE {quote(database)} TO {quote(name)};"
            steps.append(Step(f"let {name} into database {database}", sql))
    return steps


# What the application may do with what the owner makes later.
GRANTS = {"r": ("TABLES", ("SELECT", "INSERT", "UPDATE", "DELETE")), "S": ("SEQUENCES", ("USAGE", "SELECT"))}


def plan_database(
    state: Mapping[str, Any], database: str, owner: str, application: str, extensions: Sequence[str]
) -> list[Step]:
    """Extensions, privileges and helpers inside the database."""
    steps = [
        Step(f"create extension {name}", f"CREATE EXTENSION IF NOT EXISTS {quote(name)} CASCADE;", database)
        for name in extensions
        if name not in (state.get("extensions") or [])
    ]
    defaults = set(state.get("defaults") or [])
    for kind, (word, rights) in GRANTS.items():
        missing = [right for right in rights if f"{owner}>{application}:{kind}:{right}" not in defaults]
        if missing:
            sql = (
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {quote(owner)} "
                f"GRANT {', '.join(missing)} ON {word} TO {quote(application)};"
            )
            steps.append(Step(f"let {application} use {word.lower()} of {owner}", sql, database))
    sql, mark = helpers(application, owner)
    if state.get("mark") != mark:
        steps.append(Step("write schema causeway", f"BEGIN;\n{sql}\nCOMMIT;", database))
    return steps


def check_extensions(state: Mapping[str, Any], extensions: Iterable[str]) -> None:
    """Refuse extensions that this server does not have."""
    for name in extensions:
        if name not in state["available"]:
            raise PostgresqlError(f"extension '{name}' is not installed on this host; install its package first")


def apply(psql: Psql, steps: Iterable[Step]) -> None:
    """Carry a plan out, statement by statement: each may be repeated."""
    for step in steps:
        psql.run(step.database, step.sql)
