"""The database of a service: pools for the writer and the readers, and what may be tried again.

PGHOST, PGUSER, PGDATABASE, PGPORT and PGPASSFILE are libpq's own; PGPORT_READER and PGDATABASE_READER name the readers.
Every connection ends in a pooler that lends servers for one transaction. So nothing may outlive a transaction:
no prepared statements, no session settings, no temporary tables, no advisory locks of sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

Connection = psycopg.AsyncConnection[dict[str, Any]]
Result = TypeVar("Result")
STATEMENT_LIMIT = 4.0  # seconds until a connection that does not answer is given up
DEADLINE = 8.0  # seconds for all attempts together: below the route's 10
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
INSERT = """
    INSERT INTO orders (id, idempotency_key, correlation_id, item, quantity)
    VALUES (%(id)s::uuid, %(key)s, %(correlation)s, %(item)s, %(quantity)s)
    ON CONFLICT DO NOTHING
"""
FIND_BY_ID = "SELECT *, pg_current_wal_insert_lsn()::text AS lsn FROM orders WHERE id = %(id)s::uuid"
FIND_BY_KEY = "SELECT *, pg_current_wal_insert_lsn()::text AS lsn FROM orders WHERE idempotency_key = %(key)s"
# What passes by itself: serialization failure, deadlock, lock not available, too many connections, no server in the
# pooler, server going down, crashed or starting, read-only because it is a leader no more.
TRANSIENT = ("40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "25006")


class Unavailable(Exception):
    """The database did not answer in time; the last reason is the cause."""


@dataclass(frozen=True)
class Access:
    """Where writer and readers are, as libpq's connection parameters."""

    writer: Mapping[str, Any]
    reader: Mapping[str, Any]
    size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Access | None:
        """None without PGHOST: the service then keeps everything in memory."""
        env = os.environ if environment is None else environment
        if not env.get("PGHOST"):
            return None
        common = {
            "host": env["PGHOST"],
            "user": env.get("PGUSER", "orders"),
            # The way to the sidecar is this host's own container network; TLS begins there.
            "sslmode": env.get("PGSSLMODE", "disable"),
            "connect_timeout": 3,
            "application_name": env.get("INSTANCE") or "orders",
        }
        if env.get("PGPASSFILE"):
            common["passfile"] = env["PGPASSFILE"]
        port, name = env.get("PGPORT", "5432"), env.get("PGDATABASE", "orders")
        return cls(
            writer={**common, "port": port, "dbname": name},
            reader={
                **common,
                "port": env.get("PGPORT_READER", port),
                "dbname": env.get("PGDATABASE_READER", name),
            },
            size=int(env.get("DATABASE_POOL", "10")),
        )


