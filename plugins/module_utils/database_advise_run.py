# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a PostgreSQL what database_advise decides with: statements, plans, and plans with hypothetical indexes.

Statements of the application are planned as the role that ran them, in a function of its own (SECURITY DEFINER), in
which SET ROLE is forbidden: planning may call the application's functions, and those must not run as superuser. All of
it is one transaction that is rolled back, so nothing is left, not even an extension that was made for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils import database_advise as advise
from ansible_collections.causeway.platform.plugins.module_utils.database_advise import AdviseError, Candidate, Trial
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import (
    PostgresqlError,
    Psql,
    literal,
    quote,
)

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

SYSTEM = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
GENERIC_PLAN = 160000  # server version from which EXPLAIN can plan a statement without values for its parameters
SCHEMA = "causeway_advise"
TIMEOUT = 5  # seconds for one plan
DROPS = 3  # tries to remove an index that did not come to its end
SPARE = 2  # an index and its sort files need about this many times its size while it is built

USAGE = f"""
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'since', (SELECT to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM pg_stat_database
            WHERE datname = current_database()),
  'scans', (SELECT coalesce(json_object_agg(s.schemaname || '.' || s.indexrelname, s.idx_scan), '{{}}')
            FROM pg_stat_user_indexes s JOIN pg_namespace n ON n.nspname = s.schemaname WHERE {SYSTEM}))
"""

SERVER = """
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'recovery', pg_is_in_recovery(),
  'data', current_setting('data_directory'),
  'extensions', (SELECT json_object_agg(extname, nspname)
                 FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace),
  'available', EXISTS (SELECT FROM pg_available_extensions WHERE name = 'hypopg'))
"""

CATALOG = f"""
SELECT json_build_object(
  'since', (SELECT to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM pg_stat_database
            WHERE datname = current_database()),
  'tables', (SELECT coalesce(json_agg(t), '[]') FROM (
      SELECT n.nspname AS schema, c.relname AS table, greatest(c.reltuples, 0)::float AS rows,
             pg_get_userbyid(c.relowner) AS owner, coalesce(n_tup_ins + n_tup_upd + n_tup_del, 0) AS writes,
             (SELECT coalesce(json_object_agg(quote_ident(attname),
                 CASE WHEN n_distinct < 0 THEN -n_distinct * greatest(c.reltuples, 1) ELSE n_distinct END), '{{}}')
              FROM pg_stats p
              WHERE p.schemaname = n.nspname AND p.tablename = c.relname AND NOT p.inherited) AS distinct
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
      WHERE c.relkind = 'r' AND {SYSTEM}) t),
  'indexes', (SELECT coalesce(json_agg(i), '[]') FROM (
      SELECT n.nspname AS schema, t.relname AS table, c.relname AS name, a.amname AS method,
             x.indisunique AS unique, x.indisvalid AND x.indisready AS valid, x.indisreplident AS replica_identity,
             x.indisclustered AS clustered, coalesce(pg_get_expr(x.indpred, x.indrelid), '') AS predicate,
             EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid) AS constraint,
             pg_relation_size(c.oid) AS size, coalesce(s.idx_scan, 0) AS scans,
             (SELECT json_agg(pg_get_indexdef(x.indexrelid, k, true)
                  || CASE WHEN x.indoption[k - 1] = 0 THEN '' ELSE ' /' || x.indoption[k - 1] END
                  || CASE WHEN o.opcdefault THEN '' ELSE ' ' || o.opcname END
                  || CASE WHEN x.indcollation[k - 1] IN (0, coalesce(att.attcollation, x.indcollation[k - 1])) THEN ''
                     ELSE ' collation ' || x.indcollation[k - 1] END
                  ORDER BY k)
              FROM generate_series(1, x.indnkeyatts) k JOIN pg_opclass o ON o.oid = x.indclass[k - 1]
              LEFT JOIN pg_attribute att ON att.attrelid = x.indrelid AND att.attnum = nullif(x.indkey[k - 1], 0)
             ) AS keys,
             (SELECT coalesce(json_agg(pg_get_indexdef(x.indexrelid, k, true) ORDER BY k), '[]')
              FROM generate_series(x.indnkeyatts + 1, x.indnatts) k) AS include
      FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
      JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am a ON a.oid = c.relam
      LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = c.oid
      -- what belongs to a partitioned table's index cannot be dropped alone
      WHERE t.relkind = 'r' AND {SYSTEM} AND NOT c.relispartition ORDER BY 1, 2, 3) i),
  'foreign_keys', (SELECT coalesce(json_agg(f), '[]') FROM (
      SELECT k.conname AS name, n.nspname AS schema, t.relname AS table, k.confrelid::regclass::text AS references,
             greatest(t.reltuples, 0)::float AS rows, coalesce(s.n_tup_del, 0) AS deletes,
             (SELECT json_agg(quote_ident(attname) ORDER BY u.place)
              FROM unnest(k.conkey) WITH ORDINALITY u(number, place)
              JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number) AS columns
      FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
      LEFT JOIN pg_stat_all_tables s ON s.relid = k.confrelid
      WHERE k.contype = 'f' AND t.relkind = 'r' AND {SYSTEM} ORDER BY 2, 3, 1) f))
"""

