# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two agents with real etcd and real Envoy, and what breaks around them."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from causeway_agent.etcd import EtcdClient, EtcdError

PREFIX = "/causeway/shop/"
ROUTE = {
    "name": "main",
    "virtual_hosts": [
        {
            "name": "all",
            "domains": ["*"],
            "routes": [
                {
                    "match": {"prefix": "/"},
                    "route": {
                        "timeout": "30s",
                        "weighted_clusters": {"clusters": [{"name": "orders_stable"}, {"name": "orders_candidate"}]},
                    },
                }
            ],
        }
    ],
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait(what: str, condition: Callable[[], Any], seconds: float = 15.0) -> float:
    """Seconds until the condition held; fails the test after `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if condition():
                return time.monotonic() - started
        except (EtcdError, OSError, KeyError, ValueError, AttributeError):
            pass
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {what}")


class Upstream:
    """A service process that can die: answers at once, /slow after two seconds."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.server: Any = None
        self.start()

    def start(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(2.0 if self.path == "/slow" else 0.0)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Lab:
    """etcd, two agents `a1` and `a2` with an Envoy each, and one instance of `orders` behind a1."""

    def __init__(self, root: Path, package: Path, etcd: str, envoy: str) -> None:
        self.root, self._package, self._etcd, self._envoy = root, package, etcd, envoy
        self.etcd_port, self.peer_port = free_port(), free_port()
        self.listeners = {"a1": free_port(), "a2": free_port()}
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.upstream = Upstream(free_port())
        self.client = EtcdClient([f"http://127.0.0.1:{self.etcd_port}"])
        self.start_etcd()
        for host in self.listeners:
            self._configure(host)
            self.start_agent(host)
        self.add_instance()
        for host in self.listeners:
            wait("files for Envoy", (self.output(host) / "rds/main.json").exists)
            self.start_envoy(host)

    def _spawn(self, name: str, *command: str, **env: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log)

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self.peer_port}"
        urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        urls += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self._spawn("etcd", self._etcd, "--data-dir", str(self.root / "etcd"), *urls)
        wait("etcd", lambda: self.client.get("x") is None)

    def _configure(self, host: str) -> None:
        directory = self.root / host
        for name in ("instances.d", "proxies.d", "targets.d"):
            (directory / name).mkdir(parents=True)
        etcd = {"endpoints": [f"http://127.0.0.1:{self.etcd_port}"]}
        config = {"platform": "shop", "host": host, "zone": "z", "region": "north", "etcd": etcd, "grace": 2}
        if host == "a2":
            config["file_sd"] = str(directory / "file_sd")
        (directory / "agent.json").write_text(json.dumps(config))
        proxy = {
            "proxy": "gateway",
            "admin": str(directory / "admin.sock"),
            "output": str(self.output(host)),
            "clusters": {f"orders_{pool}": {"service": "orders", "pool": pool} for pool in ("stable", "candidate")},
            "routes": {"main": ROUTE},
        }
        (directory / "proxies.d" / "gateway.json").write_text(json.dumps(proxy))
        (directory / "targets.d" / "host.json").write_text(json.dumps([{"job": "node", "address": f"{host}:9100"}]))

    def add_instance(self, name: str = "orders-0", **more: Any) -> None:
        url = f"http://127.0.0.1:{self.upstream.port}/healthz"
        value = {"service": "orders", "instance": "a1-0", "host": "a1", "slot": 0, "address": "127.0.0.1"}
        value |= {
            "port": self.upstream.port,
            "zone": "z",
            "region": "north",
            "pool": "stable",
            "version": "1",
            "weight": 1,
        }
        value |= {"checks": [{"type": "http", "url": url, "interval": 0.5, "timeout": 1.0}], **more}
        path = self.root / "a1" / "instances.d" / f"{name}.json"
        path.with_suffix(".tmp").write_text(json.dumps(value))
        path.with_suffix(".tmp").replace(path)

    def start_agent(self, host: str) -> None:
        environment = {
            "PYTHONPATH": str(self._package),
            "RUNTIME_DIRECTORY": str(self.root / host / "run"),
            "STATE_DIRECTORY": str(self.root / host / "state"),
        }
        config = str(self.root / host / "agent.json")
        self._spawn(f"agent-{host}", sys.executable, "-m", "causeway_agent", "--config", config, **environment)

    def start_envoy(self, host: str) -> None:
        xds = self.output(host)
        manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}

        def source(kind: str, name: str) -> dict[str, Any]:
            path = str(xds / kind / f"{name}.json")
            return {"path_config_source": {"path": path, "watched_directory": {"path": str(xds / kind)}}}

        http_filter = {
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": f"type.googleapis.com/{manager}",
                "stat_prefix": "in",
                "rds": {"route_config_name": "main", "config_source": source("rds", "main")},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
            },
        }
        listen = {"socket_address": {"address": "127.0.0.1", "port_value": self.listeners[host]}}
        clusters = [
            {"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": source("eds", name)}}
            for name in ("orders_stable", "orders_candidate")
        ]
        bootstrap = {
            "node": {"id": host, "cluster": host},
            "admin": {"address": {"pipe": {"path": str(self.root / host / "admin.sock")}}},
            "static_resources": {
                "listeners": [{"name": "in", "address": listen, "filter_chains": [{"filters": [http_filter]}]}],
                "clusters": clusters,
            },
        }
        path = self.root / host / "envoy.json"
        path.write_text(json.dumps(bootstrap))
        self._spawn(f"envoy-{host}", self._envoy, "-c", str(path), "--concurrency", "1", "--disable-hot-restart")

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(10)

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)
        self.upstream.stop()
        self.client.close()

    # --- what a test looks at ------------------------------------------------------------------------------------

    def output(self, host: str) -> Path:
        return self.root / host / "xds"

    def endpoints(self, host: str, pool: str = "stable") -> dict[str, str]:
        data = json.loads((self.output(host) / f"eds/orders_{pool}.json").read_text())
        return {
            e["metadata"]["filter_metadata"]["envoy.lb"]["instance"]: e["health_status"]
            for group in data["resources"][0]["endpoints"]
            for e in group["lb_endpoints"]
        }

    def ack(self, host: str) -> dict[str, Any]:
        kv = self.client.get(f"{PREFIX}acks/{host}/gateway")
        answer: dict[str, Any] = kv.json()["services"].get("orders", {}) if kv else {}
        return answer

    def acked(self, revision: int) -> bool:
        return all(self.ack(host).get("revision", 0) >= revision for host in self.listeners)

    def instance(self, slot: int = 0) -> Any:
        return self.client.get(f"{PREFIX}services/orders/a1/{slot}")

    def log(self, host: str) -> list[dict[str, Any]]:
        lines = (self.root / f"agent-{host}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def get(self, host: str, path: str = "/") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.listeners[host], timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def files(self, host: str) -> dict[str, tuple[int, bytes]]:
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(self.output(host).rglob("*.json"))}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, package: Path, etcd_binary: str, envoy_binary: str
) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), package, etcd_binary, envoy_binary)
    yield lab
    lab.close()


