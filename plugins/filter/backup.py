# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around backups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import pgbackrest_config as config
from ansible_collections.causeway.platform.plugins.module_utils import pgbackrest_report


def _secret(value: Any) -> str:
    # A vaulted value is no str with ansible-core 2.18, but becomes one.
    return "" if value is None or isinstance(value, (Mapping, list, bool)) else str(value)


def backup_configuration(clusters: Mapping[str, Any], settings: Mapping[str, Any], secret: Any) -> str:
    """The pgbackrest.conf of a host."""
    try:
        return config.configuration(clusters, config.settings_from({**settings, "secret": _secret(secret)}))
    except (config.BackupError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"backup_configuration: {error}") from error


def backup_problems(
    clusters: Mapping[str, Any], repositories: Iterable[Any], secret: Any, hosts: Mapping[str, Any]
) -> list[str]:
    """What is wrong with what shall be backed up."""
    return config.problems(clusters, repositories, _secret(secret), hosts)


def backup_schedules(clusters: Mapping[str, Any], verify: str) -> dict[str, dict[str, Any]]:
    """Unit files."""
    return config.schedules(clusters, verify)


def backup_key_files(repositories: Sequence[Mapping[str, Any]], group: str) -> dict[str, dict[str, Any]]:
    """Files with keys of further repositories."""
    return config.key_files(repositories, group)


def backup_runner(clusters: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of the runner."""
    return config.runner(clusters, settings)


def backup_target(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a restore from the verb's variables."""
    try:
        return pgbackrest_report.restore_target(wanted)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def backup_report(
    verb: str, cluster: str, facts: Mapping[str, Any], check_mode: bool = False, failure: str = ""
) -> dict[str, Any]:
    """The report of a verb."""
    return pgbackrest_report.report(verb, cluster, facts, check_mode=check_mode, failure=failure)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        return {
            "backup_configuration": backup_configuration,
            "backup_key_files": backup_key_files,
            "backup_problems": backup_problems,
            "backup_report": backup_report,
            "backup_runner": backup_runner,
            "backup_schedules": backup_schedules,
            "backup_target": backup_target,
        }
