# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents that are derived from a description, read as a person would read them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sample

from ansible_collections.causeway.platform.plugins.module_utils import pools
from ansible_collections.causeway.platform.plugins.module_utils.envoy import proxies, routes, vrrp
from ansible_collections.causeway.platform.plugins.module_utils.envoy.common import EnvoyConfigError, duration
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings


def gateway(services: dict[str, Any] | None = None, host: str = "edge1", **settings: Any) -> dict[str, Any]:
    return proxies.gateway(host, sample.platform(services), Settings(**settings))


def sidecar(service: str, services: dict[str, Any] | None = None) -> dict[str, Any]:
    return proxies.sidecar("app1", service, sample.platform(services), Settings())


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    return {resource["name"]: resource for resource in document["resources"]}


def find(value: Any, key: str) -> list[Any]:
    """Every value under a key, at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in find(item, key)]
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in ([item] if name == key else find(item, key))]
    return []


@pytest.mark.parametrize("seconds, text", [(0, "0s"), (1, "1s"), (0.25, "0.250s"), (2.5, "2.500s"), (120.0, "120s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_impossible_durations_are_refused(seconds: float) -> None:
    with pytest.raises(EnvoyConfigError, match="finite"):
        duration(seconds)


def test_the_gateway_has_clusters_for_public_services_only() -> None:
    documents = gateway()
    assert sorted(by_name(documents["cds"])) == ["admin", "orders_candidate", "orders_stable", "telemetry"]
    assert documents["proxy"]["clusters"] == {
        "orders_candidate": {"service": "orders", "pool": "candidate"},
        "orders_stable": {"service": "orders", "pool": "stable"},
    }
    assert documents["proxy"]["admin"] == "/run/envoy/gateway/admin.sock"
    assert documents["group"] == "causeway-tls-gateway"


def test_the_sidecar_knows_its_instances_and_its_callees() -> None:
    documents = sidecar("orders")
    assert sorted(by_name(documents["lds"])) == ["inbound_0", "inbound_5", "metrics", "outbound_catalog"]
    inbound = by_name(documents["lds"])["inbound_0"]["address"]["socket_address"]
    assert inbound == {"address": "10.77.1.31", "port_value": 7110}
    outbound = by_name(documents["lds"])["outbound_catalog"]
    assert outbound["address"]["socket_address"] == {"address": "10.89.1.1", "port_value": 9001}
    assert outbound["freebind"] is True
    process = by_name(documents["cds"])["inbound_0"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    assert process["endpoint"]["address"]["socket_address"] == {"address": "10.89.1.10", "port_value": 8080}
    assert list(documents["proxy"]["routes"]) == ["outbound_catalog"]


def test_callers_are_those_who_list_the_service_and_the_gateway_if_it_has_routes() -> None:
    services = sample.services()
    assert proxies.callers("catalog", services, "shop.internal") == ["spiffe://shop.internal/orders"]
    assert proxies.callers("orders", services, "shop.internal") == ["spiffe://shop.internal/gateway"]


def test_a_service_that_nobody_may_call_lets_nobody_in() -> None:
    documents = sidecar("lonely", {**sample.services(), "lonely": sample.service("lonely", 2)})
    rules = find(by_name(documents["lds"])["inbound_0"], "rules")
    assert rules == [{"action": "ALLOW", "policies": {}}]


def test_every_tls_context_is_1_3_with_three_curves() -> None:
    for documents in (gateway(), sidecar("orders")):
        parameters = find(documents["lds"], "tls_params") + find(documents["cds"], "tls_params")
        assert parameters
        assert all(item["tls_minimum_protocol_version"] == "TLSv1_3" for item in parameters)
        assert all(item["ecdh_curves"] == ["X25519", "P-256", "P-384"] for item in parameters)


def test_upstreams_must_show_exactly_the_services_identity() -> None:
    matchers = find(by_name(sidecar("orders")["cds"])["catalog_stable"], "match_typed_subject_alt_names")
    assert matchers == [[{"san_type": "URI", "matcher": {"exact": "spiffe://shop.internal/catalog"}}]]


def test_unsafe_methods_are_retried_only_before_the_request_was_sent() -> None:
    policy = routes.retry_policy(sample.RETRIES, safe=False)
    assert policy is not None
    assert policy["retry_on"] == "connect-failure,refused-stream,reset-before-request"
    assert not {"retriable_status_codes", "per_try_timeout"} & set(policy)
    safe = routes.retry_policy(sample.RETRIES, safe=True)
    assert safe is not None
    assert safe["retriable_status_codes"] == [502, 503, 504]
    assert (safe["per_try_timeout"], safe["num_retries"]) == ("1s", 2)
    assert safe["retry_back_off"] == {"base_interval": "0.025s", "max_interval": "0.250s"}


@pytest.mark.parametrize("safe", [True, False])
def test_no_attempts_is_no_retry_policy(safe: bool) -> None:
    assert routes.retry_policy({"attempts": 0}, safe) is None


def test_longer_prefixes_come_first_and_match_whole_segments() -> None:
    services = {
        "web": sample.service("web", 0, routes=[sample.route("/")]),
        "orders": sample.service("orders", 1, routes=[sample.route("/orders"), sample.route("/orders/bulk/")]),
    }
    matches = [
        entry["match"] for entry in gateway(services)["proxy"]["routes"]["gateway"]["virtual_hosts"][0]["routes"]
    ]
    prefixes = [match.get("path_separated_prefix", match.get("prefix")) for match in matches[1:]]
    assert prefixes == ["/orders/bulk", "/orders/bulk", "/orders", "/orders", "/", "/"]


def test_two_services_cannot_share_a_prefix() -> None:
    services = {name: sample.service(name, index, routes=[sample.route("/x")]) for index, name in enumerate("ab")}
    with pytest.raises(EnvoyConfigError, match=r"service b, routes\[0\].prefix: /x is taken by service a"):
        gateway(services)


@pytest.mark.parametrize("prefix", ["orders", "/a?b", "/a#b", ""])
def test_odd_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(EnvoyConfigError, match="route prefix"):
        routes.path_match(prefix)


def test_the_weights_that_the_agent_sets_are_on_every_route() -> None:
    weighted = find(gateway()["proxy"]["routes"], "weighted_clusters")
    assert len(weighted) == 2
    for entry in weighted:
        assert [(item["name"], item["weight"]) for item in entry["clusters"]] == [
            ("orders_stable", 100),
            ("orders_candidate", 0),
        ]


def test_behind_a_virtual_address_only_this_gateway_counts_for_zones() -> None:
    localities = gateway()["local"]["resources"][0]["endpoints"]
    assert [entry["locality"]["zone"] for entry in localities] == ["north-a"]
    regions = {"north": {**sample.REGIONS["north"], "gateway": {"address": "", "port": 443}}}
    platform = proxies.Platform(sample.DOMAIN, sample.HOSTS, sample.services(), regions)
    localities = proxies.gateway("edge1", platform, Settings())["local"]["resources"][0]["endpoints"]
    assert [entry["locality"]["zone"] for entry in localities] == ["north-a", "north-b"]


def test_the_bootstrap_does_not_depend_on_the_services() -> None:
    more = {**sample.services(), "billing": sample.service("billing", 2, routes=[sample.route("/billing")])}
    assert gateway()["bootstrap"] == gateway(more)["bootstrap"]
    assert gateway()["lds"] == gateway(more)["lds"], "routes come from the agent"


def test_versions_follow_the_content() -> None:
    first, second, other = gateway(), gateway(), gateway(idle_timeout=7.0)
    assert first["cds"]["version_info"] == second["cds"]["version_info"] != other["cds"]["version_info"]


def test_a_limit_has_a_bucket_per_route_and_client() -> None:
    limits = gateway()["proxy"]["routes"]["gateway"]["virtual_hosts"][0]["typed_per_filter_config"]
    limit = limits["envoy.filters.http.local_ratelimit"]
    assert limit["descriptors"] == [
        {
            "entries": [{"key": "route", "value": "orders-0"}, {"key": "remote_address"}],
            "token_bucket": {"max_tokens": 2000, "tokens_per_fill": 1000, "fill_interval": "1s"},
        }
    ]


def test_wrong_settings_are_named_all_at_once() -> None:
    with pytest.raises(EnvoyConfigError) as caught:
        Settings.parse({"prot": 1, "port": "x", "idle_timeout": -1, "domains": "a"})
    message = str(caught.value)
    assert all(name in message for name in ("prot: unknown", "port:", "idle_timeout:", "domains:"))


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(EnvoyConfigError, match="'edge9': not in causeway_hosts"):
        gateway(host="edge9")


def test_a_call_to_a_missing_service_is_named() -> None:
    services = {"a": sample.service("a", 0, calls=[{"service": "ghost", "port": 9001}])}
    with pytest.raises(EnvoyConfigError, match="service a: calls 'ghost', which does not exist"):
        sidecar("a", services)


def test_vrrp_follows_names_and_knows_its_peers() -> None:
    shuffled = dict(reversed(list(sample.HOSTS.items())))
    first = vrrp.instance("edge1", shuffled, sample.REGIONS)
    second = vrrp.instance("edge2", sample.HOSTS, sample.REGIONS)
    assert first["priority"] > second["priority"]
    assert (first["source"], first["peers"]) == ("10.77.1.11", ["10.77.1.12"])
    assert second["address"] == "10.77.1.10"
    assert vrrp.instance("edge1", sample.HOSTS, {"north": {"gateway": {"address": ""}}}) == {}


def test_the_interface_is_the_one_with_the_address() -> None:
    facts = {
        "interfaces": ["lo", "ens-3"],
        "lo": {"device": "lo", "ipv4": {"address": "127.0.0.1"}},
        "ens_3": {"device": "ens-3", "ipv4": {"address": "10.0.0.1"}, "ipv4_secondaries": [{"address": "10.77.1.11"}]},
    }
    assert vrrp.interface(facts, "10.77.1.11") == "ens-3"
    with pytest.raises(EnvoyConfigError, match="no network interface has the address"):
        vrrp.interface(facts, "10.9.9.9")


CANARY = {"strategy": "canary", "canary": {"sticky": "cookie", "cohort": {"header": "x-beta", "value": "yes"}}}
SECRET = "not a secret"
TOKEN = pools.pool_token(SECRET, "orders")


def released(release: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """orders with a release strategy; catalog, which it calls, has the same."""
    services = sample.services()
    services["orders"].update(release=release, **changes)
    services["catalog"].update(release=release)
    return services


def gateway_with(secret: str, services: dict[str, Any] | None = None) -> dict[str, Any]:
    return proxies.gateway("edge1", dataclasses.replace(sample.platform(services), pool_secret=secret), Settings())


def public(documents: dict[str, Any]) -> dict[str, Any]:
    """The gateway's routes by name, in their order."""
    (host,) = documents["proxy"]["routes"]["gateway"]["virtual_hosts"]
    return {entry["name"]: entry for entry in host["routes"]}


