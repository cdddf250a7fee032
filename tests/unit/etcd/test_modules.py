# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry's modules against a real etcd, with stand-ins for the node agents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd, registry

from .conftest import SECRET, Agent, Authority, Server, free_port

Run = Callable[..., dict[str, Any]]
Put = Callable[..., None]
Start = Callable[..., Agent]


def four_steps(run: Run, module_name: str, /, **params: Any) -> dict[str, Any]:
    """Check mode, run, check mode, run; returns what the real run said."""
    assert run(module_name, check_mode=True, **params)["changed"]
    result = run(module_name, **params)
    assert not result.get("failed"), result
    assert result["changed"]
    for check_mode in (True, False):
        again = run(module_name, check_mode=check_mode, **params)
        assert not again.get("failed"), again
        assert not again["changed"]
    return result


# --- registry_instance ------------------------------------------------------------------------------------------


def test_drain_and_register(
    run_module: Run, instance: Put, agent: Start, client: etcd.EtcdClient, keys: registry.Keys
) -> None:
    instance("app1/0")
    instance("app1/1")
    agent("edge1/gateway", busy=3)
    agent("edge2/gateway", delay=0.1)
    agent("app9/sidecar-other", services=("other",), deaf=True)
    names = ["app1/0", "app1/1"]
    result = four_steps(run_module, "registry_instance", service="orders", instances=names, state="drained", by="test")
    assert set(result["acknowledgements"]) == {"edge1/gateway", "edge2/gateway"}
    for said in result["acknowledgements"].values():
        assert said["revision"] >= result["revision"]
        assert said["active"] == 0
        assert 0 < said["after_seconds"] < 5
    assert result["diff"] == {"before": dict.fromkeys(names, "present"), "after": dict.fromkeys(names, "draining")}
    marks = client.range(keys.of("drains", "orders") + "/")[0]
    assert [mark.json()["by"] for mark in marks] == ["test", "test"]
    # One transaction for both.
    assert len({mark.mod_revision for mark in marks}) == 1
    result = four_steps(run_module, "registry_instance", service="orders", instances=names, state="present")
    assert set(result["acknowledgements"]) == {"edge1/gateway", "edge2/gateway"}
    assert client.range(keys.of("drains", "orders") + "/")[0] == []


def test_drain_names_the_proxy_that_is_late(run_module: Run, instance: Put, agent: Start) -> None:
    instance("app1/0")
    agent("edge1/gateway")
    agent("edge2/gateway", deaf=True)
    result = run_module("registry_instance", service="orders", instances=["app1/0"], state="drained", timeout=0.5)
    assert result["failed"]
    assert list(result["missing"]) == ["edge2/gateway"]
    assert "app1/0 not drained within 0.5 s: edge2/gateway: acknowledged revision" in result["msg"]
    assert list(result["acknowledgements"]) == ["edge1/gateway"]


def test_drain_waits_for_requests_in_flight(
    run_module: Run, instance: Put, client: etcd.EtcdClient, keys: registry.Keys
) -> None:
    instance("app1/0")
    client.put(keys.of("proxies", "edge1/gateway"), json.dumps({"services": ["orders"]}))
    drain = {"service": "orders", "instances": ["app1/0"], "state": "drained", "timeout": 0.4}

    def acknowledge(active: dict[str, int] | None) -> None:
        entry = {"revision": 2**40, "at": 1.0, **({} if active is None else {"active": active})}
        client.put(keys.of("acks", "edge1/gateway"), json.dumps({"services": {"orders": entry}}))

    acknowledge(None)
    assert "has not reported its requests in flight to app1/0" in run_module("registry_instance", **drain)["msg"]
    acknowledge({"app1/0": 2, "app2/0": 5})
    assert "2 requests in flight to app1/0" in run_module("registry_instance", **drain)["msg"]
    timer = threading.Timer(0.5, acknowledge, [{"app1/0": 0, "app2/0": 5}])
    timer.start()
    result = run_module("registry_instance", **{**drain, "timeout": 30})
    assert not result.get("failed"), result
    timer.join()


