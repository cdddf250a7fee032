# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PostgreSQL with pg_stat_statements, as an unprivileged user behind a unix socket of its own."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PORT = 15999  # part of the socket's name; nothing listens on TCP
NUMBERS = itertools.count(1)


def server_program(name: str) -> str:
    """A program of the newest PostgreSQL server here; Debian keeps them out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(places[-1]) if places else shutil.which(name)
    if not found or not shutil.which("psql"):
        pytest.skip(f"needs {name} and psql (Debian package postgresql)")
    return found


@dataclass
class Server:
    """A running server, and who runs it."""

    folder: Path
    user: str

    def psql(self, database: str, sql: str, role: str = "postgres") -> str:
        command = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-p", str(PORT)]
        command += ["-U", role, "-d", database]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="causeway-advise-"))
    user = pwd.getpwuid(os.geteuid()).pw_name
    run: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "nobody"
        run["user"] = user
        shutil.chown(folder, user)
    folder.chmod(0o755)
    data = folder / "data"
    subprocess.run(
        [server_program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C.UTF-8"],
        check=True,
        stdout=subprocess.DEVNULL,
        **run,
    )
    command = [server_program("postgres"), "-D", str(data), "-p", str(PORT)]
    for setting in (
        f"unix_socket_directories={folder}",
        "listen_addresses=",
        "fsync=off",
        "shared_buffers=32MB",
        "max_parallel_workers_per_gather=2",
        "shared_preload_libraries=pg_stat_statements",
    ):
        command += ["-c", setting]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **run)
    try:
        ready = ["pg_isready", "-q", "-h", str(folder), "-p", str(PORT), "-t", "20"]
        for _try in range(100):
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
            subprocess.run(["sleep", "0.1"], check=True)
        one = Server(folder, user)
        one.psql("postgres", "CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE shop_owner LOGIN;")
        yield one
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Database:
    """A database of one test."""

    server: Server
    name: str

    def sql(self, text: str, role: str = "postgres") -> str:
        return self.server.psql(self.name, text, role)

    def run(self, text: str, role: str = "app", times: int = 3) -> None:
        """Run statements as the application does, so that they are counted."""
        self.sql(text * times, role)

    def parameters(self, **more: Any) -> dict[str, Any]:
        return {
            "port": PORT,
            "socket_path": str(self.server.folder),
            "system_user": "",  # it trusts everybody
            "database": self.name,
            "timeout": 60.0,
            **more,
        }

    def state(self) -> str:
        """All that a run that only looks must leave as it is."""
        return self.sql(
            "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace;"
            "SELECT string_agg(extname, ',' ORDER BY extname) FROM pg_extension;"
            "SELECT string_agg(nspname, ',' ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp';"
            "SELECT count(*) FROM pg_proc;"
        )


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """Customers, orders and lines: foreign keys without indexes, statistics up to date."""
    one = Database(server, f"shop{next(NUMBERS)}")
    server.psql("postgres", f"CREATE DATABASE {one.name} OWNER shop_owner;")
    one.sql(
        """
        CREATE EXTENSION pg_stat_statements;
        GRANT ALL ON SCHEMA public TO shop_owner;
        SET ROLE shop_owner;
        CREATE TABLE customers (id int PRIMARY KEY, email varchar(80), region text);
        CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customers, status text, made timestamptz,
                             total numeric);
        CREATE TABLE tiny (id int, note text);
        INSERT INTO customers SELECT n, 'user' || n || '@example.org', 'r' || n % 5 FROM generate_series(1, 20000) n;
        INSERT INTO orders SELECT n, n % 20000 + 1, CASE WHEN n % 500 = 0 THEN 'open' ELSE 'done' END,
                                  timestamptz '2026-01-01' + n * interval '1 minute', n
                           FROM generate_series(1, 60000) n;
        INSERT INTO tiny SELECT n, 'x' FROM generate_series(1, 50) n;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app, other;
        RESET ROLE;
        ANALYZE;
        SELECT pg_stat_statements_reset();
        """
    )
    yield one
    server.psql("postgres", f"DROP DATABASE {one.name} WITH (FORCE);")


@pytest.fixture
def advise(database: Database, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the module; returns its result, ``failed`` among it."""
    from ansible.module_utils.testing import patch_module_args

    from ansible_collections.causeway.platform.plugins.modules import database_advise

    def run(check: bool = False, **more: Any) -> dict[str, Any]:
        capsys.readouterr()
        arguments = {**database.parameters(**more), "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            database_advise.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def hypopg(server: Server) -> None:
    """The extension's package is there."""
    if not server.psql("postgres", "SELECT 1 FROM pg_available_extensions WHERE name = 'hypopg'"):
        pytest.skip("needs hypopg (Debian package postgresql-<version>-hypopg)")
