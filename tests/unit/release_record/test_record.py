# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about releases: which state may follow, and what a run does with what it finds."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import release_record
from ansible_collections.causeway.platform.plugins.module_utils.release import (
    ReleaseError,
    history_lines,
    status_lines,
)
from ansible_collections.causeway.platform.plugins.module_utils.release_record import Release

JUDGED = ["planned", "preparing", "testing", "shifting", "baking", "promoted", "settled"]
ROLLING = ["planned", "preparing", "shifting", "settled"]
STATES = [*JUDGED, "rolled back", "aborted"]
FOLLOWS = {
    "canary": {*zip(JUDGED, JUDGED[1:]), ("shifting", "promoted")},
    "blue_green": {*zip(JUDGED, JUDGED[1:]), ("shifting", "promoted")},
    "rolling": {*zip(ROLLING, ROLLING[1:])},
}


def release(state: str = "planned", strategy: str = "canary", **options: Any) -> Release:
    return Release(
        id="r1",
        strategy=strategy,
        version="1.1.0",
        from_version="1.0.0",
        state=state,
        started="t0",
        changed="t1",
        **options,
    )


def record(state: str = "shifting", strategy: str = "canary", **options: Any) -> dict[str, Any]:
    ended = state in release_record.ENDED
    return {
        "current": "1.1.0" if state == "settled" else "1.0.0",
        "previous": "1.0.0" if state == "settled" else "0.9.0",
        "state": release_record.OUTCOMES[state] if ended else strategy,
        "release": release(state, strategy, **options).as_dict(),
    }


def live(*versions: str, candidates: str = "") -> list[dict[str, Any]]:
    found = [{"host": f"app{n}", "slot": 0, "pool": "stable", "version": one} for n, one in enumerate(versions)]
    return found + ([{"host": "app0", "slot": 5, "pool": "candidate", "version": candidates}] if candidates else [])


@pytest.mark.parametrize("strategy", FOLLOWS)
@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_which_state_may_follow(strategy: str, old: str, new: str) -> None:
    unfinished = old not in ("settled", "rolled back", "aborted")
    may = (old, new) in FOLLOWS[strategy] or (unfinished and new in ("rolled back", "aborted"))
    before = release(old, strategy)
    if old == new:
        assert release_record.change_state(before, new, "t2") is before
    elif may:
        after = release_record.change_state(before, new, "t2", "why", {"a": 1})
        assert (after.state, after.changed, after.reason) == (new, "t2", "why")
        assert after.transitions[-1] == {"at": "t2", "from": old, "to": new, "reason": "why", "evidence": {"a": 1}}
    else:
        with pytest.raises(ReleaseError, match=f"cannot go from {old} to {new}; allowed: "):
            release_record.change_state(before, new, "t2")


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ReleaseError, match="'live' is no state of a release; allowed: planned"):
        release_record.change_state(release(), "live", "t2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "canray"}, "strategy: 'canray' is unknown; allowed: rolling, blue_green, canary"),
        ({"version": "1.1 beta"}, "version: '1.1 beta' is not a version"),
        ({"from_version": ""}, "from: '' is not a version"),
        ({"version": "1.0.0"}, "version: 1.0.0 is the version before too"),
        ({"id": ""}, "id: a release needs one"),
    ],
)
def test_a_release_that_cannot_be(options: dict[str, Any], words: str) -> None:
    given = {"id": "r1", "strategy": "canary", "version": "1.1.0", "from_version": "1.0.0", "at": "t0", **options}
    with pytest.raises(ReleaseError, match=words):
        release_record.new_release(**given)


def test_a_rolling_release_may_repair_stragglers() -> None:
    one = release_record.new_release(id="r", strategy="rolling", version="1.0.0", from_version="1.0.0", at="t0")
    assert one.state == "planned"


def test_a_record_survives_etcd_and_fields_of_the_future() -> None:
    one = release("baking", weights=({"at": "t", "weight": 5},), analyses=({"verdict": "pass"},))
    value = json.loads(json.dumps(one.as_dict()))
    assert value["from"] == "1.0.0"
    assert Release.of({**value, "colour": "blue"}) == one
    assert Release.of({}) is None


