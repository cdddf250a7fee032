from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import quadlet


def service(name: str = "orders", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0.0",
        "image": {"archive": f"/images/{name}-{{version}}.tar", "repository": "", "reference": ""},
        "port": 8080,
        "index": 10,
        "health": {
            "path": "/healthz",
            "interval": 0.5,
            "timeout": 1.0,
            "unhealthy": 2,
            "healthy": 1,
            "start_timeout": 60,
        },
        "calls": [{"service": "stock-keeper", "port": 9001}],
        "resources": {"memory": "256M", "cpus": 1.0, "pids": 200},
        "environment": {},
        "release": {"drain_timeout": 30.0},
        **changes,
    }


def placed(slot: int = 0, name: str = "orders") -> dict[str, Any]:
    return {
        "service": name,
        "host": "app1",
        "slot": slot,
        "id": f"app1-{slot}",
        "address": "10.77.1.31",
        "port": 7100 + slot,
        "zone": "north-a",
        "region": "north",
        "pool": "stable",
    }


def plan(*instances: dict[str, Any], **changes: Any) -> dict[str, Any]:
    options = {
        "installed": {},
        "versions": {},
        "overrides": {},
        "options": quadlet.Options(platform="shop"),
        **changes,
    }
    services = options.pop("services", {"orders": service()})
    return quadlet.plan(instances, services, **options)


def lines(result: dict[str, Any], path: str) -> list[str]:
    return result["files"][path]["content"].splitlines()


UNIT = "etc/containers/systemd/orders@0.container"
DROP_IN = f"{UNIT}.d/version.conf"


def test_an_instance_is_least_privileged() -> None:
    unit = lines(plan(placed()), UNIT)
    for line in ("ReadOnly=true", "DropCapability=all", "NoNewPrivileges=true", "Pull=never", "IP=10.89.10.10"):
        assert line in unit
    assert f"UIDMap=0:{0x70000000 + 10 * 65536}:65536" in unit
    network = lines(plan(placed()), "etc/containers/systemd/orders-10.network")
    for line in ("Internal=true", "DisableDNS=true", "Subnet=10.89.10.0/24", "Gateway=10.89.10.1"):
        assert line in network


def test_the_version_is_only_in_its_drop_in_and_the_environment() -> None:
    old = plan(placed())
    new = plan(placed(), overrides={"orders@0": "1.1.0"})
    changed = {path for path in old["files"] if old["files"][path] != new["files"][path]}
    assert changed == {
        DROP_IN,
        "etc/causeway/services/orders-0.env",
        "etc/causeway/agent/instances.d/orders-0.json",
    }
    assert "Image=localhost/causeway/orders:1.1.0" in lines(new, DROP_IN)
    assert quadlet.installed_version(new["files"][DROP_IN]["content"]) == ("1.1.0", "localhost/causeway/orders:1.1.0")


@pytest.mark.parametrize(
    ("installed", "versions", "overrides", "expected"),
    [
        ({}, {}, {}, "1.0.0"),
        ({}, {"orders": "1.1.0"}, {}, "1.1.0"),
        ({"orders@0": {"version": "0.9.0"}}, {"orders": "1.1.0"}, {}, "0.9.0"),
        ({"orders@0": {"version": "0.9.0"}}, {"orders": "1.1.0"}, {"orders@0": "1.2.0"}, "1.2.0"),
        ({"orders@0": {"version": ""}}, {"orders": "1.1.0"}, {}, "1.1.0"),
    ],
)
def test_only_a_release_changes_the_version_of_what_runs(
    installed: dict[str, Any], versions: dict[str, str], overrides: dict[str, str], expected: str
) -> None:
    result = plan(placed(), installed=installed, versions=versions, overrides=overrides)
    assert [instance["version"] for instance in result["instances"]] == [expected]


def test_the_agent_gets_what_the_contract_says() -> None:
    value = json.loads(plan(placed(1))["files"]["etc/causeway/agent/instances.d/orders-1.json"]["content"])
    checks = value.pop("checks")
    assert value == {
        **{k: v for k, v in placed(1).items() if k != "id"},
        "instance": "app1-1",
        "version": "1.0.0",
        "weight": 100,
    }
    assert checks[0]["url"] == "http://10.89.10.11:8080/healthz"


