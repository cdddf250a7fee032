"""Judged releases under traffic: good versions arrive without a lost request, bad ones go back by themselves."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import ENDED, assert_recorded, assert_settled, live, other, why

Playbook = Callable[..., subprocess.CompletedProcess[str]]

# One of a release's changes of state, for the sake of time; tests/drills/releases.py takes all.
PROMOTION = "Bake | Record the promotion"


def test_a_good_version_arrives_without_a_lost_request(
    inventory: dict[str, Any],
    known: Callable[[str], dict[str, Any]],
    playbook: Playbook,
    traffic: Callable[..., Any],
) -> None:
    """Blue-green; the canary is the one whose controller is killed again and again, below."""
    wanted = other(live(known("orders")))
    with traffic(60) as load:
        done = playbook("release_blue_green", release_service="orders", release_version=wanted, release_window=5)
    assert done.returncode == 0, why(done.stdout)
    assert load.summary["failed"] == 0, load.summary["failures"]
    assert_settled(known("orders"), inventory, "orders", wanted)
    assert known("orders")["release"]["release"]["state"] == "settled"


def test_a_version_that_fails_now_and_then_goes_back_by_itself(
    inventory: dict[str, Any],
    known: Callable[[str], dict[str, Any]],
    playbook: Playbook,
    tmp_path: Path,
    traffic: Callable[..., Any],
) -> None:
    """Its tests pass and its instances are healthy: only the judge sees that one request in twenty fails."""
    (before,) = live(known("catalog"))
    with traffic(60) as load:
        done = playbook(
            "release_canary",
            release_service="catalog",
            release_version="1.4.0-errors5",
            release_report_dir=str(tmp_path),
        )
    assert done.returncode != 0
    assert "rolled back" in done.stdout
    report = json.loads((tmp_path / "release-catalog.json").read_text())
    back = max(one["after_seconds"] for one in report["back"].values())
    print(
        f"{load.summary['failed']} of {load.summary['sent']} requests met an error; back at every proxy in {back:.3f} s"
    )
    assert "errors" in report["reason"]
    assert back < 3
    assert_settled(known("catalog"), inventory, "catalog", before)


def test_an_operator_gets_the_old_version_back_and_a_second_one_is_refused(
    inventory: dict[str, Any],
    known: Callable[[str], dict[str, Any]],
    playbook: Playbook,
    start_playbook: Callable[..., Any],
    traffic: Callable[..., Any],
) -> None:
    (before,) = live(known("orders"))
    with traffic(60) as load:
        controller = start_playbook(
            "release_blue_green", release_service="orders", release_version=other({before}), release_window=300
        )
        controller.wait_for("Plan | Begin the release's record")
        lock = known("orders")["lock"]
        # Before traffic moves: on two cores another playbook would slow the new version that the judge looks at.
        second = playbook("release_canary", release_service="orders", release_version="1.1.0")
        controller.wait_for(PROMOTION)
        back = playbook("release_rollback", release_service="orders")
        code, said = controller.wait()
    assert back.returncode == 0, why(back.stdout)
    assert second.returncode != 0
    assert f"is held by {lock['owner']}" in " ".join(second.stdout.split())
    assert code != 0
    assert "rolled back" in said
    assert load.summary["failed"] == 0, load.summary["failures"]
    assert_settled(known("orders"), inventory, "orders", before)


def test_a_canary_survives_its_controllers(
    inventory: dict[str, Any],
    known: Callable[[str], dict[str, Any]],
    playbook: Playbook,
    start_playbook: Callable[..., Any],
    traffic: Callable[..., Any],
) -> None:
    """Paused, promoted and killed, each time one state further; each next run takes up what it finds."""
    wanted = other(live(known("catalog")))
    arguments = {
        "release_service": "catalog",
        "release_version": wanted,
        "release_lock_ttl": 45,
        "release_window": 0,
    }

    with traffic(60) as load:
        paused = start_playbook("release_canary", **arguments)
        paused.wait_for("Check | Note the time")
        assert playbook("release_pause", release_service="catalog").returncode == 0
        code, said = paused.wait()
        assert code == 0, why(said)
        state = known("catalog")
        assert (state["lock"], state["release"]["release"]["state"] in ENDED) == ({}, False)
        assert state["traffic"]["weights"]["candidate"] > 0
        assert playbook("release_resume", release_service="catalog").returncode == 0
        goes_on = start_playbook("release_canary", **arguments)
        goes_on.wait_for("Check | Note the time")
        assert playbook("release_promote", release_service="catalog").returncode == 0
        goes_on.kill_at(PROMOTION)
        time.sleep(47)  # the lock's lease runs out
        assert_recorded(known("catalog"), wanted)
        done = playbook("release_canary", **arguments)
    assert load.summary["failed"] == 0, load.summary["failures"]
    # Killed while it recorded that it is live, it may be live already.
    assert done.returncode == 0 or "already live" in done.stdout, why(done.stdout)
    assert_settled(known("catalog"), inventory, "catalog", wanted)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"release_service": "catalogue", "release_version": "1.1.0"}, "is not a service; allowed: catalog, orders"),
        ({"release_service": "catalog", "release_version": "no such"}, "is not a version"),
        ({"release_service": "catalog", "release_version": "9.9.9"}, "catalog-9.9.9.tar"),
    ],
)
def test_wrong_input_is_refused_before_anything_changes(
    variables: dict[str, str], words: str, known: Callable[[str], dict[str, Any]], playbook: Playbook
) -> None:
    before = known("catalog")
    done = playbook("release_canary", **variables)
    assert done.returncode != 0
    assert words in " ".join(done.stdout.split())
    after = known("catalog")
    assert (after["release"], after["instances"], after["lock"]) == (before["release"], before["instances"], {})


def test_a_version_that_is_live_already_is_refused(known: Callable[[str], dict[str, Any]], playbook: Playbook) -> None:
    (current,) = live(known("orders"))
    done = playbook("release_blue_green", release_service="orders", release_version=current)
    assert done.returncode != 0
    assert f"version {current} is already live" in " ".join(done.stdout.split())
