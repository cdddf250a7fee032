"""Plans of judged releases: where candidates go, and what a run does with what an earlier one left."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.filter.release_pools import release_decide
from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.causeway.platform.plugins.module_utils.release_pools import pool_plan

PLACES = (("app1", "a"), ("app2", "b"), ("app3", "c"))


def stable(host: str, zone: str, slot: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "service": "orders",
        "id": f"{host}-{slot}",
        "host": host,
        "slot": slot,
        "zone": zone,
        "region": "north",
        "address": "10.0.0.1",
        "port": 7100 + slot,
        "pool": "stable",
        "version": "1.0.0",
        **changes,
    }


SERVICE: dict[str, Any] = {
    "name": "orders",
    "version": "1.0.0",
    "instances": {"min": 2, "placed": [stable(*place) for place in PLACES]},
    "release": {
        "strategy": "canary",
        "batch": 1,
        "canary": {"steps": [{"weight": 10, "duration": 30.0}, {"weight": 50, "duration": 30.0}], "instances": 0},
        "blue_green": {"bake": 30.0},
        "analysis": {"interval": 30.0},
    },
}
LIVE = [stable(*place) for place in PLACES]


def plan(version: str = "1.1.0", strategy: str = "", **known: Any) -> dict[str, Any]:
    return pool_plan(SERVICE, version, strategy, {"instances": LIVE, **known}, identifier="new").as_dict()


def record(state: str, step: int = 0, **changes: Any) -> dict[str, Any]:
    release = {
        "id": "old",
        "strategy": "canary",
        "version": "1.1.0",
        "from": "1.0.0",
        "state": state,
        "step": step,
        **changes,
    }
    return {"current": "1.0.0", "state": "canary", "release": release}


def test_a_canary_gets_enough_candidates_for_its_largest_weight() -> None:
    found = plan()
    assert (found["action"], found["id"], found["undo"]) == ("start", "new", "1.0.0")
    assert found["candidates"] == {"app1": [5], "app2": [5]}
    assert found["deploy"] == found["candidates"]
    assert found["grow"] == {"app3": [5]}  # before all traffic is theirs
    assert found["leftovers"] == {"app1": [5], "app2": [5], "app3": [5]}
    assert found["slots"] == {"app1": [0], "app2": [0], "app3": [0]}
    assert found["serial"] == [1, 1, 1]
    assert [one["weight"] for one in found["steps"]] == [10, 50, 100]


def test_blue_green_mirrors_the_whole_pool() -> None:
    found = plan(strategy="blue_green")
    assert found["candidates"] == {"app1": [5], "app2": [5], "app3": [5]}
    assert (found["grow"], found["shift_checks"]) == ({}, 0)


def test_a_dead_release_goes_on_in_its_step() -> None:
    candidates = [stable("app1", "a", 5, pool="candidate", version="1.1.0")]
    found = plan(instances=[*LIVE, *candidates], release=record("shifting", 1))
    assert (found["action"], found["id"], found["cursor"]["step"]) == ("resume", "old", 1)
    assert found["deploy"] == {"app2": [5]}


def test_a_promoted_release_only_settles_what_is_not_settled() -> None:
    half = [stable("app1", "a", version="1.1.0"), *LIVE[1:], stable("app1", "a", 5, pool="candidate", version="1.1.0")]
    found = plan(instances=half, release=record("promoted", 2))
    assert (found["action"], found["shift_checks"], found["bake_checks"]) == ("settle", 0, 0)
    assert found["hosts"] == ["app2", "app3"]


def test_what_a_dead_release_left_is_removed_in_the_end() -> None:
    stray = stable("app3", "c", 5, pool="candidate", version="0.9.0")
    ended = record("rolled back")
    found = plan(instances=[*LIVE, stray], release={**ended, "state": "rolled back"})
    assert found["action"] == "start"
    assert found["leftovers"]["app3"] == [5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"version": "1.0.0"}, "already live"),
        ({"version": ""}, "no version before"),
        ({"version": "a b"}, "is not a version"),
        ({"strategy": "rolling"}, "not judged; allowed: blue_green, canary"),
        ({"version": "2.0.0", "release": record("shifting")}, "under way"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        plan(**arguments)


def with_baseline(**changes: Any) -> dict[str, Any]:
    canary = {**SERVICE["release"]["canary"], "baseline": True}
    return {**SERVICE, "release": {**SERVICE["release"], "canary": canary, **changes}}


def of_three(*, service: dict[str, Any] | None = None, strategy: str = "", **known: Any) -> dict[str, Any]:
    facts = {"instances": LIVE, **known}
    return pool_plan(service or with_baseline(), "1.1.0", strategy, facts, identifier="new").as_dict()


BESIDE = [
    *(stable(host, zone, 5, pool="candidate", version="1.1.0") for host, zone in PLACES),
    *(stable(host, zone, 7, pool="baseline") for host, zone in PLACES[:2]),
]


def test_a_baseline_is_deployed_beside_the_candidates_and_goes_with_them() -> None:
    service = with_baseline()
    found = of_three()
    assert found["baseline"] == found["baseline_deploy"] == {"app1": [7], "app2": [7]}
    assert found["leftovers"] == {"app1": [5, 7], "app2": [5, 7], "app3": [5]}
    assert [one["weights"] for one in found["steps"]] == [
        {"stable": 80, "candidate": 10, "baseline": 10},
        {"stable": 0, "candidate": 50, "baseline": 50},
        {"stable": 0, "candidate": 100},
    ]
    running = [*LIVE, stable("app1", "a", 7, pool="baseline")]
    again = pool_plan(service, "1.1.0", "", {"instances": running, "release": record("shifting")}, identifier="new")
    assert again.baseline_deploy == {"app2": [7]}
    green = pool_plan(service, "1.1.0", "blue_green", {"instances": LIVE}, identifier="new")
    assert (green.baseline, green.steps[0]["weights"]) == ({}, {"stable": 0, "candidate": 100})


def test_a_baseline_of_another_version_is_replaced() -> None:
    old = stable("app1", "a", 7, pool="baseline", version="0.9.0")
    found = of_three(instances=[*LIVE, old])
    assert found["action"] == "start"
    assert found["baseline_deploy"] == {"app1": [7], "app2": [7]}


def test_with_all_traffic_on_the_candidates_no_baseline_is_put_in_place_again() -> None:
    gone = [one for one in BESIDE if (one["host"], one["slot"]) != ("app2", 7)]
    shifting = of_three(instances=[*LIVE, *gone], release=record("shifting", 1))
    assert shifting["baseline_deploy"] == {"app2": [7]}
    baking = of_three(instances=[*LIVE, *gone], release=record("baking", 2))
    assert (baking["action"], baking["baseline_deploy"]) == ("resume", {})
    assert baking["baseline"] == shifting["baseline"], "the judge still knows what it compared with"
    assert baking["leftovers"] == {"app1": [5, 7], "app2": [5, 7], "app3": [5]}


@pytest.mark.parametrize("service", [with_baseline(), SERVICE], ids=["as it was", "its file says no baseline by now"])
def test_a_dead_release_with_a_baseline_is_undone_or_settled_and_leaves_nothing(service: dict[str, Any]) -> None:
    everything = {"app1": [5, 7], "app2": [5, 7], "app3": [5]}
    known = {"instances": [*LIVE, *BESIDE], "release": record("shifting", 1)}
    undone = of_three(service=service, **known, command={"command": "abort", "by": "me", "release": "old"})
    assert (undone["action"], undone["undo"], undone["leftovers"]) == ("undo", "1.0.0", everything)
    known["release"] = record("promoted", 2)
    settled = of_three(service=service, **known)
    assert (settled["action"], settled["leftovers"], settled["bake_checks"]) == ("settle", everything, 0)
    ended = {**record("rolled back"), "state": "rolled back"}
    again = of_three(service=service, instances=[*LIVE, *BESIDE[-1:]], release=ended)
    assert (again["action"], again["leftovers"]) == (
        "start",
        everything if service is not SERVICE else {"app1": [5], "app2": [5, 7], "app3": [5]},
    )


def test_weight_that_an_ended_release_left_on_a_baseline_is_seen() -> None:
    weights = {"stable": 90, "candidate": 0, "baseline": 10}
    found = of_three(traffic={"weights": weights})
    assert "left over" in found["reason"]


def test_other_strategies_have_no_baseline_whatever_the_file_says() -> None:
    green = of_three(strategy="blue_green")
    assert (green["baseline"], green["baseline_deploy"]) == ({}, {})
    by_file = of_three(service=with_baseline(strategy="blue_green"), strategy="canary")
    assert by_file["baseline"] == {}, "proxies have such a pool for strategy canary only"


def test_no_room_for_a_baseline_is_one_sentence() -> None:
    placed = [stable("app1", "a", slot) for slot in range(3)]
    service = {**with_baseline(), "instances": {"min": 1, "placed": placed}}
    with pytest.raises(ReleaseError, match="slot 2 has no room for a baseline; allowed with"):
        pool_plan(service, "1.1.0", "", {"instances": placed}, identifier="new")
    steep = with_baseline()
    steep["release"]["canary"] = {**steep["release"]["canary"], "steps": [{"weight": 60, "duration": 30.0}]}
    with pytest.raises(ReleaseError, match="allowed are 0 to 50 and 100, got 60"):
        of_three(service=steep)


def test_what_follows_from_a_verdict_does_not_depend_on_the_pools() -> None:
    found = release_decide(of_three(), {"step": 0}, "pass", "fine")
    assert found == release_decide(plan(), {"step": 0}, "pass", "fine")
    assert (found["action"], found["step"]) == ("next", 1)


def test_without_a_baseline_the_weights_are_as_ever() -> None:
    assert [one["weights"]["stable"] for one in plan()["steps"]] == [90, 50, 0]
    assert plan()["baseline"] == {}
