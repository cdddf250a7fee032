# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A switchover on two hosts at once, under writers: real PgBouncer and etcd; Patroni's answers are the fixture's."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import patroni, pgbouncer, registry
from ansible_collections.causeway.platform.plugins.module_utils.patroni_switchover import (
    Pooler,
    Switchover,
    SwitchoverError,
)
from ansible_collections.causeway.platform.plugins.module_utils.rendezvous import Rendezvous

_SPEC = importlib.util.spec_from_file_location("etcd_live", Path(__file__).parents[1] / "etcd/conftest.py")
assert _SPEC
assert _SPEC.loader
etcd_live = importlib.util.module_from_spec(_SPEC)
sys.modules["etcd_live"] = etcd_live
_SPEC.loader.exec_module(etcd_live)
authority, tls, server, client = etcd_live.authority, etcd_live.tls, etcd_live.server, etcd_live.client
platform, keys = etcd_live.platform, etcd_live.keys

FORK = multiprocessing.get_context("fork")
NAMES = ["db1", "db2"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def switch_over(site: Any, sessions: Any, server: Any, keys: registry.Keys) -> Run:
    """Runs the part of each host in a process of its own; returns by host what it returned, or said when it failed."""

    def run(candidate: str = "", *, hosts: list[str] | None = None, timeout: float = 3.0, hold: float = 5.0) -> Any:
        meeting, results = str(uuid.uuid4()), FORK.Manager().dict()

        def part(name: str) -> None:
            host, config = site.hosts[name], site.config(name)
            current = host.tls / "current"
            files = [str(current / file) for file in ("ca.pem", "cert.pem", "key.pem")]
            endpoints = [f"https://{site.hosts[one].address}:17010" for one in sorted(NAMES, key=lambda n: n != name)]
            pooler = Pooler(config, site.cluster(name), site.console(name), hold)
            with server.client("root") as own:
                try:
                    one = Switchover(
                        patroni.Client(endpoints, *files, username="rest", password="rest"),
                        Rendezvous(own, keys, meeting, name, members=NAMES, ttl=30),
                        pooler,
                        timeout=timeout,
                        hold=hold,
                        come=2.0,
                    )
                    results[name] = one.run(candidate, "", 1024)
                except SwitchoverError as error:
                    results[name] = str(error)

        # Each on a host of its own: who talks to PgBouncer becomes its user, and that is the whole process's.
        parts = [FORK.Process(target=part, args=(name,)) for name in hosts or NAMES]
        for one in parts:
            one.start()
        for one in parts:
            one.join()
        return dict(results)

    return run


def paused(site: Any) -> list[str]:
    return [name for name in NAMES if site.console(name).databases()["orders"]["paused"] == "1"]


def test_writers_wait_and_see_no_error(site: Any, sessions: Any, switch_over: Run) -> None:
    session = sessions()
    stop, answers = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            answers.append(session.run("INSERT INTO ledger VALUES (7) RETURNING (SELECT name FROM who);"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.3)
        results = switch_over("db2")
        time.sleep(0.3)
    finally:
        stop.set()
        writer.join()
    for name in NAMES:
        assert results[name]["changed"] is True, results
        assert (results[name]["switchover"]["from"], results[name]["switchover"]["to"]) == ("db1", "db2")
        assert 0 < results[name]["pause"] < 3
    assert answers[0] == "db1"
    assert answers[-1] == "db2"
    assert set(answers) == {"db1", "db2"}
    # Nothing went to the old leader once the new one had led.
    assert answers == sorted(answers)
    assert paused(site) == []


def test_the_second_time_there_is_nothing_to_do(site: Any, switch_over: Run) -> None:
    assert switch_over("db1") == {name: {"changed": False} for name in NAMES}
    assert site.leader == "db1"


@pytest.mark.parametrize("who", NAMES)
def test_a_transaction_that_does_not_end_stops_all(site: Any, sessions: Any, switch_over: Run, who: str) -> None:
    """On either host, and nobody is held afterwards."""
    session = sessions(host=str(site.hosts[who].socket), port=site.config(who).port)
    session.run("BEGIN; SELECT name FROM who;")
    results = switch_over("db2", timeout=0.5)
    assert all("transactions still ran after 0.5 s" in str(error) for error in results.values()), results
    assert (paused(site), site.leader) == ([], "db1")
    session.run("ROLLBACK;")


def test_patronis_refusal_reaches_everybody(site: Any, sessions: Any, switch_over: Run) -> None:
    site.refuse = "no good candidates have been found"
    try:
        results = switch_over("db2")
    finally:
        site.refuse = ""
    assert all("no good candidates" in str(results[name]) for name in NAMES), results
    assert (paused(site), site.leader) == ([], "db1")


def test_a_candidate_that_is_no_member_and_a_host_that_does_not_come(site: Any, switch_over: Run) -> None:
    results = switch_over("db7")
    assert all("'db7' is not a member of orders; members: db1, db2" in str(results[name]) for name in NAMES)
    results = switch_over("db2", hosts=["db1"])
    assert "db2 did not come to step 'here'" in str(results["db1"])
    assert (paused(site), site.leader) == ([], "db1")


def test_a_promotion_that_does_not_come_lets_the_writers_go(site: Any, switch_over: Run) -> None:
    site.stuck = True
    try:
        results = switch_over("db2", hold=1.0)
    finally:
        site.stuck = False
    assert all("nobody came to step 'leads' within 1 s" in str(results[name]) for name in NAMES), results
    assert paused(site) == []
    assert pgbouncer.read_mark(site.config("db1"), site.cluster("db1")).ended


def test_a_registry_that_is_lost_while_writers_wait_lets_them_go(site: Any, switch_over: Run, server: Any) -> None:
    site.stuck = True
    stop = threading.Timer(1.5, server.stop)
    stop.start()
    began = time.monotonic()
    try:
        results = switch_over("db2", hold=8.0)
        waited = time.monotonic() - began
        held = paused(site)
    finally:
        stop.join()
        site.stuck = False
        server.start()
        server.wait()
    assert sorted(results) == NAMES, results
    assert held == []
    # Long before the pause would have ended by itself.
    assert waited < 10, (waited, results)
