"""Every mistake gets one message that says where, what and what is allowed; and all mistakes come at once."""

from __future__ import annotations

import os

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.topology import load, schema

from .conftest import CATALOG, REMOVED

A = "regions/north/zones/north-a/hosts"
B = "regions/north/zones/north-b/hosts"
HOST = {"address": "10.0.9.9"}

# file, path, value, what the one message contains
ONE_VALUE = {
    # platform.yml: shape
    "unknown key": (
        "platform",
        "regoins",
        {},
        ["platform.yml:", "regoins: unknown key", 'mean "regions"?', "allowed: plugin, "],
    ),
    "unknown host key": (
        "platform",
        f"{A}/app1/adress",
        "10.0.0.9",
        ["hosts.app1.adress: unknown key", 'mean "address"?'],
    ),
    "wrong type": ("platform", "regions", ["north"], ["regions: wrong type (got a list; allowed: a mapping)"]),
    "type of vars": ("platform", "vars", "x", ["vars: wrong type", "a mapping"]),
    "other plugin": (
        "platform",
        "plugin",
        "causeway.platform.topologie",
        ["plugin: unknown value", "causeway.platform.topology"],
    ),
    "missing key": ("platform", "domain", REMOVED, ["platform.yml:1: the key domain is missing", "shop.internal"]),
    "missing address": ("platform", f"{A}/app1/address", REMOVED, ["app1: the key address is missing"]),
    "no region": ("platform", "regions", {}, ["regions: wrong number of entries (got 0; allowed: minimum 1)"]),
    "state": ("platform", "regions/north/state", "passive", ['got "passive"; allowed: active, standby)']),
    "unknown component": (
        "platform",
        f"{A}/core1/components/0",
        "registri",
        [
            "core1.components[0]: unknown value",
            'mean "registry"?',
            'got "registri"',
            "gateway, registry, services, metrics, trust, database, backup, object_storage",
        ],
    ),
    "component twice": ("platform", f"{A}/app1/components", ["services", "services"], ["app1.components: given twice"]),
    "not an address": (
        "platform",
        f"{A}/app1/address",
        "10.0.1.310",
        ['app1.address: not valid (got "10.0.1.310"', "IPv4"],
    ),
    "address of no machine": ("platform", f"{A}/app1/address", "224.0.0.1", ["app1.address: not valid", "one machine"]),
    "IPv6 address": ("platform", f"{A}/app1/address", "2001:db8::1", ["app1.address: not valid"]),
    "address as number": ("platform", f"{A}/app1/address", 10.1, ["app1.address: wrong type (got a number, 10.1;"]),
    "platform with a space": ("platform", "platform", "my shop", ["platform: not valid", "DNS label"]),
    "domain in capitals": ("platform", "domain", "Shop.Internal", ["domain: not valid", "lower case"]),
    "domain of one label": ("platform", "domain", "internal", ["domain: not valid"]),
    "label with a line end": ("platform", "platform", "shop\n", ["platform: not valid", r'"shop\n"']),
    "label too long": ("platform", "platform", "s" * 64, ["platform: not valid", "at most 63"]),
    "host name as path": ("platform", f"{A}/..", HOST, ["..: bad name", "DNS label"]),
    "host name in capitals": ("platform", f"{A}/App9", HOST, ['App9: bad name (got "App9"; allowed: a DNS label']),
    "zone name": ("platform", "regions/north/zones/north_d", {"hosts": {}}, ["north_d: bad name"]),
    "port": (
        "platform",
        "regions/north/gateway/port",
        70000,
        ["gateway.port: not valid (got 70000; allowed: a whole number, 1 to 65535)"],
    ),
    "port as true": (
        "platform",
        "regions/north/gateway/port",
        True,
        ["gateway.port: wrong type (got true or false, true;"],
    ),
    "services folder": ("platform", "services", "servces/", ["services: cannot be listed", "one file per service"]),
    # platform.yml: sense
    "duplicate address": (
        "platform",
        f"{B}/app2/address",
        "10.0.1.31",
        ["app2.address: duplicate address (got 10.0.1.31", "host app1"],
    ),
    "virtual address of a host": (
        "platform",
        "regions/north/gateway/address",
        "10.0.1.31",
        ["gateway.address: duplicate address"],
    ),
    "duplicate host name": ("platform", f"{B}/app1", HOST, ["north-b.hosts.app1: duplicate host name", "zone north-a"]),
    "host named like a group": ("platform", f"{A}/registry", HOST, ["hosts.registry: a host named like a group"]),
    "host named like a service": ("platform", f"{A}/orders", HOST, ["hosts.orders: a host named like a service"]),
    "zone in two regions": (
        "platform",
        "regions/south",
        {"zones": {"north-a": {"hosts": {}}}},
        ["regions.south.zones.north-a: duplicate zone name", "region north"],
    ),
    "router used twice": (
        "platform",
        "regions/south",
        {"gateway": {"router_id": 51}, "zones": {"south-a": {"hosts": {}}}},
        ["regions.south.gateway.router_id: duplicate virtual router (got 51"],
    ),
    "only standby": ("platform", "regions/north/state", "standby", ["regions: no region is active"]),
    "even quorum": (
        "platform",
        f"{A}/core9",
        {**HOST, "components": ["registry"]},
        ["registry: an even number adds no safety (got 4 hosts", "3, 5, 7"],
    ),
    "small quorum": (
        "platform",
        f"{B}/core2/components",
        [],
        ["registry: no quorum (got 2 hosts; allowed: 3, 5, 7 hosts"],
    ),
    "two token hosts": (
        "platform",
        f"{A}/app1/components",
        ["services", "trust"],
        ["trust: not exactly one host (got app1, core1"],
    ),
    "no token host": ("platform", f"{A}/core1/components", ["registry"], ["trust: not exactly one host (got none"]),
    "gateway on a used port": (
        "platform",
        "regions/north/gateway/port",
        2379,
        ["gateway.port: a port that the platform itself uses"],
    ),
    "gateway on a mesh port": (
        "platform",
        "regions/north/gateway/port",
        7104,
        ["gateway.port: a port that the platform itself uses"],
    ),
    "variable name": ("platform", "vars/a-b", 1, ["vars.a-b: bad variable name"]),
    "derived variable": ("platform", "vars/causeway_hosts", {}, ["vars.causeway_hosts: this variable is derived"]),
    "derived on a host": (
        "platform",
        f"{A}/app1/vars",
        {"ansible_host": "x"},
        ["app1.vars.ansible_host: this variable is derived"],
    ),
    "plain secret": (
        "platform",
        "vars/db_password",
        "s3cret",
        ["vars.db_password: a secret in plain text (allowed: a !vault value"],
    ),
    "lab network": (
        "platform",
        "lab",
        {"name": "x", "network": "10.0.0.1/16"},
        ["lab.network: not valid", "10.77.0.0/16"],
    ),
    "lab's bridge on a host": (
        "platform",
        "lab",
        {"name": "x", "network": "10.0.0.0/16", "gateway": "10.0.1.31"},
        ["lab.gateway: duplicate address"],
    ),
    "lab name": ("platform", "lab", {"name": "../x", "network": "10.0.0.0/16"}, ["lab.name: not valid"]),
    # service files: shape
    "unknown service key": ("orders", "route", [], ["services/orders.yml:", "route: unknown key", 'mean "routes"?']),
    "missing version": ("orders", "version", REMOVED, ["services/orders.yml:1: the key version is missing"]),
    "version as number": ("orders", "version", 1.0, ["version: wrong type (got a number, 1.0;", "in quotes"]),
    "duration without unit": (
        "orders",
        "health",
        {"interval": "5"},
        ['health.interval: not valid (got "5"', "250ms, 5s or 2m"],
    ),
    "duration as number": ("orders", "health", {"interval": 5}, ["health.interval: wrong type", "250ms, 5s or 2m"]),
    "zero duration": ("orders", "health", {"interval": "0s"}, ["health.interval: not valid"]),
    "negative duration": ("orders", "release", {"pause": "-1s"}, ["release.pause: not valid"]),
    "zero weight": (
        "orders",
        "routes/0/retries",
        {"budget": 0},
        ["budget: not valid (got 0; allowed: a percentage above 0"],
    ),
    "negative attempts": ("orders", "routes/0/retries", {"attempts": -1}, ["attempts: not valid (got -1"]),
    "method": ("orders", "routes/0/methods", ["get"], ["routes[0].methods[0]: unknown value", "GET, HEAD"]),
    "path upwards": ("orders", "health", {"path": "/../etc/passwd"}, ["health.path: not valid"]),
    "path without a slash": ("orders", "health", {"path": "healthz"}, ["health.path: not valid"]),
    "metrics without a path": ("orders", "metrics", {}, ["metrics: the key path is missing"]),
    "metrics where health is": (
        "orders",
        "metrics",
        {"path": "/healthz"},
        ["metrics.path: the path of the health check"],
    ),
    "prefix upwards": ("orders", "routes/0/prefix", "/orders/..", ["routes[0].prefix: not valid"]),
    "prefix with a closing slash": (
        "orders",
        "routes/0/prefix",
        "/orders/",
        ["routes[0].prefix: not valid", "closing slash"],
    ),
    "prefix with a line end": ("orders", "routes/0/prefix", "/orders\r\nX: y", ["routes[0].prefix: not valid"]),
    "placeholder": (
        "orders",
        "image",
        {"archive": "{name}.tar"},
        ["image.archive: not valid", "{service} and {version}"],
    ),
    "template": ("orders", "image", {"archive": "{{ x }}.tar"}, ["image.archive: not valid"]),
    "reference": ("orders", "image/reference", "Orders", ["image.reference: not valid"]),
    "memory": ("orders", "resources", {"memory": "256MB"}, ["resources.memory: not valid", "such as 256M"]),
    "no memory": ("orders", "resources", {"memory": "1K"}, ["resources.memory: not valid", "16M or more"]),
    "mesh port of etcd": ("orders", "mesh_port", 2379, ["mesh_port: not valid (got 2379; allowed: 7000 to 8990"]),
    "mesh port of an exporter": ("orders", "mesh_port", 9100, ["mesh_port: not valid"]),
    "strategy": ("orders", "release", {"strategy": "canray"}, ["release.strategy: unknown value", "allowed: rolling"]),
    "slo": ("orders", "slo", {"availability": 100}, ["slo.availability: not valid"]),
    "variable of a service": ("orders", "environment", {"A-B": "x"}, ["environment.A-B: bad name"]),
    "true in the environment": (
        "orders",
        "environment",
        {"A": True},
        ["environment.A: wrong type (got true or false;", "in quotes"],
    ),
    "too many slots": ("orders", "instances", {"per_host": 11}, ["instances.per_host: not valid (got 11"]),
    # service files: sense
    "name of another file": (
        "orders",
        "name",
        "order",
        ['name: not the name of its file (got "order"; allowed: "orders"'],
    ),
    "reserved name": ("gateway", "", {"name": "gateway"}, ["name: a name of the platform's own identities"]),
    "long name": ("recommendations", "", {"name": "recommendations"}, ["name: not valid", "at most 14"]),
    "no image": ("orders", "image", {}, ["image: one source is needed (got neither; allowed: archive or repository)"]),
    "two images": (
        "orders",
        "image/repository",
        "images.example.org/orders",
        ["image: one source is needed (got both"],
    ),
    "two services on one port": (
        "orders",
        "mesh_port",
        7100,
        ["mesh_port: ports 7100 to 7109 are taken: catalog has 7100", "allowed: 7110"],
    ),
    "overlapping ports": ("orders", "mesh_port", 7105, ["mesh_port: ports 7105 to 7114 are taken"]),
    "call to a missing service": (
        "orders",
        "calls",
        ["catalogue"],
        ["calls[0]: unknown service", 'mean "catalog"?', "allowed: catalog"],
    ),
    "call by mapping": ("orders", "calls", [{"service": "x"}], ["calls[0].service: unknown service"]),
    "call to itself": ("orders", "calls", ["orders"], ["calls[0]: a service that calls itself"]),
    "call twice": ("orders", "calls", ["catalog", "catalog"], ["calls[1]: called twice"]),
    "min above max": (
        "orders",
        "instances",
        {"min": 4, "max": 3},
        ["instances.min: above the maximum (got 4; allowed: at most instances.max, 3)"],
    ),
    "count outside": (
        "orders",
        "instances",
        {"min": 2, "max": 3, "count": 4},
        ["instances.count: outside min and max (got 4; allowed: 2 to 3)"],
    ),
    "more than the hosts hold": (
        "orders",
        "instances/max",
        7,
        ["instances.max: more than the hosts can hold (got 7; allowed: at most 6: 3 hosts"],
    ),
    "unknown zone": (
        "orders",
        "placement",
        {"zones": ["north-x"]},
        ["placement.zones[0]: unknown zone", "north-a, north-b, north-c"],
    ),
    "unknown region": (
        "orders",
        "placement",
        {"regions": ["nort"]},
        ["placement.regions[0]: unknown region", 'mean "north"?'],
    ),
    "placement too narrow": (
        "orders",
        "placement",
        {"zones": ["north-a"]},
        ["instances.max: more than the hosts can hold", "in its placement"],
    ),
    "no route and no caller": ("orders", "routes", [], ["services/orders.yml:", "nobody can reach this service"]),
    "prefix of another service": (
        "orders",
        "routes/0/prefix",
        "/catalog",
        ["routes[0].prefix: this prefix belongs to catalog"],
    ),
    "prefix twice": (
        "orders",
        "routes",
        [{"prefix": "/o"}, {"prefix": "/o", "methods": ["GET"]}],
        ["routes[1].prefix: given twice"],
    ),
    "try longer than the whole": (
        "orders",
        "routes/0/retries",
        {"per_try_timeout": "19s"},
        ["per_try_timeout: longer than the whole timeout (got 19s; allowed: at most 10s)"],
    ),
    "backoff": (
        "orders",
        "routes/0/retries",
        {"backoff": {"base": "2s", "max": "1s"}},
        ["backoff.base: above the maximum"],
    ),
    "burst": (
        "orders",
        "routes/0/rate_limit",
        {"requests": 10, "burst": 5},
        ["rate_limit.burst: below the rate itself"],
    ),
    "verify elsewhere": (
        "orders",
        "release",
        {"verify": {"path": "/ordersX/1"}},
        ["verify.path: not on a route of this service", "/orders"],
    ),
    "batch": (
        "orders",
        "release",
        {"batch": 7},
        ["release.batch: more than there are instances (got 7; allowed: at most 6)"],
    ),
    "plain secret of a service": (
        "orders",
        "environment",
        {"DB_PASSWORD": "s3cret"},
        ["environment.DB_PASSWORD: a secret in plain text"],
    ),
}


