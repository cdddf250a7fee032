# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' configuration and recording rules, derived from the description."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DURATION = re.compile(r"^[1-9][0-9]*(ms|s|m|h|d|w|y)$")
# Prometheus' documentation, "Querying basics", section "Time durations": units once each, the longest first.
_UNITS = {"y": 31536000.0, "w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PARTS = re.compile("".join(rf"(?:([0-9]+){unit})?" for unit in _UNITS) + r"\Z")
FILE_JOBS = ("node", "agent", "etcd")  # their servers show the host's certificate, which has the host's address
SERVICE_SAMPLES = 5000  # of one instance and scrape; with more the whole scrape is refused
DATABASE_JOBS = ("patroni", "pgbouncer", "postgresql")  # their servers show the identity `database`
# What rules and dashboards read of a database: no Go runtime, of 350 settings the four that limit something, and of
# tables what tells bloat and scans.
POSTGRESQL_KEEP = (
    "pg_([^s]|s[^et]).*|pg_stat_([^u]|us[^e]).*|pg_static"
    "|pg_settings_(max_connections|superuser_reserved_connections|max_wal_size_bytes|shared_buffers_bytes)"
    "|pg_stat_user_tables_(n_dead_tup|n_live_tup|n_mod_since_analyze|seq_scan|seq_tup_read|idx_scan|size_bytes|last_autovacuum)"
)
# SeaweedFS offers the metrics of all its processes in each of them: every one's own are kept, without histograms.
OBJECT_STORAGE_KEEP = (
    "master;SeaweedFS_master_.+|volume;SeaweedFS_volumeServer_.+|filer;SeaweedFS_filer.+|s3;SeaweedFS_s3_.+"
)
# What the rules and later dashboards read; a proxy has thousands more.
ENVOY_KEEP = (
    "envoy_cluster_upstream_rq_(xx|time_bucket|time_count|time_sum|total|active|timeout|retry.*|pending_overflow)"
    "|envoy_cluster_(membership_.*|outlier_detection_ejections_(active|enforced_total)|circuit_breakers_default_.*)"
    "|envoy_cluster_upstream_cx_(active|connect_fail|total)"
    "|envoy_http_downstream_(rq_xx|rq_active|rq_total|cx_active|cx_total|cx_ssl_active)"
    "|envoy_http_(rbac.*|local_rate_limit.*)|envoy_.*rbac_(allowed|denied)|envoy_.*local_rate_limit_rate_limited"
    "|envoy_server_(live|state|uptime|memory_allocated|days_until_first_cert_expiring)|envoy_listener_ssl_.*"
)


class PrometheusError(Exception):
    """What is wrong with the settings, in one sentence."""


@dataclass(frozen=True)
class Settings:
    """Everything outside the description that the configuration depends on."""

    platform: str
    domain: str
    host: str
    address: str
    port: int = 9090
    tls: str = "/etc/causeway/tls/metrics/current"
    file_sd: str = "/var/lib/causeway/file_sd"
    interval: str = "15s"
    timeout: str = "10s"
    window: str = "1m"
    envoy_keep: str = ENVOY_KEEP


def check_duration(value: str, where: str) -> str:
    """A duration as Prometheus writes it; raises PrometheusError."""
    if not DURATION.match(value):
        raise PrometheusError(f"{where}: {value!r} is not a duration such as '15s' or '2h'")
    return value


def duration_seconds(value: str, where: str) -> float:
    """Seconds of a duration as Prometheus writes it; raises PrometheusError.

    >>> duration_seconds("1m30s", "metrics_scrape_interval")
    90.0
    """
    found = _PARTS.match(value)
    total = sum(float(n or 0) * unit for n, unit in zip(found.groups(), _UNITS.values())) if found else 0.0
    if total <= 0:
        raise PrometheusError(f"{where}: {value!r} is not a duration above zero such as '15s', '1m30s' or '500ms'")
    return round(total, 3)


def _tls(settings: Settings, server_name: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {
        "ca_file": f"{settings.tls}/ca.pem",
        "cert_file": f"{settings.tls}/cert.pem",
        "key_file": f"{settings.tls}/key.pem",
        "min_version": "TLS13",
    }
    if server_name:
        result["server_name"] = server_name
    return result


def _job(settings: Settings, name: str, source: str, server_name: str = "") -> dict[str, Any]:
    return {
        "job_name": name,
        "scheme": "https",
        "tls_config": _tls(settings, server_name),
        "file_sd_configs": [{"files": [f"{settings.file_sd}/{source}.json"], "refresh_interval": "1m"}],
    }


def envoy_labels() -> list[dict[str, Any]]:
    """Labels service, slot, pool and direction out of the names of clusters and proxies."""
    inbound = r"sidecar-(.+);inbound_(?:.+_)?(\d+)"
    outbound = r"(.+)_(stable|candidate|baseline)"
    cluster = ["envoy_cluster_name"]
    both = ["proxy", "envoy_cluster_name"]

    def label(source: list[str], regex: str, target: str, value: str) -> dict[str, Any]:
        return {"source_labels": source, "regex": regex, "target_label": target, "replacement": value}

    return [
        label(both, inbound, "service", "$1"),
        label(both, inbound, "slot", "$2"),
        label(both, inbound, "direction", "inbound"),
        label(cluster, outbound, "service", "$1"),
        label(cluster, outbound, "pool", "$2"),
        label(cluster, outbound, "direction", "outbound"),
    ]


def envoy_job(settings: Settings, proxy: str, server_name: str) -> dict[str, Any]:
    """One job per kind of proxy, because each shows a certificate of another name; all end up as job `envoy`."""
    return {
        **_job(settings, f"envoy-{proxy}", "envoy", server_name),
        "metrics_path": "/stats/prometheus",
        "relabel_configs": [
            {"source_labels": ["proxy"], "regex": re.escape(proxy).replace("\\-", "-"), "action": "keep"},
            {"target_label": "job", "replacement": "envoy"},
        ],
        "metric_relabel_configs": [
            {"source_labels": ["__name__"], "regex": settings.envoy_keep, "action": "keep"},
            *envoy_labels(),
        ],
    }


def service_job(settings: Settings, service: str, path: str) -> dict[str, Any]:
    """The metrics of a service's own processes, through their sidecars; all of them appear as job `service`."""
    return {
        **_job(settings, f"service-{service}", "service", f"{service}.{settings.domain}"),
        "metrics_path": path,
        # A service that makes a label of every user's name must not take Prometheus down with it.
        "sample_limit": SERVICE_SAMPLES,
        "relabel_configs": [
            {"source_labels": ["service"], "regex": service, "action": "keep"},
            {"target_label": "job", "replacement": "service"},
        ],
    }


def database_job(settings: Settings, name: str, server_name: str) -> dict[str, Any]:
    """The metrics of PostgreSQL, Patroni or PgBouncer on the database hosts."""
    job = _job(settings, name, name, server_name)
    if name == "postgresql":
        job["metric_relabel_configs"] = [
            {"source_labels": ["__name__"], "regex": POSTGRESQL_KEEP, "action": "keep"},
            {"source_labels": ["datname"], "regex": "template[01]", "action": "drop"},
        ]
    if name == "pgbouncer":
        job["metric_relabel_configs"] = [{"source_labels": ["__name__"], "regex": "pgbouncer_.*", "action": "keep"}]
    return job


def object_storage_job(settings: Settings, server_name: str) -> dict[str, Any]:
    """SeaweedFS's processes, each under a path of its own behind the proxy ``object-storage`` of its host."""
    return {
        **_job(settings, "object_storage", "object_storage", server_name),
        "relabel_configs": [{"source_labels": ["process"], "target_label": "__metrics_path__", "replacement": "/$1"}],
        "metric_relabel_configs": [
            {"source_labels": ["process", "__name__"], "regex": OBJECT_STORAGE_KEEP, "action": "keep"},
            {"source_labels": ["__name__"], "regex": ".+_bucket", "action": "drop"},
        ],
    }


def configuration(
    services: Sequence[str], settings: Settings, paths: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """prometheus.yml. `services`: names of all services; `paths`: where those that have metrics of their own offer
    them. Raises PrometheusError.
    """
    check_duration(settings.interval, "metrics_scrape_interval")
    check_duration(settings.timeout, "metrics_scrape_timeout")
    own = {
        "job_name": "prometheus",
        "scheme": "https",
        "tls_config": _tls(settings),
        "static_configs": [{"targets": [f"{settings.address}:{settings.port}"], "labels": {"host": settings.host}}],
    }
    database, storage = f"database.{settings.domain}", f"object-storage.{settings.domain}"
    return {
        "global": {
            "scrape_interval": settings.interval,
            "scrape_timeout": settings.timeout,
            "evaluation_interval": settings.interval,
            "external_labels": {"platform": settings.platform, "prometheus": settings.host},
        },
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [
            own,
            *(_job(settings, name, name) for name in FILE_JOBS),
            envoy_job(settings, "gateway", f"gateway.{settings.domain}"),
            envoy_job(settings, "database", database),
            *(envoy_job(settings, f"sidecar-{name}", f"{name}.{settings.domain}") for name in sorted(services)),
            *(service_job(settings, name, path) for name, path in sorted((paths or {}).items())),
            *(database_job(settings, name, database) for name in DATABASE_JOBS),
            envoy_job(settings, "object-storage", storage),
            object_storage_job(settings, storage),
        ],
    }


def _versioned(expression: str, *keep: str) -> str:
    """Sum by service and version of a per-slot expression, the version joined from what the agents say they run."""
    by = ", ".join(("service", "version", "pool", *keep))
    return (
        f"sum by ({by}) ({expression} * on (host, service, slot) group_left (version, pool) "
        "max by (host, service, slot, version, pool) (causeway_instance_info))"
    )


def database_rules(window: str) -> list[tuple[str, str]]:
    """Names and expressions of the recording rules of databases, labels `cluster` and `host` or a part of them.

    Bytes, seconds, ratios from 0 to 1. What only the leader knows is taken from the member that leads now.
    """
    member = "cluster, host"

    def leads(expression: str) -> str:
        return f"({expression}) and on ({member}) (patroni_primary == 1)"

    def per_member(expression: str) -> str:
        return f"max by ({member}) ({expression})"

    replica = f"on ({member}) (patroni_replica == 1)"
    # What the leader sees of those that stream, by their name; all its numbers are of one moment.
    streamed = (
        "max by (cluster, host) (label_replace("
        'pg_stat_replication_pg_wal_lsn_diff{application_name!~"pg_basebackup|pg_rewind"}, '
        '"host", "$1", "application_name", "(.+)"))'
    )
    # A member that is cut off is not among them: the distance of its last position to the leader's.
    positions = (
        "clamp_min((max by (cluster) (patroni_xlog_location) > 0)"
        f" - on (cluster) group_right () max by ({member}) (patroni_xlog_replayed_location and {replica}), 0)"
    )
    streaming = f"on ({member}) (patroni_postgres_streaming == 1)"
    # PostgreSQL calls a member without new WAL up to date, also when nothing can reach it.
    seconds = (
        f"{per_member(f'pg_replication_lag_seconds and {replica} and {streaming}')}"
        f" or {per_member(f'(time() - (patroni_xlog_replayed_timestamp > 0)) and {replica} unless {streaming}')}"
    )
    hits, reads = (f"sum by ({member}) (rate(pg_stat_database_blks_{what}[{window}]))" for what in ("hit", "read"))
    dead, live = (leads(f"pg_stat_user_tables_n_{what}_tup") for what in ("dead", "live"))
    table = "cluster, datname, schemaname, relname"
    rows = f"sum by ({table}) ({dead}) + sum by ({table}) ({live})"
    # A counter that PostgreSQL 17 has of its own, and where it was before.
    timed, requested = (
        f"sum by (cluster) ({leads(f'increase({new}[1h]) or increase({old}[1h])')})"
        for new, old in (
            ("pg_stat_checkpointer_num_timed_total", "pg_stat_bgwriter_checkpoints_timed_total"),
            ("pg_stat_checkpointer_num_requested_total", "pg_stat_bgwriter_checkpoints_req_total"),
        )
    )
    pool = "host, database"
    users = 'database!="pgbouncer"'
    return [
        # 0 also when no member answers: then only their targets tell that there is a cluster
        (
            "cluster:database_leaders:count",
            'sum by (cluster) (patroni_primary) or sum by (cluster) (0 * up{job="patroni"})',
        ),
        ("cluster_host:database_replication_lag:bytes", f"({streamed} and {replica}) or on ({member}) {positions}"),
        ("cluster_host:database_replication_lag:seconds", seconds),
        ("cluster_host:database_cache_hits:ratio" + window, f"{hits} / (({hits} + {reads}) > 0)"),
        ("cluster:database_dead_rows:ratio", f"sum by (cluster) ({dead}) / ((sum by (cluster) ({rows})) > 0)"),
        # of tables that have enough rows to be worth a look
        (
            "cluster:database_dead_rows_worst_table:ratio",
            f"max by (cluster) (sum by ({table}) ({dead}) / (({rows}) > 10000))",
        ),
        (
            "cluster_host:database_longest_transaction:seconds",
            per_member("pg_long_running_transactions_oldest_timestamp_seconds"),
        ),
        (
            "cluster_host:database_connections:ratio",
            f"sum by ({member}) (pg_stat_activity_count) / {per_member('pg_settings_max_connections')}",
        ),
        ("cluster:database_archive_age:seconds", f"max by (cluster) ({leads('pg_stat_archiver_last_archive_age')})"),
        (
            "cluster:database_archive_failures:increase1h",
            f"sum by (cluster) ({leads('increase(pg_stat_archiver_failed_count[1h])')})",
        ),
        *(
            (
                f"cluster:database_{what}_age:seconds",
                f"time() - max by (cluster) (causeway_backup_last_success_timestamp_seconds{{kind{kinds}}})",
            )
            for what, kinds in (
                ("backup", '!~"verify|restore.test"'),
                ("verify", '="verify"'),
                ("restore_test", '=~"restore.test"'),
            )
        ),
        # kinds of backups and tests whose last run failed
        ("cluster:database_backup_failures:sum", "sum by (cluster) (causeway_backup_failed)"),
        ("cluster:database_checkpoints:increase1h", f"{timed} + {requested}"),
        ("cluster:database_checkpoints_requested:ratio1h", f"{requested} / (({timed} + {requested}) > 0)"),
        (
            "host_database:pool_clients_waiting:sum",
            f"sum by ({pool}) (pgbouncer_pools_client_waiting_connections{{{users}}})",
        ),
        ("host_database:pool_wait:max_seconds", f"max by ({pool}) (pgbouncer_pools_client_maxwait_seconds{{{users}}})"),
        (
            f"host_database:pool_wait_seconds:rate{window}",
            f"sum by ({pool}) (rate(pgbouncer_stats_client_wait_seconds_total{{{users}}}[{window}]))",
        ),
        (
            "host_database:pool_servers:ratio",
            f"sum by ({pool}) (pgbouncer_pools_server_active_connections{{{users}}})"
            f" / (max by (host, database) (label_replace(pgbouncer_databases_pool_size, "
            '"database", "$1", "name", "(.+)")) > 0)',
        ),
    ]


def object_storage_rules(window: str) -> list[tuple[str, str]]:
    """Recording rules of the object storage. A ratio is from 0 to 1."""
    requests = 'SeaweedFS_s3_request_total{process="s3"'
    return [
        # 1; 0 or 2 is an alarm
        ("object_storage:leaders:count", 'sum(SeaweedFS_master_is_leader{process="master"})'),
        (
            "host:object_storage_disk_used:ratio",
            'max by (host) (SeaweedFS_volumeServer_resource{type="used"} / ignoring (type)'
            ' (SeaweedFS_volumeServer_resource{type="all"} > 0))',
        ),
        (f"host_bucket:object_storage_requests:rate{window}", f"sum by (host, bucket) (rate({requests}}}[{window}]))"),
        (
            f"host_bucket:object_storage_errors:rate{window}",
            f'sum by (host, bucket) (rate({requests}, code=~"5.."}}[{window}]))',
        ),
    ]


def rules(settings: Settings) -> dict[str, Any]:
    """Recording rules: requests per second, share of errors (5xx) and latency in seconds; the state of databases.

    `service_version:*` is seen by the services' own sidecars, `service_pool:*` by the gateways.
    """
    window = check_duration(settings.window, "metrics_window")
    slot = "host, service, slot"
    inbound = '{direction="inbound"}'
    gateway = '{direction="outbound", proxy="gateway"}'
    failed_in = '{direction="inbound", envoy_response_code_class="5"}'
    failed_out = '{direction="outbound", proxy="gateway", envoy_response_code_class="5"}'
    count, buckets = "envoy_cluster_upstream_rq_xx", "envoy_cluster_upstream_rq_time_bucket"

    def rate(metric: str, selector: str, by: str) -> str:
        return f"sum by ({by}) (rate({metric}{selector}[{window}]))"

    version_total = f"service_version:requests:rate{window}"
    version_failed = _versioned(rate(count, failed_in, slot))
    pool_total = f"service_pool:gateway_requests:rate{window}"
    pool_failed = rate(count, failed_out, "service, pool")
    seconds = {
        "service_version:latency_seconds": _versioned(rate(buckets, inbound, f"{slot}, le"), "le"),
        "service_pool:gateway_latency_seconds": rate(buckets, gateway, "service, pool, le"),
    }
    recorded = [
        (version_total, _versioned(rate(count, inbound, slot))),
        # a class of answers that never came has no series: then the share is zero, not absent
        (f"service_version:errors:ratio{window}", f"({version_failed} or {version_total} * 0) / ({version_total} > 0)"),
        (pool_total, rate(count, gateway, "service, pool")),
        (f"service_pool:gateway_errors:ratio{window}", f"({pool_failed} or {pool_total} * 0) / ({pool_total} > 0)"),
        *(
            # Envoy counts milliseconds
            (f"{name}:p{int(share * 100)}_{window}", f"histogram_quantile({share}, {expression}) / 1000")
            for name, expression in seconds.items()
            for share in (0.5, 0.9, 0.99)
        ),
        ("service_version:instances:healthy", _versioned(f"max by ({slot}) (causeway_instance_healthy)")),
        ("job:up:ratio", "avg by (job) (up)"),
    ]
    groups = {
        "causeway_services": recorded,
        "causeway_databases": database_rules(window),
        "causeway_object_storage": object_storage_rules(window),
    }
    return {
        "groups": [
            {"name": group, "rules": [{"record": name, "expr": expr} for name, expr in pairs]}
            for group, pairs in groups.items()
        ]
    }


def web_configuration(tls: str, allowed: Sequence[str]) -> dict[str, Any]:
    """web.yml of Prometheus and its exporters: TLS 1.3, a client certificate with one of the `allowed` names."""
    if not allowed:
        raise PrometheusError("allowed: at least one name of a client certificate is needed")
    return {
        "tls_server_config": {
            "cert_file": f"{tls}/cert.pem",
            "key_file": f"{tls}/key.pem",
            "client_ca_file": f"{tls}/ca.pem",
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_allowed_sans": list(allowed),
            "min_version": "TLS13",
            "curve_preferences": ["X25519", "CurveP256", "CurveP384"],
        }
    }
