"""What both services share: settings, logs, correlation, tracing, health and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from aiohttp import web
from opentelemetry import propagate, trace

from causeway_demo.behaviour import Behaviour

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# A caller behind a keep-alive connection gets this many seconds to see "Connection: close" before the sockets close.
LINGER = 1.0
UPLOAD_LIMIT = 16 * 1024 * 1024
SLOWEST = 10.0  # seconds
COUNTERS = {"visits": "Requests for an item or an order.", "sales": "Those that led to a sale."}


@dataclass(frozen=True)
class Settings:
    service: str
    version: str
    behaviour: str
    port: int
    instance: str
    zone: str
    shutdown_timeout: float

    @classmethod
    def from_environment(cls) -> Settings:
        env = os.environ
        return cls(
            service=env.get("SERVICE", ""),
            version=env.get("DEMO_VERSION", env.get("VERSION", "")),  # what the image is, not what it was asked to be
            behaviour=env.get("DEMO_BEHAVIOUR", "good"),
            port=int(env.get("PORT", "8080")),
            instance=env.get("INSTANCE", ""),
            zone=env.get("ZONE", ""),
            shutdown_timeout=float(env.get("SHUTDOWN_TIMEOUT", "25")),
        )


SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
BEHAVIOUR: web.AppKey[Behaviour] = web.AppKey("behaviour", Behaviour)
COUNTED: web.AppKey[dict[str, int]] = web.AppKey("counted", dict)
DRAINING: web.AppKey[asyncio.Event] = web.AppKey("draining", asyncio.Event)


def log(settings: Settings, level: str, message: str, **fields: Any) -> None:
    """Writes one JSON line to standard output, from where it reaches the journal."""
    record = {
        "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z",
        "level": level,
        "msg": message,
        "service": settings.service,
        "instance": settings.instance,
        "version": settings.version,
        **fields,
    }
    sys.stdout.write(json.dumps(record, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def enable_tracing() -> None:
    """Starts the OpenTelemetry SDK if OTEL_* names a collector; without one, context is only passed on."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = (
        TracerProvider()
    )  # resource and sampler come from OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def outbound_headers(request: web.Request) -> dict[str, str]:
    """Headers that every call on behalf of `request` carries."""
    headers = {"x-request-id": request["request_id"], "x-correlation-id": request["correlation_id"]}
    propagate.inject(headers)
    return headers


@web.middleware
async def correlate(request: web.Request, handler: Handler) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    started = time.monotonic()
    request["request_id"] = request.headers.get("x-request-id") or str(uuid.uuid4())
    request["correlation_id"] = request.headers.get("x-correlation-id") or request["request_id"]
    context = propagate.extract(request.headers)
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unmatched"
    with trace.get_tracer("causeway_demo").start_as_current_span(
        f"{request.method} {route}", context=context, kind=trace.SpanKind.SERVER
    ) as span:
        try:
            response = await handler(request)
        except web.HTTPException as exc:
            response = web.json_response({"error": exc.reason}, status=exc.status)
        except Exception as exc:
            log(
                settings,
                "error",
                "unhandled",
                error=f"{type(exc).__name__}: {exc}",
                correlation_id=request["correlation_id"],
            )
            response = web.json_response({"error": "internal error"}, status=500)
        span.set_attribute("http.request.method", request.method)
        span.set_attribute("http.response.status_code", response.status)
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    response.headers["x-request-id"] = request["request_id"]
    response.headers["x-correlation-id"] = request["correlation_id"]
    response.headers["x-service-version"] = settings.version
    response.headers["x-service-instance"] = settings.instance
    if request.app[DRAINING].is_set():
        response.force_close()
    if request.path not in ("/healthz", "/metrics") or response.status >= 500:
        log(
            settings,
            "info" if response.status < 500 else "error",
            "request",
            method=request.method,
            path=request.path,
            status=response.status,
            duration_ms=round((time.monotonic() - started) * 1000, 2),
            request_id=request["request_id"],
            correlation_id=request["correlation_id"],
            trace_id=trace_id,
        )
    return response


