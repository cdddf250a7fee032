# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the hooks of releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import release_hooks as hooks
from ansible_collections.causeway.platform.plugins.module_utils.release_hooks import HookError


def release_hooks(described: Sequence[Mapping[str, Any]], stage: str, stopping: bool = True) -> list[dict[str, Any]]:
    try:
        found = hooks.hooks_of(described, stage)
    except HookError as error:
        raise AnsibleFilterError(str(error)) from error
    return [{**hook, "stops": stopping and hooks.may_stop(hook, stage)} for hook in found]


def release_hook_event(
    plan: Mapping[str, Any], stage: str, at: str, platform: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    try:
        return hooks.hook_event(plan, stage, at, platform, facts)
    except HookError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "release_hooks": release_hooks,
            "release_hook_event": release_hook_event,
            "release_hook_problems": hooks.hook_problems,
        }
