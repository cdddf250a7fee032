# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around Patroni."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import patroni_config
from ansible_collections.causeway.platform.plugins.module_utils.patroni import PatroniError
from ansible_collections.causeway.platform.plugins.module_utils.patroni_report import gate_problems, report


def patroni_members(
    clusters: Mapping[str, Any],
    host: str,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    secrets: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Patroni's files for the members on a host."""
    # A vaulted value is no str with ansible-core 2.18, but becomes one.
    words = {name: str(value) for name, value in secrets.items()}
    try:
        return patroni_config.members(clusters, host, settings, machine, words)
    except PatroniError as error:
        raise AnsibleFilterError(f"patroni_members: {error}") from error


def patroni_dynamic(configurations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the members of a cluster share, from what each member's host leads to."""
    return patroni_config.merged(list(configurations))


def patroni_clusters(clusters: Mapping[str, Any], host: str) -> dict[str, Any]:
    """The clusters with a member on a host."""
    return patroni_config.members_of(clusters, host)


def patroni_endpoints(cluster: Mapping[str, Any], first: str = "") -> list[str]:
    """Addresses of the members' REST APIs."""
    return patroni_config.rest_endpoints(cluster, first)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        return {
            "patroni_clusters": patroni_clusters,
            "patroni_members": patroni_members,
            "patroni_dynamic": patroni_dynamic,
            "patroni_endpoints": patroni_endpoints,
            "patroni_gates": gate_problems,
            "patroni_report": report,
        }
