#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_image
short_description: Build the disk image of lab hosts
version_added: "0.1.0"
description:
  - Builds a bare Debian system with C(mmdebstrap) from the archive that this machine already uses, as a tar file.
  - The file is named after everything that goes into it, so equal inputs are built once and shared by all labs.
  - Runs on the machine that carries the lab, as root.
author:
  - The causeway.platform authors (@causeway)
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status without building anything.
  diff_mode:
    support: none
    description: Returns no details on what changes.
  idempotent:
    support: full
    description: Builds nothing when the image is there.
options:
  directory:
    description: Where images are kept.
    type: path
    required: true
  init:
    description: The program that prepares a container to be a host and then becomes its init.
    type: path
    required: true
  suite:
    description: Debian release.
    type: str
    default: trixie
  packages:
    description: Packages to bake in besides those of a bare host. Packages only, never configuration.
    type: list
    elements: str
    default: []
  mirror:
    description: URI of the Debian archive; by default that of this machine, or the one C(mmdebstrap) prefers.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Build the image of lab hosts
  causeway.platform.lab_image:
    directory: /var/cache/causeway/lab-image
    init: "{{ role_path }}/files/lab-init"
    packages: [postgresql]
  become: true
"""

RETURN = r"""
path:
  description: The image.
  returned: always
  type: str
  sample: /var/cache/causeway/lab-image/trixie-3f2a9c11d0e45b67.tar
seconds:
  description: How long building took.
  returned: always
  type: float
  sample: 46.2
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils import lab_engine
from ansible_collections.causeway.platform.plugins.module_utils.lab import LabError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "init": {"type": "path", "required": True},
            "suite": {"type": "str", "default": "trixie"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "mirror": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    options = module.params
    started = time.monotonic()
    try:
        lab_engine.require_root()
        image = lab_engine.plan_image(
            Path(options["directory"]), options["suite"], Path(options["init"]), options["packages"], options["mirror"]
        )
        changed = not image.path.exists()
        if changed and not module.check_mode:
            changed = lab_engine.build_image(image)
    except (LabError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, path=str(image.path), seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
