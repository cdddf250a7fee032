# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about a cluster, from an answer of Patroni 4.0.7 as the lab gave it; the files of its members."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import patroni, patroni_config, patroni_report

# GET /cluster of three members, written by hand after what the lab answered.
ANSWER: dict[str, Any] = {
    "members": [
        {
            "name": "core1",
            "role": "replica",
            "state": "streaming",
            "api_url": "https://10.79.1.21:17110/patroni",
            "host": "10.79.1.21",
            "port": 15110,
            "timeline": 1,
            "lag": 0,
        },
        {
            "name": "core2",
            "role": "leader",
            "state": "running",
            "api_url": "https://10.79.2.21:17110/patroni",
            "host": "10.79.2.21",
            "port": 15110,
            "timeline": 1,
        },
        {
            "name": "core3",
            "role": "sync_standby",
            "state": "streaming",
            "api_url": "https://10.79.3.21:17110/patroni",
            "host": "10.79.3.21",
            "port": 15110,
            "timeline": 1,
            "lag": 0,
        },
    ],
    "scope": "orders",
}
ALL = ["core1", "core2", "core3"]


def view(**changes: Any) -> patroni.Cluster:
    """That answer with other values, ``core1={"state": "stopped"}``; ``None`` takes a member away."""
    raw = copy.deepcopy(ANSWER)
    for name, values in changes.items():
        if name not in ALL:
            raw[name] = values
        elif values is None:
            raw["members"] = [one for one in raw["members"] if one["name"] != name]
        else:
            next(one for one in raw["members"] if one["name"] == name).update(values)
    return patroni.parse_cluster(raw)


def test_the_recorded_answer() -> None:
    told = view().as_dict()
    assert (told["leader"], told["timeline"], told["paused"]) == ("core2", 1, False)
    assert told["sync_standbys"] == ["core3"]
    assert told["streaming"] == ["core1", "core3"]
    assert told["members"][0]["endpoint"] == "https://10.79.1.21:17110"
    with pytest.raises(patroni.PatroniError, match="has no members"):
        patroni.parse_cluster({})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"core1": {"state": "in archive recovery"}}, []),
        ({"core1": {"state": "starting"}}, ["core1 is replica and starting"]),
        ({"core1": None}, ["core1 is not a member yet"]),
        ({"core1": {"timeline": 2}}, ["core1 is on timeline 2, the leader on 1"]),
        ({"core1": {"lag": 2000}}, ["core1 is behind by 2000 bytes, allowed are 1000"]),
        ({"core1": {"lag": "unknown"}}, ["core1 is behind by unknown, allowed are 1000"]),
        ({"core3": {"role": "replica"}}, ["0 of 1 synchronous standbys follow"]),
        ({"core2": {"state": "stopping"}}, ["there is no leader", "core2 is leader and stopping"]),
    ],
)
def test_health(changes: dict[str, Any], words: list[str]) -> None:
    assert patroni.health_problems(view(**changes), members=ALL, synchronous=1, max_lag=1000) == words


@pytest.mark.parametrize(
    ("changes", "candidate", "words"),
    [
        ({}, "", []),
        ({}, "core3", []),
        ({}, "core1", ["core1 is not a synchronous standby"]),
        ({}, "core2", ["candidate 'core2' is not a replica; allowed: core1, core3"]),
        ({"core3": {"state": "starting"}}, "", ["core1 is not a synchronous standby", "core3 is starting"]),
        ({"core3": {"lag": 5000}}, "core3", ["core3 is behind by 5000 bytes"]),
        ({"core3": {"tags": {"nofailover": True}}}, "core3", ["core3 is tagged nofailover"]),
        ({"pause": True}, "", ["the cluster is paused, so a candidate must be named"]),
        ({"core1": None, "core3": None}, "", ["there is no replica"]),
    ],
)
def test_switchover(changes: dict[str, Any], candidate: str, words: list[str]) -> None:
    assert patroni.switchover_problems(view(**changes), candidate, True, 1000) == words


