# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups, checks of the repository and restore tests, run by systemd timers on the repository host.

``runner.py KIND CLUSTER``: KIND is full, differential, incremental, verify or restore-test. What each did last is kept
as JSON below ``state`` and shown to the node exporter; ``verify`` and ``restore-test`` also write a report.
``runner.py ended KIND CLUSTER`` runs after each of them, also after a kill: it notes that and removes what was left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))

import pgbackrest as pb

CONFIG = Path("/etc/causeway/backup/runner.json")
BACKUPS = tuple(pb.TYPES)
KINDS = (*BACKUPS, "verify", "restore-test")
FREE = 256 * 1024 * 1024
METRICS = (
    ("last_success_timestamp_seconds", "When it last succeeded.", "success", "at"),
    ("last_failure_timestamp_seconds", "When it last failed.", "failure", "at"),
    ("last_duration_seconds", "How long the last successful one took.", "success", "seconds"),
    ("last_size_bytes", "Bytes that the last successful one read or restored.", "success", "bytes"),
    ("last_age_seconds", "How old the newest backup was when it was tested.", "success", "age"),
)
OF_REPOSITORIES = (
    ("last_success_timestamp_seconds", "When it last succeeded in this repository.", "success"),
    ("failed", "1 while the last one failed in this repository.", "failed"),
)


@dataclass(frozen=True)
class Config:
    """What the role wrote."""

    root: str
    bin: str
    executable: str
    config: str
    wait: float
    recovery_timeout: float
    check_timeout: float
    keep: int
    clusters: dict[str, dict[str, Any]]

    @property
    def program(self) -> pb.Program:
        """pgBackRest as the user that runs this."""
        return pb.Program(self.executable, self.config)

    def place(self, *parts: str) -> Path:
        """A path below the root."""
        return Path(self.root, *parts)


def write(path: Path, text: str) -> None:
    """Write a file that readers see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)


def dump(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON."""
    write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read JSON; empty when there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def metrics(states: Sequence[Mapping[str, Any]]) -> str:
    """The states in Prometheus' text format."""
    lines = []
    for name, words, part, key in METRICS:
        rows = [
            f'causeway_backup_{name}{{cluster="{one["cluster"]}",kind="{one["kind"]}"}} {one[part][key]}'
            for one in states
            if one.get(part, {}).get(key) is not None
        ]
        if rows:
            lines += [f"# HELP causeway_backup_{name} {words}", f"# TYPE causeway_backup_{name} gauge", *rows]
    for name, words, key in OF_REPOSITORIES:
        rows = [
            f'causeway_backup_repository_{name}{{cluster="{one["cluster"]}",kind="{one["kind"]}",repository="{repo}"}} '
            f"{int(found[key])}"
            for one in states
            for repo, found in sorted(one.get("repositories", {}).items())
            if key in found
        ]
        if rows:
            full = f"causeway_backup_repository_{name}"
            lines += [f"# HELP {full} {words}", f"# TYPE {full} gauge", *rows]
    rows = [
        f'causeway_backup_failed{{cluster="{one["cluster"]}",kind="{one["kind"]}"}} {int(failed(one))}'
        for one in states
    ]
    if rows:
        lines += [
            "# HELP causeway_backup_failed 1 while the last one failed.",
            "# TYPE causeway_backup_failed gauge",
            *rows,
        ]
    return "\n".join(lines) + "\n" if lines else ""


def failed(state: Mapping[str, Any]) -> bool:
    """Whether the last run failed."""
    return bool(state.get("failure", {}).get("at", 0) > state.get("success", {}).get("at", 0))


def publish(config: Config) -> None:
    """Write the metrics of all clusters that there are."""
    states = [
        state
        for name in sorted(config.clusters)
        for kind in KINDS
        if (state := load(config.place("state", f"{name}.{kind}.json"))).get("cluster")
    ]
    write(config.place("metrics", "causeway_backup.prom"), metrics(states))


def in_each(repos: Sequence[int], state: dict[str, Any], work: Callable[[int], Mapping[str, Any]]) -> dict[int, Any]:
    """Do the same in each repository, also where it failed in one before; BackrestError with all reasons at the end.

    How it went in each is noted in the state's ``repositories``.
    """
    done: dict[int, Any] = {}
    reasons = []
    before = state.get("repositories", {})
    # Those that are gone are forgotten.
    state["repositories"] = {str(repo): before.get(str(repo), {}) for repo in repos}
    for repo in repos:
        note = state["repositories"][str(repo)]
        try:
            done[repo] = work(repo)
        except pb.BackrestError as error:
            reasons.append(f"repository {repo}: {error}" if len(repos) > 1 else str(error))
            note.update(failed=True, reason=str(error))
        else:
            note.update(failed=False, reason="", success=time.time())
    if reasons:
        raise pb.BackrestError("; ".join(reasons))
    return done


