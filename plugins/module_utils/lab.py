# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab is: names, addresses, engine settings, faults. Decides only; lab_engine acts. Standard library only."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
CACHE_HOST = "lab-cache"
CACHE_PORT = 3142
BASE_PACKAGES = (
    "systemd,systemd-sysv,libpam-systemd,libnss-systemd,dbus,python3,python3-apt,iproute2,iputils-ping,openssh-server,"
    "ca-certificates,sudo,nftables,procps,curl,less,netbase,kmod,gpg,acl"
)
# Units that make no sense without hardware, or that would disturb a measurement (timers).
MASKED_UNITS = (
    "getty.target console-getty.service systemd-firstboot.service systemd-remount-fs.service dev-hugepages.mount "
    "sys-fs-fuse-connections.mount systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket "
    "systemd-udevd-kernel.socket apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer "
    "systemd-journal-catalog-update.service sshd-keygen.service"
)
FAULT_KINDS = ("cut", "loss", "delay", "rate")
OTHERS = "others"
OUTSIDE = "outside"
UNLIMITED = "10gbit"  # rate of a class that only delays


class LabError(Exception):
    """The lab cannot be what was asked for; the message says where, why and what is allowed."""


@dataclass(frozen=True)
class LabHost:
    """One host of a lab; ``address`` is IPv4, ``zone`` and ``region`` are names for faults and may be empty."""

    name: str
    address: str
    zone: str = ""
    region: str = ""

    @property
    def mac(self) -> str:
        """MAC address, a function of the address: faults match it, and it survives a power cut."""
        return "02:4c:" + ":".join(f"{octet:02x}" for octet in ipaddress.IPv4Address(self.address).packed)


