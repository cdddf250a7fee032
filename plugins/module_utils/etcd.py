# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small synchronous etcd v3 client over etcd's own JSON gateway.

Standard library only and without a line of Ansible: modules use it on a controller or a registry host, and the node
agent ships this very file. One :class:`EtcdClient` may be shared by threads.

What the gateway does that a reader might not expect (etcd 3.4 and 3.5):

* keys and values are base64, 64-bit integers are strings, fields that are zero or empty are left out;
* streams (watch, keepalive, snapshot) answer 200 first and carry their error inside a line of the body;
* it takes no identity from the client certificate, so that a user and a password are always needed;
* a token is forgotten by a member that restarts and expires after five minutes without use.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, TypeVar, Union
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import TypeAlias

Value = Union[str, bytes]
# In quotes: Python 3.8 could not import them otherwise.
Body: TypeAlias = "dict[str, Any]"
Stream: TypeAlias = "tuple[str, http.client.HTTPConnection, http.client.HTTPResponse]"
T = TypeVar("T")

# A host that is switched off does not refuse a connection, it says nothing: do not spend the whole timeout on it.
CONNECT_TIMEOUT = 2.0
MAX_IDLE = 4
VERDICT_TIMEOUT = 0.25
ROUND_PAUSE = 0.2
FIRST_ATTEMPT = 1.0

# gRPC status codes, https://grpc.io/docs/guides/status-codes/
_CANCELLED, _INVALID_ARGUMENT, _DEADLINE, _NOT_FOUND, _ALREADY_EXISTS = 1, 3, 4, 5, 6
_DENIED, _EXHAUSTED, _PRECONDITION, _OUT_OF_RANGE, _UNAVAILABLE, _UNAUTHENTICATED = 7, 8, 9, 11, 14, 16

# Words with which a member says that the request was certainly not carried out, so that another member may be asked.
_NOT_DONE = (
    "no leader",
    "not leader",
    "leader changed",
    "too many requests",
    "server stopped",
    "not ready",
    "learner",
    "proposal dropped",
    "unhealthy cluster",
)
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "auth: revision in header is old")
_BAD_LOGIN = ("authentication failed", "user name is empty", "user name not found", "authentication is not enabled")


class EtcdError(Exception):
    """Base of everything this client raises.

    :ivar code: gRPC status code when a member answered, else ``None``.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Unavailable(EtcdError):
    """No endpoint answered, the cluster has no quorum, or time ran out.

    :ivar failures: what each endpoint said, ``{endpoint: reason}``.
    :ivar maybe_done: true when a write was sent and its outcome is not known.
    """

    def __init__(self, message: str, failures: dict[str, str] | None = None, maybe_done: bool = False) -> None:
        super().__init__(message, _UNAVAILABLE)
        self.failures = failures or {}
        self.maybe_done = maybe_done


class TlsError(EtcdError):
    """A certificate was refused by this side or by the member: unknown CA, expired, wrong name, revoked, missing."""


class AuthFailed(EtcdError):
    """The user, the password or the user's permissions do not allow this."""


class CompactedError(EtcdError):
    """The revision asked for was compacted away; read everything again and watch from there.

    :ivar compact_revision: oldest revision still available, 0 when the member did not say.
    """

    def __init__(self, message: str, compact_revision: int = 0) -> None:
        super().__init__(message, _OUT_OF_RANGE)
        self.compact_revision = compact_revision


class CompareFailed(EtcdError):
    """A compare-and-swap found something else.

    :ivar current: the key as it is now, ``None`` when it is absent.
    """

    def __init__(self, message: str, current: KeyValue | None = None) -> None:
        super().__init__(message, _PRECONDITION)
        self.current = current


class NotFound(EtcdError):
    """The lease, member, user or role does not exist (an absent key is ``None``, not an error)."""


class Closed(EtcdError):
    """The client or the watch was closed while it was in use."""


@dataclass(frozen=True)
class KeyValue:
    """One key with its value; revisions are those of the whole store, ``version`` counts writes to this key."""

    key: str
    value: bytes
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0

    def text(self) -> str:
        """The value as text."""
        return self.value.decode()

    def json(self) -> Any:
        """The value parsed as JSON; raises ``ValueError`` when it is not."""
        return json.loads(self.value)


@dataclass(frozen=True)
class Event:
    """A change of one key: ``type`` is ``put`` or ``delete`` (a deleted key has an empty value)."""

    type: str
    kv: KeyValue
    previous: KeyValue | None = None


@dataclass(frozen=True)
class WatchBatch:
    """Events that arrived together. All changes up to ``revision`` have been delivered once this batch is consumed.

    A batch without events is a progress notification.
    """

    revision: int
    events: tuple[Event, ...] = ()

    @property
    def progress(self) -> bool:
        """True for a progress notification."""
        return not self.events


@dataclass(frozen=True)
class TxnResult:
    """Outcome of a transaction: which branch ran, the store's revision after it, and one answer per operation."""

    succeeded: bool
    revision: int
    responses: tuple[Body, ...] = ()

    def kvs(self, index: int) -> list[KeyValue]:
        """Keys returned by the read at position ``index`` of the branch that ran."""
        answer = self.responses[index].get("response_range", {}) if index < len(self.responses) else {}
        return [_key_value(item) for item in answer.get("kvs", [])]


