# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timers' script."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd

SCRIPT = Path(__file__).resolve().parents[3] / "roles" / "registry" / "files" / "maintenance.py"


@pytest.fixture
def maintenance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # On a host the client lies beside the script.
    monkeypatch.setitem(sys.modules, "etcd", etcd)
    spec = importlib.util.spec_from_file_location("registry_maintenance", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "registry_maintenance", module)
    spec.loader.exec_module(module)
    return module


def test_outdated(maintenance: ModuleType) -> None:
    names = [f"registry-2026112{day}T000000Z.db" for day in range(5)]
    assert maintenance.outdated([*reversed(names), "other.db", "registry-x.part"], 3) == names[:2]
    assert maintenance.outdated(names, 0) == names[:4]
    assert maintenance.outdated([], 3) == []


def status(name: str, size: int, used: int, leader: bool = False) -> etcd.Status:
    return etcd.Status(name, 1 if leader else 2, 1, "3.5.16", size, used, 1, 1, 1, False)


def test_leader_is_defragmented_last_and_only_what_is_worth_it(maintenance: ModuleType) -> None:
    states = [
        status("a", 1000, 100, leader=True),
        status("b", 1000, 900),
        status("c", 1000, 400),
        status("d", 90, 1),
    ]
    assert [one.endpoint for one in maintenance.defragment_order(states, 0.5, 200)] == ["c", "a"]
