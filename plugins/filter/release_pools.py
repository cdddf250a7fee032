# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the judged releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import release_pools, release_steps
from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError


def release_pool_plan(
    service: Mapping[str, Any], version: str, strategy: str, known: Mapping[str, Any], identifier: str
) -> dict[str, Any]:
    try:
        return release_pools.pool_plan(service, str(version), strategy, known, identifier=identifier).as_dict()
    except ReleaseError as error:
        # A task says it in one sentence; an exception would come wrapped in the engine's own words.
        return {"problem": str(error)}


def release_decide(
    plan: Mapping[str, Any], cursor: Mapping[str, Any], verdict: str, reason: str, command: str = ""
) -> dict[str, Any]:
    known = release_steps.Step.__dataclass_fields__
    track = [release_steps.Step(**{k: v for k, v in one.items() if k in known}) for one in plan["steps"]]
    try:
        return release_steps.decide(track, release_steps.Cursor(**cursor), verdict, reason, command).as_dict()
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error


def release_instances(slots: Mapping[str, Any]) -> list[str]:
    return [f"{host}/{slot}" for host, listed in slots.items() for slot in listed]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "release_pool_plan": release_pool_plan,
            "release_decide": release_decide,
            "release_instances": release_instances,
        }
