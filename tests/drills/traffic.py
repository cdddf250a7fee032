"""Open-loop HTTP load with an account of every request.

Requests start on a fixed schedule (request n at n / rate), whatever earlier ones do, and latency counts from the
scheduled start: a stalled server cannot slow the load down and hide its stall (no coordinated omission; G. Tene, "How
NOT to measure latency"). Half of the requests open a new connection, half use kept-alive ones. Nothing is retried
(but HTTP/2 tells which requests a closing connection never began; those it sends on another one: RFC 9113, 6.8).

    traffic.py --target https://10.77.1.10/orders/{id} --name shop.internal --ca ca.pem --duration 60 --out r.json

With --http2-share that part of all requests is HTTP/2. With --upload-share and --slow-share such parts are uploads
(256 KiB to 1 MiB, sent over up to a second, never twice; the answer must repeat their SHA-256) and requests for answers
that take 1 to 3 s, to addresses of their own:

    traffic.py ... --http2-share 0.25 --upload-share 0.05 --upload-target 'PUT https://10.77.1.10/orders/uploads/{id}'
               --slow-share 0.05 --slow-target 'https://10.77.1.10/orders/slow/{id}?seconds={seconds}'

Ends at --duration, at SIGTERM or SIGINT, or when --stop-file appears; waits for requests in flight, then writes the
summary. Exit status 0: no request failed; 1: some did; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import signal
import socket
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TextIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from yarl import URL

EXAMPLES = 3  # of each kind of failure
BUCKET = 1.0  # seconds in the timeline
CHUNK = random.Random(1).randbytes(64 * 1024)  # uploads are made of these
CHUNKS = (4, 16)  # an upload's shortest and longest
CHUNK_PAUSE = 0.05  # seconds between two chunks, so that uploads are under way when something happens
SLOW = (1.0, 3.0)  # seconds that slow answers take
HASHES = {count: hashlib.sha256(CHUNK * count).hexdigest() for count in range(CHUNKS[0], CHUNKS[1] + 1)}


@dataclass(frozen=True)
class Target:
    """One address to load; `{id}` in it becomes the number of the request."""

    method: str
    url: str
    body: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """`[METHOD ]URL[ BODY]`; raises ValueError."""
        parts = text.split(" ", 2)
        if parts[0] in ("GET", "POST", "PUT", "DELETE", "HEAD"):
            method, rest = parts[0], parts[1:]
        else:
            method, rest = "GET", text.split(" ", 1)
        if not rest or not rest[0].startswith(("http://", "https://")):
            raise ValueError(f"target {text!r} is not '[METHOD ]http(s)://host/path[ BODY]'")
        return cls(method, rest[0], rest[1] if len(rest) > 1 else "")


@dataclass
class Kind:
    """The account of one kind of requests, such as uploads over HTTP/2."""

    sent: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)


@dataclass
class Account:
    """Counts every request exactly once; times in seconds since the start."""

    sent: int = 0
    ok: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    slowest: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Counter[int]] = field(default_factory=dict)
    instances: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    mix: dict[str, Kind] = field(default_factory=dict)
    timeline: dict[int, list[int]] = field(default_factory=dict)
    longest_gap: float = 0.0
    gap_at: float = 0.0
    last_success: float = 0.0
    late_starts: int = 0
    worst_lateness: float = 0.0

    def kind(self, where: dict[str, Any]) -> Kind:
        return self.mix.setdefault(f"{where['protocol']} {where['kind']}", Kind())

    def begin(self, where: dict[str, Any]) -> None:
        self.connections[where["connection"]] += 1
        self.kind(where).sent += 1

    def success(self, finished: float, latency: float, version: str, instance: str, where: dict[str, Any]) -> None:
        self.ok += 1
        self.kind(where).latencies.append(latency)
        self.latencies.append(latency)
        if latency > self.slowest.get("seconds", -1.0):
            self.slowest = {"seconds": latency, "at": round(finished, 3), **where}
        self.versions.setdefault(version or "unknown", Counter())[int(finished // BUCKET)] += 1
        if instance:
            self.instances[instance] += 1
        self.timeline.setdefault(int(finished // BUCKET), [0, 0])[0] += 1
        self.note_gap(finished)

    def note_gap(self, now: float) -> None:
        """Gap between successes; results may come a little out of order, which never lengthens a gap."""
        if now - self.last_success > self.longest_gap:
            self.longest_gap, self.gap_at = now - self.last_success, self.last_success
        self.last_success = max(self.last_success, now)

    def failure(self, finished: float, kind: str, detail: str, where: dict[str, Any]) -> None:
        self.failed += 1
        self.kinds[kind] += 1
        self.kind(where).failed += 1
        self.timeline.setdefault(int(finished // BUCKET), [0, 0])[1] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append({"at": round(finished, 3), "detail": detail[:300], **where})

    def summary(self, elapsed: float, rate: float) -> dict[str, Any]:
        """What is written to --out. `elapsed`: seconds from the first scheduled request to the last answer."""
        self.note_gap(max(elapsed, self.last_success))
        ordered = sorted(self.latencies)
        return {
            "rate": rate,
            "elapsed": round(elapsed, 3),
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failed,
            "failures": {
                kind: {"count": count, "first": self.examples[kind]} for kind, count in self.kinds.most_common()
            },
            "latency": {
                name: round(percentile(ordered, share), 4)
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))
            },
            "slowest": {**self.slowest, "seconds": round(self.slowest["seconds"], 4)} if self.slowest else {},
            "longest_gap": {"seconds": round(self.longest_gap, 3), "at": round(self.gap_at, 3)},
            "versions": {
                version: {
                    "count": sum(seen.values()),
                    "first": min(seen) * BUCKET,
                    "last": max(seen) * BUCKET,
                    "per_second": [[second * BUCKET, count] for second, count in sorted(seen.items())],
                }
                for version, seen in sorted(self.versions.items())
            },
            "instances": dict(sorted(self.instances.items())),
            "connections": dict(self.connections),
            "mix": {
                name: {
                    "sent": one.sent,
                    "failed": one.failed,
                    "p99": round(percentile(sorted(one.latencies), 0.99), 4),
                    "slowest": round(max(one.latencies, default=0.0), 4),
                }
                for name, one in sorted(self.mix.items())
            },
            "timeline": [[second * BUCKET, ok, failed] for second, (ok, failed) in sorted(self.timeline.items())],
            # Of the generator itself: were these large, the numbers above would be about this machine.
            "generator": {"late_starts": self.late_starts, "worst_lateness": round(self.worst_lateness, 4)},
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of sorted values; 0.0 of none."""
    if not ordered:
        return 0.0
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[min(len(ordered), int(rank)) - 1]