def test_numbers_that_json_does_not_know_become_null() -> None:
    entry = release_record.clean_analysis(
        {
            "verdict": "pass",
            "metrics": [{"name": "m", "verdict": "pass", "upper": math.inf, "stable": math.nan, "lower": -1}],
        },
        release(weight=25, step=1),
        "t3",
    )
    metric = entry["metrics"][0]
    assert (metric["upper"], metric["stable"], metric["lower"], metric["e_value"]) == (None, None, -1, None)
    assert (entry["at"], entry["step"], entry["weight"]) == ("t3", 1, 25)
    assert release_record.bounded({"a": math.nan, "b": [math.inf, 1]}) == {"a": None, "b": [None, 1]}
    json.dumps(entry, allow_nan=False)


def test_a_score_is_kept_where_there_is_one() -> None:
    given = {"verdict": "pass", "score": 66.67, "groups": {"errors": 50.0, "g" * 99: math.nan}}
    entry = release_record.clean_analysis(given, release(), "t")
    assert (entry["score"], entry["groups"]) == (66.67, {"errors": 50.0, "g" * 36 + " ...": None})
    assert "score" not in release_record.clean_analysis({"verdict": "pass", "score": None}, release(), "t")


@pytest.mark.parametrize("given", ["baseline", "stable", "", None])
def test_an_analysis_says_when_it_compared_with_the_baseline(given: str | None) -> None:
    entry = release_record.clean_analysis({"verdict": "pass", "against": given}, release(), "t")
    assert entry.get("against") == ("baseline" if given == "baseline" else None)


def test_bounds() -> None:
    one = release("shifting")
    for number in range(450):
        one = release_record.add_analysis(one, {"at": f"t{number}", "verdict": "pass"}, "now")
        one = release_record.add_weight(one, 5 + number % 2, f"t{number}")
    assert (len(one.analyses), len(one.weights)) == (200, 200)
    assert one.analyses[-1]["at"] == "t449"
    ended = release_record.change_state(one, "rolled back", "t", "r" * 5000, {"e": "x" * 9000})
    assert len(ended.reason) == release_record.MAX_REASON
    assert len(json.dumps(ended.transitions[-1])) < 6000
    with pytest.raises(ReleaseError, match="verdict 'maybe' is unknown; allowed: pass, fail"):
        release_record.add_analysis(one, {"verdict": "maybe"}, "t")
    with pytest.raises(ReleaseError, match="weight: 101 is not a percentage; allowed: 0 to 100"):
        release_record.add_weight(one, 101, "t")


@pytest.mark.parametrize(
    ("strategy", "stable", "weights", "instances", "count"),
    [
        ("canary", 4, [5, 25, 50], 0, 2),
        ("canary", 4, [5], 0, 1),
        ("canary", 3, [5, 50], 0, 2),
        ("canary", 10, [99], 0, 10),
        ("canary", 4, [5, 25], 3, 3),
        ("canary", 2, [5], 9, 2),
        ("blue_green", 4, [5], 1, 4),
    ],
)
def test_how_many_candidates(strategy: str, stable: int, weights: list[int], instances: int, count: int) -> None:
    spec = {"strategy": "rolling", "canary": {"steps": [{"weight": one} for one in weights], "instances": instances}}
    assert release_record.candidate_count(spec, stable, strategy) == count


