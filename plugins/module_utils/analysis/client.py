# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small client of Prometheus' HTTP API over mutual TLS."""

from __future__ import annotations

import http.client
import json
import math
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

MAX_BODY = 128 * 1024 * 1024
_CONNECT = 3.0


class AnalysisError(Exception):
    """The question itself is wrong (an option, a metric, PromQL that cannot be parsed), in one sentence."""


class Unseen(Exception):
    """Prometheus could not be asked or its answer cannot be read: nothing is known, which is no verdict."""


@dataclass(frozen=True)
class Answer:
    """`data` of an answer and the times of this host's clock (epoch seconds) between which it was made."""

    data: dict[str, Any]
    asked: float
    answered: float


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def tls_context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """TLS 1.3 with our certificate, trusting `ca_file` only. Raises Unseen."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca_file)
        if cert_file:
            # The directory behind a rotating symlink is fixed first, so that key and certificate belong together.
            context.load_cert_chain(os.path.realpath(cert_file), os.path.realpath(key_file) if key_file else None)
    except (OSError, ssl.SSLError) as error:
        raise Unseen(f"cannot use {ca_file}, {cert_file}, {key_file}: {_reason(error)}") from error
    return context


@dataclass
class Prometheus:
    """Asks the first of `urls` that answers; one that fails is asked last from then on.

    :ivar failures: what each URL that failed said, ``{url: reason}``.
    :ivar url: the one that answered last.
    """

    urls: Sequence[str]
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout: float = 10.0
    failures: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def __post_init__(self) -> None:
        if not self.urls:
            raise AnalysisError("urls: at least one address of a Prometheus is needed")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise AnalysisError(f"urls: {url!r} is not an http or https address")
        self._order = [url.rstrip("/") for url in self.urls]

    def query(self, expression: str, at: float | None = None) -> Answer:
        """Instant query; `at` epoch seconds, by default Prometheus' own now. Raises AnalysisError, Unseen."""
        when = {} if at is None else {"time": f"{at:.3f}"}
        return self._ask("/api/v1/query", {"query": expression, **when})

    def query_range(self, expression: str, start: float, end: float, step: float) -> Answer:
        """Range query over [start, end], epoch seconds. Raises AnalysisError, Unseen."""
        window = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return self._ask("/api/v1/query_range", {"query": expression, **window})

    def _ask(self, path: str, form: dict[str, str]) -> Answer:
        for url in list(self._order):
            asked = time.time()
            try:
                status, body = self._post(url, path, {**form, "timeout": f"{math.ceil(self.timeout)}s"})
                data = self._data(status, body)
            except (OSError, http.client.HTTPException, ValueError, Unseen) as error:
                self.failures[url] = _reason(error)
                self._order.remove(url)
                self._order.append(url)
                continue
            self.url = url
            return Answer(data, asked, time.time())
        said = "; ".join(f"{url}: {self.failures[url]}" for url in self._order)
        raise Unseen(f"no Prometheus answers ({said})")

    def _post(self, url: str, path: str, form: dict[str, str]) -> tuple[int, bytes]:
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        host, limit = parts.hostname or "", min(_CONNECT, self.timeout)
        if parts.scheme == "https":
            context = tls_context(self.ca_file, self.cert_file, self.key_file)
            connection = http.client.HTTPSConnection(host, parts.port or 9090, timeout=limit, context=context)
        else:
            connection = http.client.HTTPConnection(host, parts.port or 9090, timeout=limit)
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout)
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
            connection.request("POST", parts.path.rstrip("/") + path, urlencode(form), headers)
            response = connection.getresponse()
            body = response.read(MAX_BODY + 1)
            if len(body) > MAX_BODY:
                raise Unseen(f"an answer of more than {MAX_BODY >> 20} MB")
            return response.status, body
        finally:
            connection.close()

    @staticmethod
    def _data(status: int, body: bytes) -> dict[str, Any]:
        try:
            payload = json.loads(body)
        except ValueError:
            raise Unseen(f"HTTP {status} and not JSON: {body[:80].decode(errors='replace')!r}") from None
        if not isinstance(payload, dict):
            raise Unseen(f"HTTP {status} and JSON that is no answer of Prometheus")
        if status == 400 and payload.get("errorType") == "bad_data":
            raise AnalysisError(str(payload.get("error", "the query is not valid")))
        data = payload.get("data")
        if status != 200 or payload.get("status") != "success" or not isinstance(data, dict):
            raise Unseen(f"HTTP {status}: {str(payload.get('error') or 'no data')[:200]}")
        return data
