# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import pools, quadlet


def service_plan(
    instances: Sequence[Mapping[str, Any]],
    services: Mapping[str, Mapping[str, Any]],
    *,
    installed: Mapping[str, Mapping[str, Any]] | None = None,
    versions: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    given = dict(options or {})
    # With ansible-core 2.18 numbers and truth inside a mapping arrive as text.
    if "uid_base" in given:
        given["uid_base"] = int(given["uid_base"])
    if "user_namespaces" in given:
        given["user_namespaces"] = str(given["user_namespaces"]).lower() == "true"
    for name in ("controllers", "host_ports"):
        if name in given:
            given[name] = tuple(given[name])
    try:
        return quadlet.plan(
            instances,
            services,
            installed=installed or {},
            versions=versions or {},
            overrides=overrides or {},
            options=quadlet.Options(**given),
        )
    except quadlet.QuadletError as error:
        raise AnsibleFilterError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"service_plan: the description is incomplete: {type(error).__name__}: {error}"
        ) from error


def service_image(service: Mapping[str, Any], version: str) -> dict[str, str]:
    try:
        name = str(service.get("name"))
        return quadlet.image_of(service, quadlet.check_version(version, f"services.{name}"))
    except quadlet.QuadletError as error:
        raise AnsibleFilterError(str(error)) from error


def service_units(instances: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    wanted = ("unit", "health_url", "health_interval", "health_timeout", "start_timeout")
    return [{name: instance[name] for name in wanted if name in instance} for instance in instances]


def service_without(
    instances: Sequence[Mapping[str, Any]], service: str, slots: Sequence[int]
) -> list[Mapping[str, Any]]:
    gone = {int(slot) for slot in slots}
    return [entry for entry in instances if entry["service"] != service or int(entry["slot"]) not in gone]


def service_with_candidates(
    instances: Sequence[Mapping[str, Any]],
    installed: Mapping[str, Any],
    wanted: Iterable[str] = (),
    services: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    try:
        baseline = [name for name, service in (services or {}).items() if pools.has_baseline(service)]
        # Without files it only still runs: an interrupted removal, which is to be finished.
        present = {key: str(entry.get("pool") or "") for key, entry in installed.items() if entry.get("version")}
        return pools.on_host(instances, present, wanted, baseline)
    except pools.PoolsError as error:
        raise AnsibleFilterError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"service_with_candidates: the description is incomplete: {type(error).__name__}: {error}"
        ) from error


def service_candidates(service: Mapping[str, Any], count: int = 0) -> list[dict[str, Any]]:
    try:
        return pools.candidates(service, int(count))
    except pools.PoolsError as error:
        raise AnsibleFilterError(str(error)) from error


def service_pool_token(secret: str, service: str) -> str:
    return pools.pool_token(str(secret), service)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "service_plan": service_plan,
            "service_image": service_image,
            "service_units": service_units,
            "service_without": service_without,
            "service_with_candidates": service_with_candidates,
            "service_candidates": service_candidates,
            "service_pool_token": service_pool_token,
        }
