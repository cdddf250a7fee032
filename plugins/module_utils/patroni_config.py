# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patroni's configuration of one member, from the cluster's description: pure functions behind a filter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.causeway.platform.plugins.module_utils.patroni import PatroniError

# Patroni takes these from the cluster's configuration alone, because members must agree on them.
# https://patroni.readthedocs.io/en/latest/patroni_configuration.html#important-rules
SHARED = frozenset(
    {
        "max_connections",
        "max_locks_per_transaction",
        "max_prepared_transactions",
        "max_replication_slots",
        "max_wal_senders",
        "max_worker_processes",
        "track_commit_timestamp",
        "wal_level",
        "wal_log_hints",
    }
)
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
        "member_slots_ttl": str(settings["member_slots_ttl"]),
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
            "parameters": {name: value for name, value in sorted(parameters.items()) if name in SHARED},
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
            number = isinstance(value, int) and isinstance(have, int)
            parameters[name] = max(value, have) if number else value
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
    hba: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Patroni's file for the member of ``cluster`` (docs/design.md, section 9) on ``host``.

    parameters: of PostgreSQL. hba: lines of pg_hba.conf. settings: the role's, with ``passwords`` of ``replicator``,
    ``rewind``, ``rest`` and ``etcd``.
    """
    check_parameters(cluster["name"], parameters)
    own = listed(cluster["members"], host)
    name, tls, passwords = str(cluster["name"]), str(settings["tls"]), settings["passwords"]
    shared = dynamic(cluster, parameters, settings)
    address = str(own["address"])
    members = [str(one["address"]) for one in cluster["members"]]
    archive = {key: str(value).replace("{cluster}", name) for key, value in (settings.get("archive") or {}).items()}
    local = {key: value for key, value in sorted(parameters.items()) if key not in SHARED}
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
        "listen": f"{address}:{cluster['port']}",
        "connect_address": f"{address}:{cluster['port']}",
        "data_dir": f"{settings['data_path']}/{name}",
        "bin_dir": str(settings["bin_path"]),
        "pgpass": f"{settings['data_path']}/.{name}.pgpass",
        "use_unix_socket": True,
        "use_unix_socket_repl": True,
        "authentication": {
            "superuser": {"username": "postgres"},
            "replication": {"username": "replicator", "password": passwords["replicator"], **_tls(tls)},
            "rewind": {"username": "rewind", "password": passwords["rewind"], **_tls(tls)},
        },
        "parameters": local,
        "pg_hba": list(hba),
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
            "authentication": {"username": "rest", "password": passwords["rest"]},
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
            "password": passwords["etcd"],
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
