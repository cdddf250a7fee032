# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small services every part needs: structured log, full-jitter backoff, atomic files, sd_notify, file signatures."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
Signature = tuple[int, int, int]


class Log:
    """JSON lines on stdout (the journal adds host, unit and time stamps of its own). Never pass secrets."""

    def __init__(self, level: str = "info", stream: Any = None) -> None:
        self.threshold = LEVELS.get(level, 20)
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] < self.threshold:
            return
        record = {"ts": round(time.time(), 3), "level": level, "event": event, **fields}
        # A closed or full journal must not stop the agent.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(json.dumps(record, default=str) + "\n")
            self._stream.flush()

    def debug(self, event: str, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)


class Backoff:
    """Full jitter: uniform between 0 and min(cap, base * 2^n) seconds.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(
        self, base: float = 0.1, cap: float = 5.0, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._base, self._cap, self._uniform = base, cap, uniform
        self.failures = 0

    def next(self) -> float:
        """Count one failure; return the seconds to wait."""
        ceiling = min(self._cap, self._base * 2 ** min(self.failures, 16))
        self.failures += 1
        return self._uniform(0.0, ceiling)

    def reset(self) -> None:
        self.failures = 0


def atomic_write(path: Path, content: bytes, mode: int = 0o644, sync: bool = False, group: int = -1) -> None:
    """Replace path by rename: a reader (Envoy watches for the rename) sees the old or the new file, never half.

    `group`: id of the owning group, one of this process's own; -1 keeps the process's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            # mkstemp has made it unreadable for others: the group comes first.
            if group != -1:
                os.fchown(handle.fileno(), -1, group)
            os.fchmod(handle.fileno(), mode)
            if sync:
                os.fsync(handle.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def signature(path: Path) -> Signature | None:
    """What changes when a file is replaced or rewritten (symlinks followed); None if it cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def canonical(value: Any) -> str:
    """JSON that is equal exactly when the values are equal."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def utc_now() -> str:
    """The time as RFC 3339 in UTC, to the millisecond; for people and records, never for measuring."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def notify(message: str) -> None:
    """Tell systemd (sd_notify protocol); without NOTIFY_SOCKET do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.sendall(message.encode())
