"""What the lines of a ledger prove, and the client itself against a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "drills"))
import databases
import ledger

_PLACE = ROOT / "tests" / "unit" / "migrations" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("ledger_postgresql", _PLACE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["ledger_postgresql"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
cluster = _MODULE.cluster


def lines(*events: dict[str, Any]) -> list[str]:
    return [json.dumps(one) + "\n" for one in events]


def ack(t: float, identifier: int) -> dict[str, Any]:
    return {"e": "ack", "t": t, "id": identifier}


def test_lines_of_several_writers_come_in_any_order() -> None:
    said = lines({"e": "ready"}, ack(2.0, 1), ack(1.0, 2), {"e": "error", "t": 3.0, "id": 3, "text": "x"}, {"e": "end"})
    log = ledger.parse(said)
    assert log.acks == [(1.0, 2), (2.0, 1)]
    assert [one["id"] for one in log.errors] == [3]
    assert log.ended


def test_a_line_that_was_cut_off_acknowledges_nothing() -> None:
    log = ledger.parse([*lines(ack(1.0, 1)), '{"e":"ack","t":2.0,"id":2}'])
    assert log.acknowledged == {1}
    assert not log.ended


def test_an_id_acknowledged_twice_proves_nothing() -> None:
    with pytest.raises(ValueError, match="twice"):
        ledger.parse(lines(ack(1.0, 1), ack(2.0, 1)))


@pytest.mark.parametrize(
    ("times", "since", "until", "expected"),
    [
        ([0, 1, 2, 5, 6], 3, None, 3.0),  # the gap that holds the fault
        ([0, 9, 10, 11], 9.5, None, 1.0),  # a gap that ended before does not count
        ([0, 1, 2, 3, 8, 9], 1.5, None, 5.0),  # one that began after it does
        ([0, 1, 2], 2.5, None, float("inf")),  # nothing was acknowledged any more
        ([], 0, None, float("inf")),
        ([0, 1, 2, 3], 1, 9, 6.0),  # and nothing more until the end
        ([0, 1, 2, 3], 1, 3, 1.0),
        ([5], 0, None, 0.0),
    ],
)
def test_outages(times: list[float], since: float, until: float | None, expected: float) -> None:
    assert ledger.outage([(float(at), number) for number, at in enumerate(times)], since, until) == expected


def test_judgement() -> None:
    log = ledger.parse(
        lines(ack(1.0, 1), ack(2.0, 2), {"e": "error", "t": 3.0, "id": 3, "text": "gone"}, ack(4.5, 4), ack(5.0, 5))
    )
    found = ledger.judge(log, {1, 3, 4, 5}, since=2.5)
    assert (found["acknowledged"], found["lost"], found["lost_ids"]) == (4, 1, [2])
    assert (found["unsure"], found["errors"], found["said"]) == (1, 1, ["gone"])
    assert found["outage"] == 2.5
    whole = ledger.judge(log, {1, 2, 4, 5}, since=2.5)
    assert (whole["lost"], whole["unsure"]) == (0, 0)


def test_errors_before_the_fault_are_not_its_fault() -> None:
    log = ledger.parse(lines({"e": "error", "t": 1.0, "id": 1, "text": "before"}, ack(2.0, 2), ack(3.0, 3)))
    assert ledger.judge(log, {2, 3}, since=1.5)["errors"] == 0


def test_digests_are_of_sets() -> None:
    assert ledger.digest([3, 1, 2]) == ledger.digest([1, 2, 3])
    assert ledger.digest([12]) != ledger.digest([1, 2])


def member(name: str, role: str, state: str = "streaming", timeline: int = 3) -> dict[str, Any]:
    return {"Member": name, "Host": f"{name}:15110", "Role": role, "State": state, "TL": timeline}


LEADER = member("a", "Leader", "running")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([LEADER, member("b", "Sync Standby"), member("c", "Replica")], []),
        ([LEADER, member("b", "Sync Standby")], ["2 of 3 members are known"]),
        ([], ["0 of 3 members are known"]),
        (
            [member("a", "Replica", "stopped"), member("b", "Sync Standby"), member("c", "Replica")],
            ["there is no running leader", "a is stopped"],
        ),
        ([LEADER, member("b", "Replica"), member("c", "Replica")], ["0 of 1 synchronous standbys"]),
        ([LEADER, member("b", "Sync Standby"), member("c", "Replica", "running")], ["c is running"]),
        (
            [LEADER, member("b", "Sync Standby"), member("c", "Replica", timeline=2)],
            ["members follow different timelines"],
        ),
    ],
)
def test_when_a_cluster_is_whole(members: list[dict[str, Any]], expected: list[str]) -> None:
    assert ledger.problems(members, 3, 1) == expected


ROW = {
    "what": "switchover",
    "acknowledged": 100,
    "lost": 0,
    "unsure": 1,
    "outage": 2.0,
    "errors": 0,
    "missing_on_members": {},
    "members_back_after": 3.0,
}


def test_claims_of_a_fault() -> None:
    fault = next(one for one in databases.FAULTS if one.what == "switchover")
    assert all(databases.claims_of(fault, ROW).values())
    for change in ({"lost": 1}, {"outage": 3.5}, {"errors": 1}, {"missing_on_members": {"c": 2}}):
        claims = databases.claims_of(fault, {**ROW, **change})
        assert list(claims.values()).count(False) == 1
    assert all(databases.claims_of(fault, {**ROW, "outage": 3.5}, slack=2.0).values())


def test_the_worst_trial_is_told() -> None:
    rows = [ROW, {**ROW, "outage": 2.5, "lost": 2}, {"what": "switchover", "error": "it broke"}]
    (line, none) = databases.summary(rows, ["switchover", "cut"])
    assert line.startswith("switchover: 2 trials, 200 acknowledged, 2 lost, 2 there")
    assert "2.50 s at most" in line
    assert none == "cut: no trial ran"


# --- against a server -------------------------------------------------------------------------------------------------


@pytest.fixture
def client(cluster: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The client as ledger.py starts it, without the container and the way there."""
    pytest.importorskip("psycopg")
    cluster.psql("postgres", "DROP TABLE IF EXISTS drill_ledger;")
    cluster.psql("postgres", ledger.TABLE.format(owner="owner", role="owner"))
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:owner:{cluster.password}\n")
    passfile.chmod(0o600)
    source = ledger.CLIENT.read_bytes()
    access = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(cluster.port),
        "PGUSER": "owner",
        "PGDATABASE": "postgres",
        "PGPASSFILE": str(passfile),
        "PGSSLMODE": "require",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    argv = [sys.executable, "-u", "-c", ledger.LOADER, str(len(source)), "--run=t", "--interval=0.01"]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **access}, bufsize=0
    )
    assert process.stdin
    process.stdin.write(source)
    yield process
    process.kill()
    process.wait()


def test_what_the_client_says_is_what_is_there(cluster: Any, client: subprocess.Popen[bytes]) -> None:
    assert client.stdout
    assert client.stdin
    assert json.loads(client.stdout.readline()) == {"e": "ready"}
    time.sleep(0.5)
    since = time.time()
    cluster.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'owner';")
    time.sleep(1.0)
    client.stdin.close()
    log = ledger.parse(line.decode() for line in client.stdout.read().splitlines(keepends=True))
    assert client.wait(10) == 0
    present = {int(one) for one in cluster.psql("postgres", "SELECT id FROM drill_ledger").splitlines()}
    found = ledger.judge(log, present, since)
    assert log.ended
    assert found["lost"] == 0
    assert found["acknowledged"] > 20
    assert 1 <= found["errors"] <= 8
    assert found["outage"] < 1.0
    assert cluster.psql("postgres", ledger.DIGEST.format(run="t")) == ledger.digest(present)