def reply(request: web.Request, body: dict[str, Any], status: int = 200) -> web.Response:
    settings = request.app[SETTINGS]
    return web.json_response(
        {
            **body,
            "service": settings.service,
            "version": settings.version,
            "instance": settings.instance,
            "zone": settings.zone,
        },
        status=status,
    )


async def misbehave(request: web.Request) -> None:
    """What this version does wrong to this request, and whether it sells: see behaviour.py."""
    behaviour, counted = request.app[BEHAVIOUR], request.app[COUNTED]
    identifier = request.match_info.get("id") or request["correlation_id"]
    counted["visits"] += 1
    if behaviour.fails(identifier):
        raise web.HTTPInternalServerError(reason="this release fails on purpose")
    counted["sales"] += behaviour.sells(identifier)
    await asyncio.sleep(behaviour.delay(identifier))


async def upload(request: web.Request) -> web.Response:
    """PUT or POST: reads the body piece by piece, keeps none of it, answers with its length and SHA-256."""
    received, seen = 0, hashlib.sha256()
    async for piece in request.content.iter_any():
        received += len(piece)
        if received > UPLOAD_LIMIT:
            raise web.HTTPRequestEntityTooLarge(max_size=UPLOAD_LIMIT, actual_size=received)
        seen.update(piece)
    return reply(request, {"bytes": received, "sha256": seen.hexdigest()}, status=201)


async def slow(request: web.Request) -> web.Response:
    """Answers after `seconds` (0 to 10, default 2)."""
    try:
        seconds = float(request.query.get("seconds", "2"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= SLOWEST:
        raise web.HTTPBadRequest(reason=f"seconds must be a number, 0 to {SLOWEST:g}")
    await asyncio.sleep(seconds)
    return reply(request, {"seconds": seconds})


async def metrics(request: web.Request) -> web.Response:
    """For Prometheus: what the business cares for. Service, pool and version are labels of the scrape."""
    lines = []
    for name, text in COUNTERS.items():
        lines += [f"# HELP demo_{name}_total {text}", f"# TYPE demo_{name}_total counter"]
        lines.append(f"demo_{name}_total {request.app[COUNTED][name]}")
    return web.Response(
        text="\n".join(lines) + "\n", headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
    )


async def healthz(request: web.Request) -> web.Response:
    if not request.app[BEHAVIOUR].healthy:
        return reply(request, {"status": "unhealthy on purpose"}, status=503)
    return reply(request, {"status": "ok"})


def application(settings: Settings, setup: Callable[[web.Application], None]) -> web.Application:
    app = web.Application(middlewares=[correlate], client_max_size=64 * 1024)
    app[SETTINGS] = settings
    app[BEHAVIOUR] = Behaviour.parse(settings.behaviour)
    app[COUNTED] = dict.fromkeys(COUNTERS, 0)
    app[DRAINING] = asyncio.Event()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", metrics)
    for method in ("PUT", "POST"):
        app.router.add_route(method, f"/{settings.service}/uploads/{{id}}", upload)
    app.router.add_get(f"/{settings.service}/slow/{{id}}", slow)
    setup(app)
    return app


async def run(settings: Settings, setup: Callable[[web.Application], None]) -> None:
    app = application(settings, setup)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # keepalive_timeout is longer than a proxy's idle timeout, so that the proxy is the one that closes
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=300, shutdown_timeout=settings.shutdown_timeout)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", settings.port, backlog=1024).start()
    log(settings, "info", "listening", port=settings.port, zone=settings.zone)
    await stop.wait()
    log(settings, "info", "stopping")
    app[DRAINING].set()
    await asyncio.sleep(LINGER)
    await runner.cleanup()  # no new connections, waits for requests in flight, closes idle ones
    log(settings, "info", "stopped")


def serve(settings: Settings, setup: Callable[[web.Application], None]) -> None:
    enable_tracing()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(settings, setup))
