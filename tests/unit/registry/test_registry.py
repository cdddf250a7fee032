# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about the registry's content and members, without an etcd."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd_member, registry
from ansible_collections.causeway.platform.plugins.module_utils.etcd import KeyValue, Member, Permission, Status
from ansible_collections.causeway.platform.plugins.module_utils.etcd_member import Probe, plan_start
from ansible_collections.causeway.platform.plugins.module_utils.registry import MemberHealth, RegistryError

KEYS = registry.Keys("shop")
URLS = {name: f"https://{name}:2380" for name in ("core1", "core2", "core3", "core4")}


def mirror(**values: Any) -> registry.Mirror:
    """A mirror of ``services__orders__app1__0={...}``; the n-th key has revision n."""
    kvs = [
        KeyValue(KEYS.of(*name.split("__")), json.dumps(value).encode(), mod_revision=number)
        for number, (name, value) in enumerate(values.items(), 1)
    ]
    return registry.Mirror.of(KEYS, kvs, len(kvs))


def probe(name: str, data: bool = False, founding: bool = False, live: list[str] | None = None) -> Probe:
    members = None if live is None else [URLS[one] for one in live]
    return Probe(name, URLS[name], data, founding, members)


@pytest.mark.parametrize(
    ("probes", "plan"),
    [
        # Bare hosts.
        ([probe("core1"), probe("core2"), probe("core3")], ["bootstrap"] * 3),
        # All run, all is well.
        ([probe(name, True, live=["core1", "core2", "core3"]) for name in ("core1", "core2", "core3")], ["start"] * 3),
        # The first lost its data while the others live.
        (
            [probe("core1", live=["core1", "core2", "core3"]), probe("core2", True), probe("core3", True)],
            ["join", "start", "start"],
        ),
        # The first was removed and has stale data.
        (
            [probe("core1", True, live=["core2", "core3"]), probe("core2", True), probe("core3", True)],
            ["join", "start", "start"],
        ),
        # The first is new.
        (
            [probe("core1"), probe("core2", True, live=["core2", "core3"]), probe("core3", True)],
            ["join", "start", "start"],
        ),
        # Power came back everywhere, one disk did not.
        ([probe("core1"), probe("core2", True), probe("core3", True)], ["join", "start", "start"]),
        # The run that founded it was cut short after the first host.
        ([probe("core1", True, founding=True), probe("core2"), probe("core3")], ["start", "bootstrap", "bootstrap"]),
    ],
    ids=["bare", "running", "lost data", "stale data", "new host", "stopped", "cut short"],
)
def test_plan_start(probes: list[Probe], plan: list[str]) -> None:
    assert plan_start(["core1", "core2", "core3"], probes) == dict(zip([one.name for one in probes], plan))


def test_nothing_is_founded_with_a_part_of_the_hosts() -> None:
    with pytest.raises(RegistryError, match="not reached: core1"):
        plan_start(["core1", "core2", "core3"], [probe("core2"), probe("core3")])
    with pytest.raises(RegistryError, match="none of the hosts"):
        plan_start(["core1"], [])


def health(name: str, reason: str = "", learner: bool = False, leader: bool = False, index: int = 1) -> MemberHealth:
    number = int(name[-1])
    member = Member(number, name, (URLS[name],), (f"https://{name}:2379",), learner)
    status = Status(name, number, number if leader else 9, "3.5.16", 1, 1, index, 1, 1, learner)
    return MemberHealth(member, None if reason else status, reason)


@pytest.mark.parametrize(
    ("cluster", "restart", "remove"),
    [
        ([health("core1")], "", "only member"),
        ([health("core1"), health("core2")], "2 members need 2", ""),
        ([health("core1"), health("core2"), health("core3")], "", ""),
        (
            [health("core1"), health("core2", "dead"), health("core3")],
            "core2 is not healthy",
            "2 must be healthy, 1 are",
        ),
        ([health("core1", "dead"), health("core2"), health("core3")], "", ""),
        ([health("core1"), health("core2"), health("core3", learner=True)], "2 members need 2", ""),
        ([health("core1", learner=True), health("core2")], "", ""),
    ],
)
def test_when_a_member_may_go(cluster: list[MemberHealth], restart: str, remove: str) -> None:
    for obstacles, words in (
        (etcd_member.restart_obstacles(cluster, 1), restart),
        (etcd_member.removal_obstacles(cluster, 1), remove),
    ):
        assert bool(obstacles) == bool(words)
        assert words in "; ".join(obstacles)


