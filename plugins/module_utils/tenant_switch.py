# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The moment at which a tenant changes its shard, while its clients only notice a wait.

Every host that has a part in it runs :class:`Switch` at the same time: the poolers, the source's leader, the target's.
In order, and nobody goes on before all are there:

``here``
    All run.
``held``
    The poolers hold the tenant's clients: no transaction runs any more.
``final``
    The source is fenced: nobody but the superuser gets in, whatever a pooler that was not asked does. It writes a mark
    and says which, what its sequences are and what its schema is; and with ``sums`` what each table holds.
``same``
    The mark has come through at the target, so that all is there; its sequences are set, and its tables hold the same.
``moved``
    The source has written to the registry where the tenant is now, in one transaction that counts only if nobody gave
    up. This alone is the move: before it everybody goes back, after it everybody goes on.

Whoever has a problem, or waits too long, says so in a transaction that counts only if the tenant has not moved. A
source whose process is killed is opened again by a child that waits for that. A pooler whose process is killed lets
its clients go by itself (:func:`pgbouncer.follow_tenants`), to where the registry says.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer, tenant_copy
from ansible_collections.causeway.platform.plugins.module_utils.etcd import (
    EtcdClient,
    EtcdError,
    compare_absent,
    compare_exists,
    compare_mod,
    op_get,
    op_put,
)
from ansible_collections.causeway.platform.plugins.module_utils.pgbouncer import PgBouncerError
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import PostgresqlError, Psql
from ansible_collections.causeway.platform.plugins.module_utils.registry import Keys
from ansible_collections.causeway.platform.plugins.module_utils.rendezvous import (
    PROBLEM,
    Rendezvous,
    RendezvousError,
)
from ansible_collections.causeway.platform.plugins.module_utils.tenants import (
    TenantError,
    parse_place,
    place_key,
    read_place,
    record,
)

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise
FAILURES = (TenantError, PgBouncerError, PostgresqlError, RendezvousError, EtcdError, TimeoutError, OSError)

SOURCE, TARGET, UNKNOWN = "source", "target", "unknown"
# Seconds for which a host that gives up tries to learn from the registry how it ended.
DECIDE = 30.0


@dataclass(frozen=True)
class Move:
    """What moves. ``source`` and ``target``: shards. ``tables`` and ``sequences``: of the tenant, quoted."""

    service: str
    tenant: str
    database: str
    source: str
    target: str
    tables: Sequence[str] = ()
    sequences: Sequence[str] = ()
    checksum: bool = True


@dataclass(frozen=True)
class Limits:
    """Seconds: ``timeout`` for running transactions to end, ``hold`` for the pause, ``come`` for all to be there."""

    timeout: float = 10.0
    hold: float = 30.0
    come: float = 30.0


@dataclass
class Pooler:
    """This host's PgBouncer, as far as a tenant's move needs it."""

    config: pgbouncer.Config
    tenancy: pgbouncer.Tenancy
    console: pgbouncer.Console

    def hold(self, database: str, limits: Limits) -> None:
        """Return once no transaction of a client of the tenant runs; raises PgBouncerError with nobody held."""
        pgbouncer.hold(self.config, self.console, database, timeout=limits.timeout, hold=limits.hold)

    def send(self, tenant: str, shard: str, revision: int) -> None:
        """Point the tenant's database to a shard."""
        pgbouncer.send(self.config, self.console, self.tenancy, tenant, pgbouncer.Route(shard, revision))

    def release(self, database: str) -> float:
        """Let the clients go; returns the seconds that they waited."""
        return pgbouncer.release(self.config, self.console, database)


