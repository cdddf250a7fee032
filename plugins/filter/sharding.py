# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around shards: thin wrappers over module_utils/sharding.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import sharding


def shard_map(
    tenants: Sequence[str],
    shards: Mapping[str, Any],
    by: str = "tenant",
    regions: Mapping[str, str] | None = None,
    pins: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Shard of each tenant."""
    if isinstance(tenants, (str, Mapping)):
        raise AnsibleFilterError("shard_map: the tenants must be a list of names")
    try:
        return sharding.place(map(str, tenants), sharding.parse_shards(shards), by, regions, pins)
    except sharding.ShardingError as error:
        raise AnsibleFilterError(f"shard_map: {error}") from error


def shard_moves(
    current: Mapping[str, str],
    shards: Mapping[str, Any],
    by: str = "tenant",
    regions: Mapping[str, str] | None = None,
    pins: Mapping[str, str] | None = None,
    *,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Moves from where the tenants are to where they belong."""
    if not isinstance(current, Mapping):
        raise AnsibleFilterError("shard_moves: where the tenants are must be a mapping from tenant to shard")
    try:
        former = None if before is None else sharding.parse_shards(before)
        return sharding.plan(current, sharding.parse_shards(shards), by, regions, pins, before=former)
    except sharding.ShardingError as error:
        raise AnsibleFilterError(f"shard_moves: {error}") from error


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        return {"shard_map": shard_map, "shard_moves": shard_moves}