# Statements of superusers and of the platform's own roles are not the application's, and need no advice.
STATEMENTS = """
SELECT json_build_object(
  'since', (SELECT to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
            FROM {schema}.pg_stat_statements_info),
  'statements', (SELECT coalesce(json_agg(q), '[]') FROM (
      SELECT s.queryid::text AS id, r.rolname AS role, s.query, s.calls, s.total_exec_time AS total,
             s.mean_exec_time AS mean,
             (SELECT substr(c, 13) FROM pg_db_role_setting d, unnest(d.setconfig) c
              WHERE d.setrole IN (0, s.userid) AND d.setdatabase IN (0, s.dbid) AND c LIKE 'search\\_path=%'
              ORDER BY d.setrole DESC, d.setdatabase DESC LIMIT 1) AS path
      FROM {schema}.pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid
      WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.toplevel AND NOT r.rolsuper
        AND r.rolname NOT IN ('monitor', 'pgbouncer', 'replicator', 'rewind')
      ORDER BY s.total_exec_time DESC LIMIT {limit}) q))
"""

# One for each role; `OTHERS` leaves out a cancelled statement, which is what a timeout makes.
_PLANNER = """
CREATE FUNCTION pg_temp.causeway_plan_{number}(statement text, path text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER AS $causeway$
DECLARE
  result json;
{declare}BEGIN
  PERFORM pg_catalog.set_config('search_path', path, true);
{body}
  RETURN jsonb_build_object('plan', result -> 0 -> 'Plan');
EXCEPTION WHEN query_canceled OR OTHERS THEN
  RETURN jsonb_build_object('error', SQLERRM);
END
$causeway$;
ALTER FUNCTION pg_temp.causeway_plan_{number}(text, text) OWNER TO {role};
"""
_PLAN = "  EXECUTE 'EXPLAIN (FORMAT JSON, VERBOSE, GENERIC_PLAN) ' || statement INTO result;"
_PLAN_PREPARED = """
  EXECUTE 'PREPARE causeway_advise AS ' || statement;
  SELECT cardinality(parameter_types) INTO count FROM pg_catalog.pg_prepared_statements WHERE name = 'causeway_advise';
  EXECUTE 'EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE causeway_advise'
    || CASE count WHEN 0 THEN '' ELSE '(NULL' || repeat(', NULL', count - 1) || ')' END INTO result;
  DEALLOCATE causeway_advise;"""
# An error rolls back to the block's beginning, which a prepared statement outlives.
_FORGET = "DO $causeway$ BEGIN DEALLOCATE causeway_advise; EXCEPTION WHEN OTHERS THEN NULL; END $causeway$;"
_INVENTOR = """
CREATE FUNCTION pg_temp.causeway_invent_{number}(definition text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER AS $causeway$
DECLARE
  made record;
BEGIN
  SELECT * INTO made FROM {hypopg}.hypopg_create_index(definition);
  RETURN jsonb_build_object('oid', made.indexrelid::text, 'name', made.indexname,
                            'size', {hypopg}.hypopg_relation_size(made.indexrelid));
EXCEPTION WHEN query_canceled OR OTHERS THEN
  RETURN jsonb_build_object('error', SQLERRM);
END
$causeway$;
ALTER FUNCTION pg_temp.causeway_invent_{number}(text) OWNER TO {role};
"""