@dataclass(frozen=True)
class Lab:
    """A lab; every name that it puts on the machine derives from ``name``."""

    name: str
    network: str
    gateway: str
    cache: str  # address of the package cache, or "" for none
    hosts: tuple[LabHost, ...]

    @property
    def bridge(self) -> str:
        """Name of the bridge interface: at most 15 characters, unique per lab name."""
        return f"{self.name[:8]}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"

    @property
    def table(self) -> str:
        """Name of the nftables table (family bridge) that holds the faults."""
        return "lab_" + self.name.replace("-", "_")

    @property
    def cgroup(self) -> str:
        """Name of the control group below which all containers of the lab live."""
        return "lab_" + self.name.replace("-", "_")

    def container(self, host: str) -> str:
        """Name of the container that plays ``host``."""
        return f"{self.name}-{host}"

    def host(self, name: str) -> LabHost:
        """The host called ``name``; raises LabError naming the known ones."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"lab {self.name} has no host {name!r}; its hosts are {', '.join(h.name for h in self.hosts)}")

    @property
    def nodes(self) -> tuple[LabHost, ...]:
        """All containers: the package cache first (others install through it), then the hosts."""
        return ((LabHost(CACHE_HOST, self.cache),) if self.cache else ()) + self.hosts

    def to_json(self) -> str:
        """The record kept beside a running lab, read again by ``from_json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Lab:
        """The lab that ``to_json`` wrote; raises LabError when the text is no such record."""
        try:
            data = json.loads(text)
            hosts = tuple(LabHost(**host) for host in data.pop("hosts"))
            return cls(hosts=hosts, **data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabError(f"the lab's record is unreadable: {error}") from error


def _network_problems(network: str, gateway: str) -> tuple[ipaddress.IPv4Network | None, str, list[str]]:
    try:
        net = ipaddress.IPv4Network(network)
    except ValueError as error:
        return None, gateway, [f"network {network!r}: {error}; write for example 10.77.0.0/16"]
    if net.num_addresses < 16:
        return None, gateway, [f"network {network!r} is too small: a lab needs at least a /28"]
    gateway = gateway or str(net[1])
    try:
        inside = ipaddress.IPv4Address(gateway) in net
    except ValueError:
        inside = False
    return net, gateway, [] if inside else [f"gateway {gateway!r} is no address of {network}"]


def parse_lab(
    name: str, network: str, hosts: Mapping[str, Mapping[str, Any]], gateway: str = "", cache: bool = True
) -> Lab:
    """Check a description and return the lab; raises LabError that lists every problem.

    ``hosts`` maps names to at least ``address``; ``zone`` and ``region`` are taken where present, the rest is ignored.
    The gateway defaults to the network's first address, the package cache takes the one after it.
    """
    problems = []
    if not LABEL.fullmatch(name):
        problems.append(f"name {name!r} is no DNS label (a-z, 0-9 and dashes, starting with a letter)")
    net, gateway, found = _network_problems(network, gateway)
    problems += found
    taken: dict[str, str] = {}
    cache_address = ""
    if net is not None and not found:
        taken = {gateway: "the gateway", str(net[0]): "the network", str(net[-1]): "broadcasts"}
        if cache:
            cache_address = str(next(a for a in net.hosts() if str(a) not in taken))
            taken[cache_address] = "the package cache"
    parsed = []
    for host, entry in hosts.items():
        address = str(entry.get("address", ""))
        if not LABEL.fullmatch(host) or host == CACHE_HOST:
            problems.append(f"host {host!r}: the name must be a DNS label other than {CACHE_HOST}")
        try:
            inside = net is None or ipaddress.IPv4Address(address) in net
        except ValueError:
            problems.append(f"host {host}: address {address!r} is no IPv4 address")
            continue
        if not inside:
            problems.append(f"host {host}: address {address} lies outside {network}")
        elif address in taken:
            problems.append(f"host {host}: address {address} belongs to {taken[address]}")
        taken[address] = f"host {host}"
        parsed.append(LabHost(host, address, str(entry.get("zone", "")), str(entry.get("region", ""))))
    if not hosts:
        problems.append("hosts: at least one is needed")
    if problems:
        raise LabError("the lab's description is wrong: " + "; ".join(problems))
    return Lab(name, network, gateway, cache_address, tuple(parsed))


@dataclass(frozen=True)
class Machine:
    """What the container engine must know of the machine that carries the lab."""

    cgroup_v2: bool
    systemd: bool
    raises_limits: bool  # CAP_SYS_RESOURCE is held
    files: int
    processes: int  # hard limit, already capped at the kernel's pid_max

    @property
    def podman_decides(self) -> bool:
        """An ordinary systemd host with control groups v2: podman's own defaults fit."""
        return self.cgroup_v2 and self.systemd


def engine_configuration(machine: Machine, networks: str, run_dir: str) -> str:
    """The containers.conf of one lab: only what the machine requires, and a state of its own."""
    lines = ["[containers]"]
    if not machine.raises_limits:
        files, processes = machine.files, machine.processes
        lines.append(f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]')
    # Locks and runtime state of their own keep two labs, and the machine's own podman, out of each other's way.
    lines += ["[engine]", f'tmp_dir = "{run_dir}/libpod"', 'lock_type = "file"', 'events_logger = "file"']
    if not machine.systemd:
        lines.append('cgroup_manager = "cgroupfs"')
    if not machine.cgroup_v2:
        lines.append('runtime = "runc"')  # crun refuses a hybrid host whose v2 tree has a controller
    lines += ["[network]", 'network_backend = "netavark"', f'network_config_dir = "{networks}"']
    return "\n".join(lines) + "\n"


def storage_configuration(graph: str, run_dir: str) -> str:
    """The storage.conf of one lab."""
    return f'[storage]\ndriver = "overlay"\ngraphroot = "{graph}"\nrunroot = "{run_dir}/storage"\n'


def network_document(lab: Lab, name: str) -> str:
    """Podman's network file (JSON). Written by us since older podman cannot be told the bridge's name.

    ``name`` is the network's own: podman remembers for the whole machine which addresses of which network are taken,
    and would refuse those of an earlier lab of this name whose files somebody deleted.
    """
    return json.dumps(
        {
            "name": name,
            "id": hashlib.sha256(f"lab {name}".encode()).hexdigest(),
            "driver": "bridge",
            "network_interface": lab.bridge,
            "created": "2026-01-01T00:00:00Z",
            "subnets": [{"subnet": lab.network, "gateway": lab.gateway}],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        },
        indent=1,
    )


def run_arguments(
    lab: Lab, host: LabHost, image: str, machine: Machine, *, network: str, key: str, volumes: Iterable[str]
) -> list[str]:
    """Arguments of ``podman run`` for one host. ``key`` is the public SSH key that may log in as root, ``network`` the
    name of the lab's network.

    Not privileged: the machine's disks and clock stay out of reach; everything else is as on a real host.
    """
    parent = lab.cgroup + ".slice" if machine.systemd else "/" + lab.cgroup
    proxy = f"http://{lab.cache}:{CACHE_PORT}" if lab.cache and host.name != CACHE_HOST else ""
    arguments = [
        *("run", "--detach", "--pull=never", "--name", lab.container(host.name), "--hostname", host.name),
        *("--label", f"causeway.lab={lab.name}", "--label", f"causeway.host={host.name}"),
        *("--label", f"causeway.address={host.address}", "--env", f"LAB_KEY={key}", "--env", f"LAB_APT_PROXY={proxy}"),
        *("--systemd=always", "--cgroupns=private", "--restart=always", f"--cgroup-parent={parent}"),
        *("--network", network, "--ip", host.address, "--mac-address", host.mac, "--no-hosts", "--shm-size", "1g"),
        *("--cap-add=ALL", "--cap-drop=SYS_TIME,SYS_MODULE,SYS_BOOT,SYS_RAWIO,MAC_ADMIN,MAC_OVERRIDE"),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *("--security-opt", "label=disable", "--security-opt", "unmask=ALL"),
        *("--device", "/dev/fuse", "--device", "/dev/net/tun"),
    ]
    for volume in ("/var/lib/containers", *volumes):
        arguments += ["--volume", volume]
    return [*arguments, image]


def next_step(state: str, address: str, host: LabHost) -> str:
    """What brings a container to "running": ``none``, ``start``, ``unpause``, ``recreate`` or ``create``.

    ``state`` is podman's word for it, "" where there is no container; ``address`` is the one it was made with.
    A container that never ran holds nothing of worth and is made anew, as is one whose address was changed.
    """
    if not state:
        return "create"
    if address != host.address:
        return "recreate"
    return {"running": "none", "exited": "start", "stopped": "start", "paused": "unpause"}.get(state, "recreate")


def image_key(*inputs: str) -> str:
    """Short name of an image: equal inputs give the equal image."""
    digest = hashlib.sha256()
    for text in inputs:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]


