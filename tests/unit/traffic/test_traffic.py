from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("h2")
from aiohttp import web
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded

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


async def echo(request: web.Request) -> web.Response:
    """Answers an upload with its hash, and everything else after as many seconds as the query says."""
    body = await request.read()
    await asyncio.sleep(float(request.query.get("seconds", 0)))
    return web.json_response({"sha256": hashlib.sha256(body).hexdigest()})


class Http2Server(asyncio.Protocol):
    """HTTP/2 without TLS: answers with the hash of what came; `/reset/` and `/away/` break stream and connection."""

    seen: list[tuple[str, int]]
    connections = 0

    def connection_made(self, transport: Any) -> None:
        type(self).connections += 1
        self.number, self.transport = type(self).connections, transport
        self.http = H2Connection(H2Configuration(client_side=False))
        self.http.initiate_connection()
        self.requests: dict[int, tuple[str, Any]] = {}
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.http.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            self.handle(event)
        self.flush()

    def handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            path = dict(event.headers)[b":path"].decode()
            self.seen.append((path, self.number))
            self.requests[event.stream_id] = (path, hashlib.sha256())
        elif isinstance(event, DataReceived):
            self.requests[event.stream_id][1].update(event.data)
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            path, seen = self.requests[event.stream_id]
            if path.startswith("/reset/"):
                self.http.reset_stream(event.stream_id)
                return
            if path.startswith("/leaving/"):
                # As Envoy drains: what has begun is answered after the GOAWAY.
                self.http.close_connection(last_stream_id=event.stream_id)
                self.flush()
                self.http.state_machine.state = ConnectionState.SERVER_OPEN
            if path.startswith("/away/"):
                self.transport.abort()
                return
            self.http.send_headers(event.stream_id, [(":status", "200"), ("x-service-version", "1.0.0")])
            self.http.send_data(event.stream_id, seen.hexdigest().encode(), end_stream=True)


def measure_http2(target: str, *arguments: str) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Summary, and path and connection of each request that the server saw. `target` without scheme and host."""
    seen: list[tuple[str, int]] = []

    class Server(Http2Server):
        pass

    Server.seen = seen

    async def run() -> dict[str, Any]:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        uploads = [one.replace("BASE", base) for one in arguments]
        options = traffic.parse(["--target", base + target, "--http2-share", "1", *uploads])
        try:
            return await traffic.Generator(options, None).run()
        finally:
            server.close()

    return asyncio.run(run()), seen


def test_kinds_are_mixed_and_counted_apart() -> None:
    async def run() -> dict[str, Any]:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        options = traffic.parse(
            [
                *("--target", f"{base}/x/{{id}}", "--rate", "100", "--duration", "1"),
                *("--upload-share", "0.2", "--upload-target", f"PUT {base}/uploads/{{id}}"),
                *("--slow-share", "0.1", "--slow-target", f"{base}/slow/{{id}}?seconds={{seconds}}"),
            ]
        )
        try:
            return await traffic.Generator(options, None).run()
        finally:
            await runner.cleanup()

    result = asyncio.run(run())
    mix = result["mix"]
    assert (result["sent"], result["failed"]) == (100, 0), result["failures"]
    assert set(mix) == {"http1 plain", "http1 upload", "http1 slow"}
    assert sum(one["sent"] for one in mix.values()) == 100
    assert 10 <= mix["http1 upload"]["sent"] <= 30
    assert 3 <= mix["http1 slow"]["sent"] <= 20
    assert 1.0 <= mix["http1 slow"]["slowest"] < 5.0


def test_http2_over_kept_and_new_connections() -> None:
    result, seen = measure_http2("/x/{id}", "--rate", "50", "--duration", "0.4", "--first-id", "1")
    assert (result["sent"], result["failed"]) == (20, 0), result["failures"]
    assert sorted(int(path.rsplit("/", 1)[-1]) for path, _number in seen) == list(range(1, 21))
    per_connection = sorted(
        sum(number == other for _path, other in seen) for number in {number for _path, number in seen}
    )
    assert per_connection == [1] * 10 + [10]
    assert result["versions"]["1.0.0"]["count"] == 20


def test_http2_uploads_arrive_whole() -> None:
    more = ("--upload-share", "1", "--upload-target", "POST BASE/uploads/{id}")
    result, seen = measure_http2("/x/{id}", "--rate", "20", "--duration", "0.3", *more)
    assert (result["sent"], result["failed"]) == (6, 0), result["failures"]
    assert result["mix"]["http2 upload"]["sent"] == len(seen) == 6


@pytest.mark.parametrize(("path", "kind"), [("/reset/{id}", "reset"), ("/away/{id}", "reset")])
def test_http2_failures_are_not_repeated(path: str, kind: str) -> None:
    result, seen = measure_http2(path, "--rate", "20", "--duration", "0.2", "--connections", "new")
    assert result["failed"] == result["sent"] == len(seen) == 4
    assert sum(one["count"] for one in result["failures"].values()) == 4
    assert kind in result["failures"], result["failures"]


def test_http2_leaves_a_connection_that_the_server_closes_without_a_failure() -> None:
    result, seen = measure_http2("/leaving/{id}", "--rate", "50", "--duration", "0.4", "--connections", "kept")
    assert (result["sent"], result["failed"], len(seen)) == (20, 0, 20), result["failures"]
    assert len({number for _path, number in seen}) > 1


def test_a_damaged_upload_is_a_failure() -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"sha256": "0" * 64})

    async def run() -> dict[str, Any]:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/x"
        options = traffic.parse(
            [
                "--target",
                url,
                "--rate",
                "10",
                "--duration",
                "0.2",
                "--upload-share",
                "1",
                "--upload-target",
                f"PUT {url}",
            ]
        )
        try:
            return await traffic.Generator(options, None).run()
        finally:
            await runner.cleanup()

    assert asyncio.run(run())["failures"]["upload damaged"]["count"] == 2


@pytest.mark.parametrize("arguments", [["--http2-share", "1.5"], ["--upload-share", "0.1"], ["--slow-share", "-1"]])
def test_wrong_shares_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        traffic.parse(["--target", "http://h/x", *arguments])
