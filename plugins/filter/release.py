# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that plan and show releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils.release import (
    ReleaseError,
    current_version,
    history_lines,
    rolling_plan,
    status_lines,
)
from ansible_collections.causeway.platform.plugins.module_utils.release_page import render_page
from ansible_collections.causeway.platform.plugins.module_utils.release_record import (
    candidate_count,
    next_action,
    promise,
    rollback_action,
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


def release_next(
    service: Mapping[str, Any], version: str, known: Mapping[str, Any] | None = None, strategy: str = ""
) -> dict[str, Any]:
    known = known or {}
    record = known.get("release") or {}
    return next_action(
        record,
        str(version or record.get("previous") or ""),
        current=current_version(service, record),
        strategy=strategy or service["release"]["strategy"],
        live=known.get("instances") or [],
        weights=(known.get("traffic") or {}).get("weights"),
        command=known.get("command"),
    ).as_dict()


def release_way_back(service: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    known = known or {}
    record = known.get("release") or {}
    return rollback_action(
        record,
        current=current_version(service, record),
        live=known.get("instances") or [],
        weights=(known.get("traffic") or {}).get("weights"),
    ).as_dict()


def release_candidate_count(service: Mapping[str, Any], strategy: str = "") -> int:
    return candidate_count(service["release"], len(service["instances"]["placed"]), strategy)


def release_promise(release: Mapping[str, Any], command: str, known: Mapping[str, Any], interval: float) -> list[str]:
    try:
        return promise(release, command, known.get("lock"), float(interval))
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "release_rolling_plan": release_rolling_plan,
            "release_versions": release_versions,
            "release_lines": status_lines,
            "release_history": history_lines,
            "release_page": render_page,
            "release_next": release_next,
            "release_promise": release_promise,
            "release_way_back": release_way_back,
            "release_candidate_count": release_candidate_count,
        }
