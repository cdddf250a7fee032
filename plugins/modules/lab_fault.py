#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_fault
short_description: Power, pause, cut and disturb hosts of a lab
version_added: "0.1.0"
description:
  - Does to the hosts of a lab (see M(causeway.platform.lab)) what happens to machines, and undoes it.
  - Network faults are made on the machine's bridge, so that nothing on a host can undo them. They act both ways,
    whatever addresses the hosts carry, and stay in force over power cuts until healed.
  - SSH from the machine to a host always works, unless the host is off or paused.
  - Runs on the machine that carries the lab, as root.
author:
  - The causeway.platform authors (@causeway)
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status without touching the lab.
  diff_mode:
    support: full
    description: Shows the faults in force before and after.
  idempotent:
    support: full
    description: Does nothing when the fault is in force already. O(action=reinstall) always acts.
options:
  lab:
    description: Name of the lab.
    type: str
    required: true
  action:
    description:
      - V(power_off) cuts the power, the disk is kept. V(power_on) starts the host and waits for systemd.
      - V(pause) freezes a host, V(unpause) thaws it.
      - V(reinstall) gives a host an empty disk and starts it as a bare machine.
      - V(cut) drops everything between O(a) and O(b), V(loss) drops O(percent) of the packets, V(delay) adds
        O(milliseconds) each way (where the kernel has netem) and V(rate) limits to O(kbit) each way.
      - V(isolate) cuts O(a) from all other hosts.
      - V(heal) ends network faults, all or those that name O(a) (and O(b)).
    type: str
    required: true
    choices: [power_off, power_on, pause, unpause, reinstall, cut, loss, delay, rate, isolate, heal]
  a:
    description: A host, zone or region by name (C(zone:NAME) and C(region:NAME) settle a name used twice).
    type: str
    default: ""
    aliases: [host]
  b:
    description:
      - The other side, as O(a). V(others) means all hosts that are not in O(a), V(outside) the machine that carries the
        lab and all beyond it.
    type: str
    default: ""
  percent:
    description: Share of lost packets for O(action=loss).
    type: float
    default: 0
  milliseconds:
    description: Added time each way for O(action=delay).
    type: float
    default: 0
  kbit:
    description: Kilobits a second each way for O(action=rate).
    type: int
    default: 0
  timeout:
    description: Seconds that a host may take to start.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Cut the power of a host
  causeway.platform.lab_fault:
    lab: demo
    action: power_off
    host: app1
  become: true

- name: Cut two zones apart
  causeway.platform.lab_fault:
    lab: demo
    action: cut
    a: north-a
    b: north-b
  become: true

- name: Lose a fifth of the packets between a host and a region
  causeway.platform.lab_fault:
    lab: demo
    action: loss
    a: app1
    b: region:south
    percent: 20
  become: true

- name: End all network faults
  causeway.platform.lab_fault:
    lab: demo
    action: heal
  become: true
"""

RETURN = r"""
faults:
  description: The network faults in force afterwards, in words.
  returned: always
  type: list
  elements: str
  sample: [cut between north-a and north-b]
hosts:
  description: The hosts that were switched, and what systemd (or the power switch) says of each.
  returned: always
  type: dict
  sample: {app1: "off"}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils import lab as plan
from ansible_collections.causeway.platform.plugins.module_utils.lab_engine import (
    Engine,
    each,
    netem_available,
    require_root,
)

POWER = {
    "power_off": ("running", "paused"),
    "power_on": ("exited", "created"),
    "pause": ("running",),
    "unpause": ("paused",),
}
AMOUNTS = {"loss": "percent", "delay": "milliseconds", "rate": "kbit"}


def switch(engine: Engine, lab: plan.Lab, options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Power actions on all hosts of the selected side; returns the module's result."""
    action, nodes = options["action"], engine.nodes()
    hosts = [host for host in plan.select(lab, options["a"]) if host.name in nodes]
    if action != "reinstall":
        hosts = [host for host in hosts if nodes[host.name].state in POWER[action]]
    faults = engine.faults()
    states = dict.fromkeys((host.name for host in hosts), "planned")
    if not check_mode and hosts:

        def act(host: plan.LabHost) -> str:
            if action == "reinstall":
                return engine.reinstall(lab, host, options["timeout"])
            return engine.power(host.name, action, options["timeout"])

        states = dict(zip(states, each(hosts, act)))
        if faults and action in ("power_on", "reinstall"):
            engine.apply_faults(lab, faults)  # the host hangs on a new bridge port
    return {"changed": bool(hosts), "hosts": states, "faults": [fault.describe() for fault in faults]}


def disturb(engine: Engine, lab: plan.Lab, options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Network faults; returns the module's result."""
    action, a, b = options["action"], options["a"], options["b"]
    before = engine.faults()
    if action == "heal":
        after = plan.healed(before, a, b)
    else:
        kind, b = ("cut", b or plan.OTHERS) if action == "isolate" else (action, b)
        amount = options[AMOUNTS[kind]] if kind in AMOUNTS else 0
        after = plan.with_fault(before, plan.checked_fault(lab, kind, a, b, amount))
        if kind == "delay" and not netem_available():
            raise plan.LabError(
                "this machine's kernel has no netem, so packets cannot be delayed; cut, loss and rate work"
            )
    if not check_mode and after != before:
        engine.apply_faults(lab, after)
    words = [[fault.describe() for fault in faults] for faults in (before, after)]
    diff = {"before": "\n".join([*words[0], ""]), "after": "\n".join([*words[1], ""])}
    return {"changed": after != before, "hosts": {}, "faults": words[1], "diff": diff}


def main() -> None:
    pair = ("a", "b")
    module = AnsibleModule(
        argument_spec={
            "lab": {"type": "str", "required": True},
            "action": {
                "type": "str",
                "required": True,
                "choices": [
                    *("power_off", "power_on", "pause", "unpause", "reinstall"),
                    *("cut", "loss", "delay", "rate", "isolate", "heal"),
                ],
            },
            "a": {"type": "str", "default": "", "aliases": ["host"]},
            "b": {"type": "str", "default": ""},
            "percent": {"type": "float", "default": 0},
            "milliseconds": {"type": "float", "default": 0},
            "kbit": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 60},
        },
        required_if=[
            *[("action", action, ("a",)) for action in (*POWER, "reinstall", "isolate")],
            *[("action", action, (*pair, *amount)) for action, amount in (("cut", ()), ("loss", ("percent",)))],
            *[("action", action, (*pair, amount)) for action, amount in (("delay", "milliseconds"), ("rate", "kbit"))],
        ],
        supports_check_mode=True,
    )
    options = module.params
    act = switch if options["action"] in (*POWER, "reinstall") else disturb
    try:
        require_root()
        engine = Engine.of(options["lab"])
        with engine.lock():
            result = act(engine, engine.record(), options, module.check_mode)
    except (plan.LabError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
