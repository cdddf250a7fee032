# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows the platform's prefix in etcd: one full read, then a watch from the next revision, for ever."""

from __future__ import annotations

import threading
import time
from typing import Callable

from causeway_agent.etcd import AuthFailed, EtcdError
from causeway_agent.metrics import Metrics
from causeway_agent.registry import ClientSource, Watch
from causeway_agent.runtime import Backoff, Log
from causeway_agent.view import Change

# A member that lost power is noticed after two silent questions, 3.5 s: before a lost host's lease runs out.
GUARD_INTERVAL = 0.75
GUARD_TIMEOUT = 1.0
AUTH_PAUSE = 2.0


class Mirror:
    """Calls `on_snapshot(changes, revision)`, `on_changes(changes)` and `on_lost()` from its thread."""

    def __init__(  # noqa: PLR0917
        self,
        source: ClientSource,
        prefix: str,
        on_snapshot: Callable[[list[Change], int], None],
        on_changes: Callable[[list[Change], int], None],
        on_lost: Callable[[], None],
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._source, self._prefix = source, prefix
        self._on_snapshot, self._on_changes, self._on_lost = on_snapshot, on_changes, on_lost
        self._log, self._metrics = log, metrics
        self._stop = threading.Event()
        self._watch: Watch | None = None
        self.connected = False

    def stop(self) -> None:
        self._stop.set()
        watch = self._watch
        if watch is not None:
            watch.close()

    def run(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                self._follow(backoff)
                error: Exception | None = None
            except (EtcdError, OSError, ValueError) as problem:
                error = problem
                if isinstance(problem, AuthFailed):
                    self._source.refused()
            if self._stop.is_set():
                return
            if self.connected:
                self.connected = False
                self._on_lost()
                self._log.warning("registry_watch_lost", error=str(error or "closed"))
            elif self._metrics.value("causeway_etcd_errors_total", part="watch") == 0:
                self._log.warning("registry_read_failed", error=str(error))
            self._metrics.inc("causeway_etcd_errors_total", part="watch")
            # Checking a password costs the registry real work (bcrypt).
            pause = AUTH_PAUSE if isinstance(error, AuthFailed) else 0.0
            self._stop.wait(backoff.next() + pause)

    def _follow(self, backoff: Backoff) -> None:
        client = self._source.client()
        kvs, revision = client.range(self._prefix)
        watch = client.watch(self._prefix, revision + 1, idle_timeout=600.0)
        self._watch = watch
        self._on_snapshot([Change(self._relative(kv.key), kv.value, kv.mod_revision) for kv in kvs], revision)
        self.connected = True
        backoff.reset()
        self._log.info("registry_watching", revision=revision, keys=len(kvs), endpoint=watch.endpoint)
        self._metrics.inc("causeway_registry_connects_total")
        guard = threading.Thread(target=self._guard, args=(watch,), name="watch-guard", daemon=True)
        guard.start()
        try:
            for batch in watch:
                changes = [
                    Change(self._relative(e.kv.key), e.kv.value if e.type == "put" else None, e.kv.mod_revision)
                    for e in batch.events
                ]
                self._on_changes(changes, batch.revision)
                if self._stop.is_set():
                    return
        finally:
            watch.close()
            self._watch = None

    def _relative(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _guard(self, watch: Watch) -> None:
        """End the watch when its member stops answering: a member that lost power never closes a connection."""
        failures = 0
        while self._watch is watch and not self._stop.wait(GUARD_INTERVAL):
            started = time.monotonic()
            try:
                self._source.client().status(watch.endpoint, GUARD_TIMEOUT)
                failures = 0
            except (EtcdError, OSError) as error:
                failures += 1
                seconds = round(time.monotonic() - started, 2)
                self._log.debug("registry_member_silent", endpoint=watch.endpoint, error=str(error), seconds=seconds)
                if failures >= 2 and self._watch is watch:
                    watch.close()
                    return
