# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that the modules which talk to a host's own PostgreSQL share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  socket_path:
    description:
      - Directory of the server's socket.
    type: path
    default: /run/postgresql
  system_user:
    description:
      - Unix user that PostgreSQL takes for its superuser. Used when the module runs as root.
    type: str
    default: postgres
"""
