# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus metrics in the text format, served over mutual TLS 1.3 to allowed SPIFFE identities only."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable

from causeway_agent.config import MetricsSettings
from causeway_agent.runtime import Log, Signature, signature

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
DEFINITIONS: dict[str, tuple[str, str]] = {
    "causeway_agent_info": ("gauge", "Version of the agent; always 1."),
    "causeway_agent_up": ("gauge", "1 while the agent runs."),
    "causeway_agent_start_time_seconds": ("gauge", "Start of the agent, seconds since the epoch."),
    "causeway_etcd_connected": ("gauge", "1 while the last exchange with etcd succeeded, by part (watch, publish)."),
    "causeway_etcd_errors_total": ("counter", "Failed exchanges with etcd, by part."),
    "causeway_registry_connects_total": ("counter", "Full reads followed by a watch; minus one: reconnects."),
    "causeway_registry_writes_total": ("counter", "Keys written or deleted under the lease."),
    "causeway_registry_rejected": ("gauge", "Values in etcd that could not be understood and were left out."),
    "causeway_watch_revision": ("gauge", "etcd revision of the newest event seen."),
    "causeway_lease_ttl_seconds": ("gauge", "Seconds until the lease runs out unless it is renewed."),
    "causeway_lease_lost_total": ("counter", "Leases that ran out while the agent was alive."),
    "causeway_check_total": ("counter", "Health checks run, by service, slot and type."),
    "causeway_check_failures_total": ("counter", "Health checks failed."),
    "causeway_check_duration_seconds": ("histogram", "Duration of health checks."),
    "causeway_instance_healthy": ("gauge", "1 while all checks of the instance pass."),
    "causeway_instance_info": ("gauge", "Labels of an instance; always 1."),
    "causeway_proxy_up": ("gauge", "1 while Envoy's admin interface answers."),
    "causeway_xds_writes_total": ("counter", "xDS files written."),
    "causeway_xds_write_failures_total": ("counter", "xDS files that could not be written."),
    "causeway_xds_pending": ("gauge", "Services whose newest revision Envoy has not acknowledged yet."),
    "causeway_ack_latency_seconds": ("histogram", "From the event's arrival to Envoy running it."),
    "causeway_stale_endpoints": ("gauge", "Endpoints kept although their lease ran out, by service."),
    "causeway_config_errors": ("gauge", "Files below the agent's directories that are not usable."),
    "causeway_certificate_not_after_seconds": ("gauge", "End of a certificate's life, seconds since the epoch."),
}