def test_successor_is_fit_and_far() -> None:
    cluster = [
        health("core1", leader=True),
        health("core2", "dead"),
        health("core3", index=5),
        health("core4", index=7),
    ]
    assert etcd_member.successor(cluster, 1) == 4
    assert etcd_member.successor(cluster[:2], 1) == 0


def test_settings_of_the_running_process() -> None:
    wanted = etcd_member.parse_environment("# x\nETCD_NAME=a\nETCD_LOG_LEVEL=info\n\nETCD_LISTEN=b=c\n")
    assert wanted == {"ETCD_NAME": "a", "ETCD_LOG_LEVEL": "info", "ETCD_LISTEN": "b=c"}
    running = {**wanted, "HOME": "/", "ETCD_INITIAL_CLUSTER": "x", "ETCD_INITIAL_CLUSTER_STATE": "new"}
    assert etcd_member.environment_changes(wanted, running) == []
    running.pop("ETCD_LISTEN")
    assert etcd_member.environment_changes(wanted, {**running, "ETCD_LOG_LEVEL": "warn", "ETCD_X": "1"}) == [
        "ETCD_LISTEN",
        "ETCD_LOG_LEVEL",
        "ETCD_X",
    ]


def test_time_of_systemd() -> None:
    assert etcd_member.systemd_seconds("Sun 2026-11-22 15:44:54.814214 UTC") == pytest.approx(1795362294.814214)
    assert etcd_member.systemd_seconds("") == 0


def test_initial_cluster_of_a_joining_member() -> None:
    members = [
        Member(1, "core1", ("https://1:2380",), ()),
        Member(2, "", ("https://2:2380",), ()),
        Member(10, "", ("https://3:2380",), ()),
    ]
    assert etcd_member.cluster_after_add(members, 2, "core2") == (
        "core1=https://1:2380,core2=https://2:2380,unstarted-a=https://3:2380"
    )


# --- content ----------------------------------------------------------------------------------------------------


