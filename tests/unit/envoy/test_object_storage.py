# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy before the metrics of an object storage host."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import prometheus
from ansible_collections.causeway.platform.plugins.module_utils.envoy import proxies
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings

HOSTS = [{"host": "db1", "address": "10.0.1.21", "zone": "north-a", "region": "north", "master": False}]


@pytest.fixture
def documents() -> dict[str, Any]:
    hosts = {"db1": {"name": "db1", "address": "10.0.1.21", "zone": "north-a", "region": "north", "components": []}}
    platform = proxies.Platform("shop.internal", hosts, {})
    assert proxies.object_storage("elsewhere", platform, HOSTS, Settings()) == {}
    return proxies.object_storage("db1", platform, HOSTS, Settings())["object-storage"]


def test_each_process_has_a_path_for_the_metrics_identity_alone(documents: dict[str, Any]) -> None:
    (listener,) = documents["lds"]["resources"]
    assert listener["address"]["socket_address"] == {"address": "10.0.1.21", "port_value": 9405}
    (chain,) = listener["filter_chains"]
    assert chain["transport_socket"]["typed_config"]["require_client_certificate"] is True
    manager = chain["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert {one["match"]["path"]: one["route"]["cluster"] for one in routes} == {
        "/stats/prometheus": "admin",
        "/volume": "metrics_volume",
        "/filer": "metrics_filer",
        "/s3": "metrics_s3",
    }
    assert "spiffe://shop.internal/metrics" in json.dumps(manager["http_filters"][0])
    ports = json.dumps(documents["cds"])
    assert all(f'"address": "127.0.0.1", "port_value": {port}' in ports for port in (9422, 9423, 9424))
    assert documents["group"] == "causeway-tls-object-storage"


def test_prometheus_asks_each_process_below_its_path() -> None:
    settings = prometheus.Settings("shop", "shop.internal", "mon1", "10.0.3.41")
    jobs = {job["job_name"]: job for job in prometheus.configuration([], settings)["scrape_configs"]}
    job = jobs["object_storage"]
    assert job["tls_config"]["server_name"] == "object-storage.shop.internal"
    assert job["relabel_configs"][0]["target_label"] == "__metrics_path__"
    assert "envoy-object-storage" in jobs


def test_envoy_accepts_it(envoy: str, tmp_path: Path, documents: dict[str, Any]) -> None:
    path = tmp_path / "check.yaml"
    path.write_text(json.dumps(documents["check"]), encoding="utf-8")
    command = [envoy, "--mode", "validate", "-l", "warning", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