# what is found, what is asked for -> what happens, words of the reason
FOUND: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "nothing": ({}, {}, "start", "no release is under way"),
    "ended well before": (record("settled") | {"current": "1.0.0"}, {}, "start", "no release"),
    "rolled back before": (record("rolled back"), {}, "start", "no release"),
    "aborted before": (record("aborted"), {}, "start", "no release"),
    "killed when planned": (record("planned"), {}, "start", "starts over"),
    "killed while preparing": (record("preparing"), {}, "start", "starts over"),
    "killed while testing": (record("testing"), {}, "start", "starts over"),
    "killed while shifting": (record("shifting", step=1, weight=25), {}, "resume", "step 1, weight 25"),
    "killed while baking": (record("baking", weight=100), {}, "resume", "weight 100"),
    "killed while promoted": (record("promoted", weight=100), {}, "settle", "after its promotion"),
    "killed while going back": (
        record("rolled back"),
        {"live": live("1.0.0", candidates="1.1.0")},
        "undo_then_start",
        "left over",
    ),
    "weights left over": (
        record("aborted"),
        {"weights": {"stable": 95, "candidate": 5}},
        "undo_then_start",
        "left over",
    ),
    "killed before the last candidate went": (
        record("settled"),
        {"current": "1.1.0", "live": live("1.1.0", candidates="1.1.0")},
        "settle",
        "is live, and candidates",
    ),
    "asked to abort, then killed": (
        record("shifting"),
        {"command": {"command": "abort", "release": "r1", "by": "alice"}},
        "undo",
        "alice asked to abort it",
    ),
    "asked to abort another": (record("shifting"), {"command": {"command": "abort", "release": "r0"}}, "resume", ""),
    "paused, then killed": (record("shifting"), {"command": {"command": "pause", "release": "r1"}}, "resume", ""),
    "another version under way": (
        record("shifting"),
        {"version": "1.2.0"},
        "refuse",
        "canary release of 1.1.0 (state shifting) is under way; end it first with release_abort or release_rollback",
    ),
    "another strategy under way": (record("shifting", "blue_green"), {}, "refuse", "go on with release_blue_green"),
    "already live": ({}, {"version": "1.0.0"}, "refuse", "version 1.0.0 is already live"),
    "already live by a release": (record("settled"), {"current": "1.1.0"}, "refuse", "version 1.1.0 is already live"),
    "no version before": ({}, {"version": ""}, "refuse", "there is no version before"),
    "malformed": ({}, {"version": "a b"}, "refuse", "'a b' is not a version"),
    "rolling release cut short": ({"state": "rolling"}, {}, "refuse", "a rolling release was cut short"),
    "rolling release cut short, rolling again": ({"state": "rolling"}, {"strategy": "rolling"}, "start", ""),
    "a baseline is left over": (
        record("rolled back"),
        {"live": [{"host": "app1", "slot": 7, "pool": "baseline", "version": "1.0.0"}]},
        "undo_then_start",
        "left over",
    ),
    "a baseline has weight": (
        record("aborted"),
        {"weights": {"stable": 90, "candidate": 0, "baseline": 10}},
        "undo_then_start",
        "left over",
    ),
    "mixed": ({}, {"live": live("1.0.0", "0.9.0")}, "refuse", "the stable pool runs 0.9.0 beside 1.0.0"),
    "mixed, rolling": ({}, {"live": live("1.0.0", "0.9.0"), "strategy": "rolling", "version": "1.0.0"}, "start", ""),
    "rolling killed": (record("shifting", "rolling"), {"strategy": "rolling"}, "resume", ""),
}


@pytest.mark.parametrize(("found", "options", "action", "words"), FOUND.values(), ids=list(FOUND))
def test_what_a_run_does(found: dict[str, Any], options: dict[str, Any], action: str, words: str) -> None:
    given = {"version": "1.1.0", "current": "1.0.0", "strategy": "canary", **options}
    decided = release_record.next_action(found, given.pop("version"), **given)
    assert decided.action == action, decided
    assert words in decided.reason
    assert "\n" not in decided.reason
    if found.get("release", {}).get("state") in JUDGED[:6] and action != "refuse":
        assert (decided.id, decided.version, decided.from_version) == ("r1", "1.1.0", "1.0.0")


@pytest.mark.parametrize("state", JUDGED[:6])
@pytest.mark.parametrize("strategy", ["canary", "blue_green"])
def test_a_controller_killed_at_every_transition_never_leaves_a_dead_end(state: str, strategy: str) -> None:
    found = record(state, strategy)
    same = release_record.next_action(found, "1.1.0", current="1.0.0", strategy=strategy)
    assert same.action in ("start", "resume", "settle")
    if same.action == "start":
        begun, _entry = release_record.advance(
            found, "t9", begin={"id": "r2", "strategy": strategy, "version": "1.1.0", "from": "1.0.0"}
        )
        assert (begun["release"]["id"], begun["release"]["state"]) == ("r1", "planned")
    changes, entry = release_record.advance(found, "t9", transition={"to": "rolled back", "reason": "asked"})
    assert entry
    assert (changes["current"], changes["state"], entry["outcome"]) == ("1.0.0", "rolled back", "rolled back")


