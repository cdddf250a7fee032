# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules against a real PostgreSQL and a real repository. The tests build on each other, in this order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Module = Callable[..., dict[str, Any]]
MOMENTS: dict[str, str] = {}


def rows(server: Any, work: Path, port: int = 5432) -> list[str]:
    """What a copy holds."""
    return server.sql("SELECT string_agg(id::text, ',' ORDER BY id) FROM rows", work, port).split(",")


def test_a_stanza_is_created_once(module: Module, server: Any) -> None:
    found = module("info")["stanza"]
    assert (found["present"], found["backups"]) == (False, [])
    steps = [module("backup", check=check, state="stanza") for check in (True, False, True, False)]
    assert [one.get("changed") for one in steps] == [True, True, False, False], steps
    assert module("info")["stanza"]["present"]


def test_without_a_leader_a_stanza_waits(module: Module, server: Any, tmp_path: Path) -> None:
    config = Path(server.config).read_text().replace(f"pg1-socket-path={server.folder}", "pg1-port=1")
    lonely = server.folder / "lonely.conf"
    lonely.write_text(config.replace("[orders]", "[lonely]"))
    found = module("backup", cluster="lonely", config=str(lonely), state="stanza", need_leader=False)
    assert not found["changed"]
    assert "has no leader" in found["skipped_reason"]
    assert "has no leader" in module("backup", cluster="lonely", config=str(lonely), state="stanza")["msg"]


def test_the_way_of_the_log_is_checked(module: Module) -> None:
    assert module("backup", state="checked")["changed"] is False


def test_a_backup_is_made_when_none_is_young_enough(module: Module, server: Any) -> None:
    server.sql("CREATE TABLE rows (id bigint PRIMARY KEY); INSERT INTO rows VALUES (1)")
    steps = [module("backup", check=check, type="full", max_age=600) for check in (True, False, True, False)]
    assert [one.get("changed") for one in steps] == [True, True, False, False], steps
    assert steps[1]["reason"] == "there is no full backup"
    assert steps[1]["backup"]["type"] == "full"
    assert steps[1]["bytes_per_second"] > 0
    # A full backup counts as an incremental one too.
    assert not module("backup", type="incremental", max_age=600)["changed"]


def test_a_history_to_return_to(module: Module, server: Any) -> None:
    time.sleep(1.1)  # pgBackRest's times are whole seconds
    server.sql("INSERT INTO rows VALUES (2)")
    MOMENTS["time"] = server.sql("SELECT clock_timestamp()")
    server.sql("INSERT INTO rows VALUES (3)")
    server.sql("SELECT pg_create_restore_point('before the release')")
    MOMENTS["lsn"] = server.sql("SELECT pg_current_wal_lsn()")
    MOMENTS["xid"] = server.sql("WITH gone AS (DELETE FROM rows WHERE id < 3 RETURNING 1) SELECT pg_current_xact_id()")
    server.sql("INSERT INTO rows VALUES (4)")
    assert module("backup", type="differential")["backup"]["type"] == "diff"
    assert module("backup", type="incremental")["backup"]["type"] == "incr"
    server.sql("INSERT INTO rows VALUES (5)")
    server.switch()
    labels = [one["label"] for one in module("info")["stanza"]["backups"]]
    assert len(labels) == 3
    first = labels[:1]
    for kind in ("time", "lsn"):
        assert module("info", target_type=kind, target=MOMENTS[kind])["chosen"] == first
    assert module("info", target_type="xid", target=MOMENTS["xid"])["chosen"] == labels[::-1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"target_type": "time", "target": "2099-01-01 00:00:00+00:00"}, "lies in the future"),
        ({"target_type": "time", "target": "2020-01-01 00:00:00+00:00"}, "lies before the first backup"),
        ({"target_type": "time", "target": "2026-11-27 11:00:00"}, "has no time zone"),
        ({"target_type": "lsn", "target": "0/1"}, "lies before the first backup"),
        ({"target_type": "lsn", "target": "FF/0"}, "lies in the future"),
        ({"target_type": "name", "target_exclusive": True, "target": "x"}, "can be stopped at just before"),
        ({"target_timeline": "7"}, "timeline 7 is unknown"),
        ({"set": "20200101-000000F"}, "there is no backup 20200101-000000F"),
    ],
)
@pytest.mark.parametrize("name", ["info", "restore"])
def test_a_target_without_a_way_gets_one_clear_error(
    module: Module, server: Any, name: str, arguments: dict[str, Any], reason: str
) -> None:
    path = server.folder / "never"
    more = {"path": str(path)} if name == "restore" else {}
    found = module(name, **{"target_type": "latest", **arguments}, **more)
    assert found.get("failed"), found
    assert reason in found["msg"]
    assert not path.exists()


