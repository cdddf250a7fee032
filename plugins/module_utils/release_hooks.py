# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks of releases: which run when, what they are told, how a webhook is signed. Pure functions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

STAGES = ("pre", "test", "verdict", "promoted", "rolled_back")
# A hook that fails or hangs at one of these stops the release, unless it says ignore; later nothing is left to stop.
GATES = ("pre", "test", "verdict")
KINDS = ("playbook", "webhook", "mail")
SECURE = ("starttls", "always", "never")
# Seconds between a hook's timeout and the end of the lock's lease: stopping a playbook takes some.
MARGIN = 10.0
# Standard Webhooks: keys have 24 to 64 bytes and are written as whsec_ and base64.
SECRET_PREFIX = "whsec_"
KEY_BYTES = (24, 64)


class HookError(Exception):
    """A hook cannot run as it is described; the message says where, what and what is allowed."""


def hooks_of(hooks: Sequence[Mapping[str, Any]], stage: str) -> list[dict[str, Any]]:
    """The hooks of one stage, in the order of the service's file. Raises HookError for an unknown stage."""
    if stage not in STAGES:
        raise HookError(f"stage: {stage!r} is unknown; allowed: {', '.join(STAGES)}")
    return [dict(hook) for hook in hooks if stage in hook["stages"]]


def may_stop(hook: Mapping[str, Any], stage: str) -> bool:
    """Whether a failure of the hook at this stage ends the release."""
    return stage in GATES and hook["failure"] == "stop"


def safe_url(url: str) -> bool:
    """Whether a webhook may be sent there: over TLS, or to this machine."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1")
    return bool(parts.hostname) and "@" not in parts.netloc and (parts.scheme == "https" or local)


def signing_key(secret: str) -> bytes:
    """The bytes behind ``whsec_<base64>``. Raises HookError, which never shows the secret."""
    low, high = KEY_BYTES
    text = str(secret).strip()
    try:
        key = base64.b64decode(text[len(SECRET_PREFIX) :], validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(SECRET_PREFIX) or not low <= len(key) <= high:
        raise HookError(
            f"not a signing key; allowed: {SECRET_PREFIX} and {low} to {high} random bytes in base64 "
            f"(echo {SECRET_PREFIX}$(openssl rand -base64 32))"
        )
    return key


def signature(secret: str, identifier: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: ``v1,`` and base64 of HMAC-SHA256 over ``<id>.<timestamp>.<body>``.

    Source: Standard Webhooks specification 1.0, section "Signature scheme". ``timestamp``: seconds since the epoch.
    """
    content = f"{identifier}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(signing_key(secret), content, hashlib.sha256).digest()).decode()


def body_of(event: Mapping[str, Any]) -> bytes:
    """An event as JSON, always the same bytes."""
    return json.dumps(event, sort_keys=True, separators=(",", ":")).encode()


def hook_event(
    plan: Mapping[str, Any], stage: str, at: str, platform: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What every hook is told. ``plan`` is the release's, ``at`` the time with microseconds in RFC 3339.

    ``facts`` are what the stage knows: ``release`` (the release's id, where the plan has none), state, weight,
    verdict, reason, instance.
    """
    if stage not in STAGES:
        raise HookError(f"stage: {stage!r} is unknown; allowed: {', '.join(STAGES)}")
    known = dict(facts or {})
    release = str(plan.get("id") or known.get("release") or plan["service"])
    parts = [release, stage, str(known.get("instance") or ""), "".join(one for one in at if one.isalnum())]
    return {
        "type": f"release.{stage}",
        # Standard Webhooks: no full stop, which separates the parts of what is signed.
        "id": "-".join(part for part in parts if part).replace("/", "-").replace(".", "-"),
        "at": at,
        "platform": platform,
        "service": str(plan["service"]),
        "release": release,
        "strategy": str(plan.get("strategy") or "rolling"),
        "version": str(plan["version"]),
        "from": str(plan["undo"]),
        "state": str(known.get("state") or ""),
        "weight": None if known.get("weight") in (None, "") else int(known["weight"]),
        "verdict": str(known.get("verdict") or ""),
        "reason": str(known.get("reason") or ""),
        "instance": str(known.get("instance") or ""),
    }


def hook_problems(
    hooks: Sequence[Mapping[str, Any]], secrets: Mapping[str, Any], mail: Mapping[str, Any], ttl: float
) -> list[str]:
    """What keeps hooks from running, one sentence each; empty when nothing does.

    ``secrets``: signing keys by name, ``mail``: host, port, username, password, secure, sender; ``ttl``: seconds of
    the lease of the release's lock, which is renewed right before each hook.
    """
    found = []
    for number, hook in enumerate(hooks):
        where = f"release.hooks[{number}] ({hook['name']})"
        if hook["timeout"] + MARGIN > ttl:
            found.append(
                f"{where}: timeout {hook['timeout']:g} s does not fit the lease of the release's lock; allowed: "
                f"at most {max(0.0, ttl - MARGIN):g} s, or release_lock_ttl (now {ttl:g}) of "
                f"{hook['timeout'] + MARGIN:g} or more"
            )
        if hook["webhook"]:
            name = hook["webhook"]["secret"]
            if name not in secrets:
                found.append(
                    f"{where}: webhook.secret: no secret {name}; put it, encrypted, into the file of secrets or into "
                    f"release_hook_secrets: echo {SECRET_PREFIX}$(openssl rand -base64 32)"
                )
            else:
                try:
                    signing_key(secrets[name])
                except HookError as error:
                    found.append(f"{where}: webhook.secret: {name} is {error}")
        if hook["mail"]:
            found += [f"{where}: mail: {problem}" for problem in mail_problems(mail)]
    return found


def mail_problems(mail: Mapping[str, Any]) -> list[str]:
    """What is wrong with the variables ``release_mail_*``."""
    found = [f"release_mail_{name} is empty" for name in ("host", "sender") if not mail.get(name)]
    if mail.get("secure") not in SECURE:
        found.append(f"release_mail_secure: {mail.get('secure')!r} is unknown; allowed: {', '.join(SECURE)}")
    if bool(mail.get("username")) != bool(mail.get("password")):
        found.append("release_mail_username and release_mail_password belong together; allowed: both or neither")
    elif mail.get("username") and mail.get("secure") == "never":
        found.append("release_mail_secure: never would send the password in the clear; allowed: starttls, always")
    return found


def message_of(event: Mapping[str, Any], sender: str, recipients: Sequence[str]) -> EmailMessage:
    """The mail about an event."""
    message = EmailMessage()
    stage = event["type"].split(".", 1)[1].replace("_", " ")
    message["Subject"] = f"[{event['platform']}] {event['service']} {event['from']} -> {event['version']}: {stage}"
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Message-ID"] = f"<{event['id']}@{event['platform']}.causeway>"
    lines = [f"{name}: {value}" for name, value in event.items() if value not in (None, "")]
    message.set_content("\n".join(lines) + "\n")
    return message
