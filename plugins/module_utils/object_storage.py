# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys, identities and addresses of the object storage (docs/design.md, section 10): pure functions."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

IDENTITY = "object-storage"
PROCESSES = ("master", "volume", "filer", "s3")
# HTTPS, gRPC, and metrics on 127.0.0.1. gRPC's is named everywhere: SeaweedFS would add 10000, which is the databases'.
PORTS = {
    "s3": {"https": 9400, "grpc": 9414, "metrics": 9424},
    "master": {"https": 9401, "grpc": 9411, "metrics": 9421},
    "volume": {"https": 9402, "grpc": 9412, "metrics": 9422},
    "filer": {"https": 9403, "grpc": 9413, "metrics": 9423},
}
METRICS_PORT = 9405
S3_PORT = PORTS["s3"]["https"]
ADMIN = "admin"
# What the identity of a bucket may do in it; S3's rights that reach beyond objects are the administrator's.
ACTIONS = ("Read", "Write", "List", "Tagging")
MIN_SECRET = 16


class ObjectStorageError(Exception):
    """What is wrong with the input, in one sentence."""


def derived(secret: str, name: str) -> str:
    """Hex HMAC-SHA256 of ``object_storage/<name>`` under the secret; ObjectStorageError if that is too short."""
    if len(secret) < MIN_SECRET:
        raise ObjectStorageError(f"causeway_secrets.object_storage must have at least {MIN_SECRET} characters")
    return hmac.new(secret.encode(), f"object_storage/{name}".encode(), hashlib.sha256).hexdigest()


def user_of(bucket: str) -> str:
    """The identity that works with a bucket."""
    return f"bucket-{bucket}"


def keys(secret: str, user: str) -> dict[str, str]:
    """Access key (20 characters, as S3's are) and secret key of an identity.

    >>> sorted(keys("0123456789abcdef", "admin"))
    ['access_key', 'secret_key']
    """
    return {
        "access_key": derived(secret, f"{user}/access_key")[:20].upper(),
        "secret_key": derived(secret, f"{user}/secret_key"),
    }


def identities(buckets: Iterable[str], secret: str) -> dict[str, Any]:
    """SeaweedFS's identities: an administrator, and for each bucket one that reaches no other."""

    def one(name: str, actions: list[str]) -> dict[str, Any]:
        own = keys(secret, name)
        return {
            "name": name,
            "credentials": [{"accessKey": own["access_key"], "secretKey": own["secret_key"]}],
            "actions": actions,
        }

    found = [one(ADMIN, ["Admin"])]
    for bucket in sorted(buckets):
        found.append(one(user_of(bucket), [f"{action}:{bucket}" for action in ACTIONS]))
    return {"identities": found}


def server(address: str, process: str) -> str:
    """A process's address in SeaweedFS's own form: ``<address>:<port>.<gRPC port>``."""
    return f"{address}:{PORTS[process]['https']}.{PORTS[process]['grpc']}"


def servers(hosts: Sequence[Mapping[str, Any]], process: str, first: str = "") -> str:
    """All addresses of a process, a host's own first if it has one. hosts: ``causeway_object_storage.hosts``."""
    fit = [one for one in hosts if process != "master" or one["master"]]
    ordered = sorted(fit, key=lambda one: one["host"] != first)
    return ",".join(server(str(one["address"]), process) for one in ordered)


def rotated(items: Sequence[str], hosts: Sequence[Mapping[str, Any]], host: str) -> list[str]:
    """A list that begins elsewhere on each host. SeaweedFS does not start while the first etcd member is away.

    >>> rotated(["a", "b", "c"], [{"host": "x"}, {"host": "y"}], "y")
    ['b', 'c', 'a']
    """
    if not items:
        return []
    names = [one["host"] for one in hosts]
    start = names.index(host) % len(items) if host in names else 0
    return [*items[start:], *items[:start]]


def processes(hosts: Sequence[Mapping[str, Any]], host: str) -> list[str]:
    """What runs on a host, in the order of starting."""
    found = next((one for one in hosts if one["host"] == host), None)
    if found is None:
        return []
    return [process for process in PROCESSES if process != "master" or found["master"]]


