# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the steps behind the make targets, tells how far they are, and counts what they proved.

    run.py demo                 the whole demonstration
    run.py test                 every check; run.py lint, unit, sanity, importer, molecule run a part
    run.py molecule --scenario NAME

Each step's output goes to .cache/logs/<step>.log and is shown when the step fails. A step that runs out of time is
stopped and counts as failed. The last line of the checks is "N passed, M failed".
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
LOGS = CACHE / "logs"
RESULTS = CACHE / "results"
VENV = ROOT / ".venv"
HEARTBEAT = 30.0  # seconds between signs of life where the output is no terminal
TAIL = 40  # lines shown of a failed step
SAID = 500  # characters shown of what a failed test said
TERMINATE = 60.0  # seconds that a stopped step may take to clean up

Count = tuple[int, int]  # passed, failed


@dataclass(frozen=True)
class Step:
    """One command; ``seconds`` bounds it, ``count`` turns its log and return code into numbers of passed and failed."""

    name: str
    title: str
    argv: tuple[str, ...]
    seconds: int = 600
    count: Callable[[str, int], Count] = lambda _log, code: (int(code == 0), int(code != 0))
    reports: str = ""  # JUnit reports that it writes: gone before it begins, and read for the names of failed cases
    show: str = ""  # a file that the step leaves for people to read
    beside: bool = False  # goes on while the next steps run, up to one that measures time
    alone: bool = False  # measures time: nothing else may run


def junit(pattern: str, skips_fail: bool = False) -> Callable[[str, int], Count]:
    """Count the cases in JUnit reports; a step that failed without a failed case counts as one failure.

    With ``skips_fail`` a skipped case counts as failed: everything that the tests need is installed before.
    """

    def count(_log: str, code: int) -> Count:
        passed = failed = 0
        for path in sorted(RESULTS.glob(pattern)):
            for suite in ElementTree.parse(path).getroot().iter("testsuite"):
                bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
                skipped = int(suite.get("skipped", 0))
                passed += int(suite.get("tests", 0)) - skipped - bad
                failed += bad + (skipped if skips_fail else 0)
        return passed, failed or int(code != 0)

    return count


def failed_cases(pattern: str) -> list[str]:
    """Each failed case of JUnit reports in one line: where, and the beginning and end of what it said."""
    found = []
    for path in sorted(RESULTS.glob(pattern)):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            for one in (*case.findall("failure"), *case.findall("error")):
                said = " ".join((one.get("message") or one.text or "").split())
                short = said if len(said) <= SAID else f"{said[: SAID // 3]} ... {said[-SAID * 2 // 3 :]}"
                found.append(f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}: {short}")
    return found


def sanity_counts(log: str, code: int) -> Count:
    """Count the tests of ansible-test: each announces itself, the failed ones are listed at the end."""
    ran = len(re.findall(r'^Running sanity test "', log, re.MULTILINE))
    listed = re.search(r"The (\d+) sanity test\(s\) listed below", log)
    failed = int(listed.group(1)) if listed else int(code != 0)
    return max(0, ran - failed), failed


def molecule_counts(log: str, code: int) -> Count:
    """Count the acceptance tests of all scenarios and each action that Molecule ran."""
    passed, failed = junit("acceptance-*.xml")(log, 0)
    actions = len(re.findall(r"Executed: Successful", log))
    return passed + actions, failed or int(code != 0)


def tool(name: str, *arguments: str) -> tuple[str, ...]:
    """The command of a tool in the checkout's own environment."""
    return (str(VENV / "bin" / name), *arguments)


def play(name: str, *arguments: str, inventory: str = "inventories/lab/platform.yml") -> tuple[str, ...]:
    """The command that runs a playbook of the collection."""
    return tool("ansible-playbook", "-i", inventory, f"playbooks/{name}.yml", *arguments)


def setup(*arguments: str) -> tuple[str, ...]:
    """A command of setup.sh."""
    return ("tools/setup.sh", *arguments)


RUNTIME = Step("venv", "Prepare this machine (Python environment)", setup("venv", ".venv", "requirements.txt"), 900)
LINK = Step("link", "Link the checkout as a collection", setup("link"), 10)


def demo() -> list[Step]:
    """The demonstration, from nothing to a released service."""
    secrets = CACHE / "lab" / "secrets.yml"
    return [
        Step("packages", "Prepare this machine (packages)", setup("packages", "lab"), 600),
        RUNTIME,
        LINK,
        Step(
            "secrets",
            "Make the platform's secrets",
            play("secrets_init", "-e", f"secrets_file={secrets}", inventory="localhost,"),
        ),
        Step("images", "Build the demo services' images", play("images_build", inventory="localhost,"), 900),
        Step("lab_up", "Start the hosts of the lab", play("lab_up"), 900),
        Step("site", "Bring the platform up (playbooks/site.yml)", play("site"), 1500),
        Step("demo", "Send traffic and release under it", play("demo"), 900, show=".cache/demo/summary.txt"),
    ]


