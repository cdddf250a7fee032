"""Shards and tenants in a service's file: docs/sharding.md."""

from __future__ import annotations

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer_files, quadlet
from ansible_collections.causeway.platform.plugins.module_utils.postgresql import hba, tuning

ZONES = "regions/north/zones"
DATABASE_HOSTS = {"north-a": "core1", "north-b": "core2", "north-c": "core3"}


@pytest.fixture
def sharded(files):
    """Three database hosts; orders has shards and tenants as given."""
    for zone, host in DATABASE_HOSTS.items():
        files.data["platform"]["regions"]["north"]["zones"][zone]["hosts"][host]["components"].append("database")
    files.set("platform", f"{ZONES}/north-c/hosts/mon1", {"address": "10.0.3.41", "components": ["backup"]})

    def change(**keys):
        files.set("orders", "database", {"shards": 2, "tenants": ["acme", "bolt"], **keys})
        return files

    return change


def clusters(files):
    return files.read().variables["causeway_databases"]


def test_the_first_shard_is_the_services_own_cluster(sharded):
    found = clusters(sharded())
    assert list(found) == ["orders", "orders-s2"]
    first, second = found.values()
    assert (first["database"], first["role"], first["port"], first["exporter_port"]) == (
        "orders",
        "orders",
        15110,
        19110,
    )
    assert (second["database"], second["role"], second["port"]) == ("orders_s2", "orders", 15111)
    assert (second["rest_port"], second["exporter_port"], second["service"]) == (17111, 19111, "orders")
    assert first["sharding"]["shard"] == "s1"
    assert second["sharding"]["shard"] == "s2"
    same = {key: value for key, value in first["sharding"].items() if key != "shard"}
    assert same == {key: value for key, value in second["sharding"].items() if key != "shard"}
    assert same["home"] == "orders"
    assert same["shards"]["s2"] == {"cluster": "orders-s2", "weight": 1.0, "region": ""}
    assert same["tenants"]["acme"]["database"] == "orders_acme"
    assert {one["belongs"] for one in same["tenants"].values()} <= {"s1", "s2"}
    assert [one["host"] for one in same["poolers"]] == ["core1", "core2", "core3"]


def test_a_database_that_gets_shards_stays_where_it_is(sharded):
    before = clusters(sharded(shards=1))["orders"]
    after = clusters(sharded(shards=3))["orders"]
    assert {key: before[key] for key in ("members", "port", "database")} == {
        key: after[key] for key in ("members", "port", "database")
    }


def test_groups_of_shards(sharded):
    groups = sharded().read().groups
    assert groups["database_orders_s2"].hosts == ["core1", "core2", "core3"]


def test_one_more_shard_moves_its_share_and_no_more(sharded):
    names = [f"tenant{number}" for number in range(400)]

    def belong(count):
        tenants = clusters(sharded(shards=count, tenants=names))["orders"]["sharding"]["tenants"]
        return {name: one["belongs"] for name, one in tenants.items()}

    two, three = belong(2), belong(3)
    moved = {name for name in names if two[name] != three[name]}
    assert {three[name] for name in moved} == {"s3"}
    assert moved == {name for name in names if three[name] == "s3"}


def test_by_region(sharded, files):
    files.set("platform", "regions/south", {"state": "standby", "zones": {"south-a": {"hosts": {}}}})
    hosts = {f"s{number}": {"address": f"10.1.1.{number}", "components": ["database"]} for number in (1, 2, 3)}
    files.set("platform", "regions/south/zones/south-a/hosts", hosts)
    named = {"north": {"region": "north"}, "south": {"region": "south", "weight": 2}}
    tenants = [
        {"name": "acme", "region": "south"},
        {"name": "bolt", "region": "north"},
        {"name": "cargo", "shard": "north"},
    ]
    sharded(shards={"by": "region", "named": named}, tenants=tenants)
    problems = files.problems()
    assert problems == [], problems
    found = clusters(files)
    assert {entry["region"] for entry in found["orders-south"]["members"]} == {"south"}
    belongs = {name: one["belongs"] for name, one in found["orders"]["sharding"]["tenants"].items()}
    assert belongs == {"acme": "south", "bolt": "north", "cargo": "north"}
    # The poolers are where the service's own cluster is; the other shard lets them in.
    assert [one["host"] for one in found["orders"]["sharding"]["poolers"]] == ["core1", "core2", "core3"]
    lines = hba.lines(found["orders-south"])
    assert any("10.0.1.21/32" in line and "orders,orders_owner,pgbouncer" in line for line in lines)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"tenants": [{"name": "acme", "shard": "s3"}]},
            'tenants[0].shard: tenant acme is on no shard (got "s3"; allowed: s1, s2)',
        ),
        ({"shards": 0}, "database.shards: not valid (got 0; allowed: a number of shards, 1 to 10"),
        ({"shards": 11}, "database.shards: not valid (got 11"),
        ({"shards": True}, "database.shards: wrong type"),
        ({"shards": {}}, "database.shards: count or named (got neither"),
        ({"shards": {"count": 2, "named": {"a": {}}}}, "database.shards: count or named (got both"),
        ({"shards": {"named": {}}}, "database.shards.named: wrong number of entries"),
        ({"shards": {"by": "region", "count": 2}}, "database.shards.count: shards by region without regions"),
        ({"shards": {"by": "zone", "count": 2}}, "database.shards.by: unknown value"),
        (
            {"shards": {"by": "region", "named": {"a": {}}}, "tenants": []},
            "database.shards.named.a: a shard by region without one",
        ),
        ({"shards": {"named": {"a": {"region": "nort"}}}}, 'named.a.region: unknown region, did you mean "north"?'),
        ({"shards": {"named": {"a": {}, "b": {"number": 1}}}}, "shards.named.b: the number of shard a (got 1"),
        ({"shards": {"named": {"a": {"number": 2}}}}, "shards.named: no shard has number 1 (got 2"),
        ({"shards": {"named": {"a": {"weight": 0}}}}, "database.shards: no shard takes tenants (got weight 0 for all"),
        ({"shards": {"named": {"a": {"weight": -1}}}}, "named.a.weight: not valid (got -1"),
        ({"shards": {"named": {"A b": {}}}}, "bad name"),
        (
            {"shards": {"by": "region", "named": {"a": {"region": "north"}}}, "tenants": ["acme"]},
            "database.tenants[0]: tenant acme is on no shard (got no region; allowed: region: one of north",
        ),
        (
            {
                "shards": {"by": "region", "named": {"a": {"region": "north"}}},
                "tenants": [{"name": "acme", "region": "south"}],
            },
            'database.tenants[0]: tenant acme is on no shard (got "south"',
        ),
        ({"tenants": ["acme", "acme"]}, 'database.tenants[1]: a tenant given twice (got "acme"'),
        ({"tenants": ["acme_ro"]}, "tenants[0]: a tenant's name with an ending of the platform's own"),
        ({"tenants": ["owner"]}, "tenants[0]: a tenant's name with an ending of the platform's own"),
        ({"tenants": ["s2"]}, "tenants[0]: a tenant named like a shard"),
        ({"tenants": ["Acme"]}, 'tenants[0]: not valid (got "Acme"; allowed: a tenant\'s name'),
        ({"tenants": [{"shard": "s1"}]}, "tenants[0]: the key name is missing"),
        ({"tenants": "acme"}, "database.tenants: wrong type"),
        ({"name": "o" * 40, "tenants": ["a" * 30]}, "tenants[0]: a name that is too long"),
        ({"shards": None, "tenants": ["acme"]}, "database.shards: wrong type"),
        ({"shards": {"count": 1, "read_across": ["Orders"]}}, "read_across[0]: not valid"),
    ],
)
def test_mistakes(sharded, keys, message):
    problems = sharded(**keys).problems()
    assert len(problems) == 1, problems
    assert "services/orders.yml:" in problems[0]
    assert message in problems[0]


