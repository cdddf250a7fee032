"""Databases under a ledger: nothing acknowledged is lost, readers that lag get no readers, strangers get no answer.

The short form of tests/drills/databases.py: one fault of a few kinds. The bounds on outages are twice those of the
design, since CI shares two cores between the whole platform and its load; what was measured is printed.
"""

from __future__ import annotations

import json
import random
import shlex
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import FAULTS, Fault, claims_of, mend_all, trial
from ledger import DIGEST, LOADER, Cluster, digest, instances
from running import Platform, why

SERVICE = "orders"
SLACK = 2.0
READERS_LEAVE = 5.0  # seconds, docs/design.md
LAG = 48 << 20  # bytes written to leave a reader behind: three times the default limit


@pytest.fixture(scope="session")
def cluster(platform: Platform) -> Cluster:
    return Cluster(platform, SERVICE)


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> Iterator[None]:
    """Each test begins and ends with all members in place."""
    cluster.wait_whole()
    yield
    try:
        cluster.wait_whole()
    except AssertionError:
        mend_all(cluster)
        cluster.wait_whole()
        raise


def in_container(platform: Platform, instance: dict[str, Any], script: str, *arguments: str) -> list[str]:
    """The command that runs Python in an instance's container; the script comes on standard input."""
    container = f"{instance['service']}-{instance['slot']}"
    size = str(len(script.encode()))
    remote = ["podman", "exec", "-i", container, "python3", "-u", "-c", LOADER, size, *arguments]
    return ["ssh", "-F", str(platform.state / "ssh" / "config"), instance["host"], shlex.join(remote)]


def told_by(argv: list[str], script: str, timeout: float = 60) -> Any:
    done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["switchover", "postmaster-kill", "power-off"])
def test_nothing_acknowledged_is_lost(what: str, cluster: Cluster, tmp_path: Path) -> None:
    fault: Fault = next(one for one in FAULTS if one.what == what)
    row = trial(cluster, fault, tmp_path, random.Random())
    print(json.dumps(row))
    broken = [claim for claim, held in claims_of(fault, row, SLACK).items() if not held]
    assert not broken, row


# --- readers ----------------------------------------------------------------------------------------------------------

# Who answers a new connection of a reader, again and again: the name of the replica's slot is the name of its member.
WATCH = """
import json, os, sys, threading, time
import psycopg
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
while not stop.is_set():
    try:
        access = {"port": os.environ["PGPORT_READER"], "dbname": os.environ["PGDATABASE_READER"]}
        with psycopg.connect(**access, sslmode="disable", connect_timeout=3, prepare_threshold=None) as one:
            row = one.execute("SELECT pg_is_in_recovery(), current_setting('primary_slot_name')").fetchone()
        print(json.dumps({"t": time.time(), "replica": row[0], "slot": row[1]}), flush=True)
    except psycopg.Error as error:
        print(json.dumps({"t": time.time(), "error": str(error)}), flush=True)
    stop.wait(0.1)
"""


def test_a_reader_that_lags_leaves_and_comes_back(platform: Platform, cluster: Cluster, tmp_path: Path) -> None:
    leader = cluster.leader()
    lagging = next(host for host in cluster.hosts if host != leader)
    slot = cluster.psql("SHOW primary_slot_name", lagging)
    startup = platform.ssh(lagging, f"pgrep -u postgres -f '^postgres: {cluster.name}: startup'").stdout.strip()
    assert startup.isdigit(), startup
    argv = in_container(platform, instances(platform, SERVICE)[0], WATCH)
    out = tmp_path / "readers.jsonl"
    with out.open("wb") as log:
        watch = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log)
        assert watch.stdin
        watch.stdin.write(WATCH.encode())
        watch.stdin.flush()
        time.sleep(4)
        try:
            # pg_wal_replay_pause() would not do: Patroni ends a pause that it finds.
            assert platform.ssh(lagging, f"kill -STOP {startup}").returncode == 0
            # Goes into the log and nowhere else.
            cluster.psql(
                "SELECT count(pg_logical_emit_message(false, 'drill', repeat('x', 1048576)))"
                f" FROM generate_series(1, {LAG >> 20})",
                leader,
            )
            since = time.time()
            time.sleep(2 * READERS_LEAVE)
        finally:
            platform.ssh(lagging, f"kill -CONT {startup}")
        resumed = time.time()
        time.sleep(2 * READERS_LEAVE)
        watch.stdin.close()
        watch.wait(20)
    seen = [json.loads(line) for line in out.read_text().splitlines()]
    mine = [one["t"] for one in seen if one.get("slot") == slot and one.get("replica")]
    left = max((at - since for at in mine if since <= at < resumed), default=0.0)
    back = min((at - resumed for at in mine if at >= resumed), default=float("inf"))
    errors = [one for one in seen if "error" in one]
    print(
        json.dumps({"lagging": lagging, "left_after": left, "back_after": back, "asked": len(seen), "errors": errors})
    )
    assert any(at < since for at in mine), "it never had readers"
    assert left < READERS_LEAVE
    assert back < 2 * READERS_LEAVE
    assert not errors
    assert any(one["t"] > since + READERS_LEAVE and one["replica"] for one in seen if one["t"] < resumed)


