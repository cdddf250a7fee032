from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import prometheus

SETTINGS = prometheus.Settings(platform="shop", domain="shop.internal", host="obs1", address="10.77.1.41")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def jobs() -> dict[str, dict[str, Any]]:
    return {job["job_name"]: job for job in prometheus.configuration(["orders", "catalog"], SETTINGS)["scrape_configs"]}


def test_every_scrape_is_mutual_tls_with_the_name_that_the_server_shows() -> None:
    for job in jobs().values():
        assert job["scheme"] == "https"
        assert job["tls_config"]["cert_file"] == "/etc/causeway/tls/metrics/current/cert.pem"
        assert "insecure_skip_verify" not in job["tls_config"]
    assert jobs()["envoy-sidecar-orders"]["tls_config"]["server_name"] == "orders.shop.internal"
    assert jobs()["envoy-gateway"]["tls_config"]["server_name"] == "gateway.shop.internal"
    assert "server_name" not in jobs()["node"]["tls_config"]


def test_each_proxy_is_scraped_by_exactly_one_job() -> None:
    for proxy in ("gateway", "database", "sidecar-orders", "sidecar-catalog"):
        keeping = [
            name
            for name, job in jobs().items()
            for rule in job.get("relabel_configs", [])
            if rule.get("action") == "keep" and re.fullmatch(rule["regex"], proxy)
        ]
        assert keeping == [f"envoy-{proxy}"]


def test_services_that_offer_metrics_of_their_own_are_scraped_by_name() -> None:
    made = prometheus.configuration(["orders", "catalog"], SETTINGS, {"orders": "/metrics"})["scrape_configs"]
    (job,) = [one for one in made if one["job_name"].startswith("service-")]
    assert (job["job_name"], job["metrics_path"]) == ("service-orders", "/metrics")
    assert job["tls_config"]["server_name"] == "orders.shop.internal"
    assert job["file_sd_configs"][0]["files"] == ["/var/lib/causeway/file_sd/service.json"]
    assert {"source_labels": ["service"], "regex": "orders", "action": "keep"} in job["relabel_configs"]


@pytest.mark.parametrize(
    ("proxy", "cluster", "expected"),
    [
        ("sidecar-orders", "inbound_1", {"service": "orders", "slot": "1", "direction": "inbound"}),
        ("sidecar-orders", "inbound_orders_1", {"service": "orders", "slot": "1", "direction": "inbound"}),
        ("sidecar-stock-keeper", "inbound_0", {"service": "stock-keeper", "slot": "0", "direction": "inbound"}),
        ("gateway", "orders_candidate", {"service": "orders", "pool": "candidate", "direction": "outbound"}),
        ("sidecar-orders", "catalog_stable", {"service": "catalog", "pool": "stable", "direction": "outbound"}),
        ("gateway", "orders_baseline", {"service": "orders", "pool": "baseline", "direction": "outbound"}),
        ("gateway", "admin", {}),
    ],
)
def test_labels_out_of_names(proxy: str, cluster: str, expected: dict[str, str]) -> None:
    values = {"proxy": proxy, "envoy_cluster_name": cluster}
    found = {}
    for rule in prometheus.envoy_labels():
        match = re.fullmatch(rule["regex"], ";".join(values[name] for name in rule["source_labels"]))
        if match:
            found[rule["target_label"]] = match.expand(rule["replacement"].replace("$", "\\"))
    assert found == expected


def test_the_rules_read_only_what_is_kept() -> None:
    keep = re.compile(prometheus.ENVOY_KEEP)
    text = json.dumps(prometheus.rules(SETTINGS))
    names = set(re.findall(r"envoy_[a-z_]+(?=\{)", text))
    assert names
    assert [name for name in names if not keep.fullmatch(name)] == []


def test_databases_are_scraped_with_their_own_identity() -> None:
    for name in ("postgresql", "patroni", "pgbouncer"):
        assert jobs()[name]["tls_config"]["server_name"] == "database.shop.internal"
        assert jobs()[name]["file_sd_configs"][0]["files"] == [f"/var/lib/causeway/file_sd/{name}.json"]


