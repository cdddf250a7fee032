"""Migrations in a service's file."""

from __future__ import annotations

import pytest

DATABASE = {"host": "db1.shop.internal", "name": "orders", "user": "orders_owner"}
NAME = "20261122093000_a.sql"


@pytest.fixture
def described(files):
    """Writes migrations of orders and reads the description; returns what is wrong, or the service."""

    def read(names=(f"expand/{NAME}",), **change):
        for name in names:
            path = files.folder / "services" / "migrations" / "orders" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        files.set("orders", "migrations", {"database": DATABASE, **change})
        return files

    return read


def test_defaults(described):
    files = described(lock_timeout="500ms")
    found = files.read().variables["causeway_services"]["orders"]["migrations"]
    assert found.pop("directory").endswith("services/migrations/orders")
    assert found == {
        "database": {**DATABASE, "port": 5432, "sslmode": "verify-full", "ca": "", "cert": "", "key": ""},
        "cluster": "",
        "secret": "",
        "lock_timeout": 0.5,
        "statement_timeout": 60.0,
        "retries": 5,
        "backoff": {"base": 0.5, "max": 30.0},
        "batch_pause": 0.1,
        "run_on": "",
        "lint": {"exclude": []},
    }


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        ((), {}, "migrations.directory: no such directory"),
        (("other/x",), {}, "migrations.directory: none of its phases is there (allowed: expand, backfill, contract)"),
        ((f"expand/{NAME}", "expnd/x"), {}, 'unknown phase (got "expnd"; allowed: expand, backfill, contract)'),
        (("expand/1_a.sql",), {}, 'a bad name for a migration (got "expand/1_a.sql"; allowed: <14 digits>_<name>.sql'),
        (("expand/20261122093000_b.sql", f"expand/{NAME}"), {}, f"the same version as {NAME}"),
        ((f"expand/{NAME}",), {"lock_timeout": "0s"}, "migrations.lock_timeout: not valid"),
        ((f"expand/{NAME}",), {"statement_timeout": "0s"}, "migrations.statement_timeout: not valid"),
        ((f"expand/{NAME}",), {"password": "hunter2"}, "migrations.password: unknown key"),
        ((f"expand/{NAME}",), {"secret": "hunter2!"}, "the name of an entry of the secrets file, never a password"),
        ((f"expand/{NAME}",), {"database": {"host": "db1", "user": "a"}}, "the key name is missing"),
        ((f"expand/{NAME}",), {"database": {**DATABASE, "sslmode": "prefer"}}, "sslmode: unknown value"),
        ((f"expand/{NAME}",), {"database": {**DATABASE, "cert": "/c.pem"}}, "one half of a certificate"),
        ((f"expand/{NAME}",), {"run_on": "db9"}, "migrations.run_on: unknown host"),
        ((f"expand/{NAME}",), {"backoff": {"base": "10s", "max": "1s"}}, "backoff.base: above backoff.max"),
        ((f"expand/{NAME}",), {"lint": {"exclude": ["No Rule"]}}, "lint.exclude[0]: not valid"),
    ],
)
def test_mistakes(described, names, change, message):
    problems = described(names, **change).problems()
    assert len(problems) == 1, problems
    assert message in problems[0]


@pytest.fixture
def with_own(described):
    """The same for a service whose database the platform runs."""

    def read(**change):
        files = described()
        hosts = files.data["platform"]["regions"]["north"]["zones"]["north-a"]["hosts"]
        hosts["core1"]["components"] = ["registry", "trust", "database", "backup"]
        files.set("orders", "database", {"name": "shop_orders"})
        files.set("orders", "migrations", change)
        return files

    return read


def test_a_database_of_the_platform_needs_no_word_more(with_own):
    found = with_own().read().variables["causeway_services"]["orders"]["migrations"]
    assert found["cluster"] == "orders"
    assert found["database"] == {
        **{"host": "/run/postgresql", "port": 15110, "name": "shop_orders", "user": "shop_orders_owner"},
        **{"sslmode": "verify-full", "ca": "", "cert": "", "key": ""},
    }
    # Another database may be meant all the same.
    found = with_own(database=DATABASE).read().variables["causeway_services"]["orders"]["migrations"]
    assert (found["cluster"], found["database"]["host"]) == ("", DATABASE["host"])


@pytest.mark.parametrize("key, value", [("run_on", "core1"), ("secret", "orders")])
def test_the_platform_decides_where_they_run_and_as_whom(with_own, key, value):
    assert f"{key} for a database that the platform runs" in with_own(**{key: value}).problems()[0]


def test_without_any_database_there_is_nothing_to_migrate(described):
    files = described()
    files.set("orders", "migrations", {})
    assert "migrations: the key database is missing" in files.problems()[0]
