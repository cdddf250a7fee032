# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the parts together: directories to monitors and proxies, monitors to leases, etcd to files."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Callable

from causeway_agent import __version__
from causeway_agent.checks import Monitor, Result
from causeway_agent.config import (
    AgentConfig,
    ConfigDirectory,
    ConfigError,
    load_agent,
    parse_instance,
    parse_proxy,
    parse_targets,
)
from causeway_agent.metrics import Metrics, MetricsServer, certificate_not_after
from causeway_agent.mirror import Mirror
from causeway_agent.proxies import ProxyWorker
from causeway_agent.publisher import Publisher
from causeway_agent.registry import ClientSource
from causeway_agent.runtime import Log, atomic_write, canonical, notify, utc_now
from causeway_agent.view import Change, RegistryState, Tenants, file_sd

TICK = 0.25
STATE_EVERY = 1.0
# The first transaction says which instances are healthy; how long it waits for slow first checks.
SETTLE = 5.0
PUBLISHER_MAX_SILENCE = 30.0
FOLLOWED = ("services", "drains", "traffic", "agents", "targets")


class Agent:
    """The whole agent; `start`, then `tick` about every TICK seconds, then `stop`."""

    def __init__(self, config: AgentConfig, log: Log) -> None:
        self.config, self.log = config, log
        self.metrics = Metrics()
        self._lock = threading.RLock()
        self.instances = ConfigDirectory(
            config.directory / "instances.d", lambda where, data: parse_instance(where, data, config.host)
        )
        self.proxies = ConfigDirectory(config.directory / "proxies.d", parse_proxy)
        self.targets = ConfigDirectory(config.directory / "targets.d", parse_targets)
        self._monitors: dict[str, Monitor] = {}
        self._workers: dict[str, ProxyWorker] = {}
        self._healthy: dict[str, bool] = {}
        self._resumed: set[str] = set()
        self._source = ClientSource(config.etcd)
        self._agent_key = f"{config.prefix}agents/{config.host}"
        self.publisher = Publisher(
            self._source,
            config.lease_ttl,
            config.runtime_directory / "lease",
            self._agent_key,
            log,
            self.metrics,
        )
        self.mirror = Mirror(self._source, config.prefix, self._snapshot, self._changes, self._lost, log, self.metrics)
        self._state_file = config.state_directory / "registry.json"
        self.state = RegistryState(grace=config.grace, harmless=config.lease_ttl)
        self.tenants = Tenants()
        self._saved, self._save_due = "", 0.0
        self._retained: set[str] = set()
        self._certificates_due = 0.0
        self._started = time.monotonic()
        self._settled = False
        self._threads: list[threading.Thread] = []
        self.server: MetricsServer | None = None
        self._stopping = False
        self.failed = threading.Event()

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Resume the lease, take up configuration and start the threads."""
        self._load_state()
        prefix = f"{self.config.prefix}services/"
        resumed = self.publisher.resume()
        self._resumed = {key[len(prefix) :] for key in resumed if key.startswith(prefix)}
        count = len(self._resumed)
        self.metrics.set("causeway_agent_info", 1, version=__version__)
        self.metrics.set("causeway_agent_up", 1)
        self.metrics.set("causeway_agent_start_time_seconds", round(time.time(), 3))
        self.publisher.set_leased("agent", {self._agent_key: canonical({"version": __version__, "started": utc_now()})})
        self._configure()
        self._thread("publisher", self.publisher.run)
        self._thread("mirror", self.mirror.run)
        self._start_server()
        self.log.info("agent_started", version=__version__, host=self.config.host, resumed=count)

    def _start_server(self) -> None:
        if self.config.metrics is None or self.server is not None:
            return
        server = MetricsServer(self.config.metrics, self._render, self.log)
        try:
            server.start()
        except OSError as error:
            # Tried again by tick: certificates may come later than the agent.
            if self.metrics.value("causeway_config_errors", part="metrics") == 0:
                self.log.error("metrics_server_failed", error=str(error))
            self.metrics.set("causeway_config_errors", 1, part="metrics")
            return
        self.metrics.set("causeway_config_errors", 0, part="metrics")
        self.server = server

    def _thread(self, name: str, run: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self.log.error("thread_died", thread=name, error=f"{type(error).__name__}: {error}")
                raise
            finally:
                # A daemon without one of its threads is worse than a restart.
                if not self._stopping:
                    self.failed.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End. Keys stay until the lease runs out, so that a restarted agent can go on with it."""
        self._stopping = True
        self.mirror.stop()
        self.publisher.stop()
        for monitor in self._monitors.values():
            monitor.stop()
        for thread in self._threads:
            thread.join(3.0)
        self._save_state(force=True)
        if self.server:
            self.server.stop()
        self.log.info("agent_stopped", lease=f"{self.publisher.lease:x}")

    def healthy(self) -> bool:
        """Whether all threads live and move (for systemd's watchdog)."""
        workers = [worker.thread for worker in self._workers.values()]
        alive = all(t.is_alive() for t in [*self._threads, *workers])
        return alive and time.monotonic() - self.publisher.beat < PUBLISHER_MAX_SILENCE

    def tick(self) -> None:
        """Periodic work: configuration, settling, grace, state file, gauges."""
        self._configure()
        if not self._settled:
            self._settle()
        with self._lock:
            if set(self.state.retained(time.monotonic())) != self._retained:
                self._refresh()
            self.state.forget(time.monotonic())
        self._save_state()
        self._start_server()

    def status(self) -> str:
        """One line for `systemctl status`; the role's health check reads it."""
        ready = self._settled and self.publisher.connected and self.mirror.connected
        with self._lock:
            healthy = sum(self._healthy.values())
            counts = f"{healthy}/{len(self._monitors)} instances healthy, {len(self._workers)} proxies"
        return f"registry: {'connected' if ready else 'not connected'}; {counts}"

    def _settle(self) -> None:
        waited = time.monotonic() - self._started
        checked = all(m.status is not None for m in self._monitors.values())
        if waited > SETTLE or (checked and all(w.settled for w in self._workers.values())):
            self._settled = True
            self.publisher.open()

    # --- configuration -------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        changed = {}
        for name, directory in (("instances", self.instances), ("proxies", self.proxies), ("targets", self.targets)):
            changed[name], messages = directory.poll()
            for message in messages:
                self.log.error("config_rejected", error=message)
            self.metrics.set("causeway_config_errors", len(directory.errors), part=name)
        first = not self._threads
        if changed["instances"]:
            self._sync_instances()
        if changed["proxies"]:
            self._sync_proxies()
        if changed["targets"] or first:
            targets = [target for _name, items in sorted(self.targets.values.items()) for target in items]
            key = f"{self.config.prefix}targets/{self.config.host}"
            self.publisher.set_permanent(key, canonical(targets) if targets else None)

    def _sync_instances(self) -> None:
        wanted = {instance.path: instance for instance in self.instances.values.values()}
        with self._lock:
            for path, monitor in list(self._monitors.items()):
                same = path in wanted and wanted[path].checks == monitor.instance.checks
                if same:
                    monitor.instance = wanted[path]
                    continue
                monitor.stop()
                del self._monitors[path]
                if path not in wanted:
                    self._healthy.pop(path, None)
                    self.log.info("instance_removed", instance=path)
            for path, instance in wanted.items():
                if path in self._monitors:
                    continue
                # What is published already stays published until its checks say otherwise.
                presumed = True if path in self._resumed or self._healthy.get(path) else None
                self._resumed.discard(path)
                if presumed:
                    self._healthy[path] = True
                monitor = Monitor(instance, self._on_result, self._on_change, presumed)
                self._monitors[path] = monitor
                monitor.start()
                self.log.info("instance_watched", instance=path, checks=len(instance.checks))
            self._publish_instances()

    def _sync_proxies(self) -> None:
        wanted = {proxy.name: proxy for proxy in self.proxies.values.values()}
        with self._lock:
            for name, worker in list(self._workers.items()):
                new = wanted.get(name)
                if new is None or (new.admin, new.output) != (worker.proxy.admin, worker.proxy.output):
                    worker.stop(removed=new is None)
                    worker.thread.join(5.0)
                    del self._workers[name]
            for name, proxy in wanted.items():
                if name not in self._workers:
                    keys = f"{self.config.prefix}{{}}/{self.config.host}/{name}"
                    worker = ProxyWorker(proxy, keys, self.publisher, self.log, self.metrics)
                    self._workers[name] = worker
                    worker.thread.start()
            self._refresh()

    # --- checks to etcd ------------------------------------------------------------------------------------------

    def _on_result(self, result: Result) -> None:
        service, _host, slot = result.instance.split("/")
        labels = {"service": service, "slot": slot, "type": result.check.type}
        self.metrics.inc("causeway_check_total", 1, **labels)
        self.metrics.inc("causeway_check_failures_total", int(bool(result.reason)), **labels)
        self.metrics.observe("causeway_check_duration_seconds", result.seconds, type=result.check.type)

    def _on_change(self, path: str, healthy: bool, reason: str) -> None:
        with self._lock:
            if path not in self._monitors:
                return
            self._healthy[path] = healthy
            self._publish_instances()
        if healthy:
            self.log.info("instance_healthy", instance=path)
        else:
            self.log.warning("instance_unhealthy", instance=path, reason=reason)

    def _publish_instances(self) -> None:
        prefix = f"{self.config.prefix}services/"
        self.publisher.set_leased(
            "instances",
            {
                f"{prefix}{path}": canonical(monitor.instance.value)
                for path, monitor in self._monitors.items()
                if self._healthy.get(path)
            },
        )

    # --- etcd to files -------------------------------------------------------------------------------------------

    def _snapshot(self, changes: list[Change], revision: int) -> None:
        with self._lock:
            self.state.snapshot(changes, revision, time.monotonic())
            self.tenants = Tenants()
            self.tenants.apply(changes)
            self._write_tenants()
            self._refresh()

    def _changes(self, changes: list[Change], revision: int) -> None:
        with self._lock:
            self.state.revision = max(self.state.revision, revision)
            # Acknowledgements of others pass by here; they change nothing.
            relevant = [
                c for c in changes if c.key.partition("/")[0] in ("services", "drains", "traffic", "agents", "targets")
            ]
            if self.tenants.apply(changes):
                self._write_tenants()
            if relevant:
                self.state.apply(relevant, time.monotonic())
                self._refresh()

    def _lost(self) -> None:
        with self._lock:
            self.state.disconnected(time.monotonic())

    def _refresh(self) -> None:
        """Give every proxy its newest view and write file_sd. Called with the lock held."""
        now = time.monotonic()
        self._retained = set(self.state.retained(now))
        for proxy in self.proxies.values.values():
            worker = self._workers.get(proxy.name)
            if worker is not None:
                worker.submit(proxy, self.state.proxy_view(proxy, self.config.region, now), self.state.known)
        if self.state.rejected:
            self.log.error("registry_values_rejected", keys=sorted(set(self.state.rejected))[:20])
            self.metrics.set("causeway_registry_rejected", len(set(self.state.rejected)))
            self.state.rejected.clear()
        if self.config.file_sd is not None and self.state.known:
            self._write_file_sd(self.config.file_sd)

    def _write_tenants(self) -> None:
        """Tell the pooler of this host where tenants are. Called with the lock held."""
        if self.config.tenants is None:
            return
        content = canonical(self.tenants.places).encode() + b"\n"
        try:
            if not self.config.tenants.exists() or self.config.tenants.read_bytes() != content:
                atomic_write(self.config.tenants, content)
        except OSError as error:
            self.log.error("tenants_write_failed", path=str(self.config.tenants), error=error.strerror)

    def _write_file_sd(self, directory: Path) -> None:
        wanted = file_sd(self.state.targets)
        with contextlib.suppress(OSError):
            # A job without targets keeps its file, empty: Prometheus then forgets the targets.
            for path in directory.glob("*.json"):
                wanted.setdefault(path.stem, b"[]\n")
        for job, content in wanted.items():
            path = directory / f"{job}.json"
            try:
                if not path.exists() or path.read_bytes() != content:
                    atomic_write(path, content)
            except OSError as error:
                self.log.error("file_sd_write_failed", path=str(path), error=error.strerror)

    # --- state across restarts -----------------------------------------------------------------------------------

    def _load_state(self) -> None:
        try:
            self.state = RegistryState.load(json.loads(self._state_file.read_bytes()), self.config.grace)
            self.state.harmless = self.config.lease_ttl
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.log.warning("state_unreadable", path=str(self._state_file), error=str(error))

    def _save_state(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now < self._save_due:
            return
        self._save_due = now + STATE_EVERY
        with self._lock:
            if not self.state.known:
                return
            dump = self.state.dump()
        # The revision alone moves with every event of anybody; it is not worth a write to the disk.
        text = canonical({**dump, "revision": 0})
        if text == self._saved:
            return
        try:
            atomic_write(self._state_file, canonical(dump).encode(), mode=0o600, sync=True)
        except OSError as error:
            if self._saved != "failed":
                self.log.error("state_write_failed", path=str(self._state_file), error=error.strerror)
            self._saved = "failed"
            return
        self._saved = text

    # --- metrics -------------------------------------------------------------------------------------------------

    def _render(self) -> str:
        """Gauges that are cheaper to compute when somebody asks."""
        m, now = self.metrics, time.monotonic()
        publisher = self.publisher
        m.set("causeway_etcd_connected", int(self.mirror.connected), part="watch")
        m.set("causeway_etcd_connected", int(publisher.connected), part="publish")
        left = publisher.renewed + self.config.lease_ttl - now if publisher.lease else 0.0
        m.set("causeway_lease_ttl_seconds", round(max(0.0, left), 3))
        with self._lock:
            m.set("causeway_watch_revision", self.state.revision)
            stale: dict[str, int] = {}
            for entry in self.state.retained(now).values():
                stale[entry["service"]] = stale.get(entry["service"], 0) + 1
            healthy, info = [], []
            for path, monitor in self._monitors.items():
                value = monitor.instance.value
                labels = {"service": value["service"], "instance": value["instance"], "slot": str(value["slot"])}
                healthy.append((labels, float(bool(self._healthy.get(path)))))
                info.append(({**labels, "version": value["version"], "pool": value["pool"]}, 1.0))
        m.replace("causeway_stale_endpoints", [({"service": s}, float(n)) for s, n in stale.items()])
        m.replace("causeway_instance_healthy", healthy)
        m.replace("causeway_instance_info", info)
        if now >= self._certificates_due:
            self._certificates_due = now + 10
            m.replace("causeway_certificate_not_after_seconds", self._certificates())
        return m.render()

    def _certificates(self) -> list[tuple[dict[str, str], float]]:
        found = []
        try:
            identities = sorted(self.config.tls_directory.iterdir())
        except OSError:
            return []
        for directory in identities:
            # Other identities' certificates may be closed to this user; that is intended.
            with contextlib.suppress(OSError, ValueError, IndexError):
                pem = (directory / "current" / "cert.pem").read_text()
                found.append(({"identity": directory.name}, certificate_not_after(pem)))
        return found


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="causeway-agent", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("/etc/causeway/agent/agent.json"))
    parser.add_argument("--check", action="store_true", help="validate the configuration and exit")
    arguments = parser.parse_args(argv)
    log = Log()
    try:
        config = load_agent(arguments.config)
    except ConfigError as error:
        if arguments.check:
            print(error, file=sys.stderr)
        else:
            log.error("config_invalid", error=str(error))
        return 2
    if arguments.check:
        return 0
    log = Log(config.log_level)
    agent = Agent(config, log)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agent.start()
    notify("READY=1")
    status = ""
    while not stop.wait(TICK):
        agent.tick()
        if agent.failed.is_set():
            log.error("agent_failed", reason="a thread ended")
            return 1
        if agent.healthy():
            notify("WATCHDOG=1")
        if status != agent.status():
            status = agent.status()
            notify(f"STATUS={status}")
    notify("STOPPING=1")
    agent.stop()
    return 0
