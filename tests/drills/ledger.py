"""A ledger that a client outside the cluster writes, and what it proves after a fault.

The client (ledger_client.py) runs in a container of the service and connects as the service does: sidecar, mutual TLS,
pooler, PostgreSQL. An id counts only after COMMIT returned; each line it says is on this machine's disk before the
next one is read. The functions at the top decide on these lines and know nothing of hosts.

    outage        longest time between two acknowledgements that does not end before the fault
    lost          acknowledged ids that are missing once all members are back
    unsure        ids that are there although no COMMIT returned: allowed, and told
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import ROOT, Platform

CLIENT = ROOT / "tests" / "drills" / "ledger_client.py"
TABLE = """
    CREATE TABLE IF NOT EXISTS drill_ledger (
        run text NOT NULL, id bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (run, id));
    ALTER TABLE drill_ledger OWNER TO {owner};
    GRANT SELECT, INSERT, DELETE ON drill_ledger TO {role};
"""
# The script comes first on standard input, by its length; the rest of the input stays open and says when to stop.
LOADER = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv.pop(1))), 'ledger_client.py', 'exec'))"
START = 30.0  # seconds until the writers are connected


# --- what the lines say ---------------------------------------------------------------------------------------------


@dataclass
class Log:
    """What the client said: ``acks`` as (seconds, id) in order of time, ``errors`` as it said them."""

    acks: list[tuple[float, int]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @property
    def acknowledged(self) -> set[int]:
        return {identifier for _at, identifier in self.acks}


def parse(lines: Iterable[str]) -> Log:
    """From lines of JSON; a last line that was cut off in the middle is left out. Raises ValueError for an id that was
    acknowledged twice, since then the ids prove nothing.
    """
    log = Log()
    for line in lines:
        if not line.endswith("\n"):
            continue
        event = json.loads(line)
        if event["e"] == "ack":
            log.acks.append((float(event["t"]), int(event["id"])))
        elif event["e"] == "error":
            log.errors.append(event)
        elif event["e"] == "end":
            log.ended = True
    log.acks.sort()
    if len(log.acknowledged) != len(log.acks):
        raise ValueError("an id was acknowledged twice")
    return log


def outage(acks: Sequence[tuple[float, int]], since: float, until: float | None = None) -> float:
    """Longest time in seconds between two acknowledgements, of those that do not end before ``since``. With ``until``
    the time from the last acknowledgement to then counts too. Infinite without any acknowledgement after ``since``.
    """
    if not any(at >= since for at, _id in acks):
        return float("inf")
    times = [at for at, _id in acks] + ([until] if until is not None and until > acks[-1][0] else [])
    return max((b - a for a, b in zip(times, times[1:]) if b >= since), default=0.0)


def judge(log: Log, present: Iterable[int], since: float) -> dict[str, Any]:
    """What a fault at ``since`` cost: ``present`` are the ids in the table once everything is back."""
    there = set(present)
    lost = sorted(log.acknowledged - there)
    unsure = sorted(there - log.acknowledged)
    return {
        "acknowledged": len(log.acks),
        "lost": len(lost),
        "lost_ids": lost[:20],
        "unsure": len(unsure),
        "outage": round(outage(log.acks, since), 3),
        "errors": len([one for one in log.errors if one["t"] >= since]),
        "said": sorted({one["text"] for one in log.errors if one["t"] >= since})[:5],
    }


def digest(ids: Iterable[int]) -> str:
    """A hash of a set of ids, as ``DIGEST`` makes it in the database."""
    return hashlib.sha256(",".join(str(one) for one in sorted(ids)).encode()).hexdigest()


DIGEST = (
    "SELECT encode(sha256(convert_to(coalesce(string_agg(id::text, ',' ORDER BY id), ''), 'UTF8')), 'hex')"
    " FROM drill_ledger WHERE run = '{run}'"
)


def problems(members: Sequence[dict[str, Any]], wanted: int, synchronous: int) -> list[str]:
    """Why a cluster is not whole, from ``patronictl list``: ``wanted`` members, one of which leads, the others stream
    on its timeline, and ``synchronous`` of them are synchronous standbys.
    """
    if len(members) != wanted:
        return [f"{len(members)} of {wanted} members are known"]
    leaders = [one for one in members if "Leader" in one["Role"]]
    found = [] if len(leaders) == 1 and leaders[0]["State"] == "running" else ["there is no running leader"]
    found += [
        f"{one['Member']} is {one['State']}" for one in members if one not in leaders and one["State"] != "streaming"
    ]
    if len({one["TL"] for one in members if one.get("TL")}) > 1:
        found.append("members follow different timelines")
    have = sum(one["Role"] in ("Sync Standby", "Quorum Standby") for one in members)
    if have < synchronous:
        found.append(f"{have} of {synchronous} synchronous standbys")
    return found


# --- the cluster and the client ---------------------------------------------------------------------------------------


class Cluster:
    """A database cluster as an operator sees it, through SSH and Patroni's own tool: whatever else is broken."""

    def __init__(self, platform: Platform, name: str) -> None:
        self.platform, self.name = platform, name
        self.known: dict[str, Any] = platform.inventory["causeway_databases"][name]
        self.hosts = [member["host"] for member in self.known["members"]]
        self.database = str(self.known["database"])

    @property
    def unit(self) -> str:
        return f"causeway-patroni@{self.name}.service"

    @property
    def data(self) -> str:
        return f"/var/lib/postgresql/17/{self.name}"

    def members(self) -> list[dict[str, Any]]:
        """``patronictl list`` from the first member that answers; empty when none does."""
        for host in self.hosts:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = self.platform.ssh(
                    host, f"timeout 8 patronictl -c /etc/causeway/patroni/{self.name}.yml list -f json", timeout=12
                )
                if done.returncode == 0 and done.stdout.strip():
                    found: list[dict[str, Any]] = json.loads(done.stdout)
                    return found
        return []

    def leader(self) -> str:
        """Host of the leader; raises AssertionError while there is none or more than one."""
        found = [one["Host"] for one in self.members() if "Leader" in one["Role"] and one["State"] == "running"]
        assert len(found) == 1, f"{len(found)} leaders"
        return self.host_of(found[0])

    def host_of(self, address: str) -> str:
        address = address.rpartition(":")[0] or address
        return next(one["host"] for one in self.known["members"] if address in (one["address"], one["host"]))

    def problems(self) -> list[str]:
        """Why the cluster is not whole; empty when it is."""
        return problems(self.members(), len(self.hosts), int(self.known["synchronous"]))

    def wait_whole(self, timeout: float = 180.0) -> float:
        """Seconds until the cluster is whole; raises AssertionError with what is wrong when it does not become so."""
        begun = time.monotonic()
        while problems := self.problems():
            assert time.monotonic() - begun < timeout, f"not whole after {timeout:g} s: {'; '.join(problems)}"
            time.sleep(1)
        return round(time.monotonic() - begun, 1)

    def psql(self, sql: str, host: str = "", database: str = "", timeout: float = 60) -> str:
        """SQL as superuser on a member, by default the leader; raises AssertionError when it fails."""
        command = (
            f"runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -h /run/postgresql -p {self.known['port']}"
            f" -d {shlex.quote(database or self.database)} -c {shlex.quote(sql)}"
        )
        done = self.platform.ssh(host or self.leader(), command, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def prepare(self) -> None:
        """Make the ledger's table."""
        self.psql(TABLE.format(owner=f"{self.database}_owner", role=self.database))

    def ids(self, run: str, host: str = "") -> set[int]:
        said = self.psql(f"SELECT id FROM drill_ledger WHERE run = '{run}'", host)
        return {int(line) for line in said.splitlines()}

    def wait_replayed(self, timeout: float = 30.0) -> None:
        """Until every other member shows what the leader has written up to now, or the time is over."""
        leader = self.leader()
        position = self.psql("SELECT pg_current_wal_insert_lsn()", leader)
        wait = f"SELECT causeway.wait_for_lsn('{position}', '{timeout:g} seconds')"
        for host in self.hosts:
            if host != leader:
                self.psql(wait, host, timeout=timeout + 30)

    def archive(self, timeout: float = 60.0) -> None:
        """Have all log up to now in the repositories, as a restore beside needs it."""
        last = self.psql("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + timeout
        while self.psql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < last:
            assert time.monotonic() < deadline, f"{last} was not archived within {timeout:g} s"
            time.sleep(1)


class Ledger:
    """`with Ledger(...) as ledger: ...`, then `ledger.log`. ``ssh`` and the container are those of one instance."""

    def __init__(
        self,
        platform: Platform,
        instance: dict[str, Any],
        run: str,
        folder: Path,
        *,
        writers: int = 4,
        interval: float = 0.05,
        limit: float = 5.0,
        database: str = "",
    ) -> None:
        """``database``: another than the service's own, such as a tenant's."""
        self.platform, self.run, self.host = platform, run, instance["host"]
        self.path = folder / f"ledger-{run}.jsonl"
        self.log = Log()
        container = f"{instance['service']}-{instance['slot']}"
        self.source = CLIENT.read_bytes()
        arguments = [f"--run={run}", f"--writers={writers}", f"--interval={interval}", f"--limit={limit}"]
        given = [f"--env=PGDATABASE={database}"] if database else []
        remote = [
            "podman",
            "exec",
            "-i",
            *given,
            container,
            "python3",
            "-u",
            "-c",
            LOADER,
            str(len(self.source)),
            *arguments,
        ]
        config = str(platform.state / "ssh" / "config")
        self.argv = ["ssh", "-F", config, "-o", "ServerAliveInterval=5", self.host, shlex.join(remote)]
        self.ready = threading.Event()

    def __enter__(self) -> Ledger:
        self.errors = self.path.with_suffix(".errors").open("wb")
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0
        )
        assert self.process.stdin
        self.reader = threading.Thread(target=self.keep, daemon=True)
        self.reader.start()
        self.process.stdin.write(self.source)
        if not self.ready.wait(START):
            self.__exit__()
            raise AssertionError(f"the ledger's client does not write: {self.said()}")
        return self

    def keep(self) -> None:
        """Every line is on the disk before the next one is read."""
        assert self.process.stdout
        with self.path.open("ab") as log:
            pending = b""
            while piece := self.process.stdout.read(65536):
                *lines, pending = (pending + piece).split(b"\n")
                for line in lines:
                    log.write(line + b"\n")
                    if b'"ready"' in line:
                        self.ready.set()
                log.flush()
                os.fsync(log.fileno())

    def said(self) -> str:
        tail = self.path.read_text()[-600:] if self.path.exists() else ""
        return f"{self.path.with_suffix('.errors').read_text()[-600:]} {tail}"

    def acknowledged(self) -> int:
        """Number of acknowledgements so far."""
        return self.path.read_bytes().count(b'"ack"')

    def wait_acknowledged(self, more: int = 20, timeout: float = 90.0) -> None:
        """Until so many more were acknowledged; raises AssertionError when they are not."""
        wanted, deadline = self.acknowledged() + more, time.monotonic() + timeout
        while self.acknowledged() < wanted:
            assert time.monotonic() < deadline, f"nothing is written any more: {self.said()}"
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5)
        self.errors.close()
        with self.path.open(encoding="utf-8") as lines:
            self.log = parse(lines)


def instances(platform: Platform, service: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.inventory["causeway_services"][service]["instances"]["placed"]
    return found


def instance_away_from(platform: Platform, service: str, host: str) -> dict[str, Any]:
    """An instance for the client: one whose host does not share the fate of ``host``, on no member if there is one."""
    members = {one["host"] for one in platform.inventory["causeway_databases"][service]["members"]}
    others = [one for one in instances(platform, service) if one["host"] != host]
    assert others, f"every instance of {service} is on {host}"
    return next((one for one in others if one["host"] not in members), others[-1])
