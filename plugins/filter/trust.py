# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role trust: thin wrappers over module_utils/x509_identities.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import x509_identities
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import TrustError


def _reporting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TrustError as error:
            raise AnsibleFilterError(f"{name}: {error}") from error

    return wrapper


def trust_requests(hosts: list[str], hostvars: Mapping[str, Any], signed_by: str) -> list[dict[str, Any]]:
    """CSRs of those hosts that were asked in this batch; hosts that failed before have none."""
    answers = {
        host: {
            "identities": hostvars[host]["__trust_identities"],
            "authority": signed_by + hostvars[host]["__trust_region"],
            "requested": hostvars[host]["__trust_requested"],
        }
        for host in hosts
        if "__trust_requested" in hostvars[host]
    }
    return x509_identities.requests(answers)


def trust_rotation(scope: str, name: str, hosts: list[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a rotation over hosts whose identities are known; what is wrong with it is in its ``error``."""
    known = {
        host: {
            "region": hostvars[host]["__trust_region"],
            "identities": [item["name"] for item in hostvars[host]["__trust_identities"]],
        }
        for host in hosts
    }
    try:
        return {**x509_identities.rotation(scope, name, known), "error": ""}
    except TrustError as error:
        return {"hosts": {}, "error": str(error)}


def trust_report(
    plan: Mapping[str, Any], hosts: list[str], hostvars: Mapping[str, Any], crl: Mapping[str, Any]
) -> dict[str, Any]:
    """What a rotation did, from the registered results of every host."""
    requested = {host: hostvars[host].get("__trust_requested") or {} for host in hosts}
    installed = {host: hostvars[host].get("__trust_installed") or {} for host in hosts}
    return x509_identities.report(plan, installed, requested, crl)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        functions: dict[str, Callable[..., Any]] = {
            "trust_identities": x509_identities.identities,
            "trust_group": x509_identities.group_of,
            "trust_requests": trust_requests,
            "trust_rotation": trust_rotation,
            "trust_report": trust_report,
        }
        return {name: _reporting(name, function) for name, function in functions.items()}
