# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""registry_release and judged releases, against a real etcd."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd, registry

Run = Callable[..., dict[str, Any]]
BEGIN = {"id": "r1", "strategy": "canary", "version": "1.1.0", "from": "1.0.0"}
ANALYSIS = {
    "at": "t1",
    "verdict": "pass",
    "reason": "no difference",
    "metrics": [{"name": "errors", "verdict": "pass"}],
}
UP = ("preparing", "testing", "shifting", "baking", "promoted", "settled")


@pytest.fixture
def release(run_module: Run) -> Run:
    """The module for the service orders; fails the test when the module fails, unless the test expects it."""

    def run(fails: str = "", **options: Any) -> dict[str, Any]:
        result = run_module("registry_release", service="orders", **options)
        if fails:
            assert result.get("failed"), result
            assert fails in result["msg"]
            assert "\n" not in result["msg"]
        else:
            assert not result.get("failed"), result
        return result

    return run


def four_steps(run: Run, **options: Any) -> dict[str, Any]:
    """Check mode, run, check mode, run; returns what the real run said."""
    before = run()
    assert run(check_mode=True, **options)["changed"]
    assert (run()["release"], run()["command"]) == (before["release"], before["command"])
    result = run(**options)
    assert result["changed"]
    for check_mode in (True, False):
        assert not run(check_mode=check_mode, **options)["changed"]
    return result


def test_a_release_from_the_plan_to_its_end(release: Run) -> None:
    begun = four_steps(release, begin=BEGIN)
    record = begun["release"]
    assert (record["current"], record["state"]) == ("1.0.0", "canary")
    assert record["release"]["state"] == "planned"
    assert record["history"] == [
        {"version": "1.1.0", "from": "1.0.0", "started": record["release"]["started"], "strategy": "canary"}
    ]
    four_steps(release, transition={"to": "preparing"})
    four_steps(release, transition={"to": "testing", "reason": "healthy"})
    shifting = four_steps(release, transition={"to": "shifting"}, step=0, weight=5)
    assert shifting["release"]["release"]["weights"][-1]["weight"] == 5
    judged = four_steps(release, analysis=ANALYSIS)
    assert judged["release"]["release"]["analyses"][0]["weight"] == 5
    four_steps(release, step=1, weight=25)
    four_steps(release, transition={"to": "baking", "evidence": ANALYSIS}, weight=100)
    four_steps(release, transition={"to": "promoted"})
    ended = four_steps(release, weight=0, transition={"to": "settled", "reason": "judged well"})["release"]
    assert (ended["current"], ended["previous"], ended["state"]) == ("1.1.0", "1.0.0", "live")
    last = ended["history"][-1]
    assert len(ended["history"]) == 1
    assert (last["outcome"], last["reason"], last["strategy"]) == ("live", "judged well", "canary")
    assert last["finished"] == ended["release"]["changed"]
    assert [one["to"] for one in ended["release"]["transitions"]] == ["planned", *UP]
    assert ended["release"]["transitions"][5]["evidence"] is None
    assert ended["release"]["transitions"][4]["evidence"]["verdict"] == "pass"


@pytest.mark.parametrize(("end", "outcome"), [("rolled back", "rolled back"), ("aborted", "aborted")])
@pytest.mark.parametrize("steps", range(6))
def test_each_end_from_each_state_leaves_the_old_version_current(
    release: Run, end: str, outcome: str, steps: int
) -> None:
    release(current="1.0.0", previous="0.9.0")
    release(begin=BEGIN)
    for state in UP[:steps]:
        release(transition={"to": state})
    ended = release(transition={"to": end, "reason": "too many errors"})["release"]
    assert (ended["current"], ended["previous"], ended["state"]) == ("1.0.0", "0.9.0", outcome)
    assert ended["history"][-1]["outcome"] == outcome
    assert ended["history"][-1]["reason"] == "too many errors"
    release(transition={"to": "settled"}, fails="allowed: none, it has ended")
    release(weight=5, fails="has ended")
    release(begin={**BEGIN, "id": "r2"})


def test_a_state_that_cannot_follow_changes_nothing(release: Run) -> None:
    release(transition={"to": "preparing"}, fails="no release has begun")
    before = release(begin=BEGIN)
    release(
        transition={"to": "promoted"},
        weight=100,
        fails="cannot go from planned to promoted; allowed: preparing, rolled back, aborted",
    )
    after = release()
    assert (after["release"], after["revision"]) == (before["release"], before["revision"])


def test_two_releases_at_once(release: Run) -> None:
    release(begin=BEGIN)
    release(transition={"to": "preparing"})
    # The same one once more: its controller died before any user met it.
    again = release(begin={**BEGIN, "id": "r2"})["release"]["release"]
    assert (again["id"], again["state"]) == ("r1", "planned")
    for state in UP[:3]:
        release(transition={"to": state})
    release(begin={**BEGIN, "id": "r3"}, fails="r1 (canary of 1.1.0) is under way, in state shifting")
    release(begin={**BEGIN, "id": "r3", "version": "1.2.0"}, fails="release_abort or release_rollback")


