# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused before a database is asked, which failures pass, and when a contract may run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.action.database_migration import read_files
from ansible_collections.causeway.platform.plugins.module_utils import migrations
from ansible_collections.causeway.platform.plugins.module_utils.migration_runner import Connection

NAME = "20261122093000_a.sql"
GOOD = "-- migrate:up\nALTER TABLE a ADD b text;\n-- migrate:down\nALTER TABLE a DROP b;\n"


@pytest.mark.parametrize(
    ("phase", "name", "content", "message"),
    [
        ("expand", "a.sql", GOOD, "expand/a.sql: a bad name for a migration (allowed: <14 digits>_<name>.sql"),
        ("expand", "2026_a.sql", GOOD, "a bad name"),
        ("expand", "20261122093000_a.sql.orig", GOOD, "a bad name"),
        ("expand", "20261122093000_../a.sql", GOOD, "a bad name"),
        ("expand", NAME, "ALTER TABLE a ADD b text;", "needs the line '-- migrate:up' once"),
        ("expand", NAME, GOOD + GOOD, "needs the line '-- migrate:up' once"),
        ("expand", NAME, "-- migrate:down\nSELECT 1;\n-- migrate:up\nSELECT 1;\n", "needs the line"),
        ("expand", NAME, "SELECT 0;\n" + GOOD, "SQL before '-- migrate:up' would never run"),
        ("expand", NAME, "-- migrate:up\n-- nothing\n-- migrate:down\nSELECT 1;\n", "there is no SQL after"),
        ("expand", NAME, "-- migrate:up\nSELECT 1;\n", "an expand needs SQL after '-- migrate:down'"),
        ("expand", NAME, "-- migrate:up\nSELECT 1;\n-- migrate:down\n/* none */ -- at all\n", "an expand needs SQL"),
        ("expand", NAME, GOOD.replace(":up", ":up transaction:no"), "a.sql:1: unknown option 'transaction:no'"),
        (
            "expand",
            NAME,
            "-- migrate:up\nCREATE INDEX CONCURRENTLY i ON a (b);\n-- migrate:down\nSELECT 1;\n",
            "write '-- migrate:up transaction:false'",
        ),
        (
            "expand",
            NAME,
            "-- migrate:up transaction:false\nSELECT 1;\n-- migrate:down\ndrop index concurrently i;\n",
            "write '-- migrate:down transaction:false'",
        ),
        ("expand", NAME, GOOD.replace("up\n", "up\n-- causeway:batch\n"), "is for backfills in transactions only"),
        ("expand", NAME, GOOD + "\x00", "too large or not text"),
        ("expand", NAME, GOOD + "-" * migrations.MAX_FILE, "too large or not text (allowed: at most 256 KiB"),
        ("grow", NAME, GOOD, "unknown phase 'grow' (allowed: expand, backfill, contract)"),
    ],
)
def test_a_bad_file(phase: str, name: str, content: str, message: str) -> None:
    with pytest.raises(migrations.MigrationError) as error:
        migrations.parse_all({phase: {name: content}})
    assert message in str(error.value)


def test_a_good_file() -> None:
    content = "-- add b\n\n-- migrate:up transaction:false\nSELECT 1;\n\n-- migrate:down\nSELECT 2;\n"
    one = migrations.parse("expand", NAME, content)
    assert (one.version, one.up, one.up_line, one.down) == ("20261122093000", "SELECT 1;\n", 4, "SELECT 2;")
    assert (one.transaction, one.batch) == (False, False)
    assert migrations.lintable(one).splitlines()[3] == "SELECT 1;"


def test_versions_twice_and_out_of_order() -> None:
    twice = {"expand": {"20261122093000_a.sql": GOOD, "20261122093000_b.sql": GOOD}}
    with pytest.raises(migrations.MigrationError, match=r"the same version as 20261122093000_a\.sql"):
        migrations.parse_all(twice)
    files = migrations.parse_all({"expand": {f"2026112209300{n}_a.sql": GOOD for n in range(3)}})["expand"]
    assert [one.version[-1] for one in migrations.pending(files, ["20261122093000"])] == ["1", "2"]
    with pytest.raises(migrations.MigrationError, match=r"_a\.sql: its version is below 20261122093001, which is"):
        migrations.pending(files, ["20261122093001"])


