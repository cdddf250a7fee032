"""The verbs that break the lab do what they say, once, and can be undone."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Ssh = Callable[..., subprocess.CompletedProcess[str]]
Fault = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def healed(fault: Fault) -> Iterator[None]:
    """No fault outlives its test."""
    yield
    fault(action="heal")


@pytest.fixture
def pair(hosts: dict[str, str]) -> tuple[str, str, str]:
    """Two hosts in different zones and the address of the second."""
    return "node1", "node2", hosts["node2"]


def reaches(ssh: Ssh, host: str, address: str) -> bool:
    return ssh(host, f"ping -c 2 -i 0.2 -W 1 {address}").returncode == 0


def boot(ssh: Ssh, host: str) -> str:
    return ssh(host, "cat /proc/sys/kernel/random/boot_id").stdout


def test_power_cut_keeps_the_disk_and_address(fault: Fault, ssh: Ssh, pair: tuple[str, str, str]) -> None:
    host = pair[1]
    before = boot(ssh, host)
    ssh(host, "echo kept >/var/tmp/ledger; sync")
    assert fault(action="power_off", host=host)["hosts"] == {host: "off"}
    assert not fault(action="power_off", host=host)["changed"]
    assert not reaches(ssh, pair[0], pair[2])
    assert fault(action="power_on", host=host)["changed"]
    assert not fault(action="power_on", host=host)["changed"]
    assert ssh(host, "cat /var/tmp/ledger").stdout == "kept\n"
    assert boot(ssh, host) not in ("", before)
    assert reaches(ssh, *pair[::2])


def test_pause_freezes_and_unpause_thaws(fault: Fault, ssh: Ssh, pair: tuple[str, str, str]) -> None:
    before = boot(ssh, pair[1])
    assert fault(action="pause", host=pair[1])["hosts"] == {pair[1]: "paused"}
    assert not fault(action="pause", host=pair[1])["changed"]
    with pytest.raises(subprocess.TimeoutExpired):
        ssh(pair[1], "true", timeout=2)
    assert fault(action="unpause", host=pair[1])["changed"]
    assert boot(ssh, pair[1]) == before


def test_cut_works_both_ways_and_only_there(
    fault: Fault, ssh: Ssh, pair: tuple[str, str, str], hosts: dict[str, str]
) -> None:
    assert reaches(ssh, *pair[::2])
    assert fault(action="cut", a=pair[0], b=pair[1])["changed"]
    assert not fault(action="cut", a=pair[1], b=pair[0])["changed"]
    assert not reaches(ssh, *pair[::2])
    assert not reaches(ssh, pair[1], hosts[pair[0]])
    assert reaches(ssh, pair[0], hosts["node3"])
    assert fault(action="heal", a=pair[0])["faults"] == []
    assert reaches(ssh, *pair[::2])


def test_cut_survives_a_power_cut(fault: Fault, ssh: Ssh, pair: tuple[str, str, str]) -> None:
    fault(action="cut", a=pair[0], b=pair[1])
    fault(action="power_off", host=pair[1])
    fault(action="power_on", host=pair[1])
    assert not reaches(ssh, *pair[::2])


def test_zones_are_cut_as_a_whole(fault: Fault, ssh: Ssh, hosts: dict[str, str]) -> None:
    assert fault(action="cut", a="east-a", b="east-b")["faults"] == ["cut between east-a and east-b"]
    assert not reaches(ssh, "edge1", hosts["node2"])
    assert not reaches(ssh, "node1", hosts["edge2"])
    assert reaches(ssh, "node1", hosts["edge1"])


def test_isolated_host_still_answers_its_operator(fault: Fault, ssh: Ssh, hosts: dict[str, str]) -> None:
    fault(action="isolate", a="node1")
    fault(action="cut", a="node1", b="outside")
    assert not any(reaches(ssh, "node1", address) for name, address in hosts.items() if name != "node1")
    with pytest.raises(TimeoutError):  # without the cut the host would refuse at once
        socket.create_connection((hosts["node1"], 9), timeout=2)
    assert ssh("node1", "hostname").stdout == "node1\n"


def test_loss_takes_its_share(fault: Fault, ssh: Ssh, pair: tuple[str, str, str]) -> None:
    fault(action="loss", a=pair[0], b=pair[1], percent=30)
    said = ssh(pair[0], f"ping -q -c 200 -i 0.01 -W 1 {pair[2]}").stdout
    lost = float(said.split("% packet loss")[0].rsplit(" ", 1)[1])
    assert 30 < lost < 75  # a ping crosses twice: 1 - 0.7 ** 2 = 51 %


def test_rate_limits_what_a_host_receives(fault: Fault, ssh: Ssh, pair: tuple[str, str, str]) -> None:
    fault(action="rate", a=pair[0], b=pair[1], kbit=1000)
    started = time.monotonic()
    serve = f"timeout 30 python3 -m http.server --bind {pair[2]} --directory /usr/bin 7999"
    ssh(pair[1], f"setsid {serve} >/dev/null 2>&1 & sleep 1")
    got = ssh(pair[0], f"curl -sS -r 0-299999 -o /dev/null -w '%{{size_download}}' http://{pair[2]}:7999/perl")
    assert int(got.stdout) >= 300000, got.stderr
    assert time.monotonic() - started > 2  # 2.4 Mbit at 1 Mbit/s


def test_delay_works_or_refuses_by_name(fault: Fault, ssh: Ssh, pair: tuple[str, str, str]) -> None:
    done = fault(action="delay", a=pair[0], b=pair[1], milliseconds=50)
    if done["failed"]:
        assert "netem" in done["msg"]
        return
    said = ssh(pair[0], f"ping -q -c 5 -i 0.2 {pair[2]}").stdout
    assert float(said.rsplit("= ", 1)[1].split("/")[0]) > 95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"action": "cut", "a": "nowhere", "b": "node1"}, "allowed are"),
        ({"action": "cut", "a": "node1", "b": "east-a"}, "both sides hold node1"),
        ({"action": "loss", "a": "node1", "b": "node2", "percent": 101}, "at most 100"),
        ({"action": "power_off", "host": "nowhere"}, "allowed are"),
        ({"action": "cut", "a": "node1"}, "b"),
    ],
)
def test_wrong_words_are_refused(fault: Fault, options: dict[str, Any], words: str) -> None:
    done = fault(**options)
    assert done["failed"]
    assert words in done["msg"]
