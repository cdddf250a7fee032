# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PostgreSQL that archives into a real, encrypted pgBackRest repository on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CIPHER = "a-pass-that-no-output-may-show"
STANZA = "orders"
SETTINGS = {
    "archive_mode": "on",
    "autovacuum": "off",
    "fsync": "off",
    "listen_addresses": "",
    "log_min_messages": "error",
    "max_connections": "20",
    "max_wal_senders": "3",
    "shared_buffers": "16MB",
    "wal_level": "replica",
}


def programs() -> Path:
    """Directory of the newest PostgreSQL server here; Debian keeps its programs out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not places or not shutil.which("pgbackrest"):
        pytest.skip("needs PostgreSQL and pgBackRest (Debian packages postgresql, pgbackrest)")
    return places[-1].parent


@dataclass
class Server:
    """The server, its repository, and how to talk to both."""

    folder: Path
    bin: Path
    user: str

    @property
    def config(self) -> str:
        return str(self.folder / "pgbackrest.conf")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def archive(self) -> str:
        return f"pgbackrest --config={self.config} --stanza={STANZA} archive-push %p"

    def run(self, *words: Any, check: bool = True) -> str:
        """Run a program as the owner of the data."""
        own = ["/usr/sbin/runuser", "-u", self.user, "--"] if self.user else []
        done = subprocess.run(
            [*own, *map(str, words)], capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def backrest(self, verb: str, *options: str) -> str:
        return self.run("pgbackrest", f"--config={self.config}", f"--stanza={STANZA}", *options, verb)

    def sql(self, text: str, host: Path | None = None, port: int = 5432) -> str:
        words = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", host or self.folder, "-p", port, "-U", "postgres"]
        return self.run(self.bin / "psql", *words, "-d", "postgres", "-c", text)

    def control(self, verb: str, *options: str) -> None:
        words = ["-s", "-w", "-D", self.data, "-l", self.folder / "log", *options]
        self.run(self.bin / "pg_ctl", verb, *words)

    def switch(self) -> None:
        """Close the segment and wait until it is in the archive."""
        before = self.sql("SELECT pg_walfile_name(pg_switch_wal())")
        for _try in range(100):
            if self.sql("SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver") >= before:
                return
            subprocess.run(["sleep", "0.1"], check=True)
        raise AssertionError(f"{before} was not archived: {(self.folder / 'log').read_text()[-2000:]}")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Table ``rows`` with a history: see the moments that the tests use."""
    place = programs()
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="causeway-pb-", dir="/tmp"))
    one = Server(folder, place, "postgres" if root else "")
    if root:
        shutil.chown(folder, "postgres", "postgres")
    folder.chmod(0o755)
    config = [
        "[global]",
        f"repo1-path={folder}/repository",
        f"log-path={folder}",
        f"lock-path={folder}/lock",
        f"spool-path={folder}/spool",
        "log-level-file=off",
        "start-fast=y",
        "repo1-bundle=y",
        "compress-type=zst",
        "compress-level=1",
        f"[{STANZA}]",
        "repo1-cipher-type=aes-256-cbc",
        f"repo1-cipher-pass={CIPHER}",
        "repo1-retention-full=9",
        f"pg1-path={folder}/data",
        f"pg1-socket-path={folder}",
    ]
    (folder / "pgbackrest.conf").write_text("\n".join(config) + "\n")
    one.run(place / "initdb", "-D", one.data, "-U", "postgres", "-A", "trust", "-k", "--no-sync", "--locale=C.UTF-8")
    with (one.data / "postgresql.conf").open("a") as file:
        for name, value in {**SETTINGS, "unix_socket_directories": str(folder), "archive_command": one.archive}.items():
            file.write(f"{name} = '{value}'\n")
    one.control("start")
    try:
        yield one
    finally:
        one.run(place / "pg_ctl", "stop", "-s", "-m", "immediate", "-D", one.data, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def module(server: Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run one of the modules; returns its result, ``failed`` among it."""
    import importlib

    from ansible.module_utils.testing import patch_module_args

    def run(name: str, check: bool = False, **more: Any) -> dict[str, Any]:
        found = importlib.import_module(f"ansible_collections.causeway.platform.plugins.modules.pgbackrest_{name}")
        capsys.readouterr()
        own = {"cluster": STANZA, "user": server.user, "config": server.config, "executable": "/usr/bin/pgbackrest"}
        if name == "restore":
            own["bin_dir"] = str(server.bin)
        with patch_module_args({**own, **more, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            found.main()
        out = capsys.readouterr().out
        assert CIPHER not in out
        result: dict[str, Any] = json.loads(out)
        return result

    return run
