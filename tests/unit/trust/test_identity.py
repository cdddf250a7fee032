# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""x509_identity on a host: keys stay, files change at once, damage is repaired, interrupted runs are harmless."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed")

from .conftest import NORTH, ORDERS

Run = Callable[..., dict[str, Any]]


def lists_of(pki: dict[str, Any], run: Run) -> dict[str, Any]:
    result = run("x509_crl", **pki)
    return {"ca": result["ca"], "crl": result["crl"], "issuer": result["issuers"]["region-north"]}


def renew(pki: dict[str, Any], host: dict[str, Any], run: Run, **changes: Any) -> dict[str, Any]:
    """The three tasks of the role: ask, sign, install. Returns what was asked."""
    bundle = lists_of(pki, run)
    asked = run("x509_identity", **host, **bundle, **changes)
    assert "failed" not in asked, asked
    requests = [
        {"host": "app1", "authority": "region-north", "identity": item["identity"], "csr": item["csr"], **ORDERS}
        for item in asked["requests"]
    ]
    signed = run("x509_certificate", **pki, requests=requests)
    done = run("x509_identity", **host, **bundle, state="installed", certificates=signed["certificates"], host="app1")
    assert "failed" not in done, done
    return asked


def current(host: dict[str, Any]) -> Path:
    return Path(host["path"]) / "svc-orders" / "current"