def test_restart_order() -> None:
    waiting = view(core2={"pending_restart": True}, core3={"pending_restart": True})
    assert patroni.restart_order(waiting, [], pending=True) == ["core3", "core2"]
    assert patroni.restart_order(waiting, [], pending=False) == ["core1", "core3", "core2"]
    assert patroni.restart_order(waiting, ["core1"], pending=True) == []
    with pytest.raises(patroni.PatroniError, match="'core9' is not a member of orders; allowed: core1, core2, core3"):
        patroni.restart_order(waiting, ["core9"], pending=True)


@pytest.mark.parametrize(
    ("current", "wanted", "patch"),
    [
        ({"ttl": 30}, {"ttl": 20}, {"ttl": 20}),
        ({"ttl": 20, "pause": True}, {"ttl": 20}, {}),
        ({"ttl": 20, "standby_cluster": {"host": "x"}}, {"standby_cluster": None}, {"standby_cluster": None}),
        ({}, {"standby_cluster": None}, {}),
        ({"failsafe_mode": 1}, {"failsafe_mode": True}, {"failsafe_mode": True}),
        (
            {"postgresql": {"use_slots": True, "parameters": {"max_connections": 100, "wal_level": "replica", "x": 1}}},
            {"postgresql": {"parameters": {"max_connections": "100", "wal_level": "logical"}}},
            {"postgresql": {"parameters": {"wal_level": "logical", "x": None}}},
        ),
    ],
)
def test_config_patch(current: dict[str, Any], wanted: dict[str, Any], patch: dict[str, Any]) -> None:
    assert patroni.config_patch(current, wanted) == patch
    # What Patroni makes of the patch needs no further one.
    assert patroni.config_patch(patroni.apply_patch(current, patch), wanted) == {}


def test_gates() -> None:
    activity = {
        "transactions": [{"role": "orders", "database": "orders", "application": "", "pid": 7, "seconds": 94.2}],
        "prepared": [],
    }
    assert patroni_report.gate_problems(view().as_dict(), {}, members=2, max_lag=0, longest=30) == []
    assert patroni_report.gate_problems(view(pause=True).as_dict(), activity, members=4, longest=30) == [
        "Patroni is paused: resume it first",
        "3 members are well, 4 are needed",
        "a transaction of orders in orders (no name, pid 7) is open for 94.2 s, allowed are 30",
    ]


def test_report() -> None:
    moved = {"from": "core2", "to": "core3", "seconds": 2.2}
    told = patroni_report.report("database_switchover", "orders", view().as_dict(), switchover=moved, pause=2.5)
    assert told["outcome"] == "done"
    assert told["text"][:3] == [
        "database_switchover of orders: done",
        "  leadership: core2 -> core3 in 2.2 s",
        "  clients waited at the poolers for at most 2.5 s",
    ]
    assert told["text"][4].split() == ["core1", "replica", "streaming", "1", "0", "-"]
    refused = patroni_report.report("database_restart", "orders", None, problems=["there is no leader"])
    assert (refused["outcome"], refused["text"][-1].strip()) == ("refused", "no member answers")


# --- files of members -------------------------------------------------------------------------------------------

CLUSTER: dict[str, Any] = {
    "name": "orders",
    "database": "orders",
    "port": 15110,
    "rest_port": 17110,
    "members": [{"host": name, "address": f"10.79.{number}.21"} for number, name in enumerate(ALL, 1)],
    "synchronous": 1,
    "strict": False,
    "extensions": ["pg_stat_statements"],
    "pool": {"size": 20, "reserve": 5, "clients": 400},
    "settings": {"work_mem": "32MB"},
}
SETTINGS: dict[str, Any] = {
    "platform": "shop",
    "endpoints": ["https://10.79.1.21:2379"],
    "tls": "/etc/causeway/tls/database/current",
    "bin_path": "/usr/lib/postgresql/17/bin",
    "data_path": "/var/lib/postgresql/17",
    "socket_path": "/run/postgresql",
    "ttl": "20",
    "loop_wait": "2",
    "retry_timeout": "5",
    "maximum_lag_on_failover": "1048576",
    "primary_stop_timeout": "20",
    "member_slots_ttl": "30min",
    "watchdog": "automatic",
    "log_level": "INFO",
    "archive": {"archive_command": "push {cluster} %p", "restore_command": "get {cluster} %f %p"},
    "callback": "/usr/lib/causeway/pgbouncer/role-change",
}
MACHINE = {"memory": 4 * 2**30, "cpus": 2, "most_cpus": 8, "disk": "ssd", "space": 0}
SECRETS = {"database": "d" * 32, "registry": "r" * 32}