def make_backup(config: Config, cluster: str, kind: str, state: dict[str, Any]) -> dict[str, Any]:
    """A backup in each repository; the stanza is made first where a repository lost it."""
    program = config.program
    stanza = pb.read_info(program, cluster)
    if not stanza.present:
        pb.create_stanza(program, cluster)
        stanza = pb.read_info(program, cluster)

    def one(repo: int) -> dict[str, Any]:
        pb.backup(program.only(repo), cluster, pb.TYPES[kind], config.wait)
        made = pb.newest(pb.read_info(program.only(repo), cluster).of(repo))
        if made is None:
            raise pb.BackrestError("pgBackRest made a backup that its info does not show")
        if made.error:
            raise pb.BackrestError(f"backup {made.label} has pages with wrong checksums")
        words = f"{made.type} backup {made.label}, {made.delta} bytes read, {made.stored} stored"
        print(f"{cluster}: repository {repo}: {words}", flush=True)
        return {"bytes": made.delta, "stored": made.stored, "label": made.label}

    done = in_each(stanza.numbers, state, one)
    # Bytes are summed: each repository's backup reads the database once.
    sums = {key: sum(found[key] for found in done.values()) for key in ("bytes", "stored")}
    return {
        **sums,
        "label": done[max(done)]["label"],
        "labels": {str(repo): found["label"] for repo, found in done.items()},
    }


def check_repository(config: Config, cluster: str, _kind: str, state: dict[str, Any]) -> dict[str, Any]:
    """Have every file of each repository read; a report in any case."""
    found: dict[str, Any] = {}

    def one(repo: int) -> dict[str, Any]:
        try:
            result = pb.verify(config.program.only(repo), cluster)
        except pb.BackrestError as error:
            result = {"ok": False, "files": 0, "problems": [str(error)]}
        found[str(repo)] = result
        if not result["ok"]:
            raise pb.BackrestError(f"the repository is damaged: {'; '.join(result['problems'])}")
        print(f"{cluster}: {result['files']} files of repository {repo} are as they were written", flush=True)
        return result

    try:
        in_each(pb.read_info(config.program, cluster).numbers, state, one)
    finally:
        several = len(found) > 1
        problems = [
            f"repository {repo}: {words}" if several else words
            for repo, result in found.items()
            for words in result["problems"]
        ]
        files = sum(result["files"] for result in found.values())
        sound = bool(found) and all(result["ok"] for result in found.values())
        summed = {"ok": sound, "files": files, "problems": problems, "repositories": found}
        report(config, cluster, "verify", summed)
    return {"files": files}


def report(config: Config, cluster: str, kind: str, content: Mapping[str, Any]) -> None:
    """Write a report: the newest under a fixed name, some older ones beside."""
    folder = config.place("reports")
    full = {"cluster": cluster, "kind": kind, "at": pb.moment(time.time()), **content}
    dump(folder / f"{cluster}-{kind}.json", full)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    dump(folder / "old" / f"{cluster}-{kind}-{stamp}.json", full)
    dated = sorted((folder / "old").glob(f"{cluster}-{kind}-*.json"))
    for path in dated[: max(len(dated) - config.keep, 0)]:
        path.unlink(missing_ok=True)


def sound(act: Callable[[], str]) -> dict[str, Any]:
    """A check by a program: whether it was content, and what it said if not."""
    try:
        act()
    except pb.BackrestError as error:
        return {"ok": False, "reason": str(error)}
    return {"ok": True, "reason": ""}


