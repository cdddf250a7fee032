# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role database_metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import database_metrics


def database_metrics_clusters(databases: Mapping[str, Any], host: str) -> list[str]:
    try:
        return list(database_metrics.clusters(databases, host))
    except database_metrics.DatabaseMetricsError as error:
        raise AnsibleFilterError(f"database_metrics_clusters: {error}") from error


def database_metrics_targets(databases: Mapping[str, Any], host: str) -> list[dict[str, Any]]:
    try:
        return database_metrics.targets(databases, host)
    except database_metrics.DatabaseMetricsError as error:
        raise AnsibleFilterError(f"database_metrics_targets: {error}") from error


def database_metrics_files(
    databases: Mapping[str, Any], host: str, sockets: str, pooler: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    try:
        return database_metrics.files(databases, host, sockets, pooler)
    except database_metrics.DatabaseMetricsError as error:
        raise AnsibleFilterError(f"database_metrics_files: {error}") from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "database_metrics_clusters": database_metrics_clusters,
            "database_metrics_files": database_metrics_files,
            "database_metrics_targets": database_metrics_targets,
        }