def lint() -> list[Step]:
    """Checks of the text."""
    listed = subprocess.run(
        ["git", "ls-files", "*.sh", ".ci/run", "roles/lab/files/lab-init"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    shell = tuple(name for name in listed.stdout.split() if (ROOT / name).exists())
    return [
        Step("ansible-lint", "ansible-lint, production profile", tool("ansible-lint", "--offline", "--nocolor"), 900),
        Step("yamllint", "yamllint", tool("yamllint", "--strict", "."), 120),
        Step("ruff", "ruff check", tool("ruff", "check", "."), 120),
        Step("ruff-format", "ruff format", tool("ruff", "format", "--check", "."), 120),
        Step("mypy", "mypy", tool("mypy", "plugins", "roles/node_agent/files/causeway_agent", "tools/run.py"), 600),
        Step("shellcheck", "shellcheck", ("shellcheck", *shell), 120),
    ]


def sanity() -> list[Step]:
    """ansible-test on a clean copy."""
    argv = ("nice", "-n", "10", "tools/sanity.sh")
    return [Step("sanity", "ansible-test sanity", argv, 1500, sanity_counts, beside=True)]


# Folders of unit tests that start database servers. They mostly wait, as the others do, and share no port with them.
DATABASES = (
    "database_advise",
    "demo",
    "ledger",
    "migrations",
    "object_storage",
    "pgbackrest",
    "pgbouncer",
    "postgresql",
    "postgresql_objects",
    "tenants",
)


def unit() -> list[Step]:
    """Unit tests, those with databases beside all others."""
    folders = sorted(path for path in (ROOT / "tests/unit").iterdir() if path.is_dir() and path.name[0].isalpha())
    mine = [str(path.relative_to(ROOT)) for path in folders if path.name in DATABASES]
    rest = [str(path.relative_to(ROOT)) for path in folders if path.name not in DATABASES]
    steps = (("unit-databases", "unit tests with databases", mine), ("unit", "unit tests", rest))
    return [
        Step(
            name,
            title,
            tool("pytest", f"--junitxml={RESULTS / f'{name}.xml'}", "-rs", "-p", "no:cacheprovider", *folders),
            900,
            junit(f"{name}.xml", skips_fail=True),
            reports=f"{name}.xml",
            beside=name != "unit",
        )
        for name, title, folders in steps
    ]


def importer() -> list[Step]:
    """What the collection importer of a Galaxy server says."""
    return [Step("importer", "galaxy-importer", ("tools/importer.sh",), 600, beside=True)]


def molecule(scenario: str = "") -> list[Step]:
    """Molecule scenarios; without a name all of them, one after another on one lab."""
    secrets = CACHE / "ci" / "secrets.yml"
    which = ("--scenario-name", scenario) if scenario else ("--all",)
    return [
        Step(
            "ci-secrets",
            "make secrets for Molecule",
            play("secrets_init", "-e", f"secrets_file={secrets}", inventory="localhost,"),
        ),
        Step("ci-images", "build the demo services' images", play("images_build", inventory="localhost,"), 900),
        Step(
            "molecule",
            f"Molecule scenarios ({scenario or 'all'})",
            tool("molecule", "test", *which),
            3200,
            molecule_counts,
            reports="acceptance-*.xml",
            alone=True,
        ),
    ]


@dataclass(frozen=True)
class Begun:
    """A step that was started; without a process there is no such command."""

    step: Step
    log: Path
    label: str
    process: subprocess.Popen[bytes] | None
    at: float = field(default_factory=time.monotonic)


@dataclass
class Runner:
    """Runs steps and keeps the tally."""

    started: float = field(default_factory=time.monotonic)
    passed: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)  # failed ones, a line each

    def environment(self) -> dict[str, str]:
        """The environment of all steps: the checkout's tools first, no colours, no questions."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))}
        return {
            **keep,
            "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "NO_COLOR": "1",
            "MOLECULE_COMMAND_BORDERS": "false",
            "COLUMNS": "160",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CAUSEWAY_RESULTS": str(RESULTS),
            "CAUSEWAY_PKILINT": str(CACHE / "venvs" / "tls" / "bin"),
            "CAUSEWAY_SSLYZE": str(CACHE / "venvs" / "tls" / "bin" / "sslyze"),
        }

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        """End a step and what it started: it may clean up first, then the whole group is killed."""
        for number, patience in ((signal.SIGINT, TERMINATE), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(process.pid, number)
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    def wait(self, step: Step, process: subprocess.Popen[bytes], log: Path, label: str) -> int:
        """Wait for a step and show what it is at; returns its code, 124 when it ran out of time."""
        begun = last = time.monotonic()
        terminal = sys.stdout.isatty()
        while True:
            try:
                return process.wait(1 if terminal else 0.2)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if now - begun > step.seconds:
                self.stop(process)
                with log.open("a") as file:
                    file.write(f"\nstopped: it did not end within {step.seconds} s\n")
                return 124
            if terminal or now - last >= HEARTBEAT:
                last = now
                tasks = re.findall(r"^(?:TASK|PLAY|RUNNING HANDLER) \[(.*)\]", tail_of(log, 20000), re.MULTILINE)
                doing = (tasks[-1] if tasks else "")[:70]
                text = f"{label} ... {now - begun:4.0f} s  {doing}"
                print(f"\r\033[K{text[:110]}" if terminal else text, end="" if terminal else "\n", flush=True)

    def start(self, step: Step, log: Path) -> subprocess.Popen[bytes] | None:
        """Start a step; `None` when there is no such command, which the log then says."""
        with log.open("wb") as output:
            try:
                return subprocess.Popen(
                    step.argv,
                    cwd=ROOT,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                output.write(f"{step.argv[0]}: {error.strerror}\n".encode())
                return None

    def finish(self, begun: Begun) -> bool:
        """Wait for a step and tell how it ended; returns whether it succeeded."""
        step, log, label = begun.step, begun.log, begun.label
        code = 127 if begun.process is None else self.wait(step, begun.process, log, label)
        passed, failed = step.count(log.read_text(errors="replace"), code)
        self.passed += passed
        self.failed += failed
        seconds = time.monotonic() - begun.at
        word = "ok" if failed == 0 else "FAILED"
        counted = f", {passed} passed" + (f", {failed} failed" if failed else "") if passed + failed > 1 else ""
        print(("\r\033[K" if sys.stdout.isatty() else "") + f"{label}: {word}, {seconds:.0f} s{counted}", flush=True)
        if failed:
            self.failures.append(step.title)
            self.cases += failed_cases(step.reports) if step.reports else []
            print(indent(last_lines(log, TAIL)) + f"\n    full output: {log.relative_to(ROOT)}", flush=True)
        if step.show and (ROOT / step.show).exists():
            print("\n" + (ROOT / step.show).read_text().rstrip() + "\n", flush=True)
        return failed == 0

    def run(self, steps: list[Step], keep_going: bool) -> bool:
        """Run the steps in order; returns whether all succeeded. Without ``keep_going`` the first failure ends it."""
        LOGS.mkdir(parents=True, exist_ok=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        ok = True
        running: list[Begun] = []
        try:
            for number, step in enumerate(steps, start=1):
                while step.alone and running:
                    ok = self.finish(running[0]) and ok
                    running.pop(0)
                for report in RESULTS.glob(step.reports) if step.reports else ():
                    report.unlink()
                log = LOGS / f"{step.name}.log"
                begun = Begun(step, log, f"[{number:2}/{len(steps)}] {step.title}", self.start(step, log))
                running.append(begun)
                if step.beside:
                    continue
                if sys.stdout.isatty():
                    print(begun.label, end="", flush=True)
                ok = self.finish(begun) and ok
                running.remove(begun)
                if not ok and not keep_going:
                    return False
            while running:
                ok = self.finish(running[0]) and ok
                running.pop(0)
        finally:  # also after Ctrl-C and SIGTERM: nothing may stay behind
            for begun in running:
                if begun.process:
                    self.stop(begun.process)
        return ok

    @property
    def total(self) -> str:
        """Time since the start in minutes and seconds."""
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60} min {seconds % 60:02} s"


def tail_of(path: Path, size: int) -> str:
    """The last bytes of a file as text."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


def last_lines(path: Path, number: int) -> str:
    """The last lines of a file."""
    return "\n".join(tail_of(path, 200 * number).splitlines()[-number:])


def indent(text: str) -> str:
    """The text, set off from what the runner says itself."""
    return "\n".join(f"    | {line}" for line in text.splitlines())


def interrupted(_signal: int, _frame: object) -> None:
    """Turn SIGTERM into the exception that ends a step properly."""
    raise KeyboardInterrupt


def main() -> int:
    """Run what the command line asks for."""
    parts: dict[str, Callable[[], list[Step]]] = {
        "sanity": sanity,
        "importer": importer,
        "lint": lint,
        "unit": unit,
        "molecule": molecule,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["demo", "test", *parts], nargs="+")
    parser.add_argument("--scenario", default="", help="one Molecule scenario")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    runner = Runner()
    try:
        if options.what == ["demo"]:
            done = runner.run(demo(), keep_going=False)
            word = "done" if done else "stopped"
            print(f"{word} after {runner.total}; run it again at any time, logs are in .cache/logs")
            return 0 if done else 1
        wanted = list(parts) if "test" in options.what else options.what
        steps = [
            step for name in wanted for step in (molecule(options.scenario) if name == "molecule" else parts[name]())
        ]
        runner.run(steps, keep_going=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted after {runner.total}; run it again at any time", flush=True)
        return 130
    if runner.failures:
        print("failed: " + "; ".join(runner.failures))
        for case in runner.cases:
            print(f"  {case}")
    print(f"took {runner.total}")
    print(f"{runner.passed} passed, {runner.failed} failed", flush=True)
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
