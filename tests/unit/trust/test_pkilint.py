# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root, intermediate, leaf and revocation lists pass pkilint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed")

from .test_authority import csr, wish

Run = Callable[..., dict[str, Any]]


def linter(name: str) -> str:
    """CAUSEWAY_PKILINT is the directory that holds pkilint's commands; without it PATH is searched."""
    found = shutil.which(name, path=os.environ.get("CAUSEWAY_PKILINT") or None)
    if not found:
        pytest.skip(f"{name} is not installed (pip: pkilint; its directory in CAUSEWAY_PKILINT)")
    return found


def findings(command: list[str], path: Path) -> set[tuple[str, str]]:
    """Everything at WARNING or above as (code, message)."""
    done = subprocess.run(
        [*command, "-s", "WARNING", "-f", "JSON", str(path)], check=False, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    results = json.loads(done.stdout)["results"]
    return {(item["code"], item.get("message") or "") for result in results for item in result["finding_descriptions"]}


def lint_leaf(pki: dict[str, Any], run: Run, path: Path, **names: Any) -> set[tuple[str, str]]:
    result = run("x509_certificate", **pki, requests=[wish(csr([], []), **names)])
    leaf = (
        result["certificates"][0]["certificate"].split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )
    (path / "leaf.pem").write_text(leaf)
    return findings([linter("lint_pkix_cert"), "lint"], path / "leaf.pem")


def test_authorities_are_clean(pki: dict[str, Any], run: Run) -> None:
    command = [linter("lint_pkix_cert"), "lint"]
    for name in ("root", "region-north"):
        assert findings(command, Path(pki["store"]) / name / "g1.pem") == set()


def test_revocation_lists_are_clean(pki: dict[str, Any], run: Run) -> None:
    run("x509_certificate", **pki, requests=[wish(csr([], []))])
    run("x509_crl", **pki, revoke=[{"host": "app1", "reason": "key_compromise"}])
    command = [linter("lint_crl"), "lint", "-p", "PKIX", "-t"]
    assert findings([*command, "ARL"], Path(pki["store"]) / "root" / "g1.crl.pem") == set()
    assert findings([*command, "CRL"], Path(pki["store"]) / "region-north" / "g1.crl.pem") == set()


def test_a_leaf_is_clean(pki: dict[str, Any], run: Run, tmp_path: Path) -> None:
    names = {"uris": ["https://orders.shop.internal/"], "dns": ["orders.shop.internal"], "addresses": ["10.77.1.21"]}
    assert lint_leaf(pki, run, tmp_path, **names) == set()


def test_a_spiffe_leaf_has_only_the_linters_own_findings(pki: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """pkilint 0.13 knows no URI scheme but the web's; nothing else may be found.

    Its URI check is the package validators, whose list of schemes is fixed (http, ftp, ssh...). RFC 5280 4.2.1.6 allows
    any scheme, and SPIFFE demands its own.
    """
    names = {
        "uris": ["spiffe://shop.internal/gateway"],
        "dns": ["gateway.shop.internal", "shop.example.com"],
        "addresses": ["10.77.1.100", "127.0.0.1"],
    }
    assert lint_leaf(pki, run, tmp_path, **names) == {
        ("pkix.invalid_uri_syntax", 'Invalid URI syntax: "spiffe://shop.internal/gateway"'),
    }
