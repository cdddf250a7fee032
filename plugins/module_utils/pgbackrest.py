# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgBackRest: what its repositories hold, which backup leads to a target, and an instance that recovers to it.

Standard library only: role ``backup`` installs this file beside its runner on the hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

TYPES = {"full": "full", "differential": "diff", "incremental": "incr"}
RANKS = {"full": 0, "diff": 1, "incr": 2}
TARGETS = ("latest", "immediate", "time", "lsn", "xid", "name")
VALUED = ("time", "lsn", "xid", "name")
SEGMENT = 16 * 1024 * 1024  # pgBackRest's info does not tell another size, and Debian's packages have this one
# Exit codes, https://github.com/pgbackrest/pgbackrest/blob/release/2.55.0/src/build/error/error.yaml
FILE_INVALID, LOCKED, DISCONNECTED = 28, 50, 56
# Status codes of a stanza in the output of "info"
MISSING_PATH, NO_BACKUP, MISSING_DATA = 1, 2, 3
# What PostgreSQL says when the archive ends before the target.
SHORT = "recovery ended before configured recovery target was reached"
# Settings of recovery that pgBackRest writes and that must not outlive it.
RECOVERY = (
    "restore_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
)
# A server that replays must allow at least what the primary allowed; pg_controldata tells what that was.
CONTROL = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
    "wal_level setting": "wal_level",
    "track_commit_timestamp setting": "track_commit_timestamp",
}
NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
LSN = re.compile(r"^([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})$")
ERROR_LINE = re.compile(r"^(?:\S+ \S+ P\d+\s+)?ERROR: (\[\d+\]: .*)$")
# Commands that may be told which repository, or have to be where there are several.
OF_ONE_REPOSITORY = ("info", "backup", "verify", "expire", "repo-ls", "repo-get")
POLL = 0.2
STANZA_WAIT = 180.0


class BackrestError(Exception):
    """pgBackRest, or PostgreSQL on what it restored, failed; the message says how.

    :ivar code: exit code of the program, 0 if it was none.
    :ivar busy: another pgBackRest held a lock that it needs.
    """

    def __init__(self, message: str, code: int = 0, busy: bool = False) -> None:
        super().__init__(message)
        self.code, self.busy = code, busy


class TargetError(BackrestError):
    """No backup leads to the target."""


class TargetNotReached(BackrestError):
    """The archive ended before the target."""


@dataclass(frozen=True)
class Backup:
    """One backup of a repository; times in seconds since the epoch, sizes in bytes."""

    label: str
    type: str
    repo: int
    start: int
    stop: int
    lsn_start: str
    lsn_stop: str
    wal_start: str
    wal_stop: str
    size: int
    delta: int
    stored: int
    error: bool
    prior: str = ""

    @property
    def timeline(self) -> int:
        """Timeline it was taken on."""
        return int(self.wal_start[:8], 16)


@dataclass(frozen=True)
class Stanza:
    """What the repositories hold for one cluster."""

    name: str
    code: int
    message: str
    backups: list[Backup]
    archive_min: str
    archive_max: str
    locked: bool
    versions: list[str]
    repositories: list[dict[str, Any]] = field(default_factory=list)

    @property
    def present(self) -> bool:
        """Whether the stanza was created in every repository."""
        return self.code not in (MISSING_PATH, MISSING_DATA) and not any(
            one["code"] in (MISSING_PATH, MISSING_DATA) for one in self.repositories
        )

    @property
    def numbers(self) -> list[int]:
        """Numbers of the repositories that are configured."""
        return sorted(one["key"] for one in self.repositories) or [1]

    def of(self, repo: int) -> list[Backup]:
        """Backups in one repository."""
        return [one for one in self.backups if one.repo == repo]

    def as_dict(self) -> dict[str, Any]:
        """For results of modules; each backup also tells its timeline."""
        found = asdict(self)
        found["present"] = self.present
        found["backups"] = [{**asdict(one), "timeline": one.timeline} for one in self.backups]
        return found


