# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates and reports of the verbs for tenants, and what poolers make of the registry's word: nothing runs."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.filter.tenants import FilterModule
from ansible_collections.causeway.platform.plugins.module_utils import (
    patroni_config,
    pgbouncer,
    postgresql_objects,
    tenant_copy,
    tenant_report,
    tenant_switch,
)

SHARDING = {
    "home": "orders",
    "shard": "s1",
    "by": "tenant",
    "shards": {
        "s1": {"cluster": "orders", "weight": 1.0, "region": ""},
        "s2": {"cluster": "orders-s2", "weight": 1.0, "region": ""},
    },
    "tenants": {
        "acme": {"database": "orders_acme", "region": "", "pin": "s2", "belongs": "s2"},
        "bolt": {"database": "orders_bolt", "region": "", "pin": "", "belongs": "s2"},
        "new": {"database": "orders_new", "region": "", "pin": "", "belongs": "s1"},
    },
    "poolers": [],
    "peers": [],
    "read_across": [],
}
MEMBERS = [{"host": "db1", "address": "10.0.0.1"}, {"host": "db2", "address": "10.0.0.2"}]
DATABASES = {
    "orders": {"name": "orders", "port": 15110, "members": MEMBERS, "sharding": SHARDING},
    "orders-s2": {"name": "orders-s2", "port": 15111, "members": MEMBERS[1:], "sharding": {**SHARDING, "shard": "s2"}},
    "plain": {"name": "plain", "port": 15120, "members": MEMBERS, "sharding": {}},
}
PLACES = {
    "acme": {"shard": "s1", "before": "", "since": "", "revision": 5},
    "bolt": {"shard": "s2", "before": "", "since": "", "revision": 6},
    "gone": {"shard": "s1", "before": "", "since": "", "revision": 7},
}


def test_services_with_shards() -> None:
    found = tenant_report.services(DATABASES)
    assert list(found) == ["orders"]
    assert found["orders"]["shards"] == {"s1": "orders", "s2": "orders-s2"}
    assert found["orders"]["belongs"]["acme"] == "s2"


def test_databases_are_where_the_registry_says() -> None:
    assert tenant_report.databases_here(DATABASES["orders"], PLACES) == ["orders_acme"]
    assert tenant_report.databases_here(DATABASES["orders-s2"], PLACES) == ["orders_bolt"]
    assert tenant_report.databases_here(DATABASES["plain"], PLACES) == []
    ways = tenant_report.ways(DATABASES, "orders", PLACES)
    assert ways[0] == {"name": "acme", "database": "orders_acme", "hosts": ["10.0.0.1", "10.0.0.2"], "port": 15110}
    assert [one["name"] for one in ways] == ["acme", "bolt"]


def test_status_tells_who_should_move_and_what_is_left() -> None:
    seen = {"s1": {"orders_bolt_moved": {"size": 9 << 20, "open": False, "move": "left", "note": "left behind"}}}
    found = tenant_report.status("orders", SHARDING, PLACES, seen)
    assert found["moves"] == [{"tenant": "acme", "from": "s1", "to": "s2", "reason": "pinned"}]
    text = "\n".join(found["text"])
    assert "new has no place yet" in text
    assert "gone is on s1 and no longer in the description" in text
    assert "s1 has orders_bolt_moved, 9 MB: left behind" in text


def test_gates() -> None:
    well = {"leader": "db1", "streaming": ["db2"], "members": [{"name": "db2", "lag": 0}]}
    assert tenant_report.problems(well, well) == []
    late = {**well, "members": [{"name": "db2", "lag": 1 << 30}]}
    old = {
        "transactions": [{"seconds": 90.0, "role": "x", "database": "d", "application": "", "pid": 7}],
        "prepared": [],
    }
    found = tenant_report.problems({**well, "leader": ""}, late, old)
    assert [one.partition(":")[0] for one in found] == [
        "the shard that it leaves",
        "the shard that it leaves",
        "the shard that it goes to",
    ]
    assert tenant_report.space_problem(100 << 20, 200 << 20) == ""
    assert tenant_report.space_problem(100 << 20, 10 << 20) == (
        "the copy may need 200 MB, and the target's leader has 10 MB left"
    )


