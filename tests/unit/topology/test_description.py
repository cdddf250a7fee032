"""What a sound description becomes: docs/design.md section 1."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from ansible_collections.causeway.platform.plugins.module_utils.topology import load
from ansible_collections.causeway.platform.plugins.module_utils.topology.description import read_description
from ansible_collections.causeway.platform.plugins.module_utils.topology.model import natural

ROOT = Path(__file__).resolve().parents[3]
CIPHERTEXT = "$ANSIBLE_VAULT;1.1;AES256\n6162\n"


def test_a_sound_description_has_no_problems(files):
    assert files.problems() == []


def test_shared_variables_have_the_shapes_of_the_design(files):
    variables = files.read().variables
    assert list(variables) == [
        "causeway_platform",
        "causeway_domain",
        "causeway_regions",
        "causeway_hosts",
        "causeway_services",
        "causeway_databases",
        "causeway_object_storage",
        "causeway_backups",
        "causeway_lab",
    ]
    assert variables["causeway_regions"] == {
        "north": {
            "state": "active",
            "zones": ["north-a", "north-b", "north-c"],
            "gateway": {"address": "10.0.0.10", "port": 443, "router_id": 51},
        }
    }
    assert variables["causeway_hosts"]["core1"] == {
        "name": "core1",
        "address": "10.0.1.21",
        "zone": "north-a",
        "region": "north",
        "components": ["registry", "trust"],
    }
    assert variables["causeway_databases"] == {}
    assert variables["causeway_lab"] == {}


def test_a_service_has_every_default_filled_in(files, tmp_path):
    orders = files.read().variables["causeway_services"]["orders"]
    placed = orders["instances"].pop("placed")
    # tests/unit/topology/test_release.py
    keys = ("canary", "blue_green", "rollback_window", "rolling", "analysis", "hooks")
    judged = {key: orders["release"][key] for key in keys}
    assert orders == {
        "name": "orders",
        "version": "1.0.0",
        "image": {
            "archive": f"{tmp_path}/services/images/orders-{{version}}.tar",
            "repository": "",
            "reference": "localhost/causeway/orders:{version}",
        },
        "port": 8080,
        "mesh_port": 7110,
        "index": 11,
        "health": {
            "path": "/healthz",
            "interval": 0.5,
            "timeout": 1.0,
            "unhealthy": 2,
            "healthy": 1,
            "start_timeout": 60.0,
        },
        "metrics": {"path": ""},
        "instances": {"min": 3, "max": 6, "per_host": 2},
        "placement": {"regions": [], "zones": []},
        "routes": [
            {
                "prefix": "/orders",
                "timeout": 10.0,
                "methods": [],
                "retries": {
                    "attempts": 2,
                    "per_try_timeout": 3.333,
                    "backoff": {"base": 0.025, "max": 0.25},
                    "budget": 20.0,
                },
                "rate_limit": {"requests": 1000, "per": 1.0, "burst": 2000},
            }
        ],
        "calls": [
            {
                "service": "catalog",
                "port": 9001,
                "timeout": 3.0,
                "retries": {
                    "attempts": 2,
                    "per_try_timeout": 1.0,
                    "backoff": {"base": 0.025, "max": 0.25},
                    "budget": 20.0,
                },
            }
        ],
        "resources": {"memory": "256M", "cpus": 1.0, "pids": 200},
        "environment": {},
        "release": {
            "strategy": "rolling",
            "batch": 1,
            "pause": 2.0,
            "drain_timeout": 30.0,
            "health_timeout": 60.0,
            "verify": {"path": "/orders", "requests": 20},
            **judged,
        },
        "migrations": {},
        "database": {},
        "slo": {"availability": 99.9, "latency_p99": 0.25},
    }
    assert placed[0] == {
        "service": "orders",
        "host": "app1",
        "slot": 0,
        "id": "app1-0",
        "address": "10.0.1.31",
        "port": 7110,
        "zone": "north-a",
        "region": "north",
        "pool": "stable",
    }
    assert sorted({item["host"] for item in placed}) == ["app1", "app2", "app3"]
    assert len(placed) == 4, "the minimum, and one for a release to take out"


def test_hosts_carry_their_own_entry_and_instances(files):
    files.set("catalog", "instances/count", 3)
    files.set("orders", "instances/count", 4)
    description = files.read()
    app = [host for host in ("app1", "app2", "app3") if len(description.hosts[host]["causeway_instances"]) == 3]
    assert len(app) == 1
    own = description.hosts[app[0]]
    assert own["ansible_host"] == own["causeway_host"]["address"]
    assert [(item["service"], item["slot"], item["port"]) for item in own["causeway_instances"]] == [
        ("catalog", 0, 7100),
        ("orders", 0, 7110),
        ("orders", 1, 7111),
    ]
    assert description.hosts["core1"]["causeway_instances"] == []


def test_groups(files):
    groups = files.read().groups
    assert groups["registry"].hosts == ["core1", "core2", "core3"]
    assert groups["region_north"].children == ["zone_north_a", "zone_north_b", "zone_north_c"]
    assert groups["zone_north_b"].hosts == ["app2", "core2"]
    assert groups["service_orders"].hosts == ["app1", "app2", "app3"]
    assert {"gateway", "services", "metrics", "trust"} <= set(groups)


def test_the_order_in_the_files_does_not_matter(files):
    first = json.dumps(files.read().variables)
    zones = files.data["platform"]["regions"]["north"]["zones"]
    items = list(zones.items())
    random.Random(7).shuffle(items)
    files.data["platform"]["regions"]["north"]["zones"] = {
        name: {"hosts": dict(reversed(zone["hosts"].items()))} for name, zone in items
    }
    assert json.dumps(files.read().variables) == first


def test_natural_order():
    assert sorted(["app10", "app2", "app1", "b"], key=natural) == ["app1", "app2", "app10", "b"]


def test_lab_defaults(files, tmp_path):
    (tmp_path / "galaxy.yml").touch()
    files.set("platform", "lab", {"name": "demo", "network": "10.0.0.0/16"})
    variables = files.read().variables
    assert variables["causeway_lab"] == {
        "name": "demo",
        "network": "10.0.0.0/16",
        "gateway": "10.0.0.1",
        "packages": [],
        "mirror": "",
        "state": f"{tmp_path}/.cache/demo",
    }
    assert variables["ansible_user"] == "root"
    assert variables["ansible_ssh_private_key_file"] == f"{tmp_path}/.cache/demo/ssh/id"
    assert "StrictHostKeyChecking=no" in variables["ansible_ssh_common_args"]


def test_own_variables_win_over_the_labs(files):
    files.set("platform", "lab", {"name": "demo", "network": "10.0.0.0/16", "state": "state"})
    files.set("platform", "vars", {"ansible_user": "admin"})
    description = files.read()
    assert "ansible_user" not in description.variables
    assert description.free == {"ansible_user": "admin"}
    assert description.variables["causeway_lab"]["state"] == str(files.folder / "state")


def test_encrypted_values_stay_encrypted(files):
    files.text(
        "orders",
        yaml.safe_dump(files.data["orders"])
        + "environment:\n  DB_PASSWORD: !vault |\n    $ANSIBLE_VAULT;1.1;AES256\n    6162\n  WORKERS: 4\n",
    )
    environment = files.read().variables["causeway_services"]["orders"]["environment"]
    assert environment == {"DB_PASSWORD": load.Vaulted(CIPHERTEXT), "WORKERS": "4"}
    assert "6162" not in repr(environment)


def test_anchors_and_merge_keys_work(files):
    files.text(
        "catalog",
        """
