# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tenant moves between two real shards while clients write, and comes back whole when a step fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import (
    etcd,
    pgbouncer,
    registry,
    tenant_copy,
    tenant_switch,
    tenants,
)
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import PostgresqlError
from ansible_collections.causeway.platform.plugins.modules import postgresql_tenant

from .conftest import DATABASE, HOSTS, NOTHING, PLATFORM, PORTS, ROWS, SERVICE, SHARDS, TENANT, Fleet, Writer, wait_for

pytestmark = pytest.mark.usefixtures("fleet")


def written(fleet: Fleet, cluster: str) -> set[int]:
    return {int(line) for line in fleet.psql(cluster, DATABASE, "SELECT id FROM extra.ledger").split()}


def test_a_move_under_load_loses_nothing(tenant: Fleet, writers: list[Writer]) -> None:
    facts = tenant.copy()
    assert "extra.items" in facts["tables"]
    assert facts["sequences"] == ["extra.items_id_seq", "extra.numbers"]
    time.sleep(1)
    found = tenant.switch(facts)
    assert all(isinstance(one, dict) for one in found.values()), found
    moved = {host: one["moved"] for host, one in found.items()}
    time.sleep(1)
    for writer in writers:
        writer.stop()
        assert writer.errors == []
    # The clients went on at the other shard, on connections they had.
    assert tenant.place().shard == "s2"
    assert tenant.place().before == "s1"
    assert written(tenant, "orders-s2") == {one for writer in writers for one in writer.acknowledged}
    assert len(written(tenant, "orders-s2")) > len(written(tenant, "orders")) > 0
    assert moved["db2"]["rows"] > ROWS
    assert moved["db2"]["tables"] == len(facts["tables"])
    assert len(moved["db2"]["checksum"]) == 16
    pause = max(one["pause"] for one in moved.values())
    assert max(writer.longest for writer in writers) < pause + 2
    # Sequences go on, the identity's also; views are filled; statistics are there.
    assert tenant.psql("orders-s2", DATABASE, "SELECT nextval('extra.numbers')") == "102"
    with tenant.connect() as connection:
        assert connection.execute("INSERT INTO extra.items (name) VALUES ('after') RETURNING id").fetchone()
    assert int(tenant.psql("orders-s2", DATABASE, "SELECT count(*) FROM extra.dear")) > 0
    assert tenant.psql("orders-s2", DATABASE, "SELECT count(*) FROM pg_stats WHERE tablename = 'items'") != "0"
    # Nobody gets into the original, whatever a pooler that was not asked does.
    assert not tenant.open("orders")
    steps = tenant.settle()
    assert f"renamed {DATABASE} to {DATABASE}_moved" in steps["s1"]
    assert "dropped the subscription" in steps["s2"]
    assert tenant.settle() == {"s1": [], "s2": []}
    assert tenant.psql("orders", "postgres", "SELECT count(*) FROM pg_replication_slots") == "0"
    assert tenant.module("absent", port=PORTS["orders"], check_mode=True)["changed"]
    assert tenant.module("absent", port=PORTS["orders"])["steps"][0].startswith(f"dropped {DATABASE}_moved")
    assert not tenant.module("absent", port=PORTS["orders"])["changed"]


def back_at_home(fleet: Fleet, writers: list[Writer]) -> None:
    """Everything is as it was, for clients too, and nothing of the move is left."""
    assert fleet.place().shard == "s1"
    assert fleet.open("orders")
    assert not any(fleet.paused(host) for host in HOSTS)
    before = [len(writer.acknowledged) for writer in writers]
    wait_for(
        lambda: all(len(writer.acknowledged) > count + 5 for writer, count in zip(writers, before)), "clients go on"
    )
    for writer in writers:
        writer.stop()
        assert writer.errors == []
    assert written(fleet, "orders") == {one for writer in writers for one in writer.acknowledged}
    fleet.settle()
    assert fleet.traces() == NOTHING
    assert fleet.psql("orders", DATABASE, "SELECT to_regclass('causeway.move_mark') IS NULL") == "t"
    assert fleet.settle() == {"s1": [], "s2": []}


