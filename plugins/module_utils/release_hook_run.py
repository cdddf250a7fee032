# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one hook of a release on the controller, within its time and not a moment longer. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import queue
import selectors
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils import release_hooks

if TYPE_CHECKING:
    from typing import Callable

OK, FAILED, TIMED_OUT = "ok", "failed", "timed_out"
PAUSE = 0.5  # seconds before the second attempt, doubled each time
ATTEMPTS = 6
BUSY = (408, 425, 429)  # with 5xx: worth another attempt
MAX_ANSWER = 300
MAX_OUTPUT = 1500
GRACE = 2.0  # seconds in which a playbook that is told to stop may clean up
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Outcome:
    """How a hook ended: ``outcome`` is ok, failed or timed_out."""

    outcome: str
    message: str
    attempts: int = 1
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def within(seconds: float, work: Callable[[float], Outcome]) -> Outcome:
    """What ``work`` returns, called with the moment (monotonic) at which it has to be done.

    Sockets limit each single read, and a name may take for ever to resolve: so the work is left behind when its time
    is over, and ends with this process.
    """
    began = time.monotonic()
    answers: queue.Queue[Outcome] = queue.Queue()

    def run() -> None:
        try:
            answers.put(work(began + seconds))
        except Exception as error:  # in a thread nobody else would hear of it
            answers.put(Outcome(FAILED, f"{type(error).__name__}: {error}"))

    threading.Thread(target=run, daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except queue.Empty:
        found = Outcome(TIMED_OUT, f"no answer within {seconds:g} s")
    return Outcome(found.outcome, found.message, found.attempts, time.monotonic() - began)


def _patience(deadline: float) -> float:
    """The timeout of a socket: ``within`` is to end a wait, so that a hang is always told as one."""
    return max(0.0, deadline - time.monotonic()) + 1.0


# --- webhook ------------------------------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What was signed for one receiver goes to no other."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        return None


def post_webhook(
    url: str,
    secret: str,
    event: Mapping[str, Any],
    seconds: float,
    ca_file: str = "",
    *,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """POST an event, signed (Standard Webhooks). 2xx is ok; 5xx, 408, 425, 429 and broken connections are tried again
    with growing pauses while there is time; any other answer is a no.

    Raises HookError for a secret that is no key or TLS files that cannot be read.
    """
    release_hooks.signing_key(secret)
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise release_hooks.HookError(f"webhook.ca_file: cannot load {ca_file}: {error}") from error
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
    body = release_hooks.body_of(event)

    def attempt(deadline: float) -> tuple[Outcome, bool]:
        """The outcome, and whether another attempt may help."""
        now = int(clock())
        headers = {
            "content-type": "application/json",
            "user-agent": "causeway-platform",
            "webhook-id": str(event["id"]),
            "webhook-timestamp": str(now),
            "webhook-signature": release_hooks.signature(secret, str(event["id"]), now, body),
        }
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        try:
            with opener.open(request, timeout=_patience(deadline)) as response:
                return Outcome(OK, _said(response.status, response.read(MAX_ANSWER))), False
        except urllib.error.HTTPError as error:
            return Outcome(FAILED, _said(error.code, error.read(MAX_ANSWER))), error.code >= 500 or error.code in BUSY
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            refused = isinstance(reason, ssl.SSLCertVerificationError)
            return Outcome(FAILED, f"{type(reason).__name__}: {reason}"), not refused

    def work(deadline: float) -> Outcome:
        pause, number = PAUSE, 1
        while True:
            found, again = attempt(deadline)
            if not again or number == ATTEMPTS or time.monotonic() + pause >= deadline:
                return Outcome(found.outcome, found.message, number)
            time.sleep(pause)
            pause, number = 2 * pause, number + 1

    return within(seconds, work)


def _said(status: int, body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return f"HTTP {status}" + (f": {text}" if text else "")


# --- mail ---------------------------------------------------------------------------------------------------------


def send_mail(mail: Mapping[str, Any], recipients: Sequence[str], event: Mapping[str, Any], seconds: float) -> Outcome:
    """Send an event by SMTP; certificates are verified. ``mail``: host, port, username, password, secure, sender,
    ca_file. Raises HookError when these cannot work.
    """
    problems = release_hooks.mail_problems(mail)
    if problems:
        raise release_hooks.HookError("mail: " + "; ".join(problems))
    try:
        context = ssl.create_default_context(cafile=mail.get("ca_file") or None)
    except (OSError, ssl.SSLError) as error:
        raise release_hooks.HookError(f"release_mail_ca_file: cannot load {mail.get('ca_file')}: {error}") from error
    message = release_hooks.message_of(event, mail["sender"], recipients)
    host, port = str(mail["host"]), int(mail["port"])

    def work(deadline: float) -> Outcome:
        left = _patience(deadline)
        try:
            connection = (
                smtplib.SMTP_SSL(host, port, timeout=left, context=context)
                if mail["secure"] == "always"
                else smtplib.SMTP(host, port, timeout=left)
            )
            with connection:
                if mail["secure"] == "starttls":
                    connection.starttls(context=context)
                if mail.get("username"):
                    connection.login(str(mail["username"]), str(mail["password"]))
                refused = connection.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            return Outcome(FAILED, f"{host}:{port}: {type(error).__name__}: {error}")
        if refused:
            return Outcome(FAILED, f"{host}:{port} refused {', '.join(sorted(refused))}")
        return Outcome(OK, f"{host}:{port} took it")

    return within(seconds, work)


# --- playbook -----------------------------------------------------------------------------------------------------


def event_file(event: Mapping[str, Any]) -> str:
    """Extra variables for ansible-playbook. The event comes as one unsafe text: a reason may hold what a stranger's
    server answered, which must never be taken for a template, and ``!unsafe`` on a single value would turn the version
    "1.10" into a number.
    """
    text = json.dumps(json.dumps(event))
    return f'release_event_json: !unsafe {text}\nrelease_event: "{{{{ release_event_json | from_json }}}}"\n'


def run_playbook(
    executable: str,
    playbook: str,
    inventory: Sequence[str],
    event: Mapping[str, Any],
    seconds: float,
    *,
    configuration: str = "",
) -> Outcome:
    """Run a playbook with the variable ``release_event``. When its time is over it is stopped with all its children."""
    with tempfile.TemporaryDirectory(prefix="causeway-hook-") as folder:  # mode 0700
        path = Path(folder) / "event.yml"
        path.touch(mode=0o600)
        path.write_text(event_file(event), encoding="utf-8")
        sources = [argument for source in inventory for argument in ("-i", source)]
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
        if configuration:
            environment["ANSIBLE_CONFIG"] = configuration
        command = [executable, *sources, "-e", f"@{path}", playbook]
        return run_command(command, seconds, environment, str(Path(playbook).parent))


def run_command(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None, folder: str | None = None
) -> Outcome:
    """Run a command, keep the end of what it prints, and leave no process behind when its time is over."""
    began = time.monotonic()
    _adopt_orphans(True)
    others = set(_descendants(os.getpid()))
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(FAILED, f"cannot run {command[0]}: {error}")
    output = _follow(process, began + seconds)
    code = process.poll()
    if code is None:
        _stop(process, others)
        found = Outcome(TIMED_OUT, f"stopped after {seconds:g} s{_last(output)}")
    else:
        found = Outcome(OK if code == 0 else FAILED, f"exit code {code}{'' if code == 0 else _last(output)}")
    _adopt_orphans(False)
    return Outcome(found.outcome, found.message, 1, time.monotonic() - began)


def _last(output: bytes) -> str:
    text = output.decode("utf-8", "replace").strip()[-MAX_OUTPUT:].strip()
    return f", its last words:\n{text}" if text else ""


def _follow(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """The end of what a process prints, until it exits or the deadline. A child of it may keep its output open."""
    if process.stdout is None:  # started without a pipe
        return b""
    output = b""
    os.set_blocking(process.stdout.fileno(), False)
    with process.stdout as stream, selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        open_still = True
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            if not open_still:
                time.sleep(0.05)
            elif selector.select(0 if ended else 0.1):
                chunk = os.read(stream.fileno(), 65536)
                output = (output + chunk)[-4 * MAX_OUTPUT :]
                if not chunk:
                    selector.unregister(stream)
                    open_still = False
                continue
            if ended:
                break
    return output


def _adopt_orphans(wanted: bool) -> None:
    """Let this process be the parent of orphans among its descendants: ansible-playbook's workers have sessions of
    their own, so killing its process group would spare them. Linux only; elsewhere the process group has to do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _descendants(root: int) -> list[int]:
    """Living processes below ``root``, from /proc; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text(errors="replace").rsplit(")", 1)[1].split()[:2]
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    rest = [root]
    while rest:
        below = children.get(rest.pop(), [])
        found += below
        rest += below
    return found


def _signal(processes: Sequence[int], number: int) -> None:
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)


def _stop(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """Ask a process to end, then end it and everything that came from it; ``others`` are children of ours besides."""
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    while process.poll() is None and time.monotonic() - before < GRACE:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while time.monotonic() - before < 2 * GRACE:
        left = [one for one in _descendants(os.getpid()) if one not in others]
        if not left:
            break
        _signal(left, signal.SIGKILL)
        time.sleep(0.05)
