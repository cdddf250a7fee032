"""A headless Chromium, spoken to by the DevTools protocol over a pipe: no port, no driver, no library."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 30.0


def chromium_binary() -> str:
    """The browser to test with."""
    binary = os.environ.get("CAUSEWAY_CHROMIUM") or shutil.which("chromium")
    if not binary:
        pytest.skip("needs the browser (Debian package chromium)")
    return binary


class Browser:
    """One browser with one page; ``messages`` are the console's and the security policy's."""

    def __init__(self, folder: Path) -> None:
        self.numbers = itertools.count(1)
        self.messages: list[str] = []
        self.events: list[str] = []
        self.buffer = b""
        from_us, self.write_end = os.pipe()
        self.read_end, to_us = os.pipe()
        # The protocol is on the descriptors 3 and 4, so the pipes' own ends must not be among them.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (from_us, to_us)]
        command = [
            "bash",
            "-c",
            f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}',
            "bash",
            chromium_binary(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            f"--user-data-dir={folder}",
            "--remote-debugging-pipe",
            "about:blank",
        ]

        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=ends)
        for end in (from_us, to_us, *ends):
            os.close(end)
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        number = next(self.numbers)
        request = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self.write_end, json.dumps(request).encode() + b"\0")
        while True:
            message = self.read()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """A request about the page."""
        return self.call(method, self.session, **params)

    def read(self) -> dict[str, Any]:
        """The next message."""
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            ready, _write, _error = select.select([self.read_end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            got = os.read(self.read_end, 1 << 16)
            assert got, "the browser has died"
            self.buffer += got
        raw, _end, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        method = message.get("method", "")
        self.events.append(method)
        if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.messages.append(json.dumps(message["params"]))
        return message

    def open(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Load a file at a width."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while "Page.loadEventFired" not in self.events:
            self.read()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> bytes:
        """A picture of the whole page."""
        data = base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        file.write_bytes(data)
        return data

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)