class Metrics:
    """Counters, gauges and histograms of DEFINITIONS; every method is safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[tuple[str, str], ...], Any]] = {name: {} for name in DEFINITIONS}

    @staticmethod
    def _key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, str(value)) for name, value in labels.items()))

    def inc(self, name: str, amount: float = 1, **labels: str) -> None:
        with self._lock:
            series = self._values[name]
            key = self._key(labels)
            series[key] = series.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name][self._key(labels)] = value

    def replace(self, name: str, values: list[tuple[dict[str, str], float]]) -> None:
        """Set a gauge's whole family, so that labels of things that are gone disappear."""
        with self._lock:
            self._values[name] = {self._key(labels): value for labels, value in values}

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        with self._lock:
            counts = self._values[name].setdefault(self._key(labels), [0] * len(BUCKETS) + [0, 0.0])
            for index, limit in enumerate(BUCKETS):
                counts[index] += seconds <= limit
            counts[-2] += 1
            counts[-1] += seconds

    def value(self, name: str, **labels: str) -> float:
        with self._lock:
            return float(self._values[name].get(self._key(labels), 0))

    def render(self) -> str:
        """The text exposition format, version 0.0.4."""
        lines = []
        with self._lock:
            for name, (kind, text) in DEFINITIONS.items():
                series = self._values[name]
                if not series:
                    continue
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                for key in sorted(series):
                    if kind != "histogram":
                        lines.append(f"{name}{_labels(key)} {series[key]:.17g}")
                        continue
                    counts = series[key]
                    for index, limit in enumerate(BUCKETS):
                        lines.append(f"{name}_bucket{_labels((*key, ('le', f'{limit:g}')))} {counts[index]}")
                    lines.append(f"{name}_bucket{_labels((*key, ('le', '+Inf')))} {counts[-2]}")
                    lines.append(f"{name}_sum{_labels(key)} {counts[-1]:.17g}")
                    lines.append(f"{name}_count{_labels(key)} {counts[-2]}")
        return "\n".join(lines) + "\n"


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    if not key:
        return ""
    escaped = ((name, value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')) for name, value in key)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def peer_identities(certificate: Any) -> list[str]:
    """URI SANs of a verified peer certificate, as `ssl.SSLSocket.getpeercert()` returns it."""
    return [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]


def tls_context(settings: MetricsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(settings.ca)
    # The directory behind `current` is fixed first, so that key and certificate belong together.
    context.load_cert_chain(os.path.realpath(settings.cert), os.path.realpath(settings.key))
    return context


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    owner: MetricsServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Refused handshakes and broken connections are no news."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the request's own thread: a client that says nothing must not block the others.
        request.settimeout(5.0)
        with contextlib.closing(self.owner.context().wrap_socket(request, server_side=True)) as secure:
            super().finish_request(secure, client_address)


class MetricsServer:
    """Serves GET /metrics. Certificates are read again when the files change."""

    def __init__(self, settings: MetricsSettings, render: Callable[[], str], log: Log) -> None:
        self._settings, self._render, self._log = settings, render, log
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._signature: tuple[Signature | None, ...] = ()
        self._server: _Server | None = None

    def context(self) -> ssl.SSLContext:
        """The TLS context for the next connection; a broken new pair keeps the old one in force."""
        files = self._settings.ca, self._settings.cert, self._settings.key
        current = tuple(signature(Path(name)) for name in files)
        with self._lock:
            if self._context is None or current != self._signature:
                try:
                    self._context = tls_context(self._settings)
                    self._log.info("metrics_certificate_loaded", cert=self._settings.cert)
                except OSError as error:
                    if self._context is None:
                        raise
                    self._log.error("metrics_certificate_unusable", cert=self._settings.cert, error=str(error))
                self._signature = current
            return self._context

    @property
    def port(self) -> int:
        return int(self._server.server_address[1]) if self._server else 0

    def start(self) -> None:
        """Listen in a thread. Raises OSError (address in use, unreadable certificate)."""
        self.context()
        render, allowed = self._render, self._settings.allowed

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            server_version = "causeway-agent"
            sys_version = ""

            def do_GET(self) -> None:
                connection: Any = self.connection
                if not set(peer_identities(connection.getpeercert())) & set(allowed):
                    self._answer(403, b"this identity may not read metrics\n")
                elif self.path.split("?")[0] != "/metrics":
                    self._answer(404, b"only /metrics is here\n")
                else:
                    self._answer(200, render().encode())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        if ":" in self._settings.address:
            _Server.address_family = socket.AF_INET6
        self._server = _Server((self._settings.address, self._settings.port), Handler)
        self._server.owner = self
        threading.Thread(target=self._server.serve_forever, args=(1.0,), name="metrics", daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def certificate_not_after(pem: str) -> float:
    """End of validity of the first certificate in a PEM text, seconds since the epoch. Raises ValueError.

    Walks RFC 5280 section 4.1 (Certificate, TBSCertificate, Validity) instead of asking for a third-party library.
    """
    end = "-----END CERTIFICATE-----"
    start = pem.find("-----BEGIN CERTIFICATE-----")
    if start < 0 or pem.find(end, start) < 0:
        raise ValueError("no certificate found")
    der = ssl.PEM_cert_to_DER_cert(pem[start : pem.index(end, start) + len(end)])
    certificate = _children(der, *_element(der, 0)[1:])
    fields = _children(der, *certificate[0][1:])
    # The version [0] is optional; then serial, signature, issuer, validity.
    validity = fields[4 if fields[0][0] == 0xA0 else 3]
    tag, begin, stop = _children(der, *validity[1:])[1]
    text = der[begin:stop].decode("ascii")
    if tag == 0x17:
        text = ("19" if text[:2] >= "50" else "20") + text
    import calendar

    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, first and last+1 offset of the content of the DER element at an offset."""
    if at + 2 > len(der):
        raise ValueError("truncated certificate")
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[at : at + size], "big"), at + size
    if at + length > len(der):
        raise ValueError("truncated certificate")
    return tag, at, at + length


def _children(der: bytes, at: int, stop: int) -> list[tuple[int, int, int]]:
    found = []
    while at < stop:
        element = _element(der, at)
        found.append(element)
        at = element[2]
    return found
