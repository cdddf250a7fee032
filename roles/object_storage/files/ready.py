# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits until a process of the object storage answers, and fails unless it does so over TLS 1.3.

SeaweedFS serves gRPC in plain text, with a line in its log, when anything about its TLS settings is wrong.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path

POLL = 0.3
ELECTION = 20.0  # seconds that a master waits for a leader; without the others it never sees one
# RFC 9113, section 3.4: what a client of HTTP/2 begins with, and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class NotReadyError(Exception):
    """Why it is not ready yet."""


def context(tls: Path, protocol: str) -> ssl.SSLContext:
    """TLS 1.3 with the identity of this host."""
    found = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    found.minimum_version = ssl.TLSVersion.TLSv1_3
    found.load_cert_chain(tls / "cert.pem", tls / "key.pem")
    found.set_alpn_protocols([protocol])
    return found


def ask(address: str, port: int, tls: Path, protocol: str, request: bytes) -> bytes:
    """The beginning of an answer; NotReadyError without one."""
    try:
        plain = socket.create_connection((address, port), timeout=3)
        with plain, context(tls, protocol).wrap_socket(plain, server_hostname=address) as stream:
            stream.sendall(request)
            answer = b""
            while part := stream.recv(65536):
                answer += part
                if protocol == "h2":  # it stays open
                    break
    except OSError as error:
        raise NotReadyError(f"{address}:{port}: {error}") from error
    if not answer:
        raise NotReadyError(f"{address}:{port}: it closes the connection")
    return answer


def check(address: str, port: int, grpc_port: int, tls: Path, path: str) -> bytes:
    """Both ports answer over TLS; returns what HTTPS said."""
    request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
    answer = ask(address, port, tls, "http/1.1", request)
    if not answer.startswith(b"HTTP/1."):
        raise NotReadyError(f"{address}:{port}: no HTTP: {answer[:40]!r}")
    ask(address, grpc_port, tls, "h2", PREFACE)
    return answer


def leader(answer: bytes) -> str:
    """The leading master, from /cluster/status; empty without one."""
    try:
        found = json.loads(answer.partition(b"\r\n\r\n")[2]).get("Leader")
    except (ValueError, AttributeError):
        return ""
    return str(found or "")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("process")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("grpc_port", type=int)
    parser.add_argument("--tls", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=60.0)
    given = parser.parse_args(arguments)
    master = given.process == "master"
    began = time.monotonic()
    while True:
        try:
            path = "/cluster/status" if master else "/healthz"
            answer = check(given.address, given.port, given.grpc_port, given.tls, path)
            if not master or leader(answer) or time.monotonic() - began > ELECTION:
                return 0
            reason = "no master leads"
        except NotReadyError as error:
            reason = str(error)
        if time.monotonic() - began > given.timeout:
            print(f"{given.process} is not ready: {reason}", file=sys.stderr)
            return 1
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
