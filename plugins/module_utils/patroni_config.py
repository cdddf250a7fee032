# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patroni's configuration of one member, from the cluster's description: pure functions behind a filter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.causeway.platform.plugins.module_utils.patroni import PatroniError
from ansible_collections.causeway.platform.plugins.module_utils.postgresql import hba, passwords, tuning
from ansible_collections.causeway.platform.plugins.module_utils.registry import password as registry_password

# What Patroni sets itself; a description must not.
OWN = frozenset(
    {
        "archive_cleanup_command",
        "cluster_name",
        "hot_standby",
        "listen_addresses",
        "port",
        "primary_conninfo",
        "primary_slot_name",
        "recovery_target",
        "recovery_target_time",
        "recovery_target_timeline",
        "restore_command",
        "ssl",
        "synchronous_standby_names",
    }
)


def listed(members: Iterable[Mapping[str, Any]], host: str) -> Mapping[str, Any]:
    """The entry of ``host`` among a cluster's members."""
    for one in members:
        if one["host"] == host:
            return one
    raise PatroniError(f"host {host} is not a member of the cluster")


def check_parameters(cluster: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that Patroni sets itself."""
    wrong = sorted(set(parameters) & OWN)
    if wrong:
        raise PatroniError(
            f"database of {cluster}: settings: '{wrong[0]}' is set by the platform and cannot be chosen; "
            f"refused are {', '.join(sorted(OWN))}"
        )


def dynamic(cluster: Mapping[str, Any], parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What all members share and etcd keeps: what failover waits for, synchronous replication, shared parameters."""
    synchronous = int(cluster["synchronous"])
    return {
        "ttl": int(settings["ttl"]),
        "loop_wait": int(settings["loop_wait"]),
        "retry_timeout": int(settings["retry_timeout"]),
        "maximum_lag_on_failover": int(settings["maximum_lag_on_failover"]),
        "failsafe_mode": True,
        "check_timeline": True,
        "synchronous_mode": synchronous > 0,
        "synchronous_mode_strict": synchronous > 0 and bool(cluster["strict"]),
        "synchronous_node_count": max(synchronous, 1),
        "primary_stop_timeout": int(settings["primary_stop_timeout"]),
        "member_slots_ttl": str(settings["member_slots_ttl"]),
        # Patroni drops slots that it does not know; these are of tenants on their way to another shard.
        **({"ignore_slots": [{"type": "logical", "plugin": "pgoutput"}]} if cluster.get("sharding") else {}),
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
            "parameters": {name: value for name, value in sorted(parameters.items()) if name in tuning.SHARED},
        },
    }


