"""The platform after site.yml: every hop is authenticated, nothing answers that should not, everything is measured."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import why

Ssh = Callable[..., subprocess.CompletedProcess[str]]
CURL = "curl -s -S -m 5 -o /dev/null -w '%{http_code}'"


def having(inventory: dict[str, Any], component: str) -> list[str]:
    return [name for name, one in inventory["causeway_hosts"].items() if component in one["components"]]


def instance(inventory: dict[str, Any], service: str) -> dict[str, Any]:
    placed: dict[str, Any] = inventory["causeway_services"][service]["instances"]["placed"][0]
    return placed


def identity(name: str) -> str:
    base = f"/etc/causeway/tls/{name}/current"
    return f"--cacert {base}/ca.pem --cert {base}/cert.pem --key {base}/key.pem"


def test_the_gateway_answers_on_every_route(inventory: dict[str, Any], ca: Path, ssh: Ssh) -> None:
    region = next(iter(inventory["causeway_regions"].values()))
    name = f"gateway.{inventory['causeway_domain']}"
    for path, field in (("/catalog/1", "price"), ("/orders/1", "item")):
        done = subprocess.run(
            [
                *("curl", "-sS", "-m", "5", "-D", "-", "--cacert", str(ca), "--http2"),
                *("--resolve", f"{name}:443:{region['gateway']['address']}", f"https://{name}{path}"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        head, _separator, body = done.stdout.partition("\n\n")
        assert head.startswith("HTTP/2 200")
        assert "x-request-id" in head
        assert "x-correlation-id" in head
        assert "server:" not in head.lower()
        assert field in json.loads(body)


def test_an_unknown_route_is_refused(inventory: dict[str, Any], ca: Path) -> None:
    region = next(iter(inventory["causeway_regions"].values()))
    name = f"gateway.{inventory['causeway_domain']}"
    done = subprocess.run(
        [
            *("curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", str(ca)),
            *("--resolve", f"{name}:443:{region['gateway']['address']}", f"https://{name}/catalogue"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "404"


def test_the_gateway_speaks_modern_tls_only(inventory: dict[str, Any], ca: Path) -> None:
    sslyze = os.environ.get("CAUSEWAY_SSLYZE", "sslyze")
    region = next(iter(inventory["causeway_regions"].values()))
    done = subprocess.run(
        [
            *(sslyze, "--mozilla_config=modern", f"--certinfo_ca_file={ca}"),
            f"gateway.{inventory['causeway_domain']}:{region['gateway']['port']}{{{region['gateway']['address']}}}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, why(done.stdout)


def test_a_sidecar_refuses_plain_text(inventory: dict[str, Any], ssh: Ssh) -> None:
    one = instance(inventory, "catalog")
    done = ssh(having(inventory, "gateway")[0], f"{CURL} http://{one['address']}:{one['port']}/catalog/1")
    assert done.returncode != 0
    assert done.stdout == "000"


def test_a_sidecar_refuses_a_client_without_certificate(inventory: dict[str, Any], ssh: Ssh) -> None:
    one = instance(inventory, "catalog")
    done = ssh(having(inventory, "gateway")[0], f"{CURL} -k https://{one['address']}:{one['port']}/catalog/1")
    assert done.returncode != 0
    assert done.stdout == "000"


@pytest.mark.parametrize(
    ("service", "caller", "status"),
    [("catalog", "svc-orders", "200"), ("orders", "svc-catalog", "403"), ("catalog", "host", "403")],
)
def test_only_callers_listed_in_calls_get_through(
    inventory: dict[str, Any], ssh: Ssh, service: str, caller: str, status: str
) -> None:
    one = instance(inventory, service)
    name = f"{service}.{inventory['causeway_domain']}"
    done = ssh(
        one["host"],
        f"{CURL} {identity(caller)} --resolve {name}:{one['port']}:{one['address']} "
        f"https://{name}:{one['port']}/{service}/1",
    )
    assert done.stdout == status, done.stderr


def test_a_container_cannot_be_reached_around_its_sidecar(inventory: dict[str, Any], ssh: Ssh) -> None:
    one = instance(inventory, "catalog")
    network = f"10.89.{inventory['causeway_services']['catalog']['index']}"
    outside, inside = having(inventory, "gateway")[0], one["host"]
    container = f"{CURL} http://{network}.{10 + one['slot']}:8080/healthz"
    assert ssh(inside, container).stdout == "200"  # the host itself, for its agent and sidecar
    ssh(outside, f"ip route replace {network}.0/24 via {one['address']} dev eth0 onlink")
    try:
        assert ssh(outside, container).stdout == "000"
    finally:
        ssh(outside, f"ip route del {network}.0/24")


def test_etcd_refuses_a_client_without_certificate(inventory: dict[str, Any], ssh: Ssh) -> None:
    host = having(inventory, "registry")[0]
    address = inventory["causeway_hosts"][host]["address"]
    done = ssh(host, f"{CURL} -k https://{address}:2379/health")
    assert done.returncode != 0


def test_hosts_run_without_failed_units(hosts: dict[str, str], ssh: Ssh) -> None:
    failed = {name: ssh(name, "systemctl --failed --no-legend --plain").stdout.strip() for name in hosts}
    assert failed == dict.fromkeys(hosts, "")


def test_requests_per_service_and_version_can_be_queried(inventory: dict[str, Any], ca: Path, ssh: Ssh) -> None:
    host = having(inventory, "metrics")[0]
    name = f"{host}.{inventory['causeway_domain']}"

    def query(text: str) -> list[dict[str, Any]]:
        done = ssh(
            host,
            f"curl -sS -m 5 {identity('metrics')} --resolve {name}:9090:{inventory['causeway_hosts'][host]['address']} "
            f"-G https://{name}:9090/api/v1/query --data-urlencode 'query={text}'",
        )
        assert done.returncode == 0, done.stderr
        result: list[dict[str, Any]] = json.loads(done.stdout)["data"]["result"]
        return result

    deadline = time.monotonic() + 90
    down: list[Any] = ["not asked yet"]
    jobs: set[str] = set()
    while time.monotonic() < deadline and (down or not {"node", "agent", "envoy", "etcd"} <= jobs):
        down = [one["metric"] for one in query("up == 0")]
        jobs = {one["metric"]["job"] for one in query("up")}
        time.sleep(3)
    assert down == []
    assert {"node", "agent", "envoy", "etcd"} <= jobs
    versions = {(one["metric"]["service"], one["metric"]["version"]) for one in query("causeway_instance_info")}
    assert {service for service, _version in versions} == set(inventory["causeway_services"])


def test_without_a_version_before_there_is_no_way_back(
    known: Callable[[str], dict[str, Any]], playbook: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Nothing was released yet on a lab that was just brought up."""
    before = known("orders")
    done = playbook("release_rollback", release_service="orders")
    assert done.returncode != 0
    assert "there is no version before to go back to" in " ".join(done.stdout.split())
    after = known("orders")
    assert (after["release"], after["instances"], after["lock"]) == (before["release"], before["instances"], {})
