# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs migrations of one database: dbmate applies and undoes files, psql asks and cleans up, squawk lints.

What is applied stands in the database itself, one table of dbmate's for each phase, ``causeway.migrations_<phase>``.
``causeway.migrations_run`` has a row for a phase from the beginning of a run until its end, so that the run after a
killed one knows where that one began and which file outside of a transaction it had in its hands.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from ansible_collections.causeway.platform.plugins.module_utils import migrations
from ansible_collections.causeway.platform.plugins.module_utils.migrations import Migration, MigrationError

SCHEMA = "causeway"
RUN = "migrations_run"
DEAD_CLIENT_CHECK = 1000  # milliseconds after which the server cancels the statement of a runner that was killed


@dataclass(frozen=True)
class Connection:
    """A database and who connects to it. ``host`` is a name, an address, or the directory of a unix socket."""

    host: str
    port: int
    name: str
    user: str
    sslmode: str = "verify-full"
    ca: str = ""
    cert: str = ""
    key: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}/{self.name}"

    def settings(self) -> dict[str, str]:
        """libpq's environment without the password; dbmate's driver reads the same."""
        values = {"HOST": self.host, "PORT": str(self.port), "DATABASE": self.name, "USER": self.user}
        values["SSLMODE"] = "disable" if self.host.startswith("/") else self.sslmode
        values.update({"SSLROOTCERT": self.ca, "SSLCERT": self.cert, "SSLKEY": self.key})
        return {f"PG{name}": value for name, value in values.items() if value}

    def url(self) -> str:
        """dbmate's URL, without the password."""
        options = {"sslmode": self.settings()["PGSSLMODE"], "connect_timeout": "10"}
        options.update({"sslrootcert": self.ca, "sslcert": self.cert, "sslkey": self.key})
        address = f"{self.host}:{self.port}"
        if self.host.startswith("/"):
            address = ""
            options.update({"host": self.host, "port": str(self.port)})
        elif ":" in self.host:
            address = f"[{self.host}]:{self.port}"
        query = urlencode({name: value for name, value in options.items() if value})
        return f"postgres://{quote(self.user, safe='')}@{address}/{quote(self.name, safe='')}?{query}"


@dataclass(frozen=True)
class Limits:
    """Seconds that one lock and one statement may take, how often a passing failure is tried again, and the pauses."""

    lock_timeout: float = 2.0
    statement_timeout: float = 60.0
    retries: int = 5
    backoff_base: float = 0.5
    backoff_max: float = 30.0
    batch_pause: float = 0.1


@dataclass(frozen=True)
class Programs:
    """Where the tools are."""

    dbmate: str = "dbmate"
    squawk: str = "squawk"
    psql: str = "psql"


@dataclass
class State:
    """What the database says: its version, what is applied in each phase, and the runs that have not ended."""

    server: int
    made_schema: bool
    tables: list[str]
    applied: dict[str, list[str]]
    runs: dict[str, dict[str, str]]


@dataclass
class Outcome:
    """What was done, or would be."""

    applied: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    closed: bool = False  # a run that was left open was closed
    retries: int = 0


