# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure parts: which identities a host has, what a rotation touches, how long names become groups."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import hsm, x509_common, x509_identities
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import TrustError

HOST = {
    "name": "core1",
    "address": "10.77.1.21",
    "region": "north",
    "components": ["gateway", "registry", "metrics", "services"],
}
REGIONS = {"north": {"gateway": {"address": "10.77.1.100"}}}


def names(gateway_names: Sequence[str] = (), **changes: Any) -> dict[str, dict[str, Any]]:
    instances = changes.pop("instances", [])
    extra = changes.pop("extra", [])
    found = x509_identities.identities(
        {**HOST, **changes}, "shop.internal", REGIONS, instances, extra, gateway_names=gateway_names
    )
    return {item["name"]: item for item in found}


def test_identities_follow_the_contract() -> None:
    found = names(instances=[{"service": "orders", "slot": 0}, {"service": "orders", "slot": 1}])
    assert list(found) == ["gateway", "host", "metrics", "operator", "svc-orders"]
    assert found["host"]["uris"] == ["spiffe://shop.internal/host/core1"]
    assert found["host"]["dns"] == ["core1.shop.internal", "registry.shop.internal"]
    assert found["host"]["addresses"] == ["10.77.1.21", "127.0.0.1"]
    assert found["gateway"]["uris"] == ["spiffe://shop.internal/gateway"]
    assert found["gateway"]["dns"] == ["gateway.shop.internal"]
    assert found["gateway"]["addresses"] == ["10.77.1.100"]
    assert found["operator"]["uris"] == ["spiffe://shop.internal/operator"]
    assert found["svc-orders"]["uris"] == ["spiffe://shop.internal/orders"]
    assert found["svc-orders"]["dns"] == ["orders.shop.internal"]
    assert found["svc-orders"]["group"] == "causeway-tls-svc-orders"


def test_clients_may_know_the_gateway_by_other_names() -> None:
    found = names(gateway_names=["shop.example.com", "gateway.shop.internal"])
    assert found["gateway"]["dns"] == ["gateway.shop.internal", "shop.example.com"]


def test_only_members_of_the_registry_carry_its_name() -> None:
    assert names(components=["services"])["host"]["dns"] == ["core1.shop.internal"]


def test_an_object_storage_has_an_identity_of_its_own() -> None:
    found = names(components=["object_storage"])
    assert list(found) == ["host", "object-storage"]
    own = found["object-storage"]
    assert own["uris"] == ["spiffe://shop.internal/object-storage"]
    assert own["dns"] == ["object-storage.shop.internal", "core1.shop.internal"]
    assert (own["addresses"], own["common_name"]) == (["10.77.1.21", "127.0.0.1"], "object-storage.shop.internal")


def test_databases_and_backups_have_identities_of_their_own() -> None:
    found = names(components=["database", "backup"])
    assert list(found) == ["backup", "database", "host"]
    for name, addresses in (("database", ["10.77.1.21", "127.0.0.1"]), ("backup", ["10.77.1.21"])):
        assert found[name] == {
            "name": name,
            "uris": [f"spiffe://shop.internal/{name}"],
            "dns": [f"{name}.shop.internal", "core1.shop.internal"],
            "addresses": addresses,
            "group": f"causeway-tls-{name}",
            "common_name": f"{name}.shop.internal",
        }


def test_a_bare_host_has_one_identity_and_extras_add_to_it() -> None:
    found = names(components=[], extra=[{"name": "backup", "dns": ["backup.shop.internal"]}])
    assert list(found) == ["backup", "host"]
    assert found["backup"]["uris"] == ["spiffe://shop.internal/backup"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../etc"}, "is not allowed"),
        ({"name": ""}, "name is missing"),
        ({"address": "here"}, "'here' is no IP address"),
        ({"extra": [{"name": "host"}]}, "is there already"),
        ({"extra": [{"name": "x", "uris": []}]}, "unknown key uris"),
        ({"extra": [{"dns": []}]}, "name is missing"),
    ],
)
def test_bad_hosts_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrustError, match=words):
        names(**changes)


def test_long_identities_get_a_short_unique_group() -> None:
    one, two = (x509_identities.group_of(f"svc-payment-gateway-{part}") for part in ("north", "south"))
    assert one != two
    assert len(one) == len(two) == 31
    assert x509_identities.group_of("svc-abcdefghijklmn") == "causeway-tls-svc-abcdefghijklmn"


PLAN_HOSTS = {
    "app1": {"region": "north", "identities": ["host", "svc-orders"]},
    "app2": {"region": "south", "identities": ["host", "svc-orders", "svc-catalog"]},
}


