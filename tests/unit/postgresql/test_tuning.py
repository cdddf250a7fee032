# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters from what a host has, against the published values."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.postgresql import parameters, tuning
from ansible_collections.causeway.platform.plugins.module_utils.postgresql.tuning import GB, MB, TuningError

CLUSTER: dict[str, Any] = {
    "database": "orders",
    "extensions": ["pg_stat_statements", "pg_cron", "vector"],
    "pool": {"size": 20, "reserve": 5},
    "settings": {"work_mem": "64MB", "max_worker_processes": "40"},
    "members": [{"host": name} for name in ("a", "b", "c")],
}


# PGTune's own tests and what its page shows for "web", Linux, PostgreSQL 17.
@pytest.mark.parametrize(
    ("memory", "cpus", "limit", "disk", "expected"),
    [
        (
            256 * GB,
            4,
            200,
            "ssd",
            {"maintenance_work_mem": "8GB", "autovacuum_work_mem": "2GB", "shared_buffers": "64GB"},
        ),
        (16 * GB, 4, 200, "ssd", {"maintenance_work_mem": "1GB", "autovacuum_work_mem": "-1", "huge_pages": "try"}),
        (4 * GB, 2, 200, "ssd", {"huge_pages": "off", "shared_buffers": "1GB", "effective_cache_size": "3GB"}),
        (4 * GB, 4, 9999, "ssd", {"work_mem": "4MB"}),
        (256 * GB, 4, 20, "ssd", {"work_mem": "2796202kB"}),
        (16 * GB, 8, 200, "ssd", {"work_mem": "20164kB", "min_wal_size": "1GB", "max_wal_size": "4GB"}),
        (16 * GB, 2, 200, "ssd", {"work_mem": "20164kB", "max_worker_processes": "8", "max_parallel_workers": "8"}),
        (
            16 * GB,
            12,
            200,
            "hdd",
            {
                "max_worker_processes": "12",
                "max_parallel_workers_per_gather": "4",
                "max_parallel_workers": "12",
                "max_parallel_maintenance_workers": "4",
                "random_page_cost": "4",
                "effective_io_concurrency": "2",
            },
        ),
        (64 * GB, 16, 100, "san", {"autovacuum_max_workers": "4", "effective_io_concurrency": "300"}),
        (64 * GB, 32, 100, "nvme", {"autovacuum_max_workers": "5", "effective_io_concurrency": "1000"}),
        (64 * GB, 8, 100, "ssd", {"autovacuum_max_workers": "3", "effective_io_concurrency": "200"}),
        (1 * GB, 1, 200, "ssd", {"wal_buffers": "7864kB", "jit": "off", "wal_compression": "lz4"}),
        (
            2 * GB,
            1,
            200,
            "ssd",
            {"wal_buffers": "16MB", "random_page_cost": "1.1", "checkpoint_completion_target": "0.9"},
        ),
    ],
)
def test_published_values(memory, cpus, limit, disk, expected):
    found = tuning.tuning(memory, cpus, limit, disk=disk)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("memory", [64 * MB, 200 * MB, 1 * GB, 3 * GB, 7 * GB, 100 * GB, 2048 * GB])
@pytest.mark.parametrize("cpus", [1, 3, 4, 7, 192])
@pytest.mark.parametrize("space", [0, 1 * GB, 30 * GB, 4096 * GB])
def test_every_value_is_one_that_postgresql_takes(memory, cpus, space):
    found = tuning.tuning(memory, cpus, 130, space=space)
    refused = {key: parameters.problem(key, value, ()) for key, value in found.items()}
    assert {key: value for key, value in refused.items() if value} == {}


def test_clusters_share_memory_and_disk():
    assert tuning.tuning(16 * GB, 8, 200, clusters=4) == tuning.tuning(4 * GB, 8, 200)
    alone, four = (tuning.tuning(64 * GB, 8, 200, clusters=count, space=40 * GB) for count in (1, 4))
    assert (alone["max_wal_size"], alone["max_slot_wal_keep_size"]) == ("4GB", "10GB")
    assert (four["max_wal_size"], four["max_slot_wal_keep_size"]) == ("1GB", "2560MB")


def test_all_of_a_large_load_fits_into_memory():
    """shared_buffers, each connection's work_mem and each autovacuum worker together: no more than there is."""
    for memory, limit in ((8 * GB, 130), (32 * GB, 250), (128 * GB, 500)):
        found = tuning.tuning(memory, 8, limit)
        size = {
            key: int(value.rstrip("kMGB")) * {"k": 1 << 10, "M": MB, "G": GB}[value[-2]]
            for key, value in found.items()
            if value.endswith("B")
        }
        workers = int(found["autovacuum_max_workers"]) * size["maintenance_work_mem"]
        assert size["shared_buffers"] + limit * size["work_mem"] + workers <= memory


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": 0}, "memory: 0 is not a number of at least 67108864"),
        ({"memory": "8GB"}, "memory: '8GB' is not a number"),
        ({"cpus": 0}, "cpus: 0 is not"),
        ({"cpus": True}, "cpus: True is not"),
        ({"max_connections": 3}, "max_connections: 3 is not"),
        ({"disk": "floppy"}, "disk: 'floppy' is not allowed; use one of hdd, ssd, san, nvme"),
        ({"clusters": 0}, "clusters: 0 is not"),
        ({"clusters": 1000}, "memory: 8388kB for each of 1000 clusters, at least 64MB"),
        ({"space": -1}, "space: -1 is not"),
        ({"memory": float("nan")}, "memory: nan is not"),
    ],
)
def test_facts_that_make_no_sense_are_refused(change, words):
    arguments = {"memory": 8 * GB, "cpus": 4, "max_connections": 100, **change}
    with pytest.raises(TuningError) as caught:
        tuning.tuning(**arguments)
    assert words in str(caught.value)


def test_connections_leave_room_for_every_pooler_and_for_operators():
    pool = {"size": 20, "reserve": 5}
    assert tuning.connections(pool, 1) == tuning.connections(pool, 3) == 130
    assert tuning.connections(pool, 5) == 180
    assert tuning.connections(pool, 5) >= 6 * 25 + tuning.OTHER_CONNECTIONS


def test_parameters_of_a_cluster():
    found = tuning.parameters(CLUSTER, 8 * GB, 4, most_cpus=8)
    shared, local = found["shared"], found["local"]
    assert set(shared) == tuning.SHARED
    assert shared["wal_level"] == "logical"
    assert shared["max_connections"] == "130"
    assert shared["max_worker_processes"] == "40", "the service's settings win"
    assert local["work_mem"] == "64MB"
    assert local["shared_buffers"] == "2GB"
    assert local["shared_preload_libraries"] == "pg_stat_statements,auto_explain,pg_cron"
    assert local["cron.database_name"] == "orders"
    assert local["auto_explain.log_parameter_max_length"] == "0"
    assert list(local) == sorted(local)


def test_shared_parameters_are_equal_on_unequal_hosts():
    plain = {**CLUSTER, "settings": {}}
    small = tuning.parameters(plain, 4 * GB, 2, most_cpus=16)
    large = tuning.parameters(plain, 64 * GB, 16, clusters=3, most_cpus=16, space=100 * GB)
    assert small["shared"] == large["shared"]
    assert int(small["shared"]["max_worker_processes"]) >= 16 + len(CLUSTER["extensions"])
