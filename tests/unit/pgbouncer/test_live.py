# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A query's whole way: psql, sidecar, mutual TLS, pooler's proxy, PgBouncer, PostgreSQL; then what changes it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer
from ansible_collections.causeway.platform.plugins.modules import pgbouncer_admin

WORD = "a-word-of-orders"


def within(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Seconds until a condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


def where(session: Any) -> str:
    answer: str = session.run("SELECT name FROM who;")
    return answer


def test_writers_reach_the_leader_and_readers_a_replica(site: Any, sessions: Any) -> None:
    assert where(sessions()) == "db1"
    assert where(sessions(port=5433, database="orders_ro")) == "db2"


def test_a_wrong_password_and_another_database_are_refused(site: Any, sessions: Any) -> None:
    command = ["psql", "-XqAt", "-h", "127.89.1.1", "-U", "orders", "-c", "SELECT 1"]
    base = {"PATH": "/usr/bin", "PGSSLMODE": "disable"}
    for database, password in (
        ("orders", "wrong"),
        ("postgres", WORD),
        ("pgbouncer", WORD),
    ):
        environment = {**base, "PGPASSWORD": password, "PGDATABASE": database}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode != 0, database


def test_tls_of_the_container_is_declined_not_broken(site: Any, sessions: Any) -> None:
    """libpq asks for TLS first unless told not to; the pooler's answer comes through."""
    command = ["psql", "-XqAt", "-h", "127.89.1.1", "-U", "orders", "-d", "orders", "-c", "SELECT name FROM who"]
    environment = {"PATH": "/usr/bin", "PGPASSWORD": WORD, "PGSSLMODE": "prefer"}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "db1\n"


def test_no_certificate_no_connection(site: Any, sessions: Any) -> None:
    """Straight to the pooler's proxy, as somebody in the network would."""
    command = ["psql", "-XqAt", "-h", "127.76.1.41", "-p", "6432", "-U", "orders", "-d", "orders", "-c", "SELECT 1"]
    for mode in ("disable", "require"):
        environment = {
            "PATH": "/usr/bin",
            "PGPASSWORD": WORD,
            "PGSSLMODE": mode,
            "PGCONNECT_TIMEOUT": "5",
        }
        assert subprocess.run(command, env=environment, capture_output=True, text=True, check=False).returncode != 0


def test_a_held_session_follows_the_leader_without_an_error(site: Any, sessions: Any) -> None:
    """PAUSE, switchover, Patroni's callback, RESUME by it: the session waits and goes on."""
    session, other = sessions(), sessions()
    assert [where(one) for one in (session, other)] == ["db1", "db1"]
    config, cluster, console = site.config("db1"), site.cluster("db1"), site.console("db1")
    pgbouncer.pause(config, cluster, console, leader="db1", timeout=5, hold=20)
    assert console.databases()["orders"]["paused"] == "1"
    session.send("INSERT INTO ledger VALUES (1) RETURNING (SELECT name FROM who);")
    time.sleep(1.0)
    site.lead("db2")
    site.settle("db2", "db2", "db2")
    done = site.settle("db1", "db2", "db1")
    assert "reloaded" in done
    assert done[-1].startswith("resumed after 1.")
    assert session.receive() == "db2"
    assert where(other) == "db2"
    mark = pgbouncer.read_mark(config, cluster)
    assert mark
    assert 1.0 <= mark.seconds < 3.0
    # A new session finds the new leader by its health check.
    within(lambda: site.fit("writer") == {"db2"})
    assert where(sessions()) == "db2"


def test_a_pause_ends_at_its_deadline(site: Any, sessions: Any) -> None:
    session = sessions()
    where(session)
    config, cluster, console = site.config("db1"), site.cluster("db1"), site.console("db1")
    pgbouncer.pause(config, cluster, console, leader="db1", timeout=0.5, hold=0.5)
    assert site.settle("db1", "db1", "db1") == []
    time.sleep(1.1)
    (line,) = site.settle("db1", "db1", "db1")
    assert line.startswith("resumed after 1.")
    assert where(session) == "db1"


def test_a_long_transaction_stops_no_service(site: Any, sessions: Any) -> None:
    session, other = sessions(), sessions()
    session.run("BEGIN; SELECT name FROM who;")
    config, cluster, console = site.config("db1"), site.cluster("db1"), site.console("db1")
    with pytest.raises(pgbouncer.PgBouncerError, match=r"transactions still ran after 0\.5 s; nothing is paused"):
        pgbouncer.pause(config, cluster, console, leader="db1", timeout=0.5, hold=5)
    assert where(other) == "db1"
    session.run("ROLLBACK;")


def test_pausing_waits_for_transactions_and_resuming_is_idempotent(site: Any, sessions: Any) -> None:
    session = sessions()
    session.run("BEGIN; INSERT INTO ledger VALUES (2);")
    threading.Timer(0.7, lambda: session.send("COMMIT;")).start()
    config, cluster, console = site.config("db1"), site.cluster("db1"), site.console("db1")
    started = time.monotonic()
    pgbouncer.pause(config, cluster, console, leader="db1", timeout=5, hold=5)
    assert time.monotonic() - started > 0.5
    assert session.receive() == ""
    assert pgbouncer.resume(config, cluster, console)[0] is True
    assert pgbouncer.resume(config, cluster, console)[0] is False
    assert where(session) == "db1"


def test_a_reader_leaves_a_lagging_member_without_losing_its_connection(site: Any, sessions: Any) -> None:
    """Within five seconds: the follower takes the next look at the latest a second later."""
    session = sessions(port=5433, database="orders_ro")
    assert where(session) == "db2"
    site.hosts["db2"].rest.fit = False
    follower, patroni = pgbouncer.Follower("db2"), pgbouncer.Patroni(site.config("db2"))
    writer, reader, cut_off = follower.decide(patroni.look(site.cluster("db2")), "db1", "db2")
    assert (writer, reader, cut_off) == ("db1", "db1", False)
    site.settle("db2", writer, reader)
    assert where(session) == "db1"
    # New ones do not even go there.
    within(lambda: not site.fit("reader"))
    assert where(sessions(port=5433, database="orders_ro")) == "db1"
    site.hosts["db2"].rest.fit = True
    writer, reader, _cut_off = follower.decide(patroni.look(site.cluster("db2")), writer, reader)
    site.settle("db2", writer, reader)
    assert where(session) == "db2"


def test_new_sessions_wait_while_nobody_leads(site: Any, sessions: Any) -> None:
    """No member is fit: Envoy takes any, and the pooler there keeps the query until somebody leads."""
    for host in site.hosts.values():
        host.rest.role = "replica"
    site.leader = ""
    within(lambda: not site.fit("writer"))
    session = sessions()
    for name in site.hosts:
        pgbouncer.pause(site.config(name), site.cluster(name), site.console(name), leader="db1", timeout=5, hold=20)
    session.send("SELECT name FROM who;")
    time.sleep(0.5)
    site.lead("db2")
    for name in site.hosts:
        site.settle(name, "db2", name)
    assert session.receive() == "db2"


def test_cut_off_writers_are_sent_away(site: Any, sessions: Any) -> None:
    where(sessions())
    console = site.console("db1")

    def clients() -> int:
        return sum(row["database"] == "orders" for row in console.run("SHOW CLIENTS"))

    assert clients() == 1
    pgbouncer.disconnect(site.config("db1"), site.cluster("db1"), console)
    assert clients() == 0
    assert where(sessions()) == "db1"


def test_patroni_is_asked_here_first_then_elsewhere(site: Any, sessions: Any) -> None:
    patroni, cluster = pgbouncer.Patroni(site.config("db2")), site.cluster("db2")
    assert patroni.look(cluster) == pgbouncer.View("db1", True, True)
    site.hosts["db2"].rest.alive = False
    assert patroni.look(cluster) == pgbouncer.View("db1", None, True)
    site.hosts["db1"].rest.alive = False
    assert patroni.look(cluster) == pgbouncer.View("", None, False)
    site.hosts["db2"].rest.alive = True
    site.hosts["db2"].rest.knows = False
    # Cut off, and no leader itself.
    assert patroni.look(cluster) == pgbouncer.View("", True, False)
    # etcd is lost, Patroni's failsafe mode keeps the leader.
    site.hosts["db2"].rest.role = "primary"
    assert patroni.look(cluster) == pgbouncer.View("db2", True, True)


def test_a_renewed_certificate_is_taken_over(site: Any, sessions: Any) -> None:
    """PgBouncer shows PostgreSQL the new one, on connections that were open too; Patroni's client notices by itself."""
    site.hosts["db1"].psql("orders", "GRANT pg_monitor TO orders;")
    host = site.hosts["db2"]
    session = sessions(host=str(host.socket), port=6432)
    assert where(session) == "db1"
    patroni = pgbouncer.Patroni(site.config("db2"))
    before = patroni.context()
    assert patroni.context() is before
    serial = site.authority.write(
        host.tls, "spiffe://shop.internal/database", ["database.shop.internal"], address=host.address
    )
    key = host.tls / "current/key.pem"
    key.chmod(0o600)
    host.own(key)
    assert patroni.context() is not before
    pgbouncer.renew(site.console("db2"))
    shown = session.run("SELECT client_serial FROM pg_stat_ssl WHERE pid = pg_backend_pid();")
    assert shown == str(serial)


def test_settings_are_reloaded_or_need_a_restart(site: Any, sessions: Any) -> None:
    console = site.console("db1")
    running = console.run("SHOW CONFIG")
    assert pgbouncer.restart_needed({"pool_mode": "session", "listen_port": "6432"}, running) == []
    assert pgbouncer.restart_needed({"listen_port": "7432"}, running) == ["listen_port"]


def test_the_role_asks_for_nothing_that_a_reload_leaves_open(site: Any, sessions: Any) -> None:
    path = site.hosts["db1"].folder / "etc/causeway/pgbouncer/pgbouncer.ini"
    wanted = pgbouncer.parse_settings(path.read_text(encoding="utf-8"))
    assert pgbouncer.restart_needed(wanted, site.console("db1").run("SHOW CONFIG")) == []


def test_the_console_tells_its_errors(site: Any, sessions: Any) -> None:
    with pytest.raises(pgbouncer.PgBouncerError, match="PgBouncer says"):
        site.console("db1").run("RESUME orders")
    with pytest.raises(pgbouncer.PgBouncerError, match="No such file"):
        pgbouncer.Console("/nonexistent/socket").run("SHOW VERSION")


@pytest.fixture
def role_change(site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as it runs on db1."""
    path = Path(__file__).resolve().parents[3] / "roles/pgbouncer/files/role_change.py"
    monkeypatch.setitem(sys.modules, "pgbouncer", pgbouncer)
    spec = importlib.util.spec_from_file_location("role_change", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(pgbouncer, "console_of", lambda config: site.console(config.host))
    return module


def test_the_callback_of_the_new_leader_points_here(site: Any, sessions: Any, role_change: Any) -> None:
    site.settle("db1", "db2", "db1")
    # Patroni's answers are not waited for: who is told to lead, leads.
    site.leader = ""
    role_change.callback(site.config("db1"), "on_role_change", "primary", "orders")
    assert where(sessions()) == "db1"


def test_the_callback_of_the_old_leader_waits_for_the_new_one(site: Any, sessions: Any, role_change: Any) -> None:
    session = sessions()
    assert where(session) == "db1"
    site.hosts["db1"].rest.role = "replica"  # and etcd still names it
    threading.Timer(0.6, lambda: site.lead("db2")).start()
    started = time.monotonic()
    role_change.callback(site.config("db1"), "on_role_change", "replica", "orders")
    assert 0.5 < time.monotonic() - started < 3
    assert where(session) == "db2"


def test_other_callbacks_change_nothing(site: Any, sessions: Any, role_change: Any) -> None:
    role_change.callback(site.config("db1"), "on_stop", "replica", "unknown")
    assert where(sessions()) == "db1"


def test_who_gets_no_callback_follows_all_the_same(site: Any, sessions: Any, role_change: Any, capfd: Any) -> None:
    """db2's pooler holds a session; db1 leads, then db2 does: no change of db1's role is needed to notice."""
    session = sessions(host=str(site.hosts["db1"].socket), port=6432)
    assert where(session) == "db1"
    site.lead("db2")
    config = site.config("db1")
    follower, patroni = pgbouncer.Follower("db1"), pgbouncer.Patroni(config)
    role_change.step(config, config.cluster("orders"), follower, patroni)
    assert where(session) == "db2"
    assert "orders: orders -> db2, orders_ro -> db1\norders: reloaded\n" in capfd.readouterr().out
    role_change.step(config, config.cluster("orders"), follower, patroni)
    assert capfd.readouterr().out == ""


def test_a_lost_reload_is_repeated(site: Any, sessions: Any, role_change: Any) -> None:
    """The file is right, what runs is not: what runs counts."""
    config, cluster = site.config("db1"), site.cluster("db1")
    pgbouncer.file_of(config, cluster).write_text(pgbouncer.databases_text(config, cluster, "db2", "db1"))
    assert where(sessions()) == "db1"
    assert site.settle("db1", "db2", "db1") == ["reloaded"]
    assert site.settle("db1", "db2", "db1") == []


@pytest.fixture
def module(site: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs pgbouncer_admin's main() on db1 as Ansible does."""

    def run(*, check: bool = False, **params: Any) -> dict[str, Any]:
        config = site.hosts["db1"].folder / "etc/causeway/pgbouncer/clusters.json"
        arguments = {"config": str(config), "_ansible_check_mode": check, **params}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            pgbouncer_admin.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_the_module_pauses_and_resumes(site: Any, sessions: Any, module: Any) -> None:
    """Check mode, for real, check mode, for real: changed, changed, ok, ok; for both states."""
    session = sessions()
    assert where(session) == "db1"
    for state, paused in (("paused", True), ("resumed", False)):
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            found = module(name="orders", state=state, check=check)
            assert found.get("changed") is changed, (state, check, found)
            assert found["leader"] == "db1"
        assert module(name="orders")["paused"] is paused
    assert 0 < module(name="orders")["seconds"] < 30
    assert where(session) == "db1"


def test_the_module_resumes_at_the_new_leader(site: Any, sessions: Any, module: Any) -> None:
    session = sessions()
    assert where(session) == "db1"
    module(name="orders", state="paused")
    session.send("SELECT name FROM who;")
    site.lead("db2")
    found = module(name="orders", state="resumed")
    assert (found["leader"], found["paused"], found["changed"]) == ("db2", False, True)
    assert found["actions"][0] == "orders -> db2, orders_ro -> db1"
    assert session.receive() == "db2"


def test_the_module_reloads_and_tells_what_needs_a_restart(site: Any, sessions: Any, module: Any) -> None:
    found = module(state="reloaded")
    assert (found["changed"], found["restart_needed"]) == (True, [])


@pytest.mark.parametrize(
    "params, message",
    [
        ({"state": "paused"}, "missing: name"),
        ({"name": "nosuch"}, "cluster 'nosuch' has no member on db1"),
        ({"name": "orders", "state": "paused", "timeout": 0}, "timeout: 0.0 must be more than 0 seconds"),
    ],
)
def test_the_module_refuses_what_makes_no_sense(
    site: Any, sessions: Any, module: Any, params: dict[str, Any], message: str
) -> None:
    found = module(**params)
    assert found["failed"] is True
    assert message in found["msg"]