def archive_uris(index_targets: str) -> tuple[str, str]:
    """The (main, security) archive of a Debian machine; "" where unknown.

    ``index_targets`` is the output of ``apt-get indextargets --format '$(REPO_URI) $(COMPONENT)'``.
    """
    main = security = ""
    for line in index_targets.splitlines():
        uri, _space, component = line.partition(" ")
        if component == "main" and uri.rstrip("/").endswith("debian"):
            main = main or uri
        if component == "main" and uri.rstrip("/").endswith("debian-security"):
            security = security or uri
    return main, security


def debootstrap_arguments(
    suite: str, target: str, archives: tuple[str, str], packages: Iterable[str], hooks: Iterable[str]
) -> list[str]:
    """The mmdebstrap command that writes the image of a bare host to ``target`` (a tar file).

    Without a known archive mmdebstrap takes its own default.
    """
    main, security = archives
    sources = []
    if main:
        sources = [f"deb {main} {suite} main", f"deb {main} {suite}-updates main"]
        sources += [f"deb {security} {suite}-security main"] if security else []
    arguments = [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", "--quiet", "--skip=cleanup/apt/lists"),
        *('--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Check-Valid-Until "false"'),
        *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
        *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright"),
        *("--dpkgopt=force-unsafe-io", "--include=" + ",".join([BASE_PACKAGES, *packages])),
    ]
    return [*arguments, *(f"--customize-hook={hook}" for hook in hooks), suite, target, *sources]


@dataclass(frozen=True)
class Fault:
    """A disturbance of the network between two sides, both ways, as kept in the lab's record.

    ``percent`` (loss), ``milliseconds`` (delay, each way) and ``kbit`` (rate, kilobit/s each way) go with their kind.
    """

    kind: str
    a: str
    b: str
    percent: float = 0.0
    milliseconds: float = 0.0
    kbit: int = 0

    def describe(self) -> str:
        """The fault in a few words."""
        amount = {"loss": f" {self.percent:g} %", "delay": f" {self.milliseconds:g} ms", "rate": f" {self.kbit} kbit/s"}
        return f"{self.kind}{amount.get(self.kind, '')} between {self.a} and {self.b}"


