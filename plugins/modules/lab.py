#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab
short_description: Bring a lab of hosts up or down on this machine
version_added: "0.1.0"
description:
  - A lab is a set of podman containers with systemd as their init, on a bridge of their own, reached by SSH. To
    everything that is run against them they are bare Debian machines.
  - V(running) brings every described host up from whatever state it is in (absent, half made, off, paused) and removes
    hosts that are no longer described. It may be killed at any point and run again.
  - V(absent) removes every trace, also of a lab whose directory was deleted while it ran.
  - Labs with different names live side by side, their networks must differ.
  - Runs on the machine that carries the lab, as root.
author:
  - The causeway.platform authors (@causeway)
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status without touching the lab.
  diff_mode:
    support: none
    description: Returns no details on what changes.
  idempotent:
    support: full
    description: Touches nothing that is already as described.
options:
  name:
    description: Name of the lab, a DNS label. All names on the machine derive from it.
    type: str
    required: true
  state:
    description: What shall be.
    type: str
    choices: [running, absent]
    default: running
  state_dir:
    description: Directory of the lab's storage, SSH key and package cache. Must be the same at every run.
    type: path
    required: true
  image:
    description: The image of a bare host, as made by M(causeway.platform.lab_image). Needed for O(state=running).
    type: path
  network:
    description: IPv4 network of the lab. Needed for O(state=running).
    type: str
    default: ""
  gateway:
    description: Address of the machine on that network; by default the first one.
    type: str
    default: ""
  cache:
    description: Whether the hosts share a package cache; it takes the address after the gateway's.
    type: bool
    default: true
  hosts:
    description: Host names, each with C(address) and optionally C(zone) and C(region). Other keys are ignored.
    type: dict
    default: {}
  timeout:
    description: Seconds that a host may take to start.
    type: float
    default: 120
  keep:
    description: With O(state=absent), keep the package cache and the SSH key in O(state_dir).
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Bring up two hosts
  causeway.platform.lab:
    name: demo
    state_dir: /var/lib/labs/demo
    image: "{{ image.path }}"
    network: 10.77.0.0/16
    hosts:
      app1: {address: 10.77.1.31, zone: north-a}
      app2: {address: 10.77.2.31, zone: north-b}
  become: true

- name: Remove the lab
  causeway.platform.lab:
    name: demo
    state: absent
    state_dir: /var/lib/labs/demo
  become: true
"""

RETURN = r"""
hosts:
  description: The hosts that were touched, and the state systemd reports for each (in check mode V(planned)).
  returned: O(state=running)
  type: dict
  sample: {app1: running}
removed:
  description: What was found of the lab.
  returned: O(state=absent)
  type: list
  elements: str
  sample: [/run/causeway-lab/demo]
ssh_config:
  description: A file for C(ssh -F) that knows all hosts.
  returned: O(state=running)
  type: str
  sample: /var/lib/labs/demo/ssh/config
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils.lab import LabError, parse_lab
from ansible_collections.causeway.platform.plugins.module_utils.lab_engine import Engine, require_root, running_labs


def bring_up(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Start the lab; returns the module's result."""
    lab = parse_lab(options["name"], options["network"], options["hosts"], options["gateway"], options["cache"])
    state = Path(options["state_dir"])
    engine = Engine(lab.name, state)
    touched = {}
    if check_mode:
        touched = dict.fromkeys(engine.preview(lab), "planned")
    else:
        with engine.lock():
            touched = engine.up(lab, Path(options["image"]), options["timeout"])
    return {"changed": bool(touched), "hosts": touched, "ssh_config": str(state / "ssh" / "config")}


def take_down(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Remove the lab, from wherever it was brought up; returns the module's result."""
    name, state = options["name"], Path(options["state_dir"])
    known = running_labs().get(name)
    states = {state, Path(known)} if known else {state}
    found: set[str] = set()
    for directory in sorted(states):
        engine = Engine(name, directory)
        traces = engine.traces() + ([str(directory)] if directory.exists() and not options["keep"] else [])
        found.update(traces)
        if traces and not check_mode:
            with engine.lock():
                engine.down(options["keep"], options["network"])
    return {"changed": bool(found), "removed": sorted(found)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["running", "absent"], "default": "running"},
            "state_dir": {"type": "path", "required": True},
            "image": {"type": "path"},
            "network": {"type": "str", "default": ""},
            "gateway": {"type": "str", "default": ""},
            "cache": {"type": "bool", "default": True},
            "hosts": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 120},
            "keep": {"type": "bool", "default": False},
        },
        required_if=[("state", "running", ("image", "network", "hosts"))],
        supports_check_mode=True,
    )
    act = bring_up if module.params["state"] == "running" else take_down
    try:
        require_root()
        result = act(module.params, module.check_mode)
    except (LabError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
