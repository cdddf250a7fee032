# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""etcd state to documents: safety rules, priorities, weights, revisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from causeway_agent.config import Proxy
from causeway_agent.view import Change, RegistryState, document, file_sd, load_assignment, parse_weights

PROXY = Proxy(
    "gateway",
    "/run/envoy/gateway/admin.sock",
    Path("/xds"),
    {"orders_stable": ("orders", "stable"), "orders_candidate": ("orders", "candidate")},
    {
        "main": {
            "name": "main",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/orders"},
                            "route": {
                                "weighted_clusters": {
                                    "clusters": [{"name": "orders_stable"}, {"name": "orders_candidate"}]
                                }
                            },
                        }
                    ],
                }
            ],
        }
    },
)


def entry(host: str, slot: int = 0, **more: Any) -> bytes:
    value = {"service": "orders", "instance": f"{host}-{slot}", "host": host, "slot": slot, "port": 7100 + slot}
    value |= {"address": f"10.0.0.{ord(host[-1]) - 48}", "zone": "north-a", "region": "north", "pool": "stable"}
    value |= {"version": "1.0.0", "weight": 1, **more}
    return json.dumps(value).encode()


def put(host: str, revision: int, slot: int = 0, **more: Any) -> Change:
    return Change(f"services/orders/{host}/{slot}", entry(host, slot, **more), revision)


def gone(host: str, revision: int, slot: int = 0) -> Change:
    return Change(f"services/orders/{host}/{slot}", None, revision)


def agent(host: str, revision: int, alive: bool = True) -> Change:
    return Change(f"agents/{host}", b"{}" if alive else None, revision)


def started(*hosts: str) -> RegistryState:
    state = RegistryState(grace=10.0)
    state.snapshot([c for h in hosts for c in (agent(h, 5), put(h, 5))], 5, 0.0)
    return state


def endpoints(state: RegistryState, now: float = 100.0, cluster: str = "orders_stable") -> dict[str, str]:
    content = state.proxy_view(PROXY, "north", now).documents[f"eds/{cluster}.json"].content
    return {
        e["endpoint"]["address"]["socket_address"]["address"]: e["health_status"]
        for group in json.loads(content)["resources"][0]["endpoints"]
        for e in group["lb_endpoints"]
    }


def test_deliberate_delete_acts_at_once_and_may_empty_the_pool() -> None:
    state = started("app1", "app2")
    state.apply([gone("app1", 6)], 100.0)
    assert set(endpoints(state)) == {"10.0.0.2"}
    state.apply([gone("app2", 7)], 100.0)
    assert endpoints(state) == {}


@pytest.mark.parametrize("order", [0, 1])
def test_lost_lease_leaves_only_while_another_endpoint_remains(order: int) -> None:
    state = started("app1", "app2")
    events = [agent("app1", 6, False), gone("app1", 6)]
    state.apply(events[::-1] if order else events, 100.0)
    assert set(endpoints(state)) == {"10.0.0.2"}
    state.apply([gone("app2", 7), agent("app2", 7, False)], 101.0)
    assert set(endpoints(state)) == {"10.0.0.1", "10.0.0.2"}, "the last known endpoints stay"
    state.apply([put("app1", 8), agent("app1", 8)], 102.0)
    assert set(endpoints(state)) == {"10.0.0.1"}


def test_a_draining_endpoint_does_not_count_as_remaining() -> None:
    state = started("app1", "app2")
    state.apply([Change("drains/orders/app1/0", b"{}", 6)], 100.0)
    state.apply([gone("app2", 7), agent("app2", 7, False)], 100.0)
    assert endpoints(state) == {"10.0.0.1": "DRAINING", "10.0.0.2": "HEALTHY"}


def test_delete_then_lost_lease_in_one_batch_stays_deliberate() -> None:
    state = started("app1")
    state.apply([gone("app1", 6), agent("app1", 7, False)], 100.0)
    assert endpoints(state) == {}


def test_agent_that_returns_without_an_instance_settles_it() -> None:
    state = started("app1")
    state.apply([gone("app1", 6), agent("app1", 6, False)], 100.0)
    assert set(endpoints(state)) == {"10.0.0.1"}
    state.apply([agent("app1", 7)], 100.0)
    assert endpoints(state) == {}


