"""Releases under traffic: nothing is lost, what is bad goes back by itself, what is wrong is refused."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import other, why

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Registry = Callable[..., dict[str, Any]]


@pytest.fixture
def versions(registry: Registry) -> Callable[[str], set[str]]:
    """The versions that the registered instances of a service run."""

    def read(service: str) -> set[str]:
        known = registry("registry_info", service=service, gather=["content"])["services"][service]
        return {one["version"] for one in known["instances"]}

    return read


def test_a_rolling_release_loses_no_request(
    playbook: Playbook, versions: Callable[[str], set[str]], traffic: Callable[..., Any]
) -> None:
    """Of the caller, orders; the called one, catalog, is the one whose controller is killed below."""
    wanted = other(versions("orders"))
    with traffic() as load:
        done = playbook("release_rolling", release_service="orders", release_version=wanted)
    assert done.returncode == 0, why(done.stdout)
    assert versions("orders") == {wanted}
    assert load.summary["failed"] == 0, load.summary["failures"]


def test_going_back_loses_no_request(
    playbook: Playbook, versions: Callable[[str], set[str]], traffic: Callable[..., Any]
) -> None:
    wanted = other(versions("orders"))
    with traffic() as load:
        done = playbook("release_rollback", release_service="orders")
    assert done.returncode == 0, why(done.stdout)
    assert versions("orders") == {wanted}
    assert load.summary["failed"] == 0, load.summary["failures"]


@pytest.mark.parametrize("bad", ["1.2.0-unhealthy", "1.3.0-broken"])
def test_a_bad_version_goes_back_by_itself(
    *,
    bad: str,
    playbook: Playbook,
    registry: Registry,
    versions: Callable[[str], set[str]],
    traffic: Callable[..., Any],
    inventory: dict[str, Any],
) -> None:
    before = versions("orders")
    with traffic() as load:
        done = playbook("release_rolling", release_service="orders", release_version=bad)
    assert done.returncode != 0
    assert "rolled back" in done.stdout
    assert load.summary["failed"] == 0, load.summary["failures"]
    assert bad not in load.summary["versions"]  # it never met a user
    known = registry("registry_info", service="orders", gather=["content"])["services"]["orders"]
    assert {one["version"] for one in known["instances"]} == before
    assert len(known["instances"]) == len(inventory["causeway_services"]["orders"]["instances"]["placed"])
    assert known["drains"] == {}
    assert known["lock"] == {}
    assert known["release"]["history"][-1]["outcome"] == "rolled back"


def test_a_version_that_fails_now_and_then_goes_back_by_itself(
    playbook: Playbook,
    registry: Registry,
    versions: Callable[[str], set[str]],
    traffic: Callable[..., Any],
) -> None:
    """Its instances are healthy and pass their tests: only the judge sees that one request in twenty fails."""
    before = versions("catalog")
    with traffic(100) as load:
        done = playbook(
            "release_rolling", release_service="catalog", release_version="1.4.0-errors5", release_judge=True
        )
    assert done.returncode != 0
    assert "rolled back" in done.stdout
    print(f"{load.summary['failed']} of {load.summary['sent']} requests met an error")
    known = registry("registry_info", service="catalog", gather=["content"])["services"]["catalog"]
    assert {one["version"] for one in known["instances"]} == before
    assert (known["drains"], known["lock"]) == ({}, {})
    release = known["release"]["release"]
    assert (release["state"], release["strategy"], release["weight"]) == ("rolled back", "rolling", 0)
    assert release["analyses"][-1]["verdict"] == "fail", release["analyses"]
    assert "errors: worse" in release["reason"]
    # It was the judge of one of the batches, not the end of the release.
    assert max(one["weight"] for one in release["weights"]) < 100


def test_a_host_that_dies_in_the_middle_ends_the_release(
    start_playbook: Callable[..., Any],
    fault: Callable[..., dict[str, Any]],
    inventory: dict[str, Any],
    versions: Callable[[str], set[str]],
    traffic: Callable[..., Any],
) -> None:
    """What was touched goes back and the dead host is named; the next test releases the same version again."""
    (before,) = versions("catalog")
    wanted = other({before})
    placed = inventory["causeway_services"]["catalog"]["instances"]["placed"]
    victim = max(placed, key=lambda one: (one["zone"], one["host"]))["host"]
    with traffic() as load:
        controller = start_playbook("release_rolling", release_service="catalog", release_version=wanted)
        try:
            controller.wait_for("Instance | Wait before the next one")
            fault(action="power_off", host=victim)
            code, said = controller.wait()
        finally:
            fault(action="power_on", host=victim)
    assert code != 0
    assert victim in said[said.rindex("PLAY [Record how it ended") :]
    assert load.summary["failed"] == 0, load.summary["failures"]
    assert versions("catalog") == {before}


def test_a_killed_release_is_finished_by_the_next_run(
    playbook: Playbook,
    start_playbook: Callable[..., Any],
    registry: Registry,
    versions: Callable[[str], set[str]],
    traffic: Callable[..., Any],
) -> None:
    wanted = other(versions("catalog"))
    arguments = {"release_service": "catalog", "release_version": wanted, "release_lock_ttl": 30}
    with traffic() as load:
        controller = start_playbook("release_rolling", **arguments)
        controller.kill_at("Instance | Wait before the next one")
        assert versions("catalog") == {wanted, other({wanted})}
        time.sleep(32)  # the lock's lease runs out
        done = playbook("release_rolling", **arguments)
    assert done.returncode == 0, why(done.stdout)
    assert versions("catalog") == {wanted}
    assert load.summary["failed"] == 0, load.summary["failures"]
    known = registry("registry_info", service="catalog", gather=["content"])["services"]["catalog"]
    assert (known["release"]["state"], known["drains"], known["lock"]) == ("live", {}, {})


@pytest.fixture
def held(registry: Registry) -> Iterator[None]:
    lock = registry("etcd_lock", name="orders", purpose="maintenance by somebody else")
    yield
    registry("etcd_lock", name="orders", owner=lock["owner"], state="unlocked")


def test_a_second_release_of_a_service_is_refused(held: None, playbook: Playbook, versions: Any) -> None:
    before = versions("orders")
    done = playbook("release_rolling", release_service="orders", release_version=other(before))
    assert done.returncode != 0
    assert "maintenance by somebody else" in done.stdout
    assert versions("orders") == before


@pytest.mark.parametrize(
    ("service", "version", "words"),
    [
        ("order", "1.1.0", "is not a service; allowed: catalog, orders"),
        ("orders", "no such", "is not a version"),
        ("orders", "9.9.9", "orders-9.9.9.tar"),
    ],
)
def test_wrong_input_is_refused_before_anything_changes(
    service: str, version: str, words: str, playbook: Playbook, versions: Callable[[str], set[str]]
) -> None:
    before = versions("orders")
    done = playbook("release_rolling", release_service=service, release_version=version)
    assert done.returncode != 0
    assert words in " ".join(done.stdout.split())
    assert versions("orders") == before


def test_a_version_that_is_live_already_is_refused(playbook: Playbook, versions: Callable[[str], set[str]]) -> None:
    (current,) = versions("orders")
    done = playbook("release_rolling", release_service="orders", release_version=current)
    assert done.returncode != 0
    assert f"version {current} is already live" in " ".join(done.stdout.split())


def test_the_status_is_readable(playbook: Playbook) -> None:
    done = playbook("release_status")
    assert done.returncode == 0
    for words in ("catalog: live", "orders: ", "rolled back"):
        assert words in done.stdout