@pytest.mark.parametrize(
    ("facts", "hosts", "given", "outcome"),
    [
        (
            {"origin": "s1", "destination": "s2"},
            [{"pause": 1.5, "rows": 7, "tables": 1, "sequences": 0, "lsn": "0/1"}],
            {},
            "done",
        ),
        ({"origin": "s1", "destination": "s1"}, [], {}, "nothing to do"),
        ({"origin": "s1", "destination": "s2"}, [], {"failure": "the disk is full"}, "failed"),
        ({"origin": "s1", "destination": "s2"}, [], {"check_mode": True}, "planned"),
        (
            {"origin": "s1", "destination": "s2"},
            [{"pause": 1.5, "rows": 7, "tables": 1, "sequences": 0, "lsn": "0/1"}],
            {"failure": "a slot is in use"},
            "done, but not cleared away",
        ),
    ],
)
def test_reports(facts: dict, hosts: list, given: dict, outcome: str) -> None:
    found = FilterModule().filters()["tenant_report"]("orders", "acme", facts, hosts, **given)
    assert found["outcome"] == outcome
    assert found["text"][0] == f"tenant_move of acme of orders: {outcome}"


def test_filters_report_wrong_shapes() -> None:
    with pytest.raises(AnsibleFilterError, match="tenant_status: the value is not of the right shape"):
        FilterModule().filters()["tenant_status"]("orders", {}, {})


def test_an_older_word_changes_nothing() -> None:
    have = {"acme": pgbouncer.Route("s2", 9)}
    heard = pgbouncer.parse_routes(
        {"acme": {"shard": "s1", "revision": 8}, "bolt": {"shard": "s1", "revision": 1}, "bad": 3}
    )
    assert pgbouncer.newer(have, heard) == {"bolt": pgbouncer.Route("s1", 1)}


def test_differences_are_named() -> None:
    found = tenant_copy.differences(
        {"a": [1, "5"], "b": [2, "6"], "c": [3, "7"]}, {"a": [1, "5"], "b": [1, "6"], "c": [3, "8"]}
    )
    assert found == ["b has 2 rows at the source and 1 at the target", "c has other contents at the target"]
    assert tenant_copy.differences({"a": [0, "0"]}, {}) == ["a is only at the source"]
    assert tenant_switch.checksum({"a": [1, "-1"], "b": [1, "2"]}) == "0000000000000001"


def test_names_fit() -> None:
    longest = "o" * 57
    assert len(tenant_copy.slot_of(longest)) <= 63
    assert len(tenant_copy.left_behind(longest)) <= 63


def test_a_password_with_a_salt_is_the_same_everywhere() -> None:
    salt = "00112233445566778899aabbccddeeff"
    verifier = postgresql_objects.scram_verifier("word", bytes.fromhex(salt))
    state = {"roles": {}, "databases": {}}
    role = {"name": "orders", "password": "word", "salt": salt}
    steps = postgresql_objects.plan_server(state, "orders", "orders", [role], [])
    assert any(verifier in step.sql for step in steps)
    have = {"rolcanlogin": True, "rolreplication": False, "rolsuper": False, "member_of": []}
    for stored, told in ((verifier, False), (postgresql_objects.scram_verifier("word"), True)):
        state = {"roles": {"orders": {**have, "password": stored}}, "databases": {}}
        steps = postgresql_objects.plan_server(state, "orders", "orders", [role], [])
        assert any("password" in step.told for step in steps) is told
    with pytest.raises(postgresql_objects.PostgresqlError, match="the salt is not 32 hexadecimal digits"):
        postgresql_objects.plan_server(state, "orders", "orders", [{**role, "salt": "xyz"}], [])


def test_patroni_keeps_slots_of_moves() -> None:
    settings = {
        "ttl": 20,
        "loop_wait": 2,
        "retry_timeout": 5,
        "maximum_lag_on_failover": 1,
        "primary_stop_timeout": 20,
        "member_slots_ttl": "30min",
    }
    cluster = {"synchronous": 1, "strict": False, "sharding": SHARDING}
    assert patroni_config.dynamic(cluster, {}, settings)["ignore_slots"] == [{"type": "logical", "plugin": "pgoutput"}]
    assert "ignore_slots" not in patroni_config.dynamic({**cluster, "sharding": {}}, {}, settings)
