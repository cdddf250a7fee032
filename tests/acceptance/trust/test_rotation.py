"""Certificates change under traffic: nothing restarts, no request is lost, and what is revoked stays out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import why

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Ssh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def rotate(playbook: Playbook, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs certificates_rotate and returns its report."""

    def run(**variables: str) -> dict[str, Any]:
        report = tmp_path / "report.json"
        done = playbook("certificates_rotate", rotate_report=str(report), **variables)
        assert done.returncode == 0, why(done.stdout)
        return json.loads(report.read_text())

    return run


def starts(ssh: Ssh, hosts: dict[str, str]) -> dict[str, str]:
    """When the processes of every host that use certificates were started."""
    units = "'envoy@*' etcd causeway-agent prometheus"
    show = f"systemctl show --property=Id,ActiveEnterTimestampMonotonic {units}"
    return {host: ssh(host, show).stdout for host in hosts}


@pytest.mark.parametrize("scope", ["all", "intermediate", "host", "service", "crl"])
def test_a_rotation_costs_no_request(
    scope: str,
    inventory: dict[str, Any],
    hosts: dict[str, str],
    ssh: Ssh,
    rotate: Callable[..., dict[str, Any]],
    traffic: Callable[..., Any],
) -> None:
    gateway = next(name for name, one in inventory["causeway_hosts"].items() if "gateway" in one["components"])
    names = {"intermediate": next(iter(inventory["causeway_regions"])), "host": gateway, "service": "orders"}
    before = starts(ssh, hosts)
    with traffic() as load:
        report = rotate(scope=scope, **({"name": names[scope]} if scope in names else {}))
    renewed = [row for row in report["certificates"] if row["renewed"]]
    expected = {
        "all": lambda row: True,
        "intermediate": lambda row: True,
        "host": lambda row: row["host"] == gateway,
        "service": lambda row: row["identity"] == "svc-orders",
        "crl": lambda row: False,
    }[scope]
    assert renewed == [row for row in report["certificates"] if expected(row)]
    assert load.summary["failed"] == 0, load.summary["failures"]
    assert starts(ssh, hosts) == before