@dataclass
class Statement:
    """A statement of the workload."""

    identifier: str
    role: str
    query: str
    path: str
    sql: str
    calls: int = 0
    total: float = 0.0
    mean: float = 0.0
    plan: Json = field(default_factory=dict)
    error: str = ""

    @property
    def cost(self) -> float:
        return float(self.plan.get("Total Cost", 0.0))


class Session:
    """Builds one script, which psql runs as one transaction that is rolled back; each question is answered by a line
    of JSON.
    """

    def __init__(self, psql: Psql, database: str, version: int, roles: Iterable[str], hypopg: str | None) -> None:
        """hypopg: schema of the extension; "": it is made for this transaction only; None: there is none."""
        self.psql, self.database = psql, database
        self.roles = {role: number for number, role in enumerate(sorted(set(roles)))}
        self.generic = version >= GENERIC_PLAN
        self.lines: list[str] = []
        lines = [
            "BEGIN;",
            "SET LOCAL standard_conforming_strings = on;",
            f"SET LOCAL statement_timeout = '{TIMEOUT}s';",
            "SET LOCAL lock_timeout = '1s';",
        ]
        lines += ["SET LOCAL plan_cache_mode = force_generic_plan;", "SET LOCAL client_min_messages = error;"]
        if hypopg == "":
            lines += [f"CREATE SCHEMA {SCHEMA};", f"CREATE EXTENSION hypopg SCHEMA {SCHEMA};"]
        self.hypopg = None if hypopg is None else quote(hypopg or SCHEMA)
        for role, number in self.roles.items():
            lines.append(
                _PLANNER.format(
                    number=number,
                    role=quote(role),
                    declare="" if self.generic else "  count int;\n",
                    body=_PLAN if self.generic else _PLAN_PREPARED,
                )
            )
            if self.hypopg:
                lines.append(_INVENTOR.format(number=number, role=quote(role), hypopg=self.hypopg))
                lines.append(f"GRANT USAGE ON SCHEMA {self.hypopg} TO {quote(role)};")
        if self.hypopg:
            lines.append(f"DO $causeway$ BEGIN PERFORM {self.hypopg}.hypopg_reset(); END $causeway$;")
        lines.append("SET TRANSACTION READ ONLY;")
        self.lines = lines

    def plan(self, role: str, path: str, sql: str) -> None:
        """Ask for a plan; answers {plan} or {error}."""
        search = literal(path or '"$user", public')
        self.lines.append(f"SELECT pg_temp.causeway_plan_{self.roles[role]}({literal(sql)}, {search});")
        if not self.generic:
            self.lines.append(_FORGET)

    def invent(self, role: str, candidate: Candidate) -> None:
        """Make a hypothetical index; answers {oid, name, size} or {error}."""
        definition = literal(f"CREATE INDEX {candidate.body}")
        self.lines.append(f"SELECT pg_temp.causeway_invent_{self.roles[role]}({definition});")

    def forget(self) -> None:
        """Forget all hypothetical indexes."""
        self.lines.append(f"DO $causeway$ BEGIN PERFORM {self.hypopg}.hypopg_reset(); END $causeway$;")

    def run(self) -> list[Json]:
        """Run the script; returns the answers in order."""
        out = self.psql.run(self.database, "\n".join([*self.lines, "ROLLBACK;"]) + "\n")
        return [json.loads(line) for line in out.splitlines() if line.strip()]