def select(lab: Lab, selector: str, other: tuple[LabHost, ...] = ()) -> tuple[LabHost, ...]:
    """The hosts a selector means: a host, zone or region by name, or ``others`` (all that are not in ``other``).

    ``zone:NAME`` and ``region:NAME`` settle a name that is used twice. Raises LabError naming what is allowed.
    """
    if selector == OTHERS:
        return tuple(host for host in lab.hosts if host not in other)
    kind, colon, name = selector.partition(":")
    if not colon:
        name = selector
    for attribute in (kind,) if colon else ("host", "zone", "region"):
        field = "name" if attribute == "host" else attribute
        found = tuple(host for host in lab.hosts if name and name == getattr(host, field, None))
        if found:
            return found
    places = {place for host in lab.hosts for place in (host.zone, host.region) if place}
    allowed = [*(host.name for host in lab.hosts), *sorted(places)]
    raise LabError(f"{selector!r} is no host, zone or region of lab {lab.name}; allowed are {', '.join(allowed)}")


def sides(lab: Lab, fault: Fault) -> tuple[tuple[LabHost, ...], tuple[LabHost, ...]]:
    """The hosts on both sides of a fault; raises LabError when a side is empty or both overlap."""
    a = select(lab, fault.a)
    if fault.b == OUTSIDE:
        return a, ()
    b = select(lab, fault.b, a)
    common = [host.name for host in a if host in b]
    if common or not b:
        reason = f"both sides hold {', '.join(common)}" if common else "nothing is left on the other side"
        raise LabError(f"cannot {fault.kind} {fault.a} and {fault.b}: {reason}")
    return a, b


def checked_fault(lab: Lab, kind: str, a: str, b: str, amount: float) -> Fault:
    """A fault from a caller's words; ``amount`` is a percentage, milliseconds or kilobit/s; raises LabError."""
    values: dict[str, Any] = {}
    if kind == "loss":
        if not 0 < amount <= 100:
            raise LabError(f"percent is {amount:g}; loss needs more than 0 and at most 100")
        values = {"percent": float(amount)}
    elif kind in ("delay", "rate"):
        if amount <= 0:
            raise LabError(f"{'milliseconds' if kind == 'delay' else 'kbit'} is {amount:g}; {kind} needs more than 0")
        values = {"milliseconds": float(amount)} if kind == "delay" else {"kbit": int(amount)}
        if b == OUTSIDE:
            raise LabError(f"{kind} works between hosts only, not towards {OUTSIDE}")
    if b not in (OTHERS, OUTSIDE):
        a, b = sorted((a, b))  # both ways: the order of the sides means nothing
    fault = Fault(kind, a, b, **values)
    sides(lab, fault)
    return fault


def with_fault(faults: Collection[Fault], new: Fault) -> list[Fault]:
    """The faults with ``new`` in force: it replaces one of the same kind between the same sides."""
    pair = {new.a, new.b}
    kept = [fault for fault in faults if not (fault.kind == new.kind and {fault.a, fault.b} == pair)]
    return list(faults) if new in faults else [*kept, new]


def healed(faults: Iterable[Fault], a: str = "", b: str = "") -> list[Fault]:
    """The faults that remain after healing: all go, or only those naming ``a`` (and ``b`` where given)."""
    wanted = {side for side in (a, b) if side}
    return [fault for fault in faults if wanted and not wanted <= {fault.a, fault.b}]


def faults_to_json(faults: Iterable[Fault]) -> str:
    """The record of the faults in force."""
    return json.dumps([asdict(fault) for fault in faults], indent=1) + "\n"