@pytest.fixture
def lab(running: Lab) -> Lab:
    """The shared lab in its normal state: everybody sees the instance and has acknowledged it."""
    wait(
        "the instance in both proxies",
        lambda: all(running.endpoints(h) == {"a1-0": "HEALTHY"} for h in running.listeners),
    )
    wait("both proxies registered", lambda: len(running.client.range(f"{PREFIX}proxies/")[0]) == 2)
    wait("acknowledgements", lambda: running.acked(running.instance().mod_revision))
    return running


def test_traffic_flows_and_targets_are_written(lab: Lab) -> None:
    wait("200 through both proxies", lambda: [lab.get("a1"), lab.get("a2")] == [200, 200])
    wait("file_sd", lambda: len(json.loads((lab.root / "a2/file_sd/node.json").read_text())) == 2)


def test_weights_are_acknowledged_by_both_proxies_quickly(lab: Lab) -> None:
    # Without candidates their weight would go to the stable pool, and no file would change.
    lab.add_instance("orders-5", slot=5, instance="a1-5", port=lab.upstream.port, address="127.0.0.2", pool="candidate")
    wait("candidate", lambda: all(lab.endpoints(host, "candidate") == {"a1-5": "HEALTHY"} for host in ("a1", "a2")))
    seconds = []
    for weight in range(20):
        value = json.dumps({"weights": {"stable": 100 - weight, "candidate": weight}})
        started = time.monotonic()
        revision = lab.client.put(f"{PREFIX}traffic/orders", value)
        while not lab.acked(revision):
            assert time.monotonic() - started < 5
        seconds.append(time.monotonic() - started)
    print(f"put to all acknowledgements: median {statistics.median(seconds):.3f} s, max {max(seconds):.3f} s")
    # Equal content under a new revision is acknowledged as well.
    revision = lab.client.put(f"{PREFIX}traffic/orders", value)
    wait("equal content", lambda: lab.acked(revision))
    lab.client.delete(f"{PREFIX}traffic/orders")
    (lab.root / "a1/instances.d/orders-5.json").unlink()
    wait("removed", lambda: lab.endpoints("a2", "candidate") == {} and lab.instance(5) is None)
    assert statistics.median(seconds) < 1.0


