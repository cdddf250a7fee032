# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object storage and further repositories of backups: defaults, rules, what is derived (docs/design.md, section 10)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.s3 import BUCKET_TEXT, bucket_allowed
from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Vaulted
from ansible_collections.causeway.platform.plugins.module_utils.topology.placement import Site, place
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import choices, show, suggest

if TYPE_CHECKING:
    from ansible_collections.causeway.platform.plugins.module_utils.topology.model import Host, Topology

COMPONENT = "object_storage"
MASTERS = (1, 3, 5, 7)
# S3; master, volume server and filer with HTTPS; metrics of all; gRPC of the four. docs/design.md section 3
PORTS = frozenset({*range(9400, 9406), *range(9411, 9415)})
DEFAULT_BUCKET = "backups"
# Keys of each kind of repository beside path and retention: those that it needs, and those that it may have.
REPOSITORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    COMPONENT: ((), ("bucket",)),
    "s3": (("bucket", "endpoint", "region", "key", "key_secret"), ("port", "uri_style", "ca_file")),
    "sftp": (("host", "user", "private_key", "known_host"), ("port",)),
}
SECRET_KEYS = ("key", "key_secret", "private_key")
VAULT = "a !vault value (ansible-vault encrypt_string)"


def build_bucket(data: dict[str, Any] | None) -> dict[str, Any]:
    """One bucket with its defaults, in the words of module ``object_storage_bucket``."""
    data = data or {}
    versioning, lock = data.get("versioning", True), data.get("lock") or {}
    return {
        "versioning": versioning,
        "noncurrent_days": data.get("noncurrent_days", 14 if versioning else 0),
        "expiration_days": data.get("expiration_days", 0),
        "multipart_days": data.get("multipart_days", 7),
        "lock_mode": lock.get("mode", "none"),
        "lock_days": lock.get("days", 0),
    }


def buckets_of(topology: Topology) -> dict[str, dict[str, Any]]:
    """All buckets by name; one for backups if none is described."""
    given = (topology.document.data or {}).get(COMPONENT) or {}
    return {name: build_bucket(data) for name, data in (given.get("buckets") or {DEFAULT_BUCKET: {}}).items()}


def spare(count: int) -> int:
    """Further copies over so many places: one place may be lost without stopping writes, with four or more also
    without leaving a single copy.

    >>> [spare(count) for count in range(1, 6)]
    [0, 1, 1, 2, 2]
    """
    return 0 if count < 2 else 1 if count < 4 else 2


def replication(hosts: list[Host]) -> str:
    """SeaweedFS's replication: further copies in other data centers (regions), racks (zones) and servers.

    https://github.com/seaweedfs/seaweedfs/wiki/Replication
    """
    zones: dict[str, set[str]] = {}
    for host in hosts:
        zones.setdefault(host.region, set()).add(host.zone)
    fewest = min((len(names) for names in zones.values()), default=0)
    if fewest > 1:
        return f"0{spare(fewest)}0"
    if len(zones) > 1:
        return f"{spare(len(zones))}00"
    return f"00{spare(len(hosts))}"


def masters(topology: Topology) -> list[str]:
    """Names of the hosts with a master, over zones first."""
    hosts = topology.with_component(COMPONENT)
    count = _master_count(topology)
    if count >= len(hosts):
        return [host.name for host in hosts]
    chosen = place(f"{COMPONENT}/masters", count, 1, [Site(host.name, host.zone, host.region) for host in hosts])
    names = {site.host for site, _slot in chosen}
    return [host.name for host in hosts if host.name in names]


def _master_count(topology: Topology) -> int:
    given = (topology.document.data or {}).get(COMPONENT) or {}
    count: int = given.get("masters", len(topology.with_component(COMPONENT)))
    return count


