# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""X.509 objects signed by a key that never leaves its token (RFC 5280, SPIFFE X.509-SVID).

The ``cryptography`` library builds the part to be signed with a throw-away key of the same curve; the token signs
those bytes again, and the result is verified with the token's public key before anybody sees it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from ansible_collections.causeway.platform.plugins.module_utils.x509_common import TrustError, iso

CRYPTOGRAPHY_IMPORT_ERROR: str | None = None
try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    CRYPTOGRAPHY_IMPORT_ERROR = traceback.format_exc()

# AlgorithmIdentifier of ecdsa-with-SHA256 and ecdsa-with-SHA384 (RFC 5758 3.2: parameters absent).
_ALGORITHMS = {
    "P-256": bytes.fromhex("300a06082a8648ce3d040302"),
    "P-384": bytes.fromhex("300a06082a8648ce3d040303"),
}
REASONS = (
    "unspecified",
    "key_compromise",
    "ca_compromise",
    "affiliation_changed",
    "superseded",
    "cessation_of_operation",
    "certificate_hold",
    "privilege_withdrawn",
    "aa_compromise",
)
_REASON_FLAGS = {
    "key_compromise": "keyCompromise",
    "ca_compromise": "cACompromise",
    "affiliation_changed": "affiliationChanged",
    "superseded": "superseded",
    "cessation_of_operation": "cessationOfOperation",
    "certificate_hold": "certificateHold",
    "privilege_withdrawn": "privilegeWithdrawn",
    "aa_compromise": "aACompromise",
}


class Signer(Protocol):
    """A key somewhere else: its curve, its public point, and r || s over a digest."""

    curve: str
    point: bytes

    def sign_digest(self, digest: bytes) -> bytes: ...


@dataclass(frozen=True)
class Names:
    """The subject alternative names of one certificate, in canonical order."""

    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @classmethod
    def of(cls, uris: Sequence[str], dns: Sequence[str], addresses: Sequence[str]) -> Names:
        try:
            plain = sorted({str(ipaddress.ip_address(item)) for item in addresses})
        except ValueError as error:
            raise TrustError(f"addresses: {error}") from error
        return cls(tuple(sorted(set(uris))), tuple(sorted({item.lower() for item in dns})), tuple(plain))

    def labelled(self) -> list[str]:
        return (
            [f"URI:{item}" for item in self.uris]
            + [f"DNS:{item}" for item in self.dns]
            + [f"IP:{item}" for item in self.addresses]
        )


@dataclass(frozen=True)
class AuthoritySpec:
    """What a certification authority's certificate shall say."""

    common_name: str
    organization: str
    not_before: datetime
    not_after: datetime
    path_length: int
    permitted_dns: tuple[str, ...] = ()
    permitted_uris: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeafSpec:
    """What a host's or service's certificate shall say."""

    common_name: str
    organization: str
    names: Names
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class Revoked:
    serial: int
    at: datetime
    reason: str = "unspecified"


def curve_of(name: str) -> Any:
    return {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}[name]()


def public_key(curve: str, point: bytes) -> Any:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve_of(curve), point)
    except ValueError as error:
        raise TrustError(f"the token's public key is not a point on {curve}") from error


def new_serial() -> int:
    """Random, positive and always 20 octets long (RFC 5280 4.1.2.2): first bits 01, 158 bits of randomness."""
    return secrets.randbits(158) | 1 << 158


def serial_text(serial: int) -> str:
    return f"{serial:040x}"


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _hash(curve: str) -> Any:
    return {"P-256": hashes.SHA256, "P-384": hashes.SHA384}[curve]()


def _digest(curve: str, data: bytes) -> bytes:
    return (hashlib.sha256 if curve == "P-256" else hashlib.sha384)(data).digest()


