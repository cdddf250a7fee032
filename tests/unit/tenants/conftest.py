# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two shards on loopback: two PostgreSQL servers, the PgBouncer of either host, and an etcd. Patroni is not here."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd, pgbouncer, registry, tenants
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import helpers
from ansible_collections.causeway.platform.plugins.modules import postgresql_tenant

PLATFORM, SERVICE, TENANT, DATABASE = "shop", "orders", "acme", "orders_acme"
SHARDS = {"s1": "orders", "s2": "orders-s2"}
PORTS = {"orders": 15010, "orders-s2": 15011}
# Another checkout may run the same tests at the same time.
NETWORK = f"127.78.{os.getpid() % 250 + 1}"
HOSTS = {"db1": f"{NETWORK}.41", "db2": f"{NETWORK}.42"}
LEADERS = {"orders": "db1", "orders-s2": "db2"}
WORD = "a-word-of-the-mover"


def program(name: str) -> str:
    """A program of this machine; Debian keeps PostgreSQL's out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(places[-1]) if places else shutil.which(name)
    found = found or next((str(path) for path in [Path("/usr/sbin") / name] if path.exists()), "")
    if not found:
        pytest.skip(f"needs {name} (bindep.txt, profile test)")
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@dataclass
class Fleet:
    """Everything that runs."""

    folder: Path
    account: str
    endpoint: str = ""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, command: list[Any], user: str | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                extra_groups=[] if user else None,
                cwd=self.folder,
            )
        self.running.append(process)
        return process

    def psql(self, cluster: str, database: str, sql: str) -> str:
        """As superuser at the server itself."""
        command = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-p", str(PORTS[cluster])]
        done = subprocess.run(
            [*command, "-U", "postgres", "-d", database], input=sql, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def complaint(self, cluster: str, database: str, sql: str, role: str) -> str:
        """What the server says aside when a role runs something."""
        command = ["psql", "-XqAt", "-h", str(self.folder), "-p", str(PORTS[cluster]), "-U", role, "-d", database]
        return subprocess.run(command, input=sql, capture_output=True, text=True, check=False).stderr

    def client(self) -> etcd.EtcdClient:
        return etcd.EtcdClient([self.endpoint])

    def place(self) -> tenants.Place:
        with self.client() as client:
            found = tenants.read_place(client, registry.Keys(PLATFORM), SERVICE, TENANT)
        assert found
        return found

    def config_path(self, host: str) -> Path:
        return self.folder / host / "clusters.json"

    def config(self, host: str) -> pgbouncer.Config:
        return pgbouncer.load_config(str(self.config_path(host)))

    def console(self, host: str) -> pgbouncer.Console:
        return pgbouncer.Console(self.config(host).console, pwd.getpwnam(self.account).pw_uid)

    def connect(self, host: str = "db1", database: str = DATABASE) -> psycopg.Connection[Any]:
        """As the application, through a pooler."""
        return psycopg.connect(
            host=str(self.folder / host),
            port=6432,
            user="orders",
            dbname=database,
            prepare_threshold=None,
            autocommit=True,
        )

    def params(self, state: str, **given: Any) -> dict[str, Any]:
        """Parameters of the module."""
        empty: dict[str, Any] = dict.fromkeys(("databases", "connect", "extensions", "matviews", "members", "poolers"))
        return {
            **{name: [] for name in empty},
            "state": state,
            "platform": PLATFORM,
            "endpoints": [self.endpoint],
            "ca_file": "",
            "cert_file": "",
            "key_file": "",
            "username": "root",
            "password": None,
            "request_timeout": 5.0,
            "socket_path": str(self.folder),
            "system_user": "",
            "database": DATABASE,
            "owner": "orders_owner",
            "application": "orders",
            "service": SERVICE,
            "tenant": TENANT,
            "origin": "s1",
            "destination": "s2",
            "timeout": 20.0,
            "hold": 15.0,
            "verify": "checksum",
            "template": "",
            **given,
        }

    def module(self, state: str, check_mode: bool = False, **given: Any) -> dict[str, Any]:
        """One step on one server."""
        act: Callable[..., dict[str, Any]] = postgresql_tenant.STATES[state][0]
        return act(self.params(state, **given), check_mode)

    def source(self, cluster: str = "orders") -> dict[str, Any]:
        return {
            "host": HOSTS[LEADERS[cluster]],
            "port": PORTS[cluster],
            "user": "orders_mover",
            "password": WORD,
            "tls": "",
            "sslmode": "disable",
        }

    def copy(self) -> dict[str, Any]:
        """The steps before the switch; returns the facts."""
        facts: dict[str, Any] = self.module("published", port=PORTS["orders"])["facts"]
        self.module("copied", port=PORTS["orders-s2"], source=self.source(), matviews=facts["matviews"])
        return facts

    def switch(self, facts: dict[str, Any], **given: Any) -> dict[str, Any]:
        """The switch on both hosts at once; what each returned or raised, by host."""
        found: dict[str, Any] = {}
        meeting = f"test-{time.time_ns()}"

        def part(host: str) -> None:
            try:
                found[host] = self.module(
                    "switched",
                    tables=facts["tables"],
                    sequences=facts["sequences"],
                    host=host,
                    members=list(HOSTS),
                    poolers=list(HOSTS),
                    source_host="db1",
                    source_port=PORTS["orders"],
                    target_host="db2",
                    target_port=PORTS["orders-s2"],
                    meeting=meeting,
                    config=str(self.config_path(host)),
                    **given,
                )
            except Exception as error:  # the test looks at it
                found[host] = error

        threads = [threading.Thread(target=part, args=(host,)) for host in HOSTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def settle(self) -> dict[str, list[str]]:
        """Both servers, the target first, as the verb does."""
        shard = self.place().shard
        return {
            name: self.module("settled", port=PORTS[cluster], here=name == shard)["steps"]
            for name, cluster in sorted(SHARDS.items(), reverse=True)
        }

    def open(self, cluster: str) -> bool:
        """Whether clients may come in."""
        limit = self.psql(cluster, "postgres", f"SELECT datconnlimit FROM pg_database WHERE datname = '{DATABASE}'")
        return limit == "-1"

    def paused(self, host: str) -> bool:
        shown = self.console(host).databases()
        return any(shown[name]["paused"] == "1" for name in (DATABASE, f"{DATABASE}_ro"))

    def traces(self) -> dict[str, Any]:
        """What a move leaves on the servers while it is not over."""
        return {
            "slots": self.psql("orders", "postgres", "SELECT count(*) FROM pg_replication_slots"),
            "subscriptions": self.psql("orders-s2", "postgres", "SELECT count(*) FROM pg_subscription"),
            "publications": self.psql("orders", DATABASE, "SELECT count(*) FROM pg_publication"),
            "copies": self.psql("orders-s2", "postgres", "SELECT count(*) FROM pg_database WHERE datname ~ 'acme'"),
        }


NOTHING = {"slots": "0", "subscriptions": "0", "publications": "0", "copies": "0"}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _etcd(fleet: Fleet) -> None:
    client, peer = _free_port(), _free_port()
    fleet.endpoint = f"http://127.0.0.1:{client}"
    fleet.start(
        "etcd",
        [
            program("etcd"),
            *("--data-dir", fleet.folder / "etcd", "--unsafe-no-fsync"),
            *("--listen-client-urls", fleet.endpoint, "--advertise-client-urls", fleet.endpoint),
            *(
                "--listen-peer-urls",
                f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls",
                f"http://127.0.0.1:{peer}",
            ),
            *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        ],
    )

    def ready() -> bool:
        try:
            with fleet.client() as one:
                one.get("x")
        except etcd.EtcdError:
            return False
        return True

    wait_for(ready, "etcd")


def _postgresql(fleet: Fleet, cluster: str) -> None:
    host, data = HOSTS[LEADERS[cluster]], fleet.folder / cluster
    user = fleet.account if os.geteuid() == 0 else None
    data.mkdir()
    if user:
        shutil.chown(data, user)
    subprocess.run(
        [program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C.UTF-8"],
        check=True,
        stdout=subprocess.DEVNULL,
        user=user,
        extra_groups=[] if user else None,
        cwd=fleet.folder,
    )
    (data / "pg_hba.conf").write_text(
        "local all postgres,orders trust\n"
        "host all orders 127.0.0.0/8 trust\n"
        "host all orders_mover,orders_across 127.0.0.0/8 scram-sha-256\n"
    )
    settings = {
        "unix_socket_directories": fleet.folder,
        "listen_addresses": host,
        "wal_level": "logical",
        "fsync": "off",
        "max_connections": "60",
        "shared_buffers": "32MB",
        "wal_receiver_status_interval": "1s",
    }
    command: list[Any] = [program("postgres"), "-D", data, "-p", PORTS[cluster]]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    fleet.start(cluster, command, user)
    ready = [program("pg_isready"), "-q", "-h", str(fleet.folder), "-p", str(PORTS[cluster])]
    wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, cluster)
    fleet.psql(
        cluster,
        "postgres",
        "CREATE ROLE orders LOGIN; CREATE ROLE orders_owner; CREATE ROLE pgbouncer LOGIN;"
        f"CREATE ROLE orders_mover LOGIN REPLICATION PASSWORD '{WORD}'; GRANT pg_read_all_data TO orders_mover;"
        f"CREATE ROLE orders_across LOGIN PASSWORD '{WORD}'; GRANT pg_read_all_data TO orders_across;",
    )


def _pooler(fleet: Fleet, host: str) -> None:
    place = fleet.folder / host
    place.mkdir()
    config = {
        "host": host,
        "socket": str(place),
        "port": 6432,
        "user": fleet.account,
        "state": str(place),
        "tls": "",
        "registry": str(place / "tenants.json"),
        "clusters": {
            name: {
                "database": name.replace("-", "_"),
                "port": port,
                "rest_port": 1,
                "max_lag": 1,
                "members": {LEADERS[name]: HOSTS[LEADERS[name]]},
                "options": {"pool_size": 10, "user": "orders"},
            }
            for name, port in PORTS.items()
        },
        "tenancies": {SERVICE: {"tenants": {TENANT: DATABASE}, "shards": SHARDS}},
    }
    # The server's socket is where all servers' are.
    fleet.config_path(host).write_text(json.dumps(config))
    for port in PORTS.values():
        (place / f".s.PGSQL.{port}").symlink_to(fleet.folder / f".s.PGSQL.{port}")
    (place / "pgbouncer.ini").write_text(
        "".join(f"%include {place}/{name}.ini\n" for name in PORTS)
        + f"[pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {place}\nauth_type = any\npool_mode = transaction\n"
        "server_login_retry = 0.2\nquery_wait_timeout = 60\nadmin_users = pgbouncer\n"
    )
    if os.geteuid() == 0:
        for path in (place, *place.iterdir()):
            if not path.is_symlink():
                shutil.chown(path, fleet.account)
    pgbouncer.prepare(fleet.config(host))
    fleet.start(
        f"pgbouncer-{host}",
        [program("pgbouncer"), place / "pgbouncer.ini"],
        fleet.account if os.geteuid() == 0 else None,
    )
    wait_for((place / ".s.PGSQL.6432").exists, f"PgBouncer of {host}")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    account = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    for name in ("etcd", "initdb", "pgbouncer"):
        program(name)
    # Not tmp_path: a unix socket's path may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="cw-tenants-"))
    folder.chmod(0o777)
    one = Fleet(folder, account)
    try:
        _etcd(one)
        for cluster in PORTS:
            _postgresql(one, cluster)
        for host in HOSTS:
            _pooler(one, host)
        yield one
    finally:
        for process in one.running:
            process.terminate()
        for process in one.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


ROWS = 20_000


@pytest.fixture
def tenant(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with tenant acme on shard s1, with rows, sequences, a partitioned table and a materialized view."""
    for cluster in PORTS:
        for name in (DATABASE, f"{DATABASE}_moved"):
            fleet.psql(
                cluster,
                "postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname ~ 'acme' AND pid <> pg_backend_pid();",
            )
            assert (
                fleet.psql(cluster, "postgres", f"SELECT count(*) FROM pg_replication_slots WHERE database = '{name}'")
                == "0"
            )
            fleet.psql(cluster, "postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE);')
    fleet.psql("orders", "postgres", f"CREATE DATABASE {DATABASE} OWNER orders_owner;")
    fleet.psql("orders", DATABASE, helpers("orders", "orders_owner")[0].replace("{mark}", "x"))
    fleet.psql(
        "orders",
        DATABASE,
        "SET ROLE orders_owner; ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO orders;"
        "ALTER DEFAULT PRIVILEGES GRANT USAGE, SELECT ON SEQUENCES TO orders;"
        "CREATE SCHEMA IF NOT EXISTS extra; GRANT USAGE ON SCHEMA extra TO orders;"
        "CREATE TABLE extra.ledger (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp());"
        "CREATE TABLE extra.items (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, price numeric(10,2),"
        " doubled numeric GENERATED ALWAYS AS (price * 2) STORED);"
        f"INSERT INTO extra.items (name, price) SELECT 'item ' || n, n / 7.0 FROM generate_series(1, {ROWS}) n;"
        "CREATE TABLE extra.parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);"
        "CREATE TABLE extra.parts_north PARTITION OF extra.parts FOR VALUES IN ('north');"
        "CREATE TABLE extra.parts_rest PARTITION OF extra.parts DEFAULT;"
        "INSERT INTO extra.parts SELECT n, CASE WHEN n % 2 = 0 THEN 'north' ELSE 'south' END"
        " FROM generate_series(1, 100) n;"
        "CREATE SEQUENCE extra.numbers START 100; SELECT nextval('extra.numbers'); SELECT nextval('extra.numbers');"
        "CREATE MATERIALIZED VIEW extra.dear AS SELECT * FROM extra.items WHERE price > 1000;"
        "CREATE VIEW extra.cheap AS SELECT * FROM extra.items WHERE price < 10;",
    )
    keys = registry.Keys(PLATFORM)
    with fleet.client() as client:
        client.delete_prefix(keys.prefix)
        tenants.assign(client, keys, SERVICE, belongs={TENANT: "s1"}, shards=SHARDS, check_mode=False)
        place = tenants.read_place(client, keys, SERVICE, TENANT)
    assert place
    for host in HOSTS:
        config, console = fleet.config(host), fleet.console(host)
        (Path(config.state) / f"{SERVICE}.routes.json").unlink(missing_ok=True)
        (Path(config.state) / f"{DATABASE}.hold").unlink(missing_ok=True)
        tenancy = config.tenancies[SERVICE]
        pgbouncer.adopt(config, tenancy, {TENANT: pgbouncer.Route("s2", place.revision - 1)})
        pgbouncer.send(config, console, tenancy, TENANT, pgbouncer.Route("s1", place.revision))
        pgbouncer.release(config, console, DATABASE)
    wait_for(lambda: _answers(fleet), "the poolers reach the tenant")
    yield fleet


def _answers(fleet: Fleet) -> bool:
    try:
        for host in HOSTS:
            with fleet.connect(host) as connection:
                connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


class Writer:
    """Writes increasing ids through a pooler, as fast as it may; only what was acknowledged counts."""

    def __init__(self, fleet: Fleet, host: str, start: int) -> None:
        self.acknowledged: list[int] = []
        self.errors: list[str] = []
        self.longest = 0.0
        self._stop = threading.Event()
        self._fleet, self._host, self._next = fleet, host, start
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._fleet.connect(self._host) as connection:
            last = time.monotonic()
            while not self._stop.is_set():
                try:
                    connection.execute("INSERT INTO extra.ledger (id) VALUES (%s)", (self._next,))
                    self.acknowledged.append(self._next)
                    if self._next % 3 == 0:
                        connection.execute("INSERT INTO extra.items (name, price) VALUES ('new', 1)")
                        connection.execute(
                            "UPDATE extra.items SET price = price + 1 WHERE id = %s", (self._next % 1000 + 1,)
                        )
                    if self._next % 10 == 0:
                        connection.execute("DELETE FROM extra.items WHERE id = %s", (2000 + self._next % 1000,))
                except psycopg.Error as error:
                    self.errors.append(str(error))
                    return
                now = time.monotonic()
                self.longest, last = max(self.longest, now - last), now
                self._next += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(40)
        assert not self._thread.is_alive(), "the writer is still held"


@pytest.fixture
def writers(tenant: Fleet) -> Iterator[list[Writer]]:
    found = [Writer(tenant, host, 1_000_000 * number) for number, host in enumerate(HOSTS, 1)]
    yield found
    for writer in found:
        writer._stop.set()