def test_removals_wait_for_grace_after_a_lost_connection() -> None:
    state = started("app1", "app2")
    state.disconnected(50.0)
    state.snapshot([agent("app2", 5), put("app2", 5)], 9, 100.0)
    assert set(endpoints(state, 100.1)) == {"10.0.0.1", "10.0.0.2"}
    assert set(endpoints(state, 109.9)) == {"10.0.0.1", "10.0.0.2"}
    assert set(endpoints(state, 110.1)) == {"10.0.0.2"}


def test_a_connection_that_moves_to_another_member_costs_no_time() -> None:
    state = started("app1", "app2")
    state.disconnected(97.0)
    state.snapshot([agent("app2", 5), put("app2", 5)], 9, 100.0)
    assert set(endpoints(state, 100.1)) == {"10.0.0.2"}


def test_explicit_delete_during_a_lost_connection_acts_at_once() -> None:
    state = started("app1", "app2")
    state.disconnected(50.0)
    state.snapshot([agent("app1", 5), agent("app2", 5), put("app2", 5)], 9, 100.0)
    assert set(endpoints(state, 100.0)) == {"10.0.0.2"}


def test_everything_lost_keeps_everything() -> None:
    state = started("app1", "app2")
    state.disconnected(50.0)
    state.snapshot([], 1, 100.0)
    assert set(endpoints(state, 500.0)) == {"10.0.0.1", "10.0.0.2"}


def test_lost_endpoints_are_forgotten_in_the_end() -> None:
    state = started("app1", "app2")
    state.apply([gone("app1", 6), agent("app1", 6, False)], 100.0)
    state.forget(3600.0)
    assert state.lost
    state.forget(3701.0)
    assert not state.lost


def test_a_last_resort_is_never_forgotten() -> None:
    state = started("app1")
    state.apply([gone("app1", 6), agent("app1", 6, False)], 100.0)
    state.forget(1e6)
    assert set(endpoints(state, 1e6)) == {"10.0.0.1"}


def test_state_survives_a_restart_with_grace() -> None:
    before = started("app1", "app2")
    before.apply([Change("traffic/orders", b'{"weights": {"stable": 10, "candidate": 90}}', 6)], 1.0)
    state = RegistryState.load(json.loads(json.dumps(before.dump())), 10.0)
    assert state.known and set(endpoints(state)) == {"10.0.0.1", "10.0.0.2"}
    state.snapshot([agent("app1", 5), put("app1", 5)], 9, 100.0)
    assert set(endpoints(state, 105.0)) == {"10.0.0.1", "10.0.0.2"}
    assert set(endpoints(state, 111.0)) == {"10.0.0.1"}


@pytest.mark.parametrize(
    ("change", "service"),
    [
        (put("app1", 9), "orders"),
        (gone("app1", 9), "orders"),
        (Change("drains/orders/app1/0", b"{}", 9), "orders"),
        (Change("drains/orders/app1/0", None, 9), "orders"),
        (Change("traffic/orders", b'{"weights": {"stable": 1}}', 9), "orders"),
        (Change("traffic/orders", None, 9), "orders"),
    ],
)
def test_every_event_moves_the_revision_of_its_service_only(change: Change, service: str) -> None:
    state = started("app1")
    state.apply([change], 1.0)
    assert state.revision_of(service) == 9
    assert state.revision_of("catalog") == 5


def test_a_snapshot_covers_deletes_that_were_missed() -> None:
    state = started("app1")
    state.disconnected(50.0)
    state.snapshot([agent("app1", 5), put("app1", 5)], 42, 1.0)
    assert state.revision_of("orders") == 42


def released(*hosts: str) -> RegistryState:
    """Stable instances on the hosts, and a candidate of each."""
    state = started(*hosts)
    state.apply([put(host, 6, 5, pool="candidate") for host in hosts], 0.5)
    return state


def weights(state: RegistryState) -> list[int]:
    content = state.proxy_view(PROXY, "north", 1.0).documents["rds/main.json"].content
    route = json.loads(content)["resources"][0]["virtual_hosts"][0]["routes"][0]["route"]
    return [cluster["weight"] for cluster in route["weighted_clusters"]["clusters"]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [100, 0]),
        (b'{"weights": {"stable": 95, "candidate": 5}}', [95, 5]),
        (b'{"weights": {"candidate": 100}}', [0, 100]),
        (b'{"weights": {"stable": 0, "candidate": 0}}', [100, 0]),
        (b'{"weights": {"stable": -1, "candidate": 2}}', [100, 0]),
        (b'{"weights": {"other": 7}}', [100, 0]),
        (b"not json", [100, 0]),
    ],
)
def test_weights(value: bytes | None, expected: list[int]) -> None:
    state = released("app1")
    if value is not None:
        state.apply([Change("traffic/orders", value, 6)], 1.0)
    assert weights(state) == expected


