# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real SoftHSM2 in a temporary directory, and modules run as Ansible runs them."""

from __future__ import annotations

import grp
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PIN, SO_PIN = "correct-horse-91", "battery-staple-17"
MODULES = "ansible_collections.causeway.platform.plugins.modules"


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library reads its configuration once per process, so all tests share one directory and use own labels."""
    pytest.importorskip("PyKCS11", reason="PyKCS11 is not installed (pip: PyKCS11)")
    hsm = importlib.import_module("ansible_collections.causeway.platform.plugins.module_utils.hsm")
    try:
        hsm.find_module("")
    except hsm.TrustError:
        pytest.skip("SoftHSM2 is not installed (apt: softhsm2)")
    base = tmp_path_factory.mktemp("softhsm")
    (base / "tokens").mkdir()
    (base / "softhsm2.conf").write_text(
        f"directories.tokendir = {base}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(base / "softhsm2.conf")
    return base


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """run(module, check=False, **options): the module's result; a failure has failed=True and msg."""
    testing = pytest.importorskip("ansible.module_utils.testing")

    def call(name: str, check: bool = False, /, **options: Any) -> dict[str, Any]:
        module = importlib.import_module(f"{MODULES}.{name}")
        capsys.readouterr()
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with testing.patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        text = capsys.readouterr().out
        assert PIN not in text
        assert SO_PIN not in text
        result: dict[str, Any] = json.loads(text)
        return result

    return call


@pytest.fixture
def token(softhsm: Path, run: Callable[..., dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of an initialised token of this test alone."""
    label = f"t{abs(hash(request.node.nodeid)) % 10**8}"
    result = run("hsm_token", token=label, pin=PIN, so_pin=SO_PIN)
    assert result["changed"], result
    return {"token": label, "pin": PIN}


@pytest.fixture
def pki(token: dict[str, Any], run: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """Options for modules on a store with a root and the intermediate region-north."""
    options = {**token, "store": str(tmp_path / "store")}
    root = run("x509_authority", **options, name="root", kind="root", common_name="shop root", valid_for="3650d")
    assert root["changed"], root
    north = run("x509_authority", **options, **NORTH)
    assert north["changed"], north
    return options


NORTH = {
    "name": "region-north",
    "kind": "intermediate",
    "issuer": "root",
    "common_name": "shop north",
    "organization": "shop",
    "curve": "P-256",
}
ORDERS = {"uris": ["spiffe://shop.internal/orders"], "dns": ["orders.shop.internal"], "addresses": []}


@pytest.fixture
def host(tmp_path: Path) -> dict[str, Any]:
    """Options of x509_identity for a host with one identity, usable without root."""
    group = grp.getgrgid(os.getegid()).gr_name
    return {
        "path": str(tmp_path / "tls"),
        "sysusers_file": "",
        "identities": [{"name": "svc-orders", "group": group, **ORDERS}],
    }
