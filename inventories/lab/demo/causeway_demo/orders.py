"""Service orders: GET /orders/<id> and POST /orders; the item of an order comes from catalog.

With PGHOST in the environment an order that is created is kept in the database, under its UUID; without it, in memory.
An order with a whole number as its id is made up either way: what tests and releases ask for needs no row.

/healthz does not ask the database. If it did, a database that is away for a second would take every instance out of
balancing at once, with all requests that need no database, and the way back would begin with a storm. Whoever needs
the database waits for it (database.py) and is told 503 when it does not come back in time.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from causeway_demo.common import SETTINGS, log, misbehave, outbound_headers, reply

if TYPE_CHECKING:  # a version without a database needs no driver
    from causeway_demo.database import Database

REMEMBERED = 10_000
LONGEST_KEY = 255
POSITION = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
CLIENT: web.AppKey[aiohttp.ClientSession] = web.AppKey("client", aiohttp.ClientSession)
CREATED: web.AppKey[OrderedDict] = web.AppKey("created", OrderedDict)
DATABASE: web.AppKey[Database] = web.AppKey("database")


async def catalog_item(request: web.Request, number: int) -> dict[str, Any]:
    try:
        async with request.app[CLIENT].get(f"/catalog/{number}", headers=outbound_headers(request)) as response:
            if response.status != 200:
                raise web.HTTPBadGateway(reason=f"catalog answered {response.status}")
            return await response.json()
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise web.HTTPBadGateway(reason=f"catalog is not reachable: {type(exc).__name__}") from None


async def get_order(request: web.Request) -> web.Response:
    await misbehave(request)
    if DATABASE in request.app and (identifier := uuid_of(request.match_info["id"])):
        return await stored_order(request, identifier)
    try:
        number = int(request.match_info["id"])
    except ValueError:
        raise web.HTTPBadRequest(reason="an order id is a whole number") from None
    found = await catalog_item(request, number)
    return reply(request, {"id": number, "item": found, "quantity": 1 + number % 5})


def uuid_of(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return ""


async def stored_order(request: web.Request, identifier: str) -> web.Response:
    """From a reader. `x-read-after`, as a creation answered in `x-write-position`: one that has what was written."""
    after = request.headers.get("x-read-after", "")
    if after and not POSITION.fullmatch(after):
        raise web.HTTPBadRequest(reason="x-read-after is a position like 0/16B3748")
    try:
        found, answered = await request.app[DATABASE].order(identifier, after)
    except Exception as error:
        raise unavailable(request, error) from None
    if found is None:
        raise web.HTTPNotFound(reason="there is no such order")
    response = reply(request, found)
    response.headers["x-read-from"] = answered
    return response


def unavailable(request: web.Request, error: Exception) -> web.HTTPException:
    """The reason goes to the log; a caller is told whether to come again."""
    from causeway_demo.database import Unavailable

    said = f"{type(error).__name__}: {error}"
    log(request.app[SETTINGS], "error", "database", error=said, correlation_id=request["correlation_id"])
    if isinstance(error, Unavailable):
        return web.HTTPServiceUnavailable(reason="the database does not answer", headers={"retry-after": "1"})
    return web.HTTPInternalServerError(reason="the database refuses")


async def create_order(request: web.Request) -> web.Response:
    """Repeating a request with the same Idempotency-Key answers with the first order (while this instance lives)."""
    await misbehave(request)
    try:
        body = await request.json()
        number, quantity = int(body["item"]), int(body.get("quantity", 1))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise web.HTTPBadRequest(reason='expected JSON like {"item": 7, "quantity": 2}') from None
    created = request.app[CREATED]
    key = request.headers.get("idempotency-key", "")
    if DATABASE in request.app:
        return await store_order(request, key, number, quantity)
    if key and key in created:
        return reply(request, created[key], status=200)
    found = await catalog_item(request, number)
    order = {"id": str(uuid.uuid4()), "item": found, "quantity": quantity}
    if key:
        created[key] = order
        if len(created) > REMEMBERED:
            created.popitem(last=False)
    return reply(request, order, status=201)


async def store_order(request: web.Request, key: str, number: int, quantity: int) -> web.Response:
    """With a database the key holds as long as the order, on every instance. Another order under it is an error."""
    if len(key) > LONGEST_KEY or quantity < 1:
        raise web.HTTPBadRequest(reason=f"a quantity of 1 or more, and a key of {LONGEST_KEY} characters at most")
    found = await catalog_item(request, number)
    order = {"id": str(uuid.uuid4()), "item": found, "quantity": quantity}
    try:
        stored, position = await request.app[DATABASE].create(order, key or None, request["correlation_id"])
    except Exception as error:
        raise unavailable(request, error) from None
    if (stored["item"].get("id"), stored["quantity"]) != (number, quantity):
        raise web.HTTPUnprocessableEntity(reason="this idempotency key belongs to another order")
    response = reply(request, stored, status=201 if stored["id"] == order["id"] else 200)
    response.headers["x-write-position"] = position
    return response


async def database(app: web.Application) -> AsyncIterator[None]:
    from causeway_demo.database import Access, Database

    access = Access.from_environment()
    assert access
    app[DATABASE] = Database(access)
    await app[DATABASE].open()
    yield
    await app[DATABASE].close()


async def client(app: web.Application) -> AsyncIterator[None]:
    session = aiohttp.ClientSession(
        os.environ.get("CATALOG_URL", "http://127.0.0.1:9001"),
        timeout=aiohttp.ClientTimeout(total=float(os.environ.get("CATALOG_TIMEOUT", "2.5"))),
        connector=aiohttp.TCPConnector(limit=200, keepalive_timeout=60),
    )
    app[CLIENT] = session
    yield
    await session.close()


def setup(app: web.Application) -> None:
    app[CREATED] = OrderedDict()
    app.cleanup_ctx.append(client)
    if os.environ.get("PGHOST"):
        app.cleanup_ctx.append(database)
    app.router.add_get("/orders/{id}", get_order)
    app.router.add_post("/orders", create_order)