@pytest.mark.parametrize(
    ("kind", "exclusive", "wanted"),
    [
        ("time", False, ["1", "2"]),
        ("lsn", False, ["1", "2", "3"]),
        ("xid", True, ["1", "2", "3"]),
        ("xid", False, ["3"]),
        ("name", False, ["1", "2", "3"]),
        ("immediate", False, ["3", "4"]),
        ("latest", False, ["3", "4", "5"]),
    ],
)
def test_a_copy_beside_holds_what_the_moment_held(
    module: Module, server: Any, kind: str, exclusive: bool, wanted: list[str]
) -> None:
    path = server.folder / "beside"
    value = {"name": "before the release"}.get(kind, MOMENTS.get(kind, ""))
    arguments = {"path": str(path), "target_type": kind, "target": value, "target_exclusive": exclusive}
    steps = [module("restore", check=check, beside=True, **arguments) for check in (True, False, True, False)]
    assert [one.get("changed") for one in steps] == [True, True, False, False], steps
    assert steps[1]["recovered"]["timeline"] == 2
    auto = (path / "postgresql.auto.conf").read_text()
    assert not [line for line in auto.splitlines() if "recovery_target" in line and not line.startswith("#")]
    # Started by hand, it is an ordinary server that does not archive.
    work = server.folder / "by-hand"
    work.mkdir()
    if server.user:
        shutil.chown(work, server.user)
    options = f"-c unix_socket_directories={work} -c archive_mode=off"
    server.run(server.bin / "pg_ctl", "start", "-s", "-w", "-D", path, "-l", work / "log", "-o", options)
    try:
        assert rows(server, work) == wanted
        used = module("restore", check=True, beside=True, delta=True, **arguments)
        assert "runs on" in used["msg"]
    finally:
        server.run(server.bin / "pg_ctl", "stop", "-s", "-m", "fast", "-D", path)
        shutil.rmtree(work)
    # Somebody has used it since, so the same words restore it again.
    assert module("restore", check=True, beside=True, delta=True, **arguments)["changed"]
    steps = [module("restore", check=check, state="absent", path=str(path)) for check in (True, False, True, False)]
    assert [one.get("changed") for one in steps] == [True, True, False, False], steps
    assert not list(server.folder.glob("beside*"))


def test_only_copies_are_removed_or_written_over(module: Module, server: Any) -> None:
    assert "no copy" in module("restore", state="absent", path=str(server.data))["msg"]
    assert "runs on" in module("restore", path=str(server.data), delta=True)["msg"]
    other = server.folder / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    assert "is not empty" in module("restore", path=str(other), beside=True)["msg"]
    assert "something else" in module("restore", path=str(other), beside=True, delta=True)["msg"]
    assert (other / "precious").exists()


def test_in_place_the_cluster_goes_on_from_the_moment(module: Module, server: Any) -> None:
    server.control("stop", "-m", "fast")
    arguments = {
        "path": str(server.data),
        "delta": True,
        "target_type": "xid",
        "target": MOMENTS["xid"],
        "target_exclusive": True,
        "archive_command": server.archive,
    }
    steps = [module("restore", check=check, **arguments) for check in (True, False, True, False)]
    assert [one.get("changed") for one in steps] == [True, True, False, False], steps
    assert steps[1]["recovered"]["timeline"] == 2
    server.control("start")
    assert rows(server, server.folder) == ["1", "2", "3"]
    server.sql("INSERT INTO rows VALUES (30)")
    # Backups go on, and the next ones belong to the new timeline.
    assert module("backup", type="full")["backup"]["timeline"] == 2
    server.sql("INSERT INTO rows VALUES (31)")
    server.switch()


def test_after_that_both_histories_can_be_reached(module: Module, server: Any) -> None:
    found = module("info", target_type="latest", target_timeline="1")
    assert found["chosen"][0] != module("info", target_type="latest")["chosen"][0]
    # Backups of the branch that was left do not lead to the living one.
    dead = next(one["label"] for one in module("info")["stanza"]["backups"] if one["type"] == "incr")
    assert "cannot be reached from backup" in module("info", target_type="latest", set=dead)["msg"]
    path = server.folder / "old"
    try:
        result = module("restore", path=str(path), beside=True, target_timeline="1")
        assert result["changed"], result
        assert result["set"] == dead
    finally:
        module("restore", path=str(path), state="absent")


def test_a_damaged_file_is_found(module: Module, server: Any) -> None:
    from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest import Program, verify

    program = Program(config=server.config, user=server.user)
    good = verify(program, "orders")
    assert good["ok"], good
    assert good["files"] > 100
    bundle = max((server.folder / "repository" / "backup").glob("*/*/bundle/*"), key=lambda path: path.stat().st_size)
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 0xFF
    whole = bundle.read_bytes()
    bundle.write_bytes(content)
    bad = verify(program, "orders")
    bundle.write_bytes(whole)  # other tests use the same repository
    assert not bad["ok"]
    assert bad["problems"], bad