def test_reading_the_directory(tmp_path: Path) -> None:
    with pytest.raises(migrations.MigrationError, match="there is no directory"):
        read_files(tmp_path / "nothing")
    (tmp_path / "expand").mkdir()
    (tmp_path / "expand" / NAME).write_text(GOOD)
    (tmp_path / "expand" / ".a.sql.swp").write_bytes(b"\xff")
    assert read_files(tmp_path) == {"expand": {NAME: GOOD}, "backfill": {}, "contract": {}}
    (tmp_path / "expand" / NAME).write_bytes(b"\xff")
    with pytest.raises(migrations.MigrationError, match=r"_a\.sql: cannot be read"):
        read_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("pq: canceling statement due to lock timeout (55P03)", True),
        ("ERROR:  40P01: deadlock detected", True),
        ("pq: could not serialize access due to concurrent update (40001)", True),
        ("dial tcp 127.0.0.1:1: connect: connection refused", True),
        ('connection to server at "x", port 1 failed: Connection refused', True),
        ("pq: the database system is starting up (57P03)", True),
        ("unexpected EOF", True),
        ("pq: canceling statement due to statement timeout (57014)", False),
        ('pq: relation "a" does not exist (42P01)', False),
        ("pq: division by zero (22012)", False),
        ('FATAL:  password authentication failed for user "x"', False),
        ("tls: failed to verify certificate", False),
    ],
)
def test_which_failures_pass(text: str, passing: bool) -> None:
    assert migrations.transient(text) is passing


def test_pauses_double_up_to_a_limit_and_are_uneven() -> None:
    assert migrations.pauses(5, 0.5, 3.0, lambda: 1.0) == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert migrations.pauses(3, 0.5, 3.0, lambda: 0.0) == [0.25, 0.5, 1.0]
    assert migrations.pauses(0, 0.5, 3.0, lambda: 0.0) == []


def test_rows_of_a_batch() -> None:
    assert migrations.affected("UPDATE 10\n") == 10
    assert migrations.affected("SELECT 3\nINSERT 0 7\n") == 7
    with pytest.raises(migrations.MigrationError, match="a batch must end with"):
        migrations.affected("DO\n")


def test_a_connection_never_shows_its_password() -> None:
    one = Connection("db1", 5432, "or/ders", "own er", password="hunter2", ca="/a b/ca.pem")
    assert "hunter2" not in f"{one!r} {one} {one.url()} {one.settings()}"
    assert one.url().startswith("postgres://own%20er@db1:5432/or%2Fders?sslmode=verify-full")
    assert "@[fe80::1]:5432/" in Connection("fe80::1", 5432, "a", "b").url()
    assert "sslmode=disable" in Connection("/run/postgresql", 5432, "a", "b").url()


# --- contract ---------------------------------------------------------------------------------------------------

NOW = 1_795_363_200.0  # 2026-11-22T16:00:00Z
PLACED = ["app1-0", "app2-0"]


