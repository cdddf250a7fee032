# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A switchover that clients only notice as a wait: every member's pooler holds them while the leadership moves.

Each member runs :class:`Switchover` at the same time. In order, and nobody goes on before all are there:

``here``
    All run and agree who leads; the leader's side has looked whether the leadership can move.
``held``
    The poolers hold the writers: no transaction runs any more.
``leads``
    The new leader has left recovery; the poolers are pointed to it and let the writers go.

Whoever has a problem ends the meeting for all, and every pooler lets its writers go, at whoever leads then. A pooler
whose module was killed lets them go by itself (:func:`pgbouncer.settle`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer
from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.patroni import (
    LEADERS,
    Client,
    Cluster,
    PatroniError,
    judge_switchover,
)
from ansible_collections.causeway.platform.plugins.module_utils.pgbouncer import PgBouncerError
from ansible_collections.causeway.platform.plugins.module_utils.rendezvous import Rendezvous, RendezvousError


class SwitchoverError(Exception):
    """The leadership did not move; the message says why and where it is."""


def would_move(patroni: Client, candidate: str, leaving: str, max_lag: int) -> bool:
    """Whether :meth:`Switchover.run` would move the leadership; raises PatroniError if it would refuse to."""
    return judge_switchover(patroni, patroni.cluster(), candidate, leaving, max_lag)[1]


class Pooler:
    """This host's PgBouncer, as far as a switchover needs it."""

    def __init__(
        self, config: pgbouncer.Config, cluster: pgbouncer.Cluster, console: pgbouncer.Console, hold: float
    ) -> None:
        """``hold``: seconds after which a pause ends by itself."""
        self.config, self.cluster, self.console, self.hold = config, cluster, console, hold

    def pause(self, leader: str, timeout: float) -> None:
        """Return once no transaction of a writer runs; raises PgBouncerError with nobody held."""
        pgbouncer.pause(self.config, self.cluster, self.console, leader=leader, timeout=timeout, hold=self.hold)

    def release(self, leader: str) -> float | None:
        """Point to ``leader`` (empty: whoever Patroni names) and let go; seconds that the writers waited."""
        find = pgbouncer.in_force if leader else pgbouncer.decided
        writer, reader = find(self.config, self.cluster)
        pgbouncer.settle(self.config, self.cluster, self.console, leader or writer, reader)
        _paused, mark = pgbouncer.resume(self.config, self.cluster, self.console)
        return mark.seconds if mark else None


class Switchover:
    """One member's part."""

    def __init__(
        self, patroni: Client, meeting: Rendezvous, pooler: Pooler | None, *, timeout: float, hold: float, come: float
    ) -> None:
        """Seconds: ``timeout`` for running transactions to end, ``hold`` for the move, ``come`` for all to be there."""
        self.patroni, self.meeting, self.pooler = patroni, meeting, pooler
        self.timeout, self.hold, self.come = timeout, hold, come

    def run(self, candidate: str, leaving: str, max_lag: int) -> dict[str, Any]:
        """Returns ``changed`` and, if the leadership moved, ``switchover`` and the ``pause`` of this host's writers.

        :raises SwitchoverError: it did not move.
        """
        held = False
        try:
            cluster = self.patroni.cluster()
            leader = self._agree(cluster, candidate, leaving, max_lag)
            if not leader:
                return {"changed": False}
            if self.pooler:
                held = True
                self.pooler.pause(leader, self.timeout)
            self.meeting.say("held", {})
            self.meeting.gather("held", self.timeout + self.come)
            moved = self._move(cluster, leader, candidate)
            pause = self.pooler.release(moved["to"]) if self.pooler else None
        except (PatroniError, PgBouncerError, RendezvousError, EtcdError, TimeoutError, OSError) as error:
            self._end(str(error), held)
            raise SwitchoverError(str(error)) from error
        return {"changed": True, "switchover": moved, "pause": pause}

    def _end(self, why: str, held: bool) -> None:
        """Tell the others, and hold nobody any more."""
        with contextlib.suppress(Exception):
            self.meeting.give_up(why)
        if held and self.pooler:
            with contextlib.suppress(PgBouncerError, TimeoutError, OSError):
                self.pooler.release("")

    def _agree(self, cluster: Cluster, candidate: str, leaving: str, max_lag: int) -> str:
        """The leader that hands over; empty if there is nothing to do."""
        leader, moves = judge_switchover(self.patroni, cluster, candidate, leaving, max_lag)
        self.meeting.say("here", {"leader": leader})
        words = self.meeting.gather("here", self.come)
        leaders = sorted({word["leader"] for word in words.values()})
        if len(leaders) > 1:
            raise PatroniError(f"the members do not agree who leads: {', '.join(leaders)}")
        return leader if moves else ""

    def _move(self, cluster: Cluster, leader: str, candidate: str) -> dict[str, Any]:
        """Ask Patroni if this is the leader; then wait until the new one, which may be this host, is writable."""
        own = cluster.members[self.meeting.member]
        began = time.monotonic()
        if own.name == leader:
            body = {"leader": leader, **({"candidate": candidate} if candidate else {})}
            # Patroni answers up to a second after the fact: nobody waits for it.
            threading.Thread(target=self._ask, args=(own.endpoint, body), daemon=True).start()

        def look() -> None:
            if own.name != leader and self._writable(own.endpoint):
                self.meeting.say("leads", {"name": own.name})

        new = self.meeting.first("leads", self.hold, look)["name"]
        return {"from": leader, "to": new, "seconds": round(time.monotonic() - began, 3)}

    def _ask(self, endpoint: str, body: dict[str, Any]) -> None:
        try:
            self.patroni.act(endpoint, "POST", "/switchover", body, timeout=self.hold)
        except PatroniError as error:
            with contextlib.suppress(Exception):
                self.meeting.give_up(str(error))

    def _writable(self, endpoint: str) -> bool:
        """Whether the member at ``endpoint`` has left recovery."""
        try:
            state = self.patroni.read("/patroni", endpoint)
        except PatroniError:
            return False
        return state.get("state") == "running" and state.get("role") in (*LEADERS, *pgbouncer.PROMOTED)
