# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the preflight checks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.causeway.platform.plugins.module_utils.preflight import host_problems


def preflight_problems(
    facts: Mapping[str, Any], releases: Sequence[str], memory_min: int, disk_min: int, clock_skew_max: int
) -> list[str]:
    return host_problems(
        facts, releases, memory_min=memory_min, disk_min=disk_min, clock_skew_max=clock_skew_max, now=time.time()
    )


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight_problems": preflight_problems}
