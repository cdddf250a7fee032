# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of S3 that buckets need: requests signed by AWS Signature Version 4, and a bucket's settings.

Standard library only: hosts have no boto3, and eight kinds of requests are less than botocore's 90 MB.
Signature: https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

RULE = "causeway"  # id of our lifecycle rule; it is the only one
MODES = ("governance", "compliance")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, without dots: a bucket with a dot fits
# no wildcard certificate.
BUCKET = re.compile(r"^[a-z0-9](?:[a-z0-9-]{1,61}[a-z0-9])\Z")
BUCKET_TEXT = "3 to 63 lower-case letters, digits and dashes, first and last no dash"
_BAD_BUCKET = re.compile(r"^(?:xn--|sthree-|amzn-s3-demo-)|(?:-s3alias|--ol-s3|--x-s3|--table-s3)\Z")
RETRIED = (500, 502, 503, 504)


class S3Error(Exception):
    """The endpoint refused, or could not be reached.

    :ivar code: S3's code of the error, such as ``NoSuchBucket``; empty if there was no answer.
    :ivar status: HTTP status, 0 without an answer.
    """

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code, self.status = code, status


def bucket_allowed(name: str) -> bool:
    """Whether S3 takes this as the name of a bucket.

    >>> bucket_allowed("backups"), bucket_allowed("Backups"), bucket_allowed("a.b"), bucket_allowed("xn--a")
    (True, False, False, False)
    """
    return bool(BUCKET.match(name)) and not _BAD_BUCKET.search(name)


@dataclass(frozen=True)
class Endpoint:
    """Where, and as whom. ``url``: ``https://host:port``, no path."""

    url: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    ca_file: str = ""
    timeout: float = 30.0