class Adviser:
    """Everything about one database."""

    def __init__(self, psql: Psql, database: str) -> None:
        self.psql, self.database = psql, database
        self.server = psql.ask(database, SERVER)
        extensions = self.server["extensions"] or {}
        self.statistics: str | None = extensions.get("pg_stat_statements")
        self.hypopg: str | None = extensions.get("hypopg", "" if self.server["available"] else None)
        self.notes: list[str] = []
        if self.server["recovery"]:
            raise AdviseError(f"{database} on port {psql.port} is a replica; ask the member that leads")
        if self.statistics is None:
            raise AdviseError(
                f"{database}: the extension pg_stat_statements is not there, so nothing is known of its statements"
            )
        if self.hypopg is None:
            self.notes.append(
                "hypopg is not installed on this host, so no index can be proved and none is proposed;"
                " list hypopg under database.extensions of the service, or install its package"
            )

    def session(self, roles: Iterable[str]) -> Session:
        return Session(self.psql, self.database, self.server["version"], roles, self.hypopg)

    def statements(self, limit: int) -> tuple[list[Statement], str]:
        """The statements that took most time, with their plans, and since when they are counted."""
        # What has no plan (utility commands) takes no place of one that has.
        text = STATEMENTS.format(schema=quote(self.statistics or ""), limit=limit * 4)
        answer = self.psql.ask(self.database, text)
        found = [
            Statement(
                f"{one['id']}/{one['role']}",  # two roles may run the same statement
                one["role"],
                one["query"],
                one["path"] or "",
                advise.statement(one["query"]),
                int(one["calls"]),
                float(one["total"]),
                float(one["mean"]),
            )
            for one in answer["statements"]
        ]
        chosen = [one for one in found if one.sql][:limit]
        if chosen:
            session = self.session(one.role for one in chosen)
            for one in chosen:
                session.plan(one.role, one.path, one.sql)
            for one, reply in zip(chosen, session.run()):
                one.plan, one.error = reply.get("plan") or {}, reply.get("error") or ""
        return chosen, answer["since"] or ""

    def try_out(
        self,
        chosen: Mapping[Candidate, str],
        trials: Mapping[Candidate, Sequence[Statement]],
    ) -> tuple[dict[Candidate, list[Trial]], dict[Candidate, int]]:
        """Plans of statements with each candidate in place beside those `chosen` already; and the candidates' sizes.

        chosen: with a role that may see the table. Candidates that PostgreSQL refuses are left out.
        """
        session = self.session([*chosen.values(), *(one.role for group in trials.values() for one in group)])
        for candidate, group in trials.items():
            session.forget()
            for other, role in {**chosen, candidate: group[0].role}.items():
                session.invent(role, other)
            for one in group:
                session.plan(one.role, one.path, one.sql)
        answers = iter(session.run())
        results: dict[Candidate, list[Trial]] = {}
        sizes: dict[Candidate, int] = {}
        for candidate, group in trials.items():
            made = [next(answers) for _other in [*chosen, candidate]][-1]
            replies = [next(answers) for _one in group]
            if "error" in made:
                continue
            sizes[candidate] = int(made["size"] or 0)
            results[candidate] = [
                Trial(
                    one.identifier,
                    float((reply.get("plan") or {}).get("Total Cost", one.cost)),
                    made["name"] in advise.indexes_used(reply.get("plan") or {}),
                )
                for one, reply in zip(group, replies)
            ]
        return results, sizes

    def select(
        self, statements: Sequence[Statement], groups: Mapping[Candidate, Sequence[Statement]], least: float, limit: int
    ) -> list[advise.Choice]:
        """Choose candidates one after the other, each proved with those before in place."""
        keyed = {one.identifier: advise.Query(one.identifier, one.total, one.cost) for one in statements}
        current = {one.identifier: one.cost for one in statements}
        left = dict(groups)
        result: list[advise.Choice] = []
        while left and len(result) < limit:
            chosen = {one.candidate: groups[one.candidate][0].role for one in result}
            results, sizes = self.try_out(chosen, left)
            choice = advise.choose(keyed, current, results, least)
            if choice is None:
                break
            choice.size = sizes[choice.candidate]
            for proof in choice.proofs:
                current[proof["query"]] = proof["after"]
            result.append(choice)
            # What does not help now helps even less beside more indexes; the rest is tried again.
            useful = {
                candidate
                for candidate, trials in results.items()
                if any(trial.used and trial.cost < current[trial.query] for trial in trials)
            }
            left = {candidate: group for candidate, group in left.items() if candidate in useful - {choice.candidate}}
        return result


def _foreign_key_statements(
    keys: Sequence[Json], tables: Mapping[tuple[str, str], Json]
) -> dict[Candidate, list[Statement]]:
    """What PostgreSQL asks the referencing table when a referenced row is deleted (ri_triggers.c), by candidate."""
    result = {}
    for key in keys:
        candidate = Candidate(key["schema"], key["table"], tuple(key["columns"]))
        conditions = " AND ".join(f"${number} = {column}" for number, column in enumerate(key["columns"], 1))
        sql = f"SELECT 1 FROM ONLY {candidate.relation} x WHERE {conditions} FOR KEY SHARE OF x"
        owner = tables[key["schema"], key["table"]]["owner"]
        name = f"foreign key {key['schema']}.{key['table']}.{key['name']}"
        result[candidate] = [Statement(name, owner, f"DELETE FROM {key['references']}: {sql}", "", sql, total=1.0)]
    return result