@pytest.mark.parametrize("command", release_record.COMMANDS)
@pytest.mark.parametrize("state", STATES)
def test_what_operators_may_ask(command: str, state: str) -> None:
    allowed = {
        "abort": JUDGED[:6],
        "promote": ["shifting", "baking"],
        "pause": ["shifting", "baking", "promoted"],
        "resume": JUDGED[:6],
    }[command]
    pending = {"command": "pause", "release": "r1"}
    if state in allowed:
        assert release_record.check_command("orders", command, record(state), pending).id == "r1"
    else:
        with pytest.raises(ReleaseError, match=r"^service orders: ") as error:
            release_record.check_command("orders", command, record(state), pending)
        assert "\n" not in str(error.value)


def test_a_promoted_rolling_release_is_not_judged_any_further() -> None:
    assert release_record.check_command("orders", "promote", record("shifting", "rolling")).strategy == "rolling"


def test_a_repair_keeps_the_version_before() -> None:
    found: dict[str, Any] = {"current": "1.1.0", "previous": "1.0.0"}
    changes, _entry = release_record.advance(
        found, "t0", begin={"id": "r", "strategy": "rolling", "version": "1.1.0", "from": "1.1.0"}
    )
    found.update(changes)
    for to in ("preparing", "shifting", "settled"):
        changes, _entry = release_record.advance(found, "t1", transition={"to": to})
        found.update(changes)
    assert (found["current"], found["previous"], found["state"]) == ("1.1.0", "1.0.0", "live")


def test_a_promise_says_who_acts_and_when() -> None:
    found = record("shifting", weight=25)["release"]
    held = release_record.promise(found, "abort", {"owner": "me"}, 30.0)
    assert held == [
        "asked to abort: the canary release of 1.1.0 (state shifting) goes back to 1.0.0, which gets all of the "
        "traffic again, and is recorded as aborted",
        "its controller obeys at its next check, in about 30 s at the latest",
    ]
    alone = release_record.promise(found, "pause", {}, 30.0)
    assert "held at 25 %" in alone[0]
    assert "release_canary of 1.1.0 is run again; release_rollback undoes" in alone[1]


def test_the_terminal_shows_tables() -> None:
    services = {
        "catalog": {"instances": []},
        "orders": {
            "instances": [
                {"instance": "app1-0", "version": "1.0.0", "zone": "a", "pool": "stable"},
                {"instance": "app1-5", "version": "1.1.0", "zone": "a", "pool": "candidate", "draining": True},
            ],
            "release": {
                **record("shifting", analyses=({"at": "t", "verdict": "pass", "reason": "fine"},)),
                "history": [
                    {"started": "t1", "version": "1.0.0", "from": "0.9.0", "finished": "t2", "outcome": "live"},
                    {"started": "t3", "version": "1.1.0", "from": "1.0.0", "strategy": "canary", "reason": "a\nb"},
                ],
            },
            "traffic": {"weights": {"stable": 75, "candidate": 25}},
            "command": {"command": "pause"},
        },
    }
    lines = status_lines(services)
    assert lines[:4] == [
        "SERVICE  LIVE          STATE           COMING          WEIGHT  VERDICT  ASKED",
        "catalog  as described  never released  -               0 %     -        -",
        "orders   1.0.0         shifting        1.1.0 (canary)  25 %    pass     pause",
        "",
    ]
    assert "  app1-5         1.1.0        a, candidate, draining" in lines
    assert "  verdict of t: pass: fine" in lines
    assert history_lines(services) == [
        "SERVICE  BEGUN  ENDED  FROM   TO     HOW      OUTCOME                 DATABASE  REASON",
        "orders   t3     -      1.0.0  1.1.0  canary   under way or cut short  -         a b",
        "orders   t1     t2     0.9.0  1.0.0  rolling  live                    -",
    ]
    assert not [line for line in lines if "traffic:" in line]
    services["orders"]["traffic"] = {"weights": {"stable": 50, "candidate": 25, "baseline": 25}}
    services["orders"]["instances"].append({"instance": "app1-7", "version": "1.0.0", "zone": "a", "pool": "baseline"})
    lines = status_lines(services)
    assert "  app1-7         1.0.0        a, baseline" in lines
    assert "  traffic: stable 50 %, candidate 25 %, baseline 25 %" in lines
    assert history_lines({}) == ["no release is recorded"]
    assert status_lines({}) == ["the registry knows no service"]
