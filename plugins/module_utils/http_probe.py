# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests over (mutual) TLS to one address, and what came back. Standard library only."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


class ProbeError(Exception):
    """The probe cannot run at all: a bad URL or unreadable TLS files."""


@dataclass(frozen=True)
class Target:
    """Where to send requests, and who must answer.

    ``server_name`` is the name checked against the certificate (default: the URL's host); ``identity`` is a URI that
    must be among the certificate's subject alternative names (a SPIFFE identity); timeouts are seconds.
    """

    url: str
    server_name: str = ""
    identity: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout: float = 5.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a probe saw; durations are seconds."""

    sent: int = 0
    failed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        ordered = sorted(self.durations)
        return {
            "sent": self.sent,
            "failed": self.failed,
            "statuses": dict(self.statuses),
            "failures": self.failures,
            "slowest": round(ordered[-1], 4) if ordered else 0.0,
            "median": round(ordered[len(ordered) // 2], 4) if ordered else 0.0,
        }


class _Connection(http.client.HTTPSConnection):
    """An HTTPS connection to an address whose certificate carries another name."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, server_name: str, timeout: float) -> None:
        super().__init__(host, port, context=context, timeout=timeout)
        self._tls = context
        self._server_name = server_name

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._server_name)


def tls_context(target: Target) -> ssl.SSLContext:
    """A client context that trusts ``ca_file`` only and presents the given certificate; raises ProbeError."""
    try:
        context = ssl.create_default_context(cafile=target.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if target.cert_file:
            context.load_cert_chain(target.cert_file, target.key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ProbeError(f"cannot load the TLS files ({target.ca_file}, {target.cert_file}): {error}") from error
    return context


def _open(target: Target, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    parts = urlsplit(target.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProbeError(f"url: {target.url!r} is not an http or https address")
    if context is None:
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=target.timeout)
    return _Connection(parts.hostname, parts.port or 443, context, target.server_name or parts.hostname, target.timeout)


def _identity_problem(connection: http.client.HTTPConnection, identity: str) -> str:
    if not identity or not isinstance(connection.sock, ssl.SSLSocket):
        return ""
    certificate: dict[str, Any] = dict(connection.sock.getpeercert() or {})
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    return "" if identity in names else f"the peer is {names or 'without identity'}, not {identity}"


def probe(
    target: Target, requests: int, statuses: Sequence[int] = (200,), interval: float = 0.0, keep_alive: bool = False
) -> Outcome:
    """Send ``requests`` GETs one after another, ``interval`` seconds apart, and count those not answered as wanted."""
    parts = urlsplit(target.url)
    context = tls_context(target) if parts.scheme == "https" else None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    outcome = Outcome()
    connection: http.client.HTTPConnection | None = None
    for number in range(requests):
        if number and interval:
            time.sleep(interval)
        began = time.monotonic()
        problem = ""
        try:
            if connection is None:
                connection = _open(target, context)
                connection.connect()
            problem = _identity_problem(connection, target.identity)
            if not problem:
                connection.request("GET", path, headers=target.headers)
                response = connection.getresponse()
                body = response.read()
                outcome.statuses[str(response.status)] += 1
                if response.status not in statuses:
                    problem = f"status {response.status}: {body[:200].decode('utf-8', 'replace').strip()}"
        except (OSError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
            outcome.statuses["error"] += 1
        outcome.sent += 1
        outcome.durations.append(time.monotonic() - began)
        if problem:
            outcome.failed += 1
            if problem not in outcome.failures and len(outcome.failures) < 5:
                outcome.failures.append(problem)
        if connection is not None and (problem or not keep_alive):
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return outcome
