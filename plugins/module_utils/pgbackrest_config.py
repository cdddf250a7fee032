# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgBackRest's configuration, units and timers from the platform's databases."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Archiving asks again anyway: with the default, a minute each time, a standby waits three minutes for each file that it
# asks for while one of the repositories is away, and the others get their log late.
REPOSITORY_AWAY = "io-timeout=10"
PG_LIMIT = 8  # https://pgbackrest.org/2.55/configuration.html: pg1 to pg8
KINDS = {
    "full": "Full backup",
    "differential": "Differential backup",
    "incremental": "Incremental backup",
    "verify": "Check of the repository",
    "restore-test": "Restore test",
}


class BackupError(Exception):
    """The description cannot be backed up."""


def cipher(secret: str, cluster: str, place: str = "") -> str:
    """Passphrase of a cluster in a repository: hex HMAC-SHA256 of ``backup/<cluster>`` under the secret.

    place: what tells a further repository from the others, appended with a slash; each has a passphrase of its own.
    """
    name = f"backup/{cluster}/{place}" if place else f"backup/{cluster}"
    return hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Repository:
    """A repository beside the one on the repository host, reached directly by every host.

    :ivar options: options of pgBackRest without ``repoN-``, such as ``{"s3-bucket": "backups"}``.
    :ivar own: it is the platform's own object storage, whose certificates the platform's roots verify.
    """

    type: str
    path: str
    options: dict[str, str]
    retention: dict[str, int]
    own: bool = False

    @property
    def place(self) -> str:
        """Where it is, whatever its number."""
        names = ("s3-endpoint", "s3-bucket") if self.type == "s3" else ("sftp-host", "sftp-host-user")
        return ":".join([self.type, *(self.options[name] for name in names), self.path])


@dataclass(frozen=True)
class Settings:
    """What role ``backup`` knows."""

    host: str
    address: str
    domain: str
    port: int
    user: str
    is_repository: bool
    is_database: bool
    repository: str  # address of the repository host
    repository_path: str
    tls: str
    data: str
    sockets: str
    spool: str
    lock: str
    log: str
    secret: str
    process_max: int
    compress_type: str
    compress_level: int
    queue_max: str
    standby: str
    repositories: list[Repository] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def repository_from(number: int, item: Mapping[str, Any]) -> Repository:
    """One entry of ``backup_repositories``; BackupError with one reason."""
    where = f"backup_repositories[{number}]"
    kind = str(item.get("type", ""))
    needed = {
        "s3": ("bucket", "endpoint", "region", "key", "key_secret"),
        "sftp": ("host", "user", "private_key", "known_host"),
    }
    if kind not in needed:
        raise BackupError(f"{where}.type: {kind!r} is unknown; allowed: {', '.join(needed)}")
    missing = [name for name in needed[kind] if not str(item.get(name) or "")]
    if missing:
        raise BackupError(f"{where}: missing for {kind}: {', '.join(missing)}")
    retention = {name: int(value) for name, value in dict(item.get("retention") or {}).items()}
    if set(retention) - {"full", "differential"} or any(value < 1 for value in retention.values()):
        raise BackupError(f"{where}.retention: full and differential, numbers from 1")
    options: dict[str, str] = {}
    if kind == "s3":
        options = {
            "s3-bucket": str(item["bucket"]),
            "s3-endpoint": str(item["endpoint"]),
            "s3-region": str(item["region"]),
            "s3-key": str(item["key"]),
            "s3-key-secret": str(item["key_secret"]),
            "s3-uri-style": str(item.get("uri_style") or "host"),
            "storage-verify-tls": "y",
        }
        if item.get("port"):
            options["storage-port"] = str(item["port"])
        if item.get("ca"):
            options["storage-ca-file"] = key_file(number, "ca.pem")
        elif item.get("ca_file"):
            options["storage-ca-file"] = str(item["ca_file"])
    else:
        options = {
            "sftp-host": str(item["host"]),
            "sftp-host-port": str(item.get("port") or 22),
            "sftp-host-user": str(item["user"]),
            "sftp-host-key-hash-type": "sha256",
            "sftp-host-key-check-type": "strict",
            "sftp-known-host": key_file(number, "known_hosts"),
            "sftp-private-key-file": key_file(number, "key"),
        }
    return Repository(kind, str(item.get("path") or "/"), options, retention, bool(item.get("own")))