def _digest(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def authorization(
    endpoint: Endpoint, method: str, path: str, *, query: str, headers: Mapping[str, str], payload: str, stamp: str
) -> str:
    """The header ``Authorization``. path and query: as sent, the query sorted. stamp: ``20261127T120000Z``."""
    scope = f"{stamp[:8]}/{endpoint.region}/s3/aws4_request"
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join([method, path, query, lines, names, payload])
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{endpoint.secret_key}".encode()
    for part in scope.split("/"):
        key = _digest(key, part)
    signature = _digest(key, text).hex()
    return f"AWS4-HMAC-SHA256 Credential={endpoint.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"


class Client:
    """Speaks to one endpoint; each request is a connection of its own."""

    def __init__(
        self, endpoint: Endpoint, patience: float = 0.0, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        """patience: seconds for which an endpoint without an answer, or with a 5xx, is asked again."""
        parts = urlsplit(endpoint.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise S3Error(f"endpoint {endpoint.url!r}: it is a URL without a path, such as https://10.77.1.21:9400")
        self.endpoint, self.patience, self._sleep = endpoint, patience, sleep
        self._host, self._netloc, self._tls = parts.hostname, parts.netloc, parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)

    def _connection(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self.endpoint.timeout)
        context = ssl.create_default_context(cafile=self.endpoint.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # of S3 elsewhere; ours takes nothing below 1.3
        return http.client.HTTPSConnection(self._host, self._port, timeout=self.endpoint.timeout, context=context)

    def request(
        self,
        method: str,
        bucket: str = "",
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        key: str = "",
    ) -> tuple[dict[str, str], bytes]:
        """Headers (names in lower case) and body of the answer; S3Error for any status from 300."""
        path = "/" + "/".join(quote(part, safe="-_.~/") for part in (bucket, key) if part)
        sought = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted((query or {}).items())
        )
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self._once(method, path, sought, body, headers or {})
            except S3Error as error:
                if (error.status and error.status not in RETRIED) or time.monotonic() >= deadline:
                    raise
            self._sleep(1.0)

    def _once(
        self, method: str, path: str, query: str, body: bytes, extra: Mapping[str, str]
    ) -> tuple[dict[str, str], bytes]:
        payload = hashlib.sha256(body).hexdigest()
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        signed = {"host": self._netloc, "x-amz-content-sha256": payload, "x-amz-date": stamp, **extra}
        if body:
            # S3 demands it where settings are written.
            signed["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        words = authorization(self.endpoint, method, path, query=query, headers=signed, payload=payload, stamp=stamp)
        connection = self._connection()
        try:
            target = f"{path}?{query}" if query else path
            connection.request(method, target, body or None, {**signed, "authorization": words})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise S3Error(f"{self.endpoint.url} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise refusal(method, path, answer.status, content)
        return {name.lower(): value for name, value in answer.getheaders()}, content


def refusal(method: str, path: str, status: int, content: bytes) -> S3Error:
    """What an answer with an error says."""
    found = {}
    with contextlib.suppress(ElementTree.ParseError):
        found = {_local(one.tag): (one.text or "").strip() for one in ElementTree.fromstring(content)}
    code = found.get("Code", "")
    words = found.get("Message") or http.client.responses.get(status, "")
    return S3Error(f"{method} {path}: {status} {code}: {words}".rstrip(": "), code, status)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _tree(content: bytes) -> Any:
    """An XML document without namespaces: text, or a mapping of names to lists."""
    try:
        return _plain(ElementTree.fromstring(content))
    except ElementTree.ParseError as error:
        raise S3Error(f"the answer is no XML: {content[:100]!r}") from error


def _plain(element: ElementTree.Element) -> Any:
    if not len(element):
        return (element.text or "").strip()
    found: dict[str, list[Any]] = {}
    for child in element:
        found.setdefault(_local(child.tag), []).append(_plain(child))
    return found


def _value(tree: Any, *names: str) -> str:
    """The text at a path; empty where there is none."""
    for name in names:
        tree = tree.get(name, [""])[0] if isinstance(tree, dict) else ""
    return tree if isinstance(tree, str) else ""


@dataclass(frozen=True)
class Bucket:
    """A bucket's settings. Days are whole; 0 means never.

    :ivar versioning: whether deleted and overwritten objects stay as older versions.
    :ivar noncurrent_days: after which those go.
    :ivar expiration_days: after which the objects themselves go.
    :ivar multipart_days: after which uploads that were never finished go.
    :ivar lock_mode: ``governance``, ``compliance`` or empty; with it no version can be removed for ``lock_days``.
    """

    versioning: bool = False
    noncurrent_days: int = 0
    expiration_days: int = 0
    multipart_days: int = 0
    lock_mode: str = ""
    lock_days: int = 0

    def problem(self) -> str:
        """What makes no sense about it; empty if nothing."""
        if min(self.noncurrent_days, self.expiration_days, self.multipart_days, self.lock_days) < 0:
            return "days are whole numbers from 0"
        if self.noncurrent_days and not self.versioning:
            return "noncurrent_days without versioning: then there are no older versions"
        if bool(self.lock_mode) != bool(self.lock_days):
            return "an object lock has a mode and a number of days"
        if self.lock_mode and not self.versioning:
            return "an object lock without versioning"
        if self.lock_mode and self.lock_mode not in MODES:
            return f"lock mode {self.lock_mode!r}; allowed: {', '.join(MODES)}"
        return ""


def lifecycle_of(content: bytes) -> dict[str, int]:
    """The days in a lifecycle configuration that has our one rule; others count as unequal to anything (-1)."""
    rules = _tree(content).get("Rule", []) if isinstance(_tree(content), dict) else []
    if len(rules) != 1 or _value(rules[0], "ID") != RULE or _value(rules[0], "Status") != "Enabled":
        return {"noncurrent_days": -1, "expiration_days": -1, "multipart_days": -1}
    places = {
        "noncurrent_days": ("NoncurrentVersionExpiration", "NoncurrentDays"),
        "expiration_days": ("Expiration", "Days"),
        "multipart_days": ("AbortIncompleteMultipartUpload", "DaysAfterInitiation"),
    }
    return {name: int(_value(rules[0], *path) or 0) for name, path in places.items()}


def lifecycle_document(wanted: Bucket) -> bytes:
    """The lifecycle configuration of a bucket; empty if it needs none."""
    parts = []
    if wanted.expiration_days:
        parts.append(f"<Expiration><Days>{wanted.expiration_days}</Days></Expiration>")
    elif wanted.noncurrent_days:
        # What is left of an object all of whose versions are gone.
        parts.append("<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>")
    if wanted.noncurrent_days:
        days = f"<NoncurrentDays>{wanted.noncurrent_days}</NoncurrentDays>"
        parts.append(f"<NoncurrentVersionExpiration>{days}</NoncurrentVersionExpiration>")
    if wanted.multipart_days:
        days = f"<DaysAfterInitiation>{wanted.multipart_days}</DaysAfterInitiation>"
        parts.append(f"<AbortIncompleteMultipartUpload>{days}</AbortIncompleteMultipartUpload>")
    if not parts:
        return b""
    rule = f"<ID>{RULE}</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status>{''.join(parts)}"
    return f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>".encode()


def _setting(client: Client, bucket: str, name: str, absent: tuple[str, ...]) -> bytes:
    try:
        return client.request("GET", bucket, {name: ""})[1]
    except S3Error as error:
        if error.code in absent:
            return b""
        raise


def read(client: Client, name: str) -> Bucket | None:
    """A bucket's settings; None where there is no such bucket."""
    try:
        # Not HEAD, whose refusals have no words.
        versioning = _value(_tree(client.request("GET", name, {"versioning": ""})[1]), "Status")
    except S3Error as error:
        if error.status == 404:
            return None
        raise
    lifecycle = _setting(client, name, "lifecycle", ("NoSuchLifecycleConfiguration",))
    lock = _setting(client, name, "object-lock", ("ObjectLockConfigurationNotFoundError",))
    tree = _tree(lock) if lock else {}
    place = ("Rule", "DefaultRetention")
    return Bucket(
        versioning=versioning == "Enabled",
        **(lifecycle_of(lifecycle) if lifecycle else {}),
        lock_mode=_value(tree, *place, "Mode").lower(),
        lock_days=int(_value(tree, *place, "Days") or 0),
    )


def obstacle(present: Bucket | None, wanted: Bucket) -> str:
    """Why a bucket cannot become what is wanted; empty if it can."""
    if present is not None and present.lock_mode and not wanted.lock_mode:
        return "it has an object lock, and S3 knows no way to take one away"
    return ""


def write(client: Client, name: str, present: Bucket | None, wanted: Bucket) -> None:
    """Make a bucket, and change what differs."""
    have = present or Bucket()
    if present is None:
        lock = {"x-amz-bucket-object-lock-enabled": "true"} if wanted.lock_mode else {}
        client.request("PUT", name, body=_location(client.endpoint.region), headers=lock)
        have = Bucket(versioning=bool(lock))
    if have.versioning != wanted.versioning:
        status = "Enabled" if wanted.versioning else "Suspended"
        text = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>"
        client.request("PUT", name, {"versioning": ""}, text.encode())
    if (have.lock_mode, have.lock_days) != (wanted.lock_mode, wanted.lock_days):
        rule = f"<Mode>{wanted.lock_mode.upper()}</Mode><Days>{wanted.lock_days}</Days>"
        text = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
        text += f"<Rule><DefaultRetention>{rule}</DefaultRetention></Rule>"
        text = f"<ObjectLockConfiguration>{text}</ObjectLockConfiguration>"
        client.request("PUT", name, {"object-lock": ""}, text.encode())
    document = lifecycle_document(wanted)
    if document != lifecycle_document(have) or have.noncurrent_days < 0:
        if document:
            client.request("PUT", name, {"lifecycle": ""}, document)
        else:
            client.request("DELETE", name, {"lifecycle": ""})


def settled(client: Client, name: str, wanted: Bucket, patience: float = 10.0) -> Bucket | None:
    """A bucket's settings after a change: a gateway may show the old ones for a moment.

    Returns what was read last; patience: seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        found = read(client, name)
        if found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.3)


def _location(region: str) -> bytes:
    """AWS wants the region named unless it is its first one."""
    if region in ("", "us-east-1"):
        return b""
    place = f"<LocationConstraint>{region}</LocationConstraint>"
    return f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>".encode()


def remove(client: Client, name: str) -> None:
    """Remove an empty bucket."""
    client.request("DELETE", name)
