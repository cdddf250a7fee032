# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's parameters from what a host has. Sizes are bytes; results are values as postgresql.conf has them.

Sources: [PG] PostgreSQL 17 documentation, chapters 19 and 28; [PGTune] the published rules of PGTune (le0pard) for
PostgreSQL 17 on Linux, kind of database "web", which is what services behind a pooler are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.postgresql import extensions

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
DISKS = ("hdd", "ssd", "san", "nvme")
# Below it PostgreSQL starts, but there is nothing left to divide.
MIN_MEMORY = 64 * MB
# Connections beside those of pools: Patroni, exporters, auth_query, backups, migrations, operators, and PostgreSQL's
# own reserve for superusers (3).
OTHER_CONNECTIONS = 30
# Seven members at most, a base backup for each of two new ones, logical subscribers of tenants that move.
WAL_SENDERS = 20
# What Patroni keeps equal on all members because a standby must not have less than its primary ([PG] 26.4.3), or what
# all have to agree on; it takes these from the dynamic configuration only.
SHARED = frozenset(
    {
        "max_connections",
        "max_locks_per_transaction",
        "max_prepared_transactions",
        "max_replication_slots",
        "max_wal_senders",
        "max_worker_processes",
        "track_commit_timestamp",
        "wal_level",
    }
)


class TuningError(Exception):
    """Facts of a host that no parameters can be derived from."""


