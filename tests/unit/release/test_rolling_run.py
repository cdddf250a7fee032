"""What a run of release_rolling does with the record that it finds, and what follows after each batch."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import release_record
from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError, status_lines
from ansible_collections.causeway.platform.plugins.module_utils.release_rolling import (
    HOLDS,
    Run,
    decide_batch,
    instance_sides,
    rolling_run,
)

PLACED = [
    {"host": host, "slot": slot, "id": f"{host}-{slot}", "zone": zone, "region": "north"}
    for host, slot, zone in (("app1", 0, "a"), ("app1", 1, "a"), ("app2", 0, "b"), ("app3", 0, "c"))
]
SERVICE = {
    "name": "orders",
    "version": "1.0.0",
    "instances": {"min": 1, "placed": PLACED},
    "release": {"batch": 1},
}


def live(*versions: str, draining: int = -1) -> list[dict[str, Any]]:
    return [
        {**one, "instance": one["id"], "version": version, "draining": number == draining, "pool": "stable"}
        for number, (one, version) in enumerate(zip(PLACED, versions))
        if version
    ]


def record(state: str, version: str = "1.1.0", strategy: str = "rolling") -> dict[str, Any]:
    release = {"id": "r1", "strategy": strategy, "version": version, "from": "1.0.0", "state": state, "weight": 25}
    return {"current": "1.0.0", "previous": "0.9.0", "state": strategy, "release": release}


OLD = live(*["1.0.0"] * 4)
CUT = live("1.1.0", "1.0.0", "1.0.0", "1.0.0")


def run(version: str = "1.1.0", command: str = "", instances: Any = CUT, **known: Any) -> Run:
    asked = {"command": command, "release": "r1", "by": "alice"} if command else {}
    return rolling_run(SERVICE, version, {"instances": instances, "command": asked, **known}, "new")


def test_a_fresh_release_starts_and_is_judged() -> None:
    found = run(instances=OLD)
    assert (found.action, found.id, found.judge, found.back) == ("start", "new", True, {})
    assert found.as_dict()["slots"] == {"app1": [0, 1], "app2": [0], "app3": [0]}


@pytest.mark.parametrize("state", release_record.EARLY)
def test_nobody_met_it_so_it_starts_over(state: str) -> None:
    found = run(instances=OLD, release=record(state))
    assert (found.action, found.id, found.back) == ("start", "r1", {})


def test_a_cut_short_release_goes_on_and_would_take_all_of_it_back() -> None:
    found = run(release=record("shifting"))
    assert (found.action, found.id, found.plan.undo, found.judge) == ("resume", "r1", "1.0.0", True)
    assert found.plan.slots == {"app1": [1], "app2": [0], "app3": [0]}
    assert found.back == {"app1": [0]}


def test_an_instance_that_was_left_drained_is_done_again() -> None:
    found = run(instances=live("1.1.0", "1.1.0", "1.0.0", "1.0.0", draining=1), release=record("shifting"))
    assert (found.plan.slots["app1"], found.back) == ([1], {"app1": [0]})


def test_after_the_last_batch_only_the_end_is_missing() -> None:
    found = run(instances=live(*["1.1.0"] * 4), release=record("shifting"))
    assert (found.action, found.plan.serial) == ("resume", [])


@pytest.mark.parametrize(("version", "command"), [("", ""), ("1.1.0", "abort"), ("1.2.0", "abort"), ("", "pause")])
def test_a_cut_short_release_is_undone_with_all_it_left(version: str, command: str) -> None:
    instances = live("1.1.0", "", "1.0.0", "1.0.0", draining=3)
    found = run(version, command, instances, release=record("shifting"))
    assert (found.action, found.id, found.plan.version, found.plan.undo) == ("undo", "r1", "1.1.0", "1.0.0")
    assert found.back == {"app1": [0, 1], "app3": [0]}
    assert (found.plan.hosts, found.judge) == ([], False)
    assert ("alice asked" in found.reason) == (command == "abort")


@pytest.mark.parametrize(
    ("version", "command", "found", "words"),
    [
        ("1.2.0", "", record("shifting"), r"release of 1.1.0 \(state shifting\) is under way; end it first with"),
        ("1.0.0", "", record("shifting"), "end it first with release_rollback"),
        ("1.1.0", "pause", record("shifting"), "is paused; release_resume"),
        ("1.1.0", "", record("baking", strategy="canary"), "the canary release of 1.1.0"),
        ("1.0.0", "", {"current": "1.0.0", "state": "live"}, "already live on all 4"),
    ],
)
def test_what_is_refused(version: str, command: str, found: dict[str, Any], words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        run(version, command, OLD, release=found)


def test_a_resumed_pause_goes_on() -> None:
    assert run("1.1.0", "resume", release=record("shifting")).action == "resume"


def test_ways_back_and_repairs_are_not_judged() -> None:
    ended = record("settled")
    ended.update(current="1.1.0", previous="1.0.0", state="live")
    back = run("", instances=live(*["1.1.0"] * 4), release=ended)
    assert (back.plan.version, back.judge) == ("1.0.0", False)
    repair = run("1.1.0", instances=CUT, release=ended)
    assert (repair.action, repair.judge, repair.plan.undo) == ("start", False, "1.1.0")


def test_a_record_of_before_is_taken_up() -> None:
    found = run(release={"current": "1.0.0", "previous": "", "state": "rolling"})
    assert (found.action, found.id, found.plan.resumes) == ("start", "new", True)


@pytest.mark.parametrize("state", ["planned", "preparing", "shifting"])
def test_a_controller_killed_at_every_transition_never_leaves_a_dead_end(state: str) -> None:
    known: dict[str, Any] = {}
    options: dict[str, Any] = {"begin": {"id": "r1", "strategy": "rolling", "version": "1.1.0", "from": "1.0.0"}}
    for to in ("planned", "preparing", "shifting")[: ("planned", "preparing", "shifting").index(state) + 1]:
        if to != "planned":
            options = {"transition": {"to": to}}
        known.update(release_record.advance(known, "t1", **options)[0])
    assert known["state"] == "rolling"
    assert rolling_run(SERVICE, "", {"instances": CUT, "release": known}, "new").action == "undo"
    again = rolling_run(SERVICE, "1.1.0", {"instances": CUT, "release": known}, "new")
    if again.action == "start":
        begin = {"id": again.id, "strategy": "rolling", "version": "1.1.0", "from": again.plan.undo}
        known.update(release_record.advance(known, "t2", begin=begin)[0])
        known.update(release_record.advance(known, "t2", transition={"to": "preparing"})[0])
    known.update(release_record.advance(known, "t3", transition={"to": "shifting"}, weight=25)[0])
    known.update(release_record.advance(known, "t4", transition={"to": "settled"}, weight=100)[0])
    assert (known["release"]["id"], known["current"], known["previous"]) == ("r1", "1.1.0", "1.0.0")


def test_sides_of_instances() -> None:
    plan = run(release=record("shifting")).as_dict()
    switched = {"app1": {"1": {"until": 40.0, "since": 50.0}}, "app2": {}}
    found = instance_sides(SERVICE, plan, switched, 30.0)
    assert found["instances"] == {
        "app1/0": {"until": 30.0, "since": 30.0},
        "app1/1": {"until": 40.0, "since": 50.0},
        "app2/0": {"until": None, "since": None},
        "app3/0": {"until": None, "since": None},
    }
    assert (found["since"], found["share"], found["left"]) == (30.0, 50, 2)
    assert instance_sides(SERVICE, run(instances=OLD).as_dict(), {}, 30.0)["since"] == 0


@pytest.mark.parametrize(
    ("verdict", "command", "options", "action"),
    [
        ("", "", {}, "next"),
        ("pass", "", {}, "next"),
        ("insufficient_data", "", {}, "next"),
        ("inconclusive", "", {}, "next"),
        ("fail", "", {}, "back"),
        ("fail", "promote", {}, "back"),
        ("pass", "abort", {}, "abort"),
        ("fail", "abort", {}, "abort"),
        ("pass", "pause", {}, "pause"),
        ("pass", "pause", {"left": 0}, "next"),
        ("pass", "", {"require": True}, "next"),
        ("", "", {"require": True}, "next"),
        ("insufficient_data", "", {"require": True}, "hold"),
        ("insufficient_data", "", {"require": True, "holds": HOLDS}, "back"),
        ("inconclusive", "", {"require": True, "holds": HOLDS}, "pause"),
        ("insufficient_data", "promote", {"require": True}, "next"),
    ],
)
def test_what_follows_after_a_batch(verdict: str, command: str, options: dict[str, Any], action: str) -> None:
    found = decide_batch(verdict, "because", command, **options)
    assert found["action"] == action
    assert found["judge"] == (not (command == "promote" and action == "next"))
    assert found["reason"]


def test_holds_end() -> None:
    holds, checks = 0, 0
    while True:
        found = decide_batch("insufficient_data", "nothing seen", holds=holds, require=True)
        checks += 1
        if found["action"] != "hold":
            break
        holds = found["holds"]
    assert (found["action"], checks) == ("back", 5)  # as many as roles/release/tasks/batch.yml loops


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(ReleaseError, match="'fine' is unknown"):
        decide_batch("fine", "")


def test_the_status_shows_the_share() -> None:
    lines = status_lines({"orders": {"release": record("shifting"), "instances": CUT}})
    assert lines[1].split() == ["orders", "1.0.0", "shifting", "1.1.0", "(rolling)", "25", "%", "-", "-"]
