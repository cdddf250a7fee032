# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around databases: thin wrappers over module_utils/postgresql."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.causeway.platform.plugins.module_utils.postgresql import (
    extensions,
    hba,
    passwords,
    tuning,
)


def _reporting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (extensions.ExtensionError, hba.HbaError, tuning.TuningError) as error:
            raise AnsibleFilterError(f"{name}: {error}") from error

    return wrapper


def database_password(secret: Any, cluster: str, role: str) -> str:
    """The password of a role of a cluster."""
    # A vaulted value is no str with ansible-core 2.18, but becomes one.
    text = "" if secret is None or isinstance(secret, (Mapping, list, bool)) else str(secret)
    if not text:
        raise AnsibleFilterError("database_password: the secret is empty, set causeway_secrets.database")
    return passwords.password(text, cluster, role)


def database_packages(names: Iterable[str], major: int = extensions.MAJOR) -> list[str]:
    """Debian packages of extensions."""
    return extensions.packages(names, major)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """What Ansible asks for."""
        functions: dict[str, Callable[..., Any]] = {
            "database_hba": hba.lines,
            "database_packages": database_packages,
            "database_parameters": tuning.parameters,
            "database_password": database_password,
            "database_tuning": tuning.tuning,
        }
        return {name: _reporting(name, function) for name, function in functions.items()}
