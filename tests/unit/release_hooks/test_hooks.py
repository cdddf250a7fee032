# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hooks run, what they are told, how webhooks are signed, and what is found before a release begins."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import release_hooks as hooks

# The example of the Standard Webhooks reference libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

HOOK = {"playbook": "", "webhook": {}, "mail": {}, "timeout": 60.0, "failure": "stop"}
GATE = {**HOOK, "name": "gate", "stages": ["pre", "verdict"], "webhook": {"url": "https://x/", "secret": "gate"}}
NEWS = {**HOOK, "name": "news", "stages": ["pre", "promoted"], "mail": {"to": ["a@b.test"]}, "failure": "ignore"}
MAIL = {"host": "mx", "port": 587, "username": "", "password": "", "secure": "starttls", "sender": "c@d.test"}
AT = "2026-11-22T16:00:00.123456Z"


def test_signature_of_the_specification() -> None:
    assert hooks.signature(SECRET, EVENT_ID, 1614265330, BODY) == SIGNATURE


def test_the_documented_way_to_verify() -> None:
    """docs/hooks.md shows this function."""
    key = base64.b64decode(SECRET[len("whsec_") :])
    signed = f"{EVENT_ID}.1614265330.".encode() + BODY
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert expected == hooks.signature(SECRET, EVENT_ID, 1614265330, BODY)


@pytest.mark.parametrize(
    "secret", ["", "x", SECRET[6:], "whsec_", "whsec_****", "whsec_" + base64.b64encode(b"x" * 23).decode()]
)
def test_a_secret_that_is_no_key(secret: str) -> None:
    with pytest.raises(hooks.HookError, match=r"not a signing key; allowed: whsec_ and 24 to 64") as error:
        hooks.signing_key(secret)
    assert not secret.strip("whsec_*") or secret not in str(error.value)


def test_hooks_of_a_stage_keep_their_order() -> None:
    assert [hook["name"] for hook in hooks.hooks_of([GATE, NEWS], "pre")] == ["gate", "news"]
    assert [hook["name"] for hook in hooks.hooks_of([GATE, NEWS], "promoted")] == ["news"]
    assert hooks.hooks_of([GATE, NEWS], "test") == []
    with pytest.raises(hooks.HookError, match="'post' is unknown; allowed: pre, test"):
        hooks.hooks_of([], "post")


@pytest.mark.parametrize("stage", hooks.STAGES)
def test_only_gates_stop(stage: str) -> None:
    assert hooks.may_stop(GATE, stage) == (stage in ("pre", "test", "verdict"))
    assert not hooks.may_stop(NEWS, stage)


def test_event_of_a_judged_and_of_a_rolling_release() -> None:
    plan = {"service": "orders", "version": "1.1.0", "undo": "1.0.0", "strategy": "canary", "id": "orders-20261122T16Z"}
    facts = {"release": "other", "state": "shifting", "weight": "5", "verdict": "fail", "reason": "more errors"}
    assert hooks.hook_event(plan, "verdict", AT, "shop", facts) == {
        "type": "release.verdict",
        "id": "orders-20261122T16Z-verdict-20261122T160000123456Z",
        "at": AT,
        "platform": "shop",
        "service": "orders",
        "release": "orders-20261122T16Z",
        "strategy": "canary",
        "version": "1.1.0",
        "from": "1.0.0",
        "state": "shifting",
        "weight": 5,
        "verdict": "fail",
        "reason": "more errors",
        "instance": "",
    }
    rolling = {"service": "orders", "version": "1.1.0", "undo": "1.0.0"}
    found = hooks.hook_event(rolling, "test", AT, "shop", {"release": "orders-2026", "instance": "app1/0"})
    assert (found["strategy"], found["weight"], found["verdict"]) == ("rolling", None, "")
    assert found["id"] == "orders-2026-test-app1-0-20261122T160000123456Z"
    assert "." not in found["id"]
    with pytest.raises(hooks.HookError, match="unknown"):
        hooks.hook_event(plan, "on", AT, "shop")


def test_what_is_fine_has_no_problems() -> None:
    assert hooks.hook_problems([GATE, NEWS], {"gate": SECRET}, MAIL, 120) == []
    assert hooks.hook_problems([], {}, {}, 1) == []
    assert hooks.hook_problems([GATE], {"gate": SECRET}, {}, 70) == []


@pytest.mark.parametrize(
    ("hook", "secrets", "mail", "ttl", "words"),
    [
        (GATE, {}, MAIL, 120, "release.hooks[0] (gate): webhook.secret: no secret gate; put it, encrypted"),
        (GATE, {"gate": "plain"}, MAIL, 120, "webhook.secret: gate is not a signing key; allowed: whsec_"),
        (GATE, {"gate": SECRET}, MAIL, 69, "timeout 60 s does not fit the lease of the release's lock; allowed: at"),
        (GATE, {"gate": SECRET}, MAIL, 69, "at most 59 s, or release_lock_ttl (now 69) of 70 or more"),
        (NEWS, {}, {**MAIL, "host": ""}, 120, "release.hooks[0] (news): mail: release_mail_host is empty"),
        (NEWS, {}, {**MAIL, "sender": ""}, 120, "release_mail_sender is empty"),
        (NEWS, {}, {**MAIL, "secure": "try"}, 120, "release_mail_secure: 'try' is unknown; allowed: starttls, always"),
        (NEWS, {}, {**MAIL, "username": "me"}, 120, "belong together; allowed: both or neither"),
        (
            NEWS,
            {},
            {**MAIL, "username": "me", "password": "horse", "secure": "never"},
            120,
            "never would send the password in the clear; allowed: starttls, always",
        ),
    ],
)
def test_what_is_found_before_anything_changes(
    hook: dict[str, object], secrets: dict[str, str], mail: dict[str, object], ttl: float, words: str
) -> None:
    problems = hooks.hook_problems([hook], secrets, mail, ttl)
    assert len(problems) == 1
    assert words in problems[0]
    assert "plain" not in problems[0] and "horse" not in problems[0]


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://example.test/x", True),
        ("http://localhost:1/", True),
        ("http://127.0.0.1/", True),
        ("http://example.test/", False),
        ("http://localhost@example.test/", False),
        ("https://a:b@example.test/", False),
        ("file:///etc/passwd", False),
        ("", False),
    ],
)
def test_urls(url: str, safe: bool) -> None:
    assert hooks.safe_url(url) is safe


def test_mail() -> None:
    plan = {"service": "orders", "version": "1.1.0", "undo": "1.0.0"}
    facts = {"state": "live", "reason": "two\nlines", "instance": "app1/0"}
    event = hooks.hook_event(plan, "rolled_back", AT, "shop", facts)
    message = hooks.message_of(event, "a@b.test", ["c@d.test", "e@f.test"])
    assert message["Subject"] == "[shop] orders 1.0.0 -> 1.1.0: rolled back"
    assert message["To"] == "c@d.test, e@f.test"
    assert "reason: two\nlines" in message.get_content()
