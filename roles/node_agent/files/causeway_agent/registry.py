# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent needs from an etcd client; `causeway_agent/etcd.py` (installed by the role) provides it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from causeway_agent.config import EtcdSettings
from causeway_agent.runtime import Signature, signature


class KeyValue(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> bytes: ...
    @property
    def mod_revision(self) -> int: ...


class Watch(Protocol):
    endpoint: str

    def __iter__(self) -> Iterator[Any]: ...
    def close(self) -> None: ...


class Client(Protocol):
    def get(self, key: str) -> Any: ...
    def range(self, prefix: str) -> tuple[list[Any], int]: ...
    def txn(self, compare: Sequence[Any], success: Sequence[Any]) -> Any: ...
    def watch(self, prefix: str, start_revision: int = 0, *, idle_timeout: float = 60.0) -> Any: ...
    def lease_grant(self, ttl: int) -> int: ...
    def lease_keepalive(self, lease: int) -> int: ...
    def status(self, endpoint: str = "", timeout: float | None = None) -> Any: ...
    def close(self) -> None: ...


class ClientSource:
    """Hands out one shared client; makes a new one after a login was refused and the password file has changed."""

    def __init__(self, settings: EtcdSettings, timeout: float = 5.0) -> None:
        self._settings, self._timeout = settings, timeout
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._password_mark: Signature | None = None

    def client(self) -> Client:
        """The client. Raises OSError if the password file cannot be read."""
        from causeway_agent.etcd import EtcdClient

        with self._lock:
            if self._client is None:
                s = self._settings
                self._password_mark = signature(Path(s.password_file))
                password = Path(s.password_file).read_text().strip() if s.password_file else ""
                self._client = EtcdClient(
                    list(s.endpoints),
                    ca=s.ca,
                    cert=s.cert,
                    key=s.key,
                    username=s.username,
                    password=password,
                    timeout=self._timeout,
                )
            return self._client

    def refused(self) -> None:
        """etcd refused the login: use a new client if the password has changed (the old one ends its watches)."""
        with self._lock:
            if signature(Path(self._settings.password_file)) == self._password_mark:
                return
            client, self._client = self._client, None
        if client is not None:
            client.close()