@pytest.mark.parametrize("release", [{}, {"strategy": "rolling"}, {"strategy": "blue_green"}])
def test_other_strategies_change_no_route(release: dict[str, Any]) -> None:
    documents = gateway(released(release))
    assert documents["proxy"] == gateway()["proxy"]
    assert list(public(documents)) == ["trace-refused", "orders-0-safe", "orders-0"]


def test_ways_of_a_canary_are_tried_from_the_narrowest_on() -> None:
    found = public(gateway_with(SECRET, released(CANARY)))
    assert list(found) == [
        "trace-refused",
        *("orders-0-test-safe", "orders-0-test"),
        *("orders-0-cohort-safe", "orders-0-cohort"),
        *("orders-0-new-safe", "orders-0-new"),
        *("orders-0-safe", "orders-0"),
    ]
    needs = [name for name, entry in found.items() if find(entry, "needs") == ["orders_candidate"]]
    assert needs == ["orders-0-cohort-safe", "orders-0-cohort", "orders-0-new-safe", "orders-0-new"]
    assert "retry_policy" not in found["orders-0-test-safe"]["route"]
    assert found["orders-0-cohort"]["route"]["retry_policy"] == found["orders-0"]["route"]["retry_policy"]
    limited = {name for name, entry in found.items() if find(entry, "metadata")}
    assert limited == set(found) - {"trace-refused"}, "one limit for all ways"


