# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics port: mutual TLS 1.3, allowed identities only, certificates that change."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from causeway_agent.config import MetricsSettings
from causeway_agent.metrics import MetricsServer
from causeway_agent.runtime import Log

x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ALLOWED = "spiffe://shop.internal/metrics"


class Authority:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = self._builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = builder.add_extension(usage, critical=True).sign(self.key, hashes.SHA256())

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        return builder.not_valid_after(now + datetime.timedelta(hours=1))

    def issue(self, directory: Path, uri: str) -> Path:
        directory.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(uri), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        extension = x509.SubjectAlternativeName(names)
        certificate = self._builder(x509.Name([]), key).add_extension(extension, critical=True)
        pem = serialization.Encoding.PEM
        signed = certificate.sign(self.key, hashes.SHA256())
        (directory / "cert.pem").write_bytes(signed.public_bytes(pem))
        (directory / "ca.pem").write_bytes(self.certificate.public_bytes(pem))
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (directory / "key.pem").write_bytes(private)
        return directory


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[MetricsServer]:
    files = authority.issue(tmp_path / "server", "spiffe://shop.internal/host/a")
    names = (str(files / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    settings = MetricsSettings("127.0.0.1", 0, *names, allowed=(ALLOWED,))
    server = MetricsServer(settings, lambda: "causeway_agent_up 1\n", Log("error"))
    server.start()
    yield server
    server.stop()


def fetch(
    server: MetricsServer, identity: Path | None, ca: Path, path: str = "/metrics", old: bool = False
) -> tuple[int, bytes, int]:
    """Status, body and serial number of the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca / "ca.pem")
    context.check_hostname = False
    if identity:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert isinstance(connection.sock, ssl.SSLSocket)
        der = connection.sock.getpeercert(True)
        return response.status, response.read(), x509.load_der_x509_certificate(der).serial_number
    finally:
        connection.close()


@pytest.mark.parametrize(
    "case",
    [
        (ALLOWED, "/metrics", 200),
        (ALLOWED, "/other", 404),
        ("spiffe://shop.internal/orders", "/metrics", 403),
        ("spiffe://shop.internal/metrics/x", "/metrics", 403),
    ],
)
def test_only_allowed_identities_read(
    server: MetricsServer, authority: Authority, tmp_path: Path, case: tuple[str, str, int]
) -> None:
    uri, path, status = case
    identity = authority.issue(tmp_path / "client", uri)
    got = fetch(server, identity, tmp_path / "server", path)
    assert got[0] == status and (status != 200 or got[1] == b"causeway_agent_up 1\n")


def test_no_certificate_foreign_certificate_and_old_tls_are_refused(
    server: MetricsServer, authority: Authority, tmp_path: Path
) -> None:
    good, foreign = authority.issue(tmp_path / "client", ALLOWED), Authority().issue(tmp_path / "foreign", ALLOWED)
    ca = tmp_path / "server"
    for identity, old in ((None, False), (foreign, False), (good, True)):
        with pytest.raises((OSError, http.client.HTTPException)):
            fetch(server, identity, ca, old=old)
    assert fetch(server, good, ca)[0] == 200


def test_new_certificates_are_taken_up_and_broken_ones_are_not(
    server: MetricsServer, authority: Authority, tmp_path: Path
) -> None:
    client, ca = authority.issue(tmp_path / "client", ALLOWED), tmp_path / "server"
    before = fetch(server, client, ca)[2]
    authority.issue(tmp_path / "server", "spiffe://shop.internal/host/a")
    after = fetch(server, client, ca)[2]
    assert after != before
    (tmp_path / "server" / "cert.pem").write_text("broken")
    assert fetch(server, client, ca)[2] == after