def test_four_steps_layout_and_modes(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    bundle = lists_of(pki, run)
    predicted = run("x509_identity", True, **host, **bundle)
    assert predicted["changed"]
    assert predicted["requests"] == [{"identity": "svc-orders", "csr": "", "reasons": ["there is none yet"]}]
    assert not Path(host["path"]).exists(), "check mode makes nothing"
    renew(pki, host, run)
    for check in (True, False):
        assert run("x509_identity", check, **host, **bundle)["changed"] is False
    base = current(host)
    assert base.is_symlink()
    target = base.resolve()
    assert target.name.startswith("gen-")
    assert sorted(item.name for item in target.iterdir()) == ["ca.pem", "cert.pem", "crl.pem", "key.pem"]
    modes = {item.name: oct(item.stat().st_mode & 0o777) for item in [target, target.parent, *target.iterdir()]}
    assert modes == {
        target.name: "0o750",
        "svc-orders": "0o750",
        "key.pem": "0o640",
        "cert.pem": "0o644",
        "ca.pem": "0o644",
        "crl.pem": "0o644",
    }
    assert not (target.parent / ".pending").exists()


def test_openssl_verifies_the_chain_with_revocation_lists(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    renew(pki, host, run)
    base = current(host)
    options = ["-x509_strict", "-crl_check_all", "-CAfile", base / "ca.pem", "-CRLfile", base / "crl.pem"]
    command = ["openssl", "verify", *options, "-untrusted", base / "cert.pem", base / "cert.pem"]
    assert subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip().endswith(": OK")
    run("x509_crl", **pki, revoke=[{"identity": "svc-orders", "reason": "superseded"}])
    bundle = lists_of(pki, run)
    asked = run("x509_identity", **host, **bundle)
    assert asked["requests"][0]["reasons"] == ["it was revoked"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "certificate revoked" in refused.stderr


def test_python_loads_what_is_installed(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    renew(pki, host, run)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(current(host) / "cert.pem", current(host) / "key.pem")
    context.load_verify_locations(current(host) / "ca.pem")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (("cert.pem", "garbage"), "cert.pem is missing or damaged"),
        (("cert.pem", None), "cert.pem is missing or damaged"),
        (("key.pem", "garbage"), "key.pem is missing or damaged"),
        (("key.pem", "FOREIGN"), "key.pem does not belong to cert.pem"),
    ],
)
def test_damage_is_repaired(
    pki: dict[str, Any], host: dict[str, Any], run: Run, damage: tuple[str, str | None], reason: str
) -> None:
    renew(pki, host, run)
    name, content = damage
    path = current(host) / name
    if content == "FOREIGN":
        content = subprocess.run(
            ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    path.unlink()
    if content is not None:
        path.write_text(content)
    asked = renew(pki, host, run)
    assert asked["requests"][0]["reasons"] == [reason]
    assert renew(pki, host, run)["changed"] is False


def test_wrong_bundles_links_and_modes_are_repaired_without_a_new_certificate(
    pki: dict[str, Any], host: dict[str, Any], run: Run
) -> None:
    renew(pki, host, run)
    serial = current(host).resolve().name
    (current(host) / "crl.pem").write_text("old")
    (current(host) / "key.pem").chmod(0o666)
    asked = renew(pki, host, run)
    assert (asked["changed"], asked["requests"]) == (True, [])
    assert current(host).resolve().name == f"{serial}.1"
    assert (current(host) / "key.pem").stat().st_mode & 0o777 == 0o640
    assert renew(pki, host, run)["changed"] is False
    current(host).unlink()
    current(host).symlink_to("gen-nowhere")
    assert renew(pki, host, run)["requests"][0]["reasons"] == ["current points to nothing"]


def test_reasons_to_renew(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    renew(pki, host, run)
    bundle = lists_of(pki, run)
    key = (current(host) / "key.pem").read_text()
    old = run("x509_identity", True, **host, **bundle, renew_at=0.9999)
    assert old["requests"][0]["reasons"][0].endswith("of its life remain")
    forced = run("x509_identity", True, **host, **bundle, force=["svc-orders"])
    assert forced["requests"][0]["reasons"] == ["asked for"]
    changed = {**host, "identities": [{**host["identities"][0], "addresses": ["10.0.0.1"]}]}
    assert run("x509_identity", True, **changed, **bundle)["requests"][0]["reasons"] == ["its names changed"]
    run("x509_authority", **pki, **NORTH, rotate=True)
    asked = renew(pki, host, run)
    assert asked["requests"][0]["reasons"] == ["its issuer is no longer the current one"]
    assert (current(host) / "key.pem").read_text() != key, "a new certificate has a new key"


def test_lists_arrive_before_the_first_certificate_of_a_new_intermediate(
    pki: dict[str, Any], host: dict[str, Any], run: Run
) -> None:
    renew(pki, host, run)
    serial = current(host).resolve().name
    run("x509_authority", **pki, **NORTH, rotate=True)
    bundle = lists_of(pki, run)
    result = run("x509_identity", **host, **bundle, request=False)
    assert (result["changed"], result["requests"]) == (True, [])
    assert current(host).resolve().name == f"{serial}.1"
    assert (current(host) / "crl.pem").read_text().count("BEGIN X509 CRL") == 3


def test_killed_between_asking_and_installing(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    renew(pki, host, run)
    before = current(host).resolve().name
    bundle = lists_of(pki, run)
    asked = run("x509_identity", **host, **bundle, force=["svc-orders"])
    requests = [
        {
            "host": "app1",
            "authority": "region-north",
            "identity": "svc-orders",
            "csr": asked["requests"][0]["csr"],
            **ORDERS,
        }
    ]
    lost = run("x509_certificate", **pki, requests=requests)["certificates"]
    assert current(host).resolve().name == before
    (current(host).parent / ".staged-dead").mkdir()
    assert renew(pki, host, run)["changed"] is False, "the old certificate is still good"
    renew(pki, host, run, force=["svc-orders"])
    assert current(host).resolve().name != before
    assert not (current(host).parent / ".staged-dead").exists()
    late = run("x509_identity", **host, **bundle, state="installed", certificates=lost, host="app1")
    assert "there is no pending key" in late["msg"]


def test_answers_that_do_not_fit_are_refused(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    bundle = lists_of(pki, run)
    asked = run("x509_identity", **host, **bundle)
    request = {
        "host": "app1",
        "authority": "region-north",
        "identity": "svc-orders",
        "csr": asked["requests"][0]["csr"],
    }
    more = run("x509_certificate", **pki, requests=[{**request, **ORDERS, "dns": [*ORDERS["dns"], "x.shop.internal"]}])[
        "certificates"
    ]
    result = run("x509_identity", **host, **bundle, state="installed", certificates=more, host="app1")
    assert "svc-orders: the certificate names" in result["msg"]
    good = run("x509_certificate", **pki, requests=[{**request, **ORDERS}])["certificates"]
    other = {**pki, "store": pki["store"] + "-2"}
    run("x509_authority", **other, name="root", kind="root", common_name="foreign root", key_label="foreign")
    foreign = run("x509_crl", **other)
    result = run("x509_identity", **host, ca=foreign["ca"], crl="", state="installed", certificates=good, host="app1")
    assert "does not chain to a root in ca" in result["msg"]
    assert not current(host).exists()
    run("x509_identity", **host, **bundle)
    result = run("x509_identity", **host, **bundle, state="installed", certificates=good, host="app1")
    assert "made for another key than the pending one" in result["msg"]


def test_certificates_of_other_hosts_are_left_alone(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    bundle = lists_of(pki, run)
    other = [{"host": "app2", "identity": "svc-orders", "certificate": "x"}]
    assert (
        run("x509_identity", **host, **bundle, state="installed", certificates=other, host="app1")["changed"] is False
    )


def test_old_generations_are_pruned_but_the_last_two(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    seen = []
    for _round in range(4):
        renew(pki, host, run, force=["svc-orders"])
        seen.append(current(host).resolve().name)
    left = sorted(item.name for item in current(host).parent.iterdir() if item.name.startswith("gen-"))
    assert left == sorted(seen[-2:])


def test_refusals(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    bundle = lists_of(pki, run)
    identity = host["identities"][0]
    cases: list[tuple[str, dict[str, Any]]] = [
        ("behind the trust authority's", {"reference_time": "2099-01-01T00:00:00Z"}),
        ("ahead of the trust authority's", {"reference_time": "2020-01-01T00:00:00Z"}),
        ("this host has no identity 'gateway'", {"force": ["gateway"]}),
        ("'../x' is not allowed", {"identities": [{**identity, "name": "../x"}]}),
        ("is listed twice", {"identities": [identity, identity]}),
        ("give at least one URI", {"identities": [{"name": "x"}]}),
        ("use a fraction", {"renew_at": 1.5}),
        ("at least 1 generation", {"keep": 0}),
        ("may not be empty", {"ca": ""}),
    ]
    for words, changes in cases:
        assert words in run("x509_identity", **{**host, **bundle, **changes})["msg"]
    assert not Path(host["path"]).exists()


def test_a_missing_group_is_refused_before_the_swap(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    renew(pki, host, run)
    before = current(host).resolve().name
    other = {**host, "identities": [{**host["identities"][0], "group": "causeway-tls-nobody"}]}
    bundle = {**lists_of(pki, run), "crl": ""}
    assert "group 'causeway-tls-nobody' does not exist" in run("x509_identity", **other, **bundle)["msg"]
    assert current(host).resolve().name == before


def test_purge_removes_only_identities(pki: dict[str, Any], host: dict[str, Any], run: Run) -> None:
    renew(pki, host, run)
    bundle = lists_of(pki, run)
    (Path(host["path"]) / "notes").mkdir()
    empty = {**host, "identities": [{**host["identities"][0], "name": "host"}], "purge": True, "request": False}
    for check, changed in ((True, True), (False, True), (True, False), (False, False)):
        assert run("x509_identity", check, **empty, **bundle)["changed"] is changed
    assert os.listdir(host["path"]) == ["notes"]  # noqa: PTH208
