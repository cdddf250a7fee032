#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_info
short_description: Tell which service instances a host has, and what its kernel allows containers
version_added: "0.1.0"
author:
  - The causeway.platform authors (@causeway)
description:
  - Reads the Quadlet units that role C(service) wrote, what runs of them, the cgroup controllers that containers can
    be limited with, and whether a container may have its own user namespace.
  - Works on a host without podman.
options: {}
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: posix
"""

EXAMPLES = r"""
- name: Read what this host runs
  causeway.platform.service_info:
  register: service_info_result
"""

RETURN = r"""
instances:
  description: Installed instances by C(<service>@<slot>).
  type: dict
  returned: success
  contains:
    service:
      description: The service.
      type: str
    slot:
      description: The slot.
      type: int
    pool:
      description: The pool in its file for the node agent, empty without one.
      type: str
    unit:
      description: The systemd unit.
      type: str
    version:
      description: Version in the unit's drop-in.
      type: str
    image:
      description: Image in the unit's drop-in.
      type: str
    running:
      description: Version that runs now, empty if none does.
      type: str
    restart_needed:
      description: Whether the running container was started from another version or configuration than the files say.
      type: bool
  sample:
    orders@0:
      service: orders
      slot: 0
      pool: stable
      unit: orders@0.service
      version: "1.0.0"
      image: localhost/causeway/orders:1.0.0
      running: "1.0.0"
      restart_needed: false
controllers:
  description: cgroup controllers that systemd can delegate to containers.
  type: list
  elements: str
  returned: success
  sample: [cpu, memory, pids]
user_namespaces:
  description: Whether a container can have its own user namespace with its own /proc.
  type: bool
  returned: success
  sample: true
podman:
  description: Version of podman, empty if it is not installed.
  type: str
  returned: success
  sample: 5.4.2
"""

import json
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.quadlet import INSTANCES, UNITS, installed_version

UNIT_NAME = re.compile(r"^(?P<service>[a-z][a-z0-9-]*)@(?P<slot>[0-9])\.container$")
CONFIGURATION = re.compile(r"^Label=io\.causeway\.configuration=(?P<hash>\S+)$", re.MULTILINE)


def controllers() -> list[str]:
    """Controllers of the unified hierarchy; a hybrid (v1) host has none that podman's systemd manager can use."""
    try:
        return sorted(Path("/sys/fs/cgroup/cgroup.controllers").read_text(encoding="ascii").split())
    except OSError:
        return []


def user_namespaces(module: AnsibleModule) -> bool:
    """Tried, because no file tells it: a partly masked /proc makes the kernel refuse a new one in a user namespace."""
    unshare = module.get_bin_path("unshare")
    if unshare is None:
        return False
    command = [unshare, "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"]
    return bool(module.run_command(command)[0] == 0)


def running(module: AnsibleModule, podman: str | None) -> dict[str, dict[str, str]]:
    """Labels of running containers of ours, by `<service>@<slot>`."""
    if podman is None:
        return {}
    code, out, err = module.run_command([podman, "ps", "--format", "json", "--filter", "label=io.causeway.service"])
    if code != 0:
        module.fail_json(msg=f"podman ps failed: {err.strip()}")
    labels = [container.get("Labels") or {} for container in json.loads(out or "[]")]
    return {f"{entry['io.causeway.service']}@{entry.get('io.causeway.slot')}": entry for entry in labels}


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def pool_of(text: str) -> str:
    """Pool of an instance by its file for the node agent; empty without one."""
    try:
        return str(json.loads(text)["pool"])
    except (ValueError, KeyError, TypeError):
        return ""


def instances(active: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for path in sorted(Path("/", UNITS).glob("*@*.container")):
        name = UNIT_NAME.match(path.name)
        text = read(path)
        if name is None or "Label=io.causeway.service=" not in text:
            continue
        key = f"{name['service']}@{name['slot']}"
        version, image = installed_version(read(Path(f"{path}.d", "version.conf")))
        wanted = CONFIGURATION.search(text)
        labels = active.get(key)
        result[key] = {
            "service": name["service"],
            "slot": int(name["slot"]),
            "pool": pool_of(read(Path("/", INSTANCES, f"{name['service']}-{name['slot']}.json"))),
            "unit": f"{key}.service",
            "version": version,
            "image": image,
            "running": (labels or {}).get("io.causeway.version", ""),
            "restart_needed": labels is not None
            and (
                labels.get("io.causeway.version") != version
                or labels.get("io.causeway.configuration") != (wanted["hash"] if wanted else "")
            ),
        }
    for key, labels in active.items():
        # runs although its files are gone: an interrupted removal
        if key not in result:
            service, _at, slot = key.partition("@")
            result[key] = {
                "service": service,
                "slot": int(slot),
                "pool": "",
                "unit": f"{key}.service",
                "version": "",
                "image": "",
                "running": labels.get("io.causeway.version", ""),
                "restart_needed": False,
            }
    return result


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    podman = module.get_bin_path("podman")
    version = ""
    if podman is not None:
        version = module.run_command([podman, "--version"])[1].strip().rsplit(" ", 1)[-1]
    module.exit_json(
        changed=False,
        instances=instances(running(module, podman)),
        controllers=controllers(),
        user_namespaces=user_namespaces(module),
        podman=version,
    )


if __name__ == "__main__":
    main()
