# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""database_migration against a real PostgreSQL, with the real dbmate, squawk and psql."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.action import database_migration as action

from .conftest import _MODULE, PASSWORD, Database, tool

Migrate = Callable[..., dict[str, Any]]


def add_column(database: Database, number: int, name: str) -> str:
    return database.write(
        "expand",
        number,
        f"ALTER TABLE people ADD COLUMN {name} text;",
        f"ALTER TABLE people DROP COLUMN {name};",
    )


def columns(database: Database) -> list[str]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'people' ORDER BY 1;"
    return database.sql(query).split()


def indexes(database: Database) -> list[str]:
    query = (
        "SELECT c.relname || CASE WHEN i.indisvalid THEN '' ELSE ' invalid' END FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'people'::regclass AND NOT i.indisprimary;"
    )
    return database.sql(query).splitlines()


@contextlib.contextmanager
def locked(database: Database, statement: str = "LOCK TABLE people;") -> Iterator[None]:
    """Another session that holds a lock."""
    process = subprocess.Popen(
        [tool("psql"), "-XqAt", "-h", str(database.cluster.folder), "-p", str(database.cluster.port)]
        + ["-U", "postgres", "-d", database.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"BEGIN; {statement} SELECT 'held';\n")
    process.stdin.flush()
    while process.stdout.readline().strip() != "held":
        assert process.poll() is None
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_four_steps(database: Database, migrate: Migrate) -> None:
    names = [add_column(database, 1, "email"), add_column(database, 2, "phone")]
    before = database.dump()
    planned = migrate(check=True)
    assert (planned["changed"], planned["pending"]) == (True, names)
    assert planned["diff"]["prepared"].splitlines() == [f"+ expand/{name}" for name in names]
    assert database.dump() == before
    done = migrate()
    assert (done["changed"], done["applied"], done["pending"]) == (True, names, [])
    assert columns(database) == ["email", "id", "name", "phone"]
    after = database.dump()
    for check in (True, False):
        again = migrate(check=check)
        assert (again["changed"], again["applied"], again["pending"]) == (False, [], [])
    assert database.dump() == after
    told = migrate(state="listed")
    assert told["phases"]["expand"] == {"applied": ["20261122000001", "20261122000002"], "pending": [], "open": False}


def test_a_failed_expand_leaves_the_schema_as_it_was(database: Database, migrate: Migrate) -> None:
    before = database.dump()
    add_column(database, 1, "email")
    database.write(
        "expand",
        2,
        "ALTER TABLE people ADD COLUMN phone text;\nALTER TABLE nobody ADD COLUMN phone text;",
        "ALTER TABLE people DROP COLUMN phone;",
    )
    failed = migrate()
    assert failed["failed"]
    assert 'expand/20261122000002_step.sql: pq: relation "nobody" does not exist' in failed["msg"]
    assert failed["msg"].endswith("the schema is as it was before the expand")
    assert database.dump() == before


def test_a_failed_expand_keeps_what_earlier_ones_did(database: Database, migrate: Migrate) -> None:
    add_column(database, 1, "email")
    assert not migrate().get("failed")
    before = database.dump()
    add_column(database, 2, "phone")
    database.write("expand", 3, "SELECT 1/0;", "SELECT 1;")
    assert "division by zero" in migrate()["msg"]
    assert database.dump() == before
    assert migrate(state="listed")["phases"]["expand"]["applied"] == ["20261122000001"]


def test_a_lock_is_waited_for_briefly_and_often(database: Database, migrate: Migrate) -> None:
    add_column(database, 1, "email")
    before = database.dump()
    with locked(database):
        begun = time.monotonic()
        failed = migrate()
    assert "lock timeout" in failed["msg"]
    assert "(tried 3 times); the schema is as it was" in failed["msg"]
    assert time.monotonic() - begun < 5
    assert database.dump() == before


def test_a_lock_that_is_released_in_time(database: Database, migrate: Migrate) -> None:
    add_column(database, 1, "email")
    release = threading.Event()

    def hold() -> None:
        with locked(database):
            held.set()
            release.wait(10)

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.6, release.set).start()
    done = migrate(retries=8)
    thread.join()
    assert not done.get("failed"), done
    assert done["retries"] >= 1
    assert "email" in columns(database)


