"""Placement of tenants: balance by chi-square tests and moves against the theoretical minimum, all with fixed names."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from scipy import stats

from ansible_collections.causeway.platform.plugins.filter import sharding as filters
from ansible_collections.causeway.platform.plugins.module_utils import sharding
from ansible_collections.causeway.platform.plugins.module_utils.sharding import Shard, ShardingError

TENANTS = [f"tenant-{number}" for number in range(10_000)]


def shards(**weights: float) -> list[Shard]:
    return [Shard(name, weight) for name, weight in weights.items()]


def moved(before: list[Shard], after: list[Shard]) -> list[sharding.Move]:
    return sharding.moves(sharding.place(TENANTS, before), sharding.place(TENANTS, after), after)


def close_to(found: float, expected: float) -> bool:
    """Within four standard deviations of a binomial share."""
    return abs(found - expected) <= 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / len(TENANTS))


def test_the_map_never_changes_by_itself() -> None:
    """Other versions of this code must find every tenant where this one put it."""
    assert sharding.uniform("acme", "s1") == 0.45621437099480644
    found = sharding.place([f"t{n}" for n in range(12)], shards(s1=1, s2=1, s3=2))
    assert "".join(found[f"t{n}"][1] for n in range(12)) == "323323332331"


@pytest.mark.parametrize(
    "weights",
    [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 5}, {f"s{n}": 1 for n in range(16)}, {"a": 0.001, "b": 0.003}],
)
def test_shards_are_filled_by_weight(weights: dict[str, float]) -> None:
    found = Counter(sharding.place(TENANTS, shards(**weights)).values())
    total = sum(weights.values())
    expected = [len(TENANTS) * weight / total for weight in weights.values()]
    assert stats.chisquare([found[name] for name in weights], expected).pvalue > 0.001


def test_hashes_are_uniform_also_for_names_that_differ_little() -> None:
    for shard in ("s1", "s2", "s10"):
        assert stats.kstest([sharding.uniform(name, shard) for name in TENANTS], "uniform").pvalue > 0.001


def test_tenant_and_shard_are_told_apart() -> None:
    assert sharding.uniform("ab", "c") != sharding.uniform("a", "bc")


def test_a_new_shard_takes_its_share_and_nothing_else_moves() -> None:
    before, after = shards(a=1, b=2, c=1), shards(a=1, b=2, c=1, d=1)
    found = moved(before, after)
    assert {move.target for move in found} == {"d"}
    assert sharding.minimum(before, after) == pytest.approx(1 / 5)
    assert close_to(len(found) / len(TENANTS), 1 / 5)


def test_of_a_shard_that_goes_only_its_own_tenants_move_and_spread_by_weight() -> None:
    before, after = shards(a=1, b=2, c=1), shards(a=1, b=2)
    found = moved(before, after)
    assert {move.source for move in found} == {"c"}
    assert {move.reason for move in found} == {"shard is gone"}
    assert len(found) == Counter(sharding.place(TENANTS, before).values())["c"]
    targets = Counter(move.target for move in found)
    assert stats.chisquare([targets["a"], targets["b"]], [len(found) / 3, len(found) * 2 / 3]).pvalue > 0.001


@pytest.mark.parametrize(("weight", "side"), [(4.0, "target"), (0.5, "source"), (0.0, "source")])
def test_another_weight_moves_tenants_only_to_or_from_that_shard(weight: float, side: str) -> None:
    before, after = shards(a=1, b=2, c=1), shards(a=1, b=weight, c=1)
    found = moved(before, after)
    assert {getattr(move, side) for move in found} == {"b"}
    assert close_to(len(found) / len(TENANTS), sharding.minimum(before, after))


def test_weights_are_relative() -> None:
    assert moved(shards(a=1, b=2), shards(a=100, b=200)) == []
    assert sharding.minimum(shards(a=1, b=2), shards(a=100, b=200)) == pytest.approx(0, abs=1e-12)


def test_one_change_at_a_time_moves_the_theoretical_minimum() -> None:
    """Random fleets, one shard added, removed or reweighted: the share moved is the total variation distance."""
    rng = random.Random(20261127)
    for _case in range(20):
        before = {f"s{n}": rng.uniform(0.2, 5) for n in range(rng.randint(2, 8))}
        after = dict(before)
        change = rng.choice(["add", "remove", "weight"])
        name = rng.choice(list(before))
        if change == "add":
            after["new"] = rng.uniform(0.2, 5)
        elif change == "remove":
            del after[name]
        else:
            after[name] = rng.uniform(0.2, 5)
        old, new = shards(**before), shards(**after)
        assert close_to(len(moved(old, new)) / len(TENANTS), sharding.minimum(old, new)), (before, after)


def test_several_changes_at_once_may_move_more_and_the_plan_says_so() -> None:
    before, after = shards(a=1, b=1, c=1), shards(a=3, b=2, c=1)
    current = sharding.place(TENANTS, before)
    plan = sharding.plan(current, after, before=before)
    assert plan["minimum"] == pytest.approx(1 / 6)
    assert plan["share"] >= plan["minimum"] - 0.01


def test_order_does_not_matter() -> None:
    one = sharding.place(TENANTS[:500], shards(a=1, b=2, c=3))
    other = sharding.place(TENANTS[:500][::-1], shards(c=3, a=1, b=2))
    assert one == other


def test_pinned_tenants_stay_where_they_are_told_also_on_a_shard_without_weight() -> None:
    fleet = shards(a=1, b=1, big=0)
    pins = {"tenant-1": "big", "tenant-2": "a"}
    found = sharding.place(TENANTS[:200], fleet, pins=pins)
    assert (found["tenant-1"], found["tenant-2"]) == ("big", "a")
    assert Counter(found.values())["big"] == 1
    later = sharding.place(TENANTS[:200], [*fleet, Shard("c", 50)], pins=pins)
    assert (later["tenant-1"], later["tenant-2"]) == ("big", "a")
    (move,) = sharding.moves({"tenant-1": "a"}, {"tenant-1": "big"}, fleet, pins)
    assert move == sharding.Move("tenant-1", "a", "big", "pinned")


def test_by_region_tenants_stay_in_theirs_and_a_new_shard_elsewhere_moves_nobody() -> None:
    fleet = [Shard("n1", 1, "north"), Shard("n2", 1, "north"), Shard("s1", 1, "south")]
    regions = {name: "north" if number % 2 else "south" for number, name in enumerate(TENANTS)}
    before = sharding.place(TENANTS, fleet, "region", regions)
    assert all(before[name][0] == regions[name][0] for name in TENANTS)
    after = sharding.place(TENANTS, [*fleet, Shard("s2", 1, "south")], "region", regions)
    found = sharding.moves(before, after, fleet)
    assert {(move.source, move.target) for move in found} == {("s1", "s2")}


@pytest.mark.parametrize(
    ("tenants", "fleet", "options", "message"),
    [
        (["t"], {}, {}, "there are no shards"),
        (["t"], {"a": {"weight": -1}}, {}, "shard 'a': weight -1 is no number from 0 up"),
        (["t"], {"a": {"weight": "x"}}, {}, "weight 'x' is no number"),
        (["t"], {"a": {"weight": float("inf")}}, {}, "is no number"),
        (["t"], {"a": {"weigth": 1}}, {}, "unknown key 'weigth'"),
        (["t"], {"a": 3}, {}, "not a mapping"),
        (["t"], {"a": {"weight": 0}}, {}, "tenant 't' is on no shard: every shard has weight 0"),
        (["t", "t"], {"a": {}}, {}, "'t' is listed twice"),
        ([""], {"a": {}}, {}, "empty name"),
        (["t"], {"a": {}}, {"pins": {"t": "z"}}, "pinned to shard 'z', which does not exist; there are a"),
        (["t"], {"a": {}}, {"by": "size"}, "'size' is not allowed; use one of tenant, region"),
        (["t"], {"a": {"region": "north"}}, {"by": "region"}, "has no region"),
        (
            ["t"],
            {"a": {"region": "north"}},
            {"by": "region", "regions": {"t": "east"}},
            "on no shard: none with a weight is in region 'east', only in north",
        ),
        ("t", {"a": {}}, {}, "must be a list"),
    ],
)
def test_wrong_input_gets_one_clear_error(tenants: Any, fleet: Any, options: Any, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"shard_map: .*{message}"):
        filters.shard_map(tenants, fleet, **options)


def test_the_filters() -> None:
    assert filters.shard_map(["acme", "bolt"], {"s1": {}, "s2": {"weight": 0}}) == {"acme": "s1", "bolt": "s1"}
    plan = filters.shard_moves({"acme": "s1", "bolt": "s9"}, {"s1": None}, before={"s1": {}, "s9": {}})
    assert plan == {
        "moves": [{"tenant": "bolt", "from": "s9", "to": "s1", "reason": "shard is gone"}],
        "map": {"acme": "s1", "bolt": "s1"},
        "share": 0.5,
        "minimum": 0.5,
    }
    assert filters.shard_moves({}, {"s1": {}}) == {"moves": [], "map": {}, "share": 0.0, "minimum": None}
    with pytest.raises(AnsibleFilterError, match="must be a mapping"):
        filters.shard_moves(["acme"], {"s1": {}})  # type: ignore[arg-type]


def test_no_shard_with_a_weight_has_no_minimum() -> None:
    with pytest.raises(ShardingError):
        sharding.minimum(shards(a=0), shards(a=1))
