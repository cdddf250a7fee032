# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to tell about a database's indexes: reads plans, finds candidates, weighs their proofs. Pure functions.

Which candidate is taken first follows the greedy selection of S. Chaudhuri and V. Narasayya, "An Efficient, Cost-Driven
Index Selection Tool for Microsoft SQL Server" (VLDB 1997): the one that saves most, then the next one with that in
place. The optimizer itself is asked what an index would save (extension hypopg); nothing is guessed here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

EXPLAINABLE = re.compile(r"(select|with|insert|update|delete|merge|values|table)\b", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(--[^\n]*\n|/\*.*?\*/)", re.DOTALL)
# A statement that a client prepared in SQL; drivers prepare by the protocol and leave no such trace.
_PREPARE = re.compile(r'prepare\s+(?:"(?:[^"]|"")+"|\w+)\s*(?:\([^)]*\)\s*)?as\s+', re.IGNORECASE)
# pg_stat_statements writes $1 also where only a literal is allowed.
_TYPED_LITERAL = re.compile(r"\b(interval|timestamptz|timestamp|date|time)\s+(\$\d+)\b", re.IGNORECASE)
_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
_CAST = re.compile(r"^(\(.*\))::[a-z ]+(?:\(\d+(?:,\d+)?\))?(?:\[\])?$")
_EXPRESSION = re.compile(r'^[a-zA-Z0-9_.":, ()\[\]]+$')
_TEXT = re.compile(r"'(?:[^']|'')*'")
_OPERATORS = {"=": "equal", "<": "range", "<=": "range", ">": "range", ">=": "range"}
MAX_NAME = 63  # PostgreSQL's NAMEDATALEN - 1
MAX_COLUMNS = 3
NEAR = 0.98  # an index that saves this share of what the best one saves is as good


class AdviseError(Exception):
    """What cannot be advised or done, in one sentence."""


# --- conditions -------------------------------------------------------------------------------------------------------


def top_level(text: str) -> Iterator[tuple[int, str]]:
    """Characters of an expression that are in no parentheses and no quotes, with their places."""
    depth, quote = 0, ""
    for place, character in enumerate(text):
        if quote:
            if character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
            if depth == 0 and character == '"':
                yield place, character
        elif character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        elif depth == 0:
            yield place, character


def strip_parentheses(text: str) -> str:
    """An expression without parentheses around all of it."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")"):
        depth, quote_mark = 0, ""
        for place, character in enumerate(text):
            if quote_mark:
                quote_mark = "" if character == quote_mark else quote_mark
            elif character in "'\"":
                quote_mark = character
            else:
                depth += (character == "(") - (character == ")")
            if depth == 0 and not quote_mark and place < len(text) - 1:
                return text  # "(a) = (b)"
        text = text[1:-1].strip()
    return text


def split_top(text: str, word: str) -> list[str]:
    """An expression cut at a word such as ` AND ` outside of parentheses and quotes."""
    outside = {place for place, _character in top_level(text)}
    parts, start = [], 0
    for match in re.finditer(re.escape(word), text):
        if set(range(match.start(), match.end())) <= outside and match.start() >= start:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def conjuncts(condition: str) -> list[str]:
    """The conditions that must all hold."""
    stripped = strip_parentheses(condition)
    parts = split_top(stripped, " AND ")
    return [one for part in parts for one in conjuncts(part)] if len(parts) > 1 else [stripped]


@dataclass(frozen=True)
class Term:
    """A part of a condition on one table that an index may serve: its key and `equal` or `range`."""

    key: str
    kind: str


def key_of(side: str, alias: str) -> str:
    """The index key that serves an expression over one table's columns, "" if none does."""
    side = strip_parentheses(side)
    cast = _CAST.match(side)
    inner = strip_parentheses(cast.group(1)) if cast else side
    prefix = re.escape(alias) + r"\."
    column = re.match(rf"^{prefix}({_IDENTIFIER})$", inner)
    if column:
        return column.group(1)
    # Only what cannot hold a constant or end a statement becomes an expression of an index.
    if re.match(rf"^{_IDENTIFIER}(?:\.{_IDENTIFIER})?\(.*\)$", side) and _EXPRESSION.match(side):
        found = re.sub(rf"(?<![\w.\"]){prefix}(?={_IDENTIFIER})", "", side)
        if found != side and not re.search(rf"{_IDENTIFIER}\.{_IDENTIFIER}(?!\()", found):
            return found
    return ""


def terms(condition: str, alias: str) -> list[Term]:
    """What an index on the table `alias` could serve of a condition as EXPLAIN VERBOSE writes it."""
    result = []
    pattern = re.compile(rf"(?<![\w.\"]){re.escape(alias)}\.")

    def mentions(text: str) -> bool:
        return bool(pattern.search(_TEXT.sub("''", text)))

    for one in conjuncts(condition):
        if len(split_top(one, " OR ")) > 1:
            continue
        null = re.match(r"^(.*) IS NULL$", one, re.DOTALL)
        truth = re.match(r"^(?:NOT )?(.*)$", one, re.DOTALL)
        if null:
            key = key_of(null.group(1), alias)
            if key:
                result.append(Term(key, "equal"))
            continue
        for operator, kind in _OPERATORS.items():
            sides = split_top(one, f" {operator} ")
            if len(sides) != 2:
                continue
            left, right = sides
            is_any = right.strip().startswith("ANY ")
            for own, other in ((left, right), (right, left)):
                if mentions(own) and not mentions(other) and not (is_any and own is right):
                    key = key_of(own, alias)
                    if key:
                        result.append(Term(key, kind))
            break
        else:
            column = re.match(
                rf"^{re.escape(alias)}\.({_IDENTIFIER})$", strip_parentheses(truth.group(1) if truth else "")
            )
            if column:
                result.append(Term(column.group(1), "equal"))
    return list(dict.fromkeys(result))


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """A sequential scan of a plan, and what its table is filtered, joined and ordered by."""

    schema: str
    table: str
    rows: float
    terms: tuple[Term, ...] = ()
    joins: tuple[Term, ...] = ()
    order: tuple[str, ...] = ()

    @property
    def name(self) -> tuple[str, str]:
        return self.schema, self.table


def statement(text: str) -> str:
    """A statement of pg_stat_statements as EXPLAIN takes it, "" if it is nothing with a plan."""
    while True:
        comment = _COMMENT.match(text)
        if not comment:
            break
        text = text[comment.end() :]
    text = text.strip().rstrip(";").strip()
    prepared = _PREPARE.match(text)
    text = text[prepared.end() :] if prepared else text
    return _TYPED_LITERAL.sub(r"\2::\1", text) if EXPLAINABLE.match(text) else ""


def nodes(
    plan: Mapping[str, Any], parents: tuple[Mapping[str, Any], ...] = ()
) -> Iterator[tuple[Json, tuple[Any, ...]]]:
    """All nodes of a plan, each with those above it, the nearest first."""
    yield dict(plan), parents
    for child in plan.get("Plans") or []:
        yield from nodes(child, (plan, *parents))


def tables(plan: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Schema and name of each table that a plan reads or writes."""
    return {
        (node.get("Schema", ""), node["Relation Name"]) for node, _parents in nodes(plan) if "Relation Name" in node
    }


def indexes_used(plan: Mapping[str, Any]) -> set[str]:
    """Names of the indexes that a plan reads."""
    return {node["Index Name"] for node, _parents in nodes(plan) if "Index Name" in node}


def sort_keys(keys: Sequence[str], alias: str) -> tuple[str, ...]:
    """Index keys for a sort over one table's columns, `DESC` and the like kept; empty if it sorts by anything else."""
    result = []
    for key in keys:
        match = re.match(r"^(.*?)((?: (?:ASC|DESC))?(?: NULLS (?:FIRST|LAST))?)$", key)
        name = key_of(match.group(1), alias) if match else ""
        if not match or not name:
            return ()
        result.append(f"{name}{match.group(2)}")
    return tuple(result)


def sequential_scans(plan: Mapping[str, Any]) -> list[Scan]:
    """The sequential scans of a plan (EXPLAIN VERBOSE, JSON) with all that an index could serve."""
    result = []
    for node, parents in nodes(plan):
        if node.get("Node Type") != "Seq Scan" or "Relation Name" not in node:
            continue
        alias = str(node.get("Alias", node["Relation Name"]))
        alias = alias if re.match(r"^[a-z_][a-z0-9_$]*$", alias) else '"' + alias.replace('"', '""') + '"'
        joins: list[Term] = []
        order: tuple[str, ...] = ()
        direct = True  # nothing between the scan and the sort changes the rows' order for good
        for parent in parents:
            for condition in ("Hash Cond", "Merge Cond", "Join Filter"):
                if condition in parent:
                    joins += [term for term in terms(str(parent[condition]), alias) if term.kind == "equal"]
                    direct = False
            if direct and "Sort Key" in parent and "Sort" in str(parent.get("Node Type")):
                order = sort_keys(parent["Sort Key"], alias)
            direct = direct and parent.get("Node Type") in (
                "Gather",
                "Gather Merge",
                "Sort",
                "Limit",
                "Incremental Sort",
            )
        result.append(
            Scan(
                str(node.get("Schema", "")),
                str(node["Relation Name"]),
                float(node.get("Plan Rows", 0)),
                tuple(terms(str(node["Filter"]), alias)) if "Filter" in node else (),
                tuple(dict.fromkeys(joins)),
                order,
            )
        )
    return result


# --- candidates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """An index that might help: the table and its keys in order."""

    schema: str
    table: str
    keys: tuple[str, ...]

    @property
    def relation(self) -> str:
        return f"{quote(self.schema)}.{quote(self.table)}"

    @property
    def body(self) -> str:
        """`ON schema.table USING btree (keys)`."""
        keys = ", ".join(key if is_column(key) else f"({key})" for key in self.keys)
        return f"ON {self.relation} USING btree ({keys})"


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def is_column(key: str) -> bool:
    """Whether an index key is a column, with or without an order, and no expression."""
    return bool(re.match(rf"^{_IDENTIFIER}(?: (?:ASC|DESC))?(?: NULLS (?:FIRST|LAST))?$", key))


def candidates(scan: Scan, distinct: Mapping[str, float] | None = None) -> list[Candidate]:
    """Indexes that might spare a sequential scan, the narrow ones first.

    distinct: number of different values by column; what tells rows apart best stands first among equals.
    """
    known = distinct or {}
    equal = sorted({term.key for term in scan.terms if term.kind == "equal"}, key=lambda key: (-known.get(key, 0), key))
    ranges = list(dict.fromkeys(term.key for term in scan.terms if term.kind == "range" and term.key not in equal))
    joins = list(dict.fromkeys(term.key for term in scan.joins))
    wishes: list[tuple[str, ...]] = [(key,) for key in (*equal, *ranges, *joins)]
    wishes += [(*equal[:MAX_COLUMNS],), *((*equal[: MAX_COLUMNS - 1], key) for key in ranges if equal)]
    wishes += [(join, *(key for key in equal if key != join)) for join in joins]
    if scan.order:
        bare = {key.split(" ")[0] for key in scan.order}
        wishes += [scan.order, (*(key for key in equal if key not in bare), *scan.order)]
    result = dict.fromkeys(Candidate(*scan.name, wish[:MAX_COLUMNS]) for wish in wishes if wish)
    return sorted(result, key=lambda one: len(one.keys))


def index_name(candidate: Candidate, taken: Iterable[str]) -> str:
    """A name as PostgreSQL would choose it, cut and made unique by a hash where it has to be."""
    words = [re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_") for key in candidate.keys]
    name = "_".join([re.sub(r"[^a-z0-9_]+", "_", candidate.table.lower()), *words, "idx"])
    if len(name) > MAX_NAME or name in set(taken):
        digest = hashlib.sha256(candidate.body.encode()).hexdigest()[:6]
        name = f"{name[: MAX_NAME - 7]}_{digest}"
    return name


# --- the choice -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """A statement of the workload: total milliseconds, and its cost as the planner sees it now."""

    identifier: str
    total: float
    cost: float


@dataclass(frozen=True)
class Trial:
    """What the planner says of one query with one candidate in place."""

    query: str
    cost: float
    used: bool


@dataclass
class Choice:
    """A candidate that was chosen, with its proofs."""

    candidate: Candidate
    saved: float  # milliseconds of the recorded total, if time follows cost
    size: int = 0
    proofs: list[Json] = field(default_factory=list)


def choose(
    queries: Mapping[str, Query],
    current: Mapping[str, float],
    trials: Mapping[Candidate, Sequence[Trial]],
    least: float,
) -> Choice | None:
    """The candidate that saves most of the recorded time, None if none saves the share `least` of any query.

    current: cost of each query with what was chosen before. A narrower index that saves nearly as much is preferred.
    """
    found: list[Choice] = []
    for candidate, results in trials.items():
        choice = Choice(candidate, 0.0)
        for trial in results:
            query, before = queries[trial.query], current[trial.query]
            if trial.used and before > 0 and (before - trial.cost) / before >= least:
                choice.saved += (before - trial.cost) / max(query.cost, before) * query.total
                choice.proofs.append(
                    {
                        "query": trial.query,
                        "before": round(before, 2),
                        "after": round(trial.cost, 2),
                        "saved": round((before - trial.cost) / before, 4),
                    }
                )
        if choice.proofs:
            found.append(choice)
    if not found:
        return None
    best = max(choice.saved for choice in found)
    near = [choice for choice in found if choice.saved >= best * NEAR]
    return min(near, key=lambda choice: (len(choice.candidate.keys), -choice.saved, choice.candidate.body))


# --- indexes that are there -------------------------------------------------------------------------------------------


def protected(index: Mapping[str, Any]) -> bool:
    """Whether an index does more than speed reads up: it must not be dropped for being unused."""
    return bool(index["unique"] or index["constraint"] or index["replica_identity"] or index["clustered"])


def duplicates(indexes: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Indexes that another one makes superfluous: `same` keys, or `prefix` of a longer btree index.

    Each index: {schema, table, name, method, keys: [key with operator class, collation and order], include, predicate,
    unique, constraint, replica_identity, clustered, valid, size, scans}.
    """
    result = []
    for one in indexes:
        if protected(one) or not one["valid"]:
            continue
        for other in indexes:
            if other is one or not other["valid"] or (other["schema"], other["table"]) != (one["schema"], one["table"]):
                continue
            if other["method"] != one["method"] or other["predicate"] != one["predicate"]:
                continue
            keys, longer = list(one["keys"]), list(other["keys"])
            same = keys == longer and set(one["include"]) <= set(other["include"])
            prefix = one["method"] == "btree" and len(keys) < len(longer) and longer[: len(keys)] == keys
            covered = not one["include"] or set(one["include"]) <= {*other["include"], *longer}
            # Of two that are fully the same only one is named.
            mutual = same and not protected(other) and set(one["include"]) == set(other["include"])
            if mutual and one["name"] < other["name"]:
                continue
            if same or (prefix and covered):
                result.append(
                    {
                        "index": f"{one['schema']}.{one['name']}",
                        "table": f"{one['schema']}.{one['table']}",
                        "kind": "same" if same else "prefix",
                        "of": f"{other['schema']}.{other['name']}",
                        "size": one["size"],
                        "sql": f"DROP INDEX CONCURRENTLY {quote(one['schema'])}.{quote(one['name'])}",
                    }
                )
                break
    return result


def unused(
    indexes: Sequence[Mapping[str, Any]], usage: Mapping[str, Mapping[str, Any]], members: Sequence[str], least: int
) -> tuple[list[Json], str]:
    """Indexes that no member has read since its counters began, and a note if that cannot be told.

    usage: per member {since, scans: {schema.index: number}}; replicas count their own readers, so all `members` must
    have answered. least: bytes from which an index is worth a word.
    """
    silent = [name for name in members if name not in usage]
    if silent:
        return [], f"unused indexes cannot be told: no answer from {', '.join(silent)}, whose readers may need them"
    since = {name: one.get("since") or "" for name, one in sorted(usage.items())}
    result = []
    for one in indexes:
        name = f"{one['schema']}.{one['name']}"
        if protected(one) or one["size"] < least or any(item["scans"].get(name, 0) for item in usage.values()):
            continue
        result.append(
            {
                "index": name,
                "table": f"{one['schema']}.{one['table']}",
                "size": one["size"],
                "since": since,
                "valid": one["valid"],
                "sql": f"DROP INDEX CONCURRENTLY {quote(one['schema'])}.{quote(one['name'])}",
            }
        )
    return sorted(result, key=lambda item: -item["size"]), ""


def bare_key(key: str) -> str:
    """The column or expression of an index key without its operator class, collation and order."""
    match = re.match(rf"^({_IDENTIFIER})(?: .*)?$", key)
    return match.group(1) if match else key


def unindexed_foreign_keys(keys: Sequence[Mapping[str, Any]], indexes: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Foreign keys for which no index begins with their columns: deletes in the referenced table read all of theirs.

    Each key: {name, schema, table, columns (quoted where needed), references, rows, deletes}.
    """
    result = []
    for key in keys:
        wanted = set(key["columns"])
        served = any(
            (one["schema"], one["table"]) == (key["schema"], key["table"])
            and one["valid"]
            and not one["predicate"]
            and one["method"] == "btree"
            and {bare_key(item) for item in one["keys"][: len(wanted)]} == wanted
            for one in indexes
        )
        if not served:
            result.append(dict(key))
    return result


# --- the report -------------------------------------------------------------------------------------------------------


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    return ""


def _one_line(query: str, width: int = 110) -> str:
    text = " ".join(query.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _told_statement(one: Mapping[str, Any]) -> str:
    tail = f"; reads all of {', '.join(one['scans'])}" if one["scans"] else ""
    tail += f"; cannot be planned: {one['error']}" if one["error"] else ""
    each = f"{one['total'] / 1000:.1f} s in {one['calls']} calls ({one['mean']:.2f} ms each)"
    return f"{each}: {_one_line(one['query'])}{tail}"


def _told_proposal(one: Mapping[str, Any]) -> list[str]:
    proofs = []
    for proof in one["proofs"]:
        change = f"cost {proof['before']:g} -> {proof['after']:g} (-{proof['saved'] * 100:.0f} %)"
        proofs.append(f"  {change}: {_one_line(proof['text'], 90)}")
    size = f"  about {size_text(one['size'])}; the table was written {one['writes']} times so far"
    return [f"{one['name']}: {one['sql']}", size, *proofs]


def _told_duplicate(one: Mapping[str, Any]) -> str:
    how = "same as" if one["kind"] == "same" else "the beginning of"
    return f"{one['index']} ({size_text(one['size'])}): {how} {one['of']}"


def _told_key(one: Mapping[str, Any]) -> str:
    return f"{one['schema']}.{one['table']} ({', '.join(one['columns'])}) references {one['references']}"


def report(advice: Mapping[str, Any]) -> str:
    """The advice for people."""
    sections = {
        "Statements that took most time:": [_told_statement(one) for one in advice["statements"]],
        "Proposed indexes:": [line for one in advice["proposals"] for line in _told_proposal(one)],
        "Foreign keys without an index:": [_told_key(one) for one in advice["foreign_keys"]],
        "Superfluous indexes:": [_told_duplicate(one) for one in advice["duplicates"]],
        "Indexes that nobody read:": [f"{one['index']} ({size_text(one['size'])})" for one in advice["unused"]],
        "Created:": advice["applied"],
    }
    lines = [f"Database {advice['database']}, statements since {advice['since'] or 'unknown'}"]
    lines += [f"Note: {note}" for note in advice["notes"]]
    for title, items in sections.items():
        if items:
            lines += ["", title, *(f"  {item}" for item in items)]
    return "\n".join(lines if advice["proposals"] else [*lines, "", "No index is proposed."])
