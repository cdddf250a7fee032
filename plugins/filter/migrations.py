# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the database migrations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.causeway.platform.plugins.module_utils import migrations
from ansible_collections.causeway.platform.plugins.module_utils.release_record import migration_done


def migration_refusals(
    known: Mapping[str, Any], service: Mapping[str, Any], version: str, now: float, owner: str = ""
) -> list[str]:
    """See plugins/filter/migration_refusals.yml."""
    return migrations.contract_refusals(
        known,
        str(version),
        placed=[one["id"] for one in service["instances"]["placed"]],
        window=float(service["release"]["rollback_window"]),
        now=float(now),
        first_version=str(service["version"]),
        owner=str(owner),
    )


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"migration_refusals": migration_refusals, "migration_done": migration_done}