@pytest.mark.parametrize("case", list(ONE_VALUE), ids=list(ONE_VALUE))
def test_one_mistake_one_message(files, case):
    file, path, value, expected = ONE_VALUE[case]
    if path:
        files.set(file, path, value)
    else:
        files.data[file] = {**CATALOG, "mesh_port": 7150, "routes": [{"prefix": f"/{file}"}], **value}
    problems = files.problems()
    assert len(problems) == 1, problems
    for part in expected:
        assert part in problems[0]
    assert "s3cret" not in problems[0]


WHOLE_FILE = {
    "empty": ("", ["the file is empty"]),
    "comments only": ("# nothing\n---\n", ["the file is empty"]),
    "a list": ("- a\n", ["wrong content (got a list of 1; allowed: a mapping"]),
    "a word": ("hello", ['wrong content (got "hello"']),
    "syntax": ("name: [a\nport: 1\n", [":2: YAML syntax error in column 5"]),
    "tab": ("name:\n\tx: 1\n", [":2: YAML syntax error"]),
    "not UTF-8": (b"name: ok\nversion: \xff\n", [":2: not UTF-8 text (got byte 0xff; allowed: UTF-8)"]),
    "control character": (b"name: a\x00b\n", ["YAML syntax error"]),
    "two documents": ("a: 1\n---\nb: 2\n", [":2: more than one YAML document"]),
    "duplicate key": ("name: a\nname: b\n", [":2: name: key given twice, first in line 1"]),
    "tag of Python": ("name: !!python/object/apply:os.system [id]\n", ["name: unknown YAML tag"]),
    "unknown tag": ("name: !env HOME\n", ['name: unknown YAML tag (got "!env"; allowed: !vault']),
    "key of true": ("yes: 1\n", [":1: a key that is not text", "put it in quotes"]),
    "key of a list": ("? [a]\n: 1\n", ["a key that is not text"]),
    "alias of itself": ("name: &a [*a]\n", ["alias of an anchor that is not complete"]),
    "unknown alias": ("name: *a\n", ["alias"]),
    "not a number": ("port: .nan\n", ["port: not a usable number"]),
    "endless number": ("port: " + "9" * 5000 + "\n", ["port:"]),
    "vault of nothing": ("environment: {A: !vault s3cret}\n", ["environment.A: a !vault value that is not encrypted"]),
}


