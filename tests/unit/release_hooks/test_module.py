# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module release_hook against real servers and real playbooks: it says what happened, in time, and shows no secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
PASSWORD = "correct-horse-battery"
EVENT = {
    "type": "release.test",
    "id": "orders-1-test-2026",
    "at": "2026-11-22T16:00:00.1Z",
    "platform": "shop",
    "service": "orders",
    "from": "1.10",
    "version": "2026-11-22",
    "weight": 5,
    "reason": "{{ 1 + 1 }} ünsafe: \"{% raw %}\" 'x' # no template\n- at all",
}


def run(check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
    """The module as Ansible runs it, in a process of its own."""
    code = (
        "import json, sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.causeway.platform.plugins.modules import release_hook\n"
        "with patch_module_args(json.load(sys.stdin)):\n"
        "    release_hook.main()\n"
    )
    given = {"name": "gate", "event": EVENT, "timeout": 20, "_ansible_check_mode": check_mode, **arguments}
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(entry for entry in sys.path if entry), "PATH": os.environ["PATH"], "HOME": "/tmp"},
        cwd=ROOT,
        timeout=60,
    )
    assert result.stdout, result.stderr
    for secret in (SECRET, PASSWORD):
        assert secret not in result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


# --- webhook ------------------------------------------------------------------------------------------------------


class Receiver:
    """An HTTP server that answers with the given statuses, the last for ever, and verifies as docs/hooks.md says."""

    def __init__(self, *statuses: int, hang: float = 0.0) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        receiver, left = self, list(statuses)

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
                if hang:  # a byte now and then: no single read takes long
                    self.send_response(200)
                    self.flush_headers()
                    for _second in range(int(hang * 10)):
                        time.sleep(0.1)
                        try:
                            self.wfile.write(b"x-wait: 1\r\n")
                            self.wfile.flush()
                        except OSError:
                            return
                    return
                status = left.pop(0) if len(left) > 1 else left[0]
                text = f"answer {status} {SECRET}".encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("location", receiver.url + "elsewhere")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def verified(self) -> list[dict[str, Any]]:
        """The events that came with a valid signature; fails at an invalid one."""
        events = []
        for headers, body in self.seen:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            digest = hmac.new(base64.b64decode(SECRET[len("whsec_") :]), signed, hashlib.sha256).digest()
            assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
            assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
            events.append(json.loads(body))
        return events


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    started: list[Receiver] = []

    def start(*statuses: int, hang: float = 0.0) -> Receiver:
        started.append(Receiver(*statuses, hang=hang))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def test_webhook_is_signed(receiver: Callable[..., Receiver]) -> None:
    one = receiver(204)
    found = run(webhook={"url": one.url, "secret": SECRET})
    assert (found["outcome"], found["attempts"]) == ("ok", 1)
    assert one.verified() == [EVENT]
    headers = one.seen[0][0]
    assert (headers["webhook-id"], headers["content-type"]) == (EVENT["id"], "application/json")


def test_a_server_error_is_tried_again_with_the_same_id(receiver: Callable[..., Receiver]) -> None:
    one = receiver(500, 429, 200)
    found = run(webhook={"url": one.url, "secret": SECRET})
    assert (found["outcome"], found["attempts"]) == ("ok", 3)
    assert found["seconds"] >= 1.5  # 0.5 s, then 1 s
    assert len(one.verified()) == 3
    assert {headers["webhook-id"] for headers, _body in one.seen} == {EVENT["id"]}


def test_a_server_that_stays_broken_fails_within_the_time(receiver: Callable[..., Receiver]) -> None:
    one = receiver(503)
    found = run(webhook={"url": one.url, "secret": SECRET}, timeout=2)
    assert found["outcome"] == "failed"
    assert found["message"].startswith("HTTP 503: answer 503")  # and the secret in the answer is masked
    assert found["seconds"] < 2
    assert len(one.seen) == 3


@pytest.mark.parametrize("status", [400, 404, 409, 410])
def test_a_no_is_final(receiver: Callable[..., Receiver], status: int) -> None:
    one = receiver(status)
    found = run(webhook={"url": one.url, "secret": SECRET})
    assert (found["outcome"], found["attempts"]) == ("failed", 1)
    assert f"HTTP {status}" in found["message"]


