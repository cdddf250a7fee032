# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Envoy's files and its admin interface.

Which version of a resource Envoy runs is read from the text stats `cluster.<name>.version_text` and
`http.<prefix>.rds.<name>.version_text`: seen with Envoy 1.40, they are set for EDS and RDS once an update was accepted,
keep the old version when it was rejected, and follow a new version of equal content (`/config_dump` does not).
"""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import re
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causeway_agent.runtime import Signature, atomic_write, signature
from causeway_agent.view import Document

VERSION_PATH = "/stats?type=TextReadouts&filter=version_text"
_EDS = re.compile(r'^cluster\.(.+)\.version_text: "(.*)"$')
_RDS = re.compile(r'^http\..+\.rds\.([^.]+)\.version_text: "(.*)"$')


class EnvoyDown(Exception):
    """No Envoy process listens on the socket."""


class EnvoySilent(Exception):
    """An Envoy process is there, but does not answer properly."""


def parse_versions(text: str) -> dict[str, set[str]]:
    """Versions that Envoy runs, by relative path of the file they came from (two listeners may share a route)."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        for kind, pattern in (("rds", _RDS), ("eds", _EDS)):
            match = pattern.match(line)
            if match:
                found.setdefault(f"{kind}/{match[1]}.json", set()).add(match[2])
                break
    return found


def acknowledged(documents: Mapping[str, Document], running: Mapping[str, set[str]]) -> set[str]:
    """Services all of whose documents Envoy runs."""
    services = {s for d in documents.values() for s in d.services}
    behind = {s for path, d in documents.items() if running.get(path) != {d.version} for s in d.services}
    return services - behind


def parse_active(clusters: Any) -> dict[str, dict[str, int]]:
    """`/clusters?format=json` to {cluster: {"address:port": requests active or waiting for a connection}}."""
    found: dict[str, dict[str, int]] = {}
    for cluster in clusters.get("cluster_statuses", []):
        hosts = found.setdefault(cluster.get("name", ""), {})
        for host in cluster.get("host_statuses", []):
            place = host.get("address", {}).get("socket_address", {})
            stats = {s.get("name"): int(s.get("value", 0)) for s in host.get("stats", [])}
            address = f"{place.get('address', '')}:{place.get('port_value', 0)}"
            hosts[address] = stats.get("rq_active", 0) + stats.get("rq_pending_active", 0)
    return found


def active_requests(
    drains: Mapping[str, Mapping[str, str]],
    clusters: Mapping[str, tuple[str, str]],
    active: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, int]]:
    """Requests in flight per draining endpoint: {service: {"host/slot": count}}."""
    return {
        service: {
            endpoint: sum(active.get(name, {}).get(address, 0) for name, (s, _pool) in clusters.items() if s == service)
            for endpoint, address in endpoints.items()
        }
        for service, endpoints in drains.items()
    }


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("envoy", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


class EnvoyAdmin:
    """One kept connection to an admin socket; for one thread."""

    def __init__(self, path: str, timeout: float = 1.0) -> None:
        self._path, self._timeout = path, timeout
        self._connection: _UnixConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str) -> bytes:
        """Body of a GET. Raises EnvoyDown or EnvoySilent."""
        for fresh in (False, True):
            reused = self._connection is not None
            try:
                if self._connection is None:
                    self._connection = _UnixConnection(self._path, self._timeout)
                self._connection.request("GET", path)
                response = self._connection.getresponse()
                body = response.read()
            except (FileNotFoundError, ConnectionRefusedError) as error:
                self.close()
                raise EnvoyDown(str(error)) from error
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if reused and not fresh and not isinstance(error, TimeoutError):
                    continue
                raise EnvoySilent(f"{type(error).__name__}: {error}") from error
            if response.status != http.client.OK:
                raise EnvoySilent(f"{path} answered {response.status}")
            return body
        raise EnvoySilent("connection closed twice")

    def versions(self) -> dict[str, set[str]]:
        return parse_versions(self.get(VERSION_PATH).decode())

    def active(self) -> dict[str, dict[str, int]]:
        try:
            return parse_active(json.loads(self.get("/clusters?format=json")))
        except ValueError as error:
            raise EnvoySilent(f"/clusters: {error}") from error


@dataclass
class XdsWriter:
    """Writes documents below a directory, endpoints before routes, and only what differs from the disk.

    With a `group` only its members may read them.
    """

    output: Path
    group: str = ""
    _written: dict[str, tuple[str, str, Signature | None]] = field(default_factory=dict)
    _unused: dict[str, float] = field(default_factory=dict)

    def write(self, documents: Mapping[str, Document], only_missing: bool = False) -> tuple[int, list[str]]:
        """Return (files written, failures). `only_missing` leaves every existing file alone."""
        count, failures = 0, []
        try:
            group, mode = (grp.getgrnam(self.group).gr_gid, 0o640) if self.group else (-1, 0o644)
        except KeyError:
            return 0, [f"{self.output}: the group {self.group} does not exist"]
        for name in sorted(documents):
            path, document = self.output / name, documents[name]
            mark = signature(path)
            if mark is not None and (only_missing or self._written.get(name) == (document.version, self.group, mark)):
                continue
            try:
                same = False
                with contextlib.suppress(FileNotFoundError):
                    same = path.read_bytes() == document.content and _owned(path, group, mode)
                if not same:
                    atomic_write(path, document.content, mode, group=group)
                    count += 1
                self._written[name] = (document.version, self.group, signature(path))
            except OSError as error:
                failures.append(f"{path}: {error.strerror}")
        return count, failures

    def purge(self, documents: Mapping[str, Document], running: Collection[str], after: float = 0.0) -> int:
        """Remove files that no document has named and Envoy has not used for `after` seconds; return how many."""
        now = time.monotonic()
        files = [f"{kind}/{path.name}" for kind in ("eds", "rds") for path in (self.output / kind).glob("*.json")]
        # An Envoy that still has the cluster would find nothing at its next start, and not ask again.
        unused = {name for name in files if name not in documents and name not in running}
        self._unused = {name: self._unused.get(name, now) for name in unused}
        count = 0
        for name, since in list(self._unused.items()):
            if now - since >= after:
                with contextlib.suppress(OSError):
                    (self.output / name).unlink()
                    del self._unused[name]
                    self._written.pop(name, None)
                    count += 1
        return count


def _owned(path: Path, group: int, mode: int) -> bool:
    status = path.stat()
    return status.st_mode & 0o777 == mode and group in (-1, status.st_gid)
