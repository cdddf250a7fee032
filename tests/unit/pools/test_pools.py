"""The candidate pool: where it mirrors the stable one, and what role service makes of it."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.filter import service as filters
from ansible_collections.causeway.platform.plugins.module_utils import pools


def entry(host: str, slot: int, zone: str, service: str = "orders") -> dict[str, Any]:
    return {
        "service": service,
        "host": host,
        "slot": slot,
        "id": f"{host}-{slot}",
        "address": f"10.77.1.{30 + int(host[-1])}",
        "port": 7100 + slot,
        "zone": zone,
        "region": "north",
        "pool": "stable",
    }


def described(*placed: dict[str, Any]) -> dict[str, Any]:
    return {"name": "orders", "version": "1.0.0", "port": 8080, "index": 10, "instances": {"placed": list(placed)}}


PLACED = [
    entry("app1", 0, "a"),
    entry("app1", 1, "a"),
    entry("app2", 0, "b"),
    entry("app3", 0, "b"),
    entry("app4", 0, "c"),
    entry("app5", 0, "a"),
]


def test_a_candidate_mirrors_its_stable_instance() -> None:
    assert pools.candidates(described(entry("app1", 1, "a"))) == [
        {**entry("app1", 1, "a"), "slot": 6, "id": "app1-6", "port": 7106, "pool": "candidate"}
    ]


def test_the_full_mirror_has_every_host_and_zone_of_the_stable_pool() -> None:
    found = pools.candidates(described(*PLACED))
    assert sorted((item["host"], item["slot"] - 5, item["zone"]) for item in found) == sorted(
        (item["host"], item["slot"], item["zone"]) for item in PLACED
    )


@pytest.mark.parametrize("count", range(1, 7))
def test_few_candidates_are_spread_over_the_zones_and_more_only_add(count: int) -> None:
    service = described(*PLACED)
    found = pools.candidates(service, count)
    assert len(found) == count
    assert found == pools.candidates(service, 6)[:count]
    zones = Counter(item["zone"] for item in found)
    room = Counter(item["zone"] for item in PLACED)
    for zone, used in zones.items():
        for other, free in room.items():
            assert used <= zones[other] + 1 or zones[other] == free, (zone, other, zones)
    assert found == pools.candidates(described(*reversed(PLACED)), count), "the order of the description is no matter"


def test_wrong_counts_and_full_hosts_are_refused() -> None:
    with pytest.raises(pools.PoolsError, match=r"7 candidates asked for, allowed are 0 \(all\) to 6"):
        pools.candidates(described(*PLACED), 7)
    with pytest.raises(pools.PoolsError, match="per_host: slot 5 belongs to the candidate pool"):
        pools.candidates(described(entry("app1", 5, "a")))
    assert pools.candidates(described()) == []


def test_proxies_are_ready_for_what_exists_only() -> None:
    assert [item["slot"] for item in pools.mirrored_slots([entry("app1", slot, "a") for slot in range(10)])] == []
    assert [item["slot"] for item in pools.mirrored_slots([entry("app1", 0, "a"), entry("app1", 7, "a")])] == [5]


def test_the_token_is_the_one_of_the_contract() -> None:
    wanted = hmac.new(b"secret", b"pool/orders", hashlib.sha256).hexdigest()[:32]
    assert pools.pool_token("secret", "orders") == wanted
    assert pools.pool_token("secret", "catalog") != wanted
    assert pools.pool_token("", "orders") == ""


def plan(placed: list[dict[str, Any]], installed: dict[str, Any], **overrides: str) -> dict[str, Any]:
    keys = {key.replace("_", "@"): value for key, value in overrides.items()}
    image = {"archive": "/images/orders-{version}.tar", "reference": "", "repository": ""}
    entries = filters.service_with_candidates(placed, installed, list(keys))
    return filters.service_plan(
        entries, {"orders": {**described(*placed), "image": image}}, installed=installed, overrides=keys
    )


def test_a_release_adds_candidates_beside_what_runs_and_site_leaves_them_alone() -> None:
    stable = [entry("app1", 0, "a"), entry("app1", 1, "a")]
    before = plan(stable, {})
    installed = {f"orders@{slot}": {"version": "1.0.0"} for slot in (0, 1)}
    released = plan(stable, installed, orders_5="2.0.0")
    added = set(released["files"]) - set(before["files"])
    assert added == {
        "etc/containers/systemd/orders@5.container",
        "etc/containers/systemd/orders@5.container.d/version.conf",
        "etc/causeway/services/orders-5.env",
        "etc/causeway/agent/instances.d/orders-5.json",
    }
    assert all(released["files"][path] == content for path, content in before["files"].items()), "nothing else changes"
    agent = released["files"]["etc/causeway/agent/instances.d/orders-5.json"]["content"]
    assert '"pool": "candidate"' in agent
    assert '"port": 7105' in agent
    assert "IP=10.89.10.15\n" in released["files"]["etc/containers/systemd/orders@5.container"]["content"]
    site = plan(stable, {**installed, "orders@5": {"version": "2.0.0"}})
    assert site["files"] == released["files"]
    assert site["stale"] == []
    assert [item["key"] for item in site["instances"] if item["pool"] == "candidate"] == ["orders@5"]


def test_removing_a_candidate_leaves_the_files_of_before() -> None:
    stable = [entry("app1", 0, "a")]
    installed = {"orders@0": {"version": "1.0.0"}, "orders@5": {"version": "2.0.0"}}
    entries = filters.service_with_candidates(stable, installed)
    rest = filters.service_without(entries, "orders", [5])
    assert rest == stable
    image = {"archive": "/images/orders-{version}.tar", "reference": "", "repository": ""}
    after = filters.service_plan(rest, {"orders": {**described(*stable), "image": image}}, installed=installed)
    assert after["files"] == plan(stable, {"orders@0": {"version": "1.0.0"}})["files"]
    assert after["stale"] == [{"key": "orders@5", "unit": "orders@5.service"}]


def test_candidates_without_a_stable_instance_or_without_files_are_stale() -> None:
    other = [entry("app1", 0, "a", "catalog")]
    assert filters.service_with_candidates(other, {"orders@5": {"version": "2.0.0"}}) == other
    interrupted = {"orders@0": {"version": "1.0.0"}, "orders@5": {"version": "", "running": "2.0.0"}}
    assert plan([entry("app1", 0, "a")], interrupted)["stale"] == [{"key": "orders@5", "unit": "orders@5.service"}]
    with pytest.raises(AnsibleFilterError, match="orders@5: no instance of orders is placed on this host"):
        filters.service_with_candidates(other, {}, ["orders@5"])


def test_addresses_of_ten_slots_differ() -> None:
    stable = [entry("app1", slot, "a") for slot in range(5)]
    result = plan(stable, {}, **{f"orders_{slot}": "2.0.0" for slot in range(5, 10)})
    assert sorted(item["health_url"] for item in result["instances"]) == [
        f"http://10.89.10.{number}:8080/healthz" for number in range(10, 20)
    ]


# --- the baseline -------------------------------------------------------------------------------------------------


def with_baseline(*placed: dict[str, Any]) -> dict[str, Any]:
    return {**described(*placed), "release": {"strategy": "canary", "canary": {"baseline": True}}}


def test_a_baseline_stands_beside_each_candidate() -> None:
    service = with_baseline(*PLACED)
    for count in (1, 3, 0):
        ours, theirs = pools.candidates(service, count), pools.baselines(service, count)
        assert [(one["host"], one["slot"] + 2, one["port"] + 2) for one in ours] == [
            (one["host"], one["slot"], one["port"]) for one in theirs
        ]
        assert {one["pool"] for one in theirs} == {"baseline"}
    assert pools.baselines(described(*PLACED)) == []


def test_no_two_instances_of_a_host_share_a_port_and_all_stay_below_the_next_service() -> None:
    placed = [entry("app1", slot, "a") for slot in range(pools.BASELINE_PER_HOST)]
    service = with_baseline(*placed)
    ports = [one["port"] for one in [*placed, *pools.candidates(service), *pools.baselines(service)]]
    assert len(set(ports)) == len(ports) == 6
    assert max(ports) < 7110
    ready = pools.mirrored_slots(placed, baseline=True)
    assert sorted(one["port"] for one in ready) == sorted(set(ports) - {7100, 7101})
    assert [one["pool"] for one in pools.mirrored_slots(placed)] == ["candidate", "candidate"]


def test_no_room_for_a_baseline() -> None:
    with pytest.raises(pools.PoolsError, match=r"per_host: slot 2 has no room for a baseline; .* at most 2 instances"):
        pools.baselines(with_baseline(*(entry("app1", slot, "a") for slot in range(3))))


def test_weights_of_all_pools() -> None:
    assert pools.weights_of(10) == {"stable": 90, "candidate": 10}
    assert pools.weights_of(10, baseline=True) == {"stable": 80, "candidate": 10, "baseline": 10}
    assert pools.weights_of(50, baseline=True) == {"stable": 0, "candidate": 50, "baseline": 50}
    for weight in (0, 100):
        assert pools.weights_of(weight, baseline=True) == pools.weights_of(weight)
    with pytest.raises(pools.PoolsError, match="allowed are 0 to 50 and 100, got 51"):
        pools.weights_of(51, baseline=True)


def test_users_move_from_the_old_version_to_the_new_one_only() -> None:
    """Envoy walks the clusters in their order: at each place of the hash, never from candidate to another pool."""

    def pool_at(place: int, weight: int) -> str:
        split = pools.weights_of(weight, baseline=True)
        for pool in pools.pools_of(with_baseline()):
            place -= split.get(pool, 0)
            if place < 0:
                return pool
        raise AssertionError

    for place in range(100):
        seen = [pool_at(place, weight) for weight in (0, 1, 5, 20, 50, 100)]
        moves = [(a, b) for a, b in zip(seen, seen[1:]) if a != b]
        assert set(moves[:-1]) <= {("stable", "baseline"), ("stable", "candidate")}, (place, seen)
        assert seen[-1] == "candidate"
        assert all(a != "candidate" for a, _b in moves)


def test_a_host_knows_its_baseline_by_the_service() -> None:
    here = [entry("app1", 0, "a")]
    services = {"orders": with_baseline(*here)}
    installed = {"orders@5": {"version": "1.1.0"}, "orders@7": {"version": "1.0.0"}}
    found = filters.service_with_candidates(here, installed, [], services)
    assert [(one["slot"], one["pool"]) for one in found] == [(0, "stable"), (5, "candidate"), (7, "baseline")]
    plain = filters.service_with_candidates(here, installed)
    assert [one["pool"] for one in plain] == ["stable", "candidate", "candidate"]


def test_what_is_installed_keeps_its_pool_when_the_services_file_changes_during_a_release() -> None:
    here = [entry("app1", 0, "a")]
    installed = {
        "orders@0": {"version": "1.0.0", "pool": "stable"},
        "orders@5": {"version": "1.1.0", "pool": "candidate"},
        "orders@7": {"version": "1.0.0", "pool": "baseline"},
    }
    for services in ({"orders": with_baseline(*here)}, {"orders": described(*here)}):
        found = filters.service_with_candidates(here, installed, [], services)
        assert [(one["slot"], one["pool"]) for one in found] == [(0, "stable"), (5, "candidate"), (7, "baseline")]
    left = {"orders@7": {"version": "0.9.0", "pool": "candidate"}}
    (_stable, again) = filters.service_with_candidates(here, left, ["orders@7"], {"orders": with_baseline(*here)})
    assert again["pool"] == "baseline", "what a release puts there now is what it wants"


def test_site_leaves_a_baseline_alone_and_needs_no_image_for_it() -> None:
    here = [entry("app1", 0, "a")]
    image = {"archive": "/images/orders-{version}.tar", "reference": "", "repository": ""}
    services = {"orders": {**with_baseline(*here), "image": image}}
    installed = {"orders@0": {"version": "1.0.0"}, "orders@7": {"version": "0.9.0", "pool": "baseline"}}
    found = filters.service_plan(
        filters.service_with_candidates(here, installed, [], services), services, installed=installed
    )
    assert [one["archive"] for one in found["images"]] == ["/images/orders-1.0.0.tar"]
    assert (found["stale"], [one["pool"] for one in found["instances"]]) == ([], ["stable", "baseline"])
    agent = found["files"]["etc/causeway/agent/instances.d/orders-7.json"]["content"]
    assert '"pool": "baseline"' in agent
    assert '"version": "0.9.0"' in agent
    entries = filters.service_with_candidates(here, installed, [], services)
    assert filters.service_without(entries, "orders", [5, 7]) == here