def test_a_redirect_is_not_followed(receiver: Callable[..., Receiver]) -> None:
    one = receiver(302)
    found = run(webhook={"url": one.url, "secret": SECRET})
    assert found["outcome"] == "failed"
    assert "HTTP 302" in found["message"]
    assert len(one.seen) == 1


def test_a_server_that_drips_times_out(receiver: Callable[..., Receiver]) -> None:
    one = receiver(200, hang=15)
    began = time.monotonic()
    found = run(webhook={"url": one.url, "secret": SECRET}, timeout=1.5)
    assert (found["outcome"], found["message"]) == ("timed_out", "no answer within 1.5 s")
    assert found["seconds"] == pytest.approx(1.5, abs=0.5)
    assert time.monotonic() - began < 10


def test_a_server_that_never_accepts_times_out() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        found = run(webhook={"url": f"http://127.0.0.1:{full.getsockname()[1]}/", "secret": SECRET}, timeout=1)
    assert found["outcome"] == "timed_out"


def test_nobody_listens() -> None:
    found = run(webhook={"url": "http://127.0.0.1:1/", "secret": SECRET}, timeout=1.2)
    assert found["outcome"] == "failed"
    assert "Connection refused" in found["message"]
    assert found["attempts"] == 2


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    for url in ("http://hooks.example.test/", "file:///etc/passwd"):
        found = run(webhook={"url": url, "secret": SECRET})
        assert found["failed"]
        assert "allowed: https, or http to localhost" in found["msg"]
    found = run(webhook={"url": "https://127.0.0.1:1/", "secret": "short"})
    assert "not a signing key; allowed: whsec_" in found["msg"]
    found = run(webhook={"url": "https://127.0.0.1:1/", "secret": SECRET, "ca_file": str(tmp_path / "no.pem")})
    assert "webhook.ca_file: cannot load" in found["msg"]
    found = run(webhook={"url": "https://127.0.0.1:1/", "secret": SECRET}, timeout=0)
    assert "timeout: 0 is no time" in found["msg"]
    found = run()
    assert "one of the following is required: playbook, webhook, mail" in found["msg"]


def test_check_mode_tells_nobody(receiver: Callable[..., Receiver]) -> None:
    one = receiver(200)
    found = run(check_mode=True, webhook={"url": one.url, "secret": SECRET})
    assert (found["outcome"], found["changed"], one.seen) == ("skipped", False, [])


# --- mail ---------------------------------------------------------------------------------------------------------


class Post(socketserver.ThreadingTCPServer):
    """As much of an SMTP server (RFC 5321) as one mail needs; refuses recipients at nowhere.test."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.mails: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Session)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Session(socketserver.StreamRequestHandler):
    server: Post

    def handle(self) -> None:
        if self.server.silent:
            time.sleep(15)
            return
        self.wfile.write(b"220 mx\r\n")
        while True:
            line = self.rfile.readline().strip().upper()
            if line.startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (part := self.rfile.readline()) != b".\r\n":
                    lines.append(part)
                self.server.mails.append(b"".join(lines))
                self.wfile.write(b"250 ok\r\n")
            elif line.startswith(b"RCPT") and b"NOWHERE" in line:
                self.wfile.write(b"550 no such user\r\n")
            elif line.startswith(b"QUIT") or not line:
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 ok\r\n")


@pytest.fixture
def post() -> Iterator[Callable[..., Post]]:
    started: list[Post] = []

    def start(silent: bool = False) -> Post:
        started.append(Post(silent))
        return started[-1]

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def mail(server: Post, *to: str, **change: Any) -> dict[str, Any]:
    port = server.server_address[1]
    settings = {"host": "127.0.0.1", "port": port, "sender": "shop@example.test", "secure": "never"}
    return {"to": list(to) or ["ops@example.test"], **settings, **change}


def test_mail_arrives(post: Callable[..., Post]) -> None:
    server = post()
    found = run(mail=mail(server))
    assert found["outcome"] == "ok"
    message = message_from_bytes(server.mails[0], policy=default)
    assert message["subject"] == "[shop] orders 1.10 -> 2026-11-22: test"
    assert (message["from"], message["to"]) == ("shop@example.test", "ops@example.test")
    assert "{{ 1 + 1 }} ünsafe" in message.get_content()


def test_mail_that_is_refused_or_hangs(post: Callable[..., Post]) -> None:
    found = run(mail=mail(post(), "a@nowhere.test"))
    assert (found["outcome"], "550" in found["message"]) == ("failed", True)
    found = run(mail=mail(post(), "a@nowhere.test", "b@example.test"))
    assert found["outcome"] == "failed"
    assert "refused a@nowhere.test" in found["message"]
    found = run(mail=mail(post(silent=True)), timeout=1)
    assert found["outcome"] == "timed_out"


def test_a_password_needs_tls(post: Callable[..., Post]) -> None:
    server = post()
    found = run(mail=mail(server, username="me", password=PASSWORD))
    assert found["failed"]
    assert "never would send the password in the clear" in found["msg"]
    found = run(mail=mail(server, username="me", password=PASSWORD, secure="starttls"))
    assert found["outcome"] == "failed"  # the server knows no STARTTLS: nothing is sent
    assert server.mails == []


# --- playbook -----------------------------------------------------------------------------------------------------


def playbook(folder: Path, tasks: str) -> dict[str, Any]:
    path = folder / "hook.yml"
    text = "- hosts: localhost\n  connection: local\n  gather_facts: false\n"
    text += '  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}\n  tasks:\n'
    path.write_text(text + "".join(f"    {line}\n" for line in tasks.splitlines()))
    return {"path": str(path), "inventory": ["localhost,"]}


def test_a_playbook_sees_the_event(tmp_path: Path) -> None:
    tasks = f"""- ansible.builtin.copy:
    content: "{{{{ release_event | to_json }}}}"
    dest: {tmp_path}/seen.json
    mode: "0600"