def test_proxy_that_dies_is_not_waited_for(
    run_module: Run, instance: Put, client: etcd.EtcdClient, keys: registry.Keys
) -> None:
    instance("app1/0")
    key = keys.of("proxies", "edge1/gateway")
    client.put(key, json.dumps({"services": ["orders"]}))
    threading.Timer(0.4, client.delete, [key]).start()
    result = run_module("registry_instance", service="orders", instances=["app1/0"], state="drained", timeout=10)
    assert not result.get("failed"), result
    assert result["acknowledgements"] == {}


def test_minimum_of_proxies(run_module: Run, instance: Put) -> None:
    instance("app1/0")
    result = run_module(
        "registry_instance", service="orders", instances=["app1/0"], state="drained", timeout=0.3, minimum_proxies=1
    )
    assert "fewer than 1 live proxies are in front of orders" in result["msg"]


def test_present_waits_for_the_version(run_module: Run, instance: Put, agent: Start) -> None:
    instance("app1/0", version="1.0.0")
    agent("edge1/gateway")
    wanted = {"service": "orders", "instances": ["app1/0", "app2/0"], "version": "1.1.0"}
    result = run_module("registry_instance", **wanted, timeout=0.3)
    assert "app1/0: runs version 1.0.0, 1.1.0 is needed" in result["msg"]
    assert "app2/0: is not registered" in result["msg"]
    timers = [threading.Timer(0.2 + n / 5, instance, [name, "1.1.0"]) for n, name in enumerate(wanted["instances"])]
    for timer in timers:
        timer.start()
    result = run_module("registry_instance", **wanted, timeout=30)
    assert not result.get("failed"), result
    assert not result["changed"]
    for timer in timers:
        timer.join()


def test_removed(run_module: Run, instance: Put, agent: Start, client: etcd.EtcdClient, keys: registry.Keys) -> None:
    instance("app1/0")
    agent("edge1/gateway")
    run_module("registry_instance", service="orders", instances=["app1/0"], state="drained")
    result = four_steps(run_module, "registry_instance", service="orders", instances=["app1/0"], state="removed")
    assert list(result["acknowledgements"]) == ["edge1/gateway"]
    assert client.range(keys.of("services"))[0] == client.range(keys.of("drains"))[0] == []


@pytest.mark.parametrize("name", ["app1", "app1/10", "App1/0", "../x/0", "app1/0/0", ""])
def test_bad_instances_are_refused(run_module: Run, name: str) -> None:
    result = run_module("registry_instance", service="orders", instances=[name], state="drained")
    assert "is not of the form host/slot" in result["msg"]


# --- traffic_split ----------------------------------------------------------------------------------------------


def test_traffic_split(
    run_module: Run, instance: Put, agent: Start, client: etcd.EtcdClient, keys: registry.Keys
) -> None:
    instance("app1/0")
    instance("app2/0", pool="candidate")
    agent("edge1/gateway", delay=0.05)
    result = four_steps(run_module, "traffic_split", service="orders", weights={"stable": 90, "candidate": 10})
    assert result["diff"] == {"before": {"stable": 100, "candidate": 0}, "after": {"stable": 90, "candidate": 10}}
    assert result["acknowledgements"]["edge1/gateway"]["revision"] >= result["revision"]
    kv = client.get(keys.of("traffic", "orders"))
    assert kv is not None
    assert kv.mod_revision == result["revision"]
    assert kv.json()["weights"] == {"stable": 90, "candidate": 10}
    stale = run_module(
        "traffic_split", service="orders", weights={"stable": 100}, expect_revision=result["revision"] - 1
    )
    assert f"last changed at revision {result['revision']}, expect_revision says" in stale["msg"]
    back = run_module("traffic_split", service="orders", weights={"stable": 100}, expect_revision=result["revision"])
    assert back["changed"]
    assert back["previous"] == {"stable": 90, "candidate": 10}


def test_weights_written_but_not_acknowledged(run_module: Run, instance: Put, agent: Start) -> None:
    instance("app1/0")
    instance("app2/0", pool="candidate")
    agent("edge1/gateway", deaf=True)
    result = run_module("traffic_split", service="orders", weights={"candidate": 100}, timeout=0.3)
    assert result["failed"]
    assert "written but not in force everywhere after 0.3 s: edge1/gateway" in result["msg"]