def _proposal(choice: advise.Choice, reason: str, taken: set[str], writes: int, texts: Mapping[str, str]) -> Json:
    name = advise.index_name(choice.candidate, taken)
    taken.add(name)
    return {
        "name": name,
        "schema": choice.candidate.schema,
        "table": f"{choice.candidate.schema}.{choice.candidate.table}",
        "keys": list(choice.candidate.keys),
        "sql": f"CREATE INDEX CONCURRENTLY {quote(name)} {choice.candidate.body}",
        "reason": reason,
        "saved": round(choice.saved, 1) if reason == "statements" else None,
        "size": choice.size,
        "writes": writes,
        "proofs": [{**proof, "text": texts[proof["query"]]} for proof in choice.proofs],
    }


def gather(
    adviser: Adviser,
    *,
    limit: int,
    least: float,
    rows: int,
    size: int,
    proposals: int,
    usage: Mapping[str, Mapping[str, Any]],
    members: Sequence[str],
) -> Json:
    """The advice as module database_advise returns it.

    limit: statements to look at. least: share of cost that an index must save. rows: a table is large from here.
    size: bytes from which an unused index is worth a word. proposals: how many at most.
    """
    catalog = adviser.psql.ask(adviser.database, CATALOG)
    tables = {(one["schema"], one["table"]): one for one in catalog["tables"]}
    statements, since = adviser.statements(limit)
    groups: dict[Candidate, list[Statement]] = {}
    told = []
    for one in statements:
        scans = [scan for scan in advise.sequential_scans(one.plan) if tables.get(scan.name, {}).get("rows", 0) >= rows]
        told.append(
            {
                "id": one.identifier,
                "role": one.role,
                "query": one.query,
                "calls": one.calls,
                "total": round(one.total, 1),
                "mean": round(one.mean, 3),
                "cost": one.cost or None,
                "scans": sorted({f"{scan.schema}.{scan.table}" for scan in scans}),
                "error": one.error,
            }
        )
        for scan in scans:
            for candidate in advise.candidates(scan, tables[scan.name]["distinct"]):
                groups.setdefault(candidate, [])
    for candidate, group in groups.items():
        group += [one for one in statements if (candidate.schema, candidate.table) in advise.tables(one.plan)]
    keys = advise.unindexed_foreign_keys(catalog["foreign_keys"], catalog["indexes"])
    taken = {one["name"] for one in catalog["indexes"] if one["valid"]}
    result: list[Json] = []
    if adviser.hypopg is not None:
        chosen = adviser.select(statements, groups, least, proposals)
        texts = {one.identifier: one.query for one in statements}
        for choice in chosen:
            writes = tables[choice.candidate.schema, choice.candidate.table]["writes"]
            result.append(_proposal(choice, "statements", taken, writes, texts))
        wanted = _foreign_key_statements([key for key in keys if key["rows"] >= rows], tables)
        for index in [choice.candidate for choice in chosen]:
            for candidate in [*wanted]:
                served = set(index.keys[: len(candidate.keys)]) == set(candidate.keys)
                if served and index.relation == candidate.relation:
                    del wanted[candidate]
        for choice, asked in _foreign_keys(adviser, wanted, least)[: max(0, proposals - len(result))]:
            writes = tables[choice.candidate.schema, choice.candidate.table]["writes"]
            result.append(_proposal(choice, "foreign key", taken, writes, asked))
    own = {f"{one['schema']}.{one['name']}": one["scans"] for one in catalog["indexes"]}
    counted = {**usage, "leader": {"since": catalog["since"], "scans": own}}
    idle, note = advise.unused(catalog["indexes"], counted, members, size)
    return {
        "database": adviser.database,
        "since": since,
        "statements": told,
        "proposals": result,
        "foreign_keys": keys,
        "duplicates": advise.duplicates(catalog["indexes"]),
        "unused": idle,
        "notes": [*adviser.notes, *([note] if note else [])],
        "applied": [],
        "indexes": {one["name"]: one["valid"] for one in catalog["indexes"]},
    }


