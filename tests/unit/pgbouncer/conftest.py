# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two database hosts on loopback: real PostgreSQL, PgBouncer and Envoy each, and a sidecar before them.

Patroni itself is not here: its REST interface is a small HTTPS server whose answers the tests set. The two servers do
not replicate, so that one sees by their contents where a query went.
"""

from __future__ import annotations

import dataclasses
import http.server
import importlib.util
import json
import os
import pwd
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer, pgbouncer_files
from ansible_collections.causeway.platform.plugins.module_utils.envoy import proxies
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
NAME, PASSWORD, POOLER = "orders", "a-word-of-orders", "a-word-of-the-pooler"
DOMAIN = "shop.internal"
SIDECAR = "127.76.1.31"


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


live = _load("pgbouncer_live", ROOT / "tests/unit/envoy/live.py")


def program(name: str, variable: str = "") -> str:
    """A program of this machine; Debian keeps PostgreSQL's out of PATH. `variable`: names another one."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = os.environ.get(variable) or (str(places[-1]) if places else "") or shutil.which(name)
    found = found or next((str(path) for path in [Path("/usr/sbin") / name] if path.exists()), "")
    if not found:
        pytest.skip(f"needs {name} (bindep.txt, profile test)")
    return found


@pytest.fixture(scope="session")
def account() -> str:
    """Who runs the servers: neither accepts root."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@dataclasses.dataclass
class Rest:
    """What one member's Patroni would say."""

    role: str = "replica"
    fit: bool = True
    leader: Callable[[], str] = str
    alive: bool = True
    knows: bool = True
    asked: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Host:
    """One database host. `folder` stands for its /."""

    name: str
    address: str
    folder: Path
    account: str
    rest: Rest = dataclasses.field(default_factory=Rest)
    running: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    @property
    def socket(self) -> Path:
        return self.folder / "run/postgresql"

    @property
    def tls(self) -> Path:
        return self.folder / "etc/causeway/tls/database"

    def own(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                shutil.chown(path, self.account)

    def start(self, name: str, command: list[Any]) -> None:
        user = self.account if os.geteuid() == 0 else None
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                extra_groups=[] if user else None,
                cwd=self.folder,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def psql(self, database: str, sql: str) -> str:
        """As superuser at the server itself."""
        command = [program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.socket, "-p", "15010"]
        done = subprocess.run(
            [*map(str, command), "-U", "postgres", "-d", database],
            input=sql,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answers(self) -> bool:
        """Whether the pooler here has a leader to offer."""
        command = [
            program("psql"),
            "-XqAt",
            "-h",
            str(self.socket),
            "-p",
            "6432",
            "-U",
            NAME,
            "-d",
            NAME,
            "-c",
            "SELECT 1",
        ]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


class Site:
    """Everything that runs."""

    def __init__(self, folder: Path, account: str) -> None:
        self.folder = folder
        self.leader = "db1"
        self.authority = live.Authority("causeway test root")
        self.hosts = {
            f"db{number}": Host(f"db{number}", f"127.76.1.4{number}", folder / f"db{number}", account)
            for number in (1, 2)
        }
        self.databases = {
            "orders": {
                "name": "orders",
                "service": "orders",
                "database": NAME,
                "index": 1,
                "port": 15010,
                "rest_port": 17010,
                "max_lag": 16777216,
                "pool": {"size": 5, "reserve": 2, "clients": 50},
                "members": [{"host": name, "address": host.address} for name, host in self.hosts.items()],
                "clients": [{"host": "app1", "address": SIDECAR}],
            }
        }
        # What Patroni says to a switchover: refused with these words; accepted, and then nobody leads.
        self.refuse, self.stuck = "", False
        self.proxies: list[Any] = []
        self.servers: list[http.server.ThreadingHTTPServer] = []

    def config(self, host: str) -> pgbouncer.Config:
        return pgbouncer.load_config(str(self.hosts[host].folder / "etc/causeway/pgbouncer/clusters.json"))

    def cluster(self, host: str) -> pgbouncer.Cluster:
        return self.config(host).cluster("orders")

    def console(self, host: str) -> pgbouncer.Console:
        return pgbouncer.Console(self.config(host).console, pwd.getpwnam(self.hosts[host].account).pw_uid)

    def lead(self, name: str) -> None:
        """Another leader, as far as Patroni's answers go."""
        self.leader = name
        for host in self.hosts.values():
            host.rest.role = "primary" if host.name == name else "replica"

    def settle(self, host: str, writer: str, reader: str) -> list[str]:
        return pgbouncer.settle(self.config(host), self.cluster(host), self.console(host), writer, reader)

    def quiet(self) -> None:
        """The state that each test begins with."""
        for host in self.hosts.values():
            host.rest.alive = host.rest.fit = host.rest.knows = True
        self.lead("db1")
        for name in self.hosts:
            pgbouncer.resume(self.config(name), self.cluster(name), self.console(name))
            self.settle(name, "db1", name)
        for host in self.hosts.values():
            # A login that a test broke off counts as failed until the next one.
            live.wait_for(host.answers, f"the pooler of {host.name}")
        live.wait_for(lambda: self.fit("writer") == {"db1"} and self.fit("reader") == {"db2"}, "health checks")

    def fit(self, role: str) -> set[str]:
        """Members that the sidecar would choose for a role."""
        text = self.proxies[-1].get("/clusters")
        found = re.findall(rf"^db_orders_{role}::(\S+):6432::health_flags::healthy$", text, re.M)
        return {name for name, host in self.hosts.items() if host.address in found}


def _rest_server(site: Site, host: Host) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            rest = host.rest
            rest.asked.append(self.path)
            if not rest.alive:
                self.close_connection = True
                return
            path = self.path.split("?")[0]
            fits = {
                "/primary": rest.role == "primary",
                "/replica": rest.role == "replica" and rest.fit,
                "/read-only": rest.role == "primary" or rest.fit,
                "/cluster": rest.knows,
                "/patroni": True,
                "/config": True,
            }
            members = [
                {
                    "name": one.name,
                    "role": "leader" if one.name == site.leader else "sync_standby",
                    "state": "running" if one.name == site.leader else "streaming",
                    "host": one.address,
                    "port": 15010,
                    "api_url": f"https://{one.address}:17010/patroni",
                    "lag": 0,
                }
                for one in site.hosts.values()
            ]
            told: dict[str, Any] = {"members": members, "scope": "orders"}
            if path == "/patroni":
                told = {"state": "running", "role": rest.role}
            if path == "/config":
                told = {"synchronous_mode": True}
            self._answer(200 if fits[path] else 503, json.dumps(told))

        def do_POST(self) -> None:
            """A switchover: the other leads after a while, and the answer comes later than that."""
            wish = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if site.refuse:
                self._answer(412, site.refuse)
                return
            if not site.stuck:
                site.lead("")
                time.sleep(0.4)
                site.lead(wish["candidate"])
                time.sleep(0.5)
            self._answer(200, "Successfully switched over")

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer((host.address, 17010), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(host.tls / "current/cert.pem", host.tls / "current/key.pem")
    context.load_verify_locations(host.tls / "current/ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _postgresql(host: Host, verifier: str) -> str:
    """A server with the roles of docs/design.md section 9; returns the application's verifier, equal on all members."""
    data = host.folder / "data"
    user = host.account if os.geteuid() == 0 else None
    subprocess.run(
        [program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C.UTF-8"],
        check=True,
        stdout=subprocess.DEVNULL,
        user=user,
        extra_groups=[] if user else None,
        cwd=host.folder,
    )
    (host.folder / "pg_hba.conf").write_text(
        "local all postgres trust\n"
        f"local {NAME} {NAME},pgbouncer scram-sha-256\n"
        f"hostssl {NAME} {NAME},pgbouncer 127.0.0.0/8 scram-sha-256 clientcert=verify-ca\n"
    )
    settings = {
        "unix_socket_directories": host.socket,
        "listen_addresses": host.address,
        "hba_file": host.folder / "pg_hba.conf",
        "ssl": "on",
        "ssl_cert_file": host.tls / "current/cert.pem",
        "ssl_key_file": host.tls / "current/key.pem",
        "ssl_ca_file": host.tls / "current/ca.pem",
        "ssl_min_protocol_version": "TLSv1.3",
        "fsync": "off",
        "max_connections": "40",
        "shared_buffers": "16MB",
    }
    command = [program("postgres"), "-D", data, "-p", "15010"]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    host.start("postgresql", command)
    ready = [program("pg_isready"), "-q", "-h", str(host.socket), "-p", "15010"]
    live.wait_for(
        lambda: subprocess.run(ready, check=False).returncode == 0,
        "PostgreSQL",
        host.folder / "postgresql.log",
    )
    host.psql("postgres", f"CREATE ROLE {NAME} LOGIN PASSWORD '{verifier or PASSWORD}'; CREATE DATABASE {NAME};")
    host.psql("postgres", f"CREATE ROLE pgbouncer LOGIN PASSWORD '{POOLER}';")
    host.psql(
        NAME,
        f"CREATE TABLE who AS SELECT '{host.name}'::text AS name; CREATE TABLE ledger (id bigint);"
        f"GRANT SELECT, INSERT ON who, ledger TO {NAME}; CREATE SCHEMA causeway;"
        "GRANT USAGE ON SCHEMA causeway TO pgbouncer;"
        "CREATE FUNCTION causeway.user_lookup(name text, OUT usename text, OUT passwd text) RETURNS SETOF record "
        "LANGUAGE sql SECURITY DEFINER AS "
        "$$ SELECT rolname::text, rolpassword FROM pg_authid WHERE rolname = $1 AND NOT rolsuper $$;",
    )
    return host.psql("postgres", f"SELECT rolpassword FROM pg_authid WHERE rolname = '{NAME}'")


def _version(binary: str) -> tuple[int, ...]:
    text = subprocess.run([binary, "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", text)
    assert found, text
    return tuple(int(part) for part in found.groups())


def _pooler(site: Site, host: Host, binary: str) -> None:
    """PgBouncer with the role's own files, in this folder."""
    etc, state = host.folder / "etc/causeway/pgbouncer", host.folder / "var/lib/causeway/pgbouncer"
    for folder in (etc, state):
        folder.mkdir(parents=True)
    options = pgbouncer_files.Options(
        socket=str(host.socket), user=host.account, state=str(state), tls=str(host.tls / "current")
    )
    files = pgbouncer_files.files(site.databases, host.name, POOLER, options)
    # What the controller's Debian has may be older than what the hosts have: it does not know these.
    old = _version(binary) < (1, 24)
    unknown = ("max_prepared_statements",)
    for path, entry in files.items():
        text = entry["content"].replace("/etc/causeway/pgbouncer", str(etc))
        if old and path.endswith("pgbouncer.ini"):
            text = "".join(line for line in text.splitlines(True) if not line.startswith(unknown))
        if old and path.endswith("clusters.json"):
            data = json.loads(text)
            for cluster in data["clusters"].values():
                cluster["options"] = {name: cluster["options"][name] for name in ("auth_user", "pool_size")}
            text = json.dumps(data)
        (etc / Path(path).name).write_text(text, encoding="utf-8")
    host.own(etc, state, *etc.iterdir())
    pgbouncer.prepare(site.config(host.name))
    host.start("pgbouncer", [binary, etc / "pgbouncer.ini"])
    live.wait_for((host.socket / ".s.PGSQL.6432").exists, "PgBouncer", host.folder / "pgbouncer.log")


def _documents(site: Site) -> dict[str, Any]:
    hosts = {
        name: {"name": name, "address": address, "zone": "north-a", "region": "north", "components": []}
        for name, address in [("app1", SIDECAR), *((host.name, host.address) for host in site.hosts.values())]
    }
    service = {
        **{"name": "orders", "index": 1, "port": 8080, "mesh_port": 7110, "routes": [], "calls": []},
        "health": {"path": "/healthz"},
        "instances": {
            "placed": [
                {"host": "app1", "address": SIDECAR, "slot": 0, "id": "app1-0", "service": "orders", "port": 7110}
            ]
        },
    }
    platform = proxies.Platform(DOMAIN, hosts, {"orders": service}, databases=site.databases)
    settings = Settings(health_interval=0.25)
    return {
        "sidecar": proxies.sidecar("app1", "orders", platform, settings),
        **{name: proxies.database(name, platform, settings)["database"] for name in site.hosts},
    }


@pytest.fixture(scope="module")
def site(account: str) -> Iterator[Site]:
    binary, envoy = program("pgbouncer", "CAUSEWAY_PGBOUNCER"), live.find_envoy()
    if envoy is None:
        pytest.skip("no envoy: set CAUSEWAY_ENVOY, or install it below /opt/causeway or in PATH")
    program("initdb")
    # Not tmp_path: a unix socket's path may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="cw-pool-"))
    folder.chmod(0o755)
    site = Site(folder, account)
    try:
        verifier = ""
        for host in site.hosts.values():
            host.socket.mkdir(parents=True)
            site.authority.write(host.tls, f"spiffe://{DOMAIN}/database", [f"database.{DOMAIN}"], address=host.address)
            key = host.tls / "current/key.pem"
            key.chmod(0o600)
            host.own(host.folder, host.socket, key)
            verifier = _postgresql(host, verifier)
            host.rest.role = "primary" if host.name == site.leader else "replica"
            site.servers.append(_rest_server(site, host))
            _pooler(site, host, binary)
        documents = _documents(site)
        sidecar = folder / "app1"
        site.authority.write(sidecar / "etc/causeway/tls/svc-orders", f"spiffe://{DOMAIN}/orders", [f"orders.{DOMAIN}"])
        for name, place in (*((name, site.hosts[name].folder) for name in site.hosts), ("sidecar", sidecar)):
            text = json.dumps(documents[name])
            if name == "sidecar":
                # The source address counts at the other side.
                source = json.dumps({"source_address": {"address": SIDECAR, "port_value": 0}})[1:-1]
                text = text.replace('"upstream_bind_config": {', '"upstream_bind_config": {' + source + ", ")
            proxy = live.Proxy(envoy, place, json.loads(text))
            proxy.start()
            site.proxies.append(proxy)
        yield site
    finally:
        for proxy in site.proxies:
            proxy.stop()
        for server in site.servers:
            server.shutdown()
            server.server_close()
        for host in site.hosts.values():
            host.stop()
        if os.environ.get("CAUSEWAY_KEEP"):
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


class Session:
    """One psql with one connection that stays open, as an application's pool would hold it."""

    def __init__(self, *, host: str = "127.89.1.1", port: int = 5432, database: str = NAME, user: str = NAME) -> None:
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "PGSSLMODE": "disable", "PGCONNECT_TIMEOUT": "20"}
        command = [program("psql"), "-XqAt", "-h", host, "-p", str(port), "-U", user, "-d", database]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def send(self, sql: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{sql}\n\\echo --end--\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout
        lines: list[str] = []
        for line in self.process.stdout:
            if line == "--end--\n":
                return "".join(lines).strip()
            lines.append(line)
        raise AssertionError(f"psql ended: {''.join(lines)}")

    def run(self, sql: str) -> str:
        self.send(sql)
        return self.receive()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sessions(site: Site) -> Iterator[Callable[..., Session]]:
    """Makes sessions and closes them; the site is quiet before."""
    site.quiet()
    made: list[Session] = []

    def make(**options: Any) -> Session:
        made.append(Session(**options))
        return made[-1]

    yield make
    for session in made:
        session.close()
