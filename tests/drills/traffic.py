"""Open-loop HTTP load with an account of every request.

Requests start on a fixed schedule (request n at n / rate), whatever earlier ones do, and latency counts from the
scheduled start: a stalled server cannot slow the load down and hide its stall (no coordinated omission; G. Tene, "How
NOT to measure latency"). Half of the requests open a new connection, half use kept-alive ones. Nothing is retried.

    traffic.py --target https://10.77.1.10/orders/{id} --name shop.internal --ca ca.pem --duration 60 --out r.json

Ends at --duration, at SIGTERM or SIGINT, or when --stop-file appears; waits for requests in flight, then writes the
summary. Exit status 0: no request failed; 1: some did; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TextIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

EXAMPLES = 3  # of each kind of failure
BUCKET = 1.0  # seconds in the timeline


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
    timeline: dict[int, list[int]] = field(default_factory=dict)
    longest_gap: float = 0.0
    gap_at: float = 0.0
    last_success: float = 0.0
    late_starts: int = 0
    worst_lateness: float = 0.0

    def success(self, finished: float, latency: float, version: str, instance: str, where: dict[str, Any]) -> None:
        self.ok += 1
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


class Generator:
    """Runs the schedule and keeps the account."""

    def __init__(self, options: argparse.Namespace, ledger: TextIO | None) -> None:
        self.options = options
        self.targets: list[Target] = options.target
        self.account = Account()
        self.ledger = ledger
        self.stop = asyncio.Event()
        self.started = 0.0
        self.sessions: dict[tuple[str, bool], aiohttp.ClientSession] = {}
        self.pending: set[asyncio.Task[None]] = set()
        self.context: ssl.SSLContext | bool = True
        if options.ca:
            self.context = ssl.create_default_context(cafile=options.ca)
        elif options.insecure:
            self.context = False

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

    async def request(self, number: int, scheduled: float) -> None:
        target = self.targets[number % len(self.targets)]
        identifier = str(uuid.uuid4()) if target.method == "POST" else str(self.options.first_id + number)
        url = URL(target.url.replace("{id}", identifier), encoded=True)
        # with several targets each of them gets both kinds of connection
        fresh = (
            bool((number // len(self.targets)) % 2)
            if self.options.connections == "both"
            else (self.options.connections == "new")
        )
        session = self.session(str(url.host), fresh)
        headers = {"x-correlation-id": f"{self.options.run}-{number}"}
        if self.options.name:
            url = url.with_host(self.options.name)
        data = None
        if target.body or target.method == "POST":
            data = target.body.replace("{id}", identifier).replace("{n}", str(number)) or None
            headers["content-type"] = "application/json"
            headers["idempotency-key"] = identifier
        where = {"n": number, "method": target.method, "url": target.url, "connection": "new" if fresh else "kept"}
        self.account.connections[where["connection"]] += 1
        status, kind, detail, version, instance = 0, "", "", "", ""
        try:
            async with session.request(target.method, url, headers=headers, data=data, allow_redirects=False) as answer:
                body = await answer.read()
                status = answer.status
                version = answer.headers.get(self.options.version_header, "")
                instance = answer.headers.get(self.options.instance_header, "")
                if not 200 <= status < 300:
                    kind, detail = f"status {status}", body[:200].decode("utf-8", "replace")
        except Exception as error:  # every request ends in the account, whatever happened to it
            kind, detail = failure_kind(error), str(error) or type(error).__name__
        finished = time.monotonic() - self.started
        latency = finished - scheduled
        if kind:
            self.account.failure(finished, kind, detail, where)
        else:
            self.account.success(finished, latency, version, instance, where)
        if self.ledger is not None:
            record = {
                "n": number,
                "id": identifier,
                "method": target.method,
                "url": target.url,
                "scheduled": round(scheduled, 4),
                "seconds": round(latency, 4),
                "status": status,
                "failure": kind,
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
        for session in self.sessions.values():
            await session.close()
        return self.account.summary(elapsed, self.options.rate)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--target", action="append", required=True, type=Target.parse, metavar="'[METHOD ]URL[ BODY]'")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second, all targets together")
    parser.add_argument("--duration", type=float, default=0.0, help="seconds; 0: until told to stop")
    parser.add_argument("--connections", choices=("both", "new", "kept"), default="both")
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