def options(storage: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Arguments of each process on a host. None of them is a secret.

    settings: ``data``, ``run``, ``tls`` and ``config`` are directories, ``volume_size`` and ``chunk_size`` MiB,
    ``volumes`` the most volumes (0: as many as fit), ``min_free`` percent, ``election`` seconds.
    """
    hosts = storage["hosts"]
    own = next((one for one in hosts if one["host"] == host), None)
    if own is None:
        return {}
    address = str(own["address"])
    where = ["-dataCenter", str(own["region"])]
    # In one order everywhere: the first of them founds the cluster when it sees no leader anywhere.
    masters = servers(hosts, "master")

    def common(process: str) -> list[str]:
        ports = PORTS[process]
        return [
            *("-ip", address, "-ip.bind", address, "-port", str(ports["https"]), "-port.grpc", str(ports["grpc"])),
            *("-metricsIp", "127.0.0.1", "-metricsPort", str(ports["metrics"])),
        ]

    found = {
        "master": [
            *common("master"),
            "-telemetry=false",
            *("-mdir", f"{settings['data']}/master", "-peers", masters if "," in masters else "none"),
            *("-defaultReplication", str(storage["replication"]), "-electionTimeout", f"{int(settings['election'])}s"),
            *("-volumeSizeLimitMB", str(int(settings["volume_size"]))),
        ],
        "volume": [
            *common("volume"),
            *("-dir", f"{settings['data']}/volume", "-max", str(int(settings["volumes"])), "-master", masters),
            *where,
            *("-rack", str(own["zone"]), "-minFreeSpace", str(int(settings["min_free"])), "-preStopSeconds", "2"),
        ],
        "filer": [
            *common("filer"),
            *("-master", masters, "-defaultReplicaPlacement", str(storage["replication"])),
            *where,
            *("-localSocket", f"{settings['run']}/filer/filer.sock", "-maxMB", str(int(settings["chunk_size"]))),
            # No listing and no uploads by other means than S3.
            *("-disableDirListing", "-exposeDirectoryData=false", "-ui.deleteDir=false", "-tusBasePath="),
        ],
        "s3": [
            *common("s3"),
            # The others' filers while this host's is away.
            *("-filer", servers(hosts, "filer", host), "-localSocket", f"{settings['run']}/s3/s3.sock"),
            *where,
            *("-cert.file", f"{settings['tls']}/cert.pem", "-key.file", f"{settings['tls']}/key.pem"),
            *("-config", f"{settings['config']}/s3.json", "-iam=false", "-port.iceberg", "0", "-port.lance", "0"),
            *("-autoCreateBucket=false", "-allowDeleteBucketNotEmpty=false"),
        ],
    }
    return {process: found[process] for process in processes(hosts, host)}


def environments(storage: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Files of the processes' units by path, as module config_tree takes them."""
    result: dict[str, dict[str, Any]] = {}
    address = next((str(one["address"]) for one in storage["hosts"] if one["host"] == host), "")
    for process, words in options(storage, host, settings).items():
        lines = [
            "# Managed by role causeway.platform.object_storage.",
            f'OPTIONS="{" ".join(words)}"',
            f"ADDRESS={address}",
            f"PORT={PORTS[process]['https']}",
            f"GRPC_PORT={PORTS[process]['grpc']}",
        ]
        result[f"{str(settings['config']).lstrip('/')}/{process}.env"] = {"content": "\n".join(lines) + "\n"}
    return result


def targets(hosts: Sequence[Mapping[str, Any]], host: str) -> list[dict[str, Any]]:
    """Scrape targets of a host (docs/design.md section 5): each process behind the proxy ``object-storage``."""
    address = next((one["address"] for one in hosts if one["host"] == host), "")
    return [
        {"job": "object_storage", "address": f"{address}:{METRICS_PORT}", "labels": {"process": process}}
        for process in processes(hosts, host)
    ]


def repositories(items: Sequence[Mapping[str, Any]], storage: Mapping[str, Any], secret: str) -> list[dict[str, Any]]:
    """Further repositories of pgBackRest as role ``backup`` wants them, the platform's own object storage filled in.

    items: ``causeway_backups.repositories``. storage: ``causeway_object_storage``. Raises ObjectStorageError.
    """
    result = []
    for number, item in enumerate(items):
        if item.get("type") != "object_storage":
            result.append(dict(item))
            continue
        if not storage:
            raise ObjectStorageError(f"repository {number}: the platform has no object storage")
        bucket = str(item["bucket"])
        if bucket not in storage["buckets"]:
            raise ObjectStorageError(f"repository {number}: the object storage has no bucket {bucket}")
        own = keys(secret, user_of(bucket))
        result.append(
            {
                "type": "s3",
                "own": True,
                "path": item.get("path", "/"),
                "retention": dict(item.get("retention") or {}),
                "bucket": bucket,
                "endpoint": storage["endpoint"],
                "port": S3_PORT,
                "region": storage["region"],
                "uri_style": "path",
                "key": own["access_key"],
                "key_secret": own["secret_key"],
            }
        )
    return result


def name_lines(storage: Mapping[str, Any], zone: str = "", region: str = "") -> str:
    """Lines of ``/etc/hosts``: the endpoint's name for each host, those of the own zone and region first."""

    def distance(one: Mapping[str, Any]) -> int:
        return 0 if one["zone"] == zone else 1 if one["region"] == region else 2

    if not storage:
        return ""
    ordered = sorted(storage["hosts"], key=distance)
    return "\n".join(f"{one['address']}\t{storage['endpoint']}" for one in ordered)