def failure_kind(error: BaseException) -> str:
    """A short, countable name of what went wrong on the way."""
    if isinstance(error, asyncio.TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "disconnected"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "certificate"
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect"
    if isinstance(error, NeverBegun):
        return "never begun"
    if isinstance(error, ConnectionRefusedError):
        return "connect"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, (aiohttp.ClientOSError, ConnectionError)):
        return "reset"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "incomplete"
    return type(error).__name__


class Pinned(AbstractResolver):
    """Resolves every name to the address that the target names, so that TLS and Host can carry another name."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        with contextlib.suppress(ValueError):  # an address needs no thread to look it up
            family = socket.AF_INET6 if ip_address(self.address).version == 6 else socket.AF_INET
            return [ResolveResult(hostname=host, host=self.address, port=port, family=family, proto=0, flags=0)]
        infos = await asyncio.get_running_loop().getaddrinfo(self.address, port, type=1)
        return [
            ResolveResult(hostname=host, host=info[4][0], port=port, family=int(info[0]), proto=int(info[2]), flags=0)
            for info in infos[:1]
        ]

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Request:
    """One request, ready to be sent. `chunks` > 0: an upload of so many chunks instead of `data`."""

    method: str
    url: str  # names the address, not the host
    headers: dict[str, str]
    data: str | None
    chunks: int
    fresh: bool  # opens a connection of its own


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any  # a mapping that ignores case
    body: bytes


async def upload(chunks: int) -> AsyncIterator[bytes]:
    """The body of an upload: a stream, which no client can send a second time."""
    for number in range(chunks):
        if number:
            await asyncio.sleep(CHUNK_PAUSE)
        yield CHUNK


class Http1:
    """HTTP/1.1 by aiohttp."""

    def __init__(self, options: argparse.Namespace, context: ssl.SSLContext | bool) -> None:
        self.options = options
        self.context = context
        self.sessions: dict[tuple[str, bool], aiohttp.ClientSession] = {}

    def session(self, address: str, fresh: bool) -> aiohttp.ClientSession:
        key = (address, fresh)
        if key not in self.sessions:
            connector = aiohttp.TCPConnector(
                limit=0,
                force_close=fresh,
                ssl=self.context,
                use_dns_cache=False,
                **({} if fresh else {"keepalive_timeout": 60}),
                resolver=Pinned(address) if self.options.name else None,
            )
            self.sessions[key] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self.options.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
            )
            # aiohttp repeats an idempotent request once when a kept-alive connection breaks: here that is a failure
            self.sessions[key]._retry_connection = False
        return self.sessions[key]

    async def send(self, request: Request) -> Answer:
        url = URL(request.url, encoded=True)
        session = self.session(str(url.host), request.fresh)
        if self.options.name:
            url = url.with_host(self.options.name)
        data = upload(request.chunks) if request.chunks else request.data
        async with session.request(
            request.method, url, headers=request.headers, data=data, allow_redirects=False
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def close(self) -> None:
        for session in self.sessions.values():
            await session.close()


class NeverBegun(ConnectionError):
    """The server closed the connection and said that it never began this request."""


class Multiplexer(H2Connection):
    """h2 takes a connection for dead at the first GOAWAY, but requests in flight are still answered after it."""

    def _receive_goaway_frame(self, frame: Any) -> Any:
        state = self.state_machine.state
        received = super()._receive_goaway_frame(frame)
        self.state_machine.state = state
        return received


@dataclass
class Stream:
    """A request in flight."""

    done: asyncio.Future[Answer]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


class Http2Connection(asyncio.Protocol):
    """One connection; requests share it."""

    def __init__(self) -> None:
        self.http = Multiplexer(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.streams: dict[int, Stream] = {}
        self.leaving = False  # no new requests
        self.moved = asyncio.Event()  # set when the server may have made room for more of an upload
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.http.initiate_connection()
        self.flush()

    def flush(self) -> None:
        data = self.http.data_to_send()
        if data:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.http.receive_data(data):
                self.handle(event)
        except ProtocolError as error:
            self.fail(error)
            self.transport.abort()
            return
        self.flush()

    def handle(self, event: Any) -> None:
        stream = self.streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, ConnectionTerminated):
            self.leaving = True
            for number in [one for one in self.streams if one > (event.last_stream_id or 0)]:
                self.end(number, NeverBegun("the connection closes"))
        elif isinstance(event, (WindowUpdated, RemoteSettingsChanged)):
            self.moved.set()
        elif isinstance(event, DataReceived):
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if stream:
                stream.body += event.data
        elif stream and isinstance(event, ResponseReceived):
            stream.headers = dict(event.headers)
            stream.status = int(stream.headers[":status"])
        elif stream and isinstance(event, StreamEnded):
            self.end(event.stream_id, Answer(stream.status, stream.headers, bytes(stream.body)))
        elif stream and isinstance(event, StreamReset):
            self.end(event.stream_id, ConnectionResetError(f"stream reset, code {event.error_code}"))
        if self.leaving and not self.streams:
            self.transport.close()

    def end(self, number: int, result: Answer | Exception) -> None:
        stream = self.streams.pop(number)
        self.moved.set()
        if stream.done.done():
            return
        if isinstance(result, Answer):
            stream.done.set_result(result)
        else:
            stream.done.set_exception(result)

    def fail(self, error: Exception) -> None:
        self.leaving = True
        for number in list(self.streams):
            self.end(number, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(exc or ConnectionResetError("the connection was closed"))

    async def send(self, request: Request, authority: str) -> Answer:
        url = URL(request.url, encoded=True)
        head = {":method": request.method, ":authority": authority, ":scheme": url.scheme, ":path": url.raw_path_qs}
        body = request.data.encode() if request.data else b""
        number = self.http.get_next_available_stream_id()
        stream = Stream(asyncio.get_running_loop().create_future())
        self.http.send_headers(number, [*head.items(), *request.headers.items()], not (body or request.chunks))
        self.streams[number] = stream
        self.flush()
        try:
            if request.chunks:
                async for chunk in upload(request.chunks):
                    await self.write(number, chunk)
            elif body:
                await self.write(number, body)
            # An answer may come before the whole body was sent; then the stream is over.
            if (body or request.chunks) and number in self.streams:
                self.http.end_stream(number)
                self.flush()
            return await stream.done
        finally:
            if self.streams.pop(number, None) and not self.transport.is_closing():
                self.http.reset_stream(number, error_code=8)  # CANCEL: it took too long
                self.flush()

    async def write(self, number: int, data: bytes) -> None:
        """As much as the server has room for, and the rest as it makes room."""
        rest = memoryview(data)
        while rest and number in self.streams:
            room = min(self.http.local_flow_control_window(number), self.http.max_outbound_frame_size)
            if room <= 0:
                self.moved.clear()
                await self.moved.wait()
                continue
            self.http.send_data(number, bytes(rest[:room]))
            self.flush()
            rest = rest[room:]


class Http2:
    """HTTP/2 and nothing else, by h2: with TLS agreed on by ALPN, without it at once.

    On h2 itself: httpx 0.28 over one kept connection took seconds per answer at 50 requests/s and failed some alone.
    """

    def __init__(self, options: argparse.Namespace, context: ssl.SSLContext | bool) -> None:
        self.options = options
        if context is True:
            self.context = ssl.create_default_context()
        elif context is False:
            self.context = ssl.create_default_context()
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        else:
            self.context = context
        self.context.set_alpn_protocols(["h2"])
        self.kept: dict[tuple[str, int], asyncio.Task[Http2Connection]] = {}

    async def connect(self, url: URL) -> Http2Connection:
        tls = url.scheme == "https"
        _transport, connection = await asyncio.get_running_loop().create_connection(
            Http2Connection,
            url.host,
            url.port,
            ssl=self.context if tls else None,
            server_hostname=(self.options.name or url.host) if tls else None,
        )
        return connection

    async def connection(self, url: URL, fresh: bool) -> Http2Connection:
        if fresh:
            return await self.connect(url)
        key = (url.host or "", url.port or 0)
        task = self.kept.get(key)
        # Requests that come while it is being opened wait for the same one.
        if task is None or (task.done() and (task.exception() or task.result().leaving)):
            task = self.kept[key] = asyncio.create_task(self.connect(url))
        return await asyncio.shield(task)

    async def ask(self, request: Request) -> Answer:
        url = URL(request.url, encoded=True)
        authority = self.options.name or url.host or ""
        if url.explicit_port:
            authority += f":{url.explicit_port}"
        for last in (False, True):
            connection = await self.connection(url, request.fresh)
            try:
                return await connection.send(request, authority)
            except NeverBegun:
                if last or request.chunks:
                    raise
            finally:
                if request.fresh:
                    connection.transport.close()
        raise AssertionError("not reached")

    async def send(self, request: Request) -> Answer:
        return await asyncio.wait_for(self.ask(request), self.options.timeout)

    async def close(self) -> None:
        for task in self.kept.values():
            if task.done() and not task.exception():
                task.result().transport.close()
        await asyncio.sleep(0)


def problem(request: Request, answer: Answer) -> tuple[str, str]:
    """Kind and detail of what is wrong with an answer; empty when nothing is."""
    if not 200 <= answer.status < 300:
        return f"status {answer.status}", answer.body[:200].decode("utf-8", "replace")
    if request.chunks and HASHES[request.chunks].encode() not in answer.body:
        return "upload damaged", answer.body[:200].decode("utf-8", "replace")
    return "", ""


class Generator:
    """Runs the schedule and keeps the account."""

    def __init__(self, options: argparse.Namespace, ledger: TextIO | None) -> None:
        self.options = options
        self.targets: dict[str, list[Target]] = {
            "plain": options.target,
            "upload": options.upload_target,
            "slow": options.slow_target,
        }
        self.account = Account()
        self.ledger = ledger
        self.stop = asyncio.Event()
        self.started = 0.0
        self.pending: set[asyncio.Task[None]] = set()
        self.chance = random.Random(1)  # the same mixture in every run
        context: ssl.SSLContext | bool = True
        if options.ca:
            context = ssl.create_default_context(cafile=options.ca)
        elif options.insecure:
            context = False
        second = ssl.create_default_context(cafile=options.ca) if options.ca else context  # each sets its own ALPN
        self.clients: dict[str, Http1 | Http2] = {"http1": Http1(options, context)}
        if options.http2_share:
            self.clients["http2"] = Http2(options, second)

    def draw(self) -> tuple[str, str]:
        """Protocol and kind of the next request."""
        options = self.options
        protocol = "http2" if self.chance.random() < options.http2_share else "http1"
        where = self.chance.random()
        if where < options.upload_share:
            return protocol, "upload"
        return protocol, "slow" if where < options.upload_share + options.slow_share else "plain"

    def prepare(self, number: int, protocol: str, kind: str) -> tuple[Request, str, dict[str, Any]]:
        """The request, its id, and where it goes, for the account."""
        targets = self.targets[kind]
        target = targets[number % len(targets)]
        identifier = str(uuid.uuid4()) if target.method == "POST" else str(self.options.first_id + number)
        url = target.url.replace("{id}", identifier)
        if kind == "slow":
            url = url.replace("{seconds}", f"{self.chance.uniform(*SLOW):.2f}")
        # with several targets each of them gets both kinds of connection
        fresh = (
            bool((number // len(targets)) % 2)
            if self.options.connections == "both"
            else (self.options.connections == "new")
        )
        headers = {"x-correlation-id": f"{self.options.run}-{number}"}
        data, chunks = None, 0
        if kind == "upload":
            chunks = self.chance.randint(*CHUNKS)
            headers["content-type"] = "application/octet-stream"
            headers["content-length"] = str(chunks * len(CHUNK))
        elif target.body or target.method == "POST":
            data = target.body.replace("{id}", identifier).replace("{n}", str(number)) or None
            headers["content-type"] = "application/json"
            headers["idempotency-key"] = identifier
        where = {
            "n": number,
            "method": target.method,
            "url": target.url,
            "connection": "new" if fresh else "kept",
            "protocol": protocol,
            "kind": kind,
        }
        return Request(target.method, url, headers, data, chunks, fresh), identifier, where

    async def request(self, number: int, scheduled: float) -> None:
        protocol, kind = self.draw()
        request, identifier, where = self.prepare(number, protocol, kind)
        self.account.begin(where)
        status, failure, detail, version, instance = 0, "", "", "", ""
        try:
            answer = await self.clients[protocol].send(request)
            status = answer.status
            version = answer.headers.get(self.options.version_header, "")
            instance = answer.headers.get(self.options.instance_header, "")
            failure, detail = problem(request, answer)
        except Exception as error:  # every request ends in the account, whatever happened to it
            failure, detail = failure_kind(error), str(error) or type(error).__name__
        finished = time.monotonic() - self.started
        latency = finished - scheduled
        if failure:
            self.account.failure(finished, failure, detail, where)
        else:
            self.account.success(finished, latency, version, instance, where)
        if self.ledger is not None:
            record = {
                **where,
                "id": identifier,
                "scheduled": round(scheduled, 4),
                "seconds": round(latency, 4),
                "status": status,
                "failure": failure,
                "version": version,
                "instance": instance,
            }
            self.ledger.write(json.dumps(record) + "\n")

    async def watch_stop_file(self) -> None:
        path = Path(self.options.stop_file)
        while not path.exists():
            await asyncio.sleep(0.2)
        self.stop.set()

    async def progress(self) -> None:
        while True:
            await asyncio.sleep(self.options.progress)
            account = self.account
            print(f"sent {account.sent} ok {account.ok} failed {account.failed}", file=sys.stderr, flush=True)

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        helpers = [asyncio.create_task(self.watch_stop_file())] if self.options.stop_file else []
        if self.options.progress:
            helpers.append(asyncio.create_task(self.progress()))
        self.started = time.monotonic()
        interval = 1.0 / self.options.rate
        number = 0
        while not self.stop.is_set():
            scheduled = number * interval
            if self.options.duration and scheduled >= self.options.duration:
                break
            now = time.monotonic() - self.started
            if scheduled > now:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), scheduled - now)
                if self.stop.is_set():
                    break
                now = time.monotonic() - self.started
            lateness = now - scheduled
            if lateness > 0.05:
                self.account.late_starts += 1
            self.account.worst_lateness = max(self.account.worst_lateness, lateness)
            self.account.sent += 1
            task = asyncio.create_task(self.request(number, scheduled))
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)
            number += 1
            if number % 50 == 0:
                await asyncio.sleep(0)  # a late schedule must not starve the answers
        while self.pending:
            await asyncio.gather(*list(self.pending))
        elapsed = time.monotonic() - self.started
        for helper in helpers:
            helper.cancel()
        for client in self.clients.values():
            await client.close()
        return self.account.summary(elapsed, self.options.rate)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--target", action="append", required=True, type=Target.parse, metavar="'[METHOD ]URL[ BODY]'")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second, all targets together")
    parser.add_argument("--duration", type=float, default=0.0, help="seconds; 0: until told to stop")
    parser.add_argument("--connections", choices=("both", "new", "kept"), default="both")
    for kind, what in (("upload", "uploads"), ("slow", "slow answers, {seconds} in it becomes a number")):
        parser.add_argument(f"--{kind}-share", type=float, default=0.0, help=f"part of all requests that are {what}")
        parser.add_argument(
            f"--{kind}-target", action="append", default=[], type=Target.parse, metavar="'[METHOD ]URL'"
        )
    parser.add_argument("--http2-share", type=float, default=0.0, help="part of all requests that are HTTP/2")
    parser.add_argument("--name", default="", help="name for SNI, certificate and Host, where the URL has an address")
    parser.add_argument("--ca", default="", help="certificates to trust, PEM")
    parser.add_argument("--insecure", action="store_true", help="do not check certificates")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds until a request counts as failed")
    parser.add_argument("--first-id", type=int, default=1, help="number that {id} starts with")
    parser.add_argument("--run", default=uuid.uuid4().hex[:8], help="prefix of the correlation ids")
    parser.add_argument("--version-header", default="x-service-version")
    parser.add_argument("--instance-header", default="x-service-instance")
    parser.add_argument("--ledger", default="", help="file for one JSON line per request")
    parser.add_argument("--out", default="", help="file for the summary; standard output if empty")
    parser.add_argument("--stop-file", default="", help="end when this file appears")
    parser.add_argument("--progress", type=float, default=0.0, help="seconds between lines on standard error")
    options = parser.parse_args(arguments)
    if not 0 < options.rate <= 10000:
        parser.error(f"--rate {options.rate:g} is outside 0..10000")
    for name in ("http2_share", "upload_share", "slow_share"):
        if not 0 <= getattr(options, name) <= 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name):g} is outside 0..1")
    if options.upload_share + options.slow_share > 1:
        parser.error("--upload-share and --slow-share together are above 1")
    for kind in ("upload", "slow"):
        if getattr(options, f"{kind}_share") and not getattr(options, f"{kind}_target"):
            parser.error(f"--{kind}-share needs a --{kind}-target")
    if options.ca and not Path(options.ca).is_file():
        parser.error(f"--ca {options.ca}: no such file")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)

    async def measured() -> dict[str, Any]:
        return await Generator(options, ledger).run()

    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Path(options.ledger).open("w", encoding="utf-8")) if options.ledger else None
        summary = asyncio.run(measured())
    text = json.dumps(summary, indent=1)
    if options.out:
        temporary = Path(f"{options.out}.new")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(options.out)
    else:
        print(text)
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