def at(seconds_ago: float) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(NOW - seconds_ago, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def known(**change: Any) -> dict[str, Any]:
    """A service whose release of 1.1.0 settled an hour ago."""
    release = {
        "id": "r",
        "version": "1.1.0",
        "from": "1.0.0",
        "state": "settled",
        "started": at(7200),
        "changed": at(3600),
        "transitions": [{"at": at(3900), "to": "promoted"}, {"at": at(3600), "to": "settled"}],
        **change.get("release", {}),
    }
    return {
        "release": {
            "current": "1.1.0",
            "previous": "1.0.0",
            "state": "live",
            "release": release,
            "history": [{"version": "1.1.0", "started": at(7200), "finished": at(3600)}],
            **change.get("record", {}),
        },
        "lock": change.get("lock", {}),
        "instances": change.get("instances", [instance("app1-0"), instance("app2-0")]),
    }


def instance(name: str, version: str = "1.1.0", pool: str = "stable") -> dict[str, Any]:
    return {"instance": name, "version": version, "pool": pool}


def refusals(service: dict[str, Any], version: str = "1.1.0", **more: Any) -> list[str]:
    return migrations.contract_refusals(service, version, **{"placed": PLACED, "window": 300.0, "now": NOW, **more})


def test_a_contract_may_run() -> None:
    assert refusals(known()) == []
    assert refusals(known(lock={"owner": "me", "purpose": "contract"}), owner="me") == []
    # Nothing was ever released: the description's version is live.
    never = {"release": {}, "lock": {}, "instances": [instance("app1-0", "1.0.0"), instance("app2-0", "1.0.0")]}
    assert refusals(never, "1.0.0", first_version="1.0.0") == []
    # A rolling release, of which only the history knows.
    rolled = known()
    rolled["release"].update(release={}, history=[{"version": "1.1.0", "started": at(500), "finished": at(400)}])
    assert refusals(rolled) == []


STATES = ("planned", "preparing", "testing", "shifting", "baking", "promoted")


@pytest.mark.parametrize(
    ("service", "version", "reason"),
    [
        *((known(release={"state": state}), "1.1.0", f"of 1.1.0 is under way, in state {state}") for state in STATES),
        (known(record={"state": "rolled back"}), "1.1.0", "the last release did not end well: rolled back"),
        (known(record={"state": "aborted"}), "1.1.0", "did not end well: aborted"),
        (known(record={"state": "failed"}), "1.1.0", "did not end well: failed"),
        (known(record={"state": "rolling"}), "1.1.0", "did not end well: rolling"),
        (known(), "1.2.0", "version 1.2.0 is not the live one, 1.1.0 is"),
        (known(), "1.0.0", "version 1.0.0 is not the live one"),
        (known(), "", "no version is named"),
        (known(lock={"owner": "ann", "purpose": "canary"}), "1.1.0", "the service is locked by ann (canary)"),
        (
            known(instances=[instance("app1-0"), instance("app2-0", "1.0.0")]),
            "1.1.0",
            "another version is registered: app2-0 (1.0.0)",
        ),
        (
            known(instances=[instance("app1-0"), instance("app2-0"), instance("app1-5", "1.0.0", "candidate")]),
            "1.1.0",
            "another version is registered: app1-5 (1.0.0)",
        ),
        (known(instances=[instance("app1-0")]), "1.1.0", "not registered, so of unknown version: app2-0"),
        (known(instances=[]), "1.1.0", "of unknown version: app1-0, app2-0"),
        (
            known(release={"transitions": [{"at": at(200), "to": "promoted"}]}),
            "1.1.0",
            "the rollback window is open for another 100 s",
        ),
        (known(release={"transitions": [], "changed": at(299)}), "1.1.0", "is open for another 1 s"),
        (
            known(record={"history": [{"version": "1.1.1", "started": at(100), "finished": at(50)}]}),
            "1.1.0",
            "is open for another 250 s",
        ),
        (
            known(release={"transitions": [{"at": "yesterday", "to": "promoted"}]}),
            "1.1.0",
            "a time that cannot be read",
        ),
    ],
)
def test_a_contract_is_refused(service: dict[str, Any], version: str, reason: str) -> None:
    found = refusals(service, version)
    assert any(reason in one for one in found), found


def test_no_combination_of_doubts_lets_a_contract_through() -> None:
    """Every way to be unsure, alone and with every other: all 2^5 of them; only none of them passes."""
    doubts = {
        "release": {"state": "promoted"},
        "record": {"current": "1.0.0"},
        "lock": {"owner": "ann"},
        "instances": [instance("app1-0"), instance("app2-0", "1.0.0")],
    }
    for flags in itertools.product((False, True), repeat=5):
        chosen = {name: value for (name, value), on in zip(doubts.items(), flags) if on}
        found = refusals(known(**chosen), window=7200.0 if flags[4] else 300.0)
        assert bool(found) is any(flags), (flags, found)
        assert len(found) >= sum(flags) - (flags[0] and flags[1])
