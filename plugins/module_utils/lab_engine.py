# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Acts on the machine that carries a lab: podman, image, network, faults. Needs root. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import lab as plan
from ansible_collections.causeway.platform.plugins.module_utils.lab import Lab, LabError, LabHost

RUN_ROOT = Path("/run/causeway-lab")
IMAGE = "localhost/causeway-lab"
CAP_SYS_RESOURCE = 24
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_WANTED = 4096  # one kernel-wide budget for all hosts; Debian's 128 ends at about ten of them
CGROUPS = Path("/sys/fs/cgroup")
PARALLEL = 4  # more starts at once only fight for podman's locks


def command(
    *argv: str, env: dict[str, str] | None = None, text: str = "", timeout: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it printed; raises LabError with its last words when it fails or hangs."""
    try:
        done = subprocess.run(
            list(argv), env=env, input=text, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"'{' '.join(argv[:4])} ...' did not end within {timeout:g} s") from error
    if check and done.returncode:
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise LabError(f"'{' '.join(argv[:4])} ...' failed with {done.returncode}: {words}")
    return done


def each(items: Iterable[Any], act: Callable[[Any], Any]) -> list[Any]:
    """``act`` on every item, a few at a time; the first error is raised after all have ended."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return [future.result() for future in [pool.submit(act, item) for item in items]]


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file by rename, so that a reader or a killed writer never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)