def signed(tbs: bytes, signer: Signer) -> bytes:
    """SEQUENCE { tbs, AlgorithmIdentifier, BIT STRING }; the signature is checked before it is returned."""
    raw = signer.sign_digest(_digest(signer.curve, tbs))
    half = {"P-256": 32, "P-384": 48}[signer.curve]
    if len(raw) != 2 * half:
        raise TrustError(
            f"the token returned a signature of {len(raw)} bytes, {2 * half} were expected for {signer.curve}"
        )
    signature = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
    try:
        public_key(signer.curve, signer.point).verify(signature, tbs, ec.ECDSA(_hash(signer.curve)))
    except InvalidSignature as error:
        raise TrustError("the token's signature does not verify with the token's own public key") from error
    return der(0x30, tbs + _ALGORITHMS[signer.curve] + der(0x03, b"\0" + signature))


def _subject(common_name: str, organization: str) -> Any:
    # RFC 5280 appendix A: a common name and an organization have at most 64 characters.
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64])] if organization else []
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _key_usage(**on: bool) -> Any:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in every})


def _issuer_key_identifier(issuer: Any) -> Any:
    extension = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)


def authority_certificate(spec: AuthoritySpec, key: Any, issuer: Any | None, signer: Signer) -> Any:
    """A certification authority's certificate for ``key``; self-signed when ``issuer`` is None."""
    subject = _subject(spec.common_name, spec.organization)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key)
        .serial_number(new_serial())
        .not_valid_before(spec.not_before)
        .not_valid_after(spec.not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=spec.path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(_issuer_key_identifier(issuer), critical=False)
    permitted: list[Any] = [x509.DNSName(item) for item in spec.permitted_dns]
    permitted += [x509.UniformResourceIdentifier(item) for item in spec.permitted_uris]
    if permitted:
        builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    return _certificate(builder, signer)


def _certificate(builder: Any, signer: Signer) -> Any:
    throw_away = ec.generate_private_key(curve_of(signer.curve))
    tbs = builder.sign(throw_away, _hash(signer.curve)).tbs_certificate_bytes
    return x509.load_der_x509_certificate(signed(tbs, signer))


def leaf_certificate(spec: LeafSpec, key: Any, issuer: Any, signer: Signer) -> Any:
    """An end-entity certificate for client and server use with exactly the names of ``spec``."""
    names: list[Any] = [x509.UniformResourceIdentifier(item) for item in spec.names.uris]
    names += [x509.DNSName(item) for item in spec.names.dns]
    names += [x509.IPAddress(ipaddress.ip_address(item)) for item in spec.names.addresses]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(spec.common_name, spec.organization))
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(new_serial())
        .not_valid_before(spec.not_before)
        .not_valid_after(spec.not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_issuer_key_identifier(issuer), critical=False)
    )
    return _certificate(builder, signer)


