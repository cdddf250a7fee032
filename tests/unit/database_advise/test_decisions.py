"""Reading of plans and the choice among candidates, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import database_advise as advise
from ansible_collections.causeway.platform.plugins.module_utils.database_advise import (
    Candidate,
    Query,
    Scan,
    Term,
    Trial,
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("(o.status = 'open'::text)", [("status", "equal")]),
        ("(o.id = ANY ($1))", [("id", "equal")]),
        ("(o.id = ANY ('{1,2}'::integer[]))", [("id", "equal")]),
        ("($1 = o.id)", [("id", "equal")]),
        ("((o.status = $1) AND (o.made >= $2) AND (o.made < $3))", [("status", "equal"), ("made", "range")]),
        ("((o.email)::text = $1)", [("email", "equal")]),
        ("((o.name)::character varying(20) = $1)", [("name", "equal")]),
        ("(lower((o.email)::text) = $1)", [("lower((email)::text)", "equal")]),
        ("(o.gone IS NULL)", [("gone", "equal")]),
        ("o.active", [("active", "equal")]),
        ("(NOT o.active)", [("active", "equal")]),
        ('(o."Strange ""name" = 1)', [('"Strange ""name"', "equal")]),
        # what an index does not serve
        ("((o.a = 1) OR (o.b = 2))", []),
        ("(o.a = o.b)", []),
        ("(o.a <> 1)", []),
        ("(o.note ~~ '%x%'::text)", []),
        ("((o.a + 1) = 2)", []),
        ("(other.a = 1)", []),
        # a text that looks like SQL is a text
        ("(o.status = ') AND (o.secret = '::text)", [("status", "equal")]),
        ("(o.status = 'it''s = o.x'::text)", [("status", "equal")]),
        # no constant and no second statement gets into an expression
        ("(concat(o.a, 'x; DROP') = $1)", []),
        ("(f(o.a, $2) = $1)", []),
    ],
)
def test_terms_of_a_condition(condition: str, expected: list[tuple[str, str]]) -> None:
    assert [(term.key, term.kind) for term in advise.terms(condition, "o")] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", "SELECT 1"),
        ("/* app */ -- x\n select 1;", "select 1"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "WITH a AS (SELECT 1) SELECT * FROM a"),
        ("PREPARE q(int, text) AS SELECT $1", "SELECT $1"),
        ("prepare q as update t set a = 1", "update t set a = 1"),
        ("SELECT now() - interval $1", "SELECT now() - $1::interval"),
        ("VACUUM t", ""),
        ("COPY t TO STDOUT", ""),
        ("CREATE TABLE x AS SELECT 1", ""),
        ("", ""),
    ],
)
def test_statements_that_have_a_plan(text: str, expected: str) -> None:
    assert advise.statement(text) == expected


def test_joins_and_sorts_of_a_plan() -> None:
    lines = {"Node Type": "Seq Scan", "Schema": "public", "Relation Name": "lines", "Alias": "l", "Plan Rows": 9}
    orders = {
        "Node Type": "Seq Scan",
        "Schema": "public",
        "Relation Name": "orders",
        "Alias": "o",
        "Filter": "(o.a = 1)",
    }
    join = {
        "Node Type": "Hash Join",
        "Hash Cond": "(l.order_id = o.id)",
        "Plans": [lines, {"Node Type": "Hash", "Plans": [orders]}],
    }
    sort = {"Node Type": "Sort", "Sort Key": ["l.made DESC", "l.id"], "Plans": [lines]}
    found = {
        scan.table: scan
        for scan in advise.sequential_scans({"Node Type": "Sort", "Sort Key": ["o.b"], "Plans": [join]})
    }
    assert found["lines"].joins == (Term("order_id", "equal"),)
    assert found["orders"].joins == (Term("id", "equal"),)
    assert found["orders"].terms == (Term("a", "equal"),)
    assert found["orders"].order == ()  # a join is between
    (alone,) = advise.sequential_scans({"Node Type": "Limit", "Plans": [sort]})
    assert alone.order == ("made DESC", "id")
    assert advise.tables({"Plans": [join]}) == {("public", "lines"), ("public", "orders")}


def test_candidates() -> None:
    scan = Scan("public", "orders", 10, (Term("status", "equal"), Term("made", "range"), Term("shop", "equal")))
    found = [one.keys for one in advise.candidates(scan, {"status": 3, "shop": 900})]
    assert found == [("shop",), ("status",), ("made",), ("shop", "status"), ("shop", "status", "made")]
    ordered = Scan("public", "orders", 10, (Term("status", "equal"),), (Term("customer", "equal"),), ("made DESC",))
    assert ("status", "made DESC") in [one.keys for one in advise.candidates(ordered)]
    assert ("customer", "status") in [one.keys for one in advise.candidates(ordered)]
    assert advise.candidates(Scan("public", "orders", 10)) == []


def test_an_index_as_sql() -> None:
    one = Candidate("public", 'Odd"table', ("a", "lower(b)", '"C d"', "e DESC NULLS LAST"))
    assert one.body == 'ON "public"."Odd""table" USING btree (a, (lower(b)), "C d", e DESC NULLS LAST)'


def test_names() -> None:
    short = Candidate("public", "orders", ("customer_id",))
    assert advise.index_name(short, []) == "orders_customer_id_idx"
    other = advise.index_name(short, ["orders_customer_id_idx"])
    assert other != "orders_customer_id_idx"
    assert other == advise.index_name(short, ["orders_customer_id_idx"])
    long = advise.index_name(Candidate("public", "t" * 60, ("a" * 60,)), [])
    assert len(long) == 63


QUERIES = {"q1": Query("q1", 1000.0, 100.0), "q2": Query("q2", 100.0, 100.0)}
NOW = {"q1": 100.0, "q2": 100.0}
A, B, AB = (Candidate("public", "t", keys) for keys in (("a",), ("b",), ("a", "b")))


def test_the_most_recorded_time_wins() -> None:
    trials = {A: [Trial("q1", 50.0, True)], B: [Trial("q2", 1.0, True)]}
    choice = advise.choose(QUERIES, NOW, trials, 0.2)
    assert choice
    assert (choice.candidate, choice.saved) == (A, 500.0)
    assert choice.proofs == [{"query": "q1", "before": 100.0, "after": 50.0, "saved": 0.5}]


def test_a_narrower_index_that_saves_as_much_is_preferred() -> None:
    trials = {AB: [Trial("q1", 10.0, True)], A: [Trial("q1", 10.5, True)]}
    choice = advise.choose(QUERIES, NOW, trials, 0.2)
    assert choice
    assert choice.candidate == A


@pytest.mark.parametrize("trial", [Trial("q1", 81.0, True), Trial("q1", 1.0, False), Trial("q1", 120.0, True)])
def test_what_saves_too_little_or_is_not_used_is_no_choice(trial: Trial) -> None:
    assert advise.choose(QUERIES, NOW, {A: [trial]}, 0.2) is None


def index(name: str, *keys: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": "public",
        "table": "t",
        "name": name,
        "method": "btree",
        "keys": list(keys),
        "include": [],
        "predicate": "",
        "unique": False,
        "constraint": False,
        "replica_identity": False,
        "clustered": False,
        "valid": True,
        "size": 10,
        "scans": 0,
        **more,
    }


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ([index("i1", "a"), index("i2", "a")], {"i2": "i1"}),
        ([index("i1", "a"), index("i2", "a", "b")], {"i1": "i2"}),
        ([index("i1", "b"), index("i2", "a", "b")], {}),
        ([index("i1", "a"), index("pk", "a", unique=True, constraint=True)], {"i1": "pk"}),
        ([index("u", "a", unique=True), index("i2", "a", "b")], {}),
        ([index("i1", "a", predicate="x"), index("i2", "a")], {}),
        ([index("i1", "a", valid=False), index("i2", "a")], {}),
        ([index("i1", "a"), index("i2", "a", valid=False)], {}),
        ([index("i1", "a", include=["z"]), index("i2", "a", "b")], {}),
        ([index("i1", "a"), index("i2", "a", include=["z"])], {"i1": "i2"}),
        ([index("i1", "a", method="gin"), index("i2", "a", "b", method="gin")], {}),
        ([index("i1", "a", table="other"), index("i2", "a")], {}),
        ([index("i1", "a"), index("i2", "a /1")], {}),
    ],
)
def test_superfluous_indexes(indexes: list[dict[str, Any]], expected: dict[str, str]) -> None:
    found = {one["index"][7:]: one["of"][7:] for one in advise.duplicates(indexes)}
    assert found == expected


def test_foreign_keys_are_served_by_their_columns_in_any_order() -> None:
    key = {
        "name": "k",
        "schema": "public",
        "table": "t",
        "columns": ["a", "b"],
        "references": "o",
        "rows": 1,
        "deletes": 0,
    }
    assert advise.unindexed_foreign_keys([key], [index("i", "b", "a", "c")]) == []
    for useless in (
        index("i", "a"),
        index("i", "c", "a", "b"),
        index("i", "a", "b", predicate="x"),
        index("i", "a", "b", valid=False),
    ):
        assert advise.unindexed_foreign_keys([key], [useless]) == [key]


@pytest.mark.parametrize(
    ("size", "text"), [(10, "10 B"), (2048, "2.0 kiB"), (30 << 20, "30 MiB"), (5 << 40, "5120 GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert advise.size_text(size) == text
