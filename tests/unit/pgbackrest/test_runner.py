# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner on the repository host: real backups, checks and restore tests, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
START = "import sys, runner; runner.CONFIG = runner.Path(sys.argv.pop(1)); sys.exit(runner.main(sys.argv[1:]))"


@pytest.fixture
def place(server: Any) -> Iterator[Path]:
    """What the role installs, in a folder of the user that runs it."""
    folder: Path = server.folder / "runner"
    folder.mkdir()
    shutil.copy(ROOT / "roles" / "backup" / "files" / "runner.py", folder)
    shutil.copy(ROOT / "plugins" / "module_utils" / "pgbackrest.py", folder)
    clusters = {"orders": {"database": "postgres", "checks": ["SELECT count(*) = 2 FROM kept"]}}
    content = {"root": str(folder / "root"), "bin": str(server.bin), "executable": "/usr/bin/pgbackrest"}
    content |= {"config": server.config, "wait": 5, "recovery_timeout": 60, "check_timeout": 10, "keep": 2}
    (folder / "runner.json").write_text(json.dumps({**content, "clusters": clusters}))
    (folder / "root").mkdir()
    if server.user:
        shutil.chown(folder / "root", server.user)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def runner(place: Path, server: Any) -> Callable[..., subprocess.Popen[str]]:
    """Start the runner as that user."""

    def start(*words: str, **environment: str) -> subprocess.Popen[str]:
        # Another user cannot enter the environment of the tests; the runner needs the standard library alone.
        own = ["/usr/sbin/runuser", "-u", server.user, "--"] if server.user else []
        python = "/usr/bin/python3" if server.user else sys.executable
        return subprocess.Popen(
            [*own, python, "-B", "-c", START, str(place / "runner.json"), *words],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )

    return start


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _none = process.communicate(timeout=120)
    return process.returncode, out


def read(place: Path, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "root" / path).read_text())
    return found


def test_backup_check_and_restore_test(place: Path, server: Any, runner: Callable[..., Any]) -> None:
    server.sql("CREATE TABLE kept AS SELECT generate_series(1, 2) AS id")
    # Without a stanza (a new or emptied repository) the first backup makes it.
    code, out = finish(runner("full", "orders"))
    assert (code, "full backup" in out) == (0, True), out
    assert finish(runner("verify", "orders"))[0] == 0
    code, out = finish(runner("restore-test", "orders"))
    assert code == 0, out
    report = read(place, "reports/orders-restore-test.json")
    assert report["ok"], report
    assert report["checks"][0]["ok"]
    assert report["checksums"]["ok"]
    assert report["indexes"]["ok"]
    assert not list((place / "root" / "restore-test").iterdir())
    metrics = (place / "root" / "metrics" / "causeway_backup.prom").read_text()
    for kind in ("full", "verify", "restore_test"):
        assert f'causeway_backup_failed{{cluster="orders",kind="{kind}"}} 0' in metrics
    assert 'causeway_backup_last_age_seconds{cluster="orders",kind="restore_test"}' in metrics

    # A check of the service that does not hold fails the test, and an old success stays known.
    server.sql("DELETE FROM kept WHERE id = 1")
    server.switch()
    code, out = finish(runner("restore-test", "orders"))
    assert (code, "not true" in out) == (1, True), out
    assert not list((place / "root" / "restore-test").iterdir())
    assert read(place, "reports/orders-restore-test.json")["ok"] is False
    metrics = (place / "root" / "metrics" / "causeway_backup.prom").read_text()
    assert 'causeway_backup_failed{cluster="orders",kind="restore_test"} 1' in metrics
    assert 'causeway_backup_last_success_timestamp_seconds{cluster="orders",kind="restore_test"}' in metrics

    # Older reports go.
    finish(runner("restore-test", "orders"))
    assert len(list((place / "root" / "reports" / "old").glob("orders-restore-test-*"))) == 2


def test_a_kill_leaves_nothing_and_is_noted(place: Path, server: Any, runner: Callable[..., Any]) -> None:
    finish(runner("full", "orders"))
    process = runner("restore-test", "orders")
    copy = place / "root" / "restore-test" / "orders" / "data"
    for _try in range(300):
        if (copy / "global" / "pg_control").exists():
            break
        time.sleep(0.02)
    assert copy.exists()
    # Its children too, as systemd does.
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid = copy / "postmaster.pid"
    if pid.exists():
        os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)
    time.sleep(0.5)
    assert finish(runner("ended", "restore-test", "orders", SERVICE_RESULT="signal", EXIT_STATUS="KILL"))[0] == 0
    assert not list((place / "root" / "restore-test").iterdir())
    state = read(place, "state/orders.restore-test.json")
    assert state["reason"] == "it was stopped: signal KILL"
    assert "running" not in state


def test_damage_is_told(place: Path, server: Any, runner: Callable[..., Any]) -> None:
    finish(runner("full", "orders"))
    bundle = max((server.folder / "repository" / "backup").glob("*/*/bundle/*"), key=lambda path: path.stat().st_mtime)
    whole = bundle.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 0xFF
    bundle.write_bytes(content)
    code, out = finish(runner("verify", "orders"))
    test = finish(runner("restore-test", "orders"))[0]
    bundle.write_bytes(whole)
    assert (code, "the repository is damaged" in out) == (1, True), out
    assert test == 1
    assert not list((place / "root" / "restore-test").iterdir())


def test_an_unknown_cluster_is_refused(place: Path, runner: Callable[..., Any]) -> None:
    code, out = finish(runner("full", "carts"))
    assert (code, out.strip()) == (2, "unknown: full carts; clusters: orders")