@pytest.mark.parametrize("case", list(WHOLE_FILE), ids=list(WHOLE_FILE))
@pytest.mark.parametrize("file", ["platform", "orders"])
def test_whole_files(files, file, case):
    text, expected = WHOLE_FILE[case]
    files.text(file, text)
    problems = files.problems()
    for part in expected:
        assert any(part in problem and f"{file}.yml" in problem for problem in problems), problems
    assert not any("s3cret" in problem for problem in problems)


def test_an_unreadable_service_is_the_only_problem(files):
    """Calls to it are not reported as well: it exists."""
    files.text("catalog", "{")
    assert len(files.problems()) == 1


@pytest.mark.parametrize("file", ["platform", "orders"])
def test_a_large_file_is_refused_before_it_is_parsed(files, file, monkeypatch):
    compose = load._compose
    monkeypatch.setattr(load, "_compose", lambda text: pytest.fail("parsed") if len(text) > 1 << 20 else compose(text))
    files.text(file, b"#" * (10 << 20))
    assert any(
        "file too large (got 10485760 bytes; allowed: at most 2097152 bytes (2 MiB))" in line
        for line in files.problems()
    )


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: " + "{b: " * 40 + "1" + "}" * 40, "- " * 100_000], ids=["flow", "map", "block"]
)
def test_deep_nesting_does_not_end_the_process(files, text):
    files.text("orders", text)
    assert any("nested too deeply" in line or "syntax error" in line for line in files.problems())


