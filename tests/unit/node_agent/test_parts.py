# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration, checks, plans, metrics and files."""

from __future__ import annotations

import grp
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from causeway_agent.checks import Monitor, Tally, run_check
from causeway_agent.config import (
    CheckSpec,
    ConfigDirectory,
    ConfigError,
    Proxy,
    load_agent,
    parse_check,
    parse_instance,
    parse_proxy,
    parse_targets,
)
from causeway_agent.metrics import Metrics, certificate_not_after, peer_identities
from causeway_agent.proxies import ProxyWorker
from causeway_agent.publisher import UNSURE, plan
from causeway_agent.runtime import Backoff, Log, atomic_write
from causeway_agent.view import ProxyView, document
from causeway_agent.xds import EnvoyDown, XdsWriter, acknowledged, active_requests, parse_active, parse_versions

CHECK = {"type": "tcp", "address": "127.0.0.1:1"}
INSTANCE = {"service": "orders", "host": "app1", "slot": 0, "address": "10.0.0.1", "port": 7100, "checks": [CHECK]}


# --- configuration ---------------------------------------------------------------------------------------------------


def test_instance_defaults() -> None:
    instance = parse_instance("x", INSTANCE, "app1")
    assert instance.path == "orders/app1/0"
    assert instance.value["pool"] == "stable" and instance.value["weight"] == 1
    assert instance.value["instance"] == "app1-0" and "checks" not in instance.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host": "app2"}, "host is 'app2'"),
        ({"slot": 10}, "slot is 10; allowed: 0 to 9"),
        ({"slot": True}, "slot is True"),
        ({"port": 0}, "port is 0"),
        ({"port": "7100"}, "port is '7100'"),
        ({"service": "Orders"}, "service is 'Orders'"),
        ({"service": "../etc"}, "service is '../etc'"),
        ({"checks": []}, "at least one check"),
        ({"checks": [{"type": "ping"}]}, "type is 'ping'; allowed: http, tcp, command"),
        ({"checks": [{"type": "http", "url": "ftp://x"}]}, "url is 'ftp://x'"),
        ({"checks": [{"type": "tcp", "address": "x"}]}, "must be host:port"),
        ({"checks": [{**CHECK, "interval": 0}]}, "interval is 0"),
        ({"checks": [{"type": "command", "command": []}]}, "command is []"),
    ],
)
def test_bad_instances_say_where_and_what_is_allowed(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_instance("/etc/x.json", {**INSTANCE, **change}, "app1")
    assert words in str(error.value) and str(error.value).startswith("/etc/x.json")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "must be a JSON object"),
        ({"proxy": "../x", "admin": "/a", "output": "/o"}, "proxy is '../x'"),
        ({"proxy": "g", "admin": "/a", "output": "o"}, "must be an absolute path"),
        ({"proxy": "g", "admin": "/a", "output": "/o", "clusters": {"../c": {}}}, "cluster's name"),
        ({"proxy": "g", "admin": "/a", "output": "/o", "routes": {"a/b": {}}}, "route's name"),
        ({"proxy": "g", "admin": "/a", "output": "/o", "clusters": {"c": {"service": "s"}}}, "pool is missing"),
    ],
)
def test_bad_proxies(data: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        parse_proxy("p", data)


def test_targets() -> None:
    assert parse_targets("t", [{"job": "node", "address": "a:1"}]) == [{"job": "node", "address": "a:1", "labels": {}}]
    with pytest.raises(ConfigError):
        parse_targets("t", [{"job": "../node", "address": "a:1"}])


def test_agent_json_errors(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_agent(path)
    path.write_text(json.dumps({"platform": "shop", "host": "a", "etcd": {"endpoints": ["10.0.0.1:2379"]}}))
    with pytest.raises(ConfigError, match="endpoints"):
        load_agent(path)


def test_directory_keeps_the_last_good_value_and_reports_once(tmp_path: Path) -> None:
    directory = ConfigDirectory(tmp_path, lambda where, data: data["a"] if "a" in data else parse_check(where, data))
    assert directory.poll() == (False, [])
    (tmp_path / "x.json").write_text('{"a": 1}')
    (tmp_path / "y.json").write_text('{"a": 2}')
    (tmp_path / ".x.json.tmp.json").write_text("half")
    assert directory.poll() == (True, []) and directory.values == {"x.json": 1, "y.json": 2}
    (tmp_path / "x.json").write_text('{"a": ')
    changed, messages = directory.poll()
    assert not changed and len(messages) == 1 and "x.json: is not valid JSON" in messages[0]
    assert directory.poll() == (False, [])
    assert directory.values == {"x.json": 1, "y.json": 2}
    (tmp_path / "x.json").write_text('{"a": 10}')
    (tmp_path / "y.json").unlink()
    assert directory.poll() == (True, []) and directory.values == {"x.json": 10} and not directory.errors


# --- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([1], [True]),
        ([0], [None]),
        ([0, 0], [None, False]),
        ([1, 0, 1, 0, 0, 1], [True, True, True, True, False, True]),
    ],
)
def test_tally(results: list[int], expected: list[bool | None]) -> None:
    tally = Tally(unhealthy=2, healthy=1)
    seen = []
    for result in results:
        tally.observe(bool(result))
        seen.append(tally.status)
    assert seen == expected