def files(**changes: Any) -> dict[str, dict[str, Any]]:
    """Files of host core1 for the cluster with other values."""
    return patroni_config.members({"orders": {**CLUSTER, **changes}}, "core1", SETTINGS, MACHINE, SECRETS)


def test_members_have_the_files_of_their_clusters_only() -> None:
    assert list(files()) == ["orders"]
    assert patroni_config.members({"orders": CLUSTER}, "app1", SETTINGS, MACHINE, SECRETS) == {}
    assert patroni_config.rest_endpoints(CLUSTER, "core2")[0] == "https://10.79.2.21:17110"


def test_what_members_share_is_not_in_their_own_part() -> None:
    one = files()["orders"]
    shared, own = one["bootstrap"]["dcs"]["postgresql"]["parameters"], one["postgresql"]["parameters"]
    assert not set(shared) & set(own)
    assert {"max_connections", "wal_level", "max_worker_processes"} <= set(shared)
    assert (own["work_mem"], own["ssl_min_protocol_version"], own["archive_mode"]) == ("32MB", "TLSv1.3", "on")
    assert own["archive_command"] == "push orders %p"
    assert one["postgresql"]["recovery_conf"] == {"restore_command": "get orders %f %p"}


def test_only_members_may_change_something() -> None:
    api = files()["orders"]["restapi"]
    assert (api["verify_client"], api["listen"]) == ("required", "10.79.1.21:17110")
    assert api["allowlist"] == ["10.79.1.21", "10.79.2.21", "10.79.3.21"]
    assert api["authentication"]["password"] != files()["orders"]["etcd3"]["password"]


@pytest.mark.parametrize(
    ("synchronous", "strict", "mode"),
    [(0, True, (False, False, 1)), (1, False, (True, False, 1)), (2, True, (True, True, 2))],
)
def test_synchronous_replication(synchronous: int, strict: bool, mode: tuple[bool, bool, int]) -> None:
    shared = files(synchronous=synchronous, strict=strict)["orders"]["bootstrap"]["dcs"]
    assert (shared["synchronous_mode"], shared["synchronous_mode_strict"], shared["synchronous_node_count"]) == mode


def test_of_numbers_the_largest_is_shared() -> None:
    small, large = (files()["orders"]["bootstrap"]["dcs"] for _one in range(2))
    large["postgresql"]["parameters"]["max_worker_processes"] = "100"
    small["postgresql"]["parameters"]["max_worker_processes"] = "9"
    for order in ([small, large], [large, small]):
        assert patroni_config.merged(order)["postgresql"]["parameters"]["max_worker_processes"] == "100"


def test_refused() -> None:
    with pytest.raises(patroni.PatroniError, match="settings: 'ssl' is set by the platform"):
        files(settings={"ssl": "off"})
    with pytest.raises(patroni.PatroniError, match="database orders on core1: memory"):
        patroni_config.members({"orders": CLUSTER}, "core1", SETTINGS, {**MACHINE, "memory": 1}, SECRETS)
    for endpoints, words in (([], "name at least one"), (["http://a"], "'http://a' is not an https address")):
        with pytest.raises(patroni.PatroniError, match=words):
            patroni.Client(endpoints, "", "", "")