def test_the_rules_of_databases_read_only_what_is_kept() -> None:
    keep = re.compile(prometheus.POSTGRESQL_KEEP)
    names = set(re.findall(r"pg_(?!basebackup|rewind)[a-z_]+", json.dumps(prometheus.database_rules("1m"))))
    assert len(names) > 10
    assert [name for name in names if not keep.fullmatch(name)] == []
    dropped = ["go_threads", "pg_settings_work_mem_bytes", "pg_stat_user_tables_n_tup_ins", "pg_statio_user_tables_x"]
    assert [name for name in dropped if keep.fullmatch(name)] == []


@pytest.mark.parametrize("value", ["15", "0s", "s", "15 s", "-1s", ""])
def test_bad_durations_are_refused(value: str) -> None:
    with pytest.raises(prometheus.PrometheusError, match="metrics_scrape_interval"):
        prometheus.configuration([], prometheus.Settings("a", "b", "c", "d", interval=value))


def test_web_configuration_wants_a_known_client() -> None:
    web = prometheus.web_configuration("/tls", ["spiffe://shop.internal/metrics"])["tls_server_config"]
    assert web["client_auth_type"] == "RequireAndVerifyClientCert"
    assert web["min_version"] == "TLS13"
    with pytest.raises(prometheus.PrometheusError):
        prometheus.web_configuration("/tls", [])


@needs_promtool
def test_promtool_takes_configuration_and_rules(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(
        json.dumps(prometheus.configuration(["orders"], SETTINGS, {"orders": "/m"}))
    )
    (tmp_path / "rules.yml").write_text(json.dumps(prometheus.rules(SETTINGS)))
    subprocess.run(["promtool", "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")], check=True)
    subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], check=True)


@needs_promtool
def test_requests_errors_and_latency_by_version(tmp_path: Path) -> None:
    """Two slots of one service run two versions; promtool evaluates the rules over made-up samples."""
    info = 'causeway_instance_info{host="app1",service="orders",pool="stable"'
    inbound = '{host="app1",service="orders",direction="inbound"'
    count, bucket = "envoy_cluster_upstream_rq_xx", "envoy_cluster_upstream_rq_time_bucket"
    series = [
        (f'{info},slot="0",version="1.0.0"}}', "1+0x20"),
        (f'{info},slot="1",version="1.1.0"}}', "1+0x20"),
        (f'{count}{inbound},slot="0",envoy_response_code_class="2"}}', "0+150x20"),
        (f'{count}{inbound},slot="1",envoy_response_code_class="2"}}', "0+75x20"),
        (f'{count}{inbound},slot="1",envoy_response_code_class="5"}}', "0+75x20"),
        (f'{bucket}{inbound},slot="1",le="100"}}', "0+75x20"),
        (f'{bucket}{inbound},slot="1",le="200"}}', "0+150x20"),
        (f'{bucket}{inbound},slot="1",le="+Inf"}}', "0+150x20"),
    ]

    def wanted(name: str, samples: dict[str, float]) -> dict[str, Any]:
        return {
            "expr": name,
            "eval_time": "4m",
            "exp_samples": [
                {"labels": f'{name}{{service="orders",pool="stable",version="{version}"}}', "value": value}
                for version, value in samples.items()
            ],
        }

    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    wanted("service_version:requests:rate1m", {"1.0.0": 10, "1.1.0": 10}),
                    wanted("service_version:errors:ratio1m", {"1.0.0": 0, "1.1.0": 0.5}),
                    wanted("service_version:latency_seconds:p50_1m", {"1.1.0": 0.1}),
                ],
            }
        ],
    }
    (tmp_path / "rules.yml").write_text(json.dumps(prometheus.rules(SETTINGS)))
    (tmp_path / "tests.yml").write_text(json.dumps(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yml")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "number"), [("15s", 15), ("1m30s", 90), ("500ms", 0.5), ("2m", 120), ("1h1s", 3601), ("1d", 86400)]
)
def test_durations_in_seconds(text: str, number: float) -> None:
    assert prometheus.duration_seconds(text, "x") == number


@pytest.mark.parametrize("text", ["", "15", "s", "0s", "1s1m", "1.5s", "-1s", "1m 30s", "15s\n"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(prometheus.PrometheusError, match=r"metrics_scrape_interval: .* is not a duration"):
        prometheus.duration_seconds(text, "metrics_scrape_interval")