def test_drain_reports_active_requests(lab: Lab) -> None:
    result: list[int] = []
    wait("traffic", lambda: lab.get("a2") == 200)
    slow = threading.Thread(target=lambda: result.append(lab.get("a2", "/slow")))
    slow.start()
    time.sleep(0.3)
    revision = lab.client.put(f"{PREFIX}drains/orders/a1/0", "{}")
    wait("the drain is acknowledged", lambda: lab.acked(revision))
    assert lab.endpoints("a2") == {"a1-0": "DRAINING"}
    wait("one active request", lambda: lab.ack("a2")["active"] == {"a1/0": 1}, 2)
    assert lab.ack("a1")["active"] == {"a1/0": 0}
    wait("none left", lambda: lab.ack("a2")["active"] == {"a1/0": 0}, 5)
    slow.join(10)
    assert result == [200]
    lab.client.delete(f"{PREFIX}drains/orders/a1/0")
    wait("no counts without drains", lambda: "active" not in lab.ack("a2"))


def test_dead_process_leaves_all_proxies_within_three_seconds(lab: Lab) -> None:
    lab.upstream.stop()
    started = time.monotonic()
    wait("gone from both", lambda: not lab.endpoints("a1") and not lab.endpoints("a2"), 5)
    seconds = time.monotonic() - started
    print(f"process death to all files: {seconds:.2f} s")
    lab.upstream.start()
    assert seconds < 3.0


def test_instances_come_and_go_without_a_restart_and_bad_files_hurt_nobody(lab: Lab) -> None:
    (lab.root / "a1/instances.d/broken-0.json").write_text('{"service": ')
    (lab.root / "a1/instances.d/foreign-0.json").write_text(json.dumps({"service": "x", "host": "a9"}))
    other = lab.upstream.port
    lab.add_instance("orders-1", slot=1, instance="a1-1", port=other, address="127.0.0.2", pool="candidate")
    wait("second instance", lambda: lab.endpoints("a2", "candidate") == {"a1-1": "HEALTHY"})
    assert lab.endpoints("a2") == {"a1-0": "HEALTHY"}
    time.sleep(1.0)
    for name in ("broken-0.json", "foreign-0.json"):
        assert sum(name in str(r.get("error")) for r in lab.log("a1") if r["event"] == "config_rejected") == 1
    for name in ("broken-0", "foreign-0", "orders-1"):
        (lab.root / f"a1/instances.d/{name}.json").unlink()
    wait("removed", lambda: lab.endpoints("a2", "candidate") == {} and lab.instance(1) is None)


def test_a_restart_of_the_agent_is_not_noticed(lab: Lab) -> None:
    before = {kv.key: kv.create_revision for kv in lab.client.range(PREFIX)[0] if kv.lease}
    files = lab.files("a2")
    lab.stop("agent-a1")
    lab.start_agent("a1")
    wait("started", lambda: [r for r in lab.log("a1") if r["event"] == "agent_started"][-1]["resumed"] == 1)
    time.sleep(3.0)
    after = {kv.key: kv.create_revision for kv in lab.client.range(PREFIX)[0] if kv.lease}
    assert after == before, "no key was ever deleted"
    assert lab.files("a2") == files


