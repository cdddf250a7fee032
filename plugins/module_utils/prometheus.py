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
            *(envoy_job(settings, f"sidecar-{name}", f"{name}.{settings.domain}") for name in sorted(services)),
            *(service_job(settings, name, path) for name, path in sorted((paths or {}).items())),
        ],
    }


def _versioned(expression: str, *keep: str) -> str:
    """Sum by service and version of a per-slot expression, the version joined from what the agents say they run."""
    by = ", ".join(("service", "version", "pool", *keep))
    return (
        f"sum by ({by}) ({expression} * on (host, service, slot) group_left (version, pool) "
        "max by (host, service, slot, version, pool) (causeway_instance_info))"
    )


def rules(settings: Settings) -> dict[str, Any]:
    """Recording rules: requests per second, share of errors (5xx) and latency in seconds.

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
    return {
        "groups": [
            {"name": "causeway_services", "rules": [{"record": name, "expr": expr} for name, expr in recorded]},
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
