"""A real Prometheus that holds a made-up history."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def served(folder: Path, text: str) -> Iterator[str]:
    """The address of a Prometheus over `text`, lines of OpenMetrics without their end."""
    (folder / "history.txt").write_text(text + "\n# EOF\n")
    make = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "-q", "history.txt", "data"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text("{}")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _try in range(100):
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path, str], contextlib.AbstractContextManager[str]]:
    """`with serve(folder, text) as url: ...`"""
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        pytest.skip("needs prometheus and promtool (Debian package prometheus)")
    return served
