"""The lab's hosts are machines to whoever logs in."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Ssh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("systemctl is-system-running", "running"),
        ("cat /proc/1/comm", "systemd"),
        (". /etc/os-release && echo $VERSION_CODENAME", "trixie"),
        ("systemctl is-active ssh", "active"),
        ("findmnt -no FSTYPE /sys/fs/cgroup", "cgroup2"),
        ("ls /dev/sd* /dev/vd* /dev/nvme* 2>/dev/null | wc -l", "0"),
        ("stat -c %a /root/.ssh/authorized_keys", "600"),
    ],
)
def test_every_host_is_a_bare_machine(hosts: dict[str, str], ssh: Ssh, command: str, expected: str) -> None:
    said = {name: ssh(name, command).stdout.strip() for name in hosts}
    assert said == dict.fromkeys(hosts, expected)


def test_hosts_have_their_names_and_addresses(hosts: dict[str, str], ssh: Ssh) -> None:
    for name, address in hosts.items():
        said = ssh(name, "hostname; ip -4 -o address show dev eth0").stdout
        assert said.splitlines()[0] == name
        assert f" {address}/" in said


def test_a_sysctl_of_a_host_stays_on_that_host(hosts: dict[str, str], ssh: Ssh) -> None:
    first, second = list(hosts)[:2]
    before = ssh(second, "cat /proc/sys/vm/swappiness").stdout
    ssh(first, "sysctl -q -w vm.swappiness=7")
    assert ssh(first, "cat /proc/sys/vm/swappiness").stdout == "7\n"
    assert ssh(second, "cat /proc/sys/vm/swappiness").stdout == before
    ssh(first, f"sysctl -q -w vm.swappiness={before.strip()}")
