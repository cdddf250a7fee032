"""Service catalog: GET /catalog/<id>."""

from __future__ import annotations

from aiohttp import web

from causeway_demo.common import misbehave, reply

NAMES = ("anchor", "beacon", "capstan", "davit", "echo sounder", "fender", "gangway", "hawser")


async def item(request: web.Request) -> web.Response:
    await misbehave(request)
    try:
        number = int(request.match_info["id"])
    except ValueError:
        raise web.HTTPBadRequest(reason="an item id is a whole number") from None
    return reply(request, {"id": number, "name": NAMES[number % len(NAMES)], "price": 100 + number % 900})


def setup(app: web.Application) -> None:
    app.router.add_get("/catalog/{id}", item)
