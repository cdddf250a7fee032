# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that all pgBackRest modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Merged into a module's documentation."""

    DOCUMENTATION = r"""
options:
  cluster:
    description:
      - Name of the cluster; pgBackRest calls it a stanza.
    type: str
    required: true
    aliases: [stanza]
  user:
    description:
      - User that owns the data and runs pgBackRest. Needs root to become it; empty stays who the module runs as.
    type: str
    default: ""
  config:
    description:
      - Configuration file of pgBackRest; empty for its default. Passwords and keys stand only there.
    type: path
    default: ""
  executable:
    description:
      - The program.
    type: path
    default: /usr/bin/pgbackrest
"""
