# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From platform.yml and the service files to the groups and variables of docs/design.md section 1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.topology import (
    databases,
    object_storage,
    rules,
    schema,
)
from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Document, Vaulted, read_document
from ansible_collections.causeway.platform.plugins.module_utils.topology.model import (
    Service,
    Topology,
    build_service,
    build_topology,
    natural,
    settle_instances,
)
from ansible_collections.causeway.platform.plugins.module_utils.topology.placement import place
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import (
    DescriptionError,
    Problem,
    choices,
    suggest,
)

MAX_SERVICES = (schema.MESH_PORTS[1] - schema.MESH_PORTS[0]) // schema.SLOTS + 1
SECRETS = rules.OWN_SECRETS
SSH_OPTIONS = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


@dataclass
class Group:
    """A group: its own hosts, and groups below it."""

    hosts: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)


@dataclass
class Description:
    """A sound description. Values may hold Vaulted and Unsafe; ``free``: the user's own variables, may be templates."""

    variables: dict[str, Any]
    free: dict[str, Any]
    hosts: dict[str, dict[str, Any]]
    host_free: dict[str, dict[str, Any]]
    groups: dict[str, Group]
    secrets: Path | None
    warnings: list[str]


def display_path(path: Path) -> str:
    """The path as a person in this directory would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def read_description(path: Path) -> Description:
    """Reads and checks everything; raises DescriptionError with all problems."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow a symlink away from the services)
    platform = read_document(path, display_path(path))
    documents = [platform]
    if platform.data is None:
        raise DescriptionError(platform.problems)
    doubtful = rules.doubtful_components(platform)
    dropped = schema.check(platform, schema.PLATFORM)
    topology = build_topology(platform)
    topology.doubtful = doubtful if rules.hosts_complete(platform.data, dropped) else set(schema.COMPONENTS)

    folder = path.parent / (platform.data.get("services") or "services")
    for file in _service_files(platform, folder):
        document = read_document(file, display_path(file))
        documents.append(document)
        if document.data is None:
            topology.unread.add(file.stem)
            continue
        schema.check(document, schema.SERVICE)
        service = build_service(document, file.parent)
        databases.settle(topology, service)
        settle_instances(service, len(topology.sites(service)) * service.spec["instances"]["per_host"])
        first = topology.services.setdefault(service.name, service)
        if first is not service:
            document.report(
                ("name",), "duplicate service name", f'"{service.name}"', f"a name that {first.document.file} has not"
            )
    rules.check_all(topology)

    secrets = None
    if platform.data.get("secrets"):
        secrets = Path(os.path.normpath(path.parent / platform.data["secrets"]))
        documents.append(check_secrets(secrets, wanted_secrets(topology)))
    problems = [problem for document in documents for problem in document.problems]
    if problems:
        raise DescriptionError(problems)
    return _derive(topology, path, secrets)


def _service_files(platform: Document, folder: Path) -> list[Path]:
    named = (platform.data or {}).get("services")
    try:
        files = [
            item for item in folder.iterdir() if item.suffix in (".yml", ".yaml") and not item.name.startswith(".")
        ]
    except OSError as error:
        if named or not isinstance(error, FileNotFoundError):
            platform.report(
                ("services",), f"cannot be listed: {error.strerror}", f'"{named}"', "a folder with one file per service"
            )
        return []
    if len(files) > MAX_SERVICES:
        platform.report(("services",), "too many service files", str(len(files)), f"at most {MAX_SERVICES}")
        return []
    return sorted(files, key=lambda item: natural(item.name))


def wanted_secrets(topology: Topology) -> tuple[str, ...]:
    """Names that the secrets file must have."""
    idle: set[str] = set()
    if not databases.with_database(topology):
        idle.update(rules.DATABASE_SECRETS)
    if not topology.with_component(object_storage.COMPONENT):
        idle.update(rules.OBJECT_STORAGE_SECRETS)
    return tuple(name for name in SECRETS if name not in idle)


def check_secrets(path: Path, wanted: Iterable[str] = SECRETS) -> Document:
    """A secrets file in which each value is encrypted on its own. Messages name keys, never values."""
    document = read_document(path, display_path(path))
    if document.problems or document.data is None:
        command = f"ansible-playbook -i localhost, causeway.platform.secrets_init -e secrets_file={path}"
        first = document.problems[0] if document.problems else Problem(document.file, (), "wrong content")
        if "tag" in first.text or first.path:  # a value's own problem; its text could be the secret
            first = Problem(first.file, first.path, "not an encrypted value", None, rules.VAULT, first.line)
        text = first.text if path.exists() else f"no such secrets file; make it with: {command}"
        got = None if first.text == "wrong content" else first.got
        whole = _encrypted_as_a_whole(path)
        if whole:
            text, got = "encrypted as a whole, so that its keys cannot be checked", None
        allowed = "a mapping of names to !vault values" if whole or first.allowed is None else first.allowed
        document.problems[:] = [
            Problem(first.file, first.path, text, got, allowed if path.exists() else None, first.line)
        ]
        return document
    for key, value in document.data.items():
        if not isinstance(value, Vaulted):
            text = "a secret in plain text" if isinstance(value, (str, int, float)) else "not an encrypted value"
            document.report((key,), text, None, rules.VAULT)
    wanted = tuple(wanted)
    for key in wanted:
        if key not in document.data:
            near = suggest(key, [name for name in document.data if name not in SECRETS])
            text = f"the secret {key} is missing{near}"
            if key in (*rules.DATABASE_SECRETS, *rules.OBJECT_STORAGE_SECRETS):
                why = "a service has a database" if key in rules.DATABASE_SECRETS else "there is an object storage"
                text += f"; {why}: run the playbook causeway.platform.secrets_init again"
            document.report((), text, None, f"{choices(wanted)} and your own")
    return document


