# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps what this host publishes in etcd: everything under one lease, except scrape targets.

Desired keys are set by other threads, one thread makes etcd agree. The lease and the keys under it are noted in a file
below /run, so that an agent that restarts within the lease's time goes on with it and nobody notices.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, Callable

from causeway_agent.etcd import AuthFailed, EtcdError, NotFound, Unavailable, op_delete, op_put
from causeway_agent.metrics import Metrics
from causeway_agent.registry import Client, ClientSource
from causeway_agent.runtime import Backoff, Log, atomic_write

# etcd's --max-txn-ops is 128.
MAX_OPERATIONS = 100
UNSURE = object()
AUTH_PAUSE = 2.0


def plan(desired: dict[str, str], published: dict[str, Any], last: str = "") -> list[list[tuple[str, str | None]]]:
    """Transactions that turn `published` into `desired`: lists of (key, value or None for delete).

    `last` (the key that says "complete") is written in the final transaction.
    """
    changes: list[tuple[str, str | None]] = [(key, None) for key in sorted(published) if key not in desired]
    puts = [(key, value) for key, value in sorted(desired.items()) if published.get(key) != value]
    changes += sorted(puts, key=lambda item: item[0] == last)
    return [changes[i : i + MAX_OPERATIONS] for i in range(0, len(changes), MAX_OPERATIONS)]


