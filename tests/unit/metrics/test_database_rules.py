"""Recording rules of databases, evaluated by the real promtool over made-up samples with the exporters' own names."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import prometheus

SETTINGS = prometheus.Settings(platform="shop", domain="shop.internal", host="obs1", address="10.77.1.41")
MINUTES = 90  # of samples; rules are asked at the end
Evaluate = Callable[[Mapping[str, str], Mapping[str, "float | None"]], None]

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Series as promtool writes them; samples by the name and labels of the rule, at the end of the series."""

    def run(series: Mapping[str, str], wanted: Mapping[str, float | None]) -> None:
        names = {name.partition("{")[0] for name in wanted}
        tests = {
            "rule_files": ["rules.yml"],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": name, "values": values if "x" in values else f"{values}+0x{MINUTES}"}
                        for name, values in series.items()
                    ],
                    "promql_expr_test": [
                        {
                            "expr": name,
                            "eval_time": f"{MINUTES}m",
                            "exp_samples": [
                                {"labels": labels, "value": value}
                                for labels, value in wanted.items()
                                if labels.partition("{")[0] == name and value is not None
                            ],
                        }
                        for name in sorted(names)
                    ],
                }
            ],
        }
        (tmp_path / "rules.yml").write_text(
            json.dumps(prometheus.rules(prometheus.Settings(**{**SETTINGS.__dict__, "window": "5m"})))
        )
        (tmp_path / "tests.yml").write_text(json.dumps(tests))
        done = subprocess.run(
            ["promtool", "test", "rules", str(tmp_path / "tests.yml")], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def members(**roles: str) -> dict[str, str]:
    """What Patroni says of each member: `leader`, `replica`, or `cut` (a replica that does not stream)."""
    series = {}
    for host, role in roles.items():
        labels = f'{{cluster="orders",host="{host}",scope="orders",name="{host}"}}'
        series[f"patroni_primary{labels}"] = str(int(role == "leader"))
        series[f"patroni_replica{labels}"] = str(int(role != "leader"))
        if role != "leader":
            series[f"patroni_postgres_streaming{labels}"] = str(int(role == "replica"))
    return series


@pytest.mark.parametrize(
    ("roles", "count"),
    [
        ({"db1": "leader", "db2": "replica"}, 1),
        ({"db1": "replica", "db2": "replica"}, 0),
        ({"db1": "leader", "db2": "leader"}, 2),
        ({}, 0),
    ],
)
def test_leaders(evaluate: Evaluate, roles: dict[str, str], count: float) -> None:
    up = {f'up{{job="patroni",cluster="orders",host="{host}"}}': str(int(bool(roles))) for host in ("db1", "db2")}
    evaluate({**up, **members(**roles)}, {'cluster:database_leaders:count{cluster="orders"}': count})


def test_lag_in_bytes_is_the_leaders_view_or_for_a_member_that_is_cut_off_its_last_position(evaluate: Evaluate) -> None:
    name = "cluster_host:database_replication_lag:bytes"
    seen = 'pg_stat_replication_pg_wal_lsn_diff{cluster="orders",host="db1",slot_name="7",state="streaming"'
    at = 'cluster="orders",scope="orders"'
    evaluate(
        {
            **members(db1="leader", db2="replica", db3="cut"),
            f'{seen},application_name="db2"}}': "4096",
            f'{seen},application_name="pg_basebackup"}}': "99999",
            f'patroni_xlog_location{{{at},host="db1",name="db1"}}': "1000000",
            f'patroni_xlog_location{{{at},host="db2",name="db2"}}': "0",
            f'patroni_xlog_replayed_location{{{at},host="db2",name="db2"}}': "900000",
            f'patroni_xlog_replayed_location{{{at},host="db3",name="db3"}}': "250000",
            f'patroni_xlog_replayed_location{{{at},host="db1",name="db1"}}': "0",
        },
        {f'{name}{{cluster="orders",host="db2"}}': 4096, f'{name}{{cluster="orders",host="db3"}}': 750000},
    )


def test_without_a_leader_there_is_no_lag_in_bytes(evaluate: Evaluate) -> None:
    evaluate(
        {
            **members(db2="replica"),
            'patroni_xlog_location{cluster="orders",host="db2"}': "0",
            'patroni_xlog_replayed_location{cluster="orders",host="db2"}': "900000",
        },
        {"cluster_host:database_replication_lag:bytes": None},
    )


def test_lag_in_seconds_counts_for_a_member_that_is_cut_off_since_its_last_row(evaluate: Evaluate) -> None:
    name = "cluster_host:database_replication_lag:seconds"
    evaluate(
        {
            **members(db1="leader", db2="replica", db3="cut"),
            'pg_replication_lag_seconds{cluster="orders",host="db1"}': "0",
            'pg_replication_lag_seconds{cluster="orders",host="db2"}': "0.5",
            # PostgreSQL says 0 here, because it has replayed all that it got
            'pg_replication_lag_seconds{cluster="orders",host="db3"}': "0",
            'patroni_xlog_replayed_timestamp{cluster="orders",host="db3"}': str(MINUTES * 60 - 120),
        },
        {f'{name}{{cluster="orders",host="db2"}}': 0.5, f'{name}{{cluster="orders",host="db3"}}': 120},
    )


def test_cache_connections_and_longest_transaction(evaluate: Evaluate) -> None:
    at = 'cluster="orders",host="db1"'
    blocks = f'{at},datid="5",datname="orders"'
    evaluate(
        {
            f"pg_stat_database_blks_hit{{{blocks}}}": f"0+750x{MINUTES}",
            f"pg_stat_database_blks_read{{{blocks}}}": f"0+250x{MINUTES}",
            f'pg_stat_activity_count{{{at},datname="orders",state="active"}}': "30",
            f'pg_stat_activity_count{{{at},datname="orders",state="idle"}}': "20",
            f'pg_settings_max_connections{{{at},server="/run/postgresql:15100"}}': "200",
            f"pg_long_running_transactions_oldest_timestamp_seconds{{{at}}}": "42",
        },
        {
            f"cluster_host:database_cache_hits:ratio5m{{{at}}}": 0.75,
            f"cluster_host:database_connections:ratio{{{at}}}": 0.25,
            f"cluster_host:database_longest_transaction:seconds{{{at}}}": 42,
        },
    )


def test_what_only_the_leader_knows_is_not_taken_from_a_replica(evaluate: Evaluate) -> None:
    series = members(db1="leader", db2="replica")
    for host, factor in (("db1", 1), ("db2", 50)):
        at = f'cluster="orders",host="{host}"'
        for table, dead, live in (("big", 5000, 15000), ("small", 90, 10)):
            row = f'{at},datname="orders",schemaname="public",relname="{table}"'
            series[f"pg_stat_user_tables_n_dead_tup{{{row}}}"] = str(dead * factor)
            series[f"pg_stat_user_tables_n_live_tup{{{row}}}"] = str(live)
        series[f"pg_stat_archiver_last_archive_age{{{at}}}"] = str(30 * factor)
        series[f"pg_stat_archiver_failed_count{{{at}}}"] = f"0+{factor}x{MINUTES}"
        series[f"pg_stat_checkpointer_num_timed_total{{{at}}}"] = f"0+{3 * factor}x{MINUTES}"
        series[f"pg_stat_checkpointer_num_requested_total{{{at}}}"] = f"0+{factor}x{MINUTES}"
    evaluate(
        series,
        {
            'cluster:database_dead_rows:ratio{cluster="orders"}': 5090 / 20100,
            'cluster:database_dead_rows_worst_table:ratio{cluster="orders"}': 0.25,
            'cluster:database_archive_age:seconds{cluster="orders"}': 30,
            'cluster:database_archive_failures:increase1h{cluster="orders"}': 60,
            'cluster:database_checkpoints:increase1h{cluster="orders"}': 240,
            'cluster:database_checkpoints_requested:ratio1h{cluster="orders"}': 0.25,
        },
    )


def test_the_pools(evaluate: Evaluate) -> None:
    at = 'host="db1",database="orders"'
    evaluate(
        {
            f'pgbouncer_pools_client_waiting_connections{{{at},user="orders"}}': "7",
            f'pgbouncer_pools_client_waiting_connections{{{at},user="monitor"}}': "1",
            'pgbouncer_pools_client_waiting_connections{host="db1",database="pgbouncer",user="pgbouncer"}': "1",
            f'pgbouncer_pools_client_maxwait_seconds{{{at},user="orders"}}': "0.75",
            f"pgbouncer_stats_client_wait_seconds_total{{{at}}}": f"0+30x{MINUTES}",
            f'pgbouncer_pools_server_active_connections{{{at},user="orders"}}': "15",
            'pgbouncer_databases_pool_size{host="db1",name="orders",database="orders",port="15100"}': "20",
        },
        {
            f"host_database:pool_clients_waiting:sum{{{at}}}": 8,
            f"host_database:pool_wait:max_seconds{{{at}}}": 0.75,
            f"host_database:pool_wait_seconds:rate5m{{{at}}}": 0.5,
            f"host_database:pool_servers:ratio{{{at}}}": 0.75,
        },
    )


def test_the_age_of_backups_and_of_their_tests(evaluate: Evaluate) -> None:
    at, now = 'cluster="orders",host="backup1",job="node"', MINUTES * 60
    good = "causeway_backup_last_success_timestamp_seconds"
    evaluate(
        {
            f'{good}{{{at},kind="full"}}': str(now - 5000),
            f'{good}{{{at},kind="incremental"}}': str(now - 600),
            f'{good}{{{at},kind="verify"}}': str(now - 70),
            f'{good}{{{at},kind="restore_test"}}': str(now - 3600),
            f'causeway_backup_failed{{{at},kind="full"}}': "1",
            f'causeway_backup_failed{{{at},kind="verify"}}': "0",
        },
        {
            'cluster:database_backup_age:seconds{cluster="orders"}': 600,
            'cluster:database_verify_age:seconds{cluster="orders"}': 70,
            'cluster:database_restore_test_age:seconds{cluster="orders"}': 3600,
            'cluster:database_backup_failures:sum{cluster="orders"}': 1,
        },
    )
