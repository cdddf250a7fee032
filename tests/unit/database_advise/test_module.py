"""The module against a real PostgreSQL."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.database_advise import AdviseError
from ansible_collections.causeway.platform.plugins.module_utils.database_advise_run import create
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import Psql

Advise = Callable[..., dict[str, Any]]
BY_STATUS = "SELECT id, total FROM orders WHERE status = 'open' AND made > now() - interval '2 days';\n"
BY_CUSTOMER = "SELECT count(*) FROM orders WHERE customer_id = 7;\n"
BY_EMAIL = "SELECT id FROM customers WHERE lower(email) = 'user7@example.org';\n"


def proposal(result: dict[str, Any], table: str) -> dict[str, Any]:
    """The proposal for a table: for its statements, or if there is none for its foreign key."""
    return dict(next(item for item in result["proposals"] if item["table"] == table))


@pytest.mark.usefixtures("hypopg")
class TestProposals:
    def test_an_index_is_proposed_and_proved_and_nothing_is_left(self, database: Any, advise: Advise) -> None:
        database.run(BY_CUSTOMER)
        before = database.state()
        result = advise()
        one = proposal(result, "public.orders")
        assert one["name"] == "orders_customer_id_idx"
        assert one["sql"] == (
            'CREATE INDEX CONCURRENTLY "orders_customer_id_idx" ON "public"."orders" USING btree (customer_id)'
        )
        (proof,) = one["proofs"]
        assert proof["before"] > 50 * proof["after"] > 0
        assert proof["saved"] > 0.98
        assert one["size"] > 100_000
        assert result["changed"] is False
        assert database.state() == before
        assert "orders_customer_id_idx" in result["text"]

    def test_the_saving_is_real(self, database: Any, advise: Advise) -> None:
        """What was promised comes true: the same statement with the index that was created."""
        database.run(BY_CUSTOMER)
        promised = proposal(advise(), "public.orders")
        database.sql(promised["sql"])
        database.sql("SELECT pg_stat_statements_reset();")
        database.run(BY_CUSTOMER)
        result = advise()
        assert [item for item in result["proposals"] if item["table"] == "public.orders"] == []
        (statement,) = [one for one in result["statements"] if "customer_id" in one["query"]]
        assert statement["scans"] == []
        assert statement["cost"] == pytest.approx(promised["proofs"][0]["after"], rel=0.2)

    def test_equality_and_range_become_one_index(self, database: Any, advise: Advise) -> None:
        database.run(BY_STATUS)
        assert proposal(advise(), "public.orders")["keys"] in (["status", "made"], ["made"])

    def test_an_expression(self, database: Any, advise: Advise) -> None:
        database.run(BY_EMAIL)
        one = proposal(advise(), "public.customers")
        assert one["keys"] == ["lower((email)::text)"]
        assert one["name"] == "customers_lower_email_text_idx"
        database.sql(one["sql"])

    def test_a_sort_with_a_limit(self, database: Any, advise: Advise) -> None:
        database.run("SELECT * FROM orders ORDER BY made DESC LIMIT 10;\n")
        assert proposal(advise(), "public.orders")["keys"] == ["made DESC"]

    def test_one_index_for_two_statements_and_the_foreign_key(self, database: Any, advise: Advise) -> None:
        database.run(BY_CUSTOMER)
        database.run("SELECT max(total) FROM orders WHERE customer_id = 9 AND status = 'done';\n")
        result = advise()
        assert proposal(result, "public.orders")["keys"][0] == "customer_id"
        assert [one["name"] for one in result["foreign_keys"]] == ["orders_customer_id_fkey"]

    def test_a_foreign_key_alone_is_proved_with_the_check_that_deletes_make(
        self, database: Any, advise: Advise
    ) -> None:
        one = proposal(advise(), "public.orders")
        assert (one["reason"], one["keys"], one["saved"]) == ("foreign key", ["customer_id"], None)
        assert one["proofs"][0]["text"].startswith("DELETE FROM customers")

    def test_small_tables_and_small_savings_are_left_alone(self, database: Any, advise: Advise) -> None:
        database.run("SELECT * FROM tiny WHERE note = 'y';\n" + "SELECT * FROM orders WHERE status = 'done';\n")
        result = advise(min_rows=1000)
        assert [one["reason"] for one in result["proposals"]] == ["foreign key"]
        assert advise(min_rows=100_000)["proposals"] == []

    def test_parameters_of_prepared_statements(self, database: Any, advise: Advise) -> None:
        database.sql(
            "PREPARE q(text, timestamptz) AS SELECT total FROM orders WHERE status = $1 AND made < $2 LIMIT 1;"
            "EXECUTE q('none', now()); EXECUTE q('none', now());",
            "app",
        )
        result = advise()
        assert [one["error"] for one in result["statements"] if "LIMIT" in one["query"]] == [""]

    def test_apply_creates_only_what_is_named_and_once(self, database: Any, advise: Advise) -> None:
        database.run(BY_CUSTOMER + BY_EMAIL)
        names = ["orders_customer_id_idx"]
        before = database.state()
        dry = advise(check=True, apply=names)
        assert (dry["changed"], dry["applied"]) == (True, names)
        assert "CREATE INDEX CONCURRENTLY" in dry["diff"]["after"]
        assert database.state() == before
        real = advise(apply=names)
        assert (real["changed"], real["applied"]) == (True, names)
        valid = "SELECT string_agg(indexrelid::regclass::text, ',') FROM pg_index WHERE indisvalid AND NOT indisprimary"
        assert database.sql(f"{valid} AND indrelid IN ('orders'::regclass, 'customers'::regclass)") == names[0]
        for check in (True, False):
            again = advise(check=check, apply=names)
            assert (again["changed"], again["applied"]) == (False, [])

    def test_an_index_that_was_left_half_made_is_made_again(self, database: Any, advise: Advise) -> None:
        database.run(BY_CUSTOMER)
        database.sql("CREATE INDEX orders_customer_id_idx ON orders (total);")
        database.sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_customer_id_idx'::regclass;")
        assert advise(apply=["orders_customer_id_idx"])["changed"] is True
        assert database.sql("SELECT indexdef FROM pg_indexes WHERE indexname = 'orders_customer_id_idx'").endswith(
            "(customer_id)"
        )

    def test_while_an_old_transaction_is_open_nothing_is_begun(self, database: Any, advise: Advise) -> None:
        database.run(BY_CUSTOMER)
        with holding(database, "LOCK TABLE orders IN ROW EXCLUSIVE MODE"):
            time.sleep(0.5)
            for check in (True, False):
                result = advise(check=check, apply=["orders_customer_id_idx"], lock_timeout=0.3)
                assert result["failed"] is True
                assert "would wait for transactions that are open (pid" in result["msg"]
        assert database.sql("SELECT count(*) FROM pg_class WHERE relname = 'orders_customer_id_idx'") == "0"

    def test_a_lock_that_does_not_come_leaves_no_half_made_index(self, database: Any, advise: Advise) -> None:
        database.run(BY_CUSTOMER)
        wanted = proposal(advise(), "public.orders")
        given = database.parameters()
        psql = Psql(given["port"], given["socket_path"], "", 60.0)
        holder = holding(database, "LOCK TABLE orders IN ROW EXCLUSIVE MODE")

        def release_when_it_is_being_removed() -> None:
            dropping = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DROP INDEX %'"
            made = "SELECT count(*) FROM pg_class WHERE relname = 'orders_customer_id_idx'"
            while database.sql(f"SELECT ({dropping}) * ({made})") == "0":
                time.sleep(0.05)
            holder.release()

        with holder:
            helper = threading.Thread(target=release_when_it_is_being_removed, daemon=True)
            helper.start()
            with pytest.raises(AdviseError, match=r"not created, what was begun is removed: .*lock timeout"):
                create(psql, database.name, wanted, 0.8)
            helper.join(30)
        assert database.sql("SELECT count(*) FROM pg_class WHERE relname = 'orders_customer_id_idx'") == "0"

    @pytest.mark.parametrize("name", ["orders_status_idx", 'x"; DROP TABLE orders; --'])
    def test_a_name_that_is_not_proposed_is_refused(self, database: Any, advise: Advise, name: str) -> None:
        database.run(BY_CUSTOMER)
        before = database.state()
        result = advise(apply=["orders_customer_id_idx", name])
        assert result["failed"] is True
        assert "is not a proposed index (orders_customer_id_idx); nothing was changed" in result["msg"]
        assert database.state() == before

    def test_functions_of_the_application_do_not_run_as_superuser(self, database: Any, advise: Advise) -> None:
        """Planning folds immutable functions: an evil one tries to become superuser and to write."""
        database.sql(
            "CREATE TABLE seen (who text, super text); GRANT ALL ON seen TO app; GRANT CREATE ON SCHEMA public TO app;"
        )
        database.sql(
            """
            CREATE FUNCTION evil(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN
              BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
              BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXCEPTION WHEN OTHERS THEN NULL; END;
              IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                RAISE EXCEPTION 'I am %', current_user;
              END IF;
              RETURN n;
            END $$;
            SELECT count(*) FROM orders WHERE customer_id = evil(3);
            """,
            "app",
        )
        result = advise()
        (statement,) = [one for one in result["statements"] if "evil" in one["query"]]
        assert "I am" not in statement["error"]
        assert statement["cost"]

    def test_the_roles_own_search_path_is_used(self, database: Any, advise: Advise) -> None:
        database.sql(
            """
            CREATE SCHEMA hidden AUTHORIZATION shop_owner;
            CREATE TABLE hidden.notes AS SELECT n AS id, n % 1000 AS kind FROM generate_series(1, 20000) n;
            ANALYZE hidden.notes; GRANT USAGE ON SCHEMA hidden TO app; GRANT SELECT ON hidden.notes TO app;
            """
            f"ALTER ROLE app IN DATABASE {database.name} SET search_path = hidden, public;"
        )
        database.run("SELECT count(*) FROM notes WHERE kind = 3;\n")
        assert proposal(advise(), "hidden.notes")["keys"] == ["kind"]

    def test_a_function_that_hides_another_one_is_not_called(self, database: Any, advise: Advise) -> None:
        """A role's search path is its own: nothing that it puts there is reached by the superuser's part."""
        database.sql("CREATE SCHEMA trap AUTHORIZATION app;")
        database.sql(
            """
            CREATE FUNCTION trap.jsonb_build_object(VARIADIC "any") RETURNS jsonb
            LANGUAGE internal AS 'jsonb_build_object';
            """
        )
        database.sql(
            f"ALTER ROLE app IN DATABASE {database.name} SET search_path = '$causeway$', trap, pg_catalog, public;"
        )
        database.run(BY_CUSTOMER)
        assert proposal(advise(), "public.orders")["keys"] == ["customer_id"]


def test_without_hypopg_nothing_is_proposed_and_it_is_said(
    database: Any, advise: Advise, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible_collections.causeway.platform.plugins.module_utils import database_advise_run

    # The same question for a package that no host has.
    monkeypatch.setattr(
        database_advise_run, "SERVER", database_advise_run.SERVER.replace("name = 'hypopg'", "name = 'no-such'")
    )
    database.run(BY_CUSTOMER)
    result = advise()
    assert result["proposals"] == []
    assert "hypopg is not installed" in result["notes"][0]
    assert [one["scans"] for one in result["statements"]] == [["public.orders"]]


def test_superfluous_and_unused_indexes(database: Any, advise: Advise) -> None:
    database.sql(
        """
        CREATE INDEX a1 ON orders (customer_id);
        CREATE INDEX a2 ON orders (customer_id);
        CREATE INDEX a3 ON orders (customer_id, made);
        CREATE INDEX a4 ON orders (customer_id) WHERE status = 'open';
        CREATE INDEX a5 ON orders (customer_id DESC);
        CREATE UNIQUE INDEX a6 ON orders (id, customer_id);
        CREATE INDEX b1 ON customers (email);
        CREATE INDEX b2 ON customers (email varchar_pattern_ops);
        """
    )
    result = advise()
    found = {one["index"]: (one["kind"], one["of"]) for one in result["duplicates"]}
    assert found == {
        "public.a1": ("prefix", "public.a3"),
        "public.a2": ("same", "public.a1"),
    }
    assert result["foreign_keys"] == []
    names = {one["index"] for one in advise(min_size=0)["unused"]}
    assert {"public.a1", "public.a4", "public.b2"} <= names
    assert not names & {"public.a6", "public.orders_pkey"}


def test_an_index_that_a_replica_reads_is_not_unused(database: Any, advise: Advise) -> None:
    database.sql("CREATE INDEX a1 ON orders (status);")
    own = advise(gather="usage")["usage"]
    assert (own["answered"], own["recovery"], own["scans"]["public.a1"]) == (True, False, 0)
    replica = {"answered": True, "recovery": True, "since": "", "scans": {"public.a1": 5}}
    members = ["db1", "db2"]

    def idle(usage: dict[str, Any]) -> list[str]:
        result = advise(min_size=0, usage=usage, members=members)
        assert ("no answer from db2" in " ".join(result["notes"])) == (
            "db2" not in usage or not usage["db2"]["answered"]
        )
        return [one["index"] for one in result["unused"]]

    assert "public.a1" in idle({"db1": own, "db2": {**replica, "scans": {}}})
    assert "public.a1" not in idle({"db1": own, "db2": replica})
    assert idle({"db1": own}) == []
    assert idle({"db1": own, "db2": {"answered": False, "reason": "it is down"}}) == []


def test_a_member_that_does_not_answer_is_an_answer(advise: Advise) -> None:
    result = advise(gather="usage", port=15998)
    assert result["usage"]["answered"] is False
    assert "15998" in result["usage"]["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_saving": 0}, "min_saving: 0 is not above 0 and below 1"),
        ({"min_saving": 1.0}, "min_saving: 1 is not above 0 and below 1"),
        ({"statements": 0}, "statements: 0 is not above 0"),
        ({"database": "nothing"}, 'database "nothing" does not exist'),
        ({"database": "postgres"}, "pg_stat_statements is not there"),
    ],
)
def test_wrong_input_gets_one_clear_error(advise: Advise, options: dict[str, Any], message: str) -> None:
    result = advise(**options)
    assert result["failed"] is True
    assert message in result["msg"]


class holding:
    """Another session that holds a lock while the block runs."""

    def __init__(self, database: Any, statement: str) -> None:
        self.database, self.statement = database, statement

    def __enter__(self) -> None:
        command = ["psql", "-XqAt", "-h", str(self.database.server.folder), "-p", "15999", "-U", "postgres"]
        self.process = subprocess.Popen(
            [*command, "-d", self.database.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"BEGIN; {self.statement}; SELECT 'held';\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "held"

    def release(self) -> None:
        if self.process.poll() is None:
            self.process.communicate("ROLLBACK;\n", timeout=10)

    def __exit__(self, *_error: object) -> None:
        self.release()