def test_bomb_of_aliases(files):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    files.text("orders", "\n".join(lines))
    assert any("too many values, aliases counted in full" in line for line in files.problems())


def test_a_pipe_is_not_waited_for(files):
    files.write()
    os.mkfifo(files.folder / "services" / "pipe.yml")
    assert any("pipe.yml: not a regular file" in line for line in files.problems())


def test_a_broken_link_and_a_folder(files):
    files.write()
    (files.folder / "services" / "lost.yml").symlink_to("nowhere")
    (files.folder / "services" / "folder.yml").mkdir()
    problems = files.problems()
    assert any("lost.yml: no such file" in line for line in problems)
    assert any("folder.yml: not a regular file" in line for line in problems)


def test_too_many_services(files):
    files.write()
    for number in range(250):
        (files.folder / "services" / f"s{number}.yml").touch()
    assert files.problems() == ["platform.yml:4: services: too many service files (got 252; allowed: at most 200)"]


def test_addresses_outside_the_lab(files):
    files.set("platform", "lab", {"name": "x", "network": "10.0.0.0/23"})
    problems = files.problems()
    assert len(problems) == 4  # the hosts of north-b and north-c
    assert all(
        "outside the lab's network" in line and "allowed: a host address of 10.0.0.0/23" in line for line in problems
    )