@pytest.mark.parametrize(
    ("scope", "name", "hosts", "regions"),
    [
        ("all", "", {"app1": ["host", "svc-orders"], "app2": ["host", "svc-orders", "svc-catalog"]}, []),
        ("host", "app1", {"app1": ["host", "svc-orders"]}, []),
        ("service", "catalog", {"app2": ["svc-catalog"]}, []),
        ("intermediate", "north", {"app1": ["host", "svc-orders"]}, ["north"]),
        ("crl", "", {}, []),
    ],
)
def test_a_rotation_touches_what_it_says(scope: str, name: str, hosts: dict[str, Any], regions: list[str]) -> None:
    plan = x509_identities.rotation(scope, name, PLAN_HOSTS)
    assert (plan["hosts"], plan["regions"], plan["crl"]) == (hosts, regions, scope == "crl")


@pytest.mark.parametrize(
    ("scope", "name", "words"),
    [
        ("", "", "use one of all, host, service, intermediate, crl"),
        ("everything", "", "'everything' is not allowed"),
        ("host", "", "needs a name"),
        ("host", "app9", "there is no host 'app9'; use one of app1, app2"),
        ("service", "order", "there is no service 'order'; use one of catalog, orders"),
        ("intermediate", "west", "there is no region 'west'; use one of north, south"),
        ("all", "app1", "takes no name"),
    ],
)
def test_a_rotation_refuses_what_does_not_exist(scope: str, name: str, words: str) -> None:
    with pytest.raises(TrustError, match=words):
        x509_identities.rotation(scope, name, PLAN_HOSTS)


def test_granted_names_come_from_the_controller_not_from_the_host() -> None:
    granted = [{"name": "host", "uris": ["spiffe://x/host/a"], "dns": [], "addresses": [], "common_name": "a"}]
    forged = {"requests": [{"identity": "host", "csr": "CSR", "reasons": [], "uris": ["spiffe://x/gateway"]}]}
    found = x509_identities.requests({"a": {"identities": granted, "authority": "region-north", "requested": forged}})
    assert found[0]["uris"] == ["spiffe://x/host/a"]
    forged["requests"][0]["identity"] = "gateway"
    with pytest.raises(TrustError, match="a: asks for the identity 'gateway', which it does not have"):
        x509_identities.requests({"a": {"identities": granted, "authority": "region-north", "requested": forged}})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), ("30d", 2592000), ("2w", 1209600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert x509_common.parse_duration(text, "x") == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "-1d", "0s", "1y", "d"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(TrustError, match=r"valid_for: .* is no duration"):
        x509_common.parse_duration(text, "valid_for")


def token(slot: int, label: str, serial: str = "1", flags: int = 0x400 | 0x8) -> hsm.TokenInfo:
    return hsm.TokenInfo(slot, label, serial, flags)


def test_the_right_token_is_chosen() -> None:
    tokens = [token(0, "other"), token(1, "shop", "a"), token(2, "blank", flags=0)]
    assert hsm.choose(tokens, "shop", None) == tokens[1]
    assert hsm.choose(tokens, "blank", None) is None
    with pytest.raises(TrustError, match="slot 0 holds the token 'other'"):
        hsm.choose(tokens, "shop", 0)
    twins = [*tokens, token(3, "shop", "b")]
    with pytest.raises(TrustError, match=r"2 tokens are labelled 'shop' .*serial a.*serial b"):
        hsm.choose(twins, "shop", None)
    assert hsm.choose(twins, "shop", None, "b") == twins[-1]


@pytest.mark.parametrize(
    ("flags", "so", "words"),
    [
        (0x408 | 0x40000, False, "user PIN is locked"),
        (0x408 | 0x20000, False, "one attempt is left before the user PIN locks"),
        (0x408 | 0x400000, True, "SO PIN is locked"),
        (0x400, False, "no user PIN yet"),
    ],
)
def test_a_locked_token_is_not_tried(flags: int, so: bool, words: str) -> None:
    with pytest.raises(TrustError, match=words):
        hsm.check_usable(token(0, "shop", flags=flags), so)


def test_library_errors_become_sentences() -> None:
    assert hsm.sentence("CKR_PIN_LOCKED (0x000000A4)").startswith("the PIN is locked")
    assert hsm.sentence("CKR_VENDOR_DEFINED") == "the library answered CKR_VENDOR_DEFINED"


def test_a_clock_that_differs_is_refused() -> None:
    hosts = pytest.importorskip("ansible_collections.causeway.platform.plugins.module_utils.x509_host")
    local = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)
    hosts.check_clock(local, local - timedelta(seconds=299), timedelta(minutes=5))
    with pytest.raises(TrustError, match="301 s ahead of the trust authority's"):
        hosts.check_clock(local, local - timedelta(seconds=301), timedelta(minutes=5))