def test_a_slow_statement_is_cut_off_and_not_tried_again(database: Database, migrate: Migrate) -> None:
    before = database.dump()
    database.write("expand", 1, "SELECT pg_sleep(5);", "SELECT 1;")
    failed = migrate(statement_timeout=0.3)
    assert "statement timeout" in failed["msg"]
    assert "tried" not in failed["msg"]
    assert database.dump() == before


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


ACTIVITY = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


def gone(database: Database) -> bool:
    """Whether the server noticed that a killed runner is gone; it looks each second."""
    return database.sql(f"{ACTIVITY} AND application_name LIKE 'causeway%';") == "0"


def kill_midway(database: Database) -> None:
    """Kill the module while its second file sleeps."""
    process = database.start(phase="expand", statement_timeout=20.0)
    wait_for(lambda: database.sql(f"{ACTIVITY} AND state = 'active' AND query LIKE '%pg_sleep(9)%';") != "0")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()
    wait_for(lambda: gone(database))


def test_a_killed_run_is_finished_by_the_next(database: Database, migrate: Migrate) -> None:
    names = [add_column(database, 1, "email")]
    names.append(database.write("expand", 2, "SELECT pg_sleep(9);", "SELECT 1;"))
    kill_midway(database)
    assert migrate(state="listed")["phases"]["expand"] == {
        "applied": ["20261122000001"],
        "pending": [names[1]],
        "open": True,
    }
    database.write("expand", 2, "ALTER TABLE people ADD COLUMN phone text;", "ALTER TABLE people DROP COLUMN phone;")
    done = migrate()
    assert (done["applied"], done["pending"]) == ([names[1]], [])
    assert columns(database) == ["email", "id", "name", "phone"]
    assert migrate()["changed"] is False


def test_a_failure_after_a_killed_run_undoes_both(database: Database, migrate: Migrate) -> None:
    before = database.dump()
    add_column(database, 1, "email")
    database.write("expand", 2, "SELECT pg_sleep(9);", "SELECT 1;")
    kill_midway(database)
    database.write("expand", 2, "SELECT 1/0;", "SELECT 1;")
    assert "the schema is as it was" in migrate()["msg"]
    assert database.dump() == before


INDEX = ("CREATE INDEX CONCURRENTLY people_name ON people (name);", "DROP INDEX CONCURRENTLY IF EXISTS people_name;")


def test_an_index_that_could_not_be_built_is_removed(database: Database, migrate: Migrate) -> None:
    before = database.dump()
    database.write("expand", 1, *INDEX, "transaction:false")
    # An open transaction that wrote: CREATE INDEX CONCURRENTLY waits for it, and leaves an invalid index behind.
    with locked(database, "INSERT INTO people VALUES (1, 'ann');"):
        failed = migrate(lock_timeout=0.2, retries=1)
    assert "lock timeout" in failed["msg"]
    # Neither could it be removed while that transaction was open, which is said and remembered.
    assert "THE EXPAND COULD NOT BE UNDONE" in failed["msg"]
    assert indexes(database) == ["people_name invalid"]
    assert migrate(state="listed")["phases"]["expand"]["open"] is True
    assert migrate(state="undone")["changed"] is True
    assert database.dump() == before
    assert migrate()["applied"]
    assert indexes(database) == ["people_name"]
    assert migrate()["changed"] is False


def test_an_index_that_is_not_unique_is_removed(database: Database, migrate: Migrate) -> None:
    database.sql("INSERT INTO people VALUES (1, 'ann'), (2, 'ann');")
    before = database.dump()
    add_column(database, 1, "email")
    database.write("expand", 2, INDEX[0].replace("INDEX", "UNIQUE INDEX"), INDEX[1], "transaction:false")
    assert "could not create unique index" in migrate()["msg"]
    assert indexes(database) == []
    assert database.dump() == before


def test_an_index_whose_builder_was_killed_is_built_anew(database: Database, migrate: Migrate) -> None:
    database.write("expand", 1, *INDEX, "transaction:false")
    with locked(database, "INSERT INTO people VALUES (1, 'ann');"):
        process = database.start(phase="expand", lock_timeout=20.0, statement_timeout=20.0)
        wait_for(lambda: indexes(database) == ["people_name invalid"])
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
        wait_for(lambda: gone(database))
    assert indexes(database) == ["people_name invalid"]
    assert migrate()["applied"]
    assert indexes(database) == ["people_name"]