@dataclass(frozen=True)
class Target:
    """Where recovery stops.

    :ivar value: text for PostgreSQL; a time has a time zone.
    :ivar exclusive: stop just before it.
    :ivar timeline: ``latest`` or a number.
    """

    type: str = "latest"
    value: str = ""
    exclusive: bool = False
    timeline: str = "latest"

    def words(self) -> str:
        """For people."""
        if self.type == "latest":
            return "the end of the archive"
        if self.type == "immediate":
            return "the end of the backup"
        return f"{'just before ' if self.exclusive else ''}{self.type} {self.value}"


@dataclass(frozen=True)
class Program:
    """pgBackRest as one user with one configuration.

    :ivar repo: number of the one repository to work with; 0 leaves it to pgBackRest.
    """

    executable: str = "/usr/bin/pgbackrest"
    config: str = ""
    user: str = ""
    repo: int = 0

    def command(self, stanza: str, verb: str, options: Iterable[str] = ()) -> list[str]:
        """The whole command line; it never holds a secret."""
        own = [self.executable, *([f"--config={self.config}"] if self.config else []), f"--stanza={stanza}"]
        one = [f"--repo={self.repo}"] if self.repo and verb in OF_ONE_REPOSITORY else []
        return [*as_user(self.user), *own, *one, *options, verb]

    def only(self, repo: int) -> Program:
        """The same for one repository."""
        return replace(self, repo=repo)


def as_user(user: str) -> list[str]:
    """Words before a command that run it as a user with all of the user's groups."""
    return ["/usr/sbin/runuser", "-u", user, "--"] if user and os.geteuid() == 0 else []


def error_of(out: str, err: str) -> str:
    """The reason among what pgBackRest printed."""
    lines = [line.strip() for line in f"{err}\n{out}".splitlines() if line.strip()]
    for number, line in enumerate(lines):
        found = ERROR_LINE.match(line)
        if found:
            # The lines that follow belong to it, until the next one with a time.
            rest = [more for more in lines[number + 1 : number + 4] if not re.match(r"^\d{4}-\d\d-\d\d |^P\d+ ", more)]
            return " ".join([found.group(1), *rest])
    return lines[-1] if lines else "it printed nothing"