def check(topology: Topology) -> None:
    """Rules of the object storage, then those of the repositories."""
    report, data = topology.document.report, topology.document.data or {}
    hosts = topology.with_component(COMPONENT)
    doubtful = COMPONENT in topology.doubtful
    if COMPONENT in data and not hosts and not doubtful:
        may = "1, 3, 5 or 7 hosts with the component object_storage"
        report((COMPONENT,), "no host for it", None, may)
    if hosts and not doubtful:
        _check_masters(topology, len(hosts))
        _check_replication(topology, hosts)
    given = data.get(COMPONENT) or {}
    for name, bucket in (given.get("buckets") or {}).items():
        _check_bucket(topology, name, bucket or {})
    for number, item in enumerate((data.get("backups") or {}).get("repositories") or []):
        if item:
            _check_repository(topology, number, item)


def _check_masters(topology: Topology, count: int) -> None:
    report = topology.document.report
    given = (topology.document.data or {}).get(COMPONENT) or {}
    allowed = [str(number) for number in MASTERS if number <= count]
    if "masters" in given:
        if given["masters"] > count:
            may = choices(allowed)
            report((COMPONENT, "masters"), "more than there are hosts", str(given["masters"]), may)
    elif count not in MASTERS:
        problem = "an even number of masters adds no safety" if count % 2 == 0 else "too many masters"
        may = f"{choices(map(str, MASTERS))} hosts with this component, or object_storage.masters ({choices(allowed)})"
        report(("regions",), f"object_storage: {problem}", f"{count} hosts", may)


def _check_replication(topology: Topology, hosts: list[Host]) -> None:
    given = ((topology.document.data or {}).get(COMPONENT) or {}).get("replication")
    if not given:
        return
    regions = {host.region for host in hosts}
    zones = {region: {host.zone for host in hosts if host.region == region} for region in regions}
    most = max(sum(1 for host in hosts if host.zone == zone) for zone in {host.zone for host in hosts})
    places = (len(regions), max(len(names) for names in zones.values()), most)
    for digit, count, words in zip(given, places, ("regions", "zones of one region", "hosts of one zone")):
        if int(digit) >= count:
            path, may = (COMPONENT, "replication"), f"{replication(hosts)}, for example"
            text = f"{digit} further copies need {int(digit) + 1} {words}, there are {count}"
            topology.document.report(path, text, show(given), may)
            return


def _check_bucket(topology: Topology, name: str, bucket: dict[str, Any]) -> None:
    report, path = topology.document.report, (COMPONENT, "buckets", name)
    if topology.document.refused(*path):
        return
    if not bucket_allowed(name):
        report(path, "S3 keeps such names for itself", show(name), "another name")
    if not build_bucket(bucket)["versioning"]:
        for key in ("noncurrent_days", "lock"):
            if key in bucket:
                report((*path, key), "without versioning there are no older versions", None, "versioning: true")
                return


def _check_repository(topology: Topology, number: int, item: dict[str, Any]) -> None:
    document, path = topology.document, ("backups", "repositories", number)
    report, kind = document.report, item.get("type")
    if document.refused(*path) or kind not in REPOSITORIES:
        return
    needed, further = REPOSITORIES[kind]
    known = ("type", "path", "retention", *needed, *further)
    for key in item:
        if key not in known:
            report((*path, key), f"a repository of type {kind} has no such key", None, choices(known))
    for key in needed:
        if key not in item:
            report(path, f"the key {key} is missing", None, f"with type {kind}: {choices(needed)}")
            return
    for key in SECRET_KEYS:
        if key in item and not isinstance(item[key], Vaulted):
            report((*path, key), "a secret in plain text", None, VAULT)
    _check_target(topology, path, item)
    _check_twice(topology, number, item)


