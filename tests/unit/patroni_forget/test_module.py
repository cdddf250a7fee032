# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""patroni_forget against a real etcd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdClient

Run = Callable[..., dict[str, Any]]
FUTURE = {"status": "{}", "sync": "{}", "history": "[]", "failover": "{}"}
KEPT = {"config": "{}", "initialize": "77"}


def fill(client: EtcdClient, platform: str, **more: str) -> str:
    """Keys as Patroni leaves them; returns what is before them."""
    prefix = f"/patroni/{platform}/orders/"
    for name, value in {**FUTURE, **KEPT, **more}.items():
        client.put(prefix + name, value)
    return prefix


def left(client: EtcdClient, prefix: str) -> dict[str, str]:
    return {one.key[len(prefix) :]: one.text() for one in client.range(prefix)[0]}


def test_what_was_ahead_is_forgotten_and_the_rest_kept(client: EtcdClient, platform: str, run_module: Run) -> None:
    prefix = fill(client, platform)
    client.put(f"/patroni/{platform}/orders-eu/sync", "{}")
    steps = [
        run_module("patroni_forget", check_mode=check, cluster="orders", identity="77")
        for check in (True, False, True, False)
    ]
    assert [one["changed"] for one in steps] == [True, True, False, False]
    assert steps[0]["keys"] == sorted(FUTURE)
    assert left(client, prefix) == KEPT
    assert client.get(f"/patroni/{platform}/orders-eu/sync") is not None


def test_another_identity_is_taken_over(client: EtcdClient, platform: str, run_module: Run) -> None:
    prefix = fill(client, platform)
    run_module("patroni_forget", cluster="orders", identity="88")
    assert left(client, prefix) == {**KEPT, "initialize": "88"}
    assert not run_module("patroni_forget", cluster="orders", identity="88")["changed"]


def test_nothing_is_forgotten_while_somebody_lives(client: EtcdClient, platform: str, run_module: Run) -> None:
    lease = client.lease_grant(60)
    prefix = fill(client, platform)
    client.put(f"{prefix}members/core1", "{}", lease)
    refused = run_module("patroni_forget", cluster="orders", timeout=0.5)
    assert "still" not in refused["msg"]
    assert "a Patroni of cluster orders lives (members/core1)" in refused["msg"]
    assert set(FUTURE) <= set(left(client, prefix))
    # A member that was stopped for certain is no sign of life, its leader's key would be.
    assert not run_module("patroni_forget", cluster="orders", state="idle", stopped=["core1"])["changed"]
    client.put(f"{prefix}leader", "core1", lease)
    assert "(leader)" in run_module("patroni_forget", cluster="orders", timeout=0.5, stopped=["core1"])["msg"]
    client.lease_revoke(lease)
    assert run_module("patroni_forget", cluster="orders", timeout=5.0)["keys"] == sorted(FUTURE)