def passes(error: BaseException) -> bool:
    """Whether the same statement may succeed a moment later."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, TimeoutError)
    if error.sqlstate is None:  # the connection broke in the middle, or none became free in time
        return isinstance(error, psycopg.OperationalError | psycopg.InternalError)
    return error.sqlstate in TRANSIENT or error.sqlstate.startswith("08")


@contextlib.contextmanager
def bounded(connection: Connection, seconds: float) -> Iterator[None]:
    """Breaks a connection that does not answer in time, so that whoever waits for it sees an error.

    A cancellation would not do: it asks the server, which is what does not answer.
    """

    def give_up() -> None:
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as one:
            one.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, give_up)
    try:
        yield
    finally:
        timer.cancel()


async def persist(
    attempt: Callable[[], Awaitable[Result]], deadline: float, first_pause: float = FIRST_PAUSE
) -> Result:
    """Repeats `attempt` while what stops it may pass, with growing, uneven pauses; raises Unavailable at the deadline.

    For what may be done twice only: a lost connection does not tell whether the server had committed.
    """
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + deadline, first_pause
    while True:
        try:
            return await attempt()
        except (psycopg.Error, TimeoutError) as error:
            if not passes(error):
                raise
            wait = pause * random.uniform(0.5, 1.5)
            if loop.time() + wait >= end:
                raise Unavailable(f"{type(error).__name__}: {str(error).strip()[:200]}") from error
        await asyncio.sleep(wait)
        pause = min(pause * 2, LONGEST_PAUSE)


class Database:
    """Both pools. They fill in the background: a service starts and serves what it can without its database."""

    def __init__(self, access: Access) -> None:
        self.writers = self._pool(access.writer, access.size, "writer")
        self.readers = self._pool(access.reader, access.size, "reader")

    @staticmethod
    def _pool(parameters: Mapping[str, Any], size: int, name: str) -> AsyncConnectionPool[Connection]:
        return AsyncConnectionPool(
            kwargs={
                **parameters,
                "autocommit": True,
                "prepare_threshold": None,  # the next transaction may be lent another server
                "row_factory": dict_row,
            },
            connection_class=psycopg.AsyncConnection[dict[str, Any]],
            min_size=1,
            max_size=size,
            timeout=3.0,
            max_lifetime=600.0,  # so that connections find a new place after the readers have changed
            max_idle=120.0,
            reconnect_timeout=30.0,
            open=False,
            name=name,
        )

    async def open(self) -> None:
        await self.writers.open(wait=False)
        await self.readers.open(wait=False)

    async def close(self) -> None:
        await self.writers.close(timeout=2.0)
        await self.readers.close(timeout=2.0)

    @contextlib.asynccontextmanager
    async def lent(self, pool: AsyncConnectionPool[Connection], limit: float) -> AsyncIterator[Connection]:
        async with pool.connection() as connection:
            with bounded(connection, limit):
                yield connection

    async def create(self, order: Mapping[str, Any], key: str | None, correlation: str) -> tuple[dict[str, Any], str]:
        """Stores an order unless one with this key is there; the stored one and the position in the log that holds it.

        The id was drawn by the caller, once: a repetition meets it, so this is safe to repeat whatever was committed.
        """

        async def attempt() -> tuple[dict[str, Any], str]:
            async with self.lent(self.writers, STATEMENT_LIMIT) as connection:
                values = {**order, "item": Jsonb(order["item"]), "key": key, "correlation": correlation}
                await connection.execute(INSERT, values)
                # Only behind the commit is its position known.
                found = await connection.execute(FIND_BY_ID if key is None else FIND_BY_KEY, values)
                row = await found.fetchone()
                if row is None:
                    raise LookupError(f"order {order['id']} was stored and is not there")
                return public(row), row["lsn"]

        return await persist(attempt, DEADLINE)

    async def order(self, identifier: str, after: str = "") -> tuple[dict[str, Any] | None, str]:
        """An order and who answered, ``reader`` or ``writer``; None when there is none.

        `after`: a position in the log that the answer must include. The reader waits for it a moment; the writer,
        which has it already, answers for a reader that stays behind.
        """

        async def read(pool: AsyncConnectionPool[Connection]) -> tuple[dict[str, Any] | None, bool]:
            async with self.lent(pool, STATEMENT_LIMIT) as connection:
                fresh = True
                if after and pool is self.readers:
                    # Another transaction, but of the same session: the pooler of this host has one server to ask.
                    waited = await connection.execute(
                        "SELECT causeway.wait_for_lsn(%s::pg_lsn, '1 second'::interval) AS fresh", (after,)
                    )
                    answer = await waited.fetchone()
                    fresh = bool(answer and answer["fresh"])
                found = await connection.execute("SELECT * FROM orders WHERE id = %s::uuid", (identifier,))
                row = await found.fetchone()
                return (public(row) if row else None), fresh

        try:
            found, fresh = await persist(lambda: read(self.readers), DEADLINE / 2)
            if fresh:
                return found, "reader"
        except Unavailable:
            pass
        found, _fresh = await persist(lambda: read(self.writers), DEADLINE / 2)
        return found, "writer"


def public(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller sees of a row."""
    return {"id": str(row["id"]), "item": row["item"], "quantity": row["quantity"]}