@dataclass(frozen=True)
class Member:
    """A cluster member; ``name`` is empty until it has started for the first time."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool = False


@dataclass(frozen=True)
class Status:
    """What one member says of itself (sizes in bytes)."""

    endpoint: str
    member: int
    leader: int
    version: str
    db_size: int
    db_size_in_use: int
    raft_index: int
    raft_term: int
    revision: int
    learner: bool
    errors: tuple[str, ...] = ()

    @property
    def is_leader(self) -> bool:
        """True when this member leads."""
        return bool(self.leader) and self.leader == self.member


@dataclass(frozen=True)
class Permission:
    """What a role may do: ``access`` is ``READ``, ``WRITE`` or ``READWRITE``; empty ``range_end`` means one key."""

    access: str
    key: str
    range_end: str = ""


@dataclass(frozen=True)
class Alarm:
    """An alarm raised by a member: ``NOSPACE`` or ``CORRUPT``."""

    member: int
    alarm: str


def b64(value: Value) -> str:
    """Bytes or text as the gateway wants them."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def unb64(value: str) -> bytes:
    """The reverse of :func:`b64`; an omitted field is empty."""
    return base64.b64decode(value) if value else b""


def prefix_end(prefix: Value) -> bytes:
    """The first key after all keys that start with ``prefix`` (etcd's ``range_end``); empty means all keys."""
    raw = bytearray(prefix.encode() if isinstance(prefix, str) else prefix)
    while raw:
        if raw[-1] < 0xFF:
            raw[-1] += 1
            return bytes(raw)
        raw.pop()
    return b"\0"


def compare_mod(key: str, revision: int) -> Body:
    """Condition: the key was last changed at ``revision`` (0: it does not exist)."""
    return {"target": "MOD", "result": "EQUAL", "key": b64(key), "mod_revision": str(revision)}


def compare_absent(key: str) -> Body:
    """Condition: the key does not exist."""
    return {"target": "VERSION", "result": "EQUAL", "key": b64(key), "version": "0"}


def compare_exists(key: str) -> Body:
    """Condition: the key exists."""
    return {"target": "VERSION", "result": "GREATER", "key": b64(key), "version": "0"}


def compare_value(key: str, value: Value) -> Body:
    """Condition: the key exists and holds ``value``."""
    return {"target": "VALUE", "result": "EQUAL", "key": b64(key), "value": b64(value)}


def compare_lease(key: str, lease: int) -> Body:
    """Condition: the key is attached to ``lease``."""
    return {"target": "LEASE", "result": "EQUAL", "key": b64(key), "lease": str(lease)}


def op_put(key: str, value: Value, lease: int | None = None) -> Body:
    """Operation of a transaction: write a key."""
    return {"request_put": _put(key, value, lease)}


def op_delete(key: str, prefix: bool = False) -> Body:
    """Operation of a transaction: delete a key, or everything below it."""
    return {"request_delete_range": _range(key, prefix)}


def op_get(key: str, prefix: bool = False) -> Body:
    """Operation of a transaction: read a key, or everything below it."""
    return {"request_range": _range(key, prefix)}


def _put(key: str, value: Value, lease: int | None) -> Body:
    body: Body = {"key": b64(key), "value": b64(value)}
    if lease:
        body["lease"] = str(lease)
    return body


def _range(key: str, prefix: bool) -> Body:
    body: Body = {"key": b64(key or "\0")}
    if prefix:
        body["range_end"] = b64(prefix_end(key))
    return body


def _key_value(item: Body) -> KeyValue:
    return KeyValue(
        key=unb64(item.get("key", "")).decode(errors="replace"),
        value=unb64(item.get("value", "")),
        create_revision=int(item.get("create_revision", 0)),
        mod_revision=int(item.get("mod_revision", 0)),
        version=int(item.get("version", 0)),
        lease=int(item.get("lease", 0)),
    )


def _event(item: Body) -> Event:
    previous = item.get("prev_kv")
    return Event(
        type="delete" if item.get("type") == "DELETE" else "put",
        kv=_key_value(item.get("kv", {})),
        previous=_key_value(previous) if previous else None,
    )


def _member(item: Body) -> Member:
    return Member(
        id=int(item.get("ID", 0)),
        name=item.get("name", ""),
        peer_urls=tuple(item.get("peerURLs", ())),
        client_urls=tuple(item.get("clientURLs", ())),
        learner=bool(item.get("isLearner", False)),
    )


def _revision(answer: Body) -> int:
    return int(answer.get("header", {}).get("revision", 0))


def _error(payload: Any, status: int) -> EtcdError:
    """The exception for an error object of the gateway, in its unary or its stream form."""
    if isinstance(payload, dict):
        inner = payload.get("error")
        source = inner if isinstance(inner, dict) else payload
        code = source.get("grpc_code", source.get("code"))
        message = source.get("message") or (inner if isinstance(inner, str) else "") or json.dumps(payload)
    else:
        code, message = None, f"HTTP status {status}: {str(payload).strip()[:200]}"
    return _error_from(str(message), int(code) if code is not None else None)


def _error_from(message: str, code: int | None) -> EtcdError:
    low = message.lower()
    if any(words in low for words in _STALE_TOKEN + _BAD_LOGIN) or code in (_DENIED, _UNAUTHENTICATED):
        return AuthFailed(message, code)
    if "permission denied" in low:
        return AuthFailed(message, _DENIED)
    if "compacted" in low:
        return CompactedError(message)
    if code == _NOT_FOUND or "not found" in low:
        return NotFound(message, code)
    if code in (_UNAVAILABLE, _DEADLINE, _CANCELLED) or any(
        words in low for words in (*_NOT_DONE, "timed out", "deadline exceeded")
    ):
        return Unavailable(message)
    return EtcdError(message, code)