def test_a_revoked_lease_is_replaced_and_everything_published_again(lab: Lab) -> None:
    lease = lab.instance().lease
    lab.client.lease_revoke(lease)
    wait("published again", lambda: lab.instance().lease not in (0, lease))
    assert lab.endpoints("a2") == {"a1-0": "HEALTHY"}, "the last endpoint was kept meanwhile"


def test_killed_agent_loses_its_keys_but_the_last_endpoint_stays(lab: Lab) -> None:
    lab.stop("agent-a1", signal.SIGKILL)
    seconds = wait("keys gone", lambda: lab.instance() is None, 10)
    print(f"SIGKILL of the agent to keys gone: {seconds:.2f} s")
    time.sleep(0.5)
    assert lab.endpoints("a2") == {"a1-0": "HEALTHY"} and lab.get("a2") == 200
    lab.start_agent("a1")
    wait("back", lambda: lab.instance() is not None)


def test_stopped_agent_recovers(lab: Lab) -> None:
    lab.processes["agent-a1"].send_signal(signal.SIGSTOP)
    wait("keys gone", lambda: lab.instance() is None, 10)
    lab.processes["agent-a1"].send_signal(signal.SIGCONT)
    wait("back", lambda: lab.instance() is not None)
    assert any(r["event"] == "lease_lost" for r in lab.log("a1"))


def test_envoy_that_is_gone_owes_nothing_and_returns(lab: Lab) -> None:
    lab.stop("envoy-a2", signal.SIGKILL)
    wait("withdrawn", lambda: lab.client.get(f"{PREFIX}proxies/a2/gateway") is None)
    revision = lab.client.put(f"{PREFIX}traffic/orders", '{"weights": {"stable": 50}}')
    lab.start_envoy("a2")
    wait("back with the newest content", lambda: lab.acked(revision))
    lab.client.delete(f"{PREFIX}traffic/orders")


def test_output_that_cannot_be_written_is_not_acknowledged(lab: Lab) -> None:
    routes = lab.output("a2") / "rds"
    routes.rename(lab.output("a2") / "aside")
    routes.write_text("in the way")
    revision = lab.client.put(f"{PREFIX}traffic/orders", '{"weights": {"stable": 60}}')
    wait("the other proxy", lambda: lab.ack("a1")["revision"] >= revision)
    time.sleep(1.0)
    assert lab.ack("a2")["revision"] < revision
    failures = [r for r in lab.log("a2") if r["event"] == "xds_write_failed"]
    assert len(failures) == 1
    routes.unlink()
    (lab.output("a2") / "aside").rename(routes)
    wait("recovered", lambda: lab.ack("a2")["revision"] >= revision)
    lab.client.delete(f"{PREFIX}traffic/orders")


def test_without_etcd_files_stay_even_over_a_restart_of_the_agent(lab: Lab) -> None:
    lab.client.put(f"{PREFIX}traffic/orders", '{"weights": {"stable": 70}}')
    wait("weights", lambda: b'"weight": 70' in (lab.output("a2") / "rds/main.json").read_bytes())
    time.sleep(1.5)
    files = {host: lab.files(host) for host in lab.listeners}
    lab.stop("etcd", signal.SIGKILL)
    time.sleep(3.0)
    lab.stop("agent-a2")
    lab.start_agent("a2")
    time.sleep(float(os.environ.get("CAUSEWAY_ETCD_OUTAGE", "5")))
    assert {host: lab.files(host) for host in lab.listeners} == files
    assert [lab.get("a1"), lab.get("a2")] == [200, 200]
    # Also with nothing remembered.
    lab.stop("agent-a2", signal.SIGKILL)
    (lab.root / "a2/state/registry.json").unlink()
    lab.start_agent("a2")
    time.sleep(1.5)
    assert lab.files("a2") == files["a2"]
    lab.start_etcd()
    revision = lab.client.put(f"{PREFIX}traffic/orders", '{"weights": {"stable": 80}}')
    seconds = wait("everything converges", lambda: lab.acked(revision), 20)
    print(f"etcd back to all acknowledgements: {seconds:.2f} s")
    assert lab.endpoints("a1") == lab.endpoints("a2") == {"a1-0": "HEALTHY"}
    lab.client.delete(f"{PREFIX}traffic/orders")
