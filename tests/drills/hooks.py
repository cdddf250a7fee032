"""Drill of release hooks on a running lab, by hand: what each stage means, under traffic.

    hooks.py --inventory inventories/lab/platform.yml [--case all --case test-fails ...]

A playbook hook writes every event to a file and a webhook sends it to a receiver here, which checks its signature;
then hooks fail or hang. Prints a line of JSON per case and exits with 1 if a claim failed (docs/drills.md).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from running import ROOT, Drill, Row, live, other, said_last, traffic_row

SERVICE = "catalog"
STAGES = ["pre", "test", "verdict", "promoted", "rolled_back"]
FORWARD = {"pre", "test", "verdict", "promoted"}
# name: hooks that misbehave as (kind, stage, failure), stages that must be told, how it ends
CASES: dict[str, tuple[list[tuple[str, str, str]], set[str], str]] = {
    "all": ([], FORWARD, "settled"),
    "pre-fails": ([("fails", "pre", "stop")], {"pre"}, "not begun"),
    "pre-hangs": ([("hangs", "pre", "stop")], {"pre"}, "not begun"),
    "test-fails": ([("fails", "test", "stop")], {"pre", "test", "rolled_back"}, "rolled back"),
    "verdict-fails": ([("fails", "verdict", "stop")], {"pre", "test", "verdict", "rolled_back"}, "rolled back"),
    "verdict-hangs": ([("hangs", "verdict", "stop")], {"pre", "test", "verdict", "rolled_back"}, "rolled back"),
    "ignored": ([("fails", stage, "ignore") for stage in ("pre", "test", "verdict")], FORWARD, "settled"),
}


def verified(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    """Whether a request is signed as Standard Webhooks 1.0 says, within the last five minutes."""
    signed = f"{headers.get('webhook-id', '')}.{headers.get('webhook-timestamp', '')}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    stamp = headers.get("webhook-timestamp", "0")
    fresh = stamp.isdigit() and abs(time.time() - int(stamp)) < 300
    return fresh and any(hmac.compare_digest(wanted, one) for one in headers.get("webhook-signature", "").split())


class Receiver:
    """A web server on this machine that keeps the events that it is told, each with whether its signature is right."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(32)
        self.events: list[tuple[bool, Row]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                right = verified({name.lower(): value for name, value in self.headers.items()}, body, receiver.key)
                receiver.events.append((right, json.loads(body) if right else {}))
                self.send_response(204 if right else 401)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/"

    @property
    def secret(self) -> str:
        return "whsec_" + base64.b64encode(self.key).decode()


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    threading.Thread(target=receiver.server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


def hook(name: str, stages: list[str], failure: str = "stop", timeout: float = 60.0, **what: object) -> Row:
    kinds = {"playbook": "", "webhook": {}, "mail": {}, **what}
    return {"name": name, "stages": stages, "timeout": timeout, "failure": failure, **kinds}


def playbook(path: Path, task: Row) -> str:
    """A hook's playbook with one task on this machine."""
    play = {"hosts": "localhost", "connection": "local", "become": False, "gather_facts": False, "tasks": [task]}
    path.write_text(json.dumps([play]), encoding="utf-8")
    return str(path)


def hooks_of(drill: Drill, case: str, receiver: Receiver, file: Path) -> list[Row]:
    """The two that tell come first at each stage, so that they run whatever the others do."""
    line = {"path": str(file), "line": "{{ release_event | to_json }}", "create": True, "mode": "0600"}
    webhook = {"url": receiver.url, "secret": "drill", "ca_file": ""}
    writes = playbook(drill.folder / "writes.yml", {"ansible.builtin.lineinfile": line})
    fails = playbook(drill.folder / "fails.yml", {"ansible.builtin.fail": {"msg": "the drill says no"}})
    hangs = playbook(drill.folder / "hangs.yml", {"ansible.builtin.command": {"argv": ["sleep", "300"]}})
    result = [hook("writes", STAGES, playbook=writes), hook("told", STAGES, webhook=webhook)]
    for kind, stage, failure in CASES[case][0]:
        limit = 60.0 if kind == "fails" else 15.0
        path = fails if kind == "fails" else hangs
        result.append(hook(f"{kind}-{stage}", [stage], failure, limit, playbook=path))
    return result


def run_case(drill: Drill, case: str, receiver: Receiver) -> None:
    _bad, stages, end = CASES[case]
    platform, file = drill.platform, drill.folder / f"{case}.events"
    before = drill.only(SERVICE)
    wanted = other({before})
    old = (platform.known(SERVICE)["release"].get("release") or {}).get("id")
    spec = platform.inventory["causeway_services"][SERVICE]["release"]
    services = drill.services(
        SERVICE,
        hooks=hooks_of(drill, case, receiver, file),
        canary={**spec["canary"], "steps": [{"weight": 20, "duration": 20.0}]},
        blue_green={**spec["blue_green"], "bake": 20.0},
        analysis={**spec["analysis"], "interval": 20.0},
    )
    receiver.events.clear()
    secret = {"drill": receiver.secret}
    variables = drill.variables(
        SERVICE, wanted, causeway_services=services, release_window=5, release_hook_secrets=secret
    )
    with drill.load() as load:
        time.sleep(10)  # Prometheus has seen traffic before it is asked
        done = platform.playbook("release_canary", timeout=1800, **variables)
    state = platform.known(SERVICE)
    record = state["release"].get("release") or {}
    written = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    told = [event for right, event in receiver.events if right]
    begun = record.get("id") != old
    outcomes = {one["hook"]: one["outcome"] for one in drill.report(SERVICE).get("hooks", [])} if begun else {}
    claims = {
        "no request failed": load.summary["failed"] == 0,
        "every webhook is signed": len(told) == len(receiver.events),
        "the playbook saw every stage": {one["type"].partition(".")[2] for one in written} == stages,
        "the receiver saw every stage": {one["type"].partition(".")[2] for one in told} == stages,
        "the lock is free": state["lock"] == {},
    }
    if end == "not begun":
        claims["no release was recorded"] = not begun and done.returncode != 0
        claims["the old version alone is live"] = live(state) == {before}
    else:
        claims[f"it ended {end}"] = (
            begun and record.get("state") == end and (done.returncode == 0) == (end == "settled")
        )
        claims["one version alone is live"] = drill.settled(SERVICE, wanted if end == "settled" else before)
        for kind, stage, _failure in CASES[case][0]:
            ended = outcomes.get(f"{kind}-{stage}")
            claims[f"{kind}-{stage} is in the report"] = ended == ("failed" if kind == "fails" else "timed_out")
    if case.startswith("test-"):
        claims["no traffic ever moved"] = all(not one["weight"] for one in record.get("weights", []))
    row = {"what": case, "version": wanted, "state": record.get("state", ""), "reason": record.get("reason", "")}
    row.update(stages=sorted({one["type"] for one in told}), hooks=outcomes, **traffic_row(load))
    if not all(claims.values()):
        row["said"] = said_last(done.stdout)
    drill.note(row, claims)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lab = str(ROOT / "inventories" / "lab" / "platform.yml")
    parser.add_argument("--inventory", default=lab, help="platform.yml of the lab; default: %(default)s")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second; default: %(default)g")
    parser.add_argument("--out", default="", help="file for the results, JSON, written after every case")
    parser.add_argument("--case", action="append", choices=list(CASES))
    drill = Drill(parser.parse_args())
    print(f"logs: {drill.folder}", flush=True)
    with receiving() as receiver:
        for case in drill.options.case or list(CASES):
            try:
                run_case(drill, case, receiver)
            except Exception as error:  # the next case is still worth its time
                drill.note({"what": case, "error": f"{type(error).__name__}: {error}"[:1500]}, {"the case ran": False})
    print(f"{len(drill.rows)} cases, {len(drill.broken)} claims broken")
    return 1 if drill.broken else 0


if __name__ == "__main__":
    sys.exit(main())