# --- the service ------------------------------------------------------------------------------------------------------


def test_an_order_is_read_back_by_whoever_wrote_it(platform: Platform) -> None:
    inventory = platform.inventory
    gateway = next(iter(inventory["causeway_regions"].values()))["gateway"]
    context = ssl.create_default_context(cafile=str(platform.ca()))
    context.check_hostname = False
    base = f"https://{gateway['address']}:{gateway['port']}/{SERVICE}"

    def ask(path: str = "", body: Any = None, **headers: str) -> tuple[int, dict[str, Any], Any]:
        request = urllib.request.Request(
            base + path, headers={name.replace("_", "-"): v for name, v in headers.items()}
        )
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("content-type", "application/json")
        request.add_header("host", f"gateway.{inventory['causeway_domain']}")
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, {}, error.headers

    key = str(uuid.uuid4())
    status, order, headers = ask("", {"item": 7, "quantity": 2}, idempotency_key=key)
    assert status == 201
    position = headers["x-write-position"]
    for _attempt in range(20):
        status, found, headers = ask(f"/{order['id']}", x_read_after=position)
        assert (status, found["id"], found["quantity"]) == (200, order["id"], 2)
        assert headers["x-read-from"] in ("reader", "writer")
    status, again, _headers = ask("", {"item": 7, "quantity": 2}, idempotency_key=key)
    assert (status, again["id"]) == (200, order["id"])


# --- strangers --------------------------------------------------------------------------------------------------------

# What a server says to the first message of PostgreSQL's protocol: "R" asks for a password, nothing says go away.
HELLO = """
import json, socket, ssl, struct, sys
address, port, name, identity, database = sys.argv[1:6]
said = b""
try:
    way = socket.create_connection((address, int(port)), timeout=5)
    if identity != "plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if identity != "none":
            folder = f"/etc/causeway/tls/{identity}/current"
            context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
        way = context.wrap_socket(way, server_hostname=name)
    body = struct.pack("!i", 196608) + f"user\\0{database}\\0database\\0{database}\\0\\0".encode()
    way.sendall(struct.pack("!i", len(body) + 4) + body)
    said = way.recv(1)
    reason = ""
except OSError as error:
    reason = f"{type(error).__name__}: {error}"
print(json.dumps({"said": said.decode("latin-1"), "reason": reason}))
"""


@pytest.fixture
def hello(platform: Platform, cluster: Cluster) -> Callable[..., str]:
    """What the pooler of the leader's host, or another address, says to a client on a host of the service."""
    leader = cluster.leader()
    address = next(one["address"] for one in cluster.known["members"] if one["host"] == leader)
    name = f"{cluster.name}.database.{platform.inventory['causeway_domain']}"
    host = instances(platform, SERVICE)[0]["host"]

    def ask(identity: str, address: str = address, port: int = 6432) -> str:
        script = shlex.quote(HELLO)
        done = platform.ssh(host, f"python3 -c {script} {address} {port} {name} {identity} {cluster.database}")
        found = json.loads(done.stdout)
        print(json.dumps({"identity": identity, "port": port, **found}))
        return str(found["said"])

    return ask


