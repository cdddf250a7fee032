# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role pgbouncer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer_files
from ansible_collections.causeway.platform.plugins.module_utils.pgbouncer import PgBouncerError


def pgbouncer_tree(
    databases: Mapping[str, Any],
    host: str,
    *,
    password: str,
    options: Mapping[str, Any] | None = None,
    monitor: str = "",
) -> dict[str, Any]:
    given = dict(options or {})
    try:
        # With ansible-core 2.18 numbers inside a mapping arrive as text.
        if "port" in given:
            given["port"] = int(given["port"])
        return pgbouncer_files.files(databases, host, str(password), pgbouncer_files.Options(**given), str(monitor))
    except PgBouncerError as error:
        raise AnsibleFilterError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"pgbouncer_tree: the description is incomplete: {type(error).__name__}: {error}"
        ) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pgbouncer_tree": pgbouncer_tree}
