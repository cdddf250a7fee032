# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller's half of database_migration: reads and checks the files before anything is asked of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.causeway.platform.plugins.module_utils import migrations

MODULE = "causeway.platform.database_migration"


def read_files(directory: Path) -> dict[str, dict[str, str]]:
    """The files of all phases by name; raises MigrationError. A phase without a directory has none."""
    if not directory.is_dir():
        raise migrations.MigrationError(f"directory: there is no directory {directory} on the controller")
    result: dict[str, dict[str, str]] = {}
    for phase in migrations.PHASES:
        folder = directory / phase
        result[phase] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                if path.stat().st_size > migrations.MAX_FILE:
                    raise ValueError(f"it is larger than {migrations.MAX_FILE >> 10} KiB")
                result[phase][path.name] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise migrations.MigrationError(f"{phase}/{path.name}: cannot be read: {error}") from error
    return result


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if "_files" in arguments:
            raise AnsibleActionFail("database_migration: _files is not an option")
        try:
            files = read_files(Path(str(arguments.get("directory") or "")).expanduser())
            migrations.parse_all(files)
        except migrations.MigrationError as error:
            raise AnsibleActionFail(f"database_migration: {error}") from error
        arguments["_files"] = files
        result: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        result.pop("invocation", None)
        return result