def test_a_bad_traffic_value_keeps_the_last_good_one_and_is_reported() -> None:
    state = released("app1")
    state.apply([Change("traffic/orders", b'{"weights": {"stable": 30, "candidate": 70}}', 7)], 1.0)
    state.apply([Change("traffic/orders", b"{}", 8)], 1.0)
    assert weights(state) == [30, 70]
    assert state.rejected == ["traffic/orders"]


def split(candidate: int, revision: int) -> Change:
    value = json.dumps({"weights": {"stable": 100 - candidate, "candidate": candidate}})
    return Change("traffic/orders", value.encode(), revision)


@pytest.mark.parametrize("weight", [5, 100])
def test_candidates_that_are_all_gone_give_their_weight_back_and_their_pool_ends_empty(weight: int) -> None:
    state = released("app1", "app2")
    state.apply([split(weight, 7)], 1.0)
    state.apply([gone("app1", 8, 5)], 2.0)
    assert weights(state) == [100 - weight, weight]
    state.apply([gone("app2", 9, 5)], 3.0)
    assert endpoints(state, cluster="orders_candidate") == {}
    assert weights(state) == [100, 0]
    assert state.proxy_view(PROXY, "north", 4.0).revisions == {"orders": 9}
    state.apply([put("app1", 10, 5, pool="candidate")], 5.0)
    assert weights(state) == [100 - weight, weight], "the weights are still what the release said"


def test_candidates_lost_with_their_hosts_keep_their_weight_and_endpoints() -> None:
    state = released("app1")
    state.apply([split(100, 7)], 1.0)
    state.apply([agent("app1", 8, alive=False), gone("app1", 8, 5)], 2.0)
    assert endpoints(state, cluster="orders_candidate") == {"10.0.0.1": "HEALTHY"}
    assert weights(state) == [0, 100]


def test_a_stable_pool_that_is_gone_does_not_promote_the_candidates() -> None:
    state = released("app1")
    state.apply([gone("app1", 7)], 1.0)
    assert weights(state) == [100, 0]


def test_draining_candidates_take_no_new_requests() -> None:
    state = released("app1")
    state.apply([split(50, 7), Change("drains/orders/app1/5", b"{}", 8)], 1.0)
    assert weights(state) == [100, 0]
    assert endpoints(state, cluster="orders_candidate") == {"10.0.0.1": "DRAINING"}


# --- the baseline: the old version, so what it cannot take is stable's ---------------------------------------------

THREE = Proxy(
    "gateway",
    "/sock",
    Path("/xds"),
    {f"orders_{pool}": ("orders", pool) for pool in ("baseline", "stable", "candidate")},
    {
        "main": {
            "name": "main",
            "weighted_clusters": {
                "clusters": [{"name": f"orders_{pool}"} for pool in ("baseline", "stable", "candidate")]
            },
        }
    },
)


def three(weight: int, *hosts: str) -> RegistryState:
    """Stable, a candidate and a baseline on each host; the candidates and the baseline have `weight` each."""
    state = released(*hosts)
    state.apply([put(host, 7, 7, pool="baseline") for host in hosts], 0.5)
    value = {"weights": {"stable": 100 - 2 * weight, "candidate": weight, "baseline": weight}}
    state.apply([Change("traffic/orders", json.dumps(value).encode(), 8)], 1.0)
    return state


def shares(state: RegistryState, proxy: Proxy = THREE, now: float = 100.0) -> dict[str, int]:
    resource = json.loads(state.proxy_view(proxy, "north", now).documents["rds/main.json"].content)["resources"][0]
    if "virtual_hosts" in resource:
        resource = resource["virtual_hosts"][0]["routes"][0]["route"]
    return {one["name"].partition("_")[2]: one["weight"] for one in resource["weighted_clusters"]["clusters"]}


