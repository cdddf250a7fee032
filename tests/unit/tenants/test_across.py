# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of tenants on two real shards, read from one database; schemas of new tenants."""

from __future__ import annotations

from typing import Any

from ansible_collections.causeway.platform.plugins.modules import postgresql_across

from .conftest import HOSTS, LEADERS, PORTS, WORD, Fleet

WHERE = {"acme": "orders", "bolt": "orders-s2"}


def params(fleet: Fleet, **given: Any) -> dict[str, Any]:
    tenants = [
        {
            "name": name,
            "database": f"orders_{name}",
            "hosts": [HOSTS[LEADERS[cluster]]],
            "port": PORTS[cluster],
        }
        for name, cluster in WHERE.items()
    ]
    return {
        "port": PORTS["orders"],
        "socket_path": str(fleet.folder),
        "system_user": "",
        "database": "home",
        "owner": "orders_owner",
        "application": "orders",
        "tables": ["goods"],
        "tenants": tenants,
        "user": "orders_across",
        "password": WORD,
        "tls": "",
        "sslmode": "disable",
        "timeout": 30.0,
        **given,
    }


def test_read_across(tenant: Fleet) -> None:
    tenant.psql("orders-s2", "postgres", "CREATE DATABASE orders_bolt OWNER orders_owner;")
    tenant.psql("orders", "postgres", "CREATE DATABASE home OWNER orders_owner;")
    try:
        for name, cluster in WHERE.items():
            table = (
                "SET ROLE orders_owner; CREATE TABLE public.goods (id int PRIMARY KEY, name text, price numeric(10,2));"
            )
            tenant.psql(cluster, f"orders_{name}", f"GRANT CREATE ON SCHEMA public TO orders_owner; {table}")
            tenant.psql(
                cluster,
                f"orders_{name}",
                f"INSERT INTO goods SELECT n, '{name} ' || n, n FROM generate_series(1, 3) n;",
            )
        assert postgresql_across.run(params(tenant), True)["changed"]
        assert tenant.psql("orders", "home", "SELECT count(*) FROM pg_foreign_server") == "0"
        assert postgresql_across.run(params(tenant), False)["changed"]
        assert not postgresql_across.run(params(tenant), False)["changed"]
        assert not postgresql_across.run(params(tenant), True)["changed"]
        query = "SET ROLE orders; SELECT tenant, count(*), sum(price) FROM across.goods GROUP BY 1 ORDER BY 1;"
        assert tenant.psql("orders", "home", query) == "acme|3|6.00\nbolt|3|6.00"
        # The application reads the views and nothing below; nobody writes across.
        for sql, word in (
            ("SET ROLE orders; SELECT * FROM across_acme.goods;", "permission denied for schema across_acme"),
            ("SET ROLE orders; DELETE FROM across.goods;", "cannot delete from view"),
        ):
            done = "DO $$ BEGIN EXECUTE '%s'; EXCEPTION WHEN OTHERS THEN RAISE NOTICE '%%', SQLERRM; END $$;"
            assert word in tenant.complaint("orders", "home", done % sql.split("; ")[1].rstrip(";"), "orders")
        # A column that one tenant has already is null for the others.
        tenant.psql("orders-s2", "orders_bolt", "ALTER TABLE goods ADD colour text DEFAULT 'red';")
        assert postgresql_across.run(params(tenant), False)["changed"]
        query = "SET ROLE orders; SELECT DISTINCT tenant, colour FROM across.goods ORDER BY 1;"
        assert tenant.psql("orders", "home", query) == "acme|\nbolt|red"
        assert postgresql_across.run(params(tenant, tables=[]), False)["changed"]
        assert not postgresql_across.run(params(tenant, tables=[]), False)["changed"]
        assert tenant.psql("orders", "home", "SELECT count(*) FROM pg_foreign_server") == "0"
    finally:
        tenant.psql("orders", "postgres", "DROP DATABASE home WITH (FORCE);")
        tenant.psql("orders-s2", "postgres", "DROP DATABASE orders_bolt WITH (FORCE);")


def test_a_new_tenant_gets_the_schema(tenant: Fleet) -> None:
    """From the service's own database, with what is noted of its migrations; one that has tables keeps them."""
    tenant.psql("orders", "postgres", "CREATE DATABASE home OWNER orders_owner;")
    given = {"port": PORTS["orders-s2"], "databases": ["orders_new"], "template": "home", "source": tenant.source()}
    try:
        # Before the first migration there is nothing to take over.
        assert not any("schema of home" in step for step in tenant.module("present", **given)["steps"])
        tenant.psql(
            "orders",
            "home",
            "CREATE TABLE public.schema_migrations (version varchar PRIMARY KEY);"
            "INSERT INTO schema_migrations VALUES ('1');"
            "CREATE TABLE public.goods (id int PRIMARY KEY); INSERT INTO goods VALUES (1);"
            "ALTER TABLE goods OWNER TO orders_owner;",
        )
        assert tenant.module("present", **given)["steps"] == ["orders_new: take over the schema of home"]
        assert not tenant.module("present", **given)["changed"]
        assert tenant.psql("orders-s2", "orders_new", "SELECT version FROM schema_migrations") == "1"
        assert tenant.psql("orders-s2", "orders_new", "SELECT count(*) FROM goods") == "0"
        assert (
            tenant.psql("orders-s2", "orders_new", "SELECT tableowner FROM pg_tables WHERE tablename = 'goods'")
            == "orders_owner"
        )
    finally:
        tenant.psql("orders", "postgres", "DROP DATABASE home WITH (FORCE);")
        tenant.psql("orders-s2", "postgres", "DROP DATABASE IF EXISTS orders_new WITH (FORCE);")