def acks(revision: int, **active: int) -> Any:
    entry: dict[str, Any] = {"revision": revision, "at": "2026-11-22T16:49:14.292Z"}
    if active:
        entry["active"] = {name.replace("_", "/"): count for name, count in active.items()}
    return {"services": {"orders": entry}}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "acknowledged revision 0, 5 is needed"),
        (acks(4), "acknowledged revision 4, 5 is needed"),
        (acks(5), "has not reported its requests in flight to app1/0"),
        (acks(5, app2_0=0), "has not reported its requests in flight to app1/0"),
        (acks(9, app1_0=2), "2 requests in flight to app1/0"),
        (acks(5, app1_0=0, app2_0=3), ""),
    ],
)
def test_waiting_for(said: Any, words: str) -> None:
    state = mirror(
        services__orders__app1__0={},
        proxies__edge1__gateway={"services": ["orders"]},
        proxies__edge2__gateway={"services": ["catalog"]},
        acks__edge1__gateway=said,
        # Of a proxy that is gone.
        acks__edge9__gateway=acks(1),
    )
    missing = registry.waiting_for(state, "orders", 5, ["app1/0", "app3/0"])
    assert missing == ({"edge1/gateway": words} if words else {})


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"stable": 90, "candidate": 11}, "sum up to 100, not 101"),
        ({"stable": 101, "candidate": -1}, "0 to 100"),
        ({"stable": "x"}, "whole numbers"),
        ({"stable": 100, "baseline": None}, "whole numbers"),
        ({"stable": 101, "baseline": -1}, "0 to 100"),
        ({"stable": 90, "candidate": 10, "baseline": 10}, "sum up to 100, not 110"),
        ({"green": 100}, "unknown pool 'green'"),
        ({}, "not 0"),
    ],
)
def test_bad_weights(weights: dict[str, Any], words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        registry.check_weights(weights)


@pytest.mark.parametrize(
    ("weights", "clean"),
    [
        ({"candidate": "100"}, {"stable": 0, "candidate": 100}),
        ({"stable": 80, "candidate": 10, "baseline": 10}, {"stable": 80, "candidate": 10, "baseline": 10}),
        ({"candidate": 50, "baseline": 50}, {"stable": 0, "candidate": 50, "baseline": 50}),
        ({"stable": 100, "candidate": 0, "baseline": 0}, {"stable": 100, "candidate": 0}),
        ({"stable": 100, "baseline": "0"}, {"stable": 100, "candidate": 0}),
    ],
)
def test_weights_name_a_baseline_only_while_it_has_some(weights: dict[str, Any], clean: dict[str, int]) -> None:
    assert registry.check_weights(weights) == clean


def test_a_baseline_without_instances_gets_no_traffic() -> None:
    state = mirror(services__orders__app1__0={}, services__orders__app1__5={"pool": "candidate"})
    wanted = registry.check_weights({"stable": 80, "candidate": 10, "baseline": 10})
    with pytest.raises(RegistryError, match="pool 'baseline' of service orders would get 10 % but has no registered"):
        registry.check_pools(state, "orders", wanted)


def test_history_is_bounded_and_completed() -> None:
    record: dict[str, Any] = {}
    for number in range(30):
        record = registry.merge_release(record, {"current": str(number)}, {"version": str(number), "started": "t"}, 20)
    assert [one["version"] for one in record["history"]] == [str(number) for number in range(10, 30)]
    done = registry.merge_release(record, {}, {"version": "29", "started": "t", "outcome": "live"}, 20)
    assert done["history"][-1] == {"version": "29", "started": "t", "outcome": "live"}
    assert len(done["history"]) == 20
    assert registry.merge_release(done, {"state": None}, None, 20) == done


def test_roles_cover_own_keys_only() -> None:
    roles = registry.wanted_roles(KEYS, {"app1": ["orders"]})
    assert roles["reader-shop"] == {Permission("READ", "/causeway/shop/", "/causeway/shop0")}
    assert roles["host-app1"] == {
        Permission("WRITE", "/causeway/shop/agents/app1"),
        Permission("WRITE", "/causeway/shop/targets/app1"),
        Permission("WRITE", "/causeway/shop/proxies/app1/", "/causeway/shop/proxies/app10"),
        Permission("WRITE", "/causeway/shop/acks/app1/", "/causeway/shop/acks/app10"),
        Permission("WRITE", "/causeway/shop/services/orders/app1/", "/causeway/shop/services/orders/app10"),
    }


def test_a_database_has_its_own_keys_only() -> None:
    roles = registry.wanted_roles(KEYS, {}, ["orders"])
    assert roles["database-orders"] == {Permission("READWRITE", "/patroni/shop/orders/", "/patroni/shop/orders0")}
    with pytest.raises(RegistryError, match="databases: 'Orders' is not a DNS label"):
        registry.wanted_roles(KEYS, {}, ["Orders"])


def test_an_object_storage_has_its_own_keys_only() -> None:
    assert "object-storage" not in registry.wanted_roles(KEYS, {})
    roles = registry.wanted_roles(KEYS, {}, object_storage=True)
    assert roles["object-storage"] == {
        Permission("READWRITE", "/object-storage/shop/", "/object-storage/shop0"),
    }
    steps = registry.plan_auth(KEYS, registry.AuthState(True, {}, {}), {}, "s" * 32, object_storage=True)
    assert ("user_grant", "object-storage", "object-storage") in steps
    # It goes with the object storage.
    have = registry.AuthState(True, {"object-storage": frozenset()}, {"object-storage": frozenset()})
    assert ("user_delete", "object-storage") in registry.plan_auth(KEYS, have, {}, "s" * 32)


def test_a_thousand_hosts_are_planned_at_once() -> None:
    hosts = {f"app{number}": ["orders", "catalog"] for number in range(1000)}
    empty = registry.AuthState(False, {}, {})
    assert len(registry.plan_auth(KEYS, empty, hosts, "s" * 32)) > 8000


def test_placed_services() -> None:
    services = {"orders": {"instances": {"placed": [{"host": "app1"}, {"host": "app1"}]}}, "catalog": {}}
    assert registry.placed_services(["app1", "edge1"], services) == {"app1": ["orders"], "edge1": []}
    with pytest.raises(RegistryError, match="app1, which is not a host"):
        registry.placed_services(["edge1"], services)


def test_endpoints_and_peers() -> None:
    hosts = {"b": {"address": "10.0.0.2", "components": ["registry"]}, "a": {"address": "10.0.0.1", "components": []}}
    assert registry.endpoints(hosts) == ["https://10.0.0.2:2379"]
    assert registry.peers(hosts) == {"b": "https://10.0.0.2:2380"}


def test_damaged_value_names_its_key() -> None:
    state = registry.Mirror.of(KEYS, [KeyValue(KEYS.of("traffic", "orders"), b"{", mod_revision=7)], 7)
    with pytest.raises(RegistryError, match="/causeway/shop/traffic/orders at revision 7 does not hold JSON"):
        registry.weights(state, "orders")
