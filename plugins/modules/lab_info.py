#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_info
short_description: Tell which hosts of a lab are on and which faults are in force
version_added: "0.1.0"
description:
  - Reads the state of a lab (see M(causeway.platform.lab)). Runs on the machine that carries it, as root.
author:
  - The causeway.platform authors (@causeway)
attributes:
  check_mode:
    support: full
    description: Reads only.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
options:
  lab:
    description: Name of the lab.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Look at the lab
  causeway.platform.lab_info:
    lab: demo
  become: true
  register: lab
"""

RETURN = r"""
hosts:
  description: Every host's address and state (V(running), V(exited), V(paused)...).
  returned: always
  type: dict
  sample: {app1: {address: 10.77.1.31, state: running}}
faults:
  description: The network faults in force, in words.
  returned: always
  type: list
  elements: str
  sample: [cut between app1 and core1]
ssh_config:
  description: A file for C(ssh -F) that knows all hosts.
  returned: always
  type: str
  sample: /var/lib/labs/demo/ssh/config
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils.lab import LabError
from ansible_collections.causeway.platform.plugins.module_utils.lab_engine import Engine, require_root


def main() -> None:
    module = AnsibleModule(argument_spec={"lab": {"type": "str", "required": True}}, supports_check_mode=True)
    try:
        require_root()
        engine = Engine.of(module.params["lab"])
        lab, nodes = engine.record(), engine.nodes()
        faults = engine.faults()
    except (LabError, OSError) as error:
        module.fail_json(msg=str(error))
    hosts = {
        host.name: {"address": host.address, "state": nodes[host.name].state if host.name in nodes else "absent"}
        for host in lab.nodes
    }
    module.exit_json(
        changed=False,
        hosts=hosts,
        faults=[fault.describe() for fault in faults],
        ssh_config=str(engine.state / "ssh" / "config"),
    )


if __name__ == "__main__":
    main()