@pytest.mark.parametrize(
    ("address", "owner"), [("10.0.0.1", "the lab's bridge"), ("10.0.0.2", "the lab's package cache")]
)
def test_addresses_that_the_lab_itself_uses(files, address, owner):
    files.set("platform", "lab", {"name": "x", "network": "10.0.0.0/16"})
    files.set("platform", f"{A}/app1/address", address)
    assert [owner in line for line in files.problems()] == [True]


def test_broadcast_address_of_the_lab(files):
    files.set("platform", "lab", {"name": "x", "network": "10.0.0.0/16"})
    files.set("platform", f"{A}/app1/address", "10.0.255.255")
    assert len(files.problems()) == 1


def test_region_without_gateway(files):
    files.set("platform", f"{A}/edge1", REMOVED)
    problems = files.problems()
    assert len(problems) == 2
    assert any("gateway.address: a virtual address without a gateway" in line for line in problems)
    assert any("no gateway for its routed services (got catalog, orders" in line for line in problems)


def test_misspelt_component_does_not_make_further_noise(files):
    files.set("platform", f"{A}/edge1/components", ["gatway"])
    assert len(files.problems()) == 1


def test_all_problems_at_once_in_order(files):
    files.set("platform", f"{A}/app1/components", ["servces"])
    files.set("platform", f"{B}/app2/address", "10.0.0.10")
    files.set("orders", "calls", ["nobody"])
    files.set("orders", "instances", {"min": 3, "max": 1})
    files.set("catalog", "port", "http")
    problems = files.problems()
    assert len(problems) == 5
    assert [line.split(":")[0] for line in problems] == ["platform.yml"] * 2 + ["services/catalog.yml"] + [
        "services/orders.yml"
    ] * 2
    numbers = [int(line.split(":")[1]) for line in problems]
    assert numbers[:2] == sorted(numbers[:2])


