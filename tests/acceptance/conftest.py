"""Fixtures of all acceptance tests: the lab that Molecule's scenarios share, its hosts and its verbs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = os.environ.get("CAUSEWAY_INVENTORY", str(ROOT / "molecule" / "platform" / "platform.yml"))
BIN = Path(sys.executable).parent


def ansible(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ansible on localhost with the lab's inventory."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(BIN / "ansible"), "-i", INVENTORY, "localhost", *arguments]
    if os.geteuid() != 0:
        command.append("--become")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)


def plain(value: Any) -> Any:
    """A value of ansible-inventory without the marks that it puts on untrusted text."""
    if isinstance(value, dict):
        return (
            plain(value["__ansible_unsafe"]) if "__ansible_unsafe" in value else {k: plain(v) for k, v in value.items()}
        )
    return [plain(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def inventory() -> dict[str, Any]:
    """All variables of one host of the inventory, with the description's `causeway_*`."""
    command = [str(BIN / "ansible-inventory"), "-i", INVENTORY, "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    listed = json.loads(done.stdout)
    return plain(next(iter(listed["_meta"]["hostvars"].values())))


@pytest.fixture(scope="session")
def hosts(inventory: dict[str, Any]) -> dict[str, str]:
    """The lab's hosts and their addresses."""
    return {name: host["address"] for name, host in inventory["causeway_hosts"].items()}


@pytest.fixture(scope="session")
def ssh(inventory: dict[str, Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a shell command on a host over SSH, as a person would."""
    config = Path(inventory["causeway_lab"]["state"]) / "ssh" / "config"

    def run(host: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-n", "-F", str(config), "-o", "ConnectTimeout=3", host, command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def fault(inventory: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Runs module lab_fault and returns its result; `failed` is in it when it refused."""

    def run(**options: Any) -> dict[str, Any]:
        arguments = json.dumps({"lab": inventory["causeway_lab"]["name"], **options})
        done = ansible("-m", "causeway.platform.lab_fault", "-a", arguments)
        head, _arrow, body = done.stdout.partition("=>")
        assert body, f"{done.stdout}\n{done.stderr}"
        return {**json.loads(body), "failed": "FAILED" in head}

    return run
