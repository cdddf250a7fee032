"""Service orders with a database: a real PostgreSQL, asked through a proxy that a test can break."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("aiohttp")
psycopg = pytest.importorskip("psycopg")
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "inventories" / "lab" / "demo"))
from causeway_demo import database

SCHEMA = next((ROOT / "molecule/database/services/migrations/orders/expand").glob("*_orders.sql"))
# What the platform's own function does, without the waiting: a server without readers has it at once, or never.
WAIT = """
    CREATE SCHEMA causeway;
    CREATE FUNCTION causeway.wait_for_lsn(wanted pg_lsn, patience interval) RETURNS boolean LANGUAGE sql
        AS 'SELECT wanted <= pg_current_wal_insert_lsn()';
    GRANT USAGE ON SCHEMA causeway TO owner;
"""
COUNTS = """
    SELECT count(*), count(idempotency_key), max(correlation_id) FILTER (WHERE idempotency_key IS NOT NULL) FROM orders
"""
Conversation = Callable[[TestClient], Awaitable[None]]


@pytest.fixture
def name(cluster: Any) -> Iterator[str]:
    """An empty database with the schema that the migrations make."""
    up = SCHEMA.read_text().partition("-- migrate:down")[0]
    one = f"demo{uuid.uuid4().hex[:8]}"
    cluster.psql("postgres", f"CREATE DATABASE {one} OWNER owner;")
    cluster.psql(one, f"SET ROLE owner; {up}")
    cluster.psql(one, WAIT)
    yield one
    cluster.psql("postgres", f"DROP DATABASE {one} WITH (FORCE);")


class Proxy:
    """The way to the database. ``silent`` keeps connections open and passes nothing on, as when a host loses power."""

    def __init__(self, port: int) -> None:
        self.target, self.port = port, 0
        self.silent, self.swallow = False, b""
        self.open: set[asyncio.StreamWriter] = set()

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: bool) -> None:
        try:
            while piece := await source.read(65536):
                while self.silent:
                    await asyncio.sleep(0.05)
                if back and self.swallow and self.swallow in piece:
                    self.swallow = b""
                    self.cut()
                    return
                sink.write(piece)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.open |= {writer, far_writer}
        await asyncio.gather(self.pump(reader, far_writer, False), self.pump(far_reader, writer, True))

    def cut(self) -> None:
        for one in self.open:
            one.transport.abort()
        self.open.clear()


@asynccontextmanager
async def way(port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.silent = False
        proxy.cut()
        server.close()


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> Callable[[], web.Application]:
    """Makes the application, without the tracer and the event loop that only the containers have."""
    trace, propagate, opentelemetry = ModuleType("trace"), ModuleType("propagate"), ModuleType("opentelemetry")

    class Span:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start_as_current_span(self, *_: Any, **__: Any) -> Any:
            return self

        def set_attribute(self, *_: Any) -> None:
            pass

        def get_span_context(self) -> Any:
            return type("Context", (), {"trace_id": 0})

    trace.get_tracer = lambda _name: Span()  # type: ignore[attr-defined]
    trace.SpanKind = type("SpanKind", (), {"SERVER": 1})  # type: ignore[attr-defined]
    trace.format_trace_id = str  # type: ignore[attr-defined]
    propagate.extract = lambda _headers: None  # type: ignore[attr-defined]
    propagate.inject = lambda _headers: None  # type: ignore[attr-defined]
    opentelemetry.trace, opentelemetry.propagate = trace, propagate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry", opentelemetry)
    monkeypatch.setitem(sys.modules, "uvloop", ModuleType("uvloop"))
    for module in ("common", "orders"):
        monkeypatch.delitem(sys.modules, f"causeway_demo.{module}", raising=False)
    from causeway_demo import common
    from causeway_demo import orders as service

    async def item(_request: web.Request, number: int) -> dict[str, Any]:
        return {"id": number, "name": "anchor"}

    monkeypatch.setattr(service, "catalog_item", item)
    return lambda: common.application(common.Settings("orders", "1.0.0", "good", 0, "app1-0", "a", 1.0), service.setup)


def talk(make: Callable[[], web.Application], conversation: Conversation) -> None:
    async def run() -> None:
        async with TestClient(TestServer(make())) as client:
            await conversation(client)

    asyncio.run(run())


def use(monkeypatch: pytest.MonkeyPatch, cluster: Any, name: str, port: int, reader: int = 0) -> None:
    passfile = cluster.folder / "pgpass"
    passfile.write_text(f"*:*:*:owner:{cluster.password}\n")
    passfile.chmod(0o600)
    for variable, value in {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGPORT_READER": str(reader or port),
        "PGUSER": "owner",
        "PGDATABASE": name,
        "PGDATABASE_READER": name,
        "PGPASSFILE": str(passfile),
        "PGSSLMODE": "require",
    }.items():
        monkeypatch.setenv(variable, value)


def test_without_a_host_there_is_no_database(orders: Callable[[], web.Application]) -> None:
    assert database.Access.from_environment({}) is None

    async def conversation(client: TestClient) -> None:
        assert (await client.get(f"/orders/{uuid.uuid4()}")).status == 400
        body, key = {"item": 7, "quantity": 2}, {"idempotency-key": "k"}
        first, second = [await client.post("/orders", json=body, headers=key) for _turn in range(2)]
        assert (first.status, second.status) == (201, 200)
        assert "x-write-position" not in first.headers

    talk(orders, conversation)


def test_orders_are_kept_once(
    cluster: Any, name: str, orders: Callable[[], web.Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cluster, name, cluster.port)
    body = {"item": 7, "quantity": 2}

    async def conversation(client: TestClient) -> None:
        headers = {"idempotency-key": "k", "x-correlation-id": "c-1"}
        answers = await asyncio.gather(*(client.post("/orders", json=body, headers=headers) for _turn in range(8)))
        assert sorted(one.status for one in answers) == [200] * 7 + [201]
        (identifier,) = {(await one.json())["id"] for one in answers}
        after = {"x-read-after": answers[0].headers["x-write-position"]}
        answer = await client.get(f"/orders/{identifier}", headers=after)
        assert (await answer.json())["quantity"] == 2
        assert answer.headers["x-read-from"] == "reader"
        answer = await client.get(f"/orders/{identifier}", headers={"x-read-after": "FFFFFFFF/0"})
        assert answer.headers["x-read-from"] == "writer"
        assert (await client.get(f"/orders/{identifier}", headers={"x-read-after": "now"})).status == 400
        assert (await client.post("/orders", json={"item": 8}, headers=headers)).status == 422
        assert (await client.post("/orders", json={"item": 8, "quantity": 0})).status == 400
        without = [await client.post("/orders", json=body) for _turn in range(2)]
        assert [one.status for one in without] == [201, 201]
        assert (await client.get(f"/orders/{uuid.uuid4()}")).status == 404
        assert (await client.get("/orders/7")).status == 200

    talk(orders, conversation)
    assert cluster.psql(name, COUNTS) == "3|1|c-1"


def test_a_commit_whose_answer_is_lost_is_not_repeated(
    cluster: Any, name: str, orders: Callable[[], web.Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with way(cluster.port) as proxy:
            use(monkeypatch, cluster, name, proxy.port)
            monkeypatch.setenv("PGSSLMODE", "disable")
            async with TestClient(TestServer(orders())) as client:
                assert (await client.post("/orders", json={"item": 1})).status == 201
                proxy.swallow = b"INSERT 0 1"  # the tag of the command: the server has committed
                answer = await client.post("/orders", json={"item": 2})
                assert answer.status in (200, 201)
                assert proxy.swallow == b""

    hba = cluster.folder / "hba"
    before = hba.read_text()
    hba.write_text(before + "host all all 127.0.0.1/32 scram-sha-256\n")
    cluster.psql("postgres", "SELECT pg_reload_conf()")
    try:
        asyncio.run(run())
    finally:
        hba.write_text(before)
        cluster.psql("postgres", "SELECT pg_reload_conf()")
    assert cluster.psql(name, "SELECT count(*) FROM orders") == "2"


def test_a_silent_server_costs_no_more_than_the_limit(
    cluster: Any, name: str, orders: Callable[[], web.Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STATEMENT_LIMIT", 0.5)
    monkeypatch.setattr(database, "DEADLINE", 2.0)

    async def run() -> None:
        async with way(cluster.port) as proxy:
            use(monkeypatch, cluster, name, proxy.port, reader=cluster.port)
            async with TestClient(TestServer(orders())) as client:
                created = await client.post("/orders", json={"item": 1})
                assert created.status == 201
                proxy.silent = True
                asyncio.get_running_loop().call_later(1.0, lambda: (setattr(proxy, "silent", False), proxy.cut()))
                answer = await client.post("/orders", json={"item": 2})
                assert answer.status in (201, 503)
                assert (await client.get("/healthz")).status == 200
                identifier = (await created.json())["id"]
                assert (await client.get(f"/orders/{identifier}")).headers["x-read-from"] == "reader"
                assert (await client.post("/orders", json={"item": 3})).status == 201

    asyncio.run(run())


def test_without_its_table_the_service_says_so(
    cluster: Any, name: str, orders: Callable[[], web.Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cluster, name, cluster.port)
    cluster.psql(name, "DROP TABLE orders")

    async def conversation(client: TestClient) -> None:
        assert (await client.post("/orders", json={"item": 1})).status == 500
        assert (await client.get("/healthz")).status == 200
        assert (await client.get("/orders/7")).status == 200

    talk(orders, conversation)


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (psycopg.errors.SerializationFailure(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.OperationalError("server closed the connection"), True),
        (psycopg.errors.ConnectionFailure(), True),
        (psycopg.InternalError("received 2 results from command 'BEGIN'"), True),
        (TimeoutError(), True),
        (psycopg.errors.UniqueViolation(), False),
        (psycopg.errors.UndefinedTable(), False),
        (psycopg.errors.InsufficientPrivilege(), False),
        (psycopg.InterfaceError("closed"), False),
        (ValueError(), False),
    ],
)
def test_what_may_pass(error: Exception, may_pass: bool) -> None:
    assert database.passes(error) is may_pass