def _check_target(topology: Topology, path: tuple[Any, ...], item: dict[str, Any]) -> None:
    report, bucket = topology.document.report, item.get("bucket", DEFAULT_BUCKET)
    if item["type"] == COMPONENT:
        if not topology.with_component(COMPONENT):
            if COMPONENT not in topology.doubtful:
                may = "hosts with the component object_storage, or another type: s3, sftp"
                report((*path, "type"), "no host has this component", show(COMPONENT), may)
        elif bucket not in buckets_of(topology) and not topology.document.refused(COMPONENT, "buckets"):
            names = sorted(buckets_of(topology))
            report((*path, "bucket"), f"unknown bucket{suggest(bucket, names)}", show(bucket), choices(names))
    elif item["type"] == "s3":
        if not bucket_allowed(bucket):
            report((*path, "bucket"), "S3 does not allow this name", show(bucket), BUCKET_TEXT)
        file = _ca_file(topology, item)
        if file and not file.is_file():
            report((*path, "ca_file"), "no such file", show(item["ca_file"]), "a file, its path relative to this one")


def _ca_file(topology: Topology, item: dict[str, Any]) -> Path | None:
    return topology.document.path.parent / item["ca_file"] if item.get("ca_file") else None


def _place(item: dict[str, Any]) -> tuple[Any, ...]:
    bucket = item.get("bucket", DEFAULT_BUCKET if item["type"] == COMPONENT else "")
    path = (item.get("path") or "/").rstrip("/")
    return (item["type"], item.get("endpoint", ""), item.get("host", ""), item.get("port", 0), bucket, path)


def _check_twice(topology: Topology, number: int, item: dict[str, Any]) -> None:
    given = (topology.document.data or {})["backups"]["repositories"]
    for first, other in enumerate(given[:number]):
        if other and other.get("type") in REPOSITORIES and _place(other) == _place(item):
            path, may = ("backups", "repositories", number), "a bucket or path of its own"
            topology.document.report(path, f"the place of backups.repositories[{first}]", None, may)
            return


def derive(topology: Topology) -> dict[str, Any]:
    """``causeway_object_storage``: {} without hosts."""
    hosts = topology.with_component(COMPONENT)
    if not hosts:
        return {}
    chosen = masters(topology)
    given = (topology.document.data or {}).get(COMPONENT) or {}
    return {
        "hosts": [
            {
                "host": host.name,
                "address": host.address,
                "zone": host.zone,
                "region": host.region,
                "master": host.name in chosen,
            }
            for host in hosts
        ],
        "endpoint": f"object-storage.{topology.domain}",
        "region": topology.platform,
        "replication": given.get("replication") or replication(hosts),
        "buckets": buckets_of(topology),
    }


def derive_backups(topology: Topology) -> dict[str, Any]:
    """``causeway_backups``: further repositories; values that are secrets are Vaulted."""
    result = []
    for item in ((topology.document.data or {}).get("backups") or {}).get("repositories") or []:
        entry = {**item, "path": item.get("path", "/"), "retention": item.get("retention") or {}}
        if item["type"] == COMPONENT:
            entry["bucket"] = item.get("bucket", DEFAULT_BUCKET)
        file = _ca_file(topology, item)
        if file:
            # Its content: hosts do not have the description's folder.
            entry["ca"] = file.read_text(encoding="utf-8")
            del entry["ca_file"]
        result.append(entry)
    return {"repositories": result}


def advice(topology: Topology) -> list[str]:
    """What is allowed but a poor idea."""
    found: list[str] = []
    hosts = topology.with_component(COMPONENT)
    if not hosts:
        return found
    copies = replication(hosts)
    zones = {host.zone for host in hosts}
    if copies == "000":
        found.append("object_storage: a single host holds the only copy of every object")
    elif len(hosts) == 1 + sum(map(int, copies)):
        found.append(f"object_storage: {len(hosts)} hosts for as many copies: while one is away nothing can be written")
    if len(zones) == 1 and len({zone for region in topology.regions for zone in region.zones}) > 1:
        found.append(f"object_storage: all its hosts are in zone {zones.pop()}: losing it loses the objects")
    own = [host.name for host in hosts if "backup" in host.components]
    if own and len(hosts) == 1 and _repository_here(topology):
        found.append(f"host {own[0]} holds both repositories of the backups: its loss takes both")
    return found


def _repository_here(topology: Topology) -> bool:
    given = ((topology.document.data or {}).get("backups") or {}).get("repositories") or []
    return any(item.get("type") == COMPONENT for item in given)
