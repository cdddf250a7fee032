# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One worker per proxy: writes its files, asks Envoy what it runs, publishes acknowledgements."""

from __future__ import annotations

import threading
import time
from typing import Any

from causeway_agent.config import Proxy
from causeway_agent.metrics import Metrics
from causeway_agent.publisher import Publisher
from causeway_agent.runtime import Log, canonical, utc_now
from causeway_agent.view import ProxyView
from causeway_agent.xds import EnvoyAdmin, EnvoyDown, EnvoySilent, XdsWriter, acknowledged, active_requests

FIRST_POLL, SLOWEST_POLL = 0.005, 1.0
DRAIN_POLL, IDLE_POLL = 0.2, 2.0
# An Envoy that starts has no clusters yet for a moment; what it then needs must not vanish under it.
PURGE_AFTER = 60.0


class ProxyWorker:
    """`submit` from any thread; everything else happens in its own thread."""

    def __init__(self, proxy: Proxy, keys: str, publisher: Publisher, log: Log, metrics: Metrics) -> None:
        """`keys` is a pattern such as `/causeway/shop/{}/app1/gateway`; `{}` becomes `proxies` or `acks`."""
        self.proxy = proxy
        self._proxy_key, self._ack_key = keys.format("proxies"), keys.format("acks")
        self._publisher, self._log, self._metrics = publisher, log, metrics
        self._admin = EnvoyAdmin(proxy.admin)
        self._writer = XdsWriter(proxy.output, proxy.group)
        self._wake = threading.Condition()
        self._next: tuple[ProxyView, bool, float] | None = None
        self._stop = self._removed = False
        self._view: ProxyView | None = None
        self._known = False
        self._since = 0.0
        self._up: bool | None = None
        self._failures: list[str] = []
        self._services: dict[str, dict[str, Any]] = {}
        self.pending: set[str] = set()
        self.thread = threading.Thread(target=self.run, name=f"proxy-{proxy.name}", daemon=True)

    def submit(self, proxy: Proxy, view: ProxyView, known: bool) -> None:
        """Hand over what the proxy is to run; `known` false: etcd was never read, leave good files alone."""
        with self._wake:
            self.proxy = proxy
            self._next = (view, known, time.monotonic())
            self._wake.notify()

    def stop(self, removed: bool = False) -> None:
        """End and withdraw the registration; the files stay, unless the proxy was `removed` and does not run."""
        with self._wake:
            self._stop, self._removed = True, removed
            self._wake.notify()

    @property
    def settled(self) -> bool:
        """Whether it is known if Envoy runs and, if so, everything is acknowledged."""
        return self._up is False or bool(self._up and self._known and not self.pending)

    def run(self) -> None:
        delay, due = 0.0, 0.0
        while True:
            with self._wake:
                if self._next is None and not self._stop:
                    self._wake.wait(max(0.0, due - time.monotonic()))
                if self._stop:
                    break
                fresh, self._next = self._next, None
            if fresh is not None:
                self._take(fresh)
                if self.pending or fresh[0].drains:
                    # Not later than planned before, or a stream of events would put it off for ever.
                    delay, due = 0.0, min(due, time.monotonic() + FIRST_POLL)
            if time.monotonic() >= due:
                delay = self._poll(delay)
                due = time.monotonic() + delay
        if self._removed:
            self._purge_all()
        self._admin.close()
        self._withdraw()

    def _take(self, fresh: tuple[ProxyView, bool, float]) -> None:
        """Write the files; note which services Envoy has to acknowledge."""
        self._view, self._known, self._since = fresh
        self._write()
        self.pending = {s for s, r in self._view.revisions.items() if self._acked(s) < r}

    def _acked(self, service: str) -> int:
        return int(self._services.get(service, {}).get("revision", -1))

    def _write(self) -> None:
        assert self._view is not None
        self._writer.group = self.proxy.group
        count, failures = self._writer.write(self._view.documents, only_missing=not self._known)
        name = self.proxy.name
        if count:
            self._metrics.inc("causeway_xds_writes_total", amount=count, proxy=name)
            self._log.info("xds_written", proxy=name, files=count)
        if failures:
            self._metrics.inc("causeway_xds_write_failures_total", amount=len(failures), proxy=name)
        if failures != self._failures:
            if failures:
                self._log.error("xds_write_failed", proxy=name, files=len(failures), first=failures[0])
            else:
                self._log.info("xds_write_recovered", proxy=name)
            self._failures = failures

    def _poll(self, delay: float) -> float:
        """Ask Envoy once; return the seconds until it is asked again."""
        if self._view is None:
            return IDLE_POLL
        if self._failures:
            self._write()
        try:
            running = self._admin.versions()
            active = self._admin.active() if self._view.drains else {}
        except EnvoyDown:
            self._set_up(False)
            return min(SLOWEST_POLL, max(0.2, delay * 2))
        except EnvoySilent as error:
            # It may still carry traffic with old content, so it stays registered and owes its acknowledgement.
            if self._up:
                self._log.warning("envoy_silent", proxy=self.proxy.name, error=str(error))
            return min(SLOWEST_POLL, max(0.2, delay * 2))
        self._set_up(True)
        self._acknowledge(running, active)
        self._purge(running)
        self._metrics.set("causeway_xds_pending", len(self.pending), proxy=self.proxy.name)
        if self.pending and self._known:
            # 20 ms, then half as long again each time: an Envoy that rejects a file is not asked for ever at this rate.
            limit = DRAIN_POLL if self._view.drains else SLOWEST_POLL
            return min(limit, max(0.02, delay * 1.5))
        return DRAIN_POLL if self._view.drains else IDLE_POLL

    def _acknowledge(self, running: dict[str, set[str]], active: dict[str, dict[str, int]]) -> None:
        view = self._view
        if view is None or not self._known or self._failures:
            return
        done = acknowledged(view.documents, running)
        in_flight = active_requests(view.drains, self.proxy.clusters, active)
        services: dict[str, dict[str, Any]] = {}
        now = time.monotonic()
        for service, revision in view.revisions.items():
            previous = self._services.get(service, {})
            if service in done:
                entry = {"revision": revision, "at": previous.get("at", "")}
                if previous.get("revision") != revision:
                    entry["at"] = utc_now()
                    if service in self.pending:
                        self._metrics.observe("causeway_ack_latency_seconds", now - self._since, proxy=self.proxy.name)
            elif previous:
                entry = {k: v for k, v in previous.items() if k != "active"}
            else:
                continue
            if service in in_flight:
                entry["active"] = in_flight[service]
            services[service] = entry
        self.pending = {s for s in view.revisions if s not in done}
        if services != self._services:
            self._services = services
            self._publisher.set_leased(f"acks/{self.proxy.name}", {self._ack_key: canonical({"services": services})})

    def _purge(self, running: dict[str, set[str]]) -> None:
        """Files of clusters and routes that have left both the configuration and Envoy."""
        if self._view is None or not self._known or self.pending or self._failures:
            return
        count = self._writer.purge(self._view.documents, running, PURGE_AFTER)
        if count:
            self._log.info("xds_purged", proxy=self.proxy.name, files=count)

    def _purge_all(self) -> None:
        try:
            self._admin.versions()
        except EnvoyDown:
            count = self._writer.purge({}, ())
            self._log.info("xds_purged", proxy=self.proxy.name, files=count)
        except EnvoySilent:
            pass

    def _set_up(self, up: bool) -> None:
        if up:
            # Also when nothing changed: the proxy's services may have.
            self._register()
        if up == self._up:
            return
        self._log.info("envoy_up" if up else "envoy_down", proxy=self.proxy.name)
        self._up = up
        self._metrics.set("causeway_proxy_up", int(up), proxy=self.proxy.name)
        if not up:
            # No process, no traffic: nobody needs to wait for it, and it starts from the newest files.
            self._withdraw()

    def _register(self) -> None:
        value = canonical({"services": self.proxy.services})
        self._publisher.set_leased(f"proxies/{self.proxy.name}", {self._proxy_key: value})

    def _withdraw(self) -> None:
        self._services = {}
        for group in ("proxies", "acks"):
            self._publisher.set_leased(f"{group}/{self.proxy.name}", {})
