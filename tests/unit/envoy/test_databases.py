# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to databases: documents, and what Envoy itself says about them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sample

from ansible_collections.causeway.platform.plugins.module_utils.envoy import databases, proxies
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings

HOSTS = {
    **sample.HOSTS,
    **{
        f"db{number}": {
            "name": f"db{number}",
            "address": f"10.77.1.4{number}",
            "zone": "north-a",
            "region": "north",
            "components": ["database"],
        }
        for number in (1, 2, 3)
    },
}


def described() -> dict[str, Any]:
    return {
        "orders": {
            "name": "orders",
            "service": "orders",
            "database": "orders",
            "index": 1,
            "port": 15010,
            "rest_port": 17010,
            "max_lag": 16777216,
            "members": [{"host": f"db{number}", "address": f"10.77.1.4{number}"} for number in (2, 1, 3)],
            "clients": [{"host": host, "address": HOSTS[host]["address"]} for host in ("app1", "app2")],
        }
    }


def platform() -> proxies.Platform:
    return proxies.Platform(sample.DOMAIN, HOSTS, sample.services(), databases=described())


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    return {resource["name"]: resource for resource in document["resources"]}


@pytest.fixture
def orders() -> dict[str, Any]:
    return proxies.sidecar("app1", "orders", platform(), Settings())


def test_a_service_with_a_database_gets_a_writer_and_a_reader_port(orders: dict[str, Any]) -> None:
    listeners = by_name(orders["lds"])
    for role, port in (("writer", 5432), ("reader", 5433)):
        listener = listeners[f"database_{role}"]
        assert listener["address"]["socket_address"] == {"address": "10.89.1.1", "port_value": port}
        assert listener["freebind"] is True
        assert "transport_socket" not in listener["filter_chains"][0]
    (writer,) = listeners["database_writer"]["filter_chains"][0]["filters"]
    (reader,) = listeners["database_reader"]["filter_chains"][0]["filters"]
    assert writer["typed_config"]["cluster"] == "db_orders_writer"
    assert reader["typed_config"]["cluster"] == "db_orders_readers"
    assert writer["typed_config"]["idle_timeout"] == "0s"


def test_other_services_get_none() -> None:
    documents = proxies.sidecar("app1", "catalog", platform(), Settings())
    assert not [name for name in by_name(documents["lds"]) if name.startswith("database")]
    assert not [name for name in by_name(documents["cds"]) if name.startswith("db_")]


def test_members_are_asked_through_patroni(orders: dict[str, Any]) -> None:
    clusters = by_name(orders["cds"])
    for role, path in (("writer", "/primary"), ("reader", "/replica?lag=16777216")):
        cluster = clusters[f"db_orders_{role}"]
        (check,) = cluster["health_checks"]
        assert check["http_health_check"]["path"] == path
        # A replica that lags leaves within five seconds, also when it does not answer any more.
        assert check["unhealthy_threshold"] * 1.1 + float(check["timeout"].rstrip("s")) < 5
        endpoints = [entry["endpoint"] for entry in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]]
        assert [one["address"]["socket_address"]["address"] for one in endpoints] == [
            f"10.77.1.4{number}" for number in (1, 2, 3)
        ]
        assert {one["address"]["socket_address"]["port_value"] for one in endpoints} == {6432}
        assert {one["health_check_config"]["port_value"] for one in endpoints} == {17010}
    assert clusters["db_orders_readers"]["cluster_type"]["typed_config"]["clusters"] == [
        "db_orders_reader",
        "db_orders_writer",
    ]


def test_connections_outlive_a_change_of_roles(orders: dict[str, Any]) -> None:
    for name, cluster in by_name(orders["cds"]).items():
        assert "close_connections_on_host_health_failure" not in cluster
        if name.startswith("db_") and "health_checks" in cluster:  # changes of health are in force at once
            assert cluster["common_lb_config"]["update_merge_window"] == "0s"


def test_the_server_must_be_a_database_and_tcp_gives_up_on_a_dead_host(orders: dict[str, Any]) -> None:
    cluster = by_name(orders["cds"])["db_orders_writer"]
    text = json.dumps(cluster["transport_socket"])
    assert "spiffe://shop.internal/database" in text
    assert cluster["transport_socket"]["typed_config"]["sni"] == "orders.database.shop.internal"
    assert "alpn" not in text
    keepalive = cluster["upstream_connection_options"]["tcp_keepalive"]
    assert keepalive["keepalive_time"] + keepalive["keepalive_probes"] * keepalive["keepalive_interval"] <= 5
    assert cluster["upstream_bind_config"]["socket_options"][0]["int_value"] == 5000


def test_the_pooler_lets_in_the_service_from_its_hosts_only() -> None:
    documents = proxies.database("db1", platform(), Settings())["database"]
    listener = by_name(documents["lds"])["pooler"]
    assert listener["address"]["socket_address"] == {"address": "10.77.1.41", "port_value": 6432}
    (chain,) = listener["filter_chains"]
    assert chain["filter_chain_match"] == {"server_names": ["orders.database.shop.internal"]}
    assert chain["transport_socket"]["typed_config"]["require_client_certificate"] is True
    rbac, tcp = chain["filters"]
    (principal,) = rbac["typed_config"]["rules"]["policies"]["service"]["principals"]
    identity, remote = principal["and_ids"]["ids"]
    assert identity["authenticated"]["principal_name"]["exact"] == "spiffe://shop.internal/orders"
    assert [one["direct_remote_ip"]["address_prefix"] for one in remote["or_ids"]["ids"]] == [
        "10.77.1.31",
        "10.77.1.32",
    ]
    assert tcp["typed_config"]["cluster"] == "pooler"
    assert documents["group"] == "causeway-tls-database"
    assert documents["targets"] == [{"job": "envoy", "address": "10.77.1.41:9103", "labels": {"proxy": "database"}}]
    assert proxies.database("app1", platform(), Settings()) == {}


def test_without_an_instance_nobody_gets_in() -> None:
    described_now = described()
    described_now["orders"]["clients"] = []
    listener = databases.pooler_listener("database", "shop.internal", "10.77.1.41", described_now, Settings())
    assert listener["filter_chains"][0]["filters"][0]["typed_config"]["rules"] == {"action": "ALLOW", "policies": {}}


@pytest.mark.parametrize("proxy", ["sidecar-orders", "database"])
def test_envoy_accepts_it(envoy: str, tmp_path: Path, proxy: str) -> None:
    documents = {
        "sidecar-orders": lambda: proxies.sidecar("app1", "orders", platform(), Settings()),
        "database": lambda: proxies.database("db1", platform(), Settings())["database"],
    }[proxy]()
    path = tmp_path / "check.yaml"
    path.write_text(json.dumps(documents["check"]), encoding="utf-8")
    command = [envoy, "--mode", "validate", "-l", "warning", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