def test_metrics_of_the_process_are_a_target_with_pool_and_version() -> None:
    path = "etc/causeway/agent/targets.d/service-orders-1.json"
    assert path not in plan(placed(1))["files"]
    files = plan(placed(1), services={"orders": service(metrics={"path": "/metrics"})})["files"]
    (target,) = json.loads(files[path]["content"])
    assert target == {
        "job": "service",
        "address": f"{placed(1)['address']}:{placed(1)['port']}",
        "labels": {"service": "orders", "slot": "1", "pool": "stable", "version": "1.0.0"},
    }


def test_limits_need_their_controller() -> None:
    bare = lines(plan(placed()), UNIT)
    assert "PidsLimit=0" in bare
    assert not [line for line in bare if "memory" in line or "cpus" in line]
    limited = lines(plan(placed(), options=quadlet.Options(controllers=("cpu", "memory", "pids"))), UNIT)
    assert {"PidsLimit=200", "PodmanArgs=--memory=256M --memory-swap=256M", "PodmanArgs=--cpus=1"} <= set(limited)


def test_environment_is_literal_and_not_on_a_command_line() -> None:
    result = plan(placed(), services={"orders": service(environment={"TEXT": 'a b $HOME %n "q"', "N": 5})})
    entry = result["files"]["etc/causeway/services/orders-0.env"]
    assert entry["mode"] == "0600"
    assert entry["secret"] is True
    text = entry["content"].splitlines()
    assert 'TEXT=a b $HOME %n "q"' in text
    assert "N=5" in text
    assert "STOCK_KEEPER_URL=http://10.89.10.1:9001" in text
    assert not [line for line in lines(result, UNIT) if line.startswith("Environment=")]


def test_a_changed_environment_changes_the_configuration_label() -> None:
    def label(result: dict[str, Any]) -> str:
        return next(line for line in lines(result, UNIT) if "io.causeway.configuration=" in line)

    assert label(plan(placed())) != label(plan(placed(), services={"orders": service(environment={"A": "1"})}))


def test_services_reach_their_sidecar_only() -> None:
    rules = plan(placed())["files"]["etc/causeway/services/network.nft"]["content"]
    assert 'iifname "cwsvc10" ip saddr 10.89.10.0/24 ip daddr 10.89.10.1 tcp dport { 9001 } accept' in rules
    order = [rules.index("dport"), rules.index('iifname "cwsvc*" counter drop'), rules.index("forward")]
    assert order == sorted(order)
    forward = rules[rules.index("chain forward") : rules.index("chain output")]
    assert "accept" not in forward.replace("policy accept", "")


def test_what_is_meant_for_a_container_never_leaves_the_host() -> None:
    rules = plan(placed())["files"]["etc/causeway/services/network.nft"]["content"]
    out = rules[rules.index("chain output") :]
    assert "ip daddr { 10.89.10.0/24 } counter reject with icmp type host-unreachable" in out
    assert out.index('oifname "cwsvc*" accept') < out.index("reject")


