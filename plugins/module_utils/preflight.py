# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a host from carrying its components, told all at once. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def host_problems(
    facts: Mapping[str, Any],
    releases: Sequence[str],
    *,
    memory_min: int,
    disk_min: int,
    clock_skew_max: int,
    now: float,
) -> list[str]:
    """Problems of one host in words, none when it is fit.

    ``facts`` are Ansible's (without the ``ansible_`` prefix); ``memory_min`` and ``disk_min`` are MiB,
    ``clock_skew_max`` seconds, ``now`` the controller's clock as seconds since the epoch.
    """
    problems = []
    name, release = facts.get("distribution", "unknown"), str(facts.get("distribution_major_version", ""))
    if name != "Debian" or release not in releases:
        problems.append(f"the system is {name} {release}; allowed: Debian {', '.join(releases)}")
    if facts.get("service_mgr") != "systemd":
        problems.append(f"PID 1 is {facts.get('service_mgr', 'unknown')}; allowed: systemd")
    memory = int(facts.get("memtotal_mb") or 0)
    if memory < memory_min:
        problems.append(f"memory is {memory} MiB; needed: {memory_min} MiB or more")
    free = var_free(facts.get("mounts") or [])
    if free is not None and free < disk_min:
        problems.append(f"{free} MiB are free on the file system of /var; needed: {disk_min} MiB or more")
    clock = (facts.get("date_time") or {}).get("epoch_int")
    if clock is not None and abs(float(clock) - now) > clock_skew_max:
        problems.append(
            f"the clock is {float(clock) - now:+.0f} s off the controller's; allowed: {clock_skew_max} s "
            "(set up time synchronisation)"
        )
    return problems


def var_free(mounts: Sequence[Mapping[str, Any]]) -> int | None:
    """Free MiB on the file system that holds /var, None when the facts do not tell."""
    holding = [one for one in mounts if one.get("mount") in ("/", "/var") and one.get("size_available") is not None]
    if not holding:
        return None
    deepest = max(holding, key=lambda one: len(str(one["mount"])))
    return int(deepest["size_available"]) // (1 << 20)