def size_text(size: float) -> str:
    """A size in PostgreSQL's units, rounded down to whole kB: ``1GB``, ``384MB``, ``2796202kB``."""
    count = int(size) // KB
    for unit, factor in (("GB", GB // KB), ("MB", MB // KB)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}kB"


def connections(pool: Mapping[str, Any], members: int, poolers: int = 0) -> int:
    """max_connections of a cluster.

    Each member's pooler may fill one pool to the leader, wherever that is, and one more to its own member for readers;
    ``reserve`` adds to each. At least three members are counted: a new one then needs no restart. With shards, each of
    ``poolers`` may open as many as two pools hold (pgbouncer_files.user_connections), all to one leader.
    """
    pools = max(max(members, 3) + 1, 2 * max(poolers, 3) if poolers else 0)
    largest = pools * (int(pool["size"]) + int(pool["reserve"]))
    return math.ceil((largest + OTHER_CONNECTIONS) / 10) * 10


def tuning(
    memory: float, cpus: int, max_connections: int, *, disk: str = "ssd", clusters: int = 1, space: float = 0
) -> dict[str, str]:
    """Parameters of one cluster on a host, sorted by name.

    memory: bytes that databases may use on the host, divided by ``clusters``, the number of clusters on it. cpus: its
    processors, which clusters do share. disk: hdd, ssd, san or nvme. space: bytes of the file system with the data,
    0 if unknown. Raises TuningError.
    """
    for name, value, low in (
        ("memory", memory, MIN_MEMORY),
        ("cpus", cpus, 1),
        ("max_connections", max_connections, 10),
        ("clusters", clusters, 1),
        ("space", space, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= low:
            raise TuningError(f"{name}: {value!r} is not a number of at least {low}")
    if disk not in DISKS:
        raise TuningError(f"disk: {disk!r} is not allowed; use one of {', '.join(DISKS)}")
    share = memory / clusters
    if share < MIN_MEMORY:
        raise TuningError(
            f"memory: {size_text(share)} for each of {clusters} clusters, at least {size_text(MIN_MEMORY)}"
        )
    found = {
        **_memory(share, cpus, max_connections),
        **_log(share, space / clusters),
        **_workers(cpus),
        **_disk(disk),
        "max_connections": str(max_connections),
        # [PG] 24.1.6: workers beyond the default help only where there are many tables and processors; as [PGTune].
        "autovacuum_max_workers": "5" if cpus >= 32 else "4" if cpus >= 16 else "3",
        # [PGTune]: compiling costs short statements more than it saves.
        "jit": "off",
        "default_statistics_target": "100",
    }
    return dict(sorted(found.items()))


def _memory(share: float, cpus: int, max_connections: int) -> dict[str, str]:
    # [PG] 19.4.1: a quarter of the memory is a reasonable start.
    shared_buffers = share // 4
    # [PGTune]: a sixteenth, at most 8 GB; [PG] 19.4.1: autovacuum may use it in each worker, so those get at most 2 GB.
    maintenance = min(share // 16, 8 * GB)
    # [PGTune], after [PG] 19.4.1: a statement may use work_mem several times, so three for each connection and worker.
    slots = (max_connections + int(_workers(cpus)["max_worker_processes"])) * 3
    return {
        "shared_buffers": size_text(shared_buffers),
        # [PG] 19.7.2: what the system's cache holds beside it; three quarters, as [PGTune].
        "effective_cache_size": size_text(share * 3 // 4),
        "maintenance_work_mem": size_text(maintenance),
        "autovacuum_work_mem": size_text(2 * GB) if maintenance >= 2 * GB else "-1",
        "work_mem": size_text(max((share - shared_buffers) // slots, 4 * MB)),
        # [PGTune]: small buffers gain nothing from huge pages.
        "huge_pages": "try" if shared_buffers >= 2 * GB else "off",
    }


def _log(share: float, space: float) -> dict[str, str]:
    # [PG] 19.5.1: about 3 % of shared_buffers, at most one segment of 16 MB; nearly that is rounded up, as [PGTune].
    buffers = max(min(share // 4 * 3 // 100, 16 * MB), 32 * KB)
    buffers = 16 * MB if buffers > 14 * MB else buffers
    low, high = 1 * GB, 4 * GB
    result = {
        "wal_buffers": size_text(buffers),
        "checkpoint_timeout": "5min",
        "checkpoint_completion_target": "0.9",
        "wal_compression": "lz4",
    }
    if space:
        # max_wal_size is a soft limit ([PG] 19.5.2), so on a small disk it is a tenth. A slot of a member that is away
        # may keep a quarter ([PG] 19.6.1): then the member is built anew, but the disk does not fill.
        high = max(min(high, int(space // 10)), 64 * MB)
        low = min(low, high // 4)
        result["max_slot_wal_keep_size"] = size_text(max(int(space // 4), high) // MB * MB)
    result.update(min_wal_size=size_text(max(low // MB, 32) * MB), max_wal_size=size_text(high // MB * MB))
    return result


def _workers(cpus: int) -> dict[str, str]:
    # [PGTune]: PostgreSQL's defaults below four processors; then one worker each, half of them for one statement, at
    # most four: more bring little.
    most, each = (cpus, min(math.ceil(cpus / 2), 4)) if cpus >= 4 else (8, 2)
    return {
        "max_worker_processes": str(most),
        "max_parallel_workers": str(most),
        "max_parallel_workers_per_gather": str(each),
        "max_parallel_maintenance_workers": str(each),
    }


def _disk(disk: str) -> dict[str, str]:
    # [PG] 19.7.2: solid-state drives have a random read that costs little more than a sequential one; 19.4.6: the best
    # number of concurrent reads is in the hundreds for them. Values of [PGTune].
    concurrent = {"hdd": "2", "ssd": "200", "san": "300", "nvme": "1000"}[disk]
    return {"random_page_cost": "4" if disk == "hdd" else "1.1", "effective_io_concurrency": concurrent}


def parameters(
    cluster: Mapping[str, Any],
    memory: float,
    cpus: int,
    *,
    disk: str = "ssd",
    clusters: int = 1,
    space: float = 0,
    most_cpus: int = 0,
) -> dict[str, dict[str, str]]:
    """All parameters of a cluster that do not depend on paths: {shared, local}.

    ``shared`` goes into Patroni's dynamic configuration and is equal on all members, ``local`` into the configuration
    of this host's member. cluster: an entry of causeway_databases. most_cpus: the largest number of processors of a
    member; 0: all have as many as this host. The other arguments are those of ``tuning``. ``settings`` of the service
    win.
    """
    names = cluster["extensions"]
    poolers = len((cluster.get("sharding") or {}).get("poolers") or [])
    limit = connections(cluster["pool"], len(cluster["members"]), poolers)
    derived = tuning(memory, cpus, limit, disk=disk, clusters=clusters, space=space)
    # Subscribers, launchers and the extensions' own workers come on top of those of queries.
    workers = int(_workers(most_cpus or cpus)["max_worker_processes"]) + 4 + len(extensions.libraries(names))
    found = {
        **derived,
        **extensions.defaults(names),
        **extensions.parameters(names, cluster["database"]),
        "shared_preload_libraries": ",".join(extensions.libraries(names)),
        "max_worker_processes": str(workers),
        "max_wal_senders": str(WAL_SENDERS),
        "max_replication_slots": str(WAL_SENDERS),
        "max_prepared_transactions": "0",
        "max_locks_per_transaction": "64",
        "track_commit_timestamp": "off",
        # Tenants move by logical replication; turning it on later would need a restart.
        "wal_level": "logical",
        "password_encryption": "scram-sha-256",
        "track_io_timing": "on",
        # A standby tells the primary which rows its readers still need, so that these are not cancelled.
        "hot_standby_feedback": "on",
        **cluster["settings"],
    }
    return {
        "shared": {key: value for key, value in sorted(found.items()) if key in SHARED},
        "local": {key: value for key, value in sorted(found.items()) if key not in SHARED},
    }
