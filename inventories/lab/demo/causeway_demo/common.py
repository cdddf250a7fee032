"""What both services share: settings, logs, correlation, tracing, health and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
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

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# A caller behind a keep-alive connection gets this many seconds to see "Connection: close" before the sockets close.
LINGER = 1.0


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
    if request.path != "/healthz" or response.status >= 500:
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
    """Bad releases on purpose, all of them healthy: 1.3.0-broken fails on its route, 1.4.0-flaky for one id in twenty,
    and 1.5.0-slow takes 0.4 s longer for one id in twenty.
    """
    behaviour = request.app[SETTINGS].behaviour
    number = request.match_info.get("id", "")
    unlucky = number.isdigit() and int(number) % 20 == 7
    if behaviour == "broken" or (behaviour == "flaky" and unlucky):
        raise web.HTTPInternalServerError(reason="this release is broken on purpose")
    if behaviour == "slow" and unlucky:
        await asyncio.sleep(0.4)


async def healthz(request: web.Request) -> web.Response:
    if request.app[SETTINGS].behaviour == "unhealthy":
        return reply(request, {"status": "unhealthy on purpose"}, status=503)
    return reply(request, {"status": "ok"})


def application(settings: Settings, setup: Callable[[web.Application], None]) -> web.Application:
    app = web.Application(middlewares=[correlate], client_max_size=64 * 1024)
    app[SETTINGS] = settings
    app[DRAINING] = asyncio.Event()
    app.router.add_get("/healthz", healthz)
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
