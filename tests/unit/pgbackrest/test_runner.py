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


# As the role has it: otherwise PostgreSQL offers one segment again and again while a repository is away, and no other.
ASYNC = "archive-async=y\narchive-timeout=20"


@pytest.fixture
def second(place: Path, server: Any) -> Iterator[Path]:
    """A second repository, to which the log goes too."""
    config = place / "both.conf"
    text = (
        Path(server.config)
        .read_text()
        .replace("repo1-retention-full=9", "repo1-retention-full=9\nrepo2-retention-full=9")
    )
    text = text.replace("[global]", f"[global]\nrepo2-path={server.folder}/second\nrepo2-bundle=y\n{ASYNC}")
    text += "repo2-cipher-type=aes-256-cbc\nrepo2-cipher-pass=another pass that nobody shows\n"
    config.write_text(text)
    runner_config = place / "runner.json"
    runner_config.write_text(runner_config.read_text().replace(server.config, str(config)))
    server.sql(f"ALTER SYSTEM SET archive_command = '{server.archive.replace(server.config, str(config))}'")
    server.sql("SELECT pg_reload_conf()")
    yield server.folder / "second"
    server.sql("ALTER SYSTEM RESET archive_command")
    server.sql("SELECT pg_reload_conf()")
    shutil.rmtree(server.folder / "second", ignore_errors=True)


def test_every_repository_is_written_and_read(
    second: Path, place: Path, server: Any, runner: Callable[..., Any]
) -> None:
    code, out = finish(runner("full", "orders"))
    assert (code, "repository 1: full" in out, "repository 2: full" in out) == (0, True, True), out
    labels = read(place, "state/orders.full.json")["success"]["labels"]
    assert sorted(labels) == ["1", "2"]
    code, out = finish(runner("verify", "orders"))
    assert code == 0, out
    assert sorted(read(place, "reports/orders-verify.json")["repositories"]) == ["1", "2"]
    bundle = next((second / "backup").glob("*/*/bundle/*"))
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 0xFF
    bundle.write_bytes(content)
    code, out = finish(runner("verify", "orders"))
    assert (code, "repository 2: the repository is damaged" in out, "repository 1:" in out) == (1, True, False), out
    metrics = (place / "root" / "metrics" / "causeway_backup.prom").read_text()
    for repository, failed in (("1", 0), ("2", 1)):
        labels = f'cluster="orders",kind="verify",repository="{repository}"'
        assert f"causeway_backup_repository_failed{{{labels}}} {failed}" in metrics


def test_a_lost_repository_keeps_no_other_from_its_backup(
    second: Path, place: Path, server: Any, runner: Callable[..., Any]
) -> None:
    assert finish(runner("full", "orders"))[0] == 0
    before = read(place, "state/orders.full.json")["repositories"]
    second.rename(second.with_name("away"))
    second.write_text("no directory")
    try:
        code, out = finish(runner("full", "orders"))
    finally:
        second.unlink()
        shutil.rmtree(second.with_name("away"))
    after = read(place, "state/orders.full.json")["repositories"]
    assert code == 1, out
    assert (after["1"]["failed"], after["2"]["failed"]) == (False, True), out
    assert after["1"]["success"] > before["1"]["success"]
    assert after["2"]["success"] == before["2"]["success"]


def test_an_unknown_cluster_is_refused(place: Path, runner: Callable[..., Any]) -> None:
    code, out = finish(runner("full", "carts"))
    assert (code, out.strip()) == (2, "unknown: full carts; clusters: orders")