def test_instances_that_are_not_placed_any_more_are_stale() -> None:
    installed = {"orders@0": {"version": "1.0.0"}, "orders@1": {"version": "1.0.0"}}
    result = plan(placed(0), installed=installed)
    assert result["stale"] == [{"key": "orders@1", "unit": "orders@1.service"}]
    assert not [path for path in result["files"] if "orders@1" in path or "orders-1" in path.replace("orders-10", "")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"services": {}}, "'orders' is not described"),
        ({"services": {"orders": service(version="../x")}}, "version '../x' is not allowed"),
        ({"services": {"orders": service(version="")}}, "version '' is not allowed"),
        ({"services": {"orders": service(index=256)}}, "outside 0..255"),
        ({"services": {"orders": service(environment={"A B": "1"})}}, "environment.A B"),
        ({"services": {"orders": service(environment={"A": "1\n2"})}}, "line breaks"),
        ({"services": {"orders": service(image={})}}, "neither archive nor repository"),
        ({"overrides": {"orders@7": "1.0"}}, "orders@7: not placed on this host"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(quadlet.QuadletError, match=words.replace(".", r"\.")):
        plan(placed(), **changes)


@pytest.mark.parametrize("instances", [(placed(10),), (placed(0), placed(0))])
def test_impossible_slots_are_refused(instances: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(quadlet.QuadletError):
        plan(*instances)


@pytest.mark.parametrize(
    ("image", "reference", "archive"),
    [
        ({"archive": "/i/o-{version}.tar"}, "localhost/causeway/orders:1.1", "/i/o-1.1.tar"),
        ({"archive": "/i/o.tar", "reference": "local/o:{version}"}, "local/o:1.1", "/i/o.tar"),
        ({"repository": "registry.example:5000/team/o"}, "registry.example:5000/team/o:1.1", ""),
        ({"repository": "registry.example/o@sha256:abc"}, "registry.example/o@sha256:abc", ""),
    ],
)
def test_image_of_a_version(image: dict[str, str], reference: str, archive: str) -> None:
    assert quadlet.image_of(service(image=image), "1.1") == {"reference": reference, "archive": archive}


DATABASES = {"orders": {"name": "orders", "database": "shop_orders"}}


def with_database(secret: str = "s" * 32) -> quadlet.Options:
    return quadlet.Options(platform="shop", databases=DATABASES, database_secret=secret)


def test_a_service_with_a_database_learns_where_it_is() -> None:
    result = plan(placed(), options=with_database())
    environment = dict(line.split("=", 1) for line in lines(result, "etc/causeway/services/orders-0.env"))
    assert {name: value for name, value in environment.items() if name.startswith("PG")} == {
        "PGHOST": "10.89.10.1",
        "PGPORT": "5432",
        "PGDATABASE": "shop_orders",
        "PGUSER": "shop_orders",
        "PGPORT_READER": "5433",
        "PGDATABASE_READER": "shop_orders_ro",
        "PGSSLMODE": "disable",
        "PGPASSFILE": "/run/causeway/pgpass",
    }
    assert "tcp dport { 5432, 5433, 9001 } accept" in result["files"][quadlet.FIREWALL]["content"]


def test_the_password_is_in_one_file_and_nowhere_else() -> None:
    result = plan(placed(), options=with_database())
    entry = result["files"]["etc/causeway/services/orders-0.pgpass"]
    assert (entry["mode"], entry["secret"]) == ("0600", True)
    host, port, database, user, word = entry["content"].strip().split(":")
    assert (host, port, database, user) == ("*", "*", "*", "shop_orders")
    assert len(word) == 64
    others = json.dumps({path: one for path, one in result["files"].items() if not path.endswith(".pgpass")})
    assert word not in others
    unit = lines(result, UNIT)
    assert "Volume=/run/causeway/services/orders-0.pgpass:/run/causeway/pgpass:ro,U" in unit
    copy = "/etc/causeway/services/orders-0.pgpass /run/causeway/services/orders-0.pgpass"
    assert f"ExecStartPre=/usr/bin/install -D --mode=0600 {copy}" in unit
    assert word not in repr(with_database())


def test_another_password_is_another_configuration() -> None:
    labels = [
        next(line for line in lines(plan(placed(), options=with_database(secret)), UNIT) if "configuration" in line)
        for secret in ("a" * 32, "b" * 32)
    ]
    assert labels[0] != labels[1]


def test_without_a_database_nothing_of_it_is_there() -> None:
    result = plan(placed(name="other"), services={"other": service("other")}, options=with_database(""))
    assert "PG" not in result["files"]["etc/causeway/services/other-0.env"]["content"]
    assert not [path for path in result["files"] if "pgpass" in path]
    assert "5432" not in result["files"][quadlet.FIREWALL]["content"]


def test_a_database_needs_its_secret() -> None:
    with pytest.raises(quadlet.QuadletError, match=r"causeway_secrets\.database, which is empty"):
        plan(placed(), options=with_database(""))
