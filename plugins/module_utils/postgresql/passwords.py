# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords of a cluster's roles, derived so that every host agrees on them and none is stored twice."""

from __future__ import annotations

import hashlib
import hmac


def password(secret: str, cluster: str, role: str) -> str:
    """Hex HMAC-SHA256 of ``database/<cluster>/<role>`` under the platform's database secret (design, section 9)."""
    return hmac.new(secret.encode(), f"database/{cluster}/{role}".encode(), hashlib.sha256).hexdigest()
