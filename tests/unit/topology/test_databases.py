"""Databases of services: docs/design.md section 9."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
import yaml

from ansible_collections.causeway.platform.plugins.module_utils.topology import rules
from ansible_collections.causeway.platform.plugins.module_utils.topology.databases import synchronous
from ansible_collections.causeway.platform.plugins.module_utils.topology.units import check_calendar

from .conftest import CATALOG, REMOVED

ZONES = "regions/north/zones"
DATABASE_HOSTS = {"north-a": "core1", "north-b": "core2", "north-c": "core3"}


@pytest.fixture
def described(files):
    """Three database hosts and a backup host; orders has a database as given."""
    for zone, host in DATABASE_HOSTS.items():
        hosts = files.data["platform"]["regions"]["north"]["zones"][zone]["hosts"]
        hosts[host]["components"].append("database")
    files.set("platform", f"{ZONES}/north-c/hosts/mon1", {"address": "10.0.3.41", "components": ["backup"]})

    def change(database=None, **keys):
        files.set("orders", "database", {**(database or {}), **keys})
        return files

    return change


def test_an_empty_mapping_is_a_complete_database(described):
    description = described().read()
    assert description.warnings == []
    database = description.variables["causeway_services"]["orders"]["database"]
    assert database == {
        "name": "orders",
        "members": 3,
        "placement": {"regions": [], "zones": []},
        "strict": False,
        "max_lag": 16 << 20,
        "extensions": ["pg_stat_statements"],
        "pool": {"size": 20, "reserve": 5, "clients": 400},
        "settings": {},
        "backup": {
            "full": "Sun *-*-* 02:00:00",
            "differential": "Mon..Sat *-*-* 02:00:00",
            "incremental": "*-*-* 00/4:30:00",
            "restore_test": "Sun *-*-* 05:00:00",
            "retention": {"full": 2, "differential": 7},
            "checks": [],
        },
        "shards": {},
        "tenants": {},
    }
    files = described()
    files.text("orders", yaml.safe_dump(files.data["orders"]).replace("database: {}", "database:"))
    assert files.read().variables["causeway_services"]["orders"]["database"] == database


def test_the_cluster_of_a_database(described):
    description = described(
        extensions=["vector", "pg_cron"], settings={"WORK_MEM": "64MB", "jit": True}, max_lag="1M", strict=True
    ).read()
    services = description.variables["causeway_services"]
    hosts = [{"host": "core1", "address": "10.0.1.21"}, {"host": "core2", "address": "10.0.2.21"}]
    hosts.append({"host": "core3", "address": "10.0.3.21"})
    assert description.variables["causeway_databases"] == {
        "orders": {
            "name": "orders",
            "service": "orders",
            "database": "orders",
            "role": "orders",
            "sharding": {},
            "index": 11,
            "port": 15110,
            "rest_port": 17110,
            "exporter_port": 19110,
            "members": [
                {**host, "zone": zone, "region": "north"}
                for host, zone in zip(hosts, ("north-a", "north-b", "north-c"))
            ],
            "synchronous": 1,
            "strict": True,
            "max_lag": 1 << 20,
            "extensions": ["pg_stat_statements", "pg_cron", "vector"],
            "pool": services["orders"]["database"]["pool"],
            "settings": {"jit": "on", "work_mem": "64MB"},
            "backup": services["orders"]["database"]["backup"],
            "clients": [
                {"host": "app1", "address": "10.0.1.31"},
                {"host": "app2", "address": "10.0.2.31"},
                {"host": "app3", "address": "10.0.3.31"},
            ],
        }
    }
    assert services["catalog"]["database"] == {}
    groups = description.groups
    assert groups["database"].hosts == groups["database_orders"].hosts == ["core1", "core2", "core3"]
    assert groups["backup"].hosts == ["mon1"]


def test_members_spread_over_zones_first(described):
    files = described(members=3)
    for number in range(5):
        entry = {"address": f"10.0.1.{50 + number}", "components": ["database"]}
        files.set("platform", f"{ZONES}/north-a/hosts/db{number}", entry)
    members = files.read().variables["causeway_databases"]["orders"]["members"]
    assert sorted(entry["zone"] for entry in members) == ["north-a", "north-b", "north-c"]
    files.set("orders", "database/placement", {"zones": ["north-a"]})
    members = files.read().variables["causeway_databases"]["orders"]["members"]
    assert {entry["zone"] for entry in members} == {"north-a"}


def test_more_members_move_none(described):
    files = described(members=2)
    two = {entry["host"] for entry in files.read().variables["causeway_databases"]["orders"]["members"]}
    files.set("orders", "database/members", 3)
    assert two < {entry["host"] for entry in files.read().variables["causeway_databases"]["orders"]["members"]}


def test_fewer_hosts_make_fewer_members(described):
    files = described()
    files.set("platform", f"{ZONES}/north-c/hosts/core3/components", ["registry", "metrics"])
    description = files.read()
    cluster = description.variables["causeway_databases"]["orders"]
    assert [entry["host"] for entry in cluster["members"]] == ["core1", "core2"]
    assert len(description.warnings) == 1
    assert "2 members: an odd number" in description.warnings[0]


def test_how_many_synchronous_standbys():
    assert [synchronous(members) for members in range(1, 8)] == [0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"retention": 3}, "database.retention: unknown key"),
        (
            {"backup": {"retention": {"full": 0}}},
            "database.backup.retention.full: not valid (got 0; allowed: a whole number",
        ),
        ({"backup": {"retention": {"differential": 0}}}, "database.backup.retention.differential: not valid (got 0;"),
        (
            {"members": 2, "strict": True},
            "database.strict: too few members (got 2 members; allowed: strict with 3 or more",
        ),
        ({"members": 1, "strict": True}, "database.strict: too few members"),
        (
            {"members": 4},
            "database.members: more than there are hosts (got 4; allowed: at most 3 hosts with the component",
        ),
        (
            {"members": 3, "placement": {"zones": ["north-a"]}},
            "at most 1 hosts with the component database in its placement",
        ),
        ({"members": 8}, "database.members: not valid (got 8; allowed: a whole number, 1 to 7)"),
        ({"members": 0}, "database.members: not valid (got 0;"),
        ({"members": "3"}, "database.members: wrong type"),
        ({"placement": {"zones": ["north-d"]}}, 'placement.zones[0]: unknown zone, did you mean "north-'),
        ({"placement": {"regions": ["nort"]}}, 'placement.regions[0]: unknown region, did you mean "north"?'),
        ({"extensions": ["pg_vector"]}, "database.extensions[0]: unknown extension"),
        (
            {"extensions": ["vecto"]},
            'unknown extension, did you mean "vector"? (got "vecto"; allowed: address_standardizer',
        ),
        ({"extensions": ["vector", "vector"]}, "database.extensions: given twice"),
        ({"extensions": "vector"}, "database.extensions: wrong type"),
        ({"settings": {"port": 5432}}, "database.settings.port: a parameter that the platform sets itself"),
        ({"settings": {"ssl": False}}, "database.settings.ssl: a parameter that the platform sets itself"),
        (
            {"settings": {"archive_command": "true"}},
            "settings.archive_command: a parameter that the platform sets itself",
        ),
        (
            {"settings": {"synchronous_standby_names": ""}},
            "synchronous_standby_names: a parameter that the platform sets",
        ),
        ({"settings": {"fsync": False}}, "database.settings.fsync: a parameter that the platform sets itself"),
        (
            {"settings": {"synchronous_commit": False}},
            "settings.synchronous_commit: not a value of this parameter (got false",
        ),
        ({"settings": {"work_men": "1GB"}}, 'database.settings.work_men: unknown parameter, did you mean "work_mem"?'),
        ({"settings": {"work_mem": "lots"}}, 'database.settings.work_mem: not a value of this parameter (got "lots"'),
        ({"settings": {"work_mem": ["1GB"]}}, "database.settings.work_mem: wrong type"),
        ({"settings": {"work_mem": "1GB\n"}}, "database.settings.work_mem: not valid"),
        ({"settings": {"pgaudit.log": "ddl"}}, "an extension that is not declared"),
        ({"settings": {"work mem": "1GB"}}, "bad name"),
        (
            {"backup": {"full": "every sunday"}},
            'database.backup.full: not valid (got "every sunday"; allowed: a calendar',
        ),
        ({"backup": {"incremental": "*-*-* 25:00:00"}}, "database.backup.incremental: not valid"),
        ({"backup": {"differential": "Sat..Mon *-*-* 02:00"}}, "database.backup.differential: not valid"),
        ({"backup": {"restore_test": 5}}, "database.backup.restore_test: wrong type"),
        ({"backup": {"full": ""}}, "database.backup.full: differential without full backups"),
        (
            {"backup": {"full": "", "differential": "", "incremental": "daily"}},
            "backup.incremental: incremental without full",
        ),
        ({"backup": {"checks": [" "]}}, "database.backup.checks[0]: not valid"),
        ({"name": "Orders"}, "database.name: not valid"),
        ({"name": "o" * 41}, "database.name: not valid"),
        ({"name": "postgres"}, "database.name: a name of PostgreSQL's or the platform's own"),
        ({"name": "pg_orders"}, "database.name: a name of PostgreSQL's or the platform's own"),
        ({"name": "pgbouncer"}, "database.name: a name of PostgreSQL's or the platform's own"),
        ({"max_lag": "16"}, 'database.max_lag: not valid (got "16"; allowed: 64K to 1T'),
        ({"pool": {"size": 0}}, "database.pool.size: not valid (got 0"),
        ({"strict": "yes"}, "database.strict: wrong type"),
    ],
)
def test_mistakes(described, keys, message):
    problems = described(keys).problems()
    assert len(problems) == 1, problems
    assert "services/orders.yml:" in problems[0]
    assert message in problems[0]


def test_not_a_mapping(described):
    files = described()
    files.set("orders", "database", True)
    text = "database: wrong type (got true or false, true; allowed: a mapping; {} for every default)"
    assert files.problems() == [f"services/orders.yml:14: {text}"]


def test_no_database_host(files):
    files.set("orders", "database", {})
    files.set("platform", f"{ZONES}/north-c/hosts/mon1", {"address": "10.0.3.41", "components": ["backup"]})
    problems = files.problems()
    assert len(problems) == 1
    assert "services/orders.yml:" in problems[0]
    assert "database: no host for it (allowed: one or more hosts with the component database" in problems[0]


@pytest.mark.parametrize(
    ("components", "got"),
    [([], "got none;"), (["core1"], "got core1, mon1;"), (["core1", "core2"], "got core1, core2, mon1;")],
)
def test_one_host_keeps_the_backups(described, components, got):
    files = described()
    if not components:
        files.set("platform", f"{ZONES}/north-c/hosts/mon1/components", [])
    for host in components:
        zone = {host: zone for zone, host in DATABASE_HOSTS.items()}[host]
        files.data["platform"]["regions"]["north"]["zones"][zone]["hosts"][host]["components"].append("backup")
    problems = files.problems()
    assert len(problems) == 1
    assert "platform.yml:" in problems[0]
    assert f"regions: backup: not exactly one host ({got} allowed: 1 host with this component" in problems[0]


def test_a_misspelt_component_is_told_once(described):
    files = described()
    files.set("platform", f"{ZONES}/north-c/hosts/mon1/components", ["bakcup"])
    problems = files.problems()
    assert len(problems) == 1
    assert 'did you mean "backup"?' in problems[0]


def test_without_databases_nothing_is_asked_for(files):
    description = files.read()
    assert description.variables["causeway_databases"] == {}
    assert description.groups["database"].hosts == description.groups["backup"].hosts == []


@pytest.mark.parametrize("name", ["orders", "orders_ro", "orders_owner"])
def test_names_on_the_poolers_differ(described, name):
    files = described()
    files.set("catalog", "database", {"name": name})
    problems = files.problems()
    assert len(problems) == 1
    assert "database.name: duplicate database name" in problems[0]


def test_warnings(described):
    files = described(members=1)
    files.data["platform"]["regions"]["north"]["zones"]["north-a"]["hosts"]["core1"]["components"].append("backup")
    files.set("platform", f"{ZONES}/north-c/hosts/mon1", REMOVED)
    files.set("catalog", "database", {"members": 2})
    never = {"full": "", "differential": "", "incremental": "", "restore_test": ""}
    files.set("orders", "database/backup", never)
    warnings = files.read().warnings
    assert len(warnings) == 4
    for words in (
        "orders: database: a single member",
        "catalog: database: 2 members",
        "no backup is scheduled",
        "core1 holds",
    ):
        assert any(words in warning for warning in warnings)


def test_all_members_in_one_zone_is_a_warning(described):
    files = described(placement={"zones": ["north-a"]})
    for number in (1, 2):
        entry = {"address": f"10.0.1.{50 + number}", "components": ["database"]}
        files.set("platform", f"{ZONES}/north-a/hosts/db{number}", entry)
    assert any("all its hosts are in zone north-a" in warning for warning in files.read().warnings)


@pytest.mark.parametrize("name", ["database", "backup"])
def test_names_of_the_platforms_identities(files, name):
    files.set(name, "name", name)
    files.data[name] = {**CATALOG, "name": name, "mesh_port": 7200, "routes": [{"prefix": "/x"}]}
    assert any("a name of the platform's own identities" in problem for problem in files.problems())


def test_ports_of_databases_are_the_platforms_own(files):
    files.set("orders", "mesh_port", 8430)
    problems = files.problems()
    assert len(problems) == 1
    assert "mesh_port: port 8432 is the platform's own (got 8430; allowed: 7110, for example)" in problems[0]
    assert {5432, 5433, 6432, 8432, 15000, 16990, 17000, 18990, 19000, 20990} <= rules.RESERVED_PORTS


CIPHERTEXT = "$ANSIBLE_VAULT;1.1;AES256\n6162\n"


def secrets_file(*names):
    return "".join(f"{name}: !vault |\n  {CIPHERTEXT.replace(chr(10), chr(10) + '  ').rstrip()}\n" for name in names)


def test_secrets_of_databases_are_needed_only_with_one(described):
    files = described()
    files.set("platform", "secrets", "secrets.yml")
    files.text("secrets", secrets_file("registry", "hsm_pin", "hsm_so_pin", "databse"))
    problems = files.problems()
    assert len(problems) == 2
    assert "secrets.yml:1: the secret backup is missing; a service has a database: run the playbook" in problems[0]
    assert 'the secret database is missing, did you mean "databse"?' in problems[1]
    files.set("orders", "database", REMOVED)
    assert files.problems() == []


def test_no_hook_signs_with_a_secret_of_databases(described):
    files = described()
    webhook = {"url": "https://x.test/", "secret": "backup"}
    files.set("orders", "release", {"hooks": [{"name": "a", "stages": ["test"], "webhook": webhook}]})
    assert any("a secret of the platform's own" in problem for problem in files.problems())


GOOD = [
    "daily",
    "hourly UTC",
    "Sun *-*-* 02:00:00",
    "Mon..Sat *-*-* 02:00:00",
    "*-*-* 00/4:30:00",
    "*:0/5",
    "02:00",
    "Mon,Wed 3:15",
]
GOOD += ["*-*-1,15 04:00", "Sat", "2030-02-28 23:59:59", "*-1..6-* 1:00 Europe/Berlin"]
BAD = [
    "",
    "fortnightly",
    "Sun Mon",
    "Sunday..Monday",
    "24:00",
    "12:60",
    "*-13-1",
    "*-*-32",
    "0/0:00",
    "12",
    "02:00 -x",
    "a\n",
    "* * * * *",
]
BAD += ["Sun  02:00", "@daily", "01:02:03:04"]


@pytest.mark.parametrize("text", GOOD)
def test_calendar_expressions(text):
    check_calendar(text)


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_calendar_expression(text):
    with pytest.raises(ValueError):
        check_calendar(text)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_takes_what_passes():
    chance = random.Random(7)

    def value(low, high):
        text = str(chance.randint(low, high))
        text += f"..{chance.randint(low, high)}" if chance.random() < 0.3 else ""
        text += f"/{chance.randint(1, 9)}" if chance.random() < 0.3 else ""
        return "*" if chance.random() < 0.3 else text

    passed = list(GOOD)
    for _attempt in range(400):
        text = " ".join(["-".join(value(1, 31) for _part in "md"), ":".join(value(0, 59) for _part in "hms")])
        try:
            check_calendar(text)
        except ValueError:
            continue
        passed.append(text)
    assert len(passed) > 30
    done = subprocess.run(["systemd-analyze", "calendar", *passed], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
