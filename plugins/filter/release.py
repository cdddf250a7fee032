# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that plan and show releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils.release import (
    ReleaseError,
    current_version,
    history_lines,
    status_lines,
)
from ansible_collections.causeway.platform.plugins.module_utils.release_page import render_page
from ansible_collections.causeway.platform.plugins.module_utils.release_record import promise
from ansible_collections.causeway.platform.plugins.module_utils.release_rolling import (
    decide_batch,
    instance_sides,
    rolling_run,
)


def release_rolling_plan(
    service: Mapping[str, Any], version: str, known: Mapping[str, Any] | None = None, identifier: str = "rolling"
) -> dict[str, Any]:
    try:
        return rolling_run(service, version, known or {}, identifier).as_dict()
    except ReleaseError as error:
        # A task says it in one sentence; an exception would come wrapped in the engine's own words.
        return {"problem": str(error)}


def release_sides(
    plan: Mapping[str, Any],
    service: Mapping[str, Any],
    switched: Mapping[str, Mapping[str, Mapping[str, float]]],
    started: float,
) -> dict[str, Any]:
    return instance_sides(service, plan, switched, float(started))


def release_batch(
    verdict: str, reason: str, command: str = "", so_far: Mapping[str, Any] | None = None, require: bool = False
) -> dict[str, Any]:
    try:
        known = so_far or {}
        holds, left = int(known.get("holds", 0)), int(known.get("left", 1))
        return decide_batch(verdict, reason, command, holds=holds, left=left, require=bool(require))
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error


def release_versions(services: Mapping[str, Any], registered: Mapping[str, Any] | None = None) -> dict[str, str]:
    known = registered or {}
    return {name: current_version(service, known.get(name, {}).get("release")) for name, service in services.items()}


def release_promise(release: Mapping[str, Any], command: str, known: Mapping[str, Any], interval: float) -> list[str]:
    try:
        return promise(release, command, known.get("lock"), float(interval))
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "release_rolling_plan": release_rolling_plan,
            "release_sides": release_sides,
            "release_batch": release_batch,
            "release_versions": release_versions,
            "release_lines": status_lines,
            "release_history": history_lines,
            "release_page": render_page,
            "release_promise": release_promise,
        }
