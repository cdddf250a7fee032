"""Fixtures of all acceptance tests: the lab that Molecule's scenarios share, its hosts and its verbs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "drills"))
from running import Controller, Platform, Traffic

INVENTORY = os.environ.get("CAUSEWAY_INVENTORY", str(ROOT / "molecule" / "platform" / "platform.yml"))


@pytest.fixture(scope="session")
def platform() -> Platform:
    return Platform(INVENTORY)


@pytest.fixture(scope="session")
def inventory(platform: Platform) -> dict[str, Any]:
    """All variables of one host of the inventory, with the description's `causeway_*`."""
    return platform.inventory


@pytest.fixture(scope="session")
def hosts(inventory: dict[str, Any]) -> dict[str, str]:
    """The lab's hosts and their addresses."""
    return {name: host["address"] for name, host in inventory["causeway_hosts"].items()}


@pytest.fixture(scope="session")
def ssh(platform: Platform) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a shell command on a host over SSH, as a person would."""
    return platform.ssh


@pytest.fixture(scope="session")
def fault(platform: Platform) -> Callable[..., dict[str, Any]]:
    """Runs module lab_fault and returns its result; `failed` is in it when it refused."""
    return lambda **options: platform.module("lab_fault", lab=platform.inventory["causeway_lab"]["name"], **options)


@pytest.fixture(scope="session")
def playbook(platform: Platform) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a playbook of the collection with extra variables, as an operator would."""
    return platform.playbook


@pytest.fixture
def start_playbook(platform: Platform, tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    """Starts a playbook of the collection with extra variables; whatever still runs at the end is killed."""
    started: list[Controller] = []

    def start(name: str, /, **variables: Any) -> Controller:
        started.append(platform.start(name, tmp_path / f"{name}-{len(started)}.log", **variables))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture(scope="session")
def registry(platform: Platform) -> Callable[..., dict[str, Any]]:
    """Runs a registry module on a registry host: registry("registry_info", service="orders")."""
    return platform.registry


@pytest.fixture
def known(platform: Platform) -> Callable[[str], dict[str, Any]]:
    """All that the registry knows of a service."""
    return platform.known


@pytest.fixture(scope="session")
def ca(platform: Platform) -> Path:
    """The root certificate that clients trust, as a file."""
    return platform.ca()


@pytest.fixture
def traffic(platform: Platform) -> Callable[..., Traffic]:
    """`with traffic(rate) as load: ...`, then load.summary as tests/drills/traffic.py writes it."""
    rate = float(os.environ.get("CAUSEWAY_RATE", "40"))
    return lambda per_second=rate, mixed=False: platform.traffic(per_second, mixed)
