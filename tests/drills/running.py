"""A running platform as an operator sees it: its hosts, its registry, its verbs, and traffic through its gateway.

Acceptance tests and drills talk to the platform through this; neither knows how.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TRAFFIC = ROOT / "tests" / "drills" / "traffic.py"
ENDED = ("settled", "rolled back", "aborted")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **more}


def why(output: str) -> str:
    """What a playbook that failed says about it: its last two failures, or the end of its output."""
    blocks = re.findall(r"^(?:fatal|failed): .*?(?=\n\s*\n|\nTASK|\nPLAY|\Z)", output, re.MULTILINE | re.DOTALL)
    return "\n".join(" ".join(block.split())[:900] for block in blocks[-2:]) or output[-1500:]


def descendants(pid: int) -> list[int]:
    """All processes below one, also those with a session of their own, as Ansible's workers have."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


class Controller:
    """A playbook that runs beside the test."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(PYTHONUNBUFFERED="1"),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, words: str, times: int = 1, timeout: float = 300) -> None:
        """Until the output has these words so many times; raises AssertionError when the playbook ends before."""
        deadline = time.monotonic() + timeout
        while self.log.read_text(errors="replace").count(words) < times:
            assert self.process.poll() is None, why(self.log.read_text(errors="replace"))
            assert time.monotonic() < deadline, f"{words!r} did not come within {timeout:g} s"
            time.sleep(0.05)

    def kill(self) -> None:
        """As when the controller loses power: nothing of it runs on, nothing is cleaned up."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def kill_at(self, words: str, times: int = 1) -> None:
        """Kill it once the output has these words so many times."""
        self.wait_for(words, times)
        self.kill()

    def wait(self, timeout: float = 600) -> tuple[int, str]:
        """Its exit status and output."""
        code = self.process.wait(timeout)
        return code, self.log.read_text(errors="replace")