def test_tenants_need_shards(sharded, files):
    sharded()
    files.set("orders", "database", {"tenants": ["acme"]})
    assert "database.tenants: tenants without shards" in files.problems()[0]


def test_names_at_the_poolers_differ(sharded, files):
    sharded()
    files.set("catalog", "database", {"name": "orders_acme"})
    problems = files.problems()
    assert len(problems) == 1
    assert 'duplicate database name (got "orders_acme"' in problems[0]


def test_what_the_poolers_offer(sharded):
    found = clusters(sharded(tenants=["acme"]))
    options = pgbouncer_files.Options()
    made = pgbouncer_files.clusters(found, "core1", options)
    assert made["tenancies"] == {
        "orders": {"tenants": {"acme": "orders_acme"}, "shards": {"s1": "orders", "s2": "orders-s2"}}
    }
    assert list(made["clusters"]) == ["orders", "orders-s2"]
    lines = pgbouncer_files.hba(found, "core1")
    assert "local orders_acme,orders_acme_ro orders scram-sha-256\n" in lines
    assert "local orders_s2,orders_s2_ro orders scram-sha-256\n" in lines
    assert pgbouncer_files.ini(found, "core1", options).endswith("\n[users]\norders = max_user_connections=50\n")
    # Three poolers, two pools each, all to one leader.
    assert tuning.connections(found["orders"]["pool"], 3, 3) >= 3 * 50


def test_a_pooler_offers_shards_of_other_hosts(sharded, files):
    for number in (1, 2, 3):
        entry = {"address": f"10.0.1.{60 + number}", "components": ["database"]}
        files.set("platform", f"{ZONES}/north-a/hosts/db{number}", entry)
    sharded(shards=6, tenants=["acme"])
    found = clusters(files)
    home = {entry["host"] for entry in found["orders"]["members"]}
    away = {entry["host"] for one in found.values() for entry in one["members"]} - home
    assert away, "all shards are on the same hosts"
    host = min(home)
    assert set(pgbouncer_files.clusters(found, host, pgbouncer_files.Options())["clusters"]) == set(found)
    for other in away:
        made = pgbouncer_files.clusters(found, other, pgbouncer_files.Options())
        assert "tenancies" not in made
        assert set(made["clusters"]) == {
            name for name, one in found.items() if other in {entry["host"] for entry in one["members"]}
        }


def test_who_may_connect(sharded):
    lines = hba.lines(clusters(sharded())["orders-s2"])
    database = '"/^orders(_[a-z0-9_]+)?$"'
    assert f"local {database} orders,orders_owner,pgbouncer scram-sha-256" in lines
    assert f"hostssl {database} orders_mover,orders_across 10.0.2.21/32 scram-sha-256 clientcert=verify-ca" in lines


def test_what_the_service_finds(sharded):
    description = sharded().read()
    service = description.variables["causeway_services"]["orders"]
    options = quadlet.Options(
        platform="shop", databases=description.variables["causeway_databases"], database_secret="x" * 32
    )
    placed = {key: value for key, value in service["instances"]["placed"][0].items() if key != "service"}
    instance = quadlet.Instance(service=service, version="1.0.0", **placed)
    made = quadlet.database_environment(instance, options)
    assert made["PGDATABASE_TENANT"] == "orders_{tenant}"
    assert made["TENANTS"] == "acme,bolt"
    assert (made["PGDATABASE"], made["PGUSER"]) == ("orders", "orders")
