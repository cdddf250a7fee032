# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs real Envoys from generated documents on loopback addresses, with throw-away certificates and a tiny upstream."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import http.server
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)


def find_envoy() -> str | None:
    """Path of the binary: CAUSEWAY_ENVOY, then /opt/causeway, then PATH."""
    named = os.environ.get("CAUSEWAY_ENVOY")
    if named:
        return named
    installed = sorted(Path("/opt/causeway").glob("envoy-*/bin/envoy"))
    return str(installed[-1]) if installed else shutil.which("envoy")


class Authority:
    """Throw-away CA that writes identities in the layout of docs/design.md section 2."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.cert = (
            self._builder(subject, subject, self.key.public_key())
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
            .sign(self.key, hashes.SHA256())
        )
        self.revoked: list[int] = []

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(hours=1))
            .not_valid_after(NOW + datetime.timedelta(days=7))
        )

    def crl(self) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.cert.subject)
            .last_update(NOW - datetime.timedelta(hours=1))
            .next_update(NOW + datetime.timedelta(days=7))
        )
        for serial in self.revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def write(
        self, directory: Path, uri: str, dns: list[str], trust: Authority | None = None, address: str = "127.0.0.1"
    ) -> int:
        """A new generation of an identity, then the symlink is swapped; returns the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), *(x509.DNSName(name) for name in dns)]
        names.append(x509.IPAddress(ipaddress.ip_address(address)))
        cert = (
            self._builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns[0])]), self.cert.subject, key.public_key()
            )
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False
            )
            .sign(self.key, hashes.SHA256())
        )
        generation = directory / f"gen-{cert.serial_number:x}"
        generation.mkdir(parents=True)
        pem = serialization.Encoding.PEM
        (generation / "cert.pem").write_bytes(cert.public_bytes(pem))
        (generation / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        authority = trust or self
        (generation / "ca.pem").write_bytes(authority.cert.public_bytes(pem))
        (generation / "crl.pem").write_bytes(authority.crl())
        link = directory / "next"
        link.symlink_to(generation.name)
        link.rename(directory / "current")
        return cert.serial_number


class Upstream:
    """The service's process: echoes what it received; the path says how to behave."""

    def __init__(self, address: str, port: int, name: str) -> None:
        self.name = name
        self.seen: dict[str, int] = {}
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body in one packet: else each answer waits 40 ms for a delayed acknowledgement.
            wbufsize = 65536
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                self.rfile.read(length)
                outer.reply(self)

            do_GET = do_POST = do_HEAD = do_DELETE = answer

        self.server = http.server.ThreadingHTTPServer((address, port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, key: str) -> int:
        with self.lock:
            self.seen[key] = self.seen.get(key, 0) + 1
            return self.seen[key]

    def reply(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = urllib.parse.urlsplit(handler.path).path
        status = 200
        number = self.count(handler.command + " " + path)
        if "/flaky" in path and number == 1:
            status = 503
        if "/slow" in path and number == 1:
            time.sleep(1.6)
        body: dict[str, Any] = {
            "service": self.name,
            "path": handler.path,
            "number": number,
            "headers": {key.lower(): value for key, value in handler.headers.items()},
        }
        if "/big" in path:
            body["padding"] = "x" * 20000
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json; charset=utf-8")
        handler.send_header("content-length", str(len(data)))
        handler.send_header("x-powered-by", "test")
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Proxy:
    """One running Envoy whose files all live below a temporary root."""

    def __init__(self, binary: str, root: Path, documents: dict[str, Any]) -> None:
        self.root = root
        self.name = documents["proxy"]["proxy"]
        self.config = root / "etc/envoy" / self.name
        self.xds = root / "var/lib/causeway/xds" / self.name
        self.admin = root / "run/envoy" / self.name / "admin.sock"
        self.log = root / f"{self.name}.log"
        for directory in (self.config, self.xds / "eds", self.xds / "rds", self.admin.parent):
            directory.mkdir(parents=True)
        for name in ("bootstrap", "lds", "cds", "sds-identity", "sds-trust", "local"):
            self.write(self.config / f"{name}.yaml", documents[name])
        self.binary = binary
        self.process: subprocess.Popen[bytes] | None = None

    def relocated(self, document: Any) -> Any:
        """The same document for this machine: paths below the root, the lab's networks on loopback."""
        text = json.dumps(document)
        for prefix in ("/etc/envoy", "/etc/causeway", "/var/lib/causeway", "/run/envoy", "/run/postgresql"):
            text = text.replace(prefix, f"{self.root}{prefix}")
        return json.loads(text.replace('"10.89.', '"127.89.').replace('"10.77.', '"127.77.'))

    def write(self, path: Path, document: Any) -> None:
        temporary = path.parent / f".{path.name}.new"
        temporary.write_text(json.dumps(self.relocated(document)), encoding="utf-8")
        temporary.rename(path)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.binary, "-c", str(self.config / "bootstrap.yaml"), "--disable-hot-restart"),
                    *("--concurrency", "1", "-l", "warning", "--drain-time-s", "2"),
                ],
                stdout=log,
                stderr=log,
            )
        wait_for(
            lambda: self.admin.exists() and self.get("/ready").startswith("LIVE"), f"{self.name} to be ready", self.log
        )

    def get(self, path: str, method: str = "GET") -> str:
        """Answer of the admin interface."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.admin))
            connection.request(method, path)
            return connection.getresponse().read().decode()
        except OSError:
            return ""
        finally:
            connection.close()

    def logged(self) -> list[dict[str, Any]]:
        """Access log so far (Envoy flushes it on this call)."""
        self.get("/reopen_logs", "POST")
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def wait_for(condition: Callable[[], bool], what: str, log: Path | None = None, timeout: float = 15.0) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8")[-3000:] if log and log.exists() else ""
            raise AssertionError(f"waited {timeout:g} s for {what}\n{tail}")
        time.sleep(0.05)


def client_context(
    ca: Path | None, identity: Path | None = None, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """TLS client; without a CA the server is not verified."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.check_hostname = False
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    if identity:
        context.load_cert_chain(identity / "current/cert.pem", identity / "current/key.pem")
    if version:
        context.minimum_version = context.maximum_version = version
    return context


@contextlib.contextmanager
def connect(address: str, port: int, context: ssl.SSLContext | None = None) -> Iterator[http.client.HTTPConnection]:
    """HTTP/1.1 connection, TLS when a context is given."""
    connection: http.client.HTTPConnection
    if context:
        connection = http.client.HTTPSConnection(address, port, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


class Answer:
    """Status, headers (lower case) and body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {key.lower(): value for key, value in response.getheaders()}
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    address: str,
    port: int,
    path: str,
    context: ssl.SSLContext | None = None,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request on a fresh connection."""
    with connect(address, port, context) as connection:
        connection.request(method, path, body=body, headers=headers or {})
        return Answer(connection.getresponse())
