"""What follows from verdicts and operators' commands: nothing but a pass ever moves a release on."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.causeway.platform.plugins.module_utils.release_steps import (
    Cursor,
    decide,
    iterations,
    resume,
    steps,
)

SERVICE: dict[str, Any] = {
    "name": "orders",
    "release": {
        "canary": {"steps": [{"weight": 5, "duration": 60.0}, {"weight": 50, "duration": 45.0}]},
        "blue_green": {"bake": 60.0},
        "analysis": {"interval": 30.0},
    },
}
CANARY = steps(SERVICE, "canary")


def walk(verdicts: list[str], cursor: Cursor | None = None) -> Cursor:
    cursor = cursor or Cursor()
    for verdict in verdicts:
        cursor = decide(CANARY, cursor, verdict, "because")
    return cursor


def test_steps_end_with_the_bake() -> None:
    assert [(one.weight, one.checks, one.baking) for one in CANARY] == [(5, 2, False), (50, 2, False), (100, 2, True)]
    assert [(one.weight, one.baking) for one in steps(SERVICE, "blue_green")] == [(100, True)]


def test_rolling_has_no_steps() -> None:
    with pytest.raises(ReleaseError, match="'rolling' is not judged; allowed: blue_green, canary"):
        steps(SERVICE, "rolling")


def test_passes_lead_to_promotion() -> None:
    assert walk(["pass"]).action == "hold"
    assert walk(["pass"] * 2) == Cursor(1, 0, 0, "next", "because")
    assert walk(["pass"] * 6).action == "promote"


@pytest.mark.parametrize(("verdict", "action"), [("inconclusive", "pause"), ("insufficient_data", "back")])
def test_silence_never_promotes(verdict: str, action: str) -> None:
    cursor = Cursor()
    for _number in range(iterations(CANARY)):
        cursor = decide(CANARY, cursor, verdict, "no traffic")
        if cursor.action != "hold":
            break
        assert cursor.step == 0
    assert cursor.action == action
    assert "no verdict at 5 %" in cursor.reason
    assert "no traffic" in cursor.reason


def test_a_hold_does_not_count_against_the_next_step() -> None:
    assert walk(["insufficient_data", "pass", "pass"]).holds == 0


def test_every_release_ends_within_its_iterations() -> None:
    """Whatever the verdicts are, the loop that asks for them is long enough."""
    worst = (["inconclusive"] * CANARY[0].holds + ["pass"] * 2) * len(CANARY)
    assert len(worst) == iterations(CANARY)
    assert walk(worst).action == "promote"


SCORED = steps(
    {**SERVICE, "release": {**SERVICE["release"], "analysis": {"interval": 15.0, "method": "kayenta"}}}, "canary"
)


@pytest.mark.parametrize("verdict", ["pass", "inconclusive", "insufficient_data"])
def test_a_score_counts_at_the_end_of_its_step_only(verdict: str) -> None:
    assert [one.at_end for one in SCORED] == [True] * 3
    cursor = Cursor()
    for number in range(3):
        cursor = decide(SCORED, cursor, verdict, "so far")
        assert cursor == Cursor(0, number + 1, 0, "hold", "so far")
    assert decide(SCORED, cursor, "pass", "good") == Cursor(1, 0, 0, "next", "good")
    assert decide(SCORED, cursor, "fail", "bad").action == "back"
    assert decide(SCORED, cursor, "insufficient_data", "silence") == Cursor(0, 3, 1, "hold", "silence")


def test_a_marginal_score_gets_no_second_look() -> None:
    found = decide(SCORED, Cursor(0, 3), "inconclusive", "score 80")
    assert (found.action, found.reason) == ("pause", "marginal at the end of 5 %: score 80")


def test_a_broken_limit_does_not_wait_for_the_end() -> None:
    assert decide(SCORED, Cursor(), "fail", "limit").action == "back"


def test_scores_that_lack_data_to_the_end_go_back() -> None:
    cursor = Cursor()
    for _number in range(iterations(SCORED)):
        cursor = decide(SCORED, cursor, "insufficient_data", "no traffic")
        if cursor.action != "hold":
            break
    assert (cursor.action, cursor.step) == ("back", 0)


@pytest.mark.parametrize("command", ["", "pause", "promote"])
def test_a_failure_goes_back_whatever_is_asked(command: str) -> None:
    assert decide(CANARY, Cursor(), "fail", "errors", command).action == "back"


def test_commands() -> None:
    assert decide(CANARY, Cursor(1), "pass", "", "abort").action == "abort"
    assert decide(CANARY, Cursor(1), "pass", "", "pause").action == "pause"
    assert decide(CANARY, Cursor(0), "inconclusive", "", "promote") == Cursor(
        2, 0, 0, "next", "an operator asked to promote"
    )
    assert decide(CANARY, Cursor(2), "inconclusive", "", "promote").action == "promote"


def test_an_unknown_verdict_is_an_error() -> None:
    with pytest.raises(ReleaseError, match="verdict: 'PASS' is unknown"):
        decide(CANARY, Cursor(), "PASS", "")


def test_a_dead_release_goes_on_at_the_beginning_of_its_step() -> None:
    assert resume(CANARY, 1) == Cursor(1)
    assert resume(CANARY, 99) == Cursor(2)