- ansible.builtin.shell: ls -d "${{TMPDIR:-/tmp}}"/causeway-hook-*/event.yml | xargs stat -c '%a' > {tmp_path}/modes
"""
    found = run(playbook=playbook(tmp_path, tasks), timeout=60)
    assert found["outcome"] == "ok", found
    assert json.loads((tmp_path / "seen.json").read_text()) == EVENT  # the braces in it were no template
    assert set((tmp_path / "modes").read_text().split()) == {"600"}


def test_a_playbook_that_fails(tmp_path: Path) -> None:
    found = run(playbook=playbook(tmp_path, "- ansible.builtin.fail: {msg: the queue is not empty}"), timeout=60)
    assert (found["outcome"], found["message"][:11]) == ("failed", "exit code 2")
    assert "the queue is not empty" in found["message"]
    assert len(found["message"]) < 2000


def test_a_playbook_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    """A worker of Ansible has a session of its own, and what a task puts into the background has no parent."""
    mark = f"30{os.getpid()}"
    tasks = f"- ansible.builtin.shell: (setsid sleep {mark}1 &); touch {tmp_path}/began; sleep {mark}2"
    found = run(playbook=playbook(tmp_path, tasks), timeout=8)
    assert (found["outcome"], found["message"][:18]) == ("timed_out", "stopped after 8 s,")
    assert 8 <= found["seconds"] < 14
    assert (tmp_path / "began").exists()
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if mark.encode() in line or str(tmp_path).encode() in line]


def test_a_playbook_that_leaves_something_running_is_done_when_it_ends(tmp_path: Path) -> None:
    command = tmp_path / "ansible-playbook"
    command.write_text("#!/bin/sh\nsleep 5 &\necho done\n")
    command.chmod(0o700)
    found = run(playbook={**playbook(tmp_path, ""), "executable": str(command)})
    assert found["outcome"] == "ok"
    assert found["seconds"] < 3


def test_output_without_end_is_bounded(tmp_path: Path) -> None:
    command = tmp_path / "ansible-playbook"
    command.write_text("#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' x\necho ' the end'\nexit 3\n")
    command.chmod(0o700)
    found = run(playbook={**playbook(tmp_path, ""), "executable": str(command)})
    assert found["outcome"] == "failed"
    assert found["message"].endswith("x the end")
    assert len(found["message"]) < 2000


def test_no_such_program(tmp_path: Path) -> None:
    found = run(playbook={**playbook(tmp_path, ""), "executable": "/no/such/thing"})
    assert found["outcome"] == "failed"
    assert "cannot run /no/such/thing" in found["message"]