@pytest.fixture
def web() -> Iterator[Any]:
    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200
        delay = 0.0

        def do_GET(self) -> None:
            time.sleep(Handler.delay)
            self.send_response(Handler.status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.handler = Handler  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "delay", "words"),
    [(200, 0, ""), (204, 0, ""), (503, 0, "status 503"), (302, 0, "status 302"), (200, 0.5, "no answer")],
)
def test_http_check(web: Any, status: int, delay: float, words: str) -> None:
    web.handler.status, web.handler.delay = status, delay
    reason = run_check(CheckSpec("http", f"http://127.0.0.1:{web.server_port}/healthz", timeout=0.2))
    assert reason == words if not words else words in reason


def test_tcp_and_command_checks(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert run_check(CheckSpec("tcp", f"127.0.0.1:{port}")) == ""
    assert run_check(CheckSpec("tcp", f"127.0.0.1:{port}")) == "connection refused"
    assert run_check(CheckSpec("command", "", ("true",))) == ""
    assert run_check(CheckSpec("command", "", ("false",))) == "exit code 1"
    assert "FileNotFoundError" in run_check(CheckSpec("command", "", (str(tmp_path / "none"),)))
    started = time.monotonic()
    assert "no result" in run_check(CheckSpec("command", "", ("sh", "-c", "sleep 60 & wait"), timeout=0.2))
    assert time.monotonic() - started < 5


def test_dead_process_is_unhealthy_well_before_two_intervals() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    check = {"type": "tcp", "address": f"127.0.0.1:{sock.getsockname()[1]}", "interval": 0.5}
    changes: list[tuple[float, bool, str]] = []
    both = threading.Semaphore(0)

    def note(_path: str, healthy: bool, reason: str) -> None:
        changes.append((time.monotonic(), healthy, reason))
        both.release()

    monitor = Monitor(parse_instance("x", {**INSTANCE, "checks": [check]}, "app1"), lambda _: None, note)
    monitor.start()
    assert both.acquire(timeout=5)
    died = time.monotonic()
    sock.close()
    assert both.acquire(timeout=5)
    monitor.stop()
    assert [c[1] for c in changes] == [True, False] and changes[1][2] == "connection refused"
    assert changes[1][0] - died < 1.5


def test_presumed_healthy_is_not_announced_again() -> None:
    changes: list[bool] = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        check = {"type": "tcp", "address": f"127.0.0.1:{sock.getsockname()[1]}", "interval": 0.05}
        instance = parse_instance("x", {**INSTANCE, "checks": [check]}, "app1")
        monitor = Monitor(instance, lambda _: None, lambda _p, healthy, _r: changes.append(healthy), presumed=True)
        monitor.start()
        time.sleep(0.3)
        monitor.stop()
    assert monitor.status is True and changes == []


def test_wall_clock_jumps_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but records of time may read the wall clock."""
    sources = Path(sys.modules["causeway_agent"].__file__ or "").parent
    uses = [
        f"{path.name}:{line.strip()}"
        for path in sorted(sources.glob("*.py"))
        if path.name != "etcd.py"
        for line in path.read_text().splitlines()
        if "time.time()" in line or "datetime.now(" in line
    ]
    assert all(u.startswith("runtime.py:") or "start_time_seconds" in u for u in uses), uses


# --- plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "published", "expected"),
    [
        ({}, {}, []),
        ({"a": "1"}, {"a": "1"}, []),
        ({"a": "1"}, {}, [[("a", "1")]]),
        ({}, {"a": "1"}, [[("a", None)]]),
        ({"a": "2"}, {"a": "1"}, [[("a", "2")]]),
        ({"a": "1"}, {"a": UNSURE}, [[("a", "1")]]),
        ({}, {"a": UNSURE}, [[("a", None)]]),
        ({"agents/x": "1", "services/y": "1"}, {}, [[("services/y", "1"), ("agents/x", "1")]]),
    ],
)
def test_plan(desired: dict[str, str], published: dict[str, Any], expected: Any) -> None:
    assert plan(desired, published, "agents/x") == expected


def test_large_plans_are_split_and_completed_last() -> None:
    batches = plan({"a-complete": "1", **{f"k{i:03}": "x" for i in range(250)}}, {}, "a-complete")
    assert [len(b) for b in batches] == [100, 100, 51] and batches[-1][-1] == ("a-complete", "1")


# --- Envoy -----------------------------------------------------------------------------------------------------------

STATS = """cluster.orders_stable.version_text: "v1"
cluster.with.dots.version_text: "v2"
http.ingress.rds.main.version_text: "r1"
http.other.rds.main.version_text: "r2"
control_plane.identifier: ""
"""


def test_parse_versions() -> None:
    assert parse_versions(STATS) == {
        "eds/orders_stable.json": {"v1"},
        "eds/with.dots.json": {"v2"},
        "rds/main.json": {"r1", "r2"},
    }


def test_acknowledged_needs_every_document_of_a_service() -> None:
    a, b = document({"a": 1}, frozenset(["orders"])), document({"b": 1}, frozenset(["orders", "catalog"]))
    documents = {"eds/o.json": a, "rds/m.json": b}
    assert acknowledged(documents, {}) == set()
    assert acknowledged(documents, {"rds/m.json": {b.version}}) == {"catalog"}
    assert acknowledged(documents, {"rds/m.json": {b.version, "old"}, "eds/o.json": {a.version}}) == set()
    assert acknowledged(documents, {"rds/m.json": {b.version}, "eds/o.json": {a.version}}) == {"orders", "catalog"}


def test_active_requests() -> None:
    host = {
        "address": {"socket_address": {"address": "10.0.0.1", "port_value": 7100}},
        "stats": [
            {"name": "rq_active", "value": "3"},
            {"name": "rq_pending_active", "value": "1"},
            {"name": "rq_total"},
        ],
    }
    active = parse_active({"cluster_statuses": [{"name": "orders_stable", "host_statuses": [host]}, {"name": "x"}]})
    drains = {"orders": {"app1/0": "10.0.0.1:7100", "app9/0": ""}}
    assert active_requests(drains, {"orders_stable": ("orders", "stable")}, active) == {
        "orders": {"app1/0": 4, "app9/0": 0}
    }


def test_writer_writes_only_what_differs(tmp_path: Path) -> None:
    writer = XdsWriter(tmp_path)
    documents = {"eds/a.json": document({"a": 1}, frozenset()), "rds/b.json": document({"b": 1}, frozenset())}
    assert writer.write(documents) == (2, [])
    before = (tmp_path / "eds/a.json").stat().st_ino
    assert writer.write(documents) == (0, []) and XdsWriter(tmp_path).write(documents) == (0, [])
    assert (tmp_path / "eds/a.json").stat().st_ino == before
    (tmp_path / "eds/a.json").write_text("tampered")
    assert writer.write(documents) == (1, [])
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_writer_leaves_good_files_alone_before_the_first_read(tmp_path: Path) -> None:
    full, empty = document({"a": 1}, frozenset()), document({}, frozenset())
    XdsWriter(tmp_path).write({"eds/a.json": full})
    assert XdsWriter(tmp_path).write({"eds/a.json": empty, "eds/b.json": empty}, only_missing=True) == (1, [])
    assert (tmp_path / "eds/a.json").read_bytes() == full.content


def test_writer_reports_a_full_disk_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = XdsWriter(tmp_path)
    old, new = document({"a": 1}, frozenset()), document({"a": 2}, frozenset())
    writer.write({"eds/a.json": old})

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("causeway_agent.runtime.os.fchmod", full)
    count, failures = writer.write({"eds/a.json": new})
    assert count == 0 and "No space left" in failures[0]
    assert (tmp_path / "eds/a.json").read_bytes() == old.content
    assert len(list((tmp_path / "eds").iterdir())) == 1, "no temporary file is left"
    monkeypatch.undo()
    assert writer.write({"eds/a.json": new}) == (1, [])


# --- the rest --------------------------------------------------------------------------------------------------------


def test_backoff_is_full_jitter_with_a_cap() -> None:
    ceilings: list[float] = []
    backoff = Backoff(0.1, 5.0, lambda low, high: ceilings.append(high) or low)  # type: ignore[func-returns-value]
    assert all(backoff.next() == 0.0 for _attempt in range(8))
    assert ceilings == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    backoff.next()
    assert ceilings[-1] == 0.1


def test_metrics_text() -> None:
    metrics = Metrics()
    metrics.inc("causeway_check_total", 1, service='a"b', slot="0")
    metrics.observe("causeway_ack_latency_seconds", 0.02)
    text = metrics.render()
    assert 'causeway_check_total{service="a\\"b",slot="0"} 1\n' in text
    assert 'causeway_ack_latency_seconds_bucket{le="0.025"} 1\n' in text
    assert 'causeway_ack_latency_seconds_bucket{le="0.01"} 0\n' in text
    assert "causeway_ack_latency_seconds_count 1\n" in text
    metrics.replace("causeway_stale_endpoints", [({"service": "x"}, 1.0)])
    metrics.replace("causeway_stale_endpoints", [])
    assert "stale" not in metrics.render()


def test_certificate_end_and_identities() -> None:
    import datetime

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    for year in (2031, 2061):
        end = datetime.datetime(year, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
        builder = builder.public_key(key.public_key()).serial_number(7).not_valid_after(end)
        certificate = builder.not_valid_before(datetime.datetime(2020, 1, 1)).sign(key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        assert certificate_not_after("leaf first\n" + pem + pem) == end.timestamp()
    for bad in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"):
        with pytest.raises((ValueError, IndexError)):
            certificate_not_after(bad)
    assert peer_identities({"subjectAltName": (("DNS", "x"), ("URI", "spiffe://d/metrics"))}) == ["spiffe://d/metrics"]
    assert peer_identities(None) == []


def test_atomic_write_sets_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    atomic_write(tmp_path / "d" / "f", b"x")
    assert (tmp_path / "d" / "f").stat().st_mode & 0o777 == 0o644


def test_log_survives_a_broken_stream() -> None:
    class Broken:
        def write(self, _text: str) -> None:
            raise OSError(28, "No space left on device")

    Log(stream=Broken()).error("x", a=1)


def test_check_option_prints_one_sentence(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    path.write_text('{"platform": "Shop"}')
    done = subprocess.run(
        [sys.executable, "-m", "causeway_agent", "--check", "--config", str(path)],
        env={"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "etcd" in done.stderr


def test_files_that_nobody_names_or_uses_are_removed(tmp_path: Path) -> None:
    writer = XdsWriter(tmp_path)
    documents = {
        f"{kind}/{name}.json": document({"name": name}, frozenset([name])) for kind in ("eds", "rds") for name in "ab"
    }
    writer.write(documents)
    (tmp_path / "eds/notes.txt").write_text("not ours")
    left = {name: item for name, item in documents.items() if "/a" in name}
    assert writer.purge(left, {"eds/b.json"}, 60.0) == 0, "not at once"
    assert writer.purge(left, {"eds/b.json"}) == 1
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.json", "a.json", "b.json", "notes.txt"]
    assert writer.purge(left, set()) == 1
    assert writer.write(documents) == (2, []), "what comes back is written again"
    assert XdsWriter(tmp_path).purge({}, ()) == 4, "left by an earlier run"


def test_private_files_are_for_one_group(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgroups()[-1] if os.getgroups() else os.getgid())
    documents = {"rds/a.json": document({"token": "x"}, frozenset(["a"]))}
    assert XdsWriter(tmp_path).write(documents) == (1, [])
    writer = XdsWriter(tmp_path, group.gr_name)
    assert writer.write(documents) == (1, []), "readable for everybody until now"
    status = (tmp_path / "rds/a.json").stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o640, group.gr_gid)
    assert writer.write(documents) == (0, [])
    count, failures = XdsWriter(tmp_path, "no-such-group").write(documents)
    assert count == 0 and "no-such-group does not exist" in failures[0]


class Admin:
    """An Envoy's admin interface in memory; `running` None: no process."""

    def __init__(self, running: dict[str, set[str]] | None) -> None:
        self.running = running

    def versions(self) -> dict[str, set[str]]:
        if self.running is None:
            raise EnvoyDown("no process")
        return self.running

    def close(self) -> None:
        pass


class Nobody:
    """A publisher to whom nobody listens."""

    def set_leased(self, group: str, entries: dict[str, str]) -> None:
        pass


def worker_of(path: Path, admin: Admin, *clusters: str) -> tuple[ProxyWorker, Proxy, ProxyView]:
    pools = dict.fromkeys(clusters, ("orders", "stable"))
    proxy = Proxy("gateway", str(path / "admin.sock"), path / "xds", pools)
    documents = {f"eds/{name}.json": document({"name": name}, frozenset(["orders"])) for name in clusters}
    worker = ProxyWorker(proxy, "/{}/gateway", Nobody(), Log("error"), Metrics())  # type: ignore[arg-type]
    worker._admin = admin  # type: ignore[assignment]
    return worker, proxy, ProxyView(documents, {"orders": 1}, {})


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(("running", "left"), [(None, 0), ({}, 2)], ids=["stopped", "still runs"])
def test_a_removed_proxy_takes_its_files_along_unless_it_still_runs(
    tmp_path: Path, running: dict[str, set[str]] | None, left: int
) -> None:
    worker, proxy, view = worker_of(tmp_path, Admin(running), "a", "b")
    worker.thread.start()
    worker.submit(proxy, view, True)
    assert eventually(lambda: len(list(tmp_path.rglob("*.json"))) == 2)
    worker.stop(removed=True)
    worker.thread.join(5)
    assert len(list(tmp_path.rglob("*.json"))) == left


def test_files_of_a_removed_cluster_go_once_envoy_has_dropped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causeway_agent.proxies.PURGE_AFTER", 0.0)
    monkeypatch.setattr("causeway_agent.proxies.IDLE_POLL", 0.05)
    _worker, _proxy, before = worker_of(tmp_path, Admin(None), "a", "b")
    versions = {name: {item.version} for name, item in before.documents.items()}
    admin = Admin(dict(versions))
    worker, proxy, after = worker_of(tmp_path, admin, "a")
    XdsWriter(proxy.output).write(before.documents)
    worker.thread.start()
    worker.submit(proxy, after, True)
    assert not eventually(lambda: not (proxy.output / "eds/b.json").exists(), 0.5), "Envoy still has it"
    del admin.running["eds/b.json"]  # type: ignore[union-attr]
    assert eventually(lambda: not (proxy.output / "eds/b.json").exists())
    assert (proxy.output / "eds/a.json").exists()
    worker.stop()
    worker.thread.join(5)
    assert (proxy.output / "eds/a.json").exists()
