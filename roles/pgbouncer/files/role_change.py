# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps this host's PgBouncer pointed at the leader.

`role-change <action> <role> <cluster>`: Patroni's callback. `role-change follow`: looks once a second, because a member
whose role stays gets no callback when the leader changes. `role-change prepare`: the files that PgBouncer includes.
`role-change renew`: take over a renewed certificate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pgbouncer

ACTIONS = ("on_start", "on_role_change")
PATIENCE = 20.0  # seconds: Patroni ends a callback that still runs when the next one is due
PERIOD = 1.0


def say(cluster: pgbouncer.Cluster | pgbouncer.Tenancy, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"{cluster.name}: {line}", flush=True)


def callback(config: pgbouncer.Config, action: str, role: str, name: str) -> None:
    """Point the writers' database to the leader that this change of roles leads to."""
    if action not in ACTIONS:
        return
    cluster, console = config.cluster(name), pgbouncer.console_of(config)
    promoted = role in pgbouncer.PROMOTED
    patroni, deadline, leader = pgbouncer.Patroni(config), time.monotonic() + PATIENCE, ""
    while not leader and time.monotonic() < deadline:
        if promoted:
            # Patroni calls before the promotion is through.
            leader = config.host if patroni.writable(cluster, config.host) else ""
        else:
            # Just demoted: etcd may still name this host.
            found = patroni.look(cluster).leader
            leader = found if found != config.host else ""
        if not leader:
            time.sleep(0.1)
    writer, reader = pgbouncer.in_force(config, cluster)
    say(cluster, pgbouncer.settle(config, cluster, console, leader or writer, reader))


def step(
    config: pgbouncer.Config, cluster: pgbouncer.Cluster, follower: pgbouncer.Follower, patroni: pgbouncer.Patroni
) -> None:
    """One look at one cluster, and what follows from it."""
    console = pgbouncer.console_of(config)
    now = pgbouncer.in_force(config, cluster)
    view = patroni.look(cluster, now[0])
    if config.host in cluster.members:
        writer, reader, cut_off = follower.decide(view, *now)
    else:
        # A shard on other hosts: its leader serves readers too.
        writer = view.leader or now[0]
        reader, cut_off = writer, False
    say(cluster, pgbouncer.settle(config, cluster, console, writer, reader))
    if cut_off:
        pgbouncer.disconnect(config, cluster, console)
        say(cluster, ["no other member can be reached: closed the writers' connections"])


def tenants(config: pgbouncer.Config, tenancy: pgbouncer.Tenancy) -> None:
    """One look at where tenants are."""
    say(tenancy, pgbouncer.follow_tenants(config, tenancy, pgbouncer.console_of(config)))


def follow(path: str = pgbouncer.CONFIG) -> None:
    """For ever; a new configuration takes effect at once."""
    followers: dict[str, pgbouncer.Follower] = {}
    failures: dict[str, str] = {}
    config, patroni, stamp = None, None, 0
    while True:
        started = time.monotonic()
        changed = Path(path).stat().st_mtime_ns
        if config is None or patroni is None or changed != stamp:
            config, stamp = pgbouncer.load_config(path), changed
            patroni = pgbouncer.Patroni(config)
        jobs: list[tuple[pgbouncer.Cluster | pgbouncer.Tenancy, Callable[[], None]]] = [
            *((one, partial(tenants, config, one)) for one in config.tenancies.values()),
            *(
                (one, partial(step, config, one, followers.setdefault(name, pgbouncer.Follower(config.host)), patroni))
                for name, one in config.clusters.items()
            ),
        ]
        for subject, job in jobs:
            key = f"{type(subject).__name__} {subject.name}"
            try:
                job()
                failures.pop(key, None)
            except (pgbouncer.PgBouncerError, OSError) as error:
                # Said once, not every second.
                if failures.get(key) != str(error):
                    say(subject, [str(error)])
                failures[key] = str(error)
        time.sleep(max(0.1, PERIOD - (time.monotonic() - started)))


def main(arguments: Sequence[str]) -> int:
    """Run one of the four; returns the exit status."""
    try:
        if arguments == ["follow"]:
            follow()
        elif arguments == ["prepare"]:
            pgbouncer.prepare(pgbouncer.load_config())
        elif arguments == ["renew"]:
            pgbouncer.renew(pgbouncer.console_of(pgbouncer.load_config()))
        elif len(arguments) == 3:
            callback(pgbouncer.load_config(), *arguments)
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (pgbouncer.PgBouncerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
