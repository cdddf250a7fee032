"""Fixtures of all acceptance tests: the lab that Molecule's scenarios share, its hosts and its verbs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = os.environ.get("CAUSEWAY_INVENTORY", str(ROOT / "molecule" / "platform" / "platform.yml"))
BIN = Path(sys.executable).parent


def ansible(*arguments: str, on: str = "localhost") -> subprocess.CompletedProcess[str]:
    """Run ansible on one host, by default this machine, with the lab's inventory."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(BIN / "ansible"), "-i", INVENTORY, on, *arguments]
    if on == "localhost" and os.geteuid() != 0:
        command.append("--become")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="session")
def inventory() -> dict[str, Any]:
    """All variables of one host of the inventory, with the description's `causeway_*`."""
    command = [str(BIN / "ansible-inventory"), "-i", INVENTORY, "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    # Texts that may look like templates are marked.
    listed = json.loads(done.stdout, object_hook=lambda one: one.get("__ansible_unsafe", one))
    return next(iter(listed["_meta"]["hostvars"].values()))


@pytest.fixture(scope="session")
def hosts(inventory: dict[str, Any]) -> dict[str, str]:
    """The lab's hosts and their addresses."""
    return {name: host["address"] for name, host in inventory["causeway_hosts"].items()}


@pytest.fixture(scope="session")
def ssh(inventory: dict[str, Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a shell command on a host over SSH, as a person would."""
    config = Path(inventory["causeway_lab"]["state"]) / "ssh" / "config"

    def run(host: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-n", "-F", str(config), "-o", "ConnectTimeout=3", host, command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def fault(inventory: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Runs module lab_fault and returns its result; `failed` is in it when it refused."""

    def run(**options: Any) -> dict[str, Any]:
        arguments = json.dumps({"lab": inventory["causeway_lab"]["name"], **options})
        done = ansible("-m", "causeway.platform.lab_fault", "-a", arguments)
        head, _arrow, body = done.stdout.partition("=>")
        assert body, f"{done.stdout}\n{done.stderr}"
        return {**json.loads(body), "failed": "FAILED" in head}

    return run


@pytest.fixture(scope="session")
def playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a playbook of the collection with extra variables, as an operator would."""

    def run(name: str, /, timeout: float = 600, **variables: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        command = [str(BIN / "ansible-playbook"), "-i", INVENTORY, f"playbooks/{name}.yml", "-e", json.dumps(variables)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        logs = ROOT / ".cache" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "acceptance-playbooks.log").open("a") as log:
            log.write(f"== {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        return done

    return run


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
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for(self, words: str, times: int = 1, timeout: float = 300) -> None:
        """Until the output has these words so many times; raises AssertionError when the playbook ends before."""
        deadline = time.monotonic() + timeout
        while self.log.read_text(errors="replace").count(words) < times:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
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


@pytest.fixture
def start_playbook(tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    """Starts a playbook of the collection with extra variables; whatever still runs at the end is killed."""
    started: list[Controller] = []

    def start(name: str, /, **variables: Any) -> Controller:
        command = [str(BIN / "ansible-playbook"), "-i", INVENTORY, f"playbooks/{name}.yml", "-e", json.dumps(variables)]
        started.append(Controller(command, tmp_path / f"{name}-{len(started)}.log"))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture(scope="session")
def registry(inventory: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Runs a registry module on a registry host: registry("registry_info", service="orders")."""
    host = next(name for name, one in inventory["causeway_hosts"].items() if "registry" in one["components"])

    def run(module: str, on: str = host, **options: Any) -> dict[str, Any]:
        arguments = {
            "platform": inventory["causeway_platform"],
            "endpoints": "{{ causeway_hosts | causeway.platform.registry_endpoints }}",
            "password": "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}",
            **options,
        }
        done = ansible("-m", f"causeway.platform.{module}", "-a", json.dumps(arguments), on=on)
        head, _arrow, body = done.stdout.partition("=>")
        assert body, f"{done.stdout}\n{done.stderr}"
        return {**json.loads(body), "failed": "FAILED" in head}

    return run


@pytest.fixture(scope="session")
def ca(inventory: dict[str, Any], ssh: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """The root certificate that clients trust, as a file."""
    gateway = next(name for name, one in inventory["causeway_hosts"].items() if "gateway" in one["components"])
    path = Path(inventory["causeway_lab"]["state"]) / "ca.pem"
    path.write_text(ssh(gateway, "cat /etc/causeway/tls/gateway/current/ca.pem").stdout)
    return path


class Traffic:
    """Steady requests through the gateway's address, on both demo services, over new and kept connections."""

    def __init__(self, inventory: dict[str, Any], ca: Path, rate: float) -> None:
        state = Path(inventory["causeway_lab"]["state"])
        gateway = next(iter(inventory["causeway_regions"].values()))["gateway"]
        self.out = state / "traffic.json"
        self.out.unlink(missing_ok=True)
        base = f"https://{gateway['address']}:{gateway['port']}"
        self.argv = [
            sys.executable,
            str(ROOT / "tests" / "drills" / "traffic.py"),
            f"--target={base}/catalog/{{id}}",
            f"--target={base}/orders/{{id}}",
            f"--name=gateway.{inventory['causeway_domain']}",
            f"--ca={ca}",
            f"--rate={rate:g}",
            "--duration=900",
            f"--out={self.out}",
        ]
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


@pytest.fixture
def traffic(inventory: dict[str, Any], ca: Path) -> Callable[..., Traffic]:
    """`with traffic(rate) as load: ...`, then load.summary as tests/drills/traffic.py writes it."""
    rate = float(os.environ.get("CAUSEWAY_RATE", "40"))
    return lambda per_second=rate: Traffic(inventory, ca, per_second)
