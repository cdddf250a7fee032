# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PostgreSQL with TLS and passwords, as an unprivileged user on a port of its own; dbmate and squawk."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.action import database_migration as action

_PLACE = Path(__file__).resolve().parents[1] / "etcd" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("migrations_etcd", _PLACE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["migrations_etcd"] = _MODULE
_SPEC.loader.exec_module(_MODULE)

PASSWORD = "s3cret-word of-the-owner/@"
NUMBERS = itertools.count(1)


def tool(name: str) -> str:
    """A program of the environment that runs the tests, else of this machine."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"needs {name} (requirements-test.txt, bindep.txt)")
    return found


def server_program(name: str) -> str:
    """A program of the newest PostgreSQL server here; Debian keeps them out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(places[-1]) if places else shutil.which(name)
    if not found:
        pytest.skip(f"needs {name} (Debian package postgresql)")
    return found


@dataclass
class Cluster:
    """A running server."""

    folder: Path
    port: int
    ca: Path
    password: str = PASSWORD  # of role owner

    def psql(self, database: str, sql: str) -> str:
        """Run SQL as superuser over the unix socket."""
        done = subprocess.run(
            [tool("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-p", str(self.port)]
            + ["-U", "postgres", "-d", database],
            input=sql,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="causeway-pg-"))
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("nobody").pw_name
        shutil.chown(folder, user)
    folder.chmod(0o755)
    port = _MODULE.free_port()
    tls = _MODULE.Authority(folder / "ca").issue("db")
    shutil.copy(tls / "cert.pem", folder / "server.crt")
    shutil.copy(tls / "key.pem", folder / "server.key")
    (folder / "server.key").chmod(0o600)
    if user:
        shutil.chown(folder / "server.key", user)
    (folder / "hba").write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    settings = {
        "unix_socket_directories": folder,
        "listen_addresses": "127.0.0.1",
        "hba_file": folder / "hba",
        "ssl": "on",
        "ssl_cert_file": folder / "server.crt",
        "ssl_key_file": folder / "server.key",
        "fsync": "off",
        "max_connections": "20",
        "shared_buffers": "16MB",
    }
    run: dict[str, Any] = {"user": user, "cwd": folder, "stdin": subprocess.DEVNULL}
    data = folder / "data"
    # initdb has to find its own postgres, and is quick with the smallest cluster.
    subprocess.run(
        [server_program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C.UTF-8"],
        check=True,
        stdout=subprocess.DEVNULL,
        **run,
    )
    command = [server_program("postgres"), "-D", data, "-p", str(port)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **run)
    try:
        one = Cluster(folder, port, tls / "ca.pem")
        ready = [tool("pg_isready"), "-q", "-h", str(folder), "-p", str(port), "-t", "20"]
        for _try in range(100):
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
            subprocess.run(["sleep", "0.1"], check=True)
        one.psql("postgres", f"CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}';")
        yield one
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Database:
    """A database of one test, and its files."""

    cluster: Cluster
    name: str
    folder: Path

    def sql(self, text: str) -> str:
        return self.cluster.psql(self.name, text)

    def dump(self) -> str:
        """The whole schema, this collection's own tables included."""
        done = subprocess.run(
            [tool("pg_dump"), "--schema-only", "-h", str(self.cluster.folder), "-p", str(self.cluster.port)]
            + ["-U", "postgres", self.name],
            capture_output=True,
            text=True,
            check=True,
        )
        # Newer ones frame the dump with a word that is new each time.
        return "\n".join(
            line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
        )

    def write(self, phase: str, number: int, up: str, down: str = "", options: str = "") -> str:
        """Write a migration file; returns its name."""
        folder = self.folder / phase
        folder.mkdir(exist_ok=True)
        name = f"202611220000{number:02}_step.sql"
        back = f"-- migrate:down {options}\n{down}\n" if down else ""
        (folder / name).write_text(f"-- migrate:up {options}\n{up}\n{back}")
        return name

    def parameters(self, **more: Any) -> dict[str, Any]:
        """Parameters of the module, the files among them as its action plugin sends them."""
        return {
            "service": "orders",
            "directory": str(self.folder),
            "connection": {
                "host": "127.0.0.1",
                "port": self.cluster.port,
                "name": self.name,
                "user": "owner",
                "ca": str(self.cluster.ca),
            },
            "password": PASSWORD,
            "lock_timeout": 0.3,
            "statement_timeout": 5.0,
            "retries": 2,
            "backoff_base": 0.05,
            "backoff_max": 0.2,
            "batch_pause": 0.0,
            "dbmate": tool("dbmate"),
            "squawk": tool("squawk"),
            "psql": tool("psql"),
            "_files": action.read_files(self.folder),
            **more,
        }

    def start(self, **more: Any) -> subprocess.Popen[str]:
        """The module in a process of its own, as Ansible runs it on a host."""
        code = (
            "import json, sys\n"
            "from ansible.module_utils.testing import patch_module_args\n"
            "from ansible_collections.causeway.platform.plugins.modules import database_migration\n"
            "with patch_module_args(json.load(sys.stdin)):\n"
            "    database_migration.main()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(entry for entry in sys.path if entry)},
        )
        assert process.stdin
        process.stdin.write(json.dumps(self.parameters(**more)))
        process.stdin.close()
        process.stdin = None
        return process


@pytest.fixture
def database(cluster: Cluster, tmp_path: Path) -> Database:
    """An empty database with a table that users have."""
    name = f"t{next(NUMBERS)}"
    cluster.psql("postgres", f"CREATE DATABASE {name} OWNER owner;")
    one = Database(cluster, name, tmp_path)
    one.sql("SET ROLE owner; CREATE TABLE people (id bigint PRIMARY KEY, name text);")
    return one


@pytest.fixture
def migrate(database: Database, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the module; returns its result, ``failed`` among it."""
    from ansible.module_utils.testing import patch_module_args

    from ansible_collections.causeway.platform.plugins.modules import database_migration

    def run(phase: str = "expand", check: bool = False, **more: Any) -> dict[str, Any]:
        capsys.readouterr()
        arguments = {**database.parameters(phase=phase, **more), "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            database_migration.main()
        out = capsys.readouterr().out
        assert PASSWORD not in out
        result: dict[str, Any] = json.loads(out)
        return result

    return run