@pytest.mark.parametrize("weight", [5, 50])
def test_a_baseline_has_its_share_as_long_as_one_of_it_lives(weight: int) -> None:
    state = three(weight, "app1", "app2")
    whole = {"baseline": weight, "stable": 100 - 2 * weight, "candidate": weight}
    assert shares(state) == whole
    state.apply([gone("app1", 9, 7)], 2.0)
    assert shares(state) == whole
    state.apply([gone("app2", 10, 7)], 3.0)
    assert shares(state) == {"baseline": 0, "stable": 100 - weight, "candidate": weight}
    assert state.proxy_view(THREE, "north", 4.0).revisions == {"orders": 10}
    state.apply([put("app1", 11, 7, pool="baseline")], 5.0)
    assert shares(state) == whole, "the weights are still what the release said"


def test_a_draining_baseline_gives_its_share_to_stable() -> None:
    state = three(10, "app1")
    state.apply([Change("drains/orders/app1/7", b"{}", 9)], 2.0)
    assert shares(state) == {"baseline": 0, "stable": 90, "candidate": 10}


def test_a_baseline_lost_with_its_host_is_nobodys_last_resort_while_stable_serves() -> None:
    state = three(50, "app1", "app2")
    state.apply([gone("app2", 9, 7)], 2.0)
    lost = [agent("app1", 10, alive=False), gone("app1", 10), gone("app1", 10, 5), gone("app1", 10, 7)]
    state.apply(lost, 3.0)
    view = state.proxy_view(THREE, "north", 100.0)
    assert json.loads(view.documents["eds/orders_baseline.json"].content)["resources"][0]["endpoints"] == []
    assert shares(state) == {"baseline": 0, "stable": 50, "candidate": 50}


def test_a_baseline_stays_when_all_of_the_old_version_was_lost_or_etcd_is() -> None:
    state = three(10, "app1")
    state.apply([agent("app1", 9, alive=False), gone("app1", 9), gone("app1", 9, 5), gone("app1", 9, 7)], 2.0)
    assert shares(state) == {"baseline": 10, "stable": 80, "candidate": 10}, "the last known ones stay"
    cut = three(10, "app1", "app2")
    cut.disconnected(2.0)
    assert shares(cut) == {"baseline": 10, "stable": 80, "candidate": 10}


def test_all_at_once_gone_but_stable() -> None:
    state = three(50, "app1")
    state.apply([gone("app1", 9, 5), gone("app1", 10, 7)], 2.0)
    assert shares(state) == {"baseline": 0, "stable": 100, "candidate": 0}


def test_a_stable_pool_that_is_gone_never_gives_the_baselines_share_to_candidates() -> None:
    state = three(10, "app1")
    state.apply([gone("app1", 9), gone("app1", 10, 7)], 2.0)
    assert shares(state)["candidate"] == 10


@pytest.mark.parametrize("weight", [10, 50])
def test_a_proxy_that_knows_no_baseline_gives_its_share_to_stable(weight: int) -> None:
    """Its configuration is older than the service's file, or newer: the candidates must not get more than theirs."""
    assert shares(three(weight, "app1"), PROXY) == {"stable": 100 - weight, "candidate": weight}


def ways_of(state: RegistryState) -> tuple[list[str], list[str]]:
    """Names of the routes that are left, and the clusters that are mirrored to."""
    route = {
        "name": "main",
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [
                    {"name": "test", "match": {"prefix": "/"}, "route": {"cluster": "orders_candidate"}},
                    {
                        "name": "cohort",
                        "match": {"prefix": "/"},
                        "route": {"cluster": "orders_candidate"},
                        "metadata": {"filter_metadata": {"causeway": {"needs": "orders_candidate"}}},
                    },
                    {
                        "name": "all",
                        "match": {"prefix": "/"},
                        "route": {
                            "weighted_clusters": {
                                "clusters": [{"name": "orders_stable"}, {"name": "orders_candidate"}]
                            },
                            "request_mirror_policies": [{"cluster": "orders_candidate"}, {"cluster": "somewhere_else"}],
                        },
                    },
                ],
            }
        ],
    }
    proxy = Proxy("gateway", "/sock", Path("/xds"), PROXY.clusters, {"main": route})
    document = state.proxy_view(proxy, "north", 100.0).documents["rds/main.json"]
    assert document.services == {"orders"}
    routes = json.loads(document.content)["resources"][0]["virtual_hosts"][0]["routes"]
    mirrors = [policy["cluster"] for policy in routes[-1]["route"].get("request_mirror_policies", [])]
    return [route["name"] for route in routes], mirrors