def merged(configurations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One configuration out of those that each member's host leads to: of numbers the largest."""
    if not configurations:
        return {}
    result = {**configurations[0]}
    result["postgresql"] = {**result["postgresql"]}
    parameters: dict[str, Any] = {}
    for one in configurations:
        for name, value in one["postgresql"]["parameters"].items():
            have = parameters.get(name)
            number = str(value).isdigit() and str(have).isdigit()
            parameters[name] = max(value, have, key=int) if number else value
    result["postgresql"]["parameters"] = parameters
    return result


def _tls(path: str) -> dict[str, str]:
    return {
        "sslmode": "verify-full",
        "sslcert": f"{path}/cert.pem",
        "sslkey": f"{path}/key.pem",
        "sslrootcert": f"{path}/ca.pem",
        "sslcrl": f"{path}/crl.pem",
    }


def configuration(
    cluster: Mapping[str, Any],
    host: str,
    parameters: Mapping[str, Any],
    settings: Mapping[str, Any],
    words: Mapping[str, str],
) -> dict[str, Any]:
    """Patroni's file for the member of ``cluster`` (docs/design.md, section 9) on ``host``.

    parameters: of PostgreSQL. settings: the role's. words: passwords of ``replicator``, ``rewind``, ``rest`` and
    ``etcd``.
    """
    check_parameters(cluster["name"], parameters)
    own = listed(cluster["members"], host)
    name, tls = str(cluster["name"]), str(settings["tls"])
    shared = dynamic(cluster, parameters, settings)
    address = str(own["address"])
    members = [str(one["address"]) for one in cluster["members"]]
    archive = {key: str(value).replace("{cluster}", name) for key, value in (settings.get("archive") or {}).items()}
    local = {key: value for key, value in sorted(parameters.items()) if key not in tuning.SHARED}
    local.update(
        {
            "unix_socket_directories": str(settings["socket_path"]),
            "ssl": "on",
            "ssl_cert_file": f"{tls}/cert.pem",
            "ssl_key_file": f"{tls}/key.pem",
            "ssl_ca_file": f"{tls}/ca.pem",
            "ssl_crl_file": f"{tls}/crl.pem",
            "ssl_min_protocol_version": "TLSv1.3",
            "password_encryption": "scram-sha-256",
            "archive_mode": "on" if archive else "off",
        }
    )
    if archive:
        local["archive_command"] = archive["archive_command"]
    callback = str(settings["callback"])
    postgresql: dict[str, Any] = {
        "listen": f"{address},127.0.0.1:{cluster['port']}",
        "connect_address": f"{address}:{cluster['port']}",
        "data_dir": f"{settings['data_path']}/{name}",
        "bin_dir": str(settings["bin_path"]),
        "pgpass": f"{settings['data_path']}/.{name}.pgpass",
        "use_unix_socket": True,
        "use_unix_socket_repl": True,
        "authentication": {
            "superuser": {"username": "postgres"},
            "replication": {"username": "replicator", "password": words["replicator"], **_tls(tls)},
            "rewind": {"username": "rewind", "password": words["rewind"], **_tls(tls)},
        },
        "parameters": local,
        "pg_hba": hba.lines(cluster),
        "create_replica_methods": ["basebackup"],
        "basebackup": [{"checkpoint": "fast"}],
    }
    if callback:
        postgresql["callbacks"] = {"on_role_change": callback, "on_start": callback}
    if archive.get("restore_command"):
        postgresql["recovery_conf"] = {"restore_command": archive["restore_command"]}
    return {
        "scope": name,
        "namespace": f"/patroni/{settings['platform']}/",
        "name": host,
        # The journal has the time already.
        "log": {"level": str(settings["log_level"]), "format": "%(levelname)s: %(message)s"},
        "restapi": {
            "listen": f"{address}:{cluster['rest_port']}",
            "connect_address": f"{address}:{cluster['rest_port']}",
            "certfile": f"{tls}/cert.pem",
            "keyfile": f"{tls}/key.pem",
            "cafile": f"{tls}/ca.pem",
            "verify_client": "required",
            "authentication": {"username": "rest", "password": words["rest"]},
            # Who may change something; everybody with a certificate may look.
            "allowlist": members,
            "allowlist_include_members": True,
        },
        "ctl": {
            "insecure": False,
            "cacert": f"{tls}/ca.pem",
            "certfile": f"{tls}/cert.pem",
            "keyfile": f"{tls}/key.pem",
        },
        "etcd3": {
            "hosts": [urlsplit(one).netloc for one in settings["endpoints"]],
            "protocol": "https",
            "cacert": f"{tls}/ca.pem",
            "cert": f"{tls}/cert.pem",
            "key": f"{tls}/key.pem",
            "username": f"database-{name}",
            "password": words["etcd"],
        },
        "bootstrap": {
            "dcs": shared,
            # The builtin provider sorts the same on every host and after every upgrade of the C library.
            "initdb": [
                {"encoding": "UTF8"},
                {"locale-provider": "builtin"},
                {"builtin-locale": "C.UTF-8"},
                {"locale": "C.UTF-8"},
                {"auth-local": "peer"},
                {"auth-host": "scram-sha-256"},
                "data-checksums",
            ],
        },
        "postgresql": postgresql,
        "watchdog": {"mode": str(settings["watchdog"]), "device": "/dev/watchdog", "safety_margin": 5},
        "tags": {"nofailover": False, "noloadbalance": False, "clonefrom": False, "nosync": False},
    }


def members(
    clusters: Mapping[str, Any],
    host: str,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    secrets: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Patroni's files for all members on ``host``, by cluster.

    machine: ``memory`` (bytes that databases may use), ``cpus``, ``disk`` (hdd, ssd, san, nvme), ``space`` (bytes, 0 if
    unknown) and ``most_cpus`` (largest number of processors of a member). secrets: ``database`` and ``registry``.
    """
    own = members_of(clusters, host)
    found = {}
    for name, cluster in own.items():
        words = {role: passwords.password(secrets["database"], name, role) for role in ("replicator", "rewind", "rest")}
        words["etcd"] = registry_password(secrets["registry"], f"database-{name}")
        try:
            derived = tuning.parameters(
                cluster,
                float(machine["memory"]),
                int(machine["cpus"]),
                disk=str(machine["disk"]),
                clusters=len(own),
                space=float(machine["space"]),
                most_cpus=int(machine["most_cpus"]),
            )
            parameters = {**derived["local"], **derived["shared"]}
            found[name] = configuration(cluster, host, parameters, settings, words)
        except (tuning.TuningError, hba.HbaError) as error:
            raise PatroniError(f"database {name} on {host}: {error}") from error
    return found


def members_of(clusters: Mapping[str, Any], host: str) -> dict[str, Any]:
    """The clusters that have a member on ``host``."""
    return {
        name: cluster
        for name, cluster in sorted(clusters.items())
        if any(one["host"] == host for one in cluster["members"])
    }


def rest_endpoints(cluster: Mapping[str, Any], first: str = "") -> list[str]:
    """Addresses of the members' REST APIs, that of host ``first`` at the beginning."""
    ordered = sorted(cluster["members"], key=lambda one: (one["host"] != first, one["host"]))
    return [f"https://{one['address']}:{cluster['rest_port']}" for one in ordered]
