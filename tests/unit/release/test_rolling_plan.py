"""A release is planned before anything changes: order, batches, minimum, what is already done."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.release import (
    ReleaseError,
    batch_size,
    current_version,
    rolling_plan,
)


def placed(host: str, zone: str, slot: int = 0) -> dict[str, Any]:
    return {"host": host, "slot": slot, "id": f"{host}-{slot}", "zone": zone, "region": "north"}


def service(instances: list[dict[str, Any]], minimum: int = 1, batch: Any = 1) -> dict[str, Any]:
    return {
        "name": "orders",
        "version": "1.0.0",
        "instances": {"min": minimum, "placed": instances},
        "release": {"batch": batch},
    }


def live(instances: list[dict[str, Any]], version: str = "1.0.0") -> list[dict[str, Any]]:
    return [{**one, "version": version} for one in instances]


SIX = [placed(f"app{n}", zone) for n, zone in ((1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "b"), (6, "c"))]


def test_hosts_are_visited_zone_by_zone_and_a_batch_never_spans_two_zones() -> None:
    plan = rolling_plan(service(SIX, batch=4), "1.1.0", live(SIX))
    assert plan.hosts == ["app1", "app4", "app2", "app5", "app3", "app6"]
    assert plan.serial == [2, 2, 2]


def test_a_judged_release_that_has_not_ended_stands_in_the_way() -> None:
    under_way = {"strategy": "canary", "version": "1.1.0", "state": "shifting"}
    with pytest.raises(ReleaseError, match=r"the canary release of 1.1.0 \(state shifting\) is under way"):
        rolling_plan(service(SIX), "1.2.0", live(SIX), {"current": "1.0.0", "release": under_way})
    rolling_plan(service(SIX), "1.2.0", live(SIX), {"current": "1.0.0", "release": {**under_way, "state": "settled"}})


def test_an_uneven_zone_ends_with_a_smaller_batch() -> None:
    nine = [*SIX, placed("app7", "a")]
    assert rolling_plan(service(nine, batch=2), "1.1.0", live(nine)).serial == [2, 1, 2, 2]


def test_instances_that_run_the_version_already_are_left_alone() -> None:
    running = live(SIX[:1], "1.1.0") + live(SIX[1:])
    plan = rolling_plan(service(SIX), "1.1.0", running, {"current": "1.0.0", "state": "rolling"})
    assert "app1" not in plan.hosts
    assert plan.skipped == ["app1-0"]
    assert plan.resumes
    assert plan.undo == "1.0.0"


def test_a_release_that_is_live_everywhere_is_refused() -> None:
    with pytest.raises(ReleaseError, match="already live on all 6"):
        rolling_plan(service(SIX), "1.0.0", live(SIX), {"current": "1.0.0", "state": "released"})


def test_a_release_killed_after_its_last_batch_can_be_finished() -> None:
    plan = rolling_plan(service(SIX), "1.1.0", live(SIX, "1.1.0"), {"current": "1.0.0", "state": "rolling"})
    assert plan.serial == []


def test_going_below_the_minimum_is_refused_with_the_numbers() -> None:
    with pytest.raises(ReleaseError, match=r"would leave 5 of 6 instances .* below its minimum of 6"):
        rolling_plan(service(SIX, minimum=6), "1.1.0", live(SIX))


def test_instances_that_are_down_count_against_the_minimum() -> None:
    with pytest.raises(ReleaseError, match="2 not registered now"):
        rolling_plan(service(SIX, minimum=5), "1.1.0", live(SIX[2:]))


def test_the_dead_instance_itself_may_be_replaced() -> None:
    plan = rolling_plan(service(SIX, minimum=5), "1.1.0", live(SIX[1:]))
    assert plan.slots["app1"] == [0]


@pytest.mark.parametrize("version", ["../1", "a b", "-x", "v" * 129])
def test_a_malformed_version_is_refused(version: str) -> None:
    with pytest.raises(ReleaseError, match="is not a version"):
        rolling_plan(service(SIX), version, live(SIX))


@pytest.mark.parametrize(
    ("batch", "count", "size"), [(1, 9, 1), ("25%", 9, 2), ("10%", 3, 1), (5, 3, 3), ("100%", 4, 4), (1, 0, 1)]
)
def test_batch_sizes(batch: Any, count: int, size: int) -> None:
    assert batch_size(batch, count) == size


def test_the_record_rules_over_the_description() -> None:
    assert current_version({"version": "1.0.0"}, {"current": "1.4.0"}) == "1.4.0"
    assert current_version({"version": "1.0.0"}, None) == "1.0.0"


def test_no_version_goes_back_to_the_one_before() -> None:
    record = {"current": "1.1.0", "previous": "1.0.0", "state": "live"}
    plan = rolling_plan(service(SIX), "", live(SIX, "1.1.0"), record)
    assert (plan.version, plan.undo) == ("1.0.0", "1.1.0")


def test_going_back_without_a_version_before_is_refused() -> None:
    with pytest.raises(ReleaseError, match="no version before"):
        rolling_plan(service(SIX), "", live(SIX), {"current": "1.0.0", "state": "live"})