class Publisher:
    """`set_leased` and `set_permanent` from any thread; `run` in one thread."""

    def __init__(  # noqa: PLR0917
        self,
        source: ClientSource,
        ttl: int,
        note: Path,
        complete_key: str,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._ttl, self._note = source, ttl, note
        self._complete_key = complete_key
        self._log, self._metrics, self._clock = log, metrics, clock
        self._wake = threading.Condition()
        self._groups: dict[str, dict[str, str]] = {}
        self._permanent: dict[str, str | None] = {}
        self._published: dict[str, Any] = {}
        self._open = False
        self._dirty = True
        self._stop = False
        self.lease = 0
        self.renewed = 0.0
        self.connected = False
        self.beat = clock()

    # --- from other threads --------------------------------------------------------------------------------------

    def set_leased(self, group: str, entries: dict[str, str]) -> None:
        """Replace the keys of one group (full key to JSON text) that are to exist while this agent lives."""
        with self._wake:
            if self._groups.get(group, {}) != entries:
                self._groups[group] = dict(entries)
                self._dirty = True
                self._wake.notify()

    def set_permanent(self, key: str, value: str | None) -> None:
        """Want this key without a lease; None: absent."""
        with self._wake:
            self._permanent[key] = value
            self._dirty = True
            self._wake.notify()

    def open(self) -> None:
        """Everything has been set once: from now on keys may be written and deleted."""
        with self._wake:
            if not self._open:
                self._open = self._dirty = True
                self._wake.notify()

    def stop(self) -> None:
        with self._wake:
            self._stop = True
            self._wake.notify()

    @property
    def published(self) -> dict[str, Any]:
        with self._wake:
            return dict(self._published)

    # --- the lease's note ----------------------------------------------------------------------------------------

    def resume(self) -> dict[str, str]:
        """Read the note of an earlier run; return the keys that it had published (empty: a new start)."""
        try:
            data = json.loads(self._note.read_bytes())
            lease, keys = int(data["lease"]), {str(k): str(v) for k, v in data["keys"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log.warning("lease_note_unreadable", path=str(self._note), error=str(error))
            return {}
        if data.get("ttl") != self._ttl:
            return {}
        self.lease, self._published = lease, dict(keys)
        return keys

    def _write_note(self, keys: dict[str, Any]) -> None:
        known = {k: v if isinstance(v, str) else "" for k, v in keys.items()}
        try:
            note = json.dumps({"lease": self.lease, "ttl": self._ttl, "keys": known})
            atomic_write(self._note, note.encode(), mode=0o600)
        except OSError as error:
            self._log.warning("lease_note_failed", path=str(self._note), error=str(error))

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        backoff = Backoff(cap=min(5.0, self._ttl / 2))
        while True:
            wait = 0.0
            try:
                self.step()
                backoff.reset()
            except (EtcdError, OSError) as error:
                wait = backoff.next()
                if isinstance(error, AuthFailed):
                    # Checking a password costs the registry real work (bcrypt).
                    wait += AUTH_PAUSE
                self._failed(error, wait)
            self.beat = self._clock()
            with self._wake:
                if self._stop:
                    break
                if wait:
                    # An error is not cured by more news: sleep in any case, but let stop() through.
                    self._wake.wait_for(lambda: self._stop, wait)
                elif not (self._dirty and self._open):
                    due = self.renewed + self._ttl / 3 - self._clock() if self.lease else self._ttl / 3
                    self._wake.wait(max(0.0, due))
                if self._stop:
                    break
        self._last_renewal()

    def _last_renewal(self) -> None:
        """Give the next run the whole TTL to come back."""
        if self.lease and self.connected:
            try:
                self._source.client().lease_keepalive(self.lease)
            except (EtcdError, OSError) as error:
                self._log.warning("lease_last_renewal_failed", error=str(error))

    def _failed(self, error: Exception, wait: float) -> None:
        if isinstance(error, AuthFailed):
            self._source.refused()
        if self.connected or not self._metrics.value("causeway_etcd_errors_total", part="publish"):
            self._log.warning("registry_write_failed", error=str(error), retry_in=round(wait, 3))
        self.connected = False
        self._metrics.inc("causeway_etcd_errors_total", part="publish")

    def step(self) -> None:
        """Renew or grant the lease if due, then publish differences. Raises EtcdError."""
        client = self._source.client()
        self._renew(client)
        with self._wake:
            if not (self._open and self._dirty):
                self._mark_connected()
                return
            self._dirty = False
            desired = {key: value for group in self._groups.values() for key, value in group.items()}
            permanent = dict(self._permanent)
        try:
            self._publish(client, desired)
            self._publish_permanent(client, permanent)
        except BaseException:
            with self._wake:
                self._dirty = True
            raise
        self._mark_connected()

    def _mark_connected(self) -> None:
        if not self.connected:
            self.connected = True
            self._log.info("registry_write_connected", lease=f"{self.lease:x}", keys=len(self._published))

    def _renew(self, client: Client) -> None:
        now = self._clock()
        if self.lease and now - self.renewed < self._ttl / 3 - 0.01:
            return
        if self.lease:
            try:
                client.lease_keepalive(self.lease)
                self.renewed = now
                return
            except NotFound:
                self._log.warning("lease_lost", lease=f"{self.lease:x}")
                self._metrics.inc("causeway_lease_lost_total")
                self._forget_lease()
        with self._wake:
            if not self._open:
                return
        self.lease = client.lease_grant(self._ttl)
        self.renewed = now
        self._log.info("lease_granted", lease=f"{self.lease:x}", ttl=self._ttl)

    def _forget_lease(self) -> None:
        with self._wake:
            self.lease, self._published, self._dirty = 0, {}, True

    def _publish(self, client: Client, desired: dict[str, str]) -> None:
        for changes in plan(desired, self._published, self._complete_key):
            with self._wake:
                # Until etcd has answered nobody knows; a later attempt must then write or delete again.
                for key, _value in changes:
                    self._published[key] = UNSURE
            self._write_note(self._published)
            operations = [op_delete(k) if v is None else op_put(k, v, self.lease) for k, v in changes]
            try:
                client.txn([], operations)
            except NotFound:
                self._forget_lease()
                raise Unavailable("the lease ran out") from None
            with self._wake:
                for key, value in changes:
                    if value is None:
                        del self._published[key]
                    else:
                        self._published[key] = value
            self._write_note(self._published)
            self._metrics.inc("causeway_registry_writes_total", amount=len(changes))

    def _publish_permanent(self, client: Client, wanted: dict[str, str | None]) -> None:
        for key, value in wanted.items():
            found = client.get(key)
            if (found.value.decode() if found else None) != value:
                client.txn([], [op_delete(key) if value is None else op_put(key, value)])
        with self._wake:
            for key, value in wanted.items():
                if self._permanent.get(key) == value:
                    self._permanent.pop(key, None)