def test_restore(config: Config, cluster: str, _kind: str, _state: dict[str, Any]) -> dict[str, Any]:
    """Restore the first repository's newest backup and all log after it, look at every page and index, run the
    service's checks.
    """
    root = config.place("restore-test", cluster)
    shutil.rmtree(root, ignore_errors=True)
    # The unit has no network: further repositories are out of its reach.
    program, target = config.program.only(1), pb.Target()
    _stanza, tries = pb.find_candidates(program, target, cluster)
    chosen, started, content = tries[0], time.time(), {}
    found = {"backup": chosen.label, "age": round(started - chosen.stop, 1), "bytes": chosen.size, "seconds": content}
    room = shutil.disk_usage(config.root).free
    if room < chosen.size + FREE:
        raise pb.BackrestError(f"{config.root} has {room} bytes free, the restore needs {chosen.size + FREE}")
    (root / "data").mkdir(mode=0o700, parents=True)
    (root / "tablespaces").mkdir(mode=0o700)
    instance = pb.Instance(pb.Layout(str(root / "data"), str(root / "work"), config.bin, ""))
    place = pb.Place(str(root / "data"), beside=True, tablespaces=str(root / "tablespaces"))
    try:
        content["restore"] = round(pb.restore(program, cluster, chosen, target, place), 3)
        clock = time.monotonic()
        instance.start()
        instance.wait(config.recovery_timeout)
        found["recovered"] = instance.facts()
        content["recover"] = round(time.monotonic() - clock, 3)
        clock = time.monotonic()
        one = config.clusters[cluster]
        found["checks"] = pb.check_sql(instance, one["database"], one["checks"], config.check_timeout)
        socket = ["-h", instance.layout.work, "-p", str(instance.layout.port), "-U", "postgres"]
        words = instance.tool("pg_amcheck", *socket, "--all", "--install-missing", "--no-strict-names")
        found["indexes"] = sound(lambda: pb.run(words))
        instance.stop()
        found["checksums"] = sound(lambda: pb.run(instance.tool("pg_checksums", "--check", "-D", instance.layout.data)))
        content["check"] = round(time.monotonic() - clock, 3)
        content["total"] = round(time.time() - started, 3)
        wrong = judge(found)
        report(config, cluster, "restore-test", {"ok": not wrong, "reason": "; ".join(wrong), **found})
        if wrong:
            raise pb.BackrestError("; ".join(wrong))
    except pb.BackrestError as error:
        if "checksums" not in found:
            report(config, cluster, "restore-test", {"ok": False, "reason": str(error), **found})
        raise
    finally:
        instance.kill()
        shutil.rmtree(root, ignore_errors=True)
    print(f"{cluster}: backup {chosen.label} was restored, recovered to {found['recovered']['lsn']} and is sound")
    return {"bytes": chosen.size, "age": found["age"], "label": chosen.label}


def judge(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with a restored cluster."""
    wrong = [f"check {one['sql']!r}: {one['reason']}" for one in found["checks"] if not one["ok"]]
    for name, words in (("indexes", "tables or indexes are damaged"), ("checksums", "pages are damaged")):
        if not found[name]["ok"]:
            wrong.append(f"{words}: {found[name]['reason']}")
    return wrong


ACTS: dict[str, Callable[[Config, str, str, dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(BACKUPS, make_backup),
    "verify": check_repository,
    "restore-test": test_restore,
}


def act(config: Config, kind: str, cluster: str) -> int:
    """Do it and note how it went."""
    path = config.place("state", f"{cluster}.{kind}.json")
    state = {**load(path), "cluster": cluster, "kind": kind.replace("-", "_"), "running": time.time()}
    dump(path, state)
    started = time.monotonic()
    reason = ""
    try:
        result = ACTS[kind](config, cluster, kind, state)
        state["success"] = {"at": time.time(), "seconds": round(time.monotonic() - started, 3), **result}
    except (pb.BackrestError, OSError) as error:
        reason = str(error)
        state["failure"] = {"at": time.time(), "reason": reason}
    del state["running"]
    state["reason"] = reason  # of the last run; empty when it was good
    dump(path, state)
    publish(config)
    if reason:
        print(f"{cluster}: {kind} failed: {reason}", file=sys.stderr)
    return int(bool(reason))


def ended(config: Config, kind: str, cluster: str) -> int:
    """After a run, however it ended: note a kill, leave nothing behind."""
    path = config.place("state", f"{cluster}.{kind}.json")
    state = load(path)
    if state.pop("running", None) is not None:
        words = f"it was stopped: {os.environ.get('SERVICE_RESULT', 'unknown')} {os.environ.get('EXIT_STATUS', '')}"
        state["failure"] = {"at": time.time(), "reason": words.strip()}
        state["reason"] = words.strip()
        dump(path, state)
        if kind == "restore-test":
            report(config, cluster, kind, {"ok": False, "reason": words.strip()})
    if kind == "restore-test":
        shutil.rmtree(config.place("restore-test", cluster), ignore_errors=True)
    publish(config)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    config = Config(**json.loads(CONFIG.read_text(encoding="utf-8")))
    words = list(arguments)
    after = words[:1] == ["ended"]
    kind, cluster = words[int(after) :]
    if kind not in KINDS or cluster not in config.clusters:
        print(f"unknown: {kind} {cluster}; clusters: {', '.join(sorted(config.clusters))}", file=sys.stderr)
        return 2

    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    return ended(config, kind, cluster) if after else act(config, kind, cluster)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
