# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The token and authority modules against a real SoftHSM2: four steps each, and what must be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

cryptography = pytest.importorskip("cryptography", reason="cryptography is not installed")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .conftest import NORTH, ORDERS, PIN, SO_PIN

Run = Callable[..., dict[str, Any]]
FOUR_STEPS = [(True, True), (False, True), (True, False), (False, False)]


def csr(uris: list[str], dns: list[str], key: Any = None) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    names = [*(x509.UniformResourceIdentifier(item) for item in uris), *(x509.DNSName(item) for item in dns)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    )
    request = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def wish(text: str, **changes: Any) -> dict[str, Any]:
    return {"host": "app1", "identity": "svc-orders", "authority": "region-north", "csr": text, **ORDERS, **changes}


def leaf_of(result: dict[str, Any]) -> x509.Certificate:
    return x509.load_pem_x509_certificates(result["certificates"][0]["certificate"].encode())[0]


def test_token_four_steps(softhsm: Path, run: Run) -> None:
    for check, changed in FOUR_STEPS:
        result = run("hsm_token", check, token="four", pin=PIN, so_pin=SO_PIN)
        assert result["changed"] is changed, result


def test_token_refuses_a_wrong_pin_and_changes_pins(token: dict[str, Any], run: Run) -> None:
    wrong = run("hsm_token", token=token["token"], pin="not-the-pin-1", so_pin=SO_PIN)
    assert wrong["failed"]
    assert "the PIN is wrong" in wrong["msg"]
    assert "not-the-pin-1" not in json.dumps(wrong)
    for check, changed in FOUR_STEPS:
        assert run("hsm_token", check, **token, new_pin="another-pin-42")["changed"] is changed
    for check, changed in FOUR_STEPS:
        result = run(
            "hsm_token", check, token=token["token"], pin="another-pin-42", so_pin=SO_PIN, new_so_pin="another-so-43"
        )
        assert result["changed"] is changed
    assert run("hsm_token", **token)["failed"]


def test_token_without_library_or_so_pin(softhsm: Path, run: Run) -> None:
    missing = run("hsm_token", token="x", pin=PIN, so_pin=SO_PIN, pkcs11_module="/nowhere/lib.so")
    assert missing["msg"].startswith("PKCS#11 module /nowhere/lib.so does not exist on this host")
    predicted = run("hsm_token", True, token="x", pin=PIN, so_pin=SO_PIN, pkcs11_module="/nowhere/lib.so")
    assert predicted["changed"]
    assert "so_pin is needed" in run("hsm_token", token="never-made", pin=PIN)["msg"]


