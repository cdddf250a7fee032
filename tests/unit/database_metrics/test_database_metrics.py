from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import database_metrics


def cluster(index: int, hosts: list[str], database: str) -> dict[str, Any]:
    members = [{"host": host, "address": f"10.0.0.{number}"} for number, host in enumerate(hosts, 1)]
    return {
        "service": database,
        "database": database,
        "index": index,
        "port": 15000 + 10 * index,
        "rest_port": 17000 + 10 * index,
        "exporter_port": 19000 + 10 * index,
        "members": members,
    }


DATABASES = {"orders": cluster(10, ["db1", "db2"], "orders"), "stock-keeper": cluster(11, ["db1"], "stock_keeper")}


def test_a_host_has_an_exporter_for_each_of_its_members_and_one_for_the_pooler() -> None:
    found = [(target["job"], target["address"]) for target in database_metrics.targets(DATABASES, "db1")]
    assert found == [
        ("postgresql", "10.0.0.1:19100"),
        ("patroni", "10.0.0.1:17100"),
        ("postgresql", "10.0.0.1:19110"),
        ("patroni", "10.0.0.1:17110"),
        ("pgbouncer", "10.0.0.1:9104"),
    ]
    labels = [target["labels"] for target in database_metrics.targets(DATABASES, "db2")]
    assert labels == [{"cluster": "orders", "service": "orders"}] * 2 + [{}]
    assert database_metrics.targets(DATABASES, "app1") == []


def test_files_of_a_host() -> None:
    files = database_metrics.files(DATABASES, "db1", "/run/postgresql", {"sockets": "/run/postgresql", "port": 6432})
    folder = "etc/causeway/database_metrics"
    assert sorted(files) == [
        "etc/causeway/agent/targets.d/database-metrics.json",
        f"{folder}/-pgbouncer.conf",
        f"{folder}/-pgbouncer.pgpass",
        f"{folder}/orders.env",
        f"{folder}/orders.pgpass",
        f"{folder}/stock-keeper.env",
        f"{folder}/stock-keeper.pgpass",
    ]
    assert files[f"{folder}/stock-keeper.env"]["content"].splitlines()[1:] == [
        'DATA_SOURCE_NAME="postgres://monitor@/stock_keeper?host=/run/postgresql&port=15110&sslmode=disable"',
        'LISTEN="10.0.0.1:19110"',
    ]
    assert "pgbouncer?host=/run/postgresql&port=6432" in files[f"{folder}/-pgbouncer.conf"]["content"]
    assert files[f"{folder}/-pgbouncer.pgpass"]["vars"] == {"database_metrics_cluster": "pgbouncer"}


def test_a_host_without_members_announces_nothing() -> None:
    files = database_metrics.files(DATABASES, "app1", "/run/postgresql", {"sockets": "/s", "port": 6432})
    assert {path: json.loads(one["content"]) for path, one in files.items()} == {database_metrics.TARGETS: []}


def test_what_is_missing_is_named() -> None:
    broken = {"orders": {name: value for name, value in DATABASES["orders"].items() if name != "rest_port"}}
    with pytest.raises(database_metrics.DatabaseMetricsError, match=r"'orders': .*rest_port"):
        database_metrics.clusters(broken, "db1")
