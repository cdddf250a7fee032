# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health checks: HTTP, TCP and command; one thread per check, monotonic clock, jitter."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Callable
from urllib.parse import urlsplit

from causeway_agent.config import CheckSpec, Instance

# A dead process is out of every proxy long before its next regular check: look again at once after a failure.
RETRY = 0.1


@dataclass
class Tally:
    """Consecutive results of one check. `status` is None until the first verdict."""

    unhealthy: int
    healthy: int
    status: bool | None = None
    streak: int = 0
    last: bool | None = None

    def observe(self, passed: bool) -> bool:
        """Count a result; return whether the status changed."""
        self.streak = self.streak + 1 if passed == self.last else 1
        self.last = passed
        needed = self.healthy if passed else self.unhealthy
        if self.status == passed or self.streak < needed:
            return False
        self.status = passed
        return True


def _host_port(address: str) -> tuple[str, int]:
    host, _colon, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _http(check: CheckSpec) -> str:
    parts = urlsplit(check.target)
    deadline = time.monotonic() + check.timeout
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=check.timeout)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "causeway-agent", "Connection": "close"})
        if connection.sock is not None:
            # The timeout is for the whole check, not for each read.
            connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
        response = connection.getresponse()
        return "" if 200 <= response.status < 300 else f"status {response.status}"
    finally:
        connection.close()


def _tcp(check: CheckSpec) -> str:
    with socket.create_connection(_host_port(check.target), timeout=check.timeout):
        return ""


def _command(check: CheckSpec) -> str:
    process = subprocess.Popen(
        list(check.argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait(check.timeout)
    except subprocess.TimeoutExpired:
        # Its children as well, else they pile up.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"no result within {check.timeout:g} s"
    return "" if code == 0 else f"exit code {code}"


_RUN = {"http": _http, "tcp": _tcp, "command": _command}


def run_check(check: CheckSpec) -> str:
    """Run a check once; return why it failed, empty if it passed."""
    try:
        return _RUN[check.type](check)
    except ConnectionRefusedError:
        return "connection refused"
    except (socket.timeout, TimeoutError):
        return f"no answer within {check.timeout:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Result:
    """What a monitor reports after each check."""

    instance: str
    check: CheckSpec
    reason: str
    seconds: float


class Monitor:
    """Runs the checks of one instance. `status`: None until each check gave a verdict, True only if all pass."""

    def __init__(
        self,
        instance: Instance,
        on_result: Callable[[Result], None],
        on_change: Callable[[str, bool, str], None],
        presumed: bool | None = None,
    ) -> None:
        self.instance = instance
        self._on_result, self._on_change = on_result, on_change
        self._tallies = [Tally(c.unhealthy, c.healthy, presumed) for c in instance.checks]
        self._announced = presumed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.threads = [
            threading.Thread(target=self._run, args=(i,), name=f"check-{instance.path}-{i}", daemon=True)
            for i in range(len(instance.checks))
        ]

    @property
    def status(self) -> bool | None:
        verdicts = [tally.status for tally in self._tallies]
        if any(v is False for v in verdicts):
            return False
        return None if any(v is None for v in verdicts) else True

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Ask the threads to end; they may finish a check that is running, its result is ignored."""
        self._stop.set()

    def _run(self, index: int) -> None:
        check, tally = self.instance.checks[index], self._tallies[index]
        delay = 0.0
        while not self._stop.wait(delay):
            started = time.monotonic()
            reason = run_check(check)
            seconds = time.monotonic() - started
            if self._stop.is_set():
                return
            self._on_result(Result(self.instance.path, check, reason, seconds))
            with self._lock:
                tally.observe(not reason)
                status = self.status
                changed = status is not None and status != self._announced
                if changed:
                    self._announced = status
            if changed:
                self._on_change(self.instance.path, bool(status), reason)
            undecided = bool(reason) and tally.status is not False
            if undecided:
                delay = min(RETRY, check.interval)
            else:
                # Up to 10 % jitter, so that instances that started together are not checked together for ever.
                delay = max(0.0, check.interval - seconds) * random.uniform(0.9, 1.0)