def run(command: Sequence[str], timeout: float | None = None) -> str:
    """Run a program and return its output; BackrestError with the reason when it fails."""
    # A directory that every user may enter, and messages that can be understood.
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise BackrestError(f"{error.filename} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BackrestError(f"{command[0]} took longer than {timeout:g} s") from error
    if done.returncode:
        busy = done.returncode == LOCKED or "unable to acquire lock" in done.stdout + done.stderr
        raise BackrestError(error_of(done.stdout, done.stderr), done.returncode, busy)
    return done.stdout


def parse_info(text: str, name: str) -> Stanza:
    """The output of ``info --output=json``; backups in the order of their end, repositories mixed."""
    try:
        found = next((one for one in json.loads(text) if one["name"] == name), None)
    except (ValueError, TypeError, KeyError) as error:
        raise BackrestError(f"pgBackRest's info cannot be read: {text[:200]!r}") from error
    if found is None:
        return Stanza(name, MISSING_PATH, "missing stanza path", [], "", "", False, [])
    backups = [
        Backup(
            label=one["label"],
            type=one["type"],
            repo=int(one["database"].get("repo-key", 1)),
            start=int(one["timestamp"]["start"]),
            stop=int(one["timestamp"]["stop"]),
            lsn_start=(one.get("lsn") or {}).get("start") or "0/0",
            lsn_stop=(one.get("lsn") or {}).get("stop") or "0/0",
            wal_start=one["archive"]["start"] or "0" * 24,
            wal_stop=one["archive"]["stop"] or "0" * 24,
            size=int(one["info"]["size"]),
            delta=int(one["info"]["delta"]),
            stored=int(one["info"]["repository"]["delta"]),
            error=bool(one.get("error")),
            prior=one.get("prior") or "",
        )
        for one in found.get("backup", [])
    ]
    archives = [one for one in found.get("archive", []) if one.get("max")]
    return Stanza(
        name=name,
        code=int(found["status"]["code"]),
        message=str(found["status"]["message"]),
        backups=sorted(backups, key=lambda one: (one.stop, -one.repo)),
        archive_min=min((one["min"] for one in archives), default=""),
        archive_max=max((one["max"] for one in archives), default=""),
        locked=bool(found["status"].get("lock", {}).get("backup", {}).get("held")),
        versions=sorted({str(one["version"]) for one in found.get("db", [])}),
        repositories=[
            {"key": int(one["key"]), "code": int(one["status"]["code"]), "message": str(one["status"]["message"])}
            for one in found.get("repo", [])
        ],
    )


def read_info(program: Program, name: str) -> Stanza:
    """Ask for a stanza."""
    return parse_info(run(program.command(name, "info", ["--output=json", "--log-level-console=off"])), name)


def newest(backups: Iterable[Backup], kind: str = "incr") -> Backup | None:
    """The newest backup of a type or of one that holds more (a full one is also a differential one)."""
    fit = [one for one in backups if RANKS[one.type] <= RANKS[kind]]
    return max(fit, key=lambda one: (one.stop, -one.repo), default=None)


def due(backups: Iterable[Backup], kind: str, max_age: float, now: float) -> str:
    """Why a backup of this type has to be made; empty when one is young enough (0: always)."""
    found = newest(backups, kind)
    if found is None:
        return f"there is no {kind} backup"
    if not max_age:
        return "it was asked for"
    age = now - found.stop
    return f"{found.label} is {age:.0f} s old" if age > max_age else ""


def parse_lsn(text: str) -> int:
    """A position in the log as a number."""
    found = LSN.match(text)
    if not found:
        raise TargetError(f"{text!r} is no LSN; one looks like 0/3000060")
    return (int(found.group(1), 16) << 32) + int(found.group(2), 16)


def parse_time(text: str) -> datetime:
    """A time with a zone; anything else could be understood in two ways."""
    try:
        # Python before 3.11 knows neither "Z" nor a zone without minutes.
        clean = re.sub(r"[Zz]$", "+00:00", text.strip())
        found = datetime.fromisoformat(re.sub(r"([+-]\d\d)(\d\d)?$", lambda m: f"{m[1]}:{m[2] or '00'}", clean))
    except ValueError as error:
        raise TargetError(f"{text!r} is no time; one looks like 2026-11-27T11:30:00+00:00") from error
    if found.tzinfo is None:
        raise TargetError(f"the time {text!r} has no time zone; write it like 2026-11-27T11:30:00+00:00")
    return found


def moment(seconds: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S+00:00")


def make_target(kind: str, value: str = "", exclusive: bool = False, timeline: str = "latest") -> Target:
    """A target in the form that PostgreSQL reads; TargetError for what has no meaning."""
    value = value.strip()
    if kind not in TARGETS:
        raise TargetError(f"unknown kind of target {kind!r}; allowed: {', '.join(TARGETS)}")
    if kind in VALUED and not value:
        raise TargetError(f"a target of kind {kind} needs a value")
    if kind not in VALUED and value:
        raise TargetError(f"a target of kind {kind} takes no value, but {value!r} was given")
    if exclusive and kind not in ("time", "lsn", "xid"):
        raise TargetError(f"only a time, an LSN or a transaction can be stopped at just before, not kind {kind}")
    if timeline not in ("latest", "") and not (timeline.isdigit() and int(timeline) > 0):
        raise TargetError(f"{timeline!r} is no timeline; it is a number, or latest")
    if kind == "time":
        value = parse_time(value).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    elif kind == "lsn":
        parse_lsn(value)
    elif kind == "xid" and not (value.isdigit() and 3 <= int(value) < 2**64):
        raise TargetError(f"{value!r} is no transaction id; it is a number from 3")
    elif kind == "name" and (len(value.encode()) > 63 or not value.isprintable()):
        raise TargetError(f"{value!r} is no name of a restore point; it has 1 to 63 printable characters")
    return Target(kind, value, exclusive, timeline or "latest")


def parse_history(text: str) -> dict[int, int]:
    """A timeline's history: each ancestor with the position at which it was left."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].isdigit() and LSN.match(words[1]):
            found[int(words[0])] = parse_lsn(words[1])
    return found


def timelines(stanza: Stanza, histories: Iterable[int] = ()) -> list[int]:
    """Timelines that the archive knows."""
    known = set(histories) | {one.timeline for one in stanza.backups}
    known |= {int(wal[:8], 16) for wal in (stanza.archive_min, stanza.archive_max) if wal}
    return sorted(known)


def on_branch(backups: Iterable[Backup], timeline: int, ancestors: Mapping[int, int]) -> list[Backup]:
    """Backups from which recovery can reach a timeline: taken on it, or on an ancestor before it was left."""
    return [
        one
        for one in backups
        if one.timeline == timeline
        or (one.timeline in ancestors and parse_lsn(one.lsn_stop) <= ancestors[one.timeline])
    ]


def archive_end(wal: str) -> int:
    """First position after a segment."""
    return (int(wal[8:16], 16) << 32) + (int(wal[16:24], 16) + 1) * SEGMENT


def candidates(
    stanza: Stanza,
    target: Target,
    now: float,
    label: str = "",
    *,
    ancestors: Mapping[int, int] | None = None,
    known: Iterable[int] = (),
) -> list[Backup]:
    """Backups that lead to a target, the best first; TargetError with one clear reason when there is none.

    Where the moment of the target is known there is one; a transaction or a name may lie behind any backup, so that
    older ones follow the newest. ``ancestors`` is the history of the target's timeline, ``known`` all timelines.
    """
    if not stanza.backups:
        raise TargetError(f"cluster {stanza.name} has no backup ({stanza.message})")
    lines = timelines(stanza, known)
    timeline = lines[-1] if target.timeline == "latest" else int(target.timeline)
    if timeline not in lines:
        raise TargetError(f"timeline {timeline} is unknown; the archive has {', '.join(map(str, lines))}")
    backups = on_branch(stanza.backups, timeline, ancestors or {})
    if label:
        if label not in {one.label for one in stanza.backups}:
            raise TargetError(f"there is no backup {label}; there are {', '.join(one.label for one in stanza.backups)}")
        backups = [one for one in backups if one.label == label]
        if not backups:
            raise TargetError(f"timeline {timeline} cannot be reached from backup {label}")
    if not backups:
        raise TargetError(f"no backup leads to timeline {timeline}")
    first = backups[0]
    if target.type == "time":
        wanted = parse_time(target.value).timestamp()
        if wanted > now:
            raise TargetError(f"{target.value} lies in the future; here it is {moment(now)}")
        backups = [one for one in backups if one.stop < wanted]
        earliest = moment(first.stop + 1)
    elif target.type == "lsn":
        wanted = parse_lsn(target.value)
        if stanza.archive_max and wanted > archive_end(stanza.archive_max):
            raise TargetError(f"LSN {target.value} lies in the future; the archive ends with {stanza.archive_max}")
        backups = [one for one in backups if parse_lsn(one.lsn_stop) <= wanted]
        earliest = first.lsn_stop
    else:
        backups.reverse()
        return backups if target.type in ("xid", "name") else backups[:1]
    if not backups:
        what = f"backup {label}" if label else "the first backup"
        raise TargetError(f"{target.type} {target.value} lies before {what}; the earliest possible is {earliest}")
    return [backups[-1]]


def find_candidates(program: Program, target: Target, name: str, label: str = "") -> tuple[Stanza, list[Backup]]:
    """Ask the repository and choose."""
    stanza = read_info(program, name)
    if not stanza.backups:
        raise TargetError(f"cluster {name} has no backup ({stanza.message})")
    known, ancestors = read_histories(program, stanza, target)
    return stanza, candidates(stanza, target, time.time(), label, ancestors=ancestors, known=known)


def read_histories(program: Program, stanza: Stanza, target: Target) -> tuple[list[int], dict[int, int]]:
    """Timelines with a history file in the archive, and the ancestors of the target's timeline."""
    known: set[int] = set()
    places: dict[int, str] = {}
    root = f"archive/{stanza.name}"
    if not program.repo:
        # All repositories have all log; the first one that answers may tell.
        sound = [one["key"] for one in stanza.repositories if not one["code"]]
        program = program.only(min(sound or stanza.numbers))
    quiet = ["--log-level-console=off"]
    for path in run([*program.command(stanza.name, "repo-ls", [*quiet, "--filter=^[0-9]+-[0-9]+$"]), root]).split():
        listed = run([*program.command(stanza.name, "repo-ls", [*quiet, r"--filter=\.history$"]), f"{root}/{path}"])
        for entry in listed.split():
            known.add(int(entry[:8], 16))
            places[int(entry[:8], 16)] = f"{root}/{path}/{entry}"
    lines = timelines(stanza, known)
    timeline = lines[-1] if target.timeline == "latest" else int(target.timeline)
    if timeline not in places:
        return sorted(known), {}
    text = run([*program.command(stanza.name, "repo-get", quiet), places[timeline]])
    return sorted(known), parse_history(text)


@dataclass(frozen=True)
class Place:
    """Where to restore to.

    :ivar delta: the directory has files; those that are right stay.
    :ivar beside: a copy that must never archive; its tablespaces go below ``tablespaces``.
    """

    path: str
    delta: bool = False
    beside: bool = False
    tablespaces: str = ""


def restore_options(program: Program, name: str, backup: Backup, target: Target, place: Place) -> list[str]:
    """Options of ``pgbackrest restore``. A copy beside must never archive into the repository of the original."""
    options = [f"--pg1-path={place.path}", f"--set={backup.label}", f"--repo={backup.repo}"]
    if place.delta:
        options.append("--delta")
    if target.type == "latest":
        options += ["--type=default", f"--target-timeline={target.timeline}"]
    else:
        options += [f"--type={target.type}", "--target-action=promote"]
        if target.value:
            options += [f"--target={target.value}", f"--target-timeline={target.timeline}"]
        if target.exclusive:
            options.append("--target-exclusive")
    if place.beside:
        # On the repository host pg1 is another host; and the queue of archiving belongs to the cluster itself, while a
        # restore empties the one it is given.
        here = ["--reset-pg1-host", f"--pg1-path={place.path}"]
        reading = [f"--repo={backup.repo}", "--no-archive-async", *here]
        own = replace(program, user="").command(name, "archive-get", reading)
        options += ["--reset-pg1-host", f"--spool-path={place.path}.spool", "--archive-mode=off"]
        options.append(f'--recovery-option=restore_command={" ".join(own)} %f "%p"')
        if place.tablespaces:
            options.append(f"--tablespace-map-all={place.tablespaces}")
    return options


def marker(path: str) -> Path:
    """File beside a data directory that tells what was restored into it."""
    return Path(f"{path.rstrip('/')}.restored.json")


def restored(path: str) -> dict[str, Any]:
    """What a finished restore left that nothing has used yet; empty otherwise.

    PostgreSQL removes ``recovery.signal`` at the end of recovery: from then on the directory has a life of its own.
    """
    try:
        found: dict[str, Any] = json.loads(marker(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ready = (Path(path) / "recovery.signal").exists() and (Path(path) / "global" / "pg_control").exists()
    return found if ready or found.get("recovered") else {}


def note(path: str, content: Mapping[str, Any]) -> None:
    """Write the marker."""
    place = marker(path)
    temporary = place.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(place)


def in_use(path: str) -> str:
    """Why a data directory must not be written to; empty when nothing runs on it."""
    try:
        pid = int((Path(path) / "postmaster.pid").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return f"PostgreSQL with process id {pid} runs on {path}; stop it first"


def parse_verify(text: str) -> dict[str, Any]:
    """The output of ``verify --output=text --verbose``.

    Its exit code is 0 even when files are damaged (pgBackRest 2.55), so only these words tell.
    """
    status = re.search(r"^status: (\w+)$", text, re.MULTILINE)
    if not status:
        raise BackrestError(f"pgBackRest's verify said nothing: {text[:200]!r}")
    problems = []
    heading = ""
    for line in text.splitlines():
        clean = line.strip()
        if clean.startswith(("archiveId:", "backup:")):
            heading = clean
            if clean.startswith("backup:") and "status: valid" not in clean and "in-progress" not in clean:
                problems.append(clean)
            continue
        counts = {key.strip(): int(number) for key, number in re.findall(r"([a-z ]+): (\d+)", clean)}
        if any(counts.values()) and set(counts) <= {"missing", "checksum invalid", "size invalid", "other"}:
            problems.append(f"{heading.split(',')[0]}: " + ", ".join(f"{k} {v}" for k, v in counts.items() if v))
    checked = sum(int(one) for one in re.findall(r"total (?:WAL|files) checked: (\d+)", text))
    if status.group(1) != "ok" and not problems:
        problems = [line.strip() for line in text.splitlines()[2:] if line.strip()][:10] or ["it found errors"]
    return {"ok": status.group(1) == "ok" and not problems, "files": checked, "problems": problems}


def verify(program: Program, name: str) -> dict[str, Any]:
    """Have every file of a stanza read and compared with its checksum."""
    return parse_verify(
        run(program.command(name, "verify", ["--output=text", "--verbose", "--log-level-console=error"]))
    )


def patiently(act: Callable[[], object], wait: float) -> None:
    """Do something again while another pgBackRest is in the way.

    On the leader that is the archiving, which holds its lock most of the time while a repository is away or empty.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            act()
            return
        except BackrestError as error:
            if not error.busy or time.monotonic() > deadline:
                raise
        time.sleep(min(2.0, max(wait, 0.1)))


def create_stanza(program: Program, name: str, wait: float = STANZA_WAIT) -> None:
    """Create a stanza where it is missing; the cluster must have a leader."""
    try:
        patiently(lambda: run_stanza(program, name, "stanza-create"), wait)
    except BackrestError as error:
        if error.code == DISCONNECTED:
            raise BackrestError(f"cluster {name} has no leader that can be reached: {error}", error.code) from error
        raise


def run_stanza(program: Program, name: str, verb: str) -> None:
    """One of the commands for stanzas, with the warnings that tell of locks."""
    run(program.command(name, verb, ["--log-level-console=warn"]))


def upgrade_stanza(program: Program, stanza: Stanza, wait: float = STANZA_WAIT) -> bool:
    """Tell the repositories about a new major version or identity of the cluster; returns whether there was one."""
    try:
        patiently(lambda: run_stanza(program, stanza.name, "stanza-create"), wait)
    except BackrestError as error:
        # No leader, or in use all the time: then there is nothing to tell now.
        if error.code == DISCONNECTED or error.busy:
            return False
        if error.code != FILE_INVALID:
            raise
        patiently(lambda: run_stanza(program, stanza.name, "stanza-upgrade"), wait)
        return True
    return False


def check(program: Program, name: str) -> None:
    """Switch the log and wait until the segment is in every repository."""
    run(program.command(name, "check", ["--log-level-console=error"]))


def backup(program: Program, name: str, kind: str, wait: float = 0.0) -> None:
    """Make a backup; another one that runs is waited for."""
    options = [f"--type={kind}", "--log-level-console=warn"]
    patiently(lambda: run(program.command(name, "backup", options)), wait)


def control_settings(text: str) -> dict[str, str]:
    """Settings that a server needs to replay, from the output of ``pg_controldata``."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _colon, value = line.partition(":")
        if name.strip() in CONTROL:
            found[CONTROL[name.strip()]] = value.strip()
    missing = sorted(set(CONTROL.values()) - set(found))
    if missing:
        raise BackrestError(f"pg_controldata does not tell {', '.join(missing)}")
    return found


def control_value(text: str, name: str) -> str:
    """One line of ``pg_controldata``."""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(f"{name}:")), "")


@dataclass(frozen=True)
class Layout:
    """Where an instance on a restored directory lives.

    :ivar work: directory of its own for configuration, log and the unix socket.
    :ivar archive: archive_command, empty for a copy that must not archive.
    """

    data: str
    work: str
    bin: str
    user: str
    port: int = 5432
    archive: str = ""
    shared_buffers: str = "128MB"


def settings(layout: Layout, control: Mapping[str, str]) -> dict[str, str]:
    """Settings of the instance: it is reached by its unix socket alone and preloads nothing."""
    return {
        **control,
        "listen_addresses": "",
        "unix_socket_directories": layout.work,
        "unix_socket_permissions": "0700",
        "port": str(layout.port),
        "hba_file": f"{layout.work}/pg_hba.conf",
        "ident_file": f"{layout.work}/pg_ident.conf",
        "ssl": "off",
        "shared_buffers": layout.shared_buffers,
        "shared_preload_libraries": "",
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "archive_mode": "on" if layout.archive else "off",
        "archive_command": layout.archive,
        "archive_library": "",
        "hot_standby": "on",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_min_messages": "warning",
        "autovacuum": "off",
        # Its memory is both written and run, which the unit forbids.
        "jit": "off",
    }


def quoted(value: str) -> str:
    """A value in postgresql.conf."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


class Instance:
    """PostgreSQL on a restored directory, on a unix socket of its own."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.process: subprocess.Popen[bytes] | None = None

    def tool(self, name: str, *arguments: str) -> list[str]:
        """A program of this PostgreSQL as the owner of the data."""
        return [*as_user(self.layout.user), f"{self.layout.bin}/{name}", *arguments]

    def controldata(self) -> str:
        """Output of pg_controldata."""
        return run(self.tool("pg_controldata", "-D", self.layout.data))

    def prepare(self) -> dict[str, str]:
        """Write the configuration; returns the settings that go onto the command line."""
        work = Path(self.layout.work)
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = self.layout.user or _login()
        found = settings(self.layout, control_settings(self.controldata()))
        files = {
            # Only the owner of the data gets in, as superuser: there is no "trust".
            "pg_hba.conf": "local all all peer map=restored\n",
            "pg_ident.conf": f"restored {user} postgres\n",
            "postgresql.conf": "# Made for one recovery.\n",
        }
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
            (work / name).chmod(0o600)
        if self.layout.user and os.geteuid() == 0:
            for path in (work, *(work / name for name in files)):
                shutil.chown(path, self.layout.user)
        return found

    def command(self) -> list[str]:
        """The server's command line. Settings stand on it because they win over postgresql.auto.conf there."""
        words = self.tool("postgres", "-D", self.layout.data, "-c", f"config_file={self.layout.work}/postgresql.conf")
        for name, value in self.prepare().items():
            words += ["-c", f"{name}={value}"]
        return words

    def start(self) -> None:
        """Start it; the log goes to a file."""
        log = Path(self.layout.work) / "log"
        command = self.command()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
            )

    def log(self) -> str:
        """What it said."""
        with contextlib.suppress(OSError):
            return (Path(self.layout.work) / "log").read_text(encoding="utf-8", errors="replace")
        return ""

    def psql(self, sql: str, database: str = "postgres", timeout: float | None = None) -> str:
        """Run SQL as superuser; rows as text, columns separated by a tab."""
        words = ["-XqAt", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", self.layout.work, "-p", str(self.layout.port)]
        return run(self.tool("psql", *words, "-U", "postgres", "-d", database, "-c", sql), timeout).strip()

    def wait(self, timeout: float) -> None:
        """Wait until recovery is over."""
        deadline = time.monotonic() + timeout
        while True:
            if self.process is not None and self.process.poll() is not None:
                raise self.ended()
            with contextlib.suppress(BackrestError):
                if self.psql("SELECT pg_is_in_recovery()", timeout=30) == "f":
                    return
            if time.monotonic() > deadline:
                raise BackrestError(f"recovery was not over within {timeout:g} s; {_last(self.log())}")
            time.sleep(POLL)

    def ended(self) -> BackrestError:
        """Why it ended."""
        log = self.log()
        if SHORT in log:
            return TargetNotReached("the archive ends before the target")
        return BackrestError(f"PostgreSQL ended: {_last(log)}")

    def facts(self) -> dict[str, Any]:
        """Timeline, position and the last replayed transaction, after recovery."""
        self.psql("CHECKPOINT")
        line, lsn, last = self.psql(
            "SELECT timeline_id, pg_current_wal_lsn(), "
            "coalesce(extract(epoch FROM pg_last_xact_replay_timestamp()), 0) FROM pg_control_checkpoint()"
        ).split("\t")
        return {
            "timeline": int(line),
            "lsn": lsn,
            "last_transaction": moment(float(last)) if float(last) else "",
            "identity": control_value(self.controldata(), "Database system identifier"),
        }

    def forget_recovery(self) -> None:
        """Take the settings of the recovery out of postgresql.auto.conf: the next start would obey them."""
        for name in RECOVERY:
            self.psql(f"ALTER SYSTEM RESET {name}")

    def stop(self, timeout: float = 300.0) -> None:
        """Shut down cleanly."""
        if self.process is None or self.process.poll() is not None:
            return
        run(self.tool("pg_ctl", "stop", "-s", "-m", "fast", "-D", self.layout.data, "-t", str(int(timeout))))
        self.process.wait(timeout)

    def kill(self) -> None:
        """Make sure that nothing of it runs."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(BackrestError):
            run(self.tool("pg_ctl", "stop", "-s", "-m", "immediate", "-D", self.layout.data, "-t", "30"))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def _login() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _last(log: str) -> str:
    lines = [line for line in log.splitlines() if "FATAL" in line or "PANIC" in line or "ERROR" in line]
    return (lines or log.splitlines() or ["it said nothing"])[-1]


def restore(program: Program, name: str, chosen: Backup, target: Target, place: Place) -> float:
    """Restore a backup into a directory; returns the seconds it took."""
    obstacle = in_use(place.path)
    if obstacle:
        raise BackrestError(obstacle)
    started = time.monotonic()
    with contextlib.suppress(FileNotFoundError):
        marker(place.path).unlink()
    options = restore_options(program, name, chosen, target, place)
    run(program.command(name, "restore", [*options, "--log-level-console=warn"]))
    return time.monotonic() - started


def check_sql(instance: Instance, database: str, statements: Iterable[str], timeout: float) -> list[dict[str, Any]]:
    """The service's own checks: each has to return one row with one column that is true."""
    results = []
    for sql in statements:
        started, reason = time.monotonic(), ""
        try:
            guarded = (
                f"SET default_transaction_read_only = on; SET statement_timeout = '{int(timeout * 1000)}ms'; {sql}"
            )
            answer = instance.psql(guarded, database, timeout + 10)
            reason = "" if answer == "t" else f"returned {answer[:100]!r}, not true"
        except BackrestError as error:
            reason = str(error)
        seconds = round(time.monotonic() - started, 3)
        results.append({"sql": sql, "ok": not reason, "reason": reason, "seconds": seconds})
    return results


def attempt(
    tries: Sequence[Backup], act: Callable[[Backup], dict[str, Any]], target: Target
) -> tuple[Backup, dict[str, Any]]:
    """Try backups until one reaches the target; the next one only if the archive's end came first."""
    for one in tries:
        try:
            return one, act(one)
        except TargetNotReached:
            continue
    labels = ", ".join(one.label for one in tries)
    raise TargetNotReached(f"{target.words()} was not found in the archive, starting from {labels}")
