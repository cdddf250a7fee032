# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects of a database, on a real PostgreSQL."""

from __future__ import annotations

import base64
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import postgresql_objects as objects
from ansible_collections.causeway.platform.plugins.modules import postgresql_activity_info, postgresql_objects

_PLACE = Path(__file__).resolve().parents[1] / "migrations" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("objects_postgresql", _PLACE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["objects_postgresql"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
cluster = _MODULE.cluster
PASSWORD = "f0" * 32


def params(server: Any, **changes: Any) -> dict[str, Any]:
    """Parameters of the module for a database of the server."""
    roles = [
        {"name": "shop_app", "password": PASSWORD, "attributes": ["LOGIN"], "member_of": []},
        {"name": "shop_app_owner", "password": "a1" * 32, "attributes": ["LOGIN"], "member_of": []},
        {"name": "pgbouncer", "password": "b2" * 32, "attributes": ["LOGIN"], "member_of": []},
        {"name": "monitor", "password": None, "attributes": ["LOGIN"], "member_of": ["pg_monitor"]},
    ]
    return {
        "port": server.port,
        "socket_path": str(server.folder),
        "system_user": "nobody" if os.geteuid() == 0 else "",
        "timeout": 20.0,
        "database": "shop_app",
        "owner": "shop_app_owner",
        "application": "shop_app",
        "roles": roles,
        "connect": ["pgbouncer", "monitor"],
        "extensions": ["pg_trgm"],
        **changes,
    }


@pytest.fixture(name="psql_group", autouse=True)
def _psql_group(monkeypatch: pytest.MonkeyPatch) -> None:
    # Debian's group of nobody is called otherwise; on hosts user postgres has a group of its name.
    real = subprocess.run

    def run(*arguments: Any, **options: Any) -> Any:
        if options.get("group") == "nobody":
            options["group"] = "nogroup"
        return real(*arguments, check=options.pop("check", False), **options)

    monkeypatch.setattr(subprocess, "run", run)


def as_role(server: Any, role: str, password: str, sql: str) -> subprocess.CompletedProcess[str]:
    """SQL over TLS with a password."""
    environment = {"PGPASSWORD": password, "PGSSLMODE": "require", "PATH": os.environ["PATH"]}
    command = [_MODULE.tool("psql"), "-XqAt", "-h", "127.0.0.1", "-p", str(server.port), "-U", role, "-d", "shop_app"]
    return subprocess.run(command, input=sql, env=environment, capture_output=True, text=True, check=False)


def test_objects(cluster: Any) -> None:
    wanted = params(cluster)
    planned = postgresql_objects.run(wanted, True)
    made = postgresql_objects.run(wanted, False)
    assert planned["steps"] == made["steps"]
    assert made["steps"][0] == "create role shop_app"
    assert PASSWORD not in str(made)
    assert not postgresql_objects.run(wanted, True)["changed"]
    assert not postgresql_objects.run(wanted, False)["changed"]

    # The owner makes, the application reads and writes, and makes nothing.
    assert as_role(cluster, "shop_app_owner", "a1" * 32, "CREATE TABLE t (id serial PRIMARY KEY, v int);").stderr == ""
    assert as_role(cluster, "shop_app", PASSWORD, "INSERT INTO t (v) VALUES (1); SELECT v FROM t;").stdout == "1\n"
    assert "permission denied" in as_role(cluster, "shop_app", PASSWORD, "CREATE TABLE u ();").stderr
    assert as_role(cluster, "shop_app", PASSWORD, "SELECT causeway.wait_for_lsn('FF/0')").stdout == "t\n"
    # The pooler finds passwords of ordinary roles and nothing else.
    lookup = "SELECT passwd LIKE 'SCRAM%' FROM causeway.user_lookup('{}')"
    assert as_role(cluster, "pgbouncer", "b2" * 32, lookup.format("shop_app")).stdout == "t\n"
    assert as_role(cluster, "pgbouncer", "b2" * 32, lookup.format("postgres")).stdout == ""
    assert "permission denied" in as_role(cluster, "pgbouncer", "b2" * 32, "SELECT * FROM t").stderr
    assert "permission denied" in as_role(cluster, "shop_app", PASSWORD, lookup.format("shop_app")).stderr
    # Nobody else comes in.
    cluster.psql("postgres", "CREATE ROLE stranger LOGIN PASSWORD 'x';")
    assert "permission denied for database" in as_role(cluster, "stranger", "x", "SELECT 1").stderr

    # What somebody changed is put right.
    cluster.psql("postgres", "ALTER ROLE shop_app PASSWORD 'other'; GRANT CONNECT ON DATABASE shop_app TO PUBLIC;")
    assert postgresql_objects.run(wanted, False)["steps"] == [
        "set the password of shop_app",
        "keep others out of database shop_app",
    ]


def test_activity(cluster: Any) -> None:
    found = postgresql_activity_info.run({**params(cluster), "longer_than": 0.0})
    assert not found["recovery"]
    assert found["transactions"] == []
    assert {"prepared", "replication", "slots"} <= set(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extensions": ["nonsense"]}, "extension 'nonsense' is not installed on this host"),
        ({"database": 'a"b'}, "is not a name here"),
        ({"port": 1}, "PostgreSQL on port 1"),
    ],
)
def test_errors_change_nothing(cluster: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(objects.PostgresqlError, match=words):
        postgresql_objects.run(params(cluster, **changes), False)


def test_scram() -> None:
    # RFC 7677, section 3: user "user", password "pencil".
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = objects.scram_verifier("pencil", salt, 4096)
    assert verifier.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    assert objects.has_password(verifier, "pencil")
    assert not objects.has_password(verifier, "pen")
    assert not objects.has_password(None, "pencil")
    assert not objects.has_password("md5abc", "pencil")
