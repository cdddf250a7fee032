# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the helpers of this directory importable under importlib mode, and finds the Envoy binary."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import live


@pytest.fixture(scope="session")
def envoy() -> str:
    """The Envoy binary; `make test` installs it, elsewhere set CAUSEWAY_ENVOY."""
    binary = live.find_envoy()
    if binary is None:
        pytest.skip("no envoy: set CAUSEWAY_ENVOY, or install it below /opt/causeway or in PATH")
    return binary
