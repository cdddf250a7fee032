# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Service instances as Podman Quadlet units: pure functions from the description to the files of one host."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .pools import STABLE
from .postgresql.passwords import password as database_password

UNITS = "etc/containers/systemd"
SETTINGS = "etc/causeway/services"
INSTANCES = "etc/causeway/agent/instances.d"
TARGETS = "etc/causeway/agent/targets.d"
NETWORK_UNIT = "etc/systemd/system/causeway-service-network.service"
FIREWALL = f"{SETTINGS}/network.nft"
BRIDGE = "cwsvc"
FIRST_HOST = 10  # instance of slot n has host number 10 + n in the service's network
MAX_SLOT = 9
UIDS_PER_SERVICE = 65536
DATABASE_PORTS = (5432, 5433)  # writer and reader ports of the sidecar
PASSFILES = "/run/causeway/services"  # copies of the password files, owned by the containers' users
PASSFILE = "/run/causeway/pgpass"  # inside a container
VERSION_PATTERN = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")  # the tag of an OCI reference
NAME_PATTERN = re.compile(r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
VARIABLE_PATTERN = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
IMAGE_LINE = re.compile(r"^Image=(?P<image>\S+)$", re.MULTILINE)
VERSION_LINE = re.compile(r"^Label=io\.causeway\.version=(?P<version>\S+)$", re.MULTILINE)


class QuadletError(Exception):
    """What is wrong with the description, in one sentence."""


@dataclass(frozen=True)
class Options:
    """What holds for all services of a host."""

    platform: str = "causeway"
    subnet: str = "10.89"
    uid_base: int = 0x70000000
    user_namespaces: bool = True
    controllers: tuple[str, ...] = ()
    host_ports: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tmp_size: str = "64m"
    restart_max_delay: float = 10.0
    databases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    database_secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Instance:
    """One instance as this host should run it."""

    service: Mapping[str, Any]
    slot: int
    id: str
    host: str
    address: str
    port: int
    zone: str
    region: str
    pool: str
    version: str

    @property
    def name(self) -> str:
        return str(self.service["name"])

    @property
    def key(self) -> str:
        return f"{self.name}@{self.slot}"

    @property
    def unit(self) -> str:
        return f"{self.key}.service"

    @property
    def container(self) -> str:
        return f"{self.name}-{self.slot}"

    @property
    def image(self) -> str:
        return reference_of(self.service, self.version)


def check_version(version: Any, where: str) -> str:
    """The version as text; raises QuadletError unless it can be an image's tag."""
    text = str(version)
    if not VERSION_PATTERN.match(text):
        raise QuadletError(
            f"{where}: version {text!r} is not allowed: letters, digits, '.', '_' and '-', 128 at most, "
            "and neither '.' nor '-' first"
        )
    return text


def reference_of(service: Mapping[str, Any], version: str) -> str:
    """The image's reference: `image.repository` with tag or digest, else `image.reference`, `{version}` filled in."""
    image = service.get("image") or {}
    repository = str(image.get("repository") or "")
    if repository:
        if "{version}" in repository:
            return repository.replace("{version}", version)
        last = repository.rsplit("/", 1)[-1]
        return repository if "@" in last or ":" in last else f"{repository}:{version}"
    reference = str(image.get("reference") or "") or f"localhost/causeway/{service['name']}:{{version}}"
    return reference.replace("{version}", version)


def image_of(service: Mapping[str, Any], version: str) -> dict[str, str]:
    """What oci_image needs: reference, and the archive's path on the controller or "" for a repository."""
    image = service.get("image") or {}
    archive = "" if image.get("repository") else str(image.get("archive") or "").replace("{version}", version)
    if not archive and not image.get("repository"):
        raise QuadletError(f"services.{service['name']}.image: neither archive nor repository is set")
    return {"reference": reference_of(service, version), "archive": archive}


def network_of(service: Mapping[str, Any], options: Options) -> str:
    """First three parts of the service's network: 10.89.<index>; raises QuadletError outside 0..255."""
    index = int(service["index"])
    if not 0 <= index <= 255:
        raise QuadletError(f"services.{service['name']}.index: {index} is outside 0..255")
    return f"{options.subnet}.{index}"


def address_of(instance: Instance, options: Options) -> str:
    return f"{network_of(instance.service, options)}.{FIRST_HOST + instance.slot}"


def health_url(instance: Instance, options: Options) -> str:
    service = instance.service
    return f"http://{address_of(instance, options)}:{service['port']}{service['health']['path']}"


def database_environment(instance: Instance, options: Options) -> dict[str, str]:
    """Where the service's database is, in libpq's own variables; empty without one.

    The way to the sidecar stays on the host's own container network; TLS begins there.
    """
    database = options.databases.get(instance.name)
    if not database:
        return {}
    writer, reader = DATABASE_PORTS
    sharding = database.get("sharding") or {}
    tenants = {
        "PGDATABASE_TENANT": f"{database['database']}_{{tenant}}",
        "TENANTS": ",".join(sorted(sharding.get("tenants") or {})),
    }
    return {
        **(tenants if sharding else {}),
        "PGHOST": f"{network_of(instance.service, options)}.1",
        "PGPORT": str(writer),
        "PGDATABASE": str(database["database"]),
        "PGUSER": str(database.get("role") or database["database"]),
        "PGPORT_READER": str(reader),
        "PGDATABASE_READER": f"{database['database']}_ro",
        "PGSSLMODE": "disable",
        "PGPASSFILE": PASSFILE,
    }


def passfile(instance: Instance, options: Options) -> str:
    """The application's password as libpq's password file (PostgreSQL documentation, section 32.16); "" without a
    database. Raises QuadletError.
    """
    database = options.databases.get(instance.name)
    if not database:
        return ""
    if not options.database_secret:
        raise QuadletError(
            f"services.{instance.name}.database: its password derives from causeway_secrets.database, which is empty"
        )
    user = str(database.get("role") or database["database"])
    word = database_password(options.database_secret, str(database["name"]), user)
    return f"*:*:*:{user}:{word}\n"


def environment_of(instance: Instance, options: Options) -> dict[str, str]:
    """Environment of the process; the service's own entries win over derived ones."""
    service = instance.service
    gateway = f"{network_of(service, options)}.1"
    attributes = {
        "service.namespace": options.platform,
        "service.version": instance.version,
        "service.instance.id": instance.id,
        "cloud.region": instance.region,
        "cloud.availability_zone": instance.zone,
        "host.name": instance.host,
    }
    result = {
        "PORT": str(service["port"]),
        "SERVICE": instance.name,
        "INSTANCE": instance.id,
        "VERSION": instance.version,
        "ZONE": instance.zone,
        "REGION": instance.region,
        "SHUTDOWN_TIMEOUT": f"{float(service['release']['drain_timeout']):g}",
        "OTEL_SERVICE_NAME": instance.name,
        "OTEL_RESOURCE_ATTRIBUTES": ",".join(f"{name}={value}" for name, value in attributes.items() if value),
        "OTEL_PROPAGATORS": "tracecontext,baggage",
    }
    for call in service.get("calls") or []:
        name = re.sub(r"[^A-Z0-9]", "_", str(call["service"]).upper())
        result[f"{name}_URL"] = f"http://{gateway}:{call['port']}"
    result.update(database_environment(instance, options))
    for source, given in (
        ("service_environment", options.environment),
        ("environment", service.get("environment") or {}),
    ):
        for name, value in given.items():
            where = (
                f"{source}.{name}"
                if source == "service_environment"
                else f"services.{instance.name}.environment.{name}"
            )
            if not VARIABLE_PATTERN.match(str(name)):
                raise QuadletError(f"{where}: a variable's name has letters, digits and '_' only")
            text = value if isinstance(value, str) else json.dumps(value)
            if re.search(r"[\n\r\0]", text):
                raise QuadletError(f"{where}: line breaks cannot be passed in an environment file")
            result[str(name)] = str(text)
    return result


def environment_file(instance: Instance, options: Options) -> str:
    """podman's --env-file: literal lines, so nothing needs quoting and nothing appears on a command line."""
    return "".join(f"{name}={value}\n" for name, value in sorted(environment_of(instance, options).items()))


def unit_text(sections: Mapping[str, Iterable[tuple[str, Any]]]) -> str:
    """A unit file: booleans become true/false, None is left out."""
    lines = ["# Written by causeway.platform; changes here are lost."]
    for section, entries in sections.items():
        lines += ["", f"[{section}]"]
        for key, value in entries:
            if value is None:
                continue
            lines.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join(lines) + "\n"


def stop_timeout(service: Mapping[str, Any]) -> int:
    """Seconds until a stopping container is killed: the drain time and a little more for the process to end."""
    return int(float(service["release"]["drain_timeout"])) + 5


def limits_of(service: Mapping[str, Any], options: Options) -> list[tuple[str, Any]]:
    """Resource limits, as far as this host has the cgroup controller; without it podman would refuse to start."""
    resources = service.get("resources") or {}
    result: list[tuple[str, Any]] = [("PidsLimit", resources.get("pids") or 0 if "pids" in options.controllers else 0)]
    if "memory" in options.controllers and resources.get("memory"):
        # equal to the swap limit: no swap
        result.append(("PodmanArgs", f"--memory={resources['memory']} --memory-swap={resources['memory']}"))
    if "cpu" in options.controllers and resources.get("cpus"):
        result.append(("PodmanArgs", f"--cpus={float(resources['cpus']):g}"))
    return result


def container_unit(instance: Instance, options: Options) -> str:
    """<service>@<slot>.container: everything but the version, which the drop-in version.conf adds."""
    service = instance.service
    name = instance.name
    mapping = f"0:{options.uid_base + int(service['index']) * UIDS_PER_SERVICE}:{UIDS_PER_SERVICE}"
    if not options.user_namespaces:
        mapping = ""
    container: list[tuple[str, Any]] = [
        ("ContainerName", instance.container),
        ("Network", f"{network_name(service)}.network"),
        ("IP", address_of(instance, options)),
        ("Pull", "never"),
        ("EnvironmentFile", f"/{SETTINGS}/{instance.container}.env"),
        ("ReadOnly", True),
        ("Tmpfs", f"/tmp:rw,nosuid,nodev,noexec,mode=1777,size={options.tmp_size}"),
        ("DropCapability", "all"),
        ("NoNewPrivileges", True),
        ("UIDMap", mapping or None),
        ("GIDMap", mapping or None),
        *limits_of(service, options),
        ("StopTimeout", stop_timeout(service)),
        ("LogDriver", "journald"),
        ("Label", f"io.causeway.service={name}"),
        ("Label", f"io.causeway.slot={instance.slot}"),
    ]
    word = passfile(instance, options)
    source, copy = f"/{SETTINGS}/{instance.container}.pgpass", f"{PASSFILES}/{instance.container}.pgpass"
    if word:
        # U: podman gives the copy to the user that the image names, whatever id that has on this host. libpq takes no
        # file that others may read, and no other user of the container could.
        container.append(("Volume", f"{copy}:{PASSFILE}:ro,U"))
    # What the process sees of its configuration; the version is not part of it.
    environment = environment_of(_without_version(instance), options)
    seen = json.dumps([container, environment, *([word] if word else [])], sort_keys=True)
    container.append(("Label", f"io.causeway.configuration={hashlib.sha256(seen.encode()).hexdigest()[:16]}"))
    return unit_text(
        {
            "Unit": [
                ("Description", f"Service {name}, instance {instance.id}"),
                ("Wants", "causeway-service-network.service"),
                ("After", "network-online.target causeway-service-network.service"),
                ("StartLimitIntervalSec", 0),
            ],
            "Container": container,
            "Service": [
                ("ExecStartPre", f"/usr/bin/install -D --mode=0600 {source} {copy}" if word else None),
                ("Restart", "on-failure"),
                ("RestartSec", "200ms"),
                ("RestartSteps", 6),
                ("RestartMaxDelaySec", f"{options.restart_max_delay:g}s"),
                ("TimeoutStartSec", 60),
                ("TimeoutStopSec", stop_timeout(service) + 5),
                ("LogExtraFields", f"CAUSEWAY_SERVICE={name}"),
                ("LogExtraFields", f"CAUSEWAY_INSTANCE={instance.id}"),
            ],
            "Install": [("WantedBy", "multi-user.target")],
        }
    )


def _without_version(instance: Instance) -> Instance:
    return Instance(**{**instance.__dict__, "version": ""})


def version_drop_in(instance: Instance) -> str:
    """The one file that a release changes of a unit."""
    return unit_text(
        {
            "Container": [
                ("Image", instance.image),
                ("Label", f"io.causeway.version={instance.version}"),
                # shows as CONTAINER_TAG in the journal
                ("PodmanArgs", f"--log-opt=tag={instance.name}/{instance.id}/{instance.version}"),
            ],
            "Service": [("LogExtraFields", f"CAUSEWAY_VERSION={instance.version}")],
        }
    )


def network_name(service: Mapping[str, Any]) -> str:
    """Name of the network's unit. podman never alters a network, so another index has to be another network."""
    return f"{service['name']}-{service['index']}"


def network_unit(service: Mapping[str, Any], options: Options) -> str:
    """<service>-<index>.network: internal (no way out, no name service), with the host's side at .1 for the sidecar."""
    network = network_of(service, options)
    return unit_text(
        {
            "Unit": [("Description", f"Container network of service {service['name']}")],
            "Network": [
                # by index alone: a network that an earlier service left behind with the same subnet is this network
                ("NetworkName", f"{BRIDGE}{service['index']}"),
                ("Subnet", f"{network}.0/24"),
                ("Gateway", f"{network}.1"),
                ("Internal", True),
                ("DisableDNS", True),
                ("PodmanArgs", f"--interface-name={BRIDGE}{service['index']}"),
            ],
        }
    )


def firewall(services: Sequence[Mapping[str, Any]], options: Options) -> str:
    """nftables: a service reaches its sidecar's outbound listeners and nothing else, and nothing that is meant for a
    service leaves the host.
    """
    lines = [
        "# Written by causeway.platform; changes here are lost.",
        "table inet causeway_services",
        "delete table inet causeway_services",
        "table inet causeway_services {",
        "\tchain input {",
        "\t\ttype filter hook input priority filter - 5; policy accept;",
        f'\t\tiifname "{BRIDGE}*" ct state established,related accept',
    ]
    for service in services:
        ports = sorted(
            {int(call["port"]) for call in service.get("calls") or []}
            | set(options.host_ports)
            | set(DATABASE_PORTS if service["name"] in options.databases else ())
        )
        if ports:
            network = network_of(service, options)
            lines.append(
                f'\t\tiifname "{BRIDGE}{service["index"]}" ip saddr {network}.0/24 ip daddr {network}.1 '
                f"tcp dport {{ {', '.join(str(port) for port in ports)} }} accept"
            )
    lines += [
        f'\t\tiifname "{BRIDGE}*" counter drop',
        "\t}",
        "\tchain forward {",
        "\t\ttype filter hook forward priority filter - 5; policy accept;",
        f'\t\tiifname "{BRIDGE}*" counter drop',
        f'\t\toifname "{BRIDGE}*" counter drop',
        "\t}",
    ]
    networks = [f"{network_of(service, options)}.0/24" for service in services]
    if networks:
        # A network is gone while none of its containers runs. Without this, requests to one that was just killed would
        # take the default route, in plain text, to whoever answers there.
        lines += [
            "\tchain output {",
            "\t\ttype filter hook output priority filter - 5; policy accept;",
            '\t\toifname "lo" accept',
            f'\t\toifname "{BRIDGE}*" accept',
            f"\t\tip daddr {{ {', '.join(networks)} }} counter reject with icmp type host-unreachable",
            "\t}",
        ]
    lines.append("}")
    return "\n".join(lines) + "\n"


def firewall_unit() -> str:
    """Loads the table at boot, and again whenever nftables.service flushed all rules."""
    return unit_text(
        {
            "Unit": [
                ("Description", "Isolation of the services' container networks"),
                ("After", "nftables.service"),
                ("PartOf", "nftables.service"),
                ("PropagatesReloadTo", None),
                ("ReloadPropagatedFrom", "nftables.service"),
                ("Before", "network-online.target"),
            ],
            "Service": [
                ("Type", "oneshot"),
                ("RemainAfterExit", True),
                ("ExecStart", f"/usr/sbin/nft -f /{FIREWALL}"),
                ("ExecReload", f"/usr/sbin/nft -f /{FIREWALL}"),
                ("ExecStop", "/usr/sbin/nft destroy table inet causeway_services"),
                ("CapabilityBoundingSet", "CAP_NET_ADMIN"),
                ("NoNewPrivileges", True),
                ("ProtectSystem", "strict"),
                ("ProtectHome", True),
                ("PrivateTmp", True),
                ("PrivateDevices", True),
                ("ProtectClock", True),
                ("ProtectControlGroups", True),
                ("ProtectKernelLogs", True),
                ("ProtectKernelModules", True),
                ("ProtectKernelTunables", True),
                ("ProtectHostname", True),
                ("ProtectProc", "invisible"),
                ("RestrictAddressFamilies", "AF_NETLINK AF_UNIX"),
                ("RestrictNamespaces", True),
                ("RestrictRealtime", True),
                ("RestrictSUIDSGID", True),
                ("LockPersonality", True),
                ("MemoryDenyWriteExecute", True),
                ("SystemCallArchitectures", "native"),
                ("SystemCallFilter", "@system-service"),
                ("UMask", "0077"),
            ],
            "Install": [("WantedBy", "multi-user.target")],
        }
    )


def agent_instance(instance: Instance, options: Options) -> dict[str, Any]:
    """instances.d/<service>-<slot>.json (docs/design.md, sections 4 and 5)."""
    health = instance.service["health"]
    return {
        "service": instance.name,
        "instance": instance.id,
        "host": instance.host,
        "slot": instance.slot,
        "address": instance.address,
        "port": instance.port,
        "zone": instance.zone,
        "region": instance.region,
        "pool": instance.pool,
        "version": instance.version,
        "weight": 100,
        "checks": [
            {
                "type": "http",
                "url": health_url(instance, options),
                "interval": float(health["interval"]),
                "timeout": float(health["timeout"]),
                "unhealthy": int(health["unhealthy"]),
                "healthy": int(health["healthy"]),
            }
        ],
    }


def agent_targets(instance: Instance) -> list[dict[str, Any]]:
    """targets.d/service-<service>-<slot>.json: the process's own metrics, through its sidecar's listener."""
    labels = {
        "service": instance.name,
        "slot": str(instance.slot),
        "pool": instance.pool,
        "version": instance.version,
    }
    return [{"job": "service", "address": f"{instance.address}:{instance.port}", "labels": labels}]


def installed_version(drop_in: str) -> tuple[str, str]:
    """(version, image) out of a version.conf; empty where it does not say."""
    version = VERSION_LINE.search(drop_in)
    image = IMAGE_LINE.search(drop_in)
    return (version["version"] if version else "", image["image"] if image else "")


def normalise(service: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A service with the defaults of docs/design.md for what plain group_vars may leave out."""
    for key in ("port", "index"):
        if service.get(key) is None:
            raise QuadletError(f"services.{name}.{key}: missing")
    if not NAME_PATTERN.match(name):
        raise QuadletError(f"services.{name}: the name has lower-case letters, digits and '-' only (40 at most)")
    health = {"path": "/healthz", "interval": 0.5, "timeout": 1.0, "unhealthy": 2, "healthy": 1, "start_timeout": 60.0}
    return {
        **service,
        "name": name,
        "health": {**health, **(service.get("health") or {})},
        "release": {"drain_timeout": 30.0, **(service.get("release") or {})},
    }


def plan(
    placed: Sequence[Mapping[str, Any]],
    services: Mapping[str, Mapping[str, Any]],
    *,
    installed: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    overrides: Mapping[str, str],
    options: Options,
) -> dict[str, Any]:
    """What one host should run.

    `placed`: the host's instances. `installed`: what service_info found, by `<service>@<slot>`. `versions`: the
    version of a fresh instance by service (default: the description's). `overrides`: by `<service>@<slot>`, replaces
    also the version of a running instance; only releases pass it. Raises QuadletError.
    """
    instances: list[Instance] = []
    known: dict[str, dict[str, Any]] = {}
    for entry in placed:
        name = str(entry["service"])
        if name not in services:
            allowed = ", ".join(sorted(services)) or "none"
            raise QuadletError(f"causeway_instances: service {name!r} is not described (described: {allowed})")
        service = known.setdefault(name, normalise(services[name], name))
        slot = int(entry["slot"])
        if not 0 <= slot <= MAX_SLOT:
            raise QuadletError(f"causeway_instances: slot {slot} of {name} is outside 0..{MAX_SLOT}")
        key = f"{name}@{slot}"
        version = (
            overrides.get(key)
            or (installed.get(key) or {}).get("version")
            or versions.get(name)
            or service.get("version")
            or ""
        )
        instances.append(
            Instance(
                service=service,
                slot=slot,
                id=str(entry.get("id") or f"{entry['host']}-{slot}"),
                host=str(entry["host"]),
                address=str(entry["address"]),
                port=int(entry["port"]),
                zone=str(entry.get("zone") or ""),
                region=str(entry.get("region") or ""),
                pool=str(entry.get("pool") or "stable"),
                version=check_version(version, f"services.{name}"),
            )
        )
    keys = [instance.key for instance in instances]
    doubles = sorted({key for key in keys if keys.count(key) > 1})
    if doubles:
        raise QuadletError(f"causeway_instances: {', '.join(doubles)} is there twice")
    unknown = sorted(set(overrides) - set(keys))
    if unknown:
        raise QuadletError(
            f"{', '.join(unknown)}: not placed on this host (placed: {', '.join(sorted(keys)) or 'none'})"
        )
    instances.sort(key=lambda instance: (instance.name, instance.slot))
    present = sorted(known.values(), key=lambda service: str(service["name"]))
    files: dict[str, dict[str, Any]] = {}
    for service in present:
        files[f"{UNITS}/{network_name(service)}.network"] = {"content": network_unit(service, options)}
    for instance in instances:
        unit = f"{UNITS}/{instance.key}.container"
        files[unit] = {"content": container_unit(instance, options)}
        files[f"{unit}.d/version.conf"] = {"content": version_drop_in(instance)}
        files[f"{SETTINGS}/{instance.container}.env"] = {
            "content": environment_file(instance, options),
            "mode": "0600",
            "secret": True,
        }
        word = passfile(instance, options)
        if word:
            files[f"{SETTINGS}/{instance.container}.pgpass"] = {"content": word, "mode": "0600", "secret": True}
        files[f"{INSTANCES}/{instance.container}.json"] = {
            "content": json.dumps(agent_instance(instance, options), indent=2, sort_keys=True) + "\n"
        }
        if (instance.service.get("metrics") or {}).get("path"):
            files[f"{TARGETS}/service-{instance.container}.json"] = {
                "content": json.dumps(agent_targets(instance), indent=2, sort_keys=True) + "\n"
            }
    files[FIREWALL] = {"content": firewall(present, options)}
    files[NETWORK_UNIT] = {"content": firewall_unit()}
    # A release's instance that is only left alone has its image; the archive may be gone from the controller by now.
    images = [
        image_of(instance.service, instance.version)
        for instance in instances
        if instance.pool == STABLE or instance.key in overrides
    ]
    return {
        "files": files,
        "images": [image for number, image in enumerate(images) if image not in images[:number]],
        "instances": [
            {
                "key": instance.key,
                "service": instance.name,
                "slot": instance.slot,
                "id": instance.id,
                "pool": instance.pool,
                "unit": instance.unit,
                "version": instance.version,
                "image": instance.image,
                "health_url": health_url(instance, options),
                "health_interval": float(instance.service["health"]["interval"]),
                "health_timeout": float(instance.service["health"]["timeout"]),
                "start_timeout": float(instance.service["health"]["start_timeout"]),
            }
            for instance in instances
        ],
        "stale": [{"key": key, "unit": f"{key}.service"} for key in sorted(set(installed) - set(keys))],
    }