class Traffic:
    """Steady requests through the gateway's address, on both demo services, over new and kept connections.

    `mixed`: a quarter of them over HTTP/2, a twentieth uploads, a twentieth for slow answers.
    """

    def __init__(self, platform: Platform, rate: float, mixed: bool = False) -> None:
        inventory = platform.inventory
        gateway = next(iter(inventory["causeway_regions"].values()))["gateway"]
        self.out = platform.state / "traffic.json"
        self.out.unlink(missing_ok=True)
        base = f"https://{gateway['address']}:{gateway['port']}"
        self.argv = [
            sys.executable,
            str(TRAFFIC),
            f"--target={base}/catalog/{{id}}",
            f"--target={base}/orders/{{id}}",
            f"--name=gateway.{inventory['causeway_domain']}",
            f"--ca={platform.ca()}",
            f"--rate={rate:g}",
            "--duration=3600",
            f"--out={self.out}",
        ]
        if mixed:
            self.argv += ["--http2-share=0.25", "--upload-share=0.05", "--slow-share=0.05"]
            for service, method in (("catalog", "PUT"), ("orders", "POST")):
                self.argv += [f"--upload-target={method} {base}/{service}/uploads/{{id}}"]
                self.argv += [f"--slow-target={base}/{service}/slow/{{id}}?seconds={{seconds}}"]
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Traffic:
        self.process = subprocess.Popen(self.argv)
        time.sleep(2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.summary = json.loads(self.out.read_text())
        shown = {name: self.summary[name] for name in ("sent", "failed", "failures", "latency", "longest_gap")}
        print(f"traffic: {json.dumps({**shown, 'slowest': self.summary['slowest'].get('seconds')})}")


class Platform:
    """The platform of one inventory."""

    def __init__(self, inventory: str) -> None:
        self.path = inventory

    @functools.cached_property
    def inventory(self) -> dict[str, Any]:
        """All variables of one host of the inventory, with the description's `causeway_*`."""
        command = [str(BIN / "ansible-inventory"), "-i", self.path, "--list"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=True
        )
        # Texts that may look like templates are marked.
        listed = json.loads(done.stdout, object_hook=lambda one: one.get("__ansible_unsafe", one))
        found: dict[str, Any] = next(iter(listed["_meta"]["hostvars"].values()))
        return found

    @property
    def state(self) -> Path:
        """Folder of the lab's files on this machine."""
        return Path(self.inventory["causeway_lab"]["state"])

    def having(self, component: str) -> list[str]:
        """The hosts that have a component."""
        return [name for name, one in self.inventory["causeway_hosts"].items() if component in one["components"]]

    def ansible(self, *arguments: str, on: str = "localhost") -> subprocess.CompletedProcess[str]:
        """Run ansible on one host, by default this machine."""
        command = [str(BIN / "ansible"), "-i", self.path, on, *arguments]
        if on == "localhost" and os.geteuid() != 0:
            command.append("--become")
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment(ANSIBLE_CALLBACK_RESULT_FORMAT="json"),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def module(self, name: str, /, on: str = "localhost", **options: Any) -> dict[str, Any]:
        """Runs a module of the collection and returns its result; `failed` says whether it refused."""
        done = self.ansible("-m", f"causeway.platform.{name}", "-a", json.dumps(options), on=on)
        head, _arrow, body = done.stdout.partition("=>")
        assert body, f"{done.stdout}\n{done.stderr}"
        return {**json.loads(body), "failed": "FAILED" in head}

    def registry(self, module: str, /, on: str = "", **options: Any) -> dict[str, Any]:
        """Runs a registry module on a registry host: registry("registry_info", service="orders")."""
        access = {
            "platform": self.inventory["causeway_platform"],
            "endpoints": "{{ causeway_hosts | causeway.platform.registry_endpoints }}",
            "password": "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}",
        }
        return self.module(module, on=on or self.having("registry")[0], **access, **options)

    def known(self, service: str) -> dict[str, Any]:
        """All that the registry knows of a service."""
        found: dict[str, Any] = self.registry("registry_info", service=service, gather=["content"])["services"][service]
        return found

    def ssh(self, host: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a shell command on a host over SSH, as a person would."""
        config = self.state / "ssh" / "config"
        argv = ["ssh", "-n", "-F", str(config), "-o", "ConnectTimeout=3", host, command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    def ca(self) -> Path:
        """The root certificate that clients trust, as a file."""
        path = self.state / "ca.pem"
        path.write_text(self.ssh(self.having("gateway")[0], "cat /etc/causeway/tls/gateway/current/ca.pem").stdout)
        return path

    def command(self, name: str, variables: dict[str, Any]) -> list[str]:
        # In earnest the controller is a machine of its own; here it shares the processors with the platform.
        playbook = ["nice", "-n", "5", str(BIN / "ansible-playbook"), "-i", self.path, f"playbooks/{name}.yml"]
        return [*playbook, "-e", json.dumps(variables)]

    def playbook(self, name: str, /, timeout: float = 600, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Runs a playbook of the collection with extra variables, as an operator would."""
        command = self.command(name, variables)
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        logs = ROOT / ".cache" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "acceptance-playbooks.log").open("a") as log:
            log.write(f"== {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        return done

    def start(self, name: str, log: Path, **variables: Any) -> Controller:
        """Starts a playbook beside the caller."""
        return Controller(self.command(name, variables), log)

    def traffic(self, rate: float, mixed: bool = False) -> Traffic:
        """`with platform.traffic(200) as load: ...`, then load.summary as tests/drills/traffic.py writes it."""
        return Traffic(self, rate, mixed)


def live(state: dict[str, Any]) -> set[str]:
    """The versions that the registered instances of a service run."""
    return {one["version"] for one in state["instances"]}


def other(versions: set[str]) -> str:
    """The good version that is not live."""
    return "1.1.0" if versions == {"1.0.0"} else "1.0.0"


def assert_settled(state: dict[str, Any], inventory: dict[str, Any], service: str, version: str) -> None:
    """The layout is that of a service that was never released: the stable pool and nothing else."""
    placed = inventory["causeway_services"][service]["instances"]["placed"]
    assert {(one["instance"], one["version"]) for one in state["instances"]} == {(one["id"], version) for one in placed}
    assert state["traffic"]["weights"] == {"stable": 100, "candidate": 0}
    assert (state["drains"], state["lock"]) == ({}, {})
    assert state["release"]["current"] == version


def assert_recorded(state: dict[str, Any], version: str) -> None:
    """Never two versions serving without a record: what the candidates serve is the release under way."""
    if state["traffic"].get("weights", {}).get("candidate"):
        record = state["release"].get("release") or {}
        assert record.get("version") == version, record
        assert record.get("state") not in ENDED, record


Row = dict[str, Any]


def said_last(text: str, size: int = 1500) -> str:
    return text.strip()[-size:]


class Drill:
    """One run of this program: the platform, what was found, and whether the claims held."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.platform = Platform(options.inventory)
        self.folder = Path(tempfile.mkdtemp(prefix="causeway-drill-"))
        self.rows: list[Row] = []
        self.broken: list[str] = []
        self.started = 0

    def note(self, row: Row, claims: dict[str, bool]) -> None:
        """Keep and print one line; each claim that does not hold is a failure of the drill."""
        failed = [claim for claim, held in claims.items() if not held]
        self.rows.append({**row, "broken": failed})
        self.broken += [f"{row.get('what', '')}: {claim}" for claim in failed]
        print(json.dumps(self.rows[-1]), flush=True)
        if self.options.out:
            Path(self.options.out).write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def load(self, mixed: bool = True) -> Iterator[Traffic]:
        with self.platform.traffic(self.options.rate, mixed=mixed) as traffic:
            yield traffic

    def report(self, service: str) -> Row:
        """The report that the last release of a service left."""
        found: Row = json.loads((self.folder / f"release-{service}.json").read_text())
        return found

    def variables(self, service: str, version: str, **more: Any) -> Row:
        return {
            "release_service": service,
            "release_version": version,
            "release_report_dir": str(self.folder),
            **more,
        }

    def start(self, verb: str, **variables: Any) -> Controller:
        self.started += 1
        return self.platform.start(verb, self.folder / f"{self.started:03}-{verb}.log", **variables)

    def settled(self, service: str, version: str) -> bool:
        try:
            assert_settled(self.platform.known(service), self.platform.inventory, service, version)
        except AssertionError as error:
            print(f"not settled: {str(error)[:800]}", file=sys.stderr)
            return False
        return True

    def services(self, service: str, **release: Any) -> Row:
        """`causeway_services` with another `release` section for one service, to be given as an extra variable."""
        changed: Row = copy.deepcopy(self.platform.inventory["causeway_services"])
        changed[service]["release"].update(release)
        return changed

    def only(self, service: str) -> str:
        """The one version that is live; raises AssertionError in the middle of a release."""
        (version,) = live(self.platform.known(service))
        return version


def traffic_row(load: Traffic) -> Row:
    summary = load.summary
    return {
        **{name: summary[name] for name in ("sent", "failed", "mix", "longest_gap", "slowest", "generator")},
        "failures": summary["failures"],
        "p99": summary["latency"]["p99"],
    }
