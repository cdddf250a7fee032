"""Service orders: GET /orders/<id> and POST /orders; the item of an order comes from catalog."""

from __future__ import annotations

import json
import os
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from causeway_demo.common import misbehave, outbound_headers, reply

REMEMBERED = 10_000
CLIENT: web.AppKey[aiohttp.ClientSession] = web.AppKey("client", aiohttp.ClientSession)
CREATED: web.AppKey[OrderedDict] = web.AppKey("created", OrderedDict)


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
    try:
        number = int(request.match_info["id"])
    except ValueError:
        raise web.HTTPBadRequest(reason="an order id is a whole number") from None
    found = await catalog_item(request, number)
    return reply(request, {"id": number, "item": found, "quantity": 1 + number % 5})


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
    if key and key in created:
        return reply(request, created[key], status=200)
    found = await catalog_item(request, number)
    order = {"id": str(uuid.uuid4()), "item": found, "quantity": quantity}
    if key:
        created[key] = order
        if len(created) > REMEMBERED:
            created.popitem(last=False)
    return reply(request, order, status=201)


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
    app.router.add_get("/orders/{id}", get_order)
    app.router.add_post("/orders", create_order)