def test_the_way_back_of_an_expand(database: Database, migrate: Migrate) -> None:
    add_column(database, 1, "email")
    assert migrate()["applied"]
    before = database.dump()
    names = [add_column(database, 2, "phone"), add_column(database, 3, "street")]
    assert migrate(keep=False)["applied"] == names
    planned = migrate(state="undone", check=True)
    assert (planned["changed"], planned["undone"]) == (True, names[::-1])
    assert "street" in columns(database)
    done = migrate(state="undone")
    assert (done["changed"], done["undone"]) == (True, names[::-1])
    assert database.dump() == before
    assert migrate(state="undone")["changed"] is False


def test_a_kept_expand_has_no_way_back(database: Database, migrate: Migrate) -> None:
    add_column(database, 1, "email")
    assert migrate(keep=False)["changed"]
    assert migrate(keep=False)["changed"] is False
    assert migrate(keep=True)["changed"] is True
    assert migrate(state="undone")["changed"] is False
    assert "email" in columns(database)
    assert "cannot be taken back" in migrate("contract", state="undone")["msg"]


def test_a_backfill_goes_on_in_batches(database: Database, migrate: Migrate) -> None:
    database.sql("INSERT INTO people SELECT n, 'x' FROM generate_series(1, 95) n;")
    add_column(database, 1, "email")
    batch = (
        "-- causeway:batch\nUPDATE people SET email = name || id WHERE id IN "
        "(SELECT id FROM people WHERE email IS NULL ORDER BY id LIMIT 10);"
    )
    name = database.write("backfill", 1, batch)
    refused = migrate("backfill")
    assert "expand is not finished, pending: 20261122000001_step.sql" in refused["msg"]
    assert migrate()["applied"]
    assert migrate("backfill")["applied"] == [name]
    assert database.sql("SELECT count(*) FROM people WHERE email IS NULL;") == "0"
    # Each batch was a transaction of its own: rows of 10 different ones.
    assert database.sql("SELECT count(DISTINCT xmin::text) FROM people;") == "10"
    assert migrate("backfill")["changed"] is False


def test_a_failed_backfill_keeps_what_it_did(database: Database, migrate: Migrate) -> None:
    names = [
        database.write("backfill", 1, "INSERT INTO people VALUES (1, 'ann');"),
        database.write("backfill", 2, "SELECT 1/0;"),
    ]
    failed = migrate("backfill")
    assert f"applied before it: {names[0]}; run it again to go on" in failed["msg"]
    database.write("backfill", 2, "INSERT INTO people VALUES (2, 'bob');")
    assert migrate("backfill")["applied"] == [names[1]]
    assert database.sql("SELECT count(*) FROM people;") == "2"


def test_a_contract_needs_the_phases_before_it(database: Database, migrate: Migrate) -> None:
    name = database.write("contract", 1, "ALTER TABLE people DROP COLUMN name;")
    database.write("backfill", 1, "UPDATE people SET id = id;")
    assert "contract: backfill is not finished" in migrate("contract")["msg"]
    assert migrate("backfill")["applied"]
    assert migrate("contract")["applied"] == [name]
    assert columns(database) == ["id"]


@pytest.mark.parametrize(
    ("sql", "rule", "line"),
    [
        (
            "ALTER TABLE people ADD COLUMN at timestamptz NOT NULL DEFAULT clock_timestamp();",
            "adding-field-with-default",
            2,
        ),
        ("ALTER TABLE people ADD COLUMN email text NOT NULL;", "adding-required-field", 2),
        ("SELECT 1;\nCREATE INDEX i ON people (name);", "require-concurrent-index-creation", 3),
        ("ALTER TABLE people RENAME COLUMN name TO title;", "renaming-column", 2),
        ("ALTER TABLE people DROP COLUMN name;", "ban-drop-column", 2),
        ("ALTER TABLEE people DROP COLUMN name;", "syntax-error", 2),
    ],
)
def test_unsafe_sql_is_refused(database: Database, migrate: Migrate, sql: str, rule: str, line: int) -> None:
    before = database.dump()
    add_column(database, 1, "email")
    name = database.write("expand", 2, sql, "SELECT 1;")
    for check in (True, False):
        refused = migrate(check=check)
        assert f"expand/{name}:{line}: {rule}: " in refused["msg"]
        assert "nothing was changed" in refused["msg"]
    assert database.dump() == before