def key_file(number: int, name: str) -> str:
    """Where a key of the repository lies on hosts."""
    return f"/etc/pgbackrest/repo{number + 2}.{name}"


def key_files(repositories: Sequence[Mapping[str, Any]], group: str) -> dict[str, dict[str, Any]]:
    """Files with keys of further repositories, for module ``config_tree``."""
    found: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(repositories):
        if item.get("ca"):
            text = str(item["ca"]).rstrip("\n") + "\n"
            found[key_file(number, "ca.pem").lstrip("/")] = {"content": text, "group": group, "mode": "0640"}
        if item.get("type") == "sftp":
            for name, option in (("key", "private_key"), ("known_hosts", "known_host")):
                text = str(item[option]).rstrip("\n") + "\n"
                path = key_file(number, name).lstrip("/")
                found[path] = {"content": text, "group": group, "mode": "0640", "secret": name == "key"}
    return found


def on_host(clusters: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Clusters with a member on a host."""
    return {name: one for name, one in clusters.items() if any(item["host"] == host for item in one["members"])}


def problems(
    clusters: Mapping[str, Any], repositories: Iterable[Any], secret: str, hosts: Mapping[str, Any]
) -> list[str]:
    """Everything that is wrong before anything changes."""
    found = []
    if clusters and len(secret) < 16:
        found.append("causeway_secrets.backup must have at least 16 characters")
    for name, one in clusters.items():
        retention = one["backup"]["retention"]
        for kind, value in sorted(retention.items()):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                found.append(f"{name}: backup.retention.{kind} is {value!r}; it is a number from 1")
        if len(one["members"]) > PG_LIMIT:
            found.append(f"{name}: pgBackRest knows at most {PG_LIMIT} members")
    for number, item in enumerate(repositories):
        try:
            repository_from(number, item)
        except BackupError as error:
            found.append(str(error))
    count = sum("backup" in one["components"] for one in hosts.values())
    if clusters and hosts and count != 1:
        found.append(f"exactly one host has component backup, found {count}")
    return found


def _tls(prefix: str, tls: str) -> list[str]:
    return [f"{prefix}-ca-file={tls}/ca.pem", f"{prefix}-cert-file={tls}/cert.pem", f"{prefix}-key-file={tls}/key.pem"]


def _server(clusters: Mapping[str, Any], settings: Settings) -> list[str]:
    lines = [f"tls-server-address={settings.address}", f"tls-server-port={settings.port}"]
    lines += _tls("tls-server", settings.tls)
    if settings.is_repository and clusters:
        lines.append(f"tls-server-auth=database.{settings.domain}={','.join(sorted(clusters))}")
    own = sorted(on_host(clusters, settings.host))
    if settings.is_database and own:
        lines.append(f"tls-server-auth=backup.{settings.domain}={','.join(own)}")
    return lines


def _global(clusters: Mapping[str, Any], settings: Settings) -> list[str]:
    lines = _server(clusters, settings)
    if settings.is_repository:
        lines += [f"repo1-path={settings.repository_path}", "repo1-bundle=y", "repo1-block=y"]
    else:
        lines += [f"repo1-host={settings.repository}", "repo1-host-type=tls", f"repo1-host-port={settings.port}"]
        lines += _tls("repo1-host", settings.tls)
    for number, one in enumerate(settings.repositories, 2):
        lines += [f"repo{number}-type={one.type}", f"repo{number}-path={one.path}"]
        lines += [f"repo{number}-bundle=y", f"repo{number}-block=y"]
        lines += [f"repo{number}-{name}={value}" for name, value in one.options.items()]
        if one.own:
            lines.append(f"repo{number}-storage-ca-file={settings.tls}/ca.pem")
    lines += [
        f"process-max={settings.process_max}",
        f"compress-type={settings.compress_type}",
        f"compress-level={settings.compress_level}",
        "start-fast=y",
        "archive-async=y",
        f"backup-standby={settings.standby}",
        f"spool-path={settings.spool}",
        f"lock-path={settings.lock}",
        f"log-path={settings.log}",
        "log-level-console=warn",
        # Asynchronous processes have no console; on the repository host the journal has it all.
        f"log-level-file={'warn' if settings.is_database else 'off'}",
    ]
    return lines + [f"{name}={value}" for name, value in sorted(settings.options.items())]


def _stanza(name: str, cluster: Mapping[str, Any], settings: Settings) -> list[str]:
    lines = []
    local = [one for one in cluster["members"] if one["host"] == settings.host]
    if settings.is_repository:
        lines += ["repo1-cipher-type=aes-256-cbc", f"repo1-cipher-pass={cipher(settings.secret, name)}"]
        lines += [f"repo1-retention-full={cluster['backup']['retention']['full']}"]
        lines += [f"repo1-retention-diff={cluster['backup']['retention']['differential']}"]
        # Commands for a running server want the local member first.
        members = [*local, *(one for one in cluster["members"] if one["host"] != settings.host)]
    else:
        members = local
    for number, extra in enumerate(settings.repositories, 2):
        kept = {**cluster["backup"]["retention"], **extra.retention}
        secret = cipher(settings.secret, name, extra.place)
        lines += [f"repo{number}-cipher-type=aes-256-cbc", f"repo{number}-cipher-pass={secret}"]
        lines += [f"repo{number}-retention-full={kept['full']}", f"repo{number}-retention-diff={kept['differential']}"]
    for number, one in enumerate(members, 1):
        if one["host"] != settings.host:
            lines += [f"pg{number}-host={one['address']}", f"pg{number}-host-type=tls"]
            lines += [f"pg{number}-host-port={settings.port}", *_tls(f"pg{number}-host", settings.tls)]
        lines += [f"pg{number}-path={settings.data}/{name}", f"pg{number}-port={cluster['port']}"]
        lines += [f"pg{number}-socket-path={settings.sockets}", f"pg{number}-user=postgres"]
    return lines


def configuration(clusters: Mapping[str, Any], settings: Settings) -> str:
    """``pgbackrest.conf`` of a host."""
    own = clusters if settings.is_repository else on_host(clusters, settings.host)
    # An archiver that waits for the repository holds up the end of its PostgreSQL: it asks again instead.
    push = [f"process-max={min(settings.process_max, 2)}", "archive-timeout=10", REPOSITORY_AWAY]
    if settings.queue_max:
        push.append(f"archive-push-queue-max={settings.queue_max}")
    sections: dict[str, list[str]] = {
        "global": _global(clusters, settings),
        "global:archive-push": push,
        "global:archive-get": [f"process-max={min(settings.process_max, 2)}", REPOSITORY_AWAY],
        **{name: _stanza(name, own[name], settings) for name in sorted(own)},
    }
    text = "# Managed by role causeway.platform.backup.\n"
    return text + "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items())


def settings_from(facts: Mapping[str, Any]) -> Settings:
    """Settings as the role hands them over."""
    repositories = [repository_from(number, item) for number, item in enumerate(facts["repositories"])]
    options = {str(name): str(value) for name, value in facts["options"].items()}
    numbers = {name: int(facts[name]) for name in ("port", "process_max", "compress_level")}
    return Settings(**{**facts, **numbers, "repositories": repositories, "options": options})


def schedules(clusters: Mapping[str, Any], verify: str) -> dict[str, dict[str, Any]]:
    """Unit files of the repository host, for module ``config_tree``: a service per kind, a timer per kind and cluster.

    A calendar expression that is empty means never.
    """
    found: dict[str, dict[str, Any]] = {
        f"etc/systemd/system/causeway-backup-{kind}@.service": {
            "template": "run.service.j2",
            "vars": {"backup_kind": kind, "backup_words": words},
        }
        for kind, words in KINDS.items()
    }
    for name, one in sorted(clusters.items()):
        plan = {**one["backup"], "verify": verify}
        for kind, words in KINDS.items():
            calendar = str(plan.get(kind.replace("-", "_")) or "")
            if calendar:
                found[f"etc/systemd/system/causeway-backup-{kind}@{name}.timer"] = {
                    "template": "run.timer.j2",
                    "vars": {"backup_cluster": name, "backup_words": words, "backup_calendar": calendar},
                }
    return found


def runner(clusters: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of the runner on the repository host."""
    return {
        **settings,
        "clusters": {
            name: {"database": one["database"], "checks": list(one["backup"].get("checks", []))}
            for name, one in sorted(clusters.items())
        },
    }