def test_the_stable_pool_comes_first_so_that_users_only_move_to_the_candidate() -> None:
    """Envoy takes the first cluster whose weights sum up to more than hash % 100."""
    (clusters, *others) = [
        entry["clusters"] for entry in find(gateway(released(CANARY))["proxy"]["routes"], "weighted_clusters")
    ]
    assert all(entry == clusters for entry in others)
    assert [entry["name"] for entry in clusters] == ["orders_stable", "orders_candidate"]

    def chosen(place: int, weight: int) -> str:
        names = [clusters[0]["name"]] * (100 - weight) + [clusters[1]["name"]] * weight
        return names[place]

    for place in range(100):
        pools_seen = [chosen(place, weight) for weight in range(101)]
        assert pools_seen == sorted(pools_seen, reverse=True), "stable, then candidate for good"


@pytest.mark.parametrize(
    "sticky, policy",
    [
        (
            "cookie",
            [
                {"cookie": {"name": "causeway-orders"}, "terminal": True},
                {"header": {"header_name": "x-request-id"}},
            ],
        ),
        ("header:x-user", [{"header": {"header_name": "x-user"}}]),
        ("none", None),
    ],
)
def test_stickiness_at_the_gateway_and_between_services(sticky: str, policy: list[dict[str, Any]] | None) -> None:
    services = released({"strategy": "canary", "canary": {"sticky": sticky}})
    route = public(gateway(services))["orders-0"]["route"]
    assert route.get("hash_policy") == policy
    assert route["weighted_clusters"].get("use_hash_policy", False) == (policy is not None)
    outbound = find(sidecar("orders", services)["proxy"]["routes"], "route")
    for action in outbound:
        assert action.get("hash_policy") == (policy if sticky.startswith("header:") else None)
    assert "set-cookie" not in json.dumps(sidecar("orders", services))