name: catalog
version: "1.0.0"
image: {archive: catalog.tar}
port: 8080
mesh_port: 7100
routes:
  - {prefix: /catalog, retries: &r {attempts: 5, budget: 10}}
  - {prefix: /search, retries: {<<: *r, attempts: 1}}
""",
    )
    routes = files.read().variables["causeway_services"]["catalog"]["routes"]
    assert [(route["retries"]["attempts"], route["retries"]["budget"]) for route in routes] == [(5, 10.0), (1, 10.0)]


def test_calls_may_form_a_cycle(files):
    files.set("catalog", "calls", [{"service": "orders", "timeout": "500ms"}])
    call = files.read().variables["causeway_services"]["catalog"]["calls"][0]
    assert (call["timeout"], call["retries"]["per_try_timeout"]) == (0.5, 0.167)


def test_one_prefix_may_be_split_by_method_within_a_service(files):
    files.set("orders", "routes", [{"prefix": "/o", "methods": ["GET"]}, {"prefix": "/o", "methods": ["POST"]}])
    assert files.problems() == []


def test_a_platform_without_services_is_sound(files):
    files.data = {"platform": files.data["platform"]}
    description = files.read()
    assert description.variables["causeway_services"] == {}


def test_a_number_stays_when_services_come_and_go(files):
    before = files.read().variables["causeway_services"]["orders"]["index"]
    files.data["billing"] = {**files.data["orders"], "name": "billing", "mesh_port": 7120, "routes": [{"prefix": "/b"}]}
    assert files.read().variables["causeway_services"]["orders"]["index"] == before


@pytest.mark.parametrize(
    ("instances", "count", "maximum", "warned"),
    [
        ({"min": 3}, 4, 4, False),
        ({}, 3, 3, False),
        ({"min": 3, "max": 3}, 3, 3, True),
        ({"min": 3, "per_host": 1}, 3, 3, True),  # three hosts hold no more
        ({"min": 2, "max": 6, "count": 2}, 2, 6, True),
        ({"min": 2, "count": 5}, 5, 5, False),
    ],
)
def test_number_of_instances(files, instances, count, maximum, warned):
    files.set("orders", "instances", instances)
    description = files.read()
    numbers = description.variables["causeway_services"]["orders"]["instances"]
    assert (len(numbers["placed"]), numbers["max"]) == (count, maximum)
    assert any("orders: a release takes 1 of" in warning for warning in description.warnings) == warned


def test_majority_of_the_registry_in_one_zone_is_only_advised_against(files):
    files.set("platform", "regions/north/zones/north-b/hosts/core2/components", [])
    files.set("platform", "regions/north/zones/north-a/hosts/app1/components", ["registry", "services"])
    assert files.read().warnings == ["zone north-a holds 2 of 3 registry hosts: losing it loses the quorum"]


@pytest.mark.parametrize(
    "file", ["inventories/lab/platform.yml", "inventories/production/platform.yml", "molecule/platform/platform.yml"]
)
def test_the_descriptions_of_this_repository_are_sound(file, tmp_path, monkeypatch):
    original = load.read_document

    def without_secrets(path, name):  # they are made on each machine
        if path.name == "secrets.yml":
            document = load.Document(name, path)
            document.data = dict.fromkeys(
                ("registry", "hsm_pin", "hsm_so_pin", "database", "backup", "object_storage"), load.Vaulted(CIPHERTEXT)
            )
            return document
        return original(path, name)

    monkeypatch.setattr(
        "ansible_collections.causeway.platform.plugins.module_utils.topology.description.read_document", without_secrets
    )
    description = read_description(ROOT / file)
    assert len(description.groups["registry"].hosts) in (3, 5)
    assert description.warnings == []