def failing(error: Exception) -> Any:
    def act(*_arguments: Any, **_options: Any) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (pgbouncer, "hold"),
        (tenant_copy, "write_mark"),
        (tenant_copy, "sequences"),
        (tenant_copy, "fingerprint"),
        (tenant_copy, "wait_mark"),
        (tenant_copy, "set_sequences"),
        (tenant_copy, "sums"),
    ],
)
def test_a_failure_in_any_step_goes_back(
    tenant: Fleet, writers: list[Writer], monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    facts = tenant.copy()
    monkeypatch.setattr(place, name, failing(PostgresqlError("the disk is full")))
    found = tenant.switch(facts)
    monkeypatch.undo()
    assert all("the disk is full" in str(one) for one in found.values()), found
    back_at_home(tenant, writers)


def test_a_registry_that_is_lost_at_the_last_moment(
    tenant: Fleet, writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tenant.copy()
    monkeypatch.setattr(tenant_switch.Decision, "commit", failing(etcd.Unavailable("no member answers")))
    found = tenant.switch(facts)
    monkeypatch.undo()
    assert all("no member answers" in str(one) for one in found.values()), found
    back_at_home(tenant, writers)


def test_an_answer_that_is_lost_after_the_move_goes_on(
    tenant: Fleet, writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tenant.copy()
    real = tenant_switch.Decision.commit

    def commit(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        raise etcd.Unavailable("the connection broke", maybe_done=True)

    monkeypatch.setattr(tenant_switch.Decision, "commit", commit)
    found = tenant.switch(facts)
    assert all(one["moved"]["pause"] is not None for one in found.values()), found
    assert tenant.place().shard == "s2"
    time.sleep(0.5)
    for writer in writers:
        writer.stop()
        assert writer.errors == []
    assert written(tenant, "orders-s2") == {one for writer in writers for one in writer.acknowledged}
    tenant.settle()


def test_rows_that_differ_are_found(tenant: Fleet, writers: list[Writer]) -> None:
    facts = tenant.copy()
    tenant.psql("orders-s2", DATABASE, "UPDATE extra.items SET name = 'another' WHERE id = 17;")
    found = tenant.switch(facts)
    assert all("extra.items has other contents at the target" in str(one) for one in found.values()), found
    back_at_home(tenant, writers)


def test_a_row_that_is_missing_is_found_by_counting(tenant: Fleet, writers: list[Writer]) -> None:
    facts = tenant.copy()
    tenant.psql("orders-s2", DATABASE, "DELETE FROM extra.parts WHERE id = 17;")
    found = tenant.switch(facts, verify="rows")
    assert all("extra.parts_rest has 50 rows at the source and 49" in str(one) for one in found.values()), found
    back_at_home(tenant, writers)


def test_a_schema_that_changes_meanwhile_is_found(tenant: Fleet, writers: list[Writer]) -> None:
    facts = tenant.copy()
    tenant.psql("orders", DATABASE, "SET ROLE orders_owner; CREATE TABLE extra.late (id int PRIMARY KEY);")
    found = tenant.switch(facts)
    assert all("the schema of orders_acme was changed" in str(one) for one in found.values()), found
    back_at_home(tenant, writers)


def test_a_transaction_that_does_not_end_stops_the_move(tenant: Fleet, writers: list[Writer]) -> None:
    facts = tenant.copy()
    with tenant.connect("db2") as connection, connection.transaction():
        connection.execute("SELECT 1")
        found = tenant.switch(facts, timeout=0.5)
        assert all("transactions still ran after 0.5 s" in str(one) for one in found.values()), found
        # It was not harmed.
        connection.execute("SELECT 1")
    back_at_home(tenant, writers)


def test_a_move_that_breaks_off_before_the_switch_begins_anew(tenant: Fleet, writers: list[Writer]) -> None:
    tenant.copy()
    # As after a controller that was killed: nobody cleaned up.
    assert tenant.traces() != NOTHING
    # What lives elsewhere is never taken for a copy.
    assert tenant.settle()["s2"] == ["dropped the subscription", f"dropped the unfinished copy {DATABASE}"]
    assert tenant.traces() == NOTHING
    found = tenant.switch(tenant.copy())
    assert all(one["moved"] for one in found.values())
    tenant.settle()


def test_a_copy_that_was_made_by_somebody_else_stays(tenant: Fleet) -> None:
    tenant.psql("orders-s2", "postgres", f"CREATE DATABASE {DATABASE};")
    tenant.psql("orders-s2", DATABASE, "CREATE TABLE precious (id int PRIMARY KEY);")
    with pytest.raises(tenants.TenantError, match="its tenant lives on another shard: look what is in it"):
        tenant.settle()
    facts = tenant.module("published", port=PORTS["orders"])["facts"]
    with pytest.raises(tenants.TenantError, match="on this server already, and is not the copy of a move"):
        tenant.module("copied", port=PORTS["orders-s2"], source=tenant.source(), matviews=facts["matviews"])
    tenant.psql("orders-s2", "postgres", f"DROP DATABASE {DATABASE};")
    tenant.settle()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("CREATE TABLE extra.loose (id int);", "without a primary key or another replica identity: extra.loose"),
        (
            "CREATE UNLOGGED TABLE extra.fast (id int PRIMARY KEY);",
            "unlogged tables, which are not replicated: extra.fast",
        ),
        ("SELECT lo_create(0);", "1 large objects"),
        ("ALTER TABLE extra.ledger ENABLE ROW LEVEL SECURITY;", "row-level security"),
        (
            f"ALTER DATABASE {DATABASE} SET work_mem = '64MB';",
            "parameters set for this database, which do not move: work_mem",
        ),
        (
            "SELECT pg_create_logical_replication_slot('of_others', 'pgoutput');",
            "replication of somebody else: of_others",
        ),
    ],
)
def test_what_cannot_move_is_told_before_anything_changes(tenant: Fleet, sql: str, message: str) -> None:
    tenant.psql("orders", DATABASE, sql)
    for check_mode in (True, False):
        with pytest.raises(tenants.TenantError, match=message):
            tenant.module("published", check_mode, port=PORTS["orders"])
    with contextlib.suppress(AssertionError):
        tenant.psql("orders", "postgres", "SELECT pg_drop_replication_slot('of_others');")
    assert tenant.traces() == NOTHING


SWITCH = """
import json, sys
from ansible_collections.causeway.platform.plugins.modules import postgresql_tenant as module
from ansible_collections.causeway.platform.plugins.module_utils import tenant_copy
import time
if sys.argv[2] != "-":
    setattr(tenant_copy, sys.argv[2], lambda *given: (print("there", flush=True), time.sleep(60)))
params = json.loads(sys.argv[1])
print(json.dumps(module.switched(params, False)), flush=True)
"""


def test_a_source_that_is_killed_opens_again(tenant: Fleet, writers: list[Writer]) -> None:
    """SIGKILL in the middle of the pause, with the source closed: a child opens it, the other host backs out."""
    facts = tenant.copy()
    common = {
        "tables": facts["tables"],
        "sequences": facts["sequences"],
        "members": list(HOSTS),
        "poolers": list(HOSTS),
        "source_host": "db1",
        "source_port": PORTS["orders"],
        "target_host": "db2",
        "target_port": PORTS["orders-s2"],
        "meeting": f"killed-{time.time_ns()}",
        "hold": 4.0,
        "timeout": 2.0,
    }
    running = {
        host: subprocess.Popen(
            [
                sys.executable,
                "-c",
                SWITCH,
                json.dumps(tenant.params("switched", host=host, config=str(tenant.config_path(host)), **common)),
                "sequences" if host == "db1" else "-",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for host in HOSTS
    }
    stdout = running["db1"].stdout
    assert stdout
    assert stdout.readline() == "there\n"
    assert not tenant.open("orders")
    running["db1"].send_signal(signal.SIGKILL)
    wait_for(lambda: tenant.open("orders"), "the source is open again", 10)
    _out, errors = running["db2"].communicate(timeout=30)
    assert "the process on db1 ended" in errors
    running["db1"].communicate()
    # The pooler of the killed process lets go when its time is up; the unit does that once a second.
    config, console = tenant.config("db1"), tenant.console("db1")
    assert tenant.paused("db1")
    wait_for(lambda: bool(pgbouncer.follow_tenants(config, config.tenancies[SERVICE], console)), "the hold ends", 15)
    back_at_home(tenant, writers)


def test_a_pooler_that_was_away_learns_the_way(tenant: Fleet) -> None:
    """The registry's word comes by the agent's file; an older word changes nothing."""
    tenant.switch(tenant.copy())
    tenant.settle()
    place = tenant.place()
    config, console = tenant.config("db1"), tenant.console("db1")
    tenancy, heard = config.tenancies[SERVICE], Path(config.registry)
    old = {SERVICE: {TENANT: {"shard": "s1", "revision": place.revision - 1}}}
    heard.write_text(json.dumps(old))
    assert pgbouncer.follow_tenants(config, tenancy, console) == []
    # A host that slept through the move.
    pgbouncer.routes_of(config, tenancy).write_text(json.dumps(old[SERVICE]))
    pgbouncer.settle(config, config.clusters["orders"], console, "db1", "db1")
    pgbouncer.settle(config, config.clusters["orders-s2"], console, "db2", "db2")
    heard.write_text(json.dumps({SERVICE: {TENANT: {"shard": "s2", "revision": place.revision}}}))
    assert pgbouncer.follow_tenants(config, tenancy, console) == ["other tenants in orders-s2, orders"]
    with tenant.connect() as connection:
        assert connection.execute("SELECT count(*) FROM extra.items").fetchone() == (ROWS,)
    heard.unlink()


def test_a_whole_cluster_is_held_with_its_tenants(tenant: Fleet) -> None:
    """A switchover holds them with the service's own database."""
    config, console = tenant.config("db1"), tenant.console("db1")
    cluster = config.clusters["orders"]
    tenant.psql("orders", "postgres", "SELECT 1")
    pgbouncer.pause(config, cluster, console, leader="db1", timeout=2, hold=5)
    shown = console.databases()
    assert {name for name in ("orders", DATABASE) if shown[name]["paused"] == "1"} == {"orders", DATABASE}
    assert pgbouncer.resume(config, cluster, console)[0]
    assert not tenant.paused("db1")


def test_places_are_given_once(tenant: Fleet) -> None:
    keys = registry.Keys(PLATFORM)
    with tenant.client() as client:
        new, places = tenants.assign(
            client, keys, SERVICE, belongs={"acme": "s2", "bolt": "s2"}, shards=SHARDS, check_mode=True
        )
        assert new == ["bolt"]
        assert (places["acme"].shard, places["bolt"].shard) == ("s1", "s2")
        assert tenants.read_places(client, keys, SERVICE).keys() == {"acme"}
        assert tenants.assign(
            client, keys, SERVICE, belongs={"acme": "s2", "bolt": "s2"}, shards=SHARDS, check_mode=False
        )[0] == ["bolt"]
        assert (
            tenants.assign(
                client, keys, SERVICE, belongs={"acme": "s2", "bolt": "s2"}, shards=SHARDS, check_mode=False
            )[0]
            == []
        )
        with pytest.raises(
            tenants.TenantError, match="tenant bolt is on shard s2, which the description does not have"
        ):
            tenants.assign(
                client, keys, SERVICE, belongs={"acme": "s1", "bolt": "s1"}, shards={"s1": "orders"}, check_mode=False
            )
        with pytest.raises(
            tenants.TenantError, match="shard s2 is in cluster orders-s2 and the description puts it into"
        ):
            tenants.assign(
                client,
                keys,
                SERVICE,
                belongs={"acme": "s1"},
                shards={"s2": "orders", "s1": "orders-s1"},
                check_mode=False,
            )


def test_databases_of_tenants_are_made_once(tenant: Fleet) -> None:
    given = {"port": PORTS["orders-s2"], "databases": ["orders_bolt", "orders_cargo"], "connect": ["orders_mover"]}
    planned = tenant.module("present", True, **given)
    assert "create database orders_bolt" in planned["steps"]
    assert tenant.module("present", **given)["steps"] == planned["steps"]
    assert not tenant.module("present", **given)["changed"]
    assert not tenant.module("present", True, **given)["changed"]
    seen = tenant.module("observed", port=PORTS["orders-s2"])["databases"]
    assert seen["orders_bolt"]["open"]
    for name in given["databases"]:
        tenant.psql("orders-s2", "postgres", f"DROP DATABASE {name};")


def test_the_modules_states_are_documented() -> None:
    assert set(postgresql_tenant.STATES) == {
        "present",
        "absent",
        "observed",
        "published",
        "copied",
        "switched",
        "settled",
    }
