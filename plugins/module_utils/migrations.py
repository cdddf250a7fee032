# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations of a service's database: what a file says, what is to be done, and what is refused. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable

PHASES = ("expand", "backfill", "contract")
FILE = re.compile(r"([0-9]{14})_[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\.sql\Z")
FILE_TEXT = "<14 digits>_<name>.sql, such as 20261122093000_add_email.sql"
MAX_FILE = 256 << 10
MAX_FILES = 2 << 20  # all files of a service together

_MARK = re.compile(r"^--\s*migrate:(up|down)\b(.*)$")
_BATCH = re.compile(r"^--\s*causeway:batch\s*$", re.MULTILINE)
_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_CONCURRENTLY = re.compile(r"\bINDEX\s+CONCURRENTLY\b", re.IGNORECASE)
_OPTIONS = {"": True, "transaction:true": True, "transaction:false": False}

# SQLSTATEs after which the same file may succeed a moment later: lock timeout, serialization failure, deadlock, too
# many connections, server going down or starting, class 08 (connection). Appendix A of PostgreSQL's manual.
_TRANSIENT = re.compile(r"\b(?:55P03|40001|40P01|53300|57P01|57P02|57P03|08[0-9A-Z]{3})\b")
_UNREACHABLE = re.compile(
    r"connection refused|connection reset|broken pipe|i/o timeout|timeout expired|no route to host|\bEOF\b"
    r"|unexpectedly closed|the database system is (?:starting up|shutting down|in recovery)|bad connection",
    re.IGNORECASE,
)


class MigrationError(Exception):
    """A migration cannot run or has failed; the message says which, why, and in what state the schema is."""


@dataclass(frozen=True)
class Migration:
    """One file. ``up`` and ``down`` are SQL; ``up_line`` is the number of the file's line on which ``up`` begins."""

    phase: str
    file: str
    content: str
    up: str
    up_line: int
    down: str
    transaction: bool
    batch: bool

    @property
    def version(self) -> str:
        return self.file[:14]

    @property
    def place(self) -> str:
        return f"{self.phase}/{self.file}"


def code_of(sql: str) -> str:
    """SQL without comments and space around it. Good enough to see whether there is any, not to parse."""
    return _COMMENTS.sub(" ", sql).strip()


def check_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """What is wrong with the files of one phase: ``(file, what, allowed)``."""
    problems: list[tuple[str, str, str]] = []
    seen: dict[str, str] = {}
    for name in sorted(names):
        match = FILE.match(name)
        if not match:
            problems.append((name, "a bad name for a migration", FILE_TEXT))
        elif match.group(1) in seen:
            problems.append((name, f"the same version as {seen[match.group(1)]}", "each version once in a phase"))
        else:
            seen[match.group(1)] = name
    return problems


def parse(phase: str, file: str, content: str) -> Migration:
    """One file in dbmate's format; raises MigrationError with place, mistake and what is allowed."""
    place = f"{phase}/{file}"
    for name, what, may in check_names([file]):
        raise MigrationError(f"{phase}/{name}: {what} (allowed: {may})")
    if len(content.encode()) > MAX_FILE or "\x00" in content:
        raise MigrationError(f"{place}: too large or not text (allowed: at most {MAX_FILE >> 10} KiB of UTF-8 text)")
    lines = content.splitlines()
    marks = [(number, _MARK.match(line)) for number, line in enumerate(lines)]
    found = [(number, match.group(1), match.group(2).strip()) for number, match in marks if match]
    if [kind for _number, kind, _options in found] not in (["up"], ["up", "down"]):
        raise MigrationError(f"{place}: needs the line '-- migrate:up' once, then at most one '-- migrate:down'")
    for number, kind, options in found:
        if options not in _OPTIONS:
            raise MigrationError(
                f"{place}:{number + 1}: unknown option {options!r} of migrate:{kind} (allowed: transaction:false)"
            )
    begin, end = found[0][0], found[1][0] if len(found) > 1 else len(lines)
    if code_of("\n".join(lines[:begin])):
        raise MigrationError(f"{place}: SQL before '-- migrate:up' would never run")
    up, down = "\n".join(lines[begin + 1 : end]), "\n".join(lines[end + 1 :])
    result = Migration(
        phase=phase,
        file=file,
        # dbmate wants both marks, even with nothing behind the second.
        content=content if len(found) > 1 else content.rstrip() + "\n\n-- migrate:down\n",
        up=up,
        up_line=begin + 2,
        down=down if code_of(down) else "",
        transaction=_OPTIONS[found[0][2]],
        batch=bool(_BATCH.search(up)),
    )
    _check(result, _OPTIONS[found[1][2]] if len(found) > 1 else True)
    return result


