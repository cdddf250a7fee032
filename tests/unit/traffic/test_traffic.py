from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from aiohttp import web

SOURCE = Path(__file__).resolve().parents[3] / "tests" / "drills" / "traffic.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("causeway_traffic", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["causeway_traffic"] = module
    spec.loader.exec_module(module)
    return module


traffic = load()
Handler = Callable[[web.Request], Awaitable[web.Response]]


def measure(handler: Handler, *arguments: str, path: str = "/orders/{id}") -> dict[str, Any]:
    """Runs the generator against a server made of one handler and returns its summary."""

    async def run() -> dict[str, Any]:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        options = traffic.parse(["--target", f"http://127.0.0.1:{port}{path}", *arguments])
        try:
            return await traffic.Generator(options, None).run()
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def fine(request: web.Request) -> web.Response:
    return web.json_response({}, headers={"x-service-version": "1.0.0", "x-service-instance": "app1-0"})


def test_every_request_is_accounted_for_once() -> None:
    seen: list[tuple[str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.path, request.transport.get_extra_info("peername")))  # type: ignore[union-attr]
        return await fine(request)

    result = measure(handler, "--rate", "100", "--duration", "0.5", "--first-id", "7")
    assert (result["sent"], result["ok"], result["failed"]) == (50, 50, 0)
    assert sorted(int(path.rsplit("/", 1)[-1]) for path, _peer in seen) == list(range(7, 57))
    assert result["connections"] == {"kept": 25, "new": 25}
    assert len({peer for _path, peer in seen}) > 25  # each new one from its own port
    assert result["versions"]["1.0.0"]["count"] == 50
    assert result["instances"] == {"app1-0": 50}


def test_failures_are_counted_by_kind_with_examples() -> None:
    async def handler(request: web.Request) -> web.Response:
        number = int(request.path.rsplit("/", 1)[-1])
        if number % 4 == 0:
            return web.Response(status=503, text="no healthy upstream")
        if number % 4 == 1:
            request.transport.abort()  # type: ignore[union-attr]
        return await fine(request)

    result = measure(handler, "--rate", "100", "--duration", "0.4", "--first-id", "0")
    assert result["sent"] == result["ok"] + result["failed"] == 40
    assert result["failures"]["status 503"]["count"] == 10
    assert result["failures"]["status 503"]["first"][0]["detail"] == "no healthy upstream"
    assert sum(entry["count"] for entry in result["failures"].values()) == 20


def test_a_broken_kept_connection_is_not_retried_silently() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        if len(seen) == 2:
            request.transport.abort()  # type: ignore[union-attr]
        return await fine(request)

    result = measure(handler, "--rate", "20", "--duration", "0.3", "--connections", "kept")
    assert result["failed"] == 1
    assert len(seen) == len(set(seen)) == result["sent"] == 6


def test_a_stall_shows_in_the_latency_of_all_that_were_due() -> None:
    """Open loop: requests that were due during a stall of the server count from their schedule."""

    async def handler(request: web.Request) -> web.Response:
        number = int(request.path.rsplit("/", 1)[-1])
        if 10 <= number < 50:
            await asyncio.sleep(1.0 - number * 0.02)  # all of them answered one second after the start
        return await fine(request)

    result = measure(handler, "--rate", "50", "--duration", "1", "--first-id", "0")
    assert result["sent"] == 50
    assert result["longest_gap"]["seconds"] > 0.5
    assert result["slowest"]["seconds"] > 0.7
    assert result["latency"]["p50"] > 0.2


def test_nobody_listens() -> None:
    async def run() -> dict[str, Any]:
        options = traffic.parse(["--target", "http://127.0.0.1:1/x", "--rate", "50", "--duration", "0.2"])
        return await traffic.Generator(options, None).run()

    result = asyncio.run(run())
    assert (result["sent"], result["ok"]) == (10, 0)
    assert result["failures"]["connect"]["count"] == 10


def test_stop_file_ends_it_with_a_summary(tmp_path: Path) -> None:
    stop, out = tmp_path / "stop", tmp_path / "out.json"
    stop.touch()
    arguments = ["--target", "http://127.0.0.1:1/x", "--rate", "10", "--stop-file", str(stop), "--out", str(out)]
    assert traffic.main(arguments) == 1  # nobody listened
    assert json.loads(out.read_text())["sent"] >= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h/x", ("GET", "http://h/x", "")),
        ("GET https://h/{id}", ("GET", "https://h/{id}", "")),
        ('POST https://h/x {"item": 7}', ("POST", "https://h/x", '{"item": 7}')),
    ],
)
def test_targets(text: str, expected: tuple[str, str, str]) -> None:
    target = traffic.Target.parse(text)
    assert (target.method, target.url, target.body) == expected


@pytest.mark.parametrize("text", ["", "h/x", "POST", "FETCH http://h"])
def test_bad_targets(text: str) -> None:
    with pytest.raises(ValueError, match="target"):
        traffic.Target.parse(text)


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [traffic.percentile(values, share) for share in (0.5, 0.99, 0.999)] == [50.0, 99.0, 100.0]
    assert traffic.percentile([], 0.5) == 0.0
