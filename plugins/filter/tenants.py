# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around tenants of databases with shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import tenant_report
from ansible_collections.causeway.platform.plugins.module_utils.sharding import ShardingError


def _reporting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ShardingError as error:
            raise AnsibleFilterError(f"{name}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise AnsibleFilterError(f"{name}: the value is not of the right shape: {error!r}") from error

    return wrapper


def tenant_space(size: Any, free: Any) -> str:
    """Why a copy does not fit; numbers may come as text."""
    return tenant_report.space_problem(int(size), int(free))


def tenant_report_of(
    service: str, tenant: str, facts: Mapping[str, Any], hosts: Iterable[Any] = (), **given: Any
) -> Any:
    """The end of a move."""
    return tenant_report.report(service, tenant, facts, hosts, **given)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        functions: dict[str, Callable[..., Any]] = {
            "tenant_databases": tenant_report.databases_here,
            "tenant_problems": tenant_report.problems,
            "tenant_report": tenant_report_of,
            "tenant_services": tenant_report.services,
            "tenant_space": tenant_space,
            "tenant_status": tenant_report.status,
            "tenant_ways": tenant_report.ways,
        }
        return {name: _reporting(name, function) for name, function in functions.items()}
