# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller's half of oci_image: reads the archives' image ids, and sends only archives that the host lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.causeway.platform.plugins.module_utils.oci_image import ImageError, archive_image_id

MODULE = "causeway.platform.oci_image"


class ActionModule(ActionBase):
    """See the module's documentation."""

    TRANSFERS_FILES = False  # a temporary directory only if something has to be sent
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        images = arguments.get("images")
        if not isinstance(images, list):
            raise AnsibleActionFail("oci_image: images must be a list")
        if "_sources" in arguments:
            raise AnsibleActionFail("oci_image: _sources is not an option")
        try:
            images = [self.described(image) for image in images]
        except ImageError as error:
            raise AnsibleActionFail(f"oci_image: {error}") from error
        arguments["images"] = images
        result = self.ask(arguments, task_vars)
        missing = result.pop("_missing", [])
        if missing and not result.get("failed"):
            try:
                arguments["_sources"] = {
                    image["reference"]: self.send(image["archive"], number)
                    for number, image in enumerate(images)
                    if image["archive"] and image["reference"] in missing
                }
                result = self.ask(arguments, task_vars)
                result.pop("_missing", None)
            finally:
                self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        result.pop("invocation", None)
        return result

    @staticmethod
    def described(image: Any) -> dict[str, Any]:
        """An image with its id, read from the archive; raises ImageError for an archive that is not there."""
        if not isinstance(image, dict) or not image.get("reference"):
            raise ImageError("each image needs a reference")
        archive = str(image.get("archive") or "")
        identifier = str(image.get("image_id") or "")
        if archive and not identifier:
            identifier = archive_image_id(archive)
        return {"reference": str(image["reference"]), "archive": archive, "image_id": identifier}

    def send(self, archive: str, number: int) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        # numbered: archives of different directories may share a name
        target = self._connection._shell.join_path(self._connection._shell.tmpdir, f"{number}-{Path(archive).name}")
        self._transfer_file(archive, target)
        self._fixup_perms2((self._connection._shell.tmpdir, target))
        return str(target)
