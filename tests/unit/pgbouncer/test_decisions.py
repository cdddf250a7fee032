# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pooler's files and decisions, without anything that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer, pgbouncer_files

OPTIONS = pgbouncer_files.Options()


def database(name: str = "orders", index: int = 10, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "service": name,
        "database": name,
        "index": index,
        "port": 15000 + 10 * index,
        "rest_port": 17000 + 10 * index,
        "max_lag": 1048576,
        "pool": {"size": 20, "reserve": 5, "clients": 400},
        "members": [{"host": f"db{number}", "address": f"10.77.1.4{number}"} for number in (1, 2, 3)],
        **changes,
    }


def databases() -> dict[str, Any]:
    elsewhere = [{"host": "db9", "address": "10.77.1.49"}]
    return {
        "orders": database(),
        "stock": database("stock", 11, pool={"size": 7, "reserve": 0, "clients": 100}),
        "far": database("far", 12, members=elsewhere),
    }


def configuration(state: Path) -> pgbouncer.Config:
    options = pgbouncer_files.Options(state=str(state))
    return pgbouncer.parse_config(json.dumps(pgbouncer_files.clusters(databases(), "db1", options)))


def test_a_host_serves_the_clusters_that_have_a_member_there() -> None:
    assert list(pgbouncer_files.here(databases(), "db1")) == ["orders", "stock"]
    assert list(pgbouncer_files.here(databases(), "db9")) == ["far"]
    text = pgbouncer_files.ini(databases(), "db1", OPTIONS)
    assert "%include /var/lib/causeway/pgbouncer/orders.ini\n%include /var/lib/causeway/pgbouncer/stock.ini\n" in text
    assert "far" not in text
    assert "listen_addr" not in text


def test_each_application_reaches_its_own_database_only() -> None:
    lines = pgbouncer_files.hba(databases(), "db1").splitlines()
    assert "local orders,orders_ro orders scram-sha-256" in lines
    assert "local stock,stock_ro stock scram-sha-256" in lines
    assert not [line for line in lines if "trust" in line or " all " in line or line.startswith("host")]


def test_files_with_passwords_are_private() -> None:
    files = pgbouncer_files.files(databases(), "db1", "a-word", OPTIONS)
    assert {entry["mode"] for entry in files.values()} == {"0640"}
    users = files["etc/causeway/pgbouncer/userlist.txt"]
    assert users["secret"] is True
    assert '"pgbouncer" "a-word"' in users["content"]
    assert not [path for path, entry in files.items() if "a-word" in entry["content"] and not entry.get("secret")]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"settings": {"auth_type": "trust"}}, "auth_type: set by the platform"),
        ({"settings": {"query_wait_timeout": "1\nauth_type = any"}}, "query_wait_timeout: one line"),
        ({"settings": {"a b": 1}}, "letters, digits"),
    ],
)
def test_settings_that_would_open_a_door_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pgbouncer.PgBouncerError, match=message):
        pgbouncer_files.ini(databases(), "db1", pgbouncer_files.Options(**changes))


def test_settings_win_over_defaults() -> None:
    options = pgbouncer_files.Options(settings={"query_wait_timeout": 30, "server_idle_timeout": 60})
    text = pgbouncer_files.ini(databases(), "db1", options)
    assert "query_wait_timeout = 30\n" in text
    assert "query_wait_timeout = 60\n" not in text


@pytest.mark.parametrize("password", ["", 'a"b', "a\nb"])
def test_a_password_that_would_break_the_file_is_refused(password: str) -> None:
    with pytest.raises(pgbouncer.PgBouncerError, match="pgbouncer_password"):
        pgbouncer_files.files(databases(), "db1", password, OPTIONS)


def test_two_clusters_cannot_offer_the_same_database() -> None:
    both = {"orders": database(), "other": database("other", 11, database="orders_ro")}
    with pytest.raises(pgbouncer.PgBouncerError, match="orders and other both offer orders_ro"):
        pgbouncer_files.here(both, "db1")


