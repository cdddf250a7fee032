# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extensions: packages, libraries, order and parameters."""

from __future__ import annotations

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.postgresql import extensions, parameters
from ansible_collections.causeway.platform.plugins.module_utils.postgresql.extensions import ExtensionError


def test_those_that_are_always_there():
    assert extensions.created([]) == ["pg_stat_statements"]
    assert extensions.libraries([]) == ["pg_stat_statements", "auto_explain"]
    assert extensions.packages([]) == []


def test_packages_of_debian():
    names = ["vector", "pgaudit", "pg_cron", "hypopg", "pg_partman", "postgis", "pg_trgm"]
    assert extensions.packages(names) == [
        "postgresql-17-cron",
        "postgresql-17-hypopg",
        "postgresql-17-partman",
        "postgresql-17-pgaudit",
        "postgresql-17-pgvector",
        "postgresql-17-postgis-3",
        "postgresql-17-postgis-3-scripts",
    ]
    assert extensions.packages(["vector"], 18) == ["postgresql-18-pgvector"]


def test_what_is_required_comes_first():
    assert extensions.created(["earthdistance", "auto_explain", "cube"]) == [
        "pg_stat_statements",
        "cube",
        "earthdistance",
    ]
    found = extensions.created(["h3_postgis"])
    assert found.index("postgis") < found.index("postgis_raster") < found.index("h3_postgis")
    assert extensions.libraries(["pg_stat_kcache", "pgaudit"])[:2] == ["pg_stat_statements", "auto_explain"]


def test_the_order_in_the_file_does_not_matter():
    assert extensions.created(["vector", "hypopg"]) == extensions.created(["hypopg", "vector"])


def test_parameters_that_extensions_need():
    assert extensions.parameters(["pg_cron", "pg_partman"], "orders") == {
        "cron.database_name": "orders",
        "cron.use_background_workers": "on",
        "pg_partman_bgw.dbname": "orders",
        "pg_partman_bgw.role": "orders_owner",
    }


def test_each_requirement_and_prefix_is_sound():
    prefixes = [one.prefix for one in extensions.EXTENSIONS.values() if one.prefix]
    assert len(prefixes) == len(set(prefixes))
    for one in extensions.EXTENSIONS.values():
        assert set(one.requires) <= set(extensions.EXTENSIONS)
        assert all(key.startswith(f"{one.prefix}.") for key, _value in (*one.settings, *one.defaults))


def test_an_unknown_one_is_refused():
    with pytest.raises(ExtensionError, match="unknown extension 'pg_vector'; known are address_standardizer"):
        extensions.packages(["pg_vector"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("work_mem", "64MB"),
        ("work_mem", "1.5 GB"),
        ("Work_Mem", 65536),
        ("statement_timeout", "5min"),
        ("wal_compression", True),
        ("wal_compression", "zstd"),
        ("timezone", "Europe/Berlin"),
        ("synchronous_commit", "remote_apply"),
        ("default_transaction_isolation", "REPEATABLE READ"),
        ("random_page_cost", 1.5),
        ("autovacuum_vacuum_scale_factor", "0.05"),
        ("transaction_buffers", 32),
        ("enable_seqscan", "OFF"),
        ("pg_stat_statements.max", 10000),
        ("auto_explain.log_min_duration", "250ms"),
        ("cron.max_running_jobs", 5),
    ],
)
def test_settings_that_postgresql_takes(key, value):
    assert parameters.problem(key, value, ["pg_cron"]) is None


@pytest.mark.parametrize(
    ("key", "value", "what", "allowed"),
    [
        (
            "work_mem",
            "1XB",
            "not a value of this parameter",
            "64 to 2147483647 (a bare number counts kB), or with a unit",
        ),
        ("work_mem", "5s", "not a value of this parameter", "B, kB, MB, GB, TB"),
        ("work_mem", True, "not a value of this parameter", "a whole number"),
        ("statement_timeout", "5m", "not a value", "us, ms, s, min, h, d"),
        ("shared_buffers", "8kB", "not a value", "16 to 1073741823"),
        ("enable_seqscan", "maybe", "not a value", "on or off"),
        ("synchronous_commit", "off", "not a value", "remote_apply, remote_write, on"),
        ("synchronous_commit", "local", "not a value", "remote_apply, remote_write, on"),
        ("transaction_buffers", 33, "not a value", "a multiple of 16"),
        ("work_memory", "1GB", 'unknown parameter, did you mean "work_mem"?', "a parameter of PostgreSQL 17"),
        ("zero_damaged_pages", "on", "unknown parameter", "a parameter of PostgreSQL 17"),
        ("data_checksums", "off", "unknown parameter", "may be set for a whole cluster"),
        ("pgaudit.log", "ddl", "a parameter of an extension that is not declared", "with pgaudit in extensions only"),
        ("cron.database_name", "x", "a parameter that the platform sets itself", "any other"),
        ("myapp.key", "x", "a parameter of no known extension", "auto_explain.*"),
        *(
            (key, "x", "a parameter that the platform sets itself", "derived or protected")
            for key in (
                "port",
                "listen_addresses",
                "data_directory",
                "ssl",
                "SSL_key_file",
                "archive_command",
                "archive_mode",
                "restore_command",
                "synchronous_standby_names",
                "primary_conninfo",
                "fsync",
                "full_page_writes",
                "hba_file",
                "shared_preload_libraries",
                "recovery_target_time",
                "password_encryption",
                "wal_level",
            )
        ),
    ],
)
def test_settings_that_are_refused(key, value, what, allowed):
    found = parameters.problem(key, value, ["pg_cron"])
    assert found is not None
    assert what in found[0]
    assert allowed in found[2]


def test_settings_in_postgresqls_own_spelling():
    found = parameters.normalised({"TIMEZONE": "UTC", "jit": True, "Work_Mem": 65536, "pgaudit.LOG": "ddl"})
    assert found == {"TimeZone": "UTC", "jit": "on", "pgaudit.log": "ddl", "work_mem": "65536"}