def test_two_writers_of_weights(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    registry.set_weights(client, keys, "orders", {"stable": 50, "candidate": 50}, 0)
    with pytest.raises(registry.RegistryError, match="changed by somebody else"):
        registry.set_weights(client, keys, "orders", {"stable": 60, "candidate": 40}, 0)


def test_empty_pool_gets_no_traffic(run_module: Run, instance: Put) -> None:
    instance("app1/0")
    result = run_module("traffic_split", service="orders", weights={"stable": 90, "candidate": 10})
    assert "pool 'candidate' of service orders would get 10 %" in result["msg"]
    assert not run_module(
        "traffic_split", service="orders", weights={"stable": 90, "candidate": 10}, require_instances=False
    ).get("failed")


# --- etcd_lock --------------------------------------------------------------------------------------------------


def test_lock(run_module: Run) -> None:
    assert run_module("etcd_lock", check_mode=True, name="orders")["changed"]
    first = run_module("etcd_lock", name="orders", purpose="release 1.1.0", ttl=30)
    assert first["changed"]
    assert first["lock"]["owner"] == first["owner"]
    assert first["lock"]["ttl"] == 30
    second = run_module("etcd_lock", name="orders", purpose="release 1.2.0")
    assert second["failed"]
    for words in (first["owner"], first["lock"]["at"], "release 1.1.0", "is held by"):
        assert words in second["msg"]
    assert not run_module("etcd_lock", name="orders", owner=first["owner"])["changed"]
    assert not run_module("etcd_lock", name="orders", owner=first["owner"], state="renewed")["changed"]
    assert run_module("etcd_lock", name="orders", owner="thief", state="unlocked")["failed"]
    assert run_module("etcd_lock", name="orders", owner="thief", state="renewed")["failed"]
    four_steps(run_module, "etcd_lock", name="orders", owner=first["owner"], state="unlocked")
    third = run_module("etcd_lock", name="orders", owner="third")
    assert third["changed"]
    assert run_module("etcd_lock", name="orders", owner="x", state="unlocked", force=True)["changed"]


def test_lock_frees_itself(run_module: Run, client: etcd.EtcdClient, keys: registry.Keys) -> None:
    run_module("etcd_lock", name="orders", owner="dead", ttl=2)
    started = time.monotonic()
    assert run_module("etcd_lock", name="orders", owner="next", wait=20)["changed"]
    assert 1.0 < time.monotonic() - started < 15
    lost = run_module("etcd_lock", name="orders", owner="dead", state="renewed")
    assert "lock orders was lost by dead" in lost["msg"]
    client.delete(keys.of("locks", "orders"))
    lost = run_module("etcd_lock", name="orders", owner="next", state="renewed")
    assert "its lease ran out" in lost["msg"]


def test_one_of_many_gets_the_lock(server: Server, keys: registry.Keys) -> None:
    won: list[str] = []
    refused: list[str] = []

    def run(owner: str) -> None:
        with server.client("root") as client:
            try:
                won.append(registry.acquire(client, keys, "orders", owner=owner, purpose="", ttl=30).owner)
            except registry.RegistryError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=run, args=(f"o{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 7
    assert all(won[0] in message for message in refused)


# --- registry_release -------------------------------------------------------------------------------------------


def test_release_record(run_module: Run) -> None:
    empty = run_module("registry_release", service="orders")
    assert (empty["release"], empty["revision"], empty["changed"]) == ({}, 0, False)
    begin = four_steps(
        run_module,
        "registry_release",
        service="orders",
        release_state="rolling",
        entry={"version": "1.1.0", "from": "1.0.0", "started": "t1"},
    )
    done = four_steps(
        run_module,
        "registry_release",
        service="orders",
        current="1.1.0",
        previous="1.0.0",
        release_state="live",
        entry={"version": "1.1.0", "started": "t1", "finished": "t2", "outcome": "live"},
    )
    assert done["release"] == {
        "current": "1.1.0",
        "previous": "1.0.0",
        "state": "live",
        "history": [{"version": "1.1.0", "from": "1.0.0", "started": "t1", "finished": "t2", "outcome": "live"}],
    }
    stale = run_module("registry_release", service="orders", current="9", expect_revision=begin["revision"])
    assert "expect_revision says" in stale["msg"]


# --- release_wait -----------------------------------------------------------------------------------------------

RELEASE = {"id": "orders-1", "strategy": "canary", "version": "1.1.0", "from": "1.0.0"}


@pytest.fixture
def under_way(run_module: Run) -> str:
    """A canary that shifts traffic, under a lock; returns the lock's owner."""
    owner = run_module("etcd_lock", name="orders", purpose="test", ttl=5)["owner"]
    assert not run_module("registry_release", service="orders", begin=RELEASE, owner=owner).get("failed")
    for state in ("preparing", "testing", "shifting"):
        assert not run_module("registry_release", service="orders", transition={"to": state}, owner=owner).get("failed")
    return str(owner)


def test_a_wait_lasts_as_long_as_it_is_told_to_over_several_runs(run_module: Run, under_way: str) -> None:
    first = run_module("release_wait", service="orders", seconds=1.5, slice=1, owner=under_way)
    assert (first["finished"], first["command"]) == (False, {})
    assert 1 <= first["waited"] < 1.5
    second = run_module("release_wait", service="orders", seconds=1.5, slice=1, since=first["began"], owner=under_way)
    assert second["finished"]
    assert second["waited"] >= 1.5
    assert second["release"]["release"]["state"] == "shifting"


def test_a_wait_ends_with_a_request_that_concerns_it(run_module: Run, under_way: str) -> None:
    run_module("registry_release", service="orders", command="pause", command_by="alice")
    other = run_module("release_wait", service="orders", seconds=0.2, commands=["abort"], owner=under_way)
    assert other["command"] == {}
    mine = run_module("release_wait", service="orders", seconds=60, owner=under_way)
    assert (mine["finished"], mine["command"]["command"], mine["command"]["by"]) == (True, "pause", "alice")
    assert mine["waited"] < 5


def test_a_wait_keeps_the_lock_and_tells_when_it_was_lost(run_module: Run, under_way: str) -> None:
    run_module("release_wait", service="orders", seconds=7, slice=10, owner=under_way)  # the lease has five seconds
    assert run_module("etcd_lock", name="orders", state="renewed", owner=under_way)["lock"]["owner"] == under_way
    run_module("etcd_lock", name="orders", state="unlocked", owner=under_way)
    assert "was lost by" in run_module("release_wait", service="orders", seconds=60, owner=under_way)["msg"]


def test_a_wait_ends_when_no_controller_is_left(run_module: Run, under_way: str) -> None:
    held = run_module("release_wait", service="orders", seconds=0.2, while_locked=True, commands=[])
    assert held["waited"] >= 0.2
    run_module("etcd_lock", name="orders", state="unlocked", owner=under_way)
    free = run_module("release_wait", service="orders", seconds=60, while_locked=True, commands=[])
    assert free["finished"]
    assert free["waited"] < 5


# --- registry_info ----------------------------------------------------------------------------------------------


def test_info(run_module: Run, instance: Put, agent: Start, server: Server) -> None:
    instance("app1/0")
    agent("edge1/gateway")
    run_module("etcd_lock", name="orders", owner="me", purpose="test")
    run_module("registry_instance", service="orders", instances=["app1/0"], state="drained")
    run_module("registry_release", service="catalog", current="2.0.0")
    info = run_module("registry_info")
    assert not info["changed"]
    assert (info["leader"], info["quorum"], info["spare"], info["alarms"]) == ("one", True, 0, [])
    assert [(one["endpoint"], one["healthy"], one["leader"]) for one in info["members"]] == [(server.url, True, True)]
    assert list(info["services"]) == ["catalog", "orders"]
    orders = info["services"]["orders"]
    assert [(one["host"], one["version"], one["draining"]) for one in orders["instances"]] == [("app1", "1.0.0", True)]
    assert orders["lock"]["owner"] == "me"
    assert orders["proxies"]["edge1/gateway"]["revision"] >= orders["revision"]
    assert orders["traffic"] == {"weights": {"stable": 100, "candidate": 0}, "revision": 0}
    assert info["services"]["catalog"]["release"]["current"] == "2.0.0"
    assert info["proxies"] == {"edge1/gateway": ["orders"]}
    assert list(run_module("registry_info", service="orders", gather=["content"])["services"]) == ["orders"]


# --- etcd_auth --------------------------------------------------------------------------------------------------


def test_auth_from_nothing(own_server: Server, run_module: Run) -> None:
    params: dict[str, Any] = {
        "endpoints": [own_server.url],
        "secret": SECRET,
        "hosts": {"app1": ["orders"], "edge1": []},
        "databases": ["orders", "old"],
        "password": None,
    }
    result = four_steps(run_module, "etcd_auth", **params)
    assert not result["enabled"]
    assert result["steps"][-1] == "auth_enable authentication"
    assert registry.password(SECRET, "host-app1") not in json.dumps(result)
    platform = result["steps"][1].rsplit("-", 1)[1]
    keys = registry.Keys(platform)
    with own_server.client("host-app1") as client:
        client.put(keys.of("services", "orders", "app1", 0), "{}")
    with own_server.client("database-orders") as client:
        client.put(f"/patroni/{platform}/orders/leader", "core1")
        for foreign in (f"/patroni/{platform}/old/leader", f"/patroni/{platform}/orders-2/leader", keys.of("x")):
            with pytest.raises(etcd.AuthFailed):
                client.put(foreign, "core1")
    # The service moves, a host leaves, another one comes; a database goes.
    moved = {**params, "hosts": {"app1": [], "app2": ["orders"]}, "databases": ["orders"]}
    result = four_steps(run_module, "etcd_auth", **moved)
    assert {"user_delete host-edge1", "user_delete database-old", "role_delete database-old"} <= set(result["steps"])
    with own_server.client("host-app1") as client, pytest.raises(etcd.AuthFailed):
        client.put(keys.of("services", "orders", "app1", 0), "{}")
    with own_server.client("host-app2") as client:
        client.put(keys.of("services", "orders", "app2", 0), "{}")
    # The secret changes.
    other = "f" * 32
    wrong = run_module("etcd_auth", **{**moved, "secret": other})
    assert "refuses user 'root'" in wrong["msg"]
    rotated = {**moved, "secret": other, "previous_secret": SECRET}
    result = four_steps(run_module, "etcd_auth", **rotated)
    assert [step for step in result["steps"] if step.startswith("user_password")] == [
        "user_password root",
        "user_password host-app1",
        "user_password host-app2",
        "user_password database-orders",
    ]
    with own_server.client("host-app1", registry.password(other, "host-app1")) as client:
        client.get(keys.of("x"))


# --- errors -----------------------------------------------------------------------------------------------------

CALLS = [
    ("registry_info", {}),
    ("registry_instance", {"service": "orders", "instances": ["app1/0"], "state": "drained"}),
    ("traffic_split", {"service": "orders", "weights": {"stable": 100}}),
    ("etcd_lock", {"name": "orders"}),
    ("registry_release", {"service": "orders"}),
]


@pytest.mark.parametrize(("name", "params"), CALLS, ids=[name for name, _params in CALLS])
def test_errors_are_one_clear_sentence(run_module: Run, tmp_path: Path, name: str, params: dict[str, Any]) -> None:
    url = f"https://127.0.0.1:{free_port()}"
    foreign = Authority(tmp_path, "other root").issue("x")
    for options, words in (
        ({"endpoints": [url], "request_timeout": 1.0}, f"{url}: connection refused"),
        ({"password": "wrong"}, "refuses user 'root'"),
        ({"password": None}, "user name is empty"),
        ({"ca_file": str(foreign / "ca.pem")}, "certificate is refused"),
        ({"ca_file": str(tmp_path / "none.pem")}, "cannot read"),
        ({"platform": "Not/a/label"}, "is not a DNS label"),
        ({"endpoints": []}, "endpoints is empty"),
    ):
        result = run_module(name, **{**params, **options})
        assert result["failed"], options
        assert words in result["msg"]
        assert "\n" not in result["msg"]
        assert "Traceback" not in result["msg"]