def _check(one: Migration, down_transaction: bool) -> None:
    if not code_of(one.up):
        raise MigrationError(f"{one.place}: there is no SQL after '-- migrate:up'")
    for sql, transaction, mark in ((one.up, one.transaction, "up"), (one.down, down_transaction, "down")):
        if transaction and _CONCURRENTLY.search(code_of(sql)):
            raise MigrationError(
                f"{one.place}: INDEX CONCURRENTLY cannot run inside a transaction; write "
                f"'-- migrate:{mark} transaction:false', with this as the only statement"
            )
    if one.phase == "expand" and not one.down:
        raise MigrationError(
            f"{one.place}: an expand needs SQL after '-- migrate:down', or a failed one could not be undone"
        )
    if one.batch and (one.phase != "backfill" or not one.transaction):
        raise MigrationError(f"{one.place}: '-- causeway:batch' is for backfills in transactions only")


def parse_all(files: Mapping[str, Mapping[str, str]]) -> dict[str, list[Migration]]:
    """All files (phase, then name, then content) in the order of their versions; raises MigrationError."""
    unknown = sorted(set(files) - set(PHASES))
    if unknown:
        raise MigrationError(f"unknown phase {unknown[0]!r} (allowed: {', '.join(PHASES)})")
    if sum(len(text) for contents in files.values() for text in contents.values()) > MAX_FILES:
        raise MigrationError(f"the files are too large together (allowed: {MAX_FILES >> 20} MiB)")
    result = {}
    for phase in PHASES:
        contents = files.get(phase) or {}
        for name, what, may in check_names(contents):
            raise MigrationError(f"{phase}/{name}: {what} (allowed: {may})")
        result[phase] = [parse(phase, name, contents[name]) for name in sorted(contents)]
    return result


def pending(files: Sequence[Migration], applied: Iterable[str]) -> list[Migration]:
    """What is still to be applied, in order; raises MigrationError for a file that came too late to be in order."""
    done = set(applied)
    result = [one for one in files if one.version not in done]
    last = max(done, default="")
    late = [one.place for one in result if one.version < last]
    if late:
        raise MigrationError(
            f"{late[0]}: its version is below {last}, which is applied already; give it a version above that"
        )
    return result


def check_order(phase: str, open_files: Mapping[str, Sequence[Migration]]) -> None:
    """Raises MigrationError while an earlier phase is not finished; ``open_files`` are the pending ones by phase."""
    for earlier in PHASES[: PHASES.index(phase)]:
        names = [one.file for one in open_files.get(earlier) or ()]
        if names:
            raise MigrationError(f"{phase}: {earlier} is not finished, pending: {', '.join(names)}; run it first")


def transient(text: str) -> bool:
    """Whether the same may succeed a moment later, by what dbmate or psql printed."""
    return bool(_TRANSIENT.search(text) or _UNREACHABLE.search(text))


def pauses(retries: int, base: float, limit: float, random: Callable[[], float]) -> list[float]:
    """Seconds before each retry: doubled each time up to ``limit``, of which a random half is taken away."""
    return [min(limit, base * 2**number) * (0.5 + random() / 2) for number in range(retries)]


def affected(text: str) -> int:
    """Rows that a batch changed, by the last command tag that psql printed; raises MigrationError without one."""
    tags = re.findall(r"^(?:UPDATE|DELETE|MERGE|INSERT [0-9]+) ([0-9]+)$", text, re.MULTILINE)
    if not tags:
        raise MigrationError("a batch must end with an INSERT, UPDATE, DELETE or MERGE, whose rows are counted")
    return int(tags[-1])


# --- the linter -------------------------------------------------------------------------------------------------