def _tls_reason(error: ssl.SSLError) -> str:
    """One plain sentence for a TLS failure of either side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the member's certificate is refused: {error.verify_message or error.reason}"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        return f"the member refuses our certificate: {reason}"
    return f"TLS failed: {reason}"


def _io_reason(error: BaseException, seconds: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return f"no answer within {seconds:.1f} s"
    if isinstance(error, socket.gaierror):
        return f"name does not resolve ({error.strerror})"
    if isinstance(error, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
        return "connection closed by the member"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).lower()


@dataclass
class _Call:
    """One call on its way over the endpoints: what is asked, and what failed so far in which way."""

    path: str
    body: Body
    repeat: bool = True
    timeout: float | None = None
    only: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    tls: bool = False
    answered: bool = False
    silent: bool = False
    maybe_done: bool = False

    def failed(self, endpoint: str, error: BaseException, seconds: float) -> None:
        """Note a failed connection or exchange."""
        # The peer that just goes away is a matter of the connection, not of trust.
        if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            self.failures[endpoint] = _tls_reason(error)
            self.tls = True
        else:
            self.failures[endpoint] = _io_reason(error, seconds)
            self.silent = self.silent or isinstance(error, (socket.timeout, TimeoutError))

    def error(self) -> EtcdError:
        """The exception once no endpoint is left."""
        said = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in self.failures.items())
        if self.tls and not self.answered:
            return TlsError(f"no registry endpoint could be trusted for {self.path}: {said}")
        what = "the registry has no quorum or is overloaded" if self.answered else "no registry endpoint answers"
        unknown = " (it is not known whether the write was carried out)" if self.maybe_done else ""
        return Unavailable(f"{what}, {self.path}{unknown}: {said}", self.failures, self.maybe_done)


class Watch:
    """A running watch: iterate over it for :class:`WatchBatch`, call :meth:`close` from any thread to end it.

    Iteration ends quietly after :meth:`close`; everything else raises: :class:`CompactedError`, :class:`Unavailable`
    (connection or leader lost, or silence for ``idle_timeout`` seconds), :class:`AuthFailed`. The caller decides
    whether to watch again, from ``revision + 1``.

    :ivar revision: everything up to here has been delivered.
    """

    def __init__(self, stream: Stream) -> None:
        self.endpoint, self._connection, self._response = stream
        self.revision = 0
        self._closed = threading.Event()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[WatchBatch]:
        return self

    def __next__(self) -> WatchBatch:
        while True:
            result = self._next_result()
            if result is None:
                raise StopIteration
            if result.get("created"):
                continue
            events = tuple(_event(item) for item in result.get("events", []))
            self.revision = max(self.revision, _revision(result))
            return WatchBatch(self.revision, events)

    def _next_result(self) -> Body | None:
        """One message of the stream, or ``None`` after :meth:`close`."""
        if self._closed.is_set():
            return None
        try:
            line = self._response.readline()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # A socket shut down by close() fails in several ways, AttributeError of http.client among them.
            if self._closed.is_set():
                return None
            self.close()
            raise Unavailable(
                f"watch on {self.endpoint} broke: {_io_reason(error, self._connection.timeout or 0)}",
                {self.endpoint: str(error)},
            ) from error
        if self._closed.is_set():
            return None
        if not line:
            self.close()
            raise Unavailable(f"watch on {self.endpoint} broke: connection closed by the member")
        payload = json.loads(line)
        if "error" in payload:
            self.close()
            raise _error(payload, 200)
        result: Body = payload.get("result", {})
        compacted = int(result.get("compact_revision", 0))
        if compacted:
            self.close()
            raise CompactedError(f"revision was compacted, the oldest left is {compacted}", compacted)
        if result.get("canceled"):
            self.close()
            reason = result.get("cancel_reason") or "the member cancelled the watch"
            raise _error_from(str(reason), None)
        return result

    @property
    def closed(self) -> bool:
        """True after :meth:`close` or an error."""
        return self._closed.is_set()

    def close(self) -> None:
        """End the watch; a thread that is waiting in it wakes up. May be called more than once."""
        if self._closed.is_set():
            return
        self._closed.set()
        _shutdown(self._connection)


def _shutdown(connection: http.client.HTTPConnection) -> None:
    """Close a connection even while another thread reads from it."""
    sock = connection.sock
    if sock is not None:
        # The base class: SSLSocket.shutdown would take the TLS object away from under the reader.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()


class EtcdClient:
    """Client of one etcd cluster. Safe to share between threads.

    :param endpoints: client URLs, ``https://10.0.0.1:2379`` (``http://`` works without TLS, for tests).
    :param ca: PEM file of the trusted roots.
    :param cert: PEM file of the client certificate with its chain, empty for none.
    :param key: PEM file of its key.
    :param username: etcd user, empty when the cluster has no authentication.
    :param password: its password.
    :param timeout: seconds that one call may take over all endpoints together.

    Certificate files are read again whenever they change on disk.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        ca: str = "",
        cert: str = "",
        key: str = "",
        *,
        username: str = "",
        password: str = "",
        timeout: float = 5.0,
    ) -> None:
        if not endpoints:
            raise EtcdError("endpoints is empty, at least one URL such as https://10.0.0.1:2379 is needed")
        self.endpoints = tuple(endpoint.rstrip("/") for endpoint in endpoints)
        for endpoint in self.endpoints:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise EtcdError(f"endpoint '{endpoint}' is not a URL such as https://10.0.0.1:2379")
        self.timeout = timeout
        self._files = (ca, cert, key)
        self._username = username
        self._password = password
        self._lock = threading.Lock()
        self._auth_lock = threading.Lock()
        self._token = ""
        # Many clients that start together should not all ask the same member.
        self._preferred = random.randrange(len(self.endpoints))
        self._context: ssl.SSLContext | None = None
        self._signature: tuple[Any, ...] = ()
        self._idle: list[tuple[str, http.client.HTTPConnection]] = []
        self._watches: set[Watch] = set()
        self._closed = False

    def __enter__(self) -> EtcdClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end all watches of this client."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            watches, self._watches = self._watches, set()
        for _endpoint, connection in idle:
            connection.close()
        for watch in watches:
            watch.close()

    # --- keys ---------------------------------------------------------------------------------------------------

    def get(self, key: str, serializable: bool = False) -> KeyValue | None:
        """One key, or ``None``. ``serializable`` reads the member's own copy, which works without quorum."""
        body = _range(key, False)
        if serializable:
            body["serializable"] = True
        kvs = self.call("/v3/kv/range", body).get("kvs", [])
        return _key_value(kvs[0]) if kvs else None

    def range(
        self, prefix: str, revision: int = 0, keys_only: bool = False, serializable: bool = False
    ) -> tuple[list[KeyValue], int]:
        """All keys below ``prefix`` in key order, and the store's revision at which they were read."""
        body = _range(prefix, True)
        if revision:
            body["revision"] = str(revision)
        if keys_only:
            body["keys_only"] = True
        if serializable:
            body["serializable"] = True
        answer = self.call("/v3/kv/range", body)
        return [_key_value(item) for item in answer.get("kvs", [])], _revision(answer)

    def put(self, key: str, value: Value, lease: int | None = None) -> int:
        """Write a key, attached to ``lease`` if given; returns the revision of the write."""
        return _revision(self.call("/v3/kv/put", _put(key, value, lease)))

    def delete(self, key: str) -> int:
        """Delete a key; returns how many keys were deleted (0 or 1)."""
        return int(self.call("/v3/kv/deleterange", _range(key, False)).get("deleted", 0))

    def delete_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; returns how many keys were deleted."""
        if not prefix:
            raise EtcdError("an empty prefix would delete every key")
        return int(self.call("/v3/kv/deleterange", _range(prefix, True)).get("deleted", 0))

    def txn(self, compare: Sequence[Body], success: Sequence[Body], failure: Sequence[Body] = ()) -> TxnResult:
        """One transaction of the ``compare_*`` and ``op_*`` helpers.

        It is sent once: :class:`Unavailable` with ``maybe_done`` tells that its outcome is not known. A transaction
        that only reads is sent again like any other read.
        """
        body = {"compare": list(compare), "success": list(success), "failure": list(failure)}
        reads_only = all("request_range" in operation for operation in (*success, *failure))
        answer = self.call("/v3/kv/txn", body, repeat=reads_only)
        return TxnResult(bool(answer.get("succeeded")), _revision(answer), tuple(answer.get("responses", ())))

    def swap(self, key: str, value: Value, expect: int, lease: int | None = None) -> int:
        """Write ``key`` only if its mod revision is ``expect`` (0: absent); returns the revision of the write.

        :raises CompareFailed: somebody else was faster; ``current`` holds what is there now.
        """
        result = self.txn([compare_mod(key, expect)], [op_put(key, value, lease)], [op_get(key)])
        if result.succeeded:
            return result.revision
        kvs = result.kvs(0)
        current = kvs[0] if kvs else None
        found = f"is at revision {current.mod_revision}" if current else "does not exist"
        raise CompareFailed(f"{key} {found}, revision {expect} was expected", current)

    def watch(
        self,
        prefix: str,
        start_revision: int = 0,
        *,
        previous: bool = False,
        idle_timeout: float = 60.0,
        require_leader: bool = True,
    ) -> Watch:
        """Watch everything below ``prefix`` from ``start_revision`` (0: from now on).

        :param idle_timeout: seconds of silence after which the watch raises :class:`Unavailable`; must be longer than
            the cluster's progress notification interval (role ``registry`` sets 5 s).
        :param require_leader: end the watch when the member loses its leader, instead of waiting for ever.
        """
        create = _range(prefix, True)
        create["progress_notify"] = True
        if start_revision:
            create["start_revision"] = str(start_revision)
        if previous:
            create["prev_kv"] = True
        headers = {"Grpc-Metadata-hasleader": "true"} if require_leader else {}
        for last in (False, True):
            watch = Watch(self._stream("/v3/watch", {"create_request": create}, headers, silence=idle_timeout))
            try:
                watch._next_result()  # the "created" message
            except AuthFailed:
                # A stale token shows only as a watch that is cancelled with "permission denied".
                if last or not self._username:
                    raise
                self._forget_token()
                continue
            with self._lock:
                if self._closed:
                    watch.close()
                    raise Closed("the client is closed")
                self._watches = {other for other in self._watches if not other.closed} | {watch}
            watch.revision = max(start_revision - 1, 0)
            return watch
        raise AssertionError("unreachable")

    # --- leases -------------------------------------------------------------------------------------------------

    def lease_grant(self, ttl: int) -> int:
        """A new lease of at least ``ttl`` seconds; returns its id."""
        return int(self.call("/v3/lease/grant", {"TTL": str(ttl)}).get("ID", 0))

    def lease_keepalive(self, lease: int) -> int:
        """Renew a lease; returns its remaining seconds.

        :raises NotFound: the lease has run out or was revoked.
        """
        answer = self.call("/v3/lease/keepalive", {"ID": str(lease)}).get("result", {})
        ttl = int(answer.get("TTL", 0))
        if ttl <= 0:
            raise NotFound(f"lease {lease:x} has run out", _NOT_FOUND)
        return ttl

    def lease_revoke(self, lease: int) -> None:
        """End a lease and delete its keys.

        :raises NotFound: it had run out already.
        """
        self.call("/v3/lease/revoke", {"ID": str(lease)})

    def lease_ttl(self, lease: int) -> int:
        """Remaining seconds of a lease.

        :raises NotFound: the lease has run out or was revoked.
        """
        ttl = int(self.call("/v3/lease/timetolive", {"ID": str(lease)}).get("TTL", 0))
        if ttl <= 0:
            raise NotFound(f"lease {lease:x} has run out", _NOT_FOUND)
        return ttl

    # --- the cluster --------------------------------------------------------------------------------------------

    def status(self, endpoint: str = "", timeout: float | None = None) -> Status:
        """What one member (by default: any) says of itself; works without quorum."""
        target, answer = self._call_at("/v3/maintenance/status", {}, endpoint, timeout)
        header = answer.get("header", {})
        return Status(
            endpoint=target,
            member=int(header.get("member_id", 0)),
            leader=int(answer.get("leader", 0)),
            version=answer.get("version", ""),
            db_size=int(answer.get("dbSize", 0)),
            db_size_in_use=int(answer.get("dbSizeInUse", 0)),
            raft_index=int(answer.get("raftIndex", 0)),
            raft_term=int(answer.get("raftTerm", 0)),
            revision=int(header.get("revision", 0)),
            learner=bool(answer.get("isLearner", False)),
            errors=tuple(answer.get("errors", ())),
        )

    def health(self, endpoint: str) -> str:
        """Empty when the member at ``endpoint`` serves reads through the quorum, else the reason in words."""
        try:
            # Any linearizable read will do, also one that the user may not do: the member had to ask the quorum.
            self._call_at("/v3/kv/range", {"key": b64("health"), "keys_only": True}, endpoint)
        except AuthFailed as error:
            return "" if error.code == _DENIED else str(error)
        except EtcdError as error:
            return str(error)
        return ""

    def member_list(self, linearizable: bool = False) -> list[Member]:
        """Members of the cluster; without ``linearizable`` as one member knows them, which works without quorum."""
        body: Body = {"linearizable": True} if linearizable else {}
        return [_member(item) for item in self.call("/v3/cluster/member/list", body).get("members", [])]

    def member_add(self, peer_urls: Sequence[str], learner: bool = False) -> Member:
        """Announce a new member, which must then start with ``initial-cluster-state: existing``."""
        body: Body = {"peerURLs": list(peer_urls)}
        if learner:
            body["isLearner"] = True
        return _member(self.call("/v3/cluster/member/add", body, repeat=False).get("member", {}))

    def member_remove(self, member: int) -> None:
        """Remove a member by id."""
        self.call("/v3/cluster/member/remove", {"ID": str(member)}, repeat=False)

    def member_promote(self, member: int) -> None:
        """Make a learner that has caught up a voting member."""
        # Only the leader can do it. Another member would pass the request on without its user, and be refused for ever.
        leader = self.status().leader
        urls = [url for one in self.member_list() if one.id == leader for url in one.client_urls[:1]]
        call = _Call("/v3/cluster/member/promote", {"ID": str(member)}, repeat=False, only=urls[0] if urls else "")
        self._with_token(lambda token: self._failover(call, token))

    def move_leader(self, target: int, endpoint: str) -> None:
        """Hand the leadership to member ``target``; ``endpoint`` must be the leader's."""
        self._call_at("/v3/maintenance/transfer-leadership", {"targetID": str(target)}, endpoint)

    def alarm_list(self) -> list[Alarm]:
        """Alarms of all members."""
        answer = self.call("/v3/maintenance/alarm", {"action": "GET"})
        return [
            Alarm(int(item.get("memberID", 0)), item.get("alarm", "NONE"))
            for item in answer.get("alarms", [])
            if item.get("alarm", "NONE") != "NONE"
        ]

    def alarm_disarm(self, alarm: Alarm) -> None:
        """Clear an alarm (after its cause is gone)."""
        body = {"action": "DEACTIVATE", "memberID": str(alarm.member), "alarm": alarm.alarm}
        self.call("/v3/maintenance/alarm", body)

    def compact(self, revision: int) -> None:
        """Drop the history before ``revision``."""
        self.call("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    def defragment(self, endpoint: str, timeout: float = 60.0) -> None:
        """Give free pages of one member's database back; that member answers nothing meanwhile."""
        self._call_at("/v3/maintenance/defragment", {}, endpoint, timeout)

    def snapshot(self, path: str, endpoint: str = "", timeout: float = 60.0) -> int:
        """Write a snapshot of the store to ``path`` (mode 0600, by rename); returns its size in bytes.

        ``etcdutl snapshot status`` verifies it. ``timeout`` is the longest silence.
        """
        temporary = f"{path}.part"
        size = 0
        target, connection, response = self._stream("/v3/maintenance/snapshot", {}, {}, silence=timeout, only=endpoint)
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            remaining = None
            with os.fdopen(handle, "wb") as out:
                for line in iter(response.readline, b""):
                    payload = json.loads(line)
                    if "error" in payload:
                        raise _error(payload, 200)
                    result = payload.get("result", {})
                    blob = unb64(result.get("blob", ""))
                    remaining = int(result.get("remaining_bytes", 0))
                    size += len(blob)
                    out.write(blob)
                out.flush()
                os.fsync(out.fileno())
            if remaining != 0:
                raise Unavailable(f"snapshot from {target} ended early, {remaining} bytes are missing")
            os.replace(temporary, path)  # noqa: PTH105
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename:
                raise EtcdError(f"cannot write the snapshot: {error}") from error
            raise Unavailable(f"snapshot from {target} broke: {_io_reason(error, timeout)}") from error
        finally:
            _shutdown(connection)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108
        return size

    # --- users and roles ----------------------------------------------------------------------------------------

    def auth_enabled(self) -> bool:
        """True when the cluster demands a user."""
        # Asked without a user: if it is refused for want of one, authentication is on. etcd 3.4 has no status call.
        for path in ("/v3/auth/status", "/v3/auth/user/list"):
            try:
                return bool(self._failover(_Call(path, {}), "")[1].get("enabled", False))
            except AuthFailed:
                return True
            except NotFound:
                continue
        return False

    def auth_enable(self) -> None:
        """Turn authentication on; user and role ``root`` must exist."""
        self.call("/v3/auth/enable", {})

    def auth_disable(self) -> None:
        """Turn authentication off."""
        self.call("/v3/auth/disable", {})

    def user_list(self) -> list[str]:
        """Names of all users."""
        return list(self.call("/v3/auth/user/list", {}).get("users", []))

    def user_roles(self, name: str) -> list[str]:
        """Roles of a user; raises :class:`NotFound` when there is no such user."""
        try:
            return list(self.call("/v3/auth/user/get", {"name": name}).get("roles", []))
        except AuthFailed as error:
            if "user name not found" in str(error):
                raise NotFound(str(error), _NOT_FOUND) from error
            raise

    def user_add(self, name: str, password: str) -> None:
        """Create a user."""
        self.call("/v3/auth/user/add", {"name": name, "password": password}, repeat=False)

    def user_change_password(self, name: str, password: str) -> None:
        """Set a user's password; tokens of that user become invalid."""
        self.call("/v3/auth/user/changepw", {"name": name, "password": password})

    def user_delete(self, name: str) -> None:
        """Delete a user."""
        self.call("/v3/auth/user/delete", {"name": name}, repeat=False)

    def user_grant(self, name: str, role: str) -> None:
        """Give a user a role."""
        self.call("/v3/auth/user/grant", {"user": name, "role": role})

    def user_revoke(self, name: str, role: str) -> None:
        """Take a role from a user."""
        self.call("/v3/auth/user/revoke", {"name": name, "role": role}, repeat=False)

    def role_list(self) -> list[str]:
        """Names of all roles."""
        return list(self.call("/v3/auth/role/list", {}).get("roles", []))

    def role_permissions(self, role: str) -> list[Permission]:
        """Permissions of a role."""
        answer = self.call("/v3/auth/role/get", {"role": role})
        return [
            Permission(
                access=item.get("permType", "READ"),
                key=unb64(item.get("key", "")).decode(errors="replace"),
                range_end=unb64(item.get("range_end", "")).decode(errors="replace"),
            )
            for item in answer.get("perm", [])
        ]

    def role_add(self, role: str) -> None:
        """Create a role without permissions."""
        self.call("/v3/auth/role/add", {"name": role}, repeat=False)

    def role_delete(self, role: str) -> None:
        """Delete a role."""
        self.call("/v3/auth/role/delete", {"role": role}, repeat=False)

    def role_grant(self, role: str, permission: Permission) -> None:
        """Give a role a permission (use :func:`prefix_end` for the end of a prefix)."""
        perm = {"permType": permission.access, "key": b64(permission.key)}
        if permission.range_end:
            perm["range_end"] = b64(permission.range_end)
        self.call("/v3/auth/role/grant", {"name": role, "perm": perm})

    def role_revoke(self, role: str, permission: Permission) -> None:
        """Take a permission from a role."""
        body: Body = {"role": role, "key": b64(permission.key)}
        if permission.range_end:
            body["range_end"] = b64(permission.range_end)
        self.call("/v3/auth/role/revoke", body, repeat=False)

    def set_password(self, password: str) -> None:
        """Use another password from the next login on."""
        with self._auth_lock:
            self._password = password
            self._token = ""

    def authenticate(self) -> None:
        """Log in now (it happens by itself when it is needed).

        :raises AuthFailed: wrong user or password.
        """
        with self._auth_lock:
            self._login()

    # --- transport ----------------------------------------------------------------------------------------------

    def call(self, path: str, body: Body, *, repeat: bool = True, timeout: float | None = None) -> Body:
        """POST ``body`` to ``path``, trying one endpoint after the other, and return the answer.

        :param repeat: false when doing it twice would do harm: then only failures that certainly happened before the
            request was carried out lead to the next endpoint.
        :raises Unavailable, TlsError, AuthFailed, NotFound, CompactedError, EtcdError: see the classes.
        """
        return self._with_token(lambda token: self._failover(_Call(path, body, repeat, timeout), token)[1])

    def _call_at(self, path: str, body: Body, endpoint: str, timeout: float | None = None) -> tuple[str, Body]:
        """Like :meth:`call` at one endpoint (empty: any); returns the endpoint that answered, too."""
        only = endpoint.rstrip("/")
        return self._with_token(lambda token: self._failover(_Call(path, body, True, timeout, only), token))

    def _with_token(self, send: Callable[[str], T]) -> T:
        """Run ``send(token)``; log in and repeat once when the member does not accept the token.

        The first call goes out without a token: status and member list need none, and logging in needs a quorum.
        """
        token = self._token
        try:
            return send(token)
        except AuthFailed as error:
            low = str(error).lower()
            # Without a token some calls say "permission denied" instead of "user name is empty".
            worth = not token or any(words in low for words in (*_STALE_TOKEN, "user name is empty"))
            if not self._username or not worth or "not enabled" in low:
                raise
        return send(self._renew(token))

    def _renew(self, used: str) -> str:
        """A fresh token; threads that failed with the same old one share a single login."""
        with self._auth_lock:
            if not self._token or self._token == used:
                self._login()
            return self._token

    def _login(self) -> None:
        self._token = ""
        credentials = {"name": self._username, "password": self._password}
        try:
            answer = self._failover(_Call("/v3/auth/authenticate", credentials), "")[1]
        except AuthFailed as error:
            if "not enabled" in str(error):
                return
            raise AuthFailed(f"the registry refuses user '{self._username}': {error}", error.code) from error
        self._token = str(answer.get("token", ""))

    def _forget_token(self) -> None:
        with self._auth_lock:
            self._token = ""

    def _order(self, only: str) -> list[str]:
        if only:
            return [only]
        start = self._preferred % len(self.endpoints)
        return [*self.endpoints[start:], *self.endpoints[:start]]

    def _failover(self, call: _Call, token: str) -> tuple[str, Body]:
        deadline = time.monotonic() + (self.timeout if call.timeout is None else call.timeout)
        order = self._order(call.only)
        # A follower whose leader just died holds a request until its time is up, so the first attempts are short.
        limit = FIRST_ATTEMPT if call.repeat and len(order) > 1 else float("inf")
        answered = False
        while True:
            call.answered = call.silent = False
            for left, endpoint in zip(reversed(range(len(order))), order):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    call.failures.setdefault(endpoint, "not tried, time ran out")
                    continue
                # Something that may be repeated shares the time fairly, something else gets all that is left.
                seconds = min(remaining / (left + 1), limit) if call.repeat else remaining
                answer = self._try(endpoint, call, token, seconds)
                if answer is not None:
                    return endpoint, answer
                if call.maybe_done:
                    raise call.error()
            # Members that are slow or have no leader just now may be electing one.
            again = (call.answered or call.silent) and time.monotonic() + ROUND_PAUSE < deadline
            call.answered = answered = answered or call.answered
            if not again:
                raise call.error()
            limit *= 2
            time.sleep(ROUND_PAUSE)

    def _try(self, endpoint: str, call: _Call, token: str, seconds: float) -> Body | None:
        """One request to one endpoint; ``None`` means: failed in a way that another endpoint may mend."""
        started = time.monotonic()
        sent = False
        connection: http.client.HTTPConnection | None = None
        try:
            connection, reused = self._connection(endpoint, seconds, fresh=not call.repeat)
            left = max(seconds - (time.monotonic() - started), 0.1)
            try:
                sent = True
                status, raw = self._exchange(connection, call, token, left)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
                if not reused:
                    raise
                # An idle connection that the member had closed meanwhile: once more on a new one.
                connection.close()
                connection, reused = self._connection(endpoint, left, fresh=True)
                status, raw = self._exchange(connection, call, token, left)
        except (OSError, http.client.HTTPException) as error:
            if connection is not None:
                connection.close()
            call.failed(endpoint, error, time.monotonic() - started)
            call.maybe_done = sent and not call.repeat and not call.tls
            return None
        self._release(endpoint, connection)
        if endpoint in self.endpoints:
            self._preferred = self.endpoints.index(endpoint)
        try:
            return _answer(status, raw)
        except Unavailable as error:
            call.failures[endpoint] = str(error)
            call.answered = True
            call.maybe_done = not call.repeat and not any(words in str(error).lower() for words in _NOT_DONE)
            return None

    def _exchange(
        self, connection: http.client.HTTPConnection, call: _Call, token: str, seconds: float
    ) -> tuple[int, bytes]:
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        connection.request("POST", call.path, json.dumps(call.body).encode(), self._headers(token, seconds))
        response = connection.getresponse()
        return response.status, response.read()

    @staticmethod
    def _headers(token: str, seconds: float) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = token
        if seconds:
            # The member gives up when we do, and then says why.
            headers["Grpc-Timeout"] = f"{max(int(seconds * 950), 1)}m"
        return headers

    def _stream(self, path: str, body: Body, headers: dict[str, str], *, silence: float, only: str = "") -> Stream:
        """Open a stream at the first endpoint that answers; nothing of its body is read.

        :param silence: seconds without a byte after which reading fails.
        """
        if self._username and not self._token:
            self._renew("")
        return self._with_token(
            lambda token: self._open(
                _Call(path, body, only=only.rstrip("/")), {**self._headers(token, 0), **headers}, silence
            )
        )

    def _open(self, call: _Call, headers: dict[str, str], silence: float) -> Stream:
        for endpoint in self._order(call.only):
            started = time.monotonic()
            connection: http.client.HTTPConnection | None = None
            try:
                connection, _reused = self._connection(endpoint, self.timeout, fresh=True)
                connection.request("POST", call.path, json.dumps(call.body).encode(), headers)
                response = connection.getresponse()
                if response.status == http.client.OK:
                    if connection.sock is not None:
                        connection.sock.settimeout(silence)
                    connection.timeout = silence
                    return endpoint, connection, response
                _answer(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                call.failed(endpoint, error, time.monotonic() - started)
            except Unavailable as error:
                call.failures[endpoint], call.answered = str(error), True
            except EtcdError:
                if connection is not None:
                    connection.close()
                raise
            if connection is not None:
                connection.close()
        raise call.error()

    def _connection(self, endpoint: str, seconds: float, fresh: bool) -> tuple[http.client.HTTPConnection, bool]:
        """A connected connection and whether it was used before."""
        context = self._tls_context() if endpoint.startswith("https:") else None
        with self._lock:
            if self._closed:
                raise Closed("the client is closed")
            for index, (owner, connection) in enumerate(self._idle):
                if owner == endpoint and not fresh:
                    del self._idle[index]
                    return connection, True
        parts = urlsplit(endpoint)
        if not parts.hostname:
            raise EtcdError(f"{endpoint}: not the URL of a host")
        new: http.client.HTTPConnection
        limit = min(seconds, CONNECT_TIMEOUT)
        if context is not None:
            new = http.client.HTTPSConnection(parts.hostname, parts.port or 2379, timeout=limit, context=context)
        else:
            new = http.client.HTTPConnection(parts.hostname, parts.port or 2379, timeout=limit)
        try:
            new.connect()
            if isinstance(new.sock, ssl.SSLSocket):
                _await_verdict(new.sock)
            if new.sock is not None:
                new.sock.settimeout(seconds)
        except BaseException:
            new.close()
            raise
        return new, False

    def _release(self, endpoint: str, connection: http.client.HTTPConnection) -> None:
        """Keep an open connection for the next call."""
        with self._lock:
            if not self._closed and connection.sock is not None and len(self._idle) < MAX_IDLE:
                self._idle.append((endpoint, connection))
                return
        connection.close()

    def _tls_context(self) -> ssl.SSLContext:
        """The TLS settings, read again when a file changed; connections made with the old ones are dropped."""
        signature = tuple(_file_signature(path) for path in self._files)
        with self._lock:
            if self._context is not None and signature == self._signature:
                return self._context
        context = _load_context(*self._files)
        with self._lock:
            old, self._idle = self._idle, []
            self._context, self._signature = context, signature
        for _endpoint, connection in old:
            connection.close()
        return context


def _answer(status: int, raw: bytes) -> Body:
    """The parsed body of a finished answer; raises what the gateway reported."""
    text = raw.decode(errors="replace").strip()
    try:
        # A stream with a single message (keepalive) is one line as well.
        payload = json.loads(text.splitlines()[0] if text else "{}")
    except ValueError:
        payload = text
    if status != http.client.OK or not isinstance(payload, dict) or "error" in payload:
        raise _error(payload, status)
    return payload


def _await_verdict(sock: ssl.SSLSocket) -> None:
    """Raise the member's TLS alert, if it refuses our certificate.

    In TLS 1.3 the client's handshake is over before the server has looked at the client's certificate. Its verdict is
    the next thing it sends, an alert or a session ticket; writing a request first would often lose the alert.
    """
    if not select.select([sock], [], [], VERDICT_TIMEOUT)[0]:
        return
    sock.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):
        if not sock.recv(1):
            raise http.client.RemoteDisconnected("connection closed by the member")
        raise http.client.BadStatusLine("the member spoke first")


def _file_signature(path: str) -> tuple[int, int, int]:
    if not path:
        return (0, 0, 0)
    try:
        info = Path(path).stat()
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}") from error
    return (info.st_mtime_ns, info.st_ino, info.st_size)


def _load_context(ca: str, cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if ca:
            context.load_verify_locations(ca)
        else:
            context.load_default_certs()
        if cert:
            # The directory behind a rotating symlink is fixed first, so that key and certificate belong together.
            context.load_cert_chain(os.path.realpath(cert), os.path.realpath(key) if key else None)
    except ssl.SSLError as error:
        named = ", ".join(path for path in (ca, cert, key) if path)
        raise TlsError(f"cannot use {named}: {(error.reason or str(error)).lower().replace('_', ' ')}") from error
    except OSError as error:
        raise TlsError(f"cannot read the TLS files {ca}, {cert}, {key}: {error.strerror}") from error
    return context


def merge_endpoints(members: Iterable[Member]) -> list[str]:
    """Client URLs of all started voting members, in a stable order."""
    return sorted({url for member in members if not member.learner for url in member.client_urls})