def faults_from_json(text: str) -> list[Fault]:
    """The faults that ``faults_to_json`` wrote; raises LabError when unreadable."""
    try:
        return [Fault(**entry) for entry in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise LabError(f"the record of the lab's faults is unreadable: {error}") from error


def _among(values: Iterable[str], quote: bool = False) -> str:
    return "{ " + ", ".join(f'"{value}"' if quote else value for value in values) + " }"


def fault_ruleset(lab: Lab, faults: Iterable[Fault], ports: Mapping[str, str]) -> str:
    """The nft script that replaces the lab's table by one with these faults, in one transaction.

    ``ports`` maps host names to the bridge ports they hang on (hosts that are off are missing). Frames to one host are
    matched by MAC address, so they stay cut whatever address they carry; broadcasts by the port they would leave by.
    ``outside`` is the machine that carries the lab and all beyond: SSH stays open, else no tool could reach the host.
    """
    forward, entering, leaving = [], [], []
    for fault in faults:
        if fault.kind not in ("cut", "loss"):
            continue
        verdict = "drop" if fault.kind == "cut" else f"numgen random mod 10000 < {round(fault.percent * 100)} drop"
        a, b = sides(lab, fault)
        if fault.b == OUTSIDE:
            macs = _among(host.mac for host in a)
            own = _among(host.address for host in a)
            entering += [
                f"ether saddr {macs} tcp sport 22 accept",
                f"ether saddr {macs} ether type {{ ip, ip6 }} counter {verdict}",
                f"ether saddr {macs} ether type arp arp saddr ip != {own} counter {verdict}",
            ]
            leaving += [
                f"ether daddr {macs} tcp dport 22 accept",
                f"ether daddr {macs} ether type {{ ip, ip6 }} counter {verdict}",
            ]
            continue
        for sender, receiver in ((a, b), (b, a)):
            from_macs = _among(host.mac for host in sender)
            forward.append(f"ether saddr {from_macs} ether daddr {_among(h.mac for h in receiver)} counter {verdict}")
            out = [ports[host.name] for host in receiver if host.name in ports]
            if out:
                group = "ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00"
                forward.append(f"ether saddr {from_macs} {group} oifname {_among(out, quote=True)} counter {verdict}")
    # "table" before "delete" makes the deletion work whether or not the table exists.
    script = [f"table bridge {lab.table} {{ }}", f"delete table bridge {lab.table}"]
    if forward or entering:
        script.append(f"table bridge {lab.table} {{")
        for hook, rules in (("forward", forward), ("input", entering), ("output", leaving)):
            if rules:
                script.append(f"  chain {hook} {{\n    type filter hook {hook} priority 0; policy accept;")
                script += [f"    {rule}" for rule in rules] + ["  }"]
        script.append("}")
    return "\n".join(script) + "\n"


def shaping_commands(lab: Lab, faults: Iterable[Fault], ports: Mapping[str, str]) -> list[list[str]]:
    """The tc commands (without ``tc``) that put delays and rates on the bridge ports, to run on clean ports.

    A port carries what its host receives; both sides are shaped, so each direction is shaped once. Traffic that no
    filter takes leaves htb undisturbed.
    """
    commands: list[list[str]] = []
    classes: dict[str, int] = {}
    for fault in faults:
        if fault.kind not in ("delay", "rate"):
            continue
        rate = UNLIMITED if fault.kind == "delay" else f"{fault.kbit}kbit"
        a, b = sides(lab, fault)
        for host, senders in [*((host, b) for host in a), *((host, a) for host in b)]:
            if host.name not in ports:
                continue
            port = ["dev", ports[host.name]]
            if host.name not in classes:
                commands.append(["qdisc", "add", *port, "root", "handle", "1:", "htb"])
            number = classes[host.name] = classes.get(host.name, 0) + 1
            identity = f"1:{number:x}"
            commands.append(["class", "add", *port, "parent", "1:", "classid", identity, "htb", "rate", rate])
            if fault.kind == "delay":
                netem = ["netem", "delay", f"{fault.milliseconds:g}ms", "limit", "10000"]
                commands.append(["qdisc", "add", *port, "parent", identity, *netem])
            for sender in senders:
                match = ["protocol", "all", "u32", "match", "ether", "src", sender.mac]
                commands.append(["filter", "add", *port, "parent", "1:", *match, "flowid", identity])
    return commands


def ssh_configuration(lab: Lab, ssh_dir: str) -> str:
    """An ssh_config for people: ``ssh -F FILE HOST``."""
    # Host keys are new with every lab, so remembering them would only get in the way.
    text = "Host *\n  User root\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
    text += f'  IdentityFile "{ssh_dir}/id"\n  UserKnownHostsFile /dev/null\n'
    return text + "".join(f"Host {host.name}\n  HostName {host.address}\n" for host in lab.nodes)