def test_lines_are_those_of_the_mistake(files):
    path = files.write()
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "10.0.2.31" in text)
    files.text("platform", path.read_text().replace("10.0.2.31", "10.0.2.331"))
    assert files.problems()[0].startswith(f"platform.yml:{line}: regions.north.zones.north-b.hosts.app2.address: ")


# Secrets

GOOD = "".join(
    f"{name}: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162\n" for name in ("registry", "hsm_pin", "hsm_so_pin")
)
SECRETS = {
    "plain": (
        GOOD.replace("registry: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162", "registry: s3cret"),
        ["secrets.yml:1: registry: a secret in plain text (allowed: a !vault value"],
    ),
    "number": (GOOD + "pin: 12345678\n", ["pin: a secret in plain text"]),
    "list": (GOOD + "more: [s3cret]\n", ["more: not an encrypted value"]),
    "tagged, not encrypted": (GOOD + "more: !vault s3cret\n", ["more: not an encrypted value"]),
    "other tag": (GOOD + "more: !s3cret s3cret\n", ["more: not an encrypted value"]),
    "missing": (GOOD.replace("hsm_pin", "hsm_pn"), ["the secret hsm_pin is missing", 'mean "hsm_pn"?']),
    "syntax": ("registry: 's3cret\n", ["YAML syntax error"]),
    "plain text": ("s3cret", ["wrong content (allowed: a mapping"]),
    "empty": ("", ["the file is empty"]),
    "whole": ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", ["encrypted as a whole"]),
    "duplicate": (GOOD + "registry: s3cret\n", ["registry: not an encrypted value"]),
}


@pytest.mark.parametrize("case", list(SECRETS), ids=list(SECRETS))
def test_secrets(files, case):
    text, expected = SECRETS[case]
    files.set("platform", "secrets", "secrets.yml")
    files.text("secrets", text)
    problems = files.problems()
    assert len(problems) == 1, problems
    for part in expected:
        assert part in problems[0]
    assert "s3cret" not in problems[0]
    assert "12345678" not in problems[0]


def test_good_secrets(files):
    files.set("platform", "secrets", "secrets.yml")
    files.text("secrets", GOOD)
    assert files.problems() == []


def test_missing_secrets_say_how_to_make_them(files):
    files.set("platform", "secrets", "../secrets.yml")
    command = "ansible-playbook -i localhost, causeway.platform.secrets_init -e secrets_file="
    assert f"{command}{files.folder.parent}/secrets.yml" in files.problems()[0]


def test_schemas_are_valid_json_schema():
    jsonschema = pytest.importorskip("jsonschema")
    for document in (schema.PLATFORM, schema.SERVICE):
        text = {**document}
        jsonschema.Draft202012Validator.check_schema(_plain(text))


def _plain(value):
    """Without the type that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value if item != "vault"] if isinstance(value, list) else value