# The runner sets both timeouts itself, and removes what a broken-off file left before it tries again.
SET_BY_RUNNER = ("require-timeout-settings", "require-lock-timeout", "require-statement-timeout", "prefer-robust-stmts")
# To take away is what a contract is for.
CONTRACT_MAY = ("ban-drop-column", "ban-drop-table")


def excluded_rules(phase: str, exclude: Iterable[str]) -> list[str]:
    """Names of squawk's rules that do not count."""
    return sorted({*SET_BY_RUNNER, *(CONTRACT_MAY if phase == "contract" else ()), *exclude})


def lintable(one: Migration) -> str:
    """The file's ``up`` alone, with each line where it is in the file."""
    return "\n" * (one.up_line - 1) + one.up + "\n"


def findings(places: Mapping[str, str], reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """What squawk found, a line each; ``places`` maps the linted files to names that a reader knows."""
    result = []
    for one in reports:
        name = places.get(str(one["file"]), str(one["file"]))
        text = " ".join(str(part).strip() for part in (one["message"], one.get("help")) if part)
        result.append(f"{name}:{int(one['line']) + 1}: {one['rule_name']}: {text}")
    return list(dict.fromkeys(result))


# --- the contract -----------------------------------------------------------------------------------------------

_ENDED = ("settled", "rolled back", "aborted")


def _seconds(text: Any) -> float:
    """RFC 3339 in UTC as a Unix time; raises ValueError."""
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()


def contract_refusals(
    known: Mapping[str, Any],
    version: str,
    *,
    placed: Iterable[str],
    window: float,
    now: float,
    first_version: str = "",
    owner: str = "",
) -> list[str]:
    """Why a contract for ``version`` may not run now, in sentences; empty when it may.

    ``known`` is what the registry knows of the service (an entry of registry_info's ``services``), ``placed`` the ids
    of the instances that the description places, ``window`` the rollback window in seconds, ``now`` a Unix time,
    ``first_version`` the description's version, live as long as nothing was released, and ``owner`` the holder of the
    service's lock who may hold it. A contract takes away what older versions need, so every doubt is a refusal.
    """
    record = known.get("release") or {}
    release = record.get("release") or {}
    lock = known.get("lock") or {}
    current = str(record.get("current") or first_version)
    reasons = []
    if not version:
        reasons.append("no version is named: say which one no longer needs what the contract removes")
    elif version != current:
        reasons.append(f"version {version} is not the live one, {current or 'nothing'} is")
    if lock and lock.get("owner") != owner:
        reasons.append(f"the service is locked by {lock.get('owner')} ({lock.get('purpose') or 'no purpose given'})")
    if release and release.get("state") not in _ENDED:
        reasons.append(f"the release of {release.get('version')} is under way, in state {release.get('state')}")
    elif record.get("state") not in (None, "", "live"):
        reasons.append(f"the last release did not end well: {record.get('state')}")
    instances = known.get("instances") or ()
    others = sorted(f"{one['instance']} ({one['version']})" for one in instances if one["version"] != version)
    if others:
        reasons.append(f"another version is registered: {', '.join(others)}")
    silent = sorted(set(placed) - {str(one["instance"]) for one in instances})
    if silent:
        reasons.append(f"not registered, so of unknown version: {', '.join(silent)}")
    try:
        left = window_opened(record) + window - now
    except ValueError:
        reasons.append("the release record has a time that cannot be read, so the rollback window may be open")
    else:
        if left > 0:
            reasons.append(f"the rollback window is open for another {math.ceil(left)} s")
    return reasons


def window_opened(record: Mapping[str, Any]) -> float:
    """When the rollback window of the last release opened: its promotion, else its end. A Unix time, far in the past
    when nothing was ever released; raises ValueError for a time that cannot be read.
    """
    release = record.get("release") or {}
    promoted = [one["at"] for one in release.get("transitions") or () if one.get("to") == "promoted"]
    # A release without a promotion opens the window with its end, as does one of which only the history knows.
    times = promoted[-1:] or ([release["changed"]] if release.get("changed") else [])
    for one in record.get("history") or ():
        if one.get("finished") and (one.get("version"), one.get("started")) != (
            release.get("version"),
            release.get("started"),
        ):
            times.append(one["finished"])
    return max((_seconds(text) for text in times), default=-math.inf)