def test_the_leader_here_is_reached_by_socket_elsewhere_by_its_address(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    cluster = config.cluster("orders")
    text = pgbouncer.databases_text(config, cluster, "db2", "db1")
    writer, reader = text.splitlines()[2:]
    assert writer.startswith("orders = host=10.77.1.42 port=15100 dbname=orders ")
    assert reader.startswith("orders_ro = host=/run/postgresql port=15100 dbname=orders ")
    for option in ("pool_size=20", "reserve_pool_size=5", "max_db_client_connections=400", "auth_dbname=orders_ro"):
        assert f" {option}" in writer
    assert pgbouncer.chosen(text, config, cluster) == ("db2", "db1")
    assert pgbouncer.chosen("", config, cluster) == ("db1", "db1")


def test_files_are_there_before_the_first_start_and_keep_their_choice(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    assert pgbouncer.prepare(config) == ["orders", "stock"]
    assert pgbouncer.prepare(config) == []
    path = tmp_path / "orders.ini"
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_text(pgbouncer.databases_text(config, config.cluster("orders"), "db3", "db1").replace("=20", "=19"))
    assert pgbouncer.prepare(config) == ["orders"]
    assert pgbouncer.chosen(path.read_text(), config, config.cluster("orders")) == ("db3", "db1")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    config, victim = configuration(tmp_path), tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".orders.ini.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        pgbouncer.prepare(config)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("text", ["", "[]", '{"clusters": 1}', '{"clusters": {"a": {"unknown": 1}}}'])
def test_a_broken_configuration_is_told(text: str) -> None:
    with pytest.raises(pgbouncer.PgBouncerError, match="configuration of the poolers is wrong"):
        pgbouncer.parse_config(text)


def test_an_unknown_cluster_is_told(tmp_path: Path) -> None:
    with pytest.raises(pgbouncer.PgBouncerError, match=r"'far' has no member on db1 \(there are: orders, stock\)"):
        configuration(tmp_path).cluster("far")


@pytest.mark.parametrize(
    "members, leader",
    [
        ([], ""),
        ([{"role": "leader", "state": "running", "host": "10.77.1.42"}], "db2"),
        ([{"role": "leader", "state": "starting", "host": "10.77.1.42"}], ""),
        ([{"role": "standby_leader", "state": "streaming", "host": "10.77.1.43"}], "db3"),
        ([{"role": "sync_standby", "state": "streaming", "host": "10.77.1.42"}], ""),
        ([{"role": "leader", "state": "running", "host": "10.99.9.9"}], ""),
    ],
)
def test_only_a_running_leader_leads(tmp_path: Path, members: list[dict[str, str]], leader: str) -> None:
    cluster = configuration(tmp_path).cluster("orders")
    assert pgbouncer.leader_of({"members": members}, cluster) == leader


View = pgbouncer.View


@pytest.mark.parametrize(
    "views, expected",
    [
        ([View("db2", True, True)], ("db2", "db1", False)),
        # lagging: told at once
        ([View("db2", False, True)], ("db2", "db2", False)),
        # lagging while nobody leads: nobody else is better
        ([View("", False, True)], ("db3", "db1", False)),
        # a silent Patroni may be restarting
        ([View("db2", None, True)] * 4, ("db2", "db1", False)),
        ([View("db2", None, True)] * 5, ("db2", "db2", False)),
        # the leader itself is always read from
        ([View("db1", False, True)], ("db1", "db1", False)),
        # cut off: writers are sent away once, not every second
        ([View("", True, False)] * 4, ("db3", "db1", False)),
        ([View("", True, False)] * 5, ("db3", "db1", True)),
        ([View("", True, False)] * 6, ("db3", "db1", False)),
    ],
)
def test_what_follows_from_looks(views: list[pgbouncer.View], expected: tuple[str, str, bool]) -> None:
    follower = pgbouncer.Follower("db1")
    found = ("", "", False)
    for view in views:
        found = follower.decide(view, "db3", "db1")
    assert found == expected


def test_settings_are_read_back() -> None:
    text = pgbouncer_files.ini(databases(), "db1", OPTIONS)
    assert pgbouncer.parse_settings(text) == pgbouncer_files.settings(databases(), "db1", OPTIONS)
