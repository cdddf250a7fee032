# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real etcd with mutual TLS and authentication, and stand-ins for the node agents."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ansible_collections.causeway.platform.plugins.module_utils import etcd, registry

SECRET = "0123456789abcdef0123456789abcdef"
NUMBERS = itertools.count(1)


def etcd_binary() -> str:
    """The etcd to test against."""
    binary = os.environ.get("CAUSEWAY_ETCD") or shutil.which("etcd")
    if not binary:
        pytest.skip("needs the etcd binary (Debian package etcd-server)")
    return binary


@dataclass
class Authority:
    """A throw-away CA that writes certificates in the platform's layout."""

    folder: Path
    name: str = "test root"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.certificate = self._sign(self.subject, self.key.public_key(), True)

    def _sign(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, is_ca: bool, days: float = 1, names: Any = None
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if is_ca:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        else:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
            builder = builder.add_extension(usage, critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str, days: float = 1, address: str = "127.0.0.1") -> Path:
        """A directory with key.pem, cert.pem and ca.pem."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}.test.internal")])
        names = [x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName(f"{name}.test.internal")]
        certificate = self._sign(subject, key.public_key(), False, days, names)
        folder = self.folder / f"{name}-{next(NUMBERS)}"
        folder.mkdir(parents=True)
        pem = serialization.Encoding.PEM
        (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
        (folder / "ca.pem").write_bytes(self.certificate.public_bytes(pem))
        (folder / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return folder


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Server:
    """One etcd process."""

    folder: Path
    tls: Path
    name: str = "one"
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    initial: str = ""
    state: str = "new"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"https://127.0.0.1:{self.peer_port}"

    def start(self) -> Server:
        """Start it and do not wait."""
        files = [f"--{kind}{what}={self.tls / name}" for kind in ("", "peer-") for what, name in FILES]
        command = [
            etcd_binary(),
            f"--name={self.name}",
            f"--data-dir={self.folder / self.name}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.initial or f'{self.name}={self.peer_url}'}",
            f"--initial-cluster-state={self.state}",
            "--peer-client-cert-auth",
            "--unsafe-no-fsync",
            "--heartbeat-interval=50",
            "--election-timeout=500",
            *files,
        ]
        log = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def wait(self) -> Server:
        """Wait until it serves."""
        with self.client() as client:
            deadline = time.monotonic() + 20
            while (reason := client.health(self.url)) and "user name is empty" not in reason:
                assert time.monotonic() < deadline, reason
                time.sleep(0.05)
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def client(
        self, user: str = "", password: str = "", timeout: float = 5.0, tls: Path | None = None
    ) -> etcd.EtcdClient:
        tls = tls or self.tls
        return etcd.EtcdClient(
            [self.url],
            str(tls / "ca.pem"),
            str(tls / "cert.pem"),
            str(tls / "key.pem"),
            username=user,
            password=password or (registry.password(SECRET, user) if user else ""),
            timeout=timeout,
        )


FILES = [("cert-file", "cert.pem"), ("key-file", "key.pem"), ("trusted-ca-file", "ca.pem")]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def tls(authority: Authority) -> Path:
    return authority.issue("one")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tls: Path) -> Iterator[Server]:
    """One etcd for all tests, with the platform's users (platform `shop`, host `app1` with service orders)."""
    one = Server(tmp_path_factory.mktemp("etcd"), tls).start()
    try:
        one.wait()
        keys = registry.Keys("shop")
        with one.client("root") as client:
            steps = registry.plan_auth(
                keys, registry.read_auth(client, keys, False), {"app1": ["orders"], "edge1": []}, SECRET
            )
            registry.apply_auth(client, steps, SECRET)
        yield one
    finally:
        one.stop()


@pytest.fixture
def own_server(tmp_path: Path, tls: Path) -> Iterator[Server]:
    """An etcd of one's own, without authentication, to be maltreated."""
    one = Server(tmp_path, tls).start()
    try:
        yield one.wait()
    finally:
        one.stop()


@pytest.fixture
def client(server: Server) -> Iterator[etcd.EtcdClient]:
    """Logged in as root."""
    with server.client("root") as one:
        yield one


@pytest.fixture
def platform() -> str:
    """A name that no other test uses."""
    return f"t{next(NUMBERS)}"


@pytest.fixture
def keys(platform: str) -> registry.Keys:
    return registry.Keys(platform)


@dataclass
class Agent:
    """A stand-in for one proxy's node agent: acknowledges what happens to its services, and counts requests down."""

    client: etcd.EtcdClient
    keys: registry.Keys
    name: str
    services: tuple[str, ...] = ("orders",)
    delay: float = 0.0
    # Requests in flight to each draining instance at first; one ends with every acknowledgement.
    busy: int = 0
    deaf: bool = False
    thread: threading.Thread | None = None
    watch: etcd.Watch | None = None

    def start(self) -> Agent:
        self.client.put(self.keys.of("proxies", self.name), json.dumps({"services": list(self.services)}))
        kvs, revision = self.client.range(self.keys.prefix)
        self.mirror = registry.Mirror.of(self.keys, kvs, revision)
        self.watch = self.client.watch(self.keys.prefix, revision + 1)
        self.acknowledge()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def run(self) -> None:
        assert self.watch
        for batch in self.watch:
            self.mirror.apply(batch)
            if any("/acks/" not in event.kv.key for event in batch.events) and not self.deaf:
                time.sleep(self.delay)
                self.acknowledge()
                while self.busy and any("/drains/" in event.kv.key for event in batch.events):
                    time.sleep(0.02)
                    self.busy -= 1
                    self.acknowledge()

    def acknowledge(self) -> None:
        services = {}
        for service in self.services:
            services[service] = {"revision": self.mirror.revision, "at": time.time()}
            drains = self.mirror.below("drains", service)
            if drains:
                services[service]["active"] = dict.fromkeys(drains, self.busy)
        with contextlib.suppress(etcd.Closed):
            self.client.put(self.keys.of("acks", self.name), json.dumps({"services": services}))

    def stop(self) -> None:
        if self.watch:
            self.watch.close()
        if self.thread:
            self.thread.join(5)


@pytest.fixture
def agent(client: etcd.EtcdClient, keys: registry.Keys) -> Iterator[Callable[..., Agent]]:
    """Start a stand-in: ``agent("edge1/gateway", delay=0.1)``."""
    started: list[Agent] = []

    def start(name: str, **options: Any) -> Agent:
        one = Agent(client, keys, name, **options).start()
        started.append(one)
        return one

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def instance(client: etcd.EtcdClient, keys: registry.Keys) -> Callable[..., None]:
    """Register an instance as an agent would."""

    def put(name: str, version: str = "1.0.0", pool: str = "stable", service: str = "orders") -> None:
        host, slot = registry.parse_instance(name)
        value = {
            "service": service,
            "instance": f"{host}-{slot}",
            "host": host,
            "slot": slot,
            "pool": pool,
            "version": version,
        }
        client.put(keys.of("services", service, name), json.dumps(value))

    return put


@pytest.fixture
def run_module(server: Server, platform: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a module's main() as Ansible does; returns its result, ``failed`` among it."""
    import importlib

    from ansible.module_utils.testing import patch_module_args

    def run(module_name: str, /, check_mode: bool = False, **params: Any) -> dict[str, Any]:
        module = importlib.import_module(f"ansible_collections.causeway.platform.plugins.modules.{module_name}")
        arguments = {
            "platform": platform,
            "endpoints": [server.url],
            "ca_file": str(server.tls / "ca.pem"),
            "cert_file": str(server.tls / "cert.pem"),
            "key_file": str(server.tls / "key.pem"),
            "password": registry.password(SECRET, "root"),
            "_ansible_check_mode": check_mode,
            **params,
        }
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        out = capsys.readouterr().out
        assert SECRET not in out
        assert registry.password(SECRET, "root") not in out
        result: dict[str, Any] = json.loads(out)
        return result

    return run
