# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations and sizes as people write them."""

from __future__ import annotations

import re

DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)\Z")
SIZE = re.compile(r"([1-9][0-9]*)([KMGT])\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_duration(text: str) -> float:
    """Seconds in ``250ms``, ``5s``, ``1.5m`` or ``2h``. Raises ValueError for anything else, a missing unit too."""
    match = DURATION.match(text)
    if not match:
        raise ValueError("not a duration")
    return round(float(match.group(1)) * _SECONDS[match.group(2)], 6)


def parse_size(text: str) -> int:
    """Bytes in ``256M`` (binary units, as systemd and podman read them). Raises ValueError for anything else."""
    match = SIZE.match(text)
    if not match:
        raise ValueError("not a size")
    return int(match.group(1)) * _BYTES[match.group(2)]
