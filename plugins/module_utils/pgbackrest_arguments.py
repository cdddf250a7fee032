# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that the pgBackRest modules share, documented in plugins/doc_fragments/pgbackrest.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest import TARGETS

ARGUMENTS: dict[str, dict[str, Any]] = {
    "cluster": {"type": "str", "required": True, "aliases": ["stanza"]},
    "user": {"type": "str", "default": ""},
    "config": {"type": "path", "default": ""},
    "executable": {"type": "path", "default": "/usr/bin/pgbackrest"},
}
TARGET: dict[str, dict[str, Any]] = {
    "target_type": {"type": "str", "choices": list(TARGETS), "default": "latest"},
    "target": {"type": "str", "default": ""},
    "target_exclusive": {"type": "bool", "default": False},
    "target_timeline": {"type": "str", "default": "latest"},
    "set": {"type": "str", "default": ""},
    "repo": {"type": "int", "default": 0},
}