def this_machine() -> plan.Machine:
    """What the engine's settings depend on."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return plan.Machine(
        cgroup_v2=(CGROUPS / "cgroup.controllers").exists(),
        systemd=Path("/run/systemd/system").is_dir(),
        raises_limits=bool(effective >> CAP_SYS_RESOURCE & 1),
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        processes=pid_max if processes == resource.RLIM_INFINITY else min(processes, pid_max),
    )


def require_root() -> None:
    """Raise LabError unless this process is root."""
    if os.geteuid() != 0:
        raise LabError("a lab is made of containers that act as machines, which needs root: run the task with become")


def running_labs() -> dict[str, str]:
    """The labs of this machine and their state directories."""
    owners = RUN_ROOT.glob("*/owner")
    return {owner.parent.name: owner.read_text().strip() for owner in sorted(owners)}


@dataclass(frozen=True)
class Node:
    """How a container was found: podman's word for its state, the address it was made with, its init's process id."""

    state: str
    address: str
    pid: int


class Engine:
    """One lab on this machine. ``state`` is its directory on disk, everything else that it owns is below /run."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.state = state
        self.run = RUN_ROOT / name
        self.graph = state / "storage"
        self.networks = state / "networks"
        self.machine = this_machine()

    @classmethod
    def of(cls, name: str) -> Engine:
        """The engine of a lab that is up; raises LabError naming those that are."""
        known = running_labs()
        if name not in known:
            raise LabError(
                f"no lab {name!r} is up on this machine (up: {', '.join(known) or 'none'}); run lab_up first"
            )
        return cls(name, Path(known[name]))

    # -- state ---------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def lock(self, timeout: float = 120) -> Iterator[None]:
        """One change of a lab at a time; waits up to ``timeout`` seconds for another to end."""
        RUN_ROOT.mkdir(mode=0o700, exist_ok=True)
        deadline = time.monotonic() + timeout
        with (RUN_ROOT / f".{self.name}.lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LabError(
                            f"lab {self.name} is being changed by another process for {timeout:g} s"
                        ) from None
                    time.sleep(0.2)
            yield

    def record(self) -> Lab:
        """The lab as it was last brought up."""
        try:
            return Lab.from_json((self.run / "lab.json").read_text())
        except OSError as error:
            raise LabError(f"lab {self.name} was not brought up completely: run lab_up again") from error

    def faults(self) -> list[plan.Fault]:
        """The network faults in force."""
        file = self.run / "faults.json"
        return plan.faults_from_json(file.read_text()) if file.exists() else []

    def configure(self) -> None:
        """Write the engine's settings; they depend on the machine, so they are made anew every time."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.graph.mkdir(parents=True, exist_ok=True)
        write(self.run / "owner", f"{self.state}\n")
        write(self.run / "storage.conf", plan.storage_configuration(str(self.graph), str(self.run)))
        settings = plan.engine_configuration(self.machine, str(self.networks), str(self.run))
        write(self.run / "containers.conf", settings)

    # -- podman --------------------------------------------------------------------------------------------------
    def podman(self, *argv: str, timeout: float = 120, check: bool = True) -> str:
        """Run podman on this lab's own storage; returns its output."""
        env = dict(
            os.environ,
            CONTAINERS_STORAGE_CONF=str(self.run / "storage.conf"),
            CONTAINERS_CONF=str(self.run / "containers.conf"),
        )
        return command("podman", *argv, env=env, timeout=timeout, check=check).stdout.strip()

    def nodes(self) -> dict[str, Node]:
        """All containers of the lab by host name."""
        names = self.podman("ps", "--all", "--quiet", "--no-trunc").split()
        if not names:
            return {}
        labels = '{{index .Config.Labels "causeway.host"}} {{index .Config.Labels "causeway.address"}}'
        found = {}
        for line in self.podman(
            "inspect", "--format", f"{labels} {{{{.State.Status}}}} {{{{.State.Pid}}}}", *names
        ).splitlines():
            host, address, state, pid = line.split(" ")
            alive = state != "running" or Path(f"/proc/{pid}").is_dir()
            # Init gone without podman's notice (its monitor was killed, too): must be started again.
            found[host] = Node(state if alive else "exited", address, int(pid))
        return found

    def inside(self, host: str, *argv: str, timeout: float = 60, check: bool = True) -> str:
        """Run a program on a host of the lab."""
        return self.podman("exec", f"{self.name}-{host}", *argv, timeout=timeout, check=check)

    def wait_booted(self, host: str, timeout: float) -> str:
        """Wait until systemd has ended its start; returns its state (``running``, ``degraded``...), raises LabError."""
        # Asked before the message bus listens, systemd answers "offline".
        script = (
            "i=0; until [ -S /run/dbus/system_bus_socket ]; do i=$((i+1)); [ $i -lt 600 ] || exit 9; sleep 0.1; done; "
            "systemctl is-system-running --wait || :"
        )
        deadline = time.monotonic() + timeout
        state = ""
        while time.monotonic() < deadline:
            left = max(1.0, deadline - time.monotonic())
            try:
                state = self.inside(host, "sh", "-c", script, timeout=left, check=False)
            except LabError:
                break
            if state in ("running", "degraded", "maintenance"):
                return state
            time.sleep(0.2)
        raise LabError(
            f"host {host} did not finish its start within {timeout:g} s; systemd says {state or 'nothing'!r}"
        )

    # -- up ------------------------------------------------------------------------------------------------------
    def ensure_key(self) -> str:
        """The SSH key of the lab, owned by whoever owns the state directory; returns the public half."""
        directory = self.state / "ssh"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = directory / "id"
        if command("ssh-keygen", "-y", "-P", "", "-f", str(key), check=False).returncode:
            for leftover in (key, directory / "id.pub"):
                leftover.unlink(missing_ok=True)
            command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key))
        self.hand_over(directory, key, directory / "id.pub")
        return (directory / "id.pub").read_text().strip()

    def hand_over(self, *paths: Path) -> None:
        """Give files to the owner of the state directory: the lab runs as root, its user may be another."""
        owner = self.state.stat()
        for path in paths:
            os.chown(path, owner.st_uid, owner.st_gid)

    def ensure_image(self, archive: Path) -> str:
        """Import the image unless this lab has it; returns its name."""
        tag = f"{IMAGE}:{archive.name.split('.')[0]}"
        if tag in self.podman("images", "--format", "{{.Repository}}:{{.Tag}}").split():
            return tag
        changes = ['ENTRYPOINT ["/usr/local/sbin/lab-init"]', 'CMD ["/sbin/init"]', "STOPSIGNAL SIGRTMIN+3"]
        options = [word for change in changes for word in ("--change", change)]
        self.podman("import", "--quiet", *options, str(archive), tag, timeout=600)
        return tag

    def ensure_network(self, lab: Lab) -> None:
        """Describe the lab's network to podman; refuses a network that the machine already reaches otherwise."""
        name = self.network_name() or f"{lab.name}-{secrets.token_hex(3)}"
        document = plan.network_document(lab, name)
        file = self.networks / f"{name}.json"
        if file.exists() and file.read_text() == document:
            return
        for line in command("ip", "-o", "-4", "route", "show", "root", lab.network).stdout.splitlines():
            if f"dev {lab.bridge} " not in f"{line} ":
                raise LabError(
                    f"network {lab.network} of lab {lab.name} is already in use on this machine ({line.strip()}); "
                    "give the lab another network"
                )
        write(file, document)

    def network_name(self) -> str:
        """The name of the network that this lab has; empty before it has one."""
        return next((path.stem for path in sorted(self.networks.glob("*.json"))), "")

    def start(self, lab: Lab, host: LabHost, image: str, key: str, found: Node | None) -> bool:
        """Bring one host to running, whatever it was; returns whether anything was done."""
        name = lab.container(host.name)
        step = plan.next_step(found.state if found else "", found.address if found else "", host)
        if step == "start":
            self.podman("start", name, check=False)
            node = self.nodes().get(host.name)
            if node is None or node.state != "running":
                raise LabError(
                    f"host {host.name} does not start: see 'podman logs {name}'; reinstall it with lab_fault"
                )
        elif step == "unpause":
            self.podman("unpause", name)
        elif step in ("create", "recreate"):
            # "rm" also clears what a killed "run" left in the storage without a container.
            self.podman("rm", "--force", "--volumes", "--time", "0", name, check=False)
            volumes = []
            if host.name == plan.CACHE_HOST:
                packages = self.state / "apt"
                packages.mkdir(exist_ok=True)
                volumes = [f"{packages}:/var/cache/apt-cacher-ng"]
            arguments = plan.run_arguments(
                lab, host, image, self.machine, network=self.network_name(), key=key, volumes=volumes
            )
            self.podman(*arguments)
        return step != "none"

    def ensure_cache(self) -> None:
        """Install and start the package cache on its node."""
        self.inside(
            plan.CACHE_HOST,
            *("sh", "-ec"),
            "systemctl -q is-active apt-cacher-ng && exit 0; export DEBIAN_FRONTEND=noninteractive; "
            "dpkg --configure -a; getent passwd apt-cacher-ng >/dev/null || useradd -r apt-cacher-ng; "
            "chown -R apt-cacher-ng: /var/cache/apt-cacher-ng; "
            "install() { apt-get install -qq -y --no-install-recommends apt-cacher-ng >/dev/null; }; "
            "install || { apt-get -qq update; install; }; systemctl enable --quiet --now apt-cacher-ng",
            timeout=300,
        )

    def preview(self, lab: Lab) -> list[str]:
        """The hosts that ``up`` would create, start, replace or remove."""
        wanted = {host.name: host for host in lab.nodes}
        if not (self.run / "containers.conf").exists():
            return list(wanted)
        found = self.nodes()
        changes = [name for name in found if name not in wanted]
        for name, host in wanted.items():
            node = found.get(name, Node("", "", 0))
            changes += [name] if plan.next_step(node.state, node.address, host) != "none" else []
        return changes

    def up(self, lab: Lab, archive: Path, timeout: float) -> dict[str, str]:
        """Bring the whole lab up from whatever state it is in; returns systemd's state by host that was touched."""
        owner = running_labs().get(lab.name)
        if owner and not Path(owner, "storage").is_dir():
            Engine(lab.name, Path(owner)).down(keep=True)  # its directory was deleted under it
        elif owner and Path(owner) != self.state:
            raise LabError(f"a lab {lab.name} is up already, kept in {owner}; take it down first (lab_down)")
        self.configure()
        self.raise_inotify()
        key = self.ensure_key()
        image = self.ensure_image(archive)
        write(self.run / "image", image)
        self.ensure_network(lab)
        found = self.nodes()
        wanted = {host.name for host in lab.nodes}
        each([name for name in found if name not in wanted], self.remove)
        started = each(lab.nodes, lambda host: self.start(lab, host, image, key, found.get(host.name)))
        touched = [host.name for host, done in zip(lab.nodes, started) if done]
        touched += [name for name in found if name not in wanted]
        write(self.run / "lab.json", lab.to_json())
        ssh = self.state / "ssh" / "config"
        write(ssh, plan.ssh_configuration(lab, str(self.state / "ssh")))
        self.hand_over(ssh)
        states = dict(zip(wanted, each(wanted, lambda name: self.wait_booted(name, timeout))))
        if lab.cache:
            self.ensure_cache()
        self.apply_faults(lab, self.faults())
        return {name: states.get(name, "absent") for name in touched}

    def remove(self, host: str) -> None:
        """Remove one host with its disk."""
        self.podman("rm", "--force", "--volumes", "--time", "0", f"{self.name}-{host}")

    def raise_inotify(self) -> None:
        """Allow more inotify instances where the machine allows few; ``down`` of the last lab restores the value."""
        value = INOTIFY.read_text().strip()
        if int(value) < INOTIFY_WANTED:
            with contextlib.suppress(OSError):  # a locked-down machine may refuse: small labs still work
                INOTIFY.write_text(str(INOTIFY_WANTED))
                write(RUN_ROOT / ".inotify", value)

    # -- power and network ---------------------------------------------------------------------------------------
    def power(self, host: str, action: str, timeout: float) -> str:
        """Switch a host: ``power_off``, ``power_on``, ``pause`` or ``unpause``; returns the state it is in then."""
        name = f"{self.name}-{host}"
        if action == "power_off":
            state = self.nodes()[host].state
            if state == "paused":  # podman kills no paused container
                self.podman("unpause", name)
            self.podman("kill", name)
            self.podman("wait", name, timeout=30)
            return "off"
        if action == "pause":
            self.podman("pause", name)
            return "paused"
        self.podman("unpause" if action == "unpause" else "start", name)
        return self.wait_booted(host, timeout)

    def reinstall(self, lab: Lab, host: LabHost, timeout: float) -> str:
        """Give a host an empty disk: a bare machine with the same name and address."""
        image = (self.run / "image").read_text().strip()
        self.start(lab, host, image, self.ensure_key(), Node("created", host.address, 0))
        return self.wait_booted(host.name, timeout)

    def ports(self) -> dict[str, str]:
        """The bridge ports that the running hosts hang on."""
        index = {(link / "ifindex").read_text().strip(): link.name for link in Path("/sys/class/net").iterdir()}
        ports = {}
        for host, node in self.nodes().items():
            with contextlib.suppress(OSError, KeyError):  # off, or stopping right now
                peer = Path(f"/proc/{node.pid}/root/sys/class/net/eth0/iflink").read_text().strip()
                ports[host] = index[peer]
        return ports

    def apply_faults(self, lab: Lab, faults: list[plan.Fault]) -> None:
        """Make exactly these faults the ones in force."""
        ports = self.ports() if faults else {}
        ruleset = plan.fault_ruleset(lab, faults, ports)
        shaping = plan.shaping_commands(lab, faults, ports)
        before = self.faults()
        # Recorded first: whatever fails below, the next change or "heal" starts from all that may be in force.
        write(self.run / "faults.json", plan.faults_to_json(faults))
        command("nft", "-f", "-", text=ruleset)
        if shaping or any(fault.kind in ("delay", "rate") for fault in before):
            for port in self.ports().values():
                command("tc", "qdisc", "del", "dev", port, "root", check=False)
            for arguments in shaping:
                command("tc", *arguments)

    # -- down ----------------------------------------------------------------------------------------------------
    def traces(self) -> list[str]:
        """What there is of the lab on this machine."""
        bridge = Path("/sys/class/net", self.nameplate.bridge)
        return [str(path) for path in (self.run, self.graph, self.networks, bridge) if path.exists()]

    @property
    def nameplate(self) -> Lab:
        """The lab reduced to its name, from which the names of all its parts derive."""
        return Lab(self.name, "", "", "", ())

    def down(self, keep: bool, network: str = "") -> None:
        """Remove every trace of the lab, however broken.

        ``keep`` leaves the package cache and the SSH key in the state directory; ``network`` helps where the record
        of the lab is lost.
        """
        with contextlib.suppress(LabError):
            network = self.record().network
        if self.graph.exists() and shutil.which("podman"):
            self.configure()
            with contextlib.suppress(LabError):
                names = self.podman("ps", "--all", "--quiet").split()
                if names:
                    self.podman("rm", "--force", "--volumes", "--time", "0", *names, timeout=300, check=False)
        self.kill_leftovers()
        if shutil.which("nft"):
            command("nft", "-f", "-", text=plan.fault_ruleset(self.nameplate, [], {}))
        if Path("/sys/class/net", self.nameplate.bridge).exists():
            command("ip", "link", "delete", self.nameplate.bridge, check=False)
        if network:
            self.remove_firewall_rules(network)
        self.unmount()
        for directory in (self.run, self.graph, self.networks):
            shutil.rmtree(directory, ignore_errors=True)
        if not keep:
            shutil.rmtree(self.state, ignore_errors=True)
        remaining = [path for path in (self.run, self.graph) if path.exists()]
        if remaining:
            raise LabError(f"lab {self.name}: could not remove {', '.join(map(str, remaining))}")
        if not running_labs():
            with contextlib.suppress(OSError):
                INOTIFY.write_text((RUN_ROOT / ".inotify").read_text())
            shutil.rmtree(RUN_ROOT, ignore_errors=True)

    def cgroup_directories(self) -> list[Path]:
        """The control groups of the lab, in all hierarchies."""
        name = self.nameplate.cgroup
        patterns = (name, f"*/{name}", f"{name}.slice", f"*/{name}.slice")
        return [path for pattern in patterns for path in CGROUPS.glob(pattern)]

    def kill_leftovers(self) -> None:
        """Kill what still runs in the lab's control groups or watches its containers, then remove the groups."""
        for _attempt in range(20):
            alive: set[int] = set()
            for group in self.cgroup_directories():
                for file in group.rglob("cgroup.procs"):
                    with contextlib.suppress(OSError):
                        alive.update(int(pid) for pid in file.read_text().split())
            needle = f"{self.run}/".encode()
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    words = process.read_bytes().split(b"\0")
                    if Path(words[0].decode(errors="replace")).name == "conmon" and any(
                        needle in word for word in words
                    ):
                        alive.add(int(process.parent.name))
            for pid in alive - {0}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not alive:
                break
            time.sleep(0.1)
        for group in self.cgroup_directories():
            for directory, _subdirectories, _files in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()

    @staticmethod
    def remove_firewall_rules(network: str) -> None:
        """Remove the address translation that podman set up for a network and could not remove itself."""
        if not shutil.which("iptables-save"):
            return
        for table in ("filter", "nat"):
            rules = command("iptables-save", "-t", table, check=False).stdout.splitlines()
            mine = [
                rule.split() for rule in rules if rule.startswith("-A NETAVARK") or rule.startswith("-A POSTROUTING")
            ]
            mine = [words for words in mine if network in words]
            chains = {words[-1] for words in mine if words[1] == "POSTROUTING" and words[-1].startswith("NETAVARK-")}
            for words in mine:
                if words[1] in ("POSTROUTING", "NETAVARK_FORWARD"):
                    command("iptables", "-t", table, "-D", *words[1:], check=False)
            for chain in chains:
                command("iptables", "-t", table, "-F", chain, check=False)
                command("iptables", "-t", table, "-X", chain, check=False)

    def unmount(self) -> None:
        """Unmount what hangs below the lab's directories, innermost first."""
        roots = tuple(f"{path}/" for path in (self.graph, self.run))
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((p for p in points if f"{p}/".startswith(roots)), reverse=True):
            command("umount", "--lazy", point, check=False)