def test_two_writers_get_one_clear_error(
    release: Run, client: etcd.EtcdClient, keys: registry.Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = release(begin=BEGIN)
    release(transition={"to": "preparing"})
    release(transition={"to": "testing"}, expect_revision=begun["revision"], fails="expect_revision says")
    # The other one writes between this one's read and write.
    real, others = etcd.EtcdClient.txn, itertools.count()

    def txn(self: etcd.EtcdClient, *args: Any) -> Any:
        if next(others) == 0:
            client.put(keys.of("releases", "orders"), json.dumps({"state": "theirs"}))
        return real(self, *args)

    monkeypatch.setattr(etcd.EtcdClient, "txn", txn)
    release(transition={"to": "testing"}, fails="was changed by somebody else")
    monkeypatch.undo()
    assert release()["release"] == {"state": "theirs"}


def test_only_the_holder_of_the_lock_writes(
    release: Run, run_module: Run, client: etcd.EtcdClient, keys: registry.Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(begin=BEGIN, owner="me", fails="lock orders is not held by me")
    run_module("etcd_lock", name="orders", owner="me")
    release(begin=BEGIN, owner="you", fails="lock orders is held by me")
    release(begin=BEGIN, owner="me")
    real, others = etcd.EtcdClient.txn, itertools.count()

    def txn(self: etcd.EtcdClient, *args: Any) -> Any:
        if next(others) == 0:
            client.put(keys.of("locks", "orders"), json.dumps({"owner": "you"}))
        return real(self, *args)

    monkeypatch.setattr(etcd.EtcdClient, "txn", txn)
    release(transition={"to": "preparing"}, owner="me", fails="lock or a request of the release of orders changed")
    monkeypatch.undo()
    assert release()["release"]["release"]["state"] == "planned"


def test_requests_of_operators(release: Run, client: etcd.EtcdClient, keys: registry.Keys) -> None:
    release(command="abort", fails="service orders: no release is under way, so there is nothing to abort")
    release(begin=BEGIN)
    release(command="promote", fails="is in state planned; promote is allowed in: shifting, baking")
    for state in UP[:3]:
        release(transition={"to": state})
    release(command="resume", fails="is not paused")
    paused = four_steps(release, command="pause", command_by="alice")
    assert {name: paused["command"][name] for name in ("command", "by", "release")} == {
        "command": "pause",
        "by": "alice",
        "release": "r1",
    }
    # It outlives writes of the controller.
    assert release(weight=25)["command"]["revision"] == paused["command"]["revision"]
    resumed = four_steps(release, command="resume")
    # A request that came after the one that was obeyed stays.
    release(command="abort", command_by="bob")
    assert not release(command="none", command_revision=resumed["command"]["revision"])["changed"]
    assert release()["command"]["by"] == "bob"
    ended = release(transition={"to": "aborted", "reason": "bob asked"})
    assert ended["command"] == {}
    assert client.get(keys.of("commands", "orders")) is None
    release(command="abort", fails="the last one, of version 1.1.0, is aborted since")


def test_a_request_for_another_release_is_not_seen(release: Run, client: etcd.EtcdClient, keys: registry.Keys) -> None:
    client.put(keys.of("commands", "orders"), json.dumps({"command": "abort", "release": "r0"}))
    assert release()["command"] == {}
    assert client.get(keys.of("commands", "orders")) is not None
    assert release(begin=BEGIN)["command"] == {}
    assert client.get(keys.of("commands", "orders")) is None
    for name in ("abort", "none"):
        assert release(command=name)["changed"]
    assert release()["command"] == {}


def test_the_value_stays_far_below_what_etcd_takes(release: Run, client: etcd.EtcdClient, keys: registry.Keys) -> None:
    release(begin={**BEGIN, "reason": "x" * 10_000})
    metrics = [{"name": f"metric {n}", "verdict": "pass", "reason": "y" * 5_000} for n in range(50)]
    record = release()["release"]
    full = {"verdict": "inconclusive", "reason": "z" * 5_000, "step": 0, "weight": 5, "metrics": metrics}
    record["release"]["analyses"] = [{**full, "at": f"t{n}"} for n in range(40)]
    client.put(keys.of("releases", "orders"), json.dumps({**record, "release": {**record["release"], "analyses": []}}))
    for number in range(30):
        release(analysis={**full, "at": f"t{number}"})
    kv = client.get(keys.of("releases", "orders"))
    assert kv
    assert len(kv.value) < 300 << 10
    kept = kv.json()["release"]["analyses"]
    assert kept[-1]["at"] == "t29"
    assert 5 < len(kept) < 30