def test_what_is_known_to_be_safe_is_let_through(database: Database, migrate: Migrate) -> None:
    database.write(
        "expand",
        1,
        "-- squawk-ignore require-concurrent-index-creation\nCREATE INDEX i ON people (name);",
        "DROP INDEX i;",
    )
    database.write("expand", 2, "ALTER TABLE people ADD COLUMN age int;", "ALTER TABLE people DROP COLUMN age;")
    assert "prefer-bigint-over-int" in migrate()["msg"]
    assert len(migrate(lint_exclude=["prefer-bigint-over-int"])["applied"]) == 2


def test_the_password_is_on_no_command_line(database: Database) -> None:
    database.write("expand", 1, "SELECT pg_sleep(1);", "SELECT 1;")
    process = database.start(phase="expand")
    seen: set[str] = set()
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        time.sleep(0.02)
    assert process.stdout
    output = process.stdout.read()
    process.stdout.close()
    assert json.loads(output)["applied"], output
    assert any("dbmate --migrations-dir" in line for line in seen)
    assert not [line for line in seen if PASSWORD in line or "s3cret" in line]
    assert PASSWORD not in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"connection": {"port": 1}}, "onnection refused"),
        ({"connection": {"name": "nosuch"}}, 'database "nosuch" does not exist'),
        ({"connection": {"ca": "/nonexistent/ca.pem"}}, "/nonexistent/ca.pem"),
        ({"connection": {"host": "localhost"}}, "does not match host name"),
        ({"dbmate": "/nonexistent/dbmate"}, "/nonexistent/dbmate cannot be run: No such file or directory"),
        ({"squawk": "/nonexistent/squawk"}, "/nonexistent/squawk cannot be run"),
        ({"lock_timeout": 0}, "lock_timeout: 0 would be no limit"),
    ],
)
def test_what_cannot_work_is_said_clearly(
    database: Database, migrate: Migrate, change: dict[str, Any], message: str
) -> None:
    add_column(database, 1, "email")
    before = database.dump()
    parameters = database.parameters(**change)
    connection = {**database.parameters()["connection"], **change.get("connection", {})}
    failed = migrate(**{**{name: parameters[name] for name in change}, "connection": connection})
    assert failed["failed"]
    assert message in failed["msg"]
    assert PASSWORD not in json.dumps(failed)
    assert database.dump() == before


def test_the_certificate_of_the_server_is_checked(database: Database, migrate: Migrate, tmp_path: Path) -> None:
    add_column(database, 1, "email")
    other = _MODULE.Authority(tmp_path / "ca", "another root").issue("other") / "ca.pem"
    connection = {**database.parameters()["connection"], "ca": str(other)}
    assert "certificate verify failed" in migrate(connection=connection)["msg"]
    assert "email" not in columns(database)


def test_the_first_schema_of_a_database_that_the_platform_made(database: Database, migrate: Migrate) -> None:
    """Over the unix socket, with a schema `causeway` that belongs to the superuser; the files are those of the lab."""
    database.sql("CREATE SCHEMA causeway; GRANT USAGE, CREATE ON SCHEMA causeway TO owner;")
    folder = Path(__file__).resolve().parents[3] / "molecule" / "database" / "services" / "migrations" / "orders"
    own = {
        "connection": {
            "host": str(database.cluster.folder),
            "port": database.cluster.port,
            "name": database.name,
            "user": "owner",
        },
        "directory": str(folder),
        "_files": action.read_files(folder),
    }
    assert migrate(check=True, **own)["changed"]
    assert migrate(keep=False, **own)["changed"]
    assert migrate(state="undone", **own)["changed"]
    assert database.sql("SELECT to_regclass('orders') IS NULL;") == "t"
    assert migrate(**own)["changed"]
    again = migrate(**own)
    assert not again.get("failed"), again
    assert not again["changed"]
    assert database.sql("SELECT tableowner FROM pg_tables WHERE tablename = 'orders';") == "owner"
    assert database.sql("SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'causeway';") == "postgres"
