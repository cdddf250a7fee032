# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils.etcd_member import plan_start, probe_from
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    RegistryError,
    endpoints,
    password,
    peers,
    placed_services,
)


def registry_password(secret: Any, user: str) -> str:
    """The etcd password of a user."""
    # A vaulted value is no str with ansible-core 2.18, but becomes one.
    text = "" if secret is None or isinstance(secret, (Mapping, list, bool)) else str(secret)
    if not text:
        raise AnsibleFilterError("registry_password: the secret is empty, set causeway_secrets.registry")
    return password(text, user)


def registry_hosts(hosts: Iterable[str], services: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """Each host with the services that have instances on it."""
    try:
        return placed_services(hosts, services or {})
    except RegistryError as error:
        raise AnsibleFilterError(f"registry_hosts: {error}") from error


def registry_endpoints(hosts: Mapping[str, Any], component: str = "registry", port: int = 2379) -> list[str]:
    """Client URLs of the hosts that carry the component."""
    return endpoints(hosts, component, port)


def registry_peers(hosts: Mapping[str, Any], port: int = 2380) -> dict[str, str]:
    """Peer URLs of the hosts that carry a member."""
    return peers(hosts, port)


def registry_plan(hosts: Mapping[str, Any], probes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What each probed host has to do."""
    try:
        return plan_start(list(peers(hosts)), [probe_from(facts) for facts in probes])
    except RegistryError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        return {
            "registry_endpoints": registry_endpoints,
            "registry_hosts": registry_hosts,
            "registry_password": registry_password,
            "registry_peers": registry_peers,
            "registry_plan": registry_plan,
        }