class Decision:
    """Whether a tenant has moved, as the registry alone decides it."""

    def __init__(self, client: EtcdClient, keys: Keys, meeting: str, move: Move, revision: int) -> None:
        """``revision``: of the tenant's key before the move."""
        self.client, self.move, self.revision = client, move, revision
        self._place = place_key(keys, move.service, move.tenant)
        self._of: Callable[[str, str], str] = lambda step, member: keys.of("rendezvous", meeting, step, member)

    def give_up(self, member: str, why: str) -> str:
        """Say that it must not happen, or nothing (``why`` empty) where somebody did; returns where the tenant is: at
        the source for good, or moved already.

        :raises EtcdError: the registry does not answer.
        """
        lease = self.client.lease_grant(120)
        result = self.client.txn(
            [compare_mod(self._place, self.revision)],
            [op_put(self._of(PROBLEM, member), json.dumps({"why": why}), lease)] if why else [],
            [op_get(self._place)],
        )
        if result.succeeded:
            return SOURCE
        kvs = result.kvs(0)
        return TARGET if kvs and parse_place(kvs[0]).shard == self.move.target else SOURCE

    def settle(self, member: str, why: str, patience: float = DECIDE) -> str:
        """The same, with patience for the registry; unknown if it never answered."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return self.give_up(member, why)
            except (EtcdError, OSError):
                if time.monotonic() > deadline:
                    return UNKNOWN
                time.sleep(0.5)

    def commit(self, members: Sequence[str], poolers: Sequence[str], member: str) -> None:
        """Move the tenant, if nobody has given up; raises TenantError if somebody did, EtcdError if nobody knows."""
        conditions = [compare_mod(self._place, self.revision)]
        conditions += [compare_absent(self._of(PROBLEM, name)) for name in members]
        conditions += [compare_exists(self._of("held", name)) for name in poolers]
        # The word to the others is in the same transaction: they must not wait for one that is killed after it.
        lease = self.client.lease_grant(120)
        word = op_put(self._of("moved", member), "{}", lease)
        result = self.client.txn(conditions, [op_put(self._place, record(self.move.target, self.move.source)), word])
        if not result.succeeded:
            raise TenantError("somebody gave up in the last moment")


class Guard:
    """A child that acts if this process ends without having said that all is well."""

    def __init__(self, act: Callable[[], None]) -> None:
        reader, self._writer = os.pipe()
        self._child = os.fork()
        if self._child:
            os.close(reader)
            return
        status = 1
        try:
            os.close(self._writer)
            # Ansible ends when nobody has its output open any more, and a lost connection hangs up the session.
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nowhere, number)
            if not os.read(reader, 1):
                act()
            status = 0
        finally:
            os._exit(status)

    def dismiss(self) -> None:
        """All is well."""
        with contextlib.suppress(OSError):
            os.write(self._writer, b"x")
        with contextlib.suppress(OSError):
            os.close(self._writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)


@dataclass
class Switch:
    """One host's part. ``source`` and ``target``: the local server, where this host leads that shard."""

    move: Move
    meeting: Rendezvous
    decision: Decision
    limits: Limits
    poolers: Sequence[str]
    read: Callable[[], Any]
    pooler: Pooler | None = None
    source: Psql | None = None
    target: Psql | None = None
    connect: Callable[[], Decision] | None = None
    times: dict[str, float] = field(default_factory=dict)
    found: Json = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def run(self) -> Json:
        """Returns ``moved`` with what was verified and the ``pause`` of this host's clients in seconds.

        :raises TenantError: the tenant is where it was, and nobody is held.
        """
        guard = self._guard() if self.source else None
        held = False
        try:
            self.meeting.say("here", {})
            self.meeting.gather("here", self.limits.come)
            held = self.pooler is not None
            if self.pooler:
                self.pooler.hold(self.move.database, self.limits)
            self.meeting.say("held", {})
            self.meeting.gather("held", self.limits.timeout + self.limits.come)
            self._at_servers()
            revision = self._await_move()
        except FAILURES as error:
            why = str(error) or type(error).__name__
            heard = why.partition(":")[0] in self.meeting.members
            where = self.decision.settle(self.meeting.member, "" if heard else why)
            if where != TARGET:
                self._back(held, where)
                if guard:
                    guard.dismiss()
                if where == UNKNOWN:
                    why += "; the registry does not answer, so that the source stays closed: run the move again"
                raise TenantError(why) from error
            revision = self.read().revision
        if guard:
            guard.dismiss()
        pause = self._on(held, revision)
        return {"changed": True, "pause": pause, "times": self.times, **self.found}

    def _guard(self) -> Guard:
        psql, database, connect = self.source, self.move.database, self.connect
        member = self.meeting.member

        def act() -> None:
            decision = connect() if connect else self.decision
            if decision.settle(member, f"the process on {member} ended", 300.0) == SOURCE and psql:
                tenant_copy.open_again(psql, database)

        return Guard(act)

    def _at_servers(self) -> None:
        """Start what the servers do; a failure of theirs ends the meeting for all."""
        for act in ([self._at_source] if self.source else []) + ([self._at_target] if self.target else []):
            self._threads.append(threading.Thread(target=self._guarded, args=(act,), daemon=True))
            self._threads[-1].start()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except FAILURES as error:
            with contextlib.suppress(*FAILURES):
                self.decision.give_up(self.meeting.member, str(error) or type(error).__name__)

    def _at_source(self) -> None:
        psql, move, started = self.source, self.move, time.monotonic()
        if psql is None:  # only the source's leader comes here
            raise RendezvousError("this host has no server to move a tenant from")
        ended = tenant_copy.fence(psql, move.database)
        token = f"{self.meeting.member}-{time.time_ns()}"
        lsn = tenant_copy.write_mark(psql, move.database, token)
        self.meeting.say(
            "final",
            {
                "token": token,
                "lsn": lsn,
                "sequences": tenant_copy.sequences(psql, move.database, move.sequences),
                "schema": tenant_copy.fingerprint(psql, move.database),
                "ended": ended,
            },
        )
        self.times["fence"] = round(time.monotonic() - started, 3)
        started = time.monotonic()
        self.meeting.say("sums", {"sums": tenant_copy.sums(psql, move.database, move.tables, move.checksum)})
        self.times["sums_source"] = round(time.monotonic() - started, 3)
        self.meeting.first("same", self.limits.hold)
        self.decision.commit(self.meeting.members, self.poolers, self.meeting.member)

    def _at_target(self) -> None:
        psql, move = self.target, self.move
        if psql is None:  # only the target's leader comes here
            raise RendezvousError("this host has no server to move a tenant to")
        final = self.meeting.first("final", self.limits.hold)
        self.times["level"] = round(tenant_copy.wait_mark(psql, move.database, final["token"], self.limits.hold), 3)
        schema = tenant_copy.fingerprint(psql, move.database)
        if schema != final["schema"]:
            raise TenantError(f"the schema of {move.database} was changed during the move")
        tenant_copy.set_sequences(psql, move.database, final["sequences"])
        started = time.monotonic()
        mine = tenant_copy.sums(psql, move.database, move.tables, move.checksum)
        self.times["sums_target"] = round(time.monotonic() - started, 3)
        theirs = self.meeting.first("sums", self.limits.hold)["sums"]
        wrong = tenant_copy.differences(theirs, mine)
        if wrong:
            raise TenantError(f"{move.database} differs: {'; '.join(wrong[:5])}")
        # What the subscription wrote is flushed, and at the synchronous standbys, once this later commit is.
        psql.run(move.database, f"SET synchronous_commit = on; DELETE FROM {tenant_copy.MARK_TABLE};")
        self.found = {
            "rows": sum(int(one[0]) for one in mine.values()),
            "tables": len(mine),
            "sequences": len(final["sequences"]),
            "checksum": checksum(mine) if move.checksum else "",
            "lsn": final["lsn"],
            "sessions_ended": final["ended"],
        }
        self.meeting.say("same", {})

    def _await_move(self) -> int:
        """Wait for the registry's word; returns its revision."""
        self.meeting.first("moved", self.limits.hold)
        place = self.read()
        if place is None or place.shard != self.move.target:
            raise TenantError("the registry does not say that the tenant has moved")
        return int(place.revision)

    def _on(self, held: bool, revision: int) -> float | None:
        if not self.pooler:
            return None
        self.pooler.send(self.move.tenant, self.move.target, revision)
        return self.pooler.release(self.move.database) if held else None

    def _back(self, held: bool, where: str) -> None:
        self._open(where)
        if held and self.pooler:
            with contextlib.suppress(PgBouncerError, TimeoutError, OSError):
                self.pooler.release(self.move.database)
        # It may have closed the source again meanwhile.
        for thread in self._threads:
            thread.join(self.limits.hold)
        self._open(where)

    def _open(self, where: str) -> None:
        if self.source and where == SOURCE:
            with contextlib.suppress(PostgresqlError):
                tenant_copy.open_again(self.source, self.move.database)


def checksum(sums: Mapping[str, Sequence[Any]]) -> str:
    """One number for all tables: the sum of theirs, in hexadecimal, modulo 2^64."""
    return f"{sum(int(one[1]) for one in sums.values()) % 2**64:016x}"


def reader(client: EtcdClient, keys: Keys, move: Move) -> Callable[[], Any]:
    """What tells the tenant's place of now."""
    return lambda: read_place(client, keys, move.service, move.tenant)