# -- image -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ImagePlan:
    """An image to build: where it goes and the command that makes it."""

    path: Path
    arguments: list[str]


def plan_image(directory: Path, suite: str, init: Path, packages: Iterable[str], mirror: str) -> ImagePlan:
    """Decide the image's name from all that goes into it; no two different images share one."""
    certificates = sorted(Path("/usr/local/share/ca-certificates").glob("**/*.crt"))
    archives = (mirror, "")
    if not mirror:
        targets = command("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Identifier: Packages")
        archives = plan.archive_uris(targets.stdout)
    hooks = [
        f'install -m 755 "{init}" "$1/usr/local/sbin/lab-init"',
        'rm -f "$1"/etc/ssh/ssh_host_*; mkdir -m 700 -p "$1/root/.ssh"; echo uninitialized > "$1/etc/machine-id"',
        f'chroot "$1" systemctl -q mask {plan.MASKED_UNITS}; touch "$1/etc/.updated" "$1/var/.updated"',
    ]
    if certificates:  # traffic may pass a proxy that this machine was told to trust
        target = "$1/usr/local/share/ca-certificates/lab"
        names = " ".join(f'"{path}"' for path in certificates)
        hooks.append(f'mkdir -p "{target}"; cp {names} "{target}/"; chroot "$1" update-ca-certificates >/dev/null 2>&1')
    packages = sorted(packages)
    inputs = [suite, init.read_text(), *archives, *(path.read_text() for path in certificates)]
    key = plan.image_key(*inputs, *plan.debootstrap_arguments(suite, "", archives, packages, hooks[1:3]))
    path = directory / f"{suite}-{key}.tar"
    return ImagePlan(path, plan.debootstrap_arguments(suite, str(path) + ".part", archives, packages, hooks))


def build_image(image: ImagePlan) -> bool:
    """Build the image unless it is there; one build at a time, never a half file; returns whether it was built."""
    image.path.parent.mkdir(parents=True, exist_ok=True)
    with (image.path.parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if image.path.exists():
            return False
        part = Path(str(image.path) + ".part")
        part.unlink(missing_ok=True)
        # mmdebstrap guesses the format from the name; --format=tar is given, so ".part" is fine.
        command(*image.arguments, timeout=900)
        part.replace(image.path)
        for old in image.path.parent.glob("*.tar"):
            if old != image.path and time.time() - old.stat().st_atime > 14 * 86400:
                old.unlink()
        return True


def netem_available() -> bool:
    """Whether the kernel can delay packets: tried in a network namespace of its own."""
    test = "tc qdisc add dev lo root netem delay 1ms"
    return command("unshare", "--net", "sh", "-c", test, check=False).returncode == 0