def test_cohorts_and_mirroring_follow_the_candidates() -> None:
    state = started("app1")
    assert ways_of(state) == (["test", "all"], ["somewhere_else"]), "no release"
    state.apply([put("app1", 6, 5, pool="candidate")], 1.0)
    assert ways_of(state) == (["test", "all"], ["orders_candidate", "somewhere_else"]), "candidates are tested"
    state.apply([split(5, 7)], 2.0)
    assert ways_of(state) == (["test", "cohort", "all"], ["somewhere_else"]), "candidates take traffic"
    state.apply([gone("app1", 8, 5)], 3.0)
    assert ways_of(state) == (["test", "all"], ["somewhere_else"]), "they died"


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        b"[]",
        b"{}",
        entry("app1", address="not-an-ip"),
        entry("app1", port=0),
        entry("app1", port="x"),
        entry("app1", service="other"),
    ],
)
def test_unusable_entries_never_reach_envoy(value: bytes) -> None:
    state = started("app2")
    state.apply([Change("services/orders/app1/0", value, 6)], 1.0)
    assert set(endpoints(state)) == {"10.0.0.2"}
    assert state.rejected == ["services/orders/app1/0"]


def test_assignment_priorities_localities_and_order() -> None:
    entries = {
        "orders/b/0": json.loads(entry("app2", region="south", zone="south-a")),
        "orders/a/1": json.loads(entry("app1", 1, weight=3)),
        "orders/a/0": json.loads(entry("app1", zone="north-b")),
    }
    got = load_assignment("orders_stable", entries, {"orders/a/1"}, "north")
    again = load_assignment("orders_stable", dict(reversed(entries.items())), {"orders/a/1"}, "north")
    assert got == again
    shape = [
        (g["priority"], g["locality"]["region"], g["locality"]["zone"], len(g["lb_endpoints"]))
        for g in got["endpoints"]
    ]
    assert shape == [(0, "north", "north-a", 1), (0, "north", "north-b", 1), (1, "south", "south-a", 1)]
    first = got["endpoints"][0]["lb_endpoints"][0]
    assert first == {
        "endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 7101}}},
        "health_status": "DRAINING",
        "load_balancing_weight": 3,
        "metadata": {"filter_metadata": {"envoy.lb": {"instance": "app1-1", "version": "1.0.0"}}},
    }


def test_empty_pool_is_a_valid_document_and_versions_follow_content() -> None:
    state = RegistryState()
    empty = state.proxy_view(PROXY, "north", 0.0).documents["eds/orders_stable.json"]
    assert json.loads(empty.content)["resources"][0]["endpoints"] == []
    assert json.loads(empty.content)["version_info"] == empty.version
    assert document({"a": 1, "b": 2}, frozenset()).version == document({"b": 2, "a": 1}, frozenset()).version
    assert document({"a": 1}, frozenset()).version != document({"a": 2}, frozenset()).version


def test_drains_of_a_view() -> None:
    state = started("app1")
    state.apply([Change("drains/orders/app1/0", b"{}", 6), Change("drains/orders/app9/3", b"{}", 6)], 1.0)
    assert state.proxy_view(PROXY, "north", 1.0).drains == {"orders": {"app1/0": "10.0.0.1:7100", "app9/3": ""}}


def test_file_sd_groups_by_job() -> None:
    documents = file_sd(
        {
            "b": [{"job": "node", "address": "10.0.0.2:9100", "labels": {"zone": "z"}}],
            "a": [
                {"job": "node", "address": "10.0.0.1:9100", "labels": {}},
                {"job": "agent", "address": "x:1", "labels": {}},
            ],
        }
    )
    assert sorted(documents) == ["agent", "node"]
    assert [g["targets"] for g in json.loads(documents["node"])] == [["10.0.0.1:9100"], ["10.0.0.2:9100"]]
    assert json.loads(documents["node"])[1]["labels"] == {"host": "b", "zone": "z"}


@pytest.mark.parametrize("value", [b"1", b'{"weights": []}', b'{"weights": {"a": "x"}}', b'{"weights": {}}'])
def test_bad_weights(value: bytes) -> None:
    assert parse_weights(value) is None
