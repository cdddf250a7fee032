# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes `causeway_agent.etcd` the collection's own client, as the role installs it; finds the daemons."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "roles" / "node_agent" / "files"
ETCD_CLIENT = ROOT / "plugins" / "module_utils" / "etcd.py"

if str(SOURCES) not in sys.path:
    sys.path.insert(0, str(SOURCES))
if "causeway_agent.etcd" not in sys.modules:
    package = importlib.import_module("causeway_agent")
    client = importlib.import_module("ansible_collections.causeway.platform.plugins.module_utils.etcd")
    sys.modules["causeway_agent.etcd"] = client
    package.etcd = client  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PYTHONPATH with the agent as the role installs it."""
    target = tmp_path_factory.mktemp("agent")
    shutil.copytree(SOURCES / "causeway_agent", target / "causeway_agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ETCD_CLIENT, target / "causeway_agent" / "etcd.py")
    return target


@pytest.fixture(scope="session")
def etcd_binary() -> str:
    """The etcd to test against."""
    binary = os.environ.get("CAUSEWAY_ETCD") or shutil.which("etcd")
    if not binary:
        pytest.skip("needs the etcd binary (Debian package etcd-server)")
    return binary


@pytest.fixture(scope="session")
def envoy_binary() -> str:
    """The Envoy to test against; `make test` installs it, elsewhere set CAUSEWAY_ENVOY."""
    installed = sorted(Path("/opt/causeway").glob("envoy-*/bin/envoy"))
    binary = os.environ.get("CAUSEWAY_ENVOY") or shutil.which("envoy") or (str(installed[-1]) if installed else "")
    if not binary:
        pytest.skip("no envoy: set CAUSEWAY_ENVOY, or install it below /opt/causeway or in PATH")
    return binary