def _die_with_parent() -> None:
    """The tool ends when the module is killed: the server then rolls its transaction back."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h


class Runner:
    """One run on one database. ``sleep`` and ``chance`` are for tests."""

    def __init__(
        self,
        service: str,
        connection: Connection,
        limits: Limits,
        programs: Programs,
        files: Mapping[str, Sequence[Migration]],
        *,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.service, self.connection, self.limits, self.programs = service, connection, limits, programs
        self.files = files
        self.sleep, self.chance = sleep, chance
        self.outcome = Outcome()

    # --- tools ---

    def environment(self) -> dict[str, str]:
        """The tools' environment: the password is there and never on a command line."""
        options = {
            "lock_timeout": round(self.limits.lock_timeout * 1000),
            "statement_timeout": round(self.limits.statement_timeout * 1000),
            "idle_in_transaction_session_timeout": 60000,
            "client_connection_check_interval": DEAD_CLIENT_CHECK,
            "client_min_messages": "warning",
        }
        return {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("PG", "DBMATE_", "DATABASE_"))
            },
            **self.connection.settings(),
            **({"PGPASSWORD": self.connection.password} if self.connection.password else {}),
            "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in options.items()),
            "PGAPPNAME": f"causeway-migration-{self.service}",
            "PGCONNECT_TIMEOUT": "10",
            "DATABASE_URL": self.connection.url(),
            "LC_ALL": "C.UTF-8",
        }

    def call(
        self, program: str, arguments: Sequence[str], stdin: str = "", cwd: str | None = None
    ) -> tuple[int, str, str]:
        """Run a tool: its code, output and errors, of which the password was taken out."""
        try:
            done = subprocess.run(
                [program, *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                env=self.environment(),
                cwd=cwd,
                check=False,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise MigrationError(
                f"{program} cannot be run: {error.strerror}; the role migrations installs it"
            ) from error
        secret = self.connection.password
        out, errors = (text.replace(secret, "***") if secret else text for text in (done.stdout, done.stderr))
        return done.returncode, out, errors

    def retried(
        self, what: str, work: Callable[[], tuple[int, str, str]], mend: Callable[[], None] | None = None
    ) -> str:
        """Do it, and again after a pause when it failed for a passing reason; ``mend`` goes before each repetition.

        Returns its output; raises MigrationError.
        """
        waits = migrations.pauses(self.limits.retries, self.limits.backoff_base, self.limits.backoff_max, self.chance)
        for number in range(len(waits) + 1):
            code, out, errors = work()
            if code == 0:
                return out
            text = " ".join(line.strip() for line in errors.splitlines() if line.strip()) or f"exit code {code}"
            text = text[7:] if text.startswith("Error: ") else text
            passing = migrations.transient(text)
            if not passing or number == len(waits):
                tried = f" (tried {number + 1} times)" if number else ""
                raise MigrationError(f"{what}: {text[:1500]}{tried}")
            self.outcome.retries += 1
            self.sleep(waits[number])
            if mend is not None:
                mend()
        raise AssertionError("unreachable")

    def sql(self, what: str, text: str, single: bool = True) -> str:
        """Run SQL with psql, as one transaction or statement by statement; returns what it printed."""
        arguments = ["--no-psqlrc", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose"]
        if single:
            arguments += ["--quiet", "--single-transaction"]
        return self.retried(what, lambda: self.call(self.programs.psql, [*arguments, "--file=-"], stdin=text))

    @contextlib.contextmanager
    def staged(self, phase: str, until: str) -> Iterator[str]:
        """A directory with the phase's files up to a version, so that dbmate applies one at a time."""
        folder = tempfile.mkdtemp(prefix="causeway-migrations-")
        try:
            for one in self.files[phase]:
                if one.version <= until:
                    (Path(folder) / one.file).write_text(one.content, encoding="utf-8")
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def dbmate(self, phase: str, folder: str, *verb: str) -> tuple[int, str, str]:
        table = f"{SCHEMA}.migrations_{phase}"
        options = ["--migrations-dir", folder, "--migrations-table", table, "--no-dump-schema"]
        locking = ["--migration-lock", "--migration-lock-timeout", "30s"]
        # Its own directory as current one: dbmate reads a file .env of where it is.
        return self.call(self.programs.dbmate, [*options, *locking, *verb], cwd=folder)

    # --- what is ---

    def state(self) -> State:
        """Ask the database; changes nothing."""
        found = json.loads(
            self.sql(
                f"database {self.connection}",
                "SELECT json_build_object('server', current_setting('server_version_num')::int, 'schema', EXISTS "
                f"(SELECT FROM pg_namespace WHERE nspname = '{SCHEMA}'), 'tables', (SELECT coalesce(json_agg(relname), "
                f"'[]') FROM pg_class WHERE relkind = 'r' AND relnamespace = (SELECT oid FROM pg_namespace WHERE "
                f"nspname = '{SCHEMA}')));",
            )
        )
        parts = [
            f"'{phase}', (SELECT coalesce(json_agg(version ORDER BY version), '[]') FROM {SCHEMA}.migrations_{phase})"
            for phase in migrations.PHASES
            if f"migrations_{phase}" in found["tables"]
        ]
        if RUN in found["tables"]:
            parts.append(f"'runs', (SELECT coalesce(json_agg(r), '[]') FROM {SCHEMA}.{RUN} r)")
        more: dict[str, Any] = {}
        if parts:
            more = json.loads(self.sql("what is applied", f"SELECT json_build_object({', '.join(parts)});"))
        return State(
            server=found["server"],
            made_schema=not found["schema"],
            tables=found["tables"],
            applied={phase: more.get(phase, []) for phase in migrations.PHASES},
            runs={one["phase"]: one for one in more.get("runs", [])},
        )

    def plan(self, phase: str, state: State) -> list[Migration]:
        """What is pending in the phase; raises MigrationError when it may not run."""
        waiting = {name: migrations.pending(self.files[name], state.applied[name]) for name in migrations.PHASES}
        migrations.check_order(phase, waiting)
        return waiting[phase]

    def lint(self, files: Sequence[Migration], server: int, exclude: Sequence[str]) -> None:
        """Raises MigrationError with every finding; nothing has changed by then."""
        found: list[str] = []
        with tempfile.TemporaryDirectory(prefix="causeway-lint-") as folder:
            for transaction in (True, False):
                chosen = [one for one in files if one.transaction is transaction]
                places = {}
                for one in chosen:
                    path = Path(folder) / one.file
                    places[str(path)] = one.place
                    path.write_text(migrations.lintable(one), encoding="utf-8")
                if not chosen:
                    continue
                rules = migrations.excluded_rules(chosen[0].phase, exclude)
                options = ["--reporter=json", f"--pg-version={server // 10000}.{server % 10000}"]
                options += [f"--exclude={rule}" for rule in rules]
                options += ["--assume-in-transaction"] if transaction else []
                code, out, errors = self.call(self.programs.squawk, [*options, *places], cwd=folder)
                try:
                    reports = json.loads(out)
                except ValueError:
                    raise MigrationError(f"squawk failed (exit code {code}): {(errors or out).strip()[:500]}") from None
                found += migrations.findings(places, reports)
        if found:
            raise MigrationError(
                f"unsafe SQL, nothing was changed: {'; '.join(found)} (a line '-- squawk-ignore <rule>' above a "
                "statement allows what you know to be safe)"
            )

    # --- what is done ---

    def begin(self, phase: str, state: State) -> str:
        """Note where the run begins; returns the version before it, the killed run's if there was one."""
        if phase in state.runs:
            return state.runs[phase]["base"]
        base = max(state.applied[phase], default="")
        steps = [f"CREATE SCHEMA {SCHEMA};"] if state.made_schema else []
        if RUN not in state.tables:
            steps.append(
                f"CREATE TABLE {SCHEMA}.{RUN} (phase text PRIMARY KEY, base text NOT NULL, attempting text NOT NULL "
                "DEFAULT '', made_schema boolean NOT NULL, started timestamptz NOT NULL DEFAULT now());"
            )
        values = f"'{phase}', '{base}', {str(state.made_schema).lower()}"
        steps.append(f"INSERT INTO {SCHEMA}.{RUN} (phase, base, made_schema) VALUES ({values});")
        self.sql("the note that a run begins", "\n".join(steps))
        return base

    def note(self, phase: str, version: str) -> None:
        """Which file outside of a transaction is in work."""
        self.sql("the note of a file", f"UPDATE {SCHEMA}.{RUN} SET attempting = '{version}' WHERE phase = '{phase}';")

    def close(self, phase: str) -> None:
        """The run has ended."""
        self.sql("the note that a run ends", f"DELETE FROM {SCHEMA}.{RUN} WHERE phase = '{phase}';")

    def clean(self, one: Migration) -> None:
        """Remove what a broken-off file outside of a transaction left, such as an invalid index."""
        if one.down:
            self.sql(f"{one.place}: removing what it left", one.down, single=False)

    def batches(self, one: Migration) -> None:
        """Repeat a batch, each in its own transaction, until it changes no row."""
        while migrations.affected(self.sql(one.place, one.up, single=False)):
            self.sleep(self.limits.batch_pause)

    def apply_one(self, one: Migration, broken: str) -> None:
        """Apply one file and have dbmate note it; ``broken`` is the file that a killed run had in its hands."""
        mend = None
        if not one.transaction:
            mend = functools.partial(self.clean, one)
            if broken == one.version:
                mend()
            self.note(one.phase, one.version)
        if one.batch:
            self.batches(one)
        with self.staged(one.phase, one.version) as folder:
            self.retried(one.place, lambda: self.dbmate(one.phase, folder, "migrate", "--strict"), mend)
        if not one.transaction:
            self.note(one.phase, "")
        self.outcome.applied.append(one.file)

    def undo_to(self, phase: str, base: str) -> None:
        """Undo what is above ``base``, the newest first, and close the run. On an error the run stays open."""
        while True:
            state = self.state()
            applied, broken = state.applied[phase], state.runs.get(phase, {}).get("attempting")
            if broken and broken not in applied:
                for one in self.files[phase]:
                    if one.version == broken:
                        self.clean(one)
                self.note(phase, "")
            last = max(applied, default="")
            if last <= base:
                break
            file = next((one for one in self.files[phase] if one.version == last), None)
            if file is None:
                raise MigrationError(f"{phase}: version {last} is applied, but its file is not there to undo it")
            with self.staged(phase, last) as folder:
                self.retried(f"{file.place}: undo", functools.partial(self.dbmate, phase, folder, "rollback"))
            self.outcome.undone.append(file.file)
        self.forget(phase)

    def forget(self, phase: str) -> None:
        """Close the run; where it was the first of all, leave nothing behind."""
        state = self.state()
        made = str(state.runs.get(phase, {}).get("made_schema", "")).lower() == "true"
        self.close(phase)
        empty = not any(state.applied.values()) and set(state.runs) <= {phase}
        ours = {RUN, *(f"migrations_{name}" for name in migrations.PHASES)}
        if made and empty and set(state.tables) <= ours:
            steps = [f"DROP TABLE {SCHEMA}.{table};" for table in state.tables]
            self.sql("tidying up", "\n".join([*steps, f"DROP SCHEMA {SCHEMA};"]))

    # --- verbs ---

    def apply(self, phase: str, *, check: bool, keep: bool = True, exclude: Sequence[str] = ()) -> Outcome:
        """Apply what is pending in a phase.

        An expand that fails is undone as a whole, back to where it began, also by a run that was killed in between.
        The other phases keep what they finished and go on with the next run. ``keep`` false leaves an expand open, so
        that :meth:`undo` takes it back.
        """
        state = self.state()
        todo = self.plan(phase, state)
        self.lint(todo, state.server, exclude)
        self.outcome.pending = [one.file for one in todo]
        self.outcome.closed = not todo and keep and phase in state.runs
        if check:
            return self.outcome
        if not todo:
            if self.outcome.closed:
                self.close(phase)
            return self.outcome
        base = self.begin(phase, state)
        broken = state.runs.get(phase, {}).get("attempting", "")
        try:
            for one in todo:
                self.apply_one(one, broken)
                self.outcome.pending.remove(one.file)
        except MigrationError as error:
            raise MigrationError(f"{error}; {self.give_up(phase, base)}") from error
        if keep:
            self.close(phase)
        return self.outcome

    def give_up(self, phase: str, base: str) -> str:
        """After a failure: undo an expand, and say in what state the schema is."""
        if phase != "expand":
            done = ", ".join(self.outcome.applied) or "nothing"
            return f"applied before it: {done}; run it again to go on"
        try:
            self.undo_to(phase, base)
        except MigrationError as error:
            return f"AND THE EXPAND COULD NOT BE UNDONE ({error}): the schema is between two states, run it again"
        return "the schema is as it was before the expand"

    def undo(self, phase: str, *, check: bool) -> Outcome:
        """Take back an expand that was left open; nothing without one."""
        state = self.state()
        if phase not in state.runs:
            return self.outcome
        base = state.runs[phase]["base"]
        names = {one.version: one.file for one in self.files[phase]}
        above = [version for version in state.applied[phase] if version > base]
        if check:
            self.outcome.undone = [names.get(version, version) for version in reversed(above)]
            self.outcome.closed = True
            return self.outcome
        self.undo_to(phase, base)
        self.outcome.closed = True
        return self.outcome
