# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that plan releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils.release import (
    ReleaseError,
    current_version,
    rolling_plan,
    status_lines,
)


def release_rolling_plan(
    service: Mapping[str, Any], version: str, live: Sequence[Mapping[str, Any]], record: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    try:
        return rolling_plan(service, version, live, record).as_dict()
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error


def release_versions(services: Mapping[str, Any], registered: Mapping[str, Any] | None = None) -> dict[str, str]:
    known = registered or {}
    return {name: current_version(service, known.get(name, {}).get("release")) for name, service in services.items()}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "release_rolling_plan": release_rolling_plan,
            "release_versions": release_versions,
            "release_lines": status_lines,
        }