def _foreign_keys(
    adviser: Adviser, wanted: Mapping[Candidate, Sequence[Statement]], least: float
) -> list[tuple[advise.Choice, dict[str, str]]]:
    """Proved indexes for foreign keys: each stands for itself, no recorded time says which matters most."""
    asked = [one for group in wanted.values() for one in group]
    if not asked:
        return []
    session = adviser.session(one.role for one in asked)
    for one in asked:
        session.plan(one.role, one.path, one.sql)
    for one, reply in zip(asked, session.run()):
        one.plan, one.error = reply.get("plan") or {}, reply.get("error") or ""
    planned = {candidate: group for candidate, group in wanted.items() if group[0].plan}
    if not planned:
        return []
    results, sizes = adviser.try_out({}, planned)
    found: list[tuple[advise.Choice, dict[str, str]]] = []
    for candidate, trials in results.items():
        (one,) = wanted[candidate]
        queries = {one.identifier: advise.Query(one.identifier, 1.0, one.cost)}
        choice = advise.choose(queries, {one.identifier: one.cost}, {candidate: trials}, least)
        if choice is not None:
            choice.size = sizes[candidate]
            found.append((choice, {one.identifier: one.query}))
    return found


def check_names(advice: Mapping[str, Any], names: Sequence[str]) -> list[Json]:
    """The proposals to create, those whose index is there already left out. Raises AdviseError for any other name."""
    known = {one["name"]: one for one in advice["proposals"]}
    unknown = [name for name in names if name not in known and not advice["indexes"].get(name)]
    if unknown:
        allowed = ", ".join(known) or "none is proposed now"
        raise AdviseError(f"apply: {unknown[0]!r} is not a proposed index ({allowed}); nothing was changed")
    return [known[name] for name in dict.fromkeys(names) if name in known]


def free_space(adviser: Adviser, proposals: Sequence[Mapping[str, Any]]) -> None:
    """Raises AdviseError if the indexes may not fit on the disk."""
    needed = SPARE * sum(one["size"] for one in proposals)
    found = os.statvfs(adviser.server["data"])
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise AdviseError(
            f"apply: the indexes need about {advise.size_text(needed)} while they are built,"
            f" {advise.size_text(free)} are free below {adviser.server['data']}; nothing was changed"
        )


def open_transactions(psql: Psql, database: str, seconds: float) -> None:
    """Raises AdviseError while a transaction is open that long: an index waits for all that are older than itself."""
    found = psql.ask(
        database,
        f"""
        SELECT json_build_object('old', (SELECT coalesce(json_agg(t ORDER BY seconds DESC), '[]') FROM (
          SELECT pid, usename AS role, extract(epoch FROM clock_timestamp() - xact_start)::int AS seconds
          FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend'
            AND xact_start < clock_timestamp() - {seconds:.3f} * interval '1 second') t))
        """,
    )["old"]
    if found:
        told = ", ".join(f"pid {one['pid']} of {one['role']} for {one['seconds']} s" for one in found[:5])
        raise AdviseError(f"apply: an index would wait for transactions that are open ({told}); nothing was changed")


def create(psql: Psql, database: str, proposal: Mapping[str, Any], lock_timeout: float) -> None:
    """Create one index without blocking writes. One that did not come to its end is removed. Raises AdviseError."""
    name = f"{quote(proposal['schema'])}.{quote(proposal['name'])}"
    limits = f"SET statement_timeout = 0; SET lock_timeout = {round(lock_timeout * 1000)};\n"
    drop = f"{limits}DROP INDEX CONCURRENTLY IF EXISTS {name};"
    try:
        # What an earlier run left is invalid, or it would not be proposed again.
        psql.run(database, drop)
        psql.run(database, f"{limits}{proposal['sql']};")
    except PostgresqlError as error:
        left = ""
        for _try in range(DROPS):
            try:
                psql.run(database, drop)
                left = "what was begun is removed"
                break
            except PostgresqlError as second:
                left = f"AN INVALID INDEX IS LEFT, {name}: the next run with this name removes it ({second})"
        raise AdviseError(f"index {proposal['name']} was not created, {left}: {error}") from error