def _encrypted_as_a_whole(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(15).startswith(b"$ANSIBLE_VAULT;")
    except OSError:
        return False


def underscored(name: str) -> str:
    """A name as part of a group's name."""
    return name.replace("-", "_")


def _derive(topology: Topology, path: Path, secrets: Path | None) -> Description:
    hosts = {
        host.name: {
            "name": host.name,
            "address": host.address,
            "zone": host.zone,
            "region": host.region,
            "components": list(host.components),
        }
        for host in topology.hosts
    }
    placed: dict[str, list[dict[str, Any]]] = {name: [] for name in hosts}
    services = {}
    for name in sorted(topology.services, key=natural):
        service = topology.services[name]
        service.spec["instances"]["placed"] = instances(service, topology, hosts)
        for instance in service.spec["instances"]["placed"]:
            placed[instance["host"]].append(instance)
        services[name] = service.spec
    clusters = databases.derive(topology, services, hosts)
    variables: dict[str, Any] = {
        "causeway_platform": topology.platform,
        "causeway_domain": topology.domain,
        "causeway_regions": {
            region.name: {
                "state": region.state,
                "zones": list(region.zones),
                "gateway": {"address": region.address, "port": region.port, "router_id": region.router_id},
            }
            for region in topology.regions
        },
        "causeway_hosts": hosts,
        "causeway_services": services,
        "causeway_databases": clusters,
        "causeway_object_storage": object_storage.derive(topology),
        "causeway_backups": object_storage.derive_backups(topology),
        "causeway_lab": _lab(topology, path),
    }
    free = dict(topology.vars)
    if topology.lab:
        key = f"{variables['causeway_lab']['state']}/ssh/id"
        lab = {"ansible_user": "root", "ansible_ssh_private_key_file": key, "ansible_ssh_common_args": SSH_OPTIONS}
        variables.update({name: value for name, value in lab.items() if name not in free})
    return Description(
        variables,
        free,
        {
            name: {"ansible_host": host["address"], "causeway_host": host, "causeway_instances": placed[name]}
            for name, host in hosts.items()
        },
        {host.name: host.vars for host in topology.hosts if host.vars},
        _groups(topology, services, clusters),
        secrets,
        rules.advice(topology),
    )


def instances(service: Service, topology: Topology, hosts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The instances of a service, in order of host and slot."""
    spec = service.spec
    chosen = place(service.name, service.count, spec["instances"]["per_host"], topology.sites(service))
    chosen.sort(key=lambda pair: (natural(pair[0].host), pair[1]))
    return [
        {
            "service": service.name,
            "host": site.host,
            "slot": slot,
            "id": f"{site.host}-{slot}",
            "address": hosts[site.host]["address"],
            "port": spec["mesh_port"] + slot,
            "zone": site.zone,
            "region": site.region,
            "pool": "stable",
        }
        for site, slot in chosen
    ]


def _groups(topology: Topology, services: dict[str, Any], clusters: dict[str, Any]) -> dict[str, Group]:
    groups = {
        component: Group([host.name for host in topology.with_component(component)]) for component in schema.COMPONENTS
    }
    for region in topology.regions:
        groups[f"region_{underscored(region.name)}"] = Group(
            children=[f"zone_{underscored(zone)}" for zone in region.zones]
        )
        for zone in region.zones:
            groups[f"zone_{underscored(zone)}"] = Group()
    for host in topology.hosts:
        groups[f"zone_{underscored(host.zone)}"].hosts.append(host.name)
    for name, service in services.items():
        groups[f"service_{underscored(name)}"] = Group(_unique(item["host"] for item in service["instances"]["placed"]))
    for name, cluster in clusters.items():
        groups[f"database_{underscored(name)}"] = Group([item["host"] for item in cluster["members"]])
    return groups


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _lab(topology: Topology, path: Path) -> dict[str, Any]:
    lab = topology.lab
    if not lab:
        return {}
    network = schema.network_of(lab["network"])
    root = next((folder for folder in path.parents if (folder / "galaxy.yml").is_file()), path.parent)
    state = path.parent / lab["state"] if "state" in lab else root / ".cache" / lab["name"]
    return {
        "name": lab["name"],
        "network": str(network),
        "gateway": lab.get("gateway", str(network[1])),
        "packages": list(lab.get("packages") or []),
        "mirror": lab.get("mirror", ""),
        "state": os.path.normpath(state),
    }