def test_a_library_that_is_none_is_refused(softhsm: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_text("no library")
    assert (
        "could not be loaded"
        in run("hsm_token", token="x", pin=PIN, so_pin=SO_PIN, pkcs11_module=str(tmp_path / "lib.so"))["msg"]
    )


def test_two_tokens_with_one_label_are_told_apart_by_serial(token: dict[str, Any], run: Run) -> None:
    hsm = pytest.importorskip("ansible_collections.causeway.platform.plugins.module_utils.hsm")
    first = run("hsm_token", **token)["serial"]
    library = hsm.load("")
    blank = next(item for item in hsm._tokens(library) if not item.initialized)
    library.initToken(blank.slot, "foreign-so-pin", token["token"])
    both = run("hsm_key", **token, label="k")
    assert "2 tokens are labelled" in both["msg"]
    assert first in both["msg"]
    assert run("hsm_key", **token, label="k", token_serial=first)["changed"]


def test_key_four_steps_and_removal(token: dict[str, Any], run: Run) -> None:
    for check, changed in FOUR_STEPS:
        assert run("hsm_key", check, **token, label="root-key", curve="P-384")["changed"] is changed
    assert (
        "exists on curve P-384, asked for was P-256" in run("hsm_key", **token, label="root-key", curve="P-256")["msg"]
    )
    assert "type its label into confirm" in run("hsm_key", **token, label="root-key", state="absent")["msg"]
    for check, changed in FOUR_STEPS:
        result = run("hsm_key", check, **token, label="root-key", state="absent", confirm="root-key")
        assert result["changed"] is changed


def test_keys_cannot_leave_the_token(token: dict[str, Any], run: Run) -> None:
    hsm = pytest.importorskip("ansible_collections.causeway.platform.plugins.module_utils.hsm")
    import PyKCS11

    run("hsm_key", **token, label="k", curve="P-256")
    with hsm.open_token(hsm.TokenConfig(token["token"], PIN)) as session:
        key = session.find_key("k")
        assert key.sensitive
        assert not key.extractable
        private = session._handles(PyKCS11.CKO_PRIVATE_KEY, "k")[0]
        assert session._session.getAttributeValue(private, [PyKCS11.CKA_VALUE]) == [None]


def test_authority_four_steps(token: dict[str, Any], run: Run, tmp_path: Path) -> None:
    store = {"store": str(tmp_path / "store")}
    for check, changed in FOUR_STEPS:
        result = run("x509_authority", check, **token, **store, name="root", kind="root", common_name="shop root")
        assert result["changed"] is changed, result
    for check, changed in FOUR_STEPS:
        result = run("x509_authority", check, **token, **store, **NORTH)
        assert result["changed"] is changed, result
    for check, changed in FOUR_STEPS:
        result = run("x509_crl", check, **token, **store)
        assert result["changed"] is changed, result
    assert result["crl"].count("BEGIN X509 CRL") == 2
    assert result["ca"].count("BEGIN CERTIFICATE") == 1


def test_authority_refusals(pki: dict[str, Any], run: Run) -> None:
    cases = {
        "an intermediate needs issuer": {**NORTH, "name": "a", "issuer": ""},
        "a root signs itself": {"name": "a", "kind": "root", "issuer": "root", "common_name": "a"},
        "there is no authority 'rooot'": {**NORTH, "name": "a", "issuer": "rooot"},
        "is already a intermediate": {"name": "region-north", "kind": "root", "common_name": "a"},
        "name: '../x' is not allowed": {**NORTH, "name": "../x"},
        "valid_for: 'soon' is no duration": {**NORTH, "valid_for": "soon"},
        "path_length 0 is too small for a root": {"name": "a", "kind": "root", "common_name": "a", "path_length": 0},
    }
    for words, options in cases.items():
        assert words in run("x509_authority", **pki, **options)["msg"]
    assert (
        "user login failed: the PIN is wrong"
        in run("x509_authority", **{**pki, "pin": "wrong-pin-000"}, **NORTH)["msg"]
    )


def test_rotation_overlaps_until_the_last_leaf_is_gone(pki: dict[str, Any], run: Run) -> None:
    old = run("x509_certificate", **pki, requests=[wish(csr(ORDERS["uris"], ORDERS["dns"]))], valid_for="2h")
    rotated = run("x509_authority", **pki, **NORTH, rotate=True)
    assert (rotated["generation"], rotated["reason"]) == (2, "asked for")
    assert [item["retired"] for item in rotated["generations"]] == [False, False]
    lists = run("x509_crl", **pki)
    assert lists["crl"].count("BEGIN X509 CRL") == 3, "verifiers need the lists of both generations"
    fresh = run("x509_certificate", **pki, requests=[wish(csr(ORDERS["uris"], ORDERS["dns"]))])
    assert (old["certificates"][0]["generation"], fresh["certificates"][0]["generation"]) == (1, 2)
    # The old leaf's end comes: the index says so, and the old generation retires.
    index = Path(pki["store"]) / "region-north" / "index.json"
    entries = json.loads(index.read_text())
    entries[0]["not_after"] = "2026-01-01T00:00:00Z"
    index.write_text(json.dumps(entries))
    retired = run("x509_authority", **pki, **NORTH)
    assert [item["retired"] for item in retired["generations"]] == [True, False]
    assert run("x509_crl", **pki)["crl"].count("BEGIN X509 CRL") == 2
    assert run("x509_authority", **pki, **NORTH)["changed"] is False


def test_an_authority_near_its_end_renews_itself(pki: dict[str, Any], run: Run) -> None:
    short = {**NORTH, "name": "region-south", "valid_for": "1h"}
    assert run("x509_authority", **pki, **short)["generation"] == 1
    renewed = run("x509_authority", **pki, **{**short, "renew_at": 0.99})
    assert renewed["generation"] == 2
    assert renewed["reason"].endswith("of its life remain")


def test_a_run_cut_short_before_the_record_uses_the_key_again(pki: dict[str, Any], run: Run) -> None:
    label = "region-west-g1"
    key = run("hsm_key", token=pki["token"], pin=pki["pin"], label=label, curve="P-256")["key"]
    made = run("x509_authority", **pki, **{**NORTH, "name": "region-west"})
    certificate = x509.load_pem_x509_certificate(made["certificate"].encode())
    point = certificate.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    assert point.hex() == key["public_point"]


def test_missing_or_foreign_key(pki: dict[str, Any], run: Run) -> None:
    foreign = run("hsm_token", token=f"{pki['token']}-b", pin=PIN, so_pin=SO_PIN)
    assert foreign["changed"]
    other = {**pki, "token": f"{pki['token']}-b"}
    assert "although its certificate is in the store" in run("x509_authority", **other, **NORTH)["msg"]
    for label in ("root-g1", "region-north-g1"):
        run("hsm_key", token=other["token"], pin=PIN, label=label, curve="P-256")
    assert "does not belong to the certificate in the store" in run("x509_authority", **other, **NORTH)["msg"]
    refused = run("x509_certificate", **other, requests=[wish(csr(ORDERS["uris"], ORDERS["dns"]))])
    assert "does not belong to the certificate in the store" in refused["msg"]
    assert not (Path(pki["store"]) / "region-north" / "index.json").exists()


def test_damaged_store(pki: dict[str, Any], run: Run) -> None:
    path = Path(pki["store"]) / "region-north"
    (path / "g1.crl.pem").write_text("garbage")
    assert run("x509_crl", **pki)["changed"]
    (path / "authority.json").write_text("{")
    assert "authority.json is damaged" in run("x509_crl", **pki)["msg"]


def test_certificate_says_what_was_granted(pki: dict[str, Any], run: Run) -> None:
    request = wish(csr([], ["orders.shop.internal"]), common_name="orders.shop.internal")
    result = run("x509_certificate", **pki, requests=[request])
    leaf = leaf_of(result)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [item.value for item in names] == [*ORDERS["uris"], *ORDERS["dns"]]
    assert leaf.serial_number.bit_length() == 159
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life.total_seconds() == 30 * 86400 + 300
    index = json.loads((Path(pki["store"]) / "region-north" / "index.json").read_text())
    assert [(item["serial"], item["host"], item["identity"]) for item in index] == [
        (result["certificates"][0]["serial"], "app1", "svc-orders")
    ]


def test_certificate_check_mode_and_nothing_to_do(pki: dict[str, Any], run: Run) -> None:
    assert run("x509_certificate", **pki, requests=[])["changed"] is False
    predicted = run("x509_certificate", True, **pki, requests=[wish("")])
    assert (predicted["changed"], predicted["certificates"]) == (True, [])
    assert not (Path(pki["store"]) / "region-north" / "index.json").exists()


def test_forged_requests_are_refused_all_at_once(pki: dict[str, Any], run: Run) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    good = csr(ORDERS["uris"], ORDERS["dns"])
    theft = csr([*ORDERS["uris"], "spiffe://shop.internal/gateway"], ["*.shop.internal"])
    forged = x509.load_pem_x509_csr(csr([], [], key).encode()).public_bytes(serialization.Encoding.DER)
    broken = bytearray(forged)
    broken[-1] ^= 1
    tampered = x509.load_der_x509_csr(bytes(broken)).public_bytes(serialization.Encoding.PEM).decode()
    weak = csr([], [], ec.generate_private_key(ec.SECP224R1()))
    result = run(
        "x509_certificate",
        **pki,
        requests=[
            wish(good),
            wish(theft, host="app2"),
            wish(tampered, host="app3"),
            wish(weak, host="app4"),
            wish("no CSR", host="app5"),
            wish(good, host="app6"),
            wish(csr([], [], other), host="app7", uris=[], dns=[]),
        ],
    )
    for words in (
        "app2/svc-orders: the CSR asks for URI:spiffe://shop.internal/gateway, DNS:*.shop.internal, which it may not",
        "app3/svc-orders: the CSR's signature is wrong",
        "app4/svc-orders: the CSR's key is not allowed; use EC P-256",
        "app5/svc-orders: the CSR cannot be read",
        "app6/svc-orders: the CSR's key is the same as that of app1/svc-orders",
        "app7/svc-orders: no name is granted",
    ):
        assert words in result["msg"]
    assert "app1/svc-orders: " not in result["msg"]
    assert not (Path(pki["store"]) / "region-north" / "index.json").exists()


def test_revocation_four_steps_numbers_and_renewal(pki: dict[str, Any], run: Run) -> None:
    serial = run("x509_certificate", **pki, requests=[wish(csr(ORDERS["uris"], ORDERS["dns"]))])["certificates"][0][
        "serial"
    ]
    run("x509_crl", **pki)
    wanted = [{"host": "app1", "reason": "key_compromise"}]
    for check, changed in FOUR_STEPS:
        result = run("x509_crl", check, **pki, revoke=wanted)
        assert result["changed"] is changed, result
        assert result["revoked"] == ([serial] if changed else [])
    north = next(item for item in result["lists"] if item["authority"] == "region-north")
    assert (north["number"], north["revoked"]) == (2, 1)
    assert "no certificate was issued for host app9" in run("x509_crl", **pki, revoke=[{"host": "app9"}])["msg"]
    assert "would revoke everything" in run("x509_crl", **pki, revoke=[{"authority": "region-north"}])["msg"]
    again = run("x509_crl", **pki, renew_at=0.99999)
    assert again["changed"]
    assert {item["authority"]: item["number"] for item in again["lists"]} == {"root": 2, "region-north": 3}
    forced = run("x509_crl", **pki, force=["root"])
    assert {item["authority"]: item["number"] for item in forced["lists"]} == {"root": 3, "region-north": 3}
    assert "there is no authority 'rooot'" in run("x509_crl", **pki, force=["rooot"])["msg"]


def test_two_roots_for_moving_from_one_to_another(pki: dict[str, Any], run: Run) -> None:
    rotated = run(
        "x509_authority", **pki, name="root", kind="root", common_name="shop root", valid_for="3650d", rotate=True
    )
    assert rotated["generation"] == 2
    lists = run("x509_crl", **pki, extra_roots=[rotated["certificate"]])
    assert lists["ca"].count("BEGIN CERTIFICATE") == 3, "two generations and the extra one"
    assert lists["ca"].startswith(rotated["certificate"].strip().splitlines()[0])
    assert "extra_roots holds no readable PEM" in run("x509_crl", **pki, extra_roots=["x"])["msg"]


def test_no_leaf_outlives_its_issuer(pki: dict[str, Any], run: Run) -> None:
    run("x509_authority", **pki, **{**NORTH, "name": "region-brief", "valid_for": "1h"})
    request = wish(csr(ORDERS["uris"], ORDERS["dns"]), authority="region-brief")
    chain = run("x509_certificate", **pki, requests=[request])["certificates"][0]["certificate"]
    leaf, issuer = x509.load_pem_x509_certificates(chain.encode())
    assert leaf.not_valid_after_utc == issuer.not_valid_after_utc
    assert leaf.not_valid_before_utc >= issuer.not_valid_before_utc


def test_a_short_pin_does_not_blank_out_certificates(softhsm: Path, run: Run, tmp_path: Path) -> None:
    options = {"token": "short-pin", "pin": "4444", "store": str(tmp_path)}
    assert run("hsm_token", token="short-pin", pin="4444", so_pin=SO_PIN)["changed"]
    run("x509_authority", **options, name="root", kind="root", common_name="r")
    run("x509_authority", **options, **NORTH)
    requests = [wish(csr(ORDERS["uris"], ORDERS["dns"]), host=f"h{number}") for number in range(30)]
    result = run("x509_certificate", **options, requests=requests)
    assert "****" not in json.dumps(result["certificates"])


def test_store_survives_the_loss_of_nothing_but_itself(pki: dict[str, Any], run: Run) -> None:
    """The token without the store gives the same name and key again, so issued certificates still chain."""
    before = run("x509_authority", **pki, name="root", kind="root", common_name="shop root")["certificate"]
    shutil.rmtree(Path(pki["store"]) / "root")
    after = run("x509_authority", **pki, name="root", kind="root", common_name="shop root")["certificate"]
    old, new = (x509.load_pem_x509_certificate(item.encode()) for item in (before, after))
    assert (old.subject, old.public_key()) == (new.subject, new.public_key())