BASELINE = {"strategy": "canary", "canary": {**CANARY["canary"], "baseline": True}}


def test_a_baseline_stands_first_and_its_sidecar_is_ready_for_it() -> None:
    services = released(BASELINE)
    documents = gateway_with(SECRET, services)
    weighted = find(documents["proxy"]["routes"], "weighted_clusters")
    order = ["orders_baseline", "orders_stable", "orders_candidate"]
    assert all([one["name"] for one in entry["clusters"]] == order for entry in weighted)
    assert all([one["weight"] for one in entry["clusters"]] == [0, 100, 0] for entry in weighted)
    assert documents["proxy"]["clusters"]["orders_baseline"] == {"service": "orders", "pool": "baseline"}
    assert set(by_name(documents["cds"])) > set(order)
    tests = [entry["route"]["cluster"] for name, entry in public(documents).items() if "-test" in name]
    assert set(tests) == {"orders_candidate"}
    outbound = find(sidecar("orders", services)["proxy"]["routes"], "weighted_clusters")
    names = [f"catalog_{pool}" for pool in ("baseline", "stable", "candidate")]
    assert [one["name"] for one in outbound[0]["clusters"]] == names
    found = by_name(sidecar("orders", services)["lds"])
    assert found["inbound_7"]["address"]["socket_address"] == {"address": "10.77.1.31", "port_value": 7117}
    assert set(by_name(sidecar("orders")["lds"])) == set(found) - {"inbound_7"}


@pytest.mark.parametrize("release", [{**BASELINE, "strategy": "blue_green"}, {**BASELINE, "strategy": "rolling"}])
def test_a_baseline_belongs_to_strategy_canary(release: dict[str, Any]) -> None:
    assert "baseline" not in json.dumps([gateway(released(release))["proxy"], gateway(released(release))["cds"]])
    assert "inbound_7" not in by_name(sidecar("orders", released(release))["lds"])


def test_a_baseline_restarts_no_proxy() -> None:
    assert gateway(released(BASELINE))["bootstrap"] == gateway()["bootstrap"]
    assert sidecar("orders", released(BASELINE))["bootstrap"] == sidecar("orders")["bootstrap"]


def test_nobody_switches_the_baseline_on_but_the_services_file() -> None:
    with pytest.raises(EnvoyConfigError, match="baseline: unknown"):
        Settings.parse({"baseline": True})


