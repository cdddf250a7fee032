# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that build the proxies' configuration from the description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils.envoy import proxies, vrrp
from ansible_collections.causeway.platform.plugins.module_utils.envoy.common import EnvoyConfigError
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except EnvoyConfigError as error:
        raise AnsibleFilterError(str(error)) from error
    except KeyError as error:
        raise AnsibleFilterError(f"the description lacks {error}: see docs/design.md section 1") from error


def envoy_gateway(
    services: Mapping[str, Any],
    host: str,
    domain: str,
    *,
    hosts: Mapping[str, Any],
    regions: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    pool_secret: str = "",
) -> dict[str, Any]:
    platform = proxies.Platform(domain, hosts, dict(services), regions or {}, str(pool_secret or ""))
    return {
        proxies.GATEWAY: _call(lambda: proxies.gateway(host, platform, Settings.parse(settings))),
    }


def envoy_sidecars(
    services: Mapping[str, Any],
    host: str,
    domain: str,
    *,
    hosts: Mapping[str, Any],
    databases: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    platform = proxies.Platform(domain, hosts, dict(services), databases=databases or {})
    return _call(lambda: proxies.sidecars(host, platform, Settings.parse(settings)))


def envoy_database(
    databases: Mapping[str, Any],
    host: str,
    domain: str,
    *,
    hosts: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    platform = proxies.Platform(domain, hosts, {}, databases=databases)
    return _call(lambda: proxies.database(host, platform, Settings.parse(settings)))


def envoy_object_storage(
    storage_hosts: list[dict[str, Any]],
    host: str,
    domain: str,
    *,
    hosts: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    platform = proxies.Platform(domain, hosts, {})
    return _call(lambda: proxies.object_storage(host, platform, storage_hosts, Settings.parse(settings)))


def envoy_files(documents: Mapping[str, Any]) -> dict[str, Any]:
    return proxies.files(documents)


def envoy_agent_files(documents: Mapping[str, Any]) -> dict[str, Any]:
    return proxies.agent_files(documents)


def vrrp_instance(hosts: Mapping[str, Any], host: str, regions: Mapping[str, Any]) -> dict[str, Any]:
    return _call(vrrp.instance, host, hosts, regions)


def vrrp_interface(facts: Mapping[str, Any], address: str) -> str:
    return _call(vrrp.interface, facts, address)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "envoy_gateway": envoy_gateway,
            "envoy_sidecars": envoy_sidecars,
            "envoy_database": envoy_database,
            "envoy_object_storage": envoy_object_storage,
            "envoy_files": envoy_files,
            "envoy_agent_files": envoy_agent_files,
            "vrrp_instance": vrrp_instance,
            "vrrp_interface": vrrp_interface,
        }