def test_the_service_itself_is_asked_for_its_password(hello: Callable[..., str]) -> None:
    assert hello(f"svc-{SERVICE}") == "R"


@pytest.mark.parametrize("identity", ["plain", "none", "svc-catalog", "host"])
def test_nobody_else_gets_an_answer_from_the_pooler(identity: str, hello: Callable[..., str]) -> None:
    assert hello(identity) == ""


@pytest.mark.parametrize("identity", ["plain", "svc-catalog", f"svc-{SERVICE}"])
def test_nobody_gets_past_the_pooler(identity: str, hello: Callable[..., str], cluster: Cluster) -> None:
    """PostgreSQL lets in its own protocol over TLS, from members; what comes in plainly is refused."""
    assert hello(identity, port=int(cluster.known["port"])) != "R"


REACH = """
import json, socket, struct, sys
found = {}
for target in sys.argv[1:]:
    address, port = target.rsplit(":", 1)
    try:
        way = socket.create_connection((address, int(port)), timeout=3)
        body = struct.pack("!i", 196608) + b"user\\0orders\\0database\\0orders\\0\\0"
        way.sendall(struct.pack("!i", len(body) + 4) + body)
        found[target] = way.recv(1).decode("latin-1")
    except OSError as error:
        found[target] = ""
print(json.dumps(found))
"""


def test_a_service_without_a_database_reaches_none(platform: Platform, cluster: Cluster) -> None:
    inventory = platform.inventory
    index = {name: one["index"] for name, one in inventory["causeway_services"].items()}
    other = next(name for name, one in inventory["causeway_services"].items() if not one["database"])
    hosts = {one["host"] for one in instances(platform, SERVICE)}
    instance = next(one for one in instances(platform, other) if one["host"] in hosts)
    targets = [f"10.89.{index[name]}.1:{port}" for name in (other, SERVICE) for port in (5432, 5433)]
    targets += [
        f"{one['address']}:{port}" for one in cluster.known["members"] for port in (6432, cluster.known["port"])
    ]
    found = told_by(in_container(platform, instance, REACH, *targets), REACH)
    assert "R" not in found.values(), found
    own = next(one for one in instances(platform, SERVICE) if one["host"] == instance["host"])
    writer = f"10.89.{index[SERVICE]}.1:5432"
    assert told_by(in_container(platform, own, REACH, writer), REACH)[writer] == "R"


# --- backups ----------------------------------------------------------------------------------------------------------


def test_a_backup_is_verified_and_restored_beside(
    platform: Platform, cluster: Cluster, playbook: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = f"backup-{time.time():.0f}"
    cluster.prepare()
    cluster.psql(f"INSERT INTO drill_ledger (run, id) SELECT '{run}', generate_series(1, 1000)")
    moment = cluster.psql("SELECT clock_timestamp()")
    time.sleep(1)
    cluster.psql(f"DELETE FROM drill_ledger WHERE run = '{run}' AND id % 3 = 0")
    common: dict[str, Any] = {"database_cluster": cluster.name, "database_report_dir": str(tmp_path)}
    for verb, more in (("database_backup", {"backup_type": "incremental"}), ("database_verify", {})):
        done = playbook(verb, **common, **more)
        assert done.returncode == 0, why(done.stdout)
    host = platform.having("backup")[0]
    done = playbook("database_restore", **common, restore_beside=True, restore_time=moment)
    assert done.returncode == 0, why(done.stdout)
    try:
        report = json.loads((tmp_path / f"database-restore-{cluster.name}.json").read_text())
        print(json.dumps({key: report.get(key) for key in ("backup", "recovered", "seconds", "bytes")}))
        sql = shlex.quote(DIGEST.format(run=run))
        said = platform.ssh(host, f"{report['connect']} -d {cluster.database} -XqAt -c {sql}")
        assert said.stdout.strip() == digest(range(1, 1001)), said.stderr
    finally:
        done = playbook("database_restore", **common, restore_beside=True, restore_state="absent")
    assert done.returncode == 0, why(done.stdout)