def revocation_list(
    issuer: Any, signer: Signer, *, number: int, updated: datetime, next_update: datetime, entries: Sequence[Revoked]
) -> Any:
    """A complete CRL of one authority's certificate."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(updated)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_issuer_key_identifier(issuer), critical=False)
    )
    for item in sorted(entries, key=lambda entry: entry.serial):
        entry = x509.RevokedCertificateBuilder().serial_number(item.serial).revocation_date(item.at)
        if item.reason in _REASON_FLAGS:  # "unspecified" should be left out (RFC 5280 5.3.1)
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(_REASON_FLAGS[item.reason])), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    throw_away = ec.generate_private_key(curve_of(signer.curve))
    tbs = builder.sign(throw_away, _hash(signer.curve)).tbs_certlist_bytes
    return x509.load_der_x509_crl(signed(tbs, signer))


def pem(item: Any) -> str:
    return str(item.public_bytes(serialization.Encoding.PEM).decode())


def pem_without(make: Callable[[], Any], secret: str) -> Any:
    """Makes an object whose PEM and serial do not contain ``secret`` by chance.

    Ansible blanks every no_log value out of a module's results, which would damage a certificate that happens to
    contain a short PIN. Serial and signature are random, so a second attempt differs.
    """
    for _attempt in range(100):
        item = make()
        serial = serial_text(item.serial_number) if hasattr(item, "serial_number") else ""
        if not secret or (secret not in pem(item) and secret not in serial):
            return item
    raise TrustError("the PIN is so short that it appears in every certificate; use a longer one")


def parse_certificates(text: str, what: str) -> list[Any]:
    try:
        return list(x509.load_pem_x509_certificates(text.encode()))
    except ValueError as error:
        raise TrustError(f"{what} holds no readable PEM certificate") from error


def parse_crls(text: str) -> list[Any]:
    """All revocation lists of a bundle; raises TrustError if one cannot be read."""
    end = "-----END X509 CRL-----"
    try:
        return [x509.load_pem_x509_crl((part + end).strip().encode()) for part in text.split(end)[:-1]]
    except ValueError as error:
        raise TrustError("the bundle holds an unreadable revocation list") from error


def fingerprint(certificate: Any) -> str:
    return str(certificate.fingerprint(hashes.SHA256()).hex())


def names_of(extensions: Any) -> Names:
    """The SANs of a certificate or a CSR. Raises TrustError for kinds that the trust root never issues."""
    try:
        value = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Names()
    uris, dns, addresses = [], [], []
    for item in value:
        if isinstance(item, x509.UniformResourceIdentifier):
            uris.append(item.value)
        elif isinstance(item, x509.DNSName):
            dns.append(item.value)
        elif isinstance(item, x509.IPAddress):
            addresses.append(str(item.value))
        else:
            raise TrustError(f"a name of kind {type(item).__name__} is not allowed; use URI, DNS and IP")
    return Names.of(uris, dns, addresses)


def check_request(text: str, granted: Names) -> Any:
    """The public key of a CSR that may be signed.

    The certificate is made from ``granted`` alone. A CSR that asks for more, whose signature is wrong (no proof of
    possession) or whose key is not EC P-256 or P-384 raises TrustError.
    """
    try:
        request = x509.load_pem_x509_csr(text.encode())
        valid = request.is_signature_valid
        key = request.public_key()
        asked = names_of(request.extensions)
    except ValueError as error:
        raise TrustError("the CSR cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        raise TrustError("the CSR's key is not allowed; use EC P-256 (or P-384)")
    if not valid:
        raise TrustError("the CSR's signature is wrong: it was not made with the key that it names")
    extra = [item for item in asked.labelled() if item not in granted.labelled()]
    if extra:
        raise TrustError(
            f"the CSR asks for {', '.join(extra)}, which it may not have; allowed are {', '.join(granted.labelled())}"
        )
    return key


def same_key(left: Any, right: Any) -> bool:
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return bool(left.public_bytes(*form) == right.public_bytes(*form))


def issued_by(certificate: Any, issuer: Any) -> bool:
    """Name and signature, not validity."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def remaining(not_before: datetime, not_after: datetime, moment: datetime) -> float:
    """Fraction of the life that is left: 1.0 when new, 0.0 or less when over."""
    return (not_after - moment) / (not_after - not_before)


def validity(moment: datetime, life: timedelta, backdate: timedelta, issuer: Any | None) -> tuple[datetime, datetime]:
    """not_before and not_after: backdated against clock skew, and never outside of the issuer's own validity."""
    start, end = moment - backdate, moment + life
    if issuer is not None:
        start, end = max(start, issuer.not_valid_before_utc), min(end, issuer.not_valid_after_utc)
        if end <= moment:
            raise TrustError(f"the issuer's certificate ended {iso(issuer.not_valid_after_utc)}; rotate it first")
    return start, end


def key_fingerprint(key: Any) -> str:
    """SHA-256 over the SubjectPublicKeyInfo."""
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def address(text: str) -> Any:
    return ipaddress.ip_address(text)


def crl_number(crl: Any) -> int:
    try:
        return int(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    except x509.ExtensionNotFound:
        return 0


def leaf_serial(chain: str) -> str:
    return serial_text(parse_certificates(chain, "the certificate")[0].serial_number)