def test_tokens_are_in_the_agents_file_only_and_that_is_private() -> None:
    documents = gateway_with(SECRET)
    assert TOKEN in json.dumps(documents["proxy"])
    others = {name: document for name, document in documents.items() if name != "proxy"}
    assert TOKEN not in json.dumps(others)
    assert "0" * 32 in json.dumps(documents["check"]), "what is checked has the same shape"
    file = proxies.agent_files({"gateway": documents})["etc/causeway/agent/proxies.d/gateway.json"]
    assert (file["mode"], file["group"], file["secret"]) == ("0640", "causeway-envoy", True)
    assert documents["proxy"]["group"] == "causeway-envoy"
    assert SECRET not in repr(dataclasses.replace(sample.platform(), pool_secret=SECRET))


def test_without_a_secret_nothing_is_private() -> None:
    documents = gateway()
    assert "group" not in documents["proxy"]
    assert set(proxies.agent_files({"gateway": documents})["etc/causeway/agent/proxies.d/gateway.json"]) == {"content"}


def test_the_sidecar_waits_for_candidates_of_its_own_host_only() -> None:
    documents = sidecar("orders")
    listener = by_name(documents["lds"])["inbound_5"]["address"]["socket_address"]
    assert listener == {"address": "10.77.1.31", "port_value": 7115}
    process = by_name(documents["cds"])["inbound_5"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    assert process["endpoint"]["address"]["socket_address"] == {"address": "10.89.1.15", "port_value": 8080}
    assert "health_checks" not in by_name(documents["cds"])["inbound_5"], "an empty slot costs nothing"


def everything(strategy: str) -> dict[str, Any]:
    sections = {
        **CANARY,
        "strategy": strategy,
        "blue_green": {"mirror": {"percent": 12.5}},
    }
    limited = [sample.route("/orders"), sample.route("/read", methods=["GET"]), sample.route("/write", methods=["PUT"])]
    return released(sections, routes=limited)


@pytest.mark.parametrize("strategy", ["canary", "baseline", "blue_green", "rolling"])
def test_envoy_accepts_every_strategy(envoy: str, tmp_path: Path, strategy: str) -> None:
    services = everything(strategy)
    if strategy == "baseline":
        services = released(BASELINE, routes=services["orders"]["routes"])
    documents = {
        "gateway": gateway_with(SECRET, services),
        **proxies.sidecars("app1", sample.platform(services), Settings()),
    }
    for name, generated in documents.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(generated["check"]), encoding="utf-8")
        command = [envoy, "--mode", "validate", "-l", "warning", "-c", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        assert "eprecated" not in result.stderr, result.stderr


def odd_services() -> dict[str, Any]:
    """Everything at its edge: root prefix, no limit, no retries, methods, ten slots, self-made chains of calls."""
    placed = [
        {**sample.service("web", 0)["instances"]["placed"][0], "slot": slot, "id": f"app1-{slot}"} for slot in range(10)
    ]
    web = sample.service(
        "web",
        0,
        routes=[
            sample.route("/", rate_limit={}, retries={"attempts": 0}, timeout=0.0),
            sample.route("/a/b/c/", methods=["get", "PUT"], rate_limit={"requests": 1, "per": 0.07, "burst": 0}),
        ],
        calls=[{"service": name, "port": 9000 + number} for number, name in enumerate(("a", "b-with-dash"))],
        instances={"placed": placed},
    )
    return {
        "web": web,
        "a": sample.service("a", 1),
        "b-with-dash": sample.service("b-with-dash", 255, calls=[{"service": "a", "port": 9001, "timeout": 0.001}]),
        "off": sample.service("off", 3, instances={"placed": []}, routes=[sample.route("/off")]),
    }


@pytest.mark.parametrize("services", [sample.services(), odd_services(), {}], ids=["lab", "odd", "empty"])
def test_envoy_accepts_what_is_generated(envoy: str, tmp_path: Path, services: dict[str, Any]) -> None:
    platform = sample.platform(services)
    documents = {
        "gateway": proxies.gateway("edge1", platform, Settings(trace_collector="10.77.1.40:4318")),
        **proxies.sidecars("app1", platform, Settings()),
    }
    for name, generated in documents.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(generated["check"]), encoding="utf-8")
        command = [envoy, "--mode", "validate", "-l", "warning", "-c", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        assert "eprecated" not in result.stderr, result.stderr
