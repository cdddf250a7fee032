# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around the object storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils import object_storage as storage_utils


def _reporting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except storage_utils.ObjectStorageError as error:
            raise AnsibleFilterError(f"{name}: {error}") from error
        except KeyError as error:
            raise AnsibleFilterError(f"{name}: {error} is missing: see docs/design.md section 10") from error

    return wrapper


def _text(value: Any) -> str:
    # A vaulted value is no str with ansible-core 2.18, but becomes one.
    return "" if value is None or isinstance(value, (Mapping, list, bool)) else str(value)


def object_storage_keys(secret: Any, user: str) -> dict[str, str]:
    """Access key and secret key of an identity."""
    return storage_utils.keys(_text(secret), user)


def object_storage_signing(secret: Any, name: str) -> str:
    """A key that processes sign with."""
    return storage_utils.derived(_text(secret), f"signing/{name}")


def object_storage_identities(buckets: Mapping[str, Any], secret: Any) -> dict[str, Any]:
    """The identities of S3."""
    return storage_utils.identities(buckets, _text(secret))


def object_storage_processes(storage: Mapping[str, Any], host: str) -> list[str]:
    """What runs on a host."""
    return storage_utils.processes(storage.get("hosts") or [], host)


def object_storage_environments(
    storage: Mapping[str, Any], host: str, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Environment files of the units."""
    return storage_utils.environments(storage, host, settings) if storage else {}


def object_storage_targets(storage: Mapping[str, Any], host: str) -> list[dict[str, Any]]:
    """Scrape targets."""
    return storage_utils.targets(storage.get("hosts") or [], host)


def object_storage_rotated(endpoints: Sequence[str], storage: Mapping[str, Any], host: str) -> list[str]:
    """Endpoints of the registry, beginning elsewhere on each host."""
    return storage_utils.rotated(endpoints, storage.get("hosts") or [], host)


def object_storage_repositories(
    repositories: Sequence[Mapping[str, Any]], storage: Mapping[str, Any], secret: Any
) -> list[dict[str, Any]]:
    """Repositories of pgBackRest with the platform's own object storage filled in."""
    return storage_utils.repositories(repositories, storage, _text(secret))


def object_storage_names(storage: Mapping[str, Any], zone: str = "", region: str = "") -> str:
    """Lines of /etc/hosts."""
    return storage_utils.name_lines(storage, zone, region)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        functions: dict[str, Callable[..., Any]] = {
            "object_storage_environments": object_storage_environments,
            "object_storage_identities": object_storage_identities,
            "object_storage_keys": object_storage_keys,
            "object_storage_names": object_storage_names,
            "object_storage_processes": object_storage_processes,
            "object_storage_repositories": object_storage_repositories,
            "object_storage_rotated": object_storage_rotated,
            "object_storage_signing": object_storage_signing,
            "object_storage_targets": object_storage_targets,
        }
        return {name: _reporting(name, function) for name, function in functions.items()}
