#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_instance
short_description: Start, restart or stop service instances and wait until they are healthy
version_added: "0.1.0"
author:
  - The causeway.platform authors (@causeway)
description:
  - Starts or restarts systemd units one after another, and goes on to the next one only when the health check of the
    one before answers.
  - Fails with the last log lines of a unit that does not become healthy in time.
options:
  instances:
    description: Instances to act on, in this order.
    type: list
    elements: dict
    required: true
    suboptions:
      unit:
        description: systemd unit.
        type: str
        required: true
      health_url:
        description: Address that answers with a 2xx status when the instance is healthy. Not waited for if empty.
        type: str
        default: ""
      health_interval:
        description: Seconds between two attempts.
        type: float
        default: 0.5
      health_timeout:
        description: Seconds one attempt may take.
        type: float
        default: 1.0
      start_timeout:
        description: Seconds until an instance must be healthy.
        type: float
        default: 60.0
  state:
    description:
      - V(started) starts units that do not run, and waits for those.
      - V(restarted) restarts all.
      - V(stopped) stops those that run.
    type: str
    choices: [started, restarted, stopped]
    default: started
  daemon_reload:
    description: Whether systemd reads the units' files again first.
    type: bool
    default: false
  log_lines:
    description: How many log lines of a failed unit to show.
    type: int
    default: 20
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Tells what would be started or stopped and waits for nothing.
  diff_mode:
    support: none
  platform:
    platforms: posix
"""

EXAMPLES = r"""
- name: Restart one instance with its new version
  causeway.platform.service_instance:
    instances:
      - unit: orders@0.service
        health_url: http://10.89.0.10:8080/healthz
        start_timeout: 60
    state: restarted
    daemon_reload: true
"""

RETURN = r"""
units:
  description: Units that were (or would be) started, restarted or stopped.
  type: list
  elements: str
  returned: always
  sample: [orders@0.service]
seconds:
  description: Seconds from the start of each unit until it was healthy.
  type: dict
  returned: success
  sample: {orders@0.service: 1.4}
unit:
  description: The unit that failed.
  type: str
  returned: when a unit failed
  sample: orders@0.service
log:
  description: Last log lines of the unit that failed.
  type: list
  elements: str
  returned: when a unit failed
  sample: []
"""

import re
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# podman's events (a time with its monotonic offset) and the bare container id that "podman run" prints
ENGINE_EVENT = re.compile(r"^(\S+ \S+ \+\d{4} \S+ m=\+|[0-9a-f]{64}$|conmon [0-9a-f]+ <nwarn>)")

# An address of this host's own container network: never through a proxy.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class InstanceError(Exception):
    """What went wrong with `unit`."""

    def __init__(self, unit: str, message: str) -> None:
        super().__init__(message)
        self.unit = unit


def attempt(url: str, timeout: float) -> str:
    """Empty if the check is content, else why not."""
    try:
        with OPENER.open(url, timeout=timeout) as response:
            response.read()
            return ""
    except urllib.error.HTTPError as error:
        return f"answered {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def is_active(module: AnsibleModule, unit: str) -> bool:
    return bool(module.run_command(["systemctl", "is-active", "--quiet", unit])[0] == 0)


def systemctl(module: AnsibleModule, verb: str, unit: str) -> None:
    code, _out, err = module.run_command(["systemctl", verb, unit])
    if code != 0:
        raise InstanceError(
            unit, f"systemctl {verb} {unit} failed: {err.strip().splitlines()[0] if err.strip() else code}"
        )


def wait_healthy(module: AnsibleModule, instance: dict[str, Any], started: float) -> float:
    """Seconds it took; raises InstanceError with the last answer."""
    unit = instance["unit"]
    deadline = started + instance["start_timeout"]
    while instance["health_url"]:
        reason = attempt(instance["health_url"], instance["health_timeout"])
        if not reason:
            break
        if time.monotonic() >= deadline:
            raise InstanceError(
                unit,
                f"{unit} was not healthy within {instance['start_timeout']:g} s: {instance['health_url']} {reason}",
            )
        # at most twice a second slower than the service itself asks; quick starts should not wait for a whole interval
        time.sleep(min(instance["health_interval"], 0.25))
    return round(time.monotonic() - started, 2)


def act(module: AnsibleModule, units: list[str]) -> dict[str, float]:
    params = module.params
    seconds: dict[str, float] = {}
    if params["daemon_reload"]:
        code, _out, err = module.run_command(["systemctl", "daemon-reload"])
        if code != 0:
            raise InstanceError("", f"systemctl daemon-reload failed: {err.strip()}")
    verb = {"started": "start", "restarted": "restart", "stopped": "stop"}[params["state"]]
    for instance in params["instances"]:
        if instance["unit"] not in units:
            continue
        started = time.monotonic()
        systemctl(module, verb, instance["unit"])
        if verb != "stop":
            seconds[instance["unit"]] = wait_healthy(module, instance, started)
    return seconds


def last_log(module: AnsibleModule, unit: str, since: str) -> list[str]:
    """The unit's last lines since this task began, without podman's own events."""
    if not unit:
        return []
    module.run_command(["journalctl", "--sync"])
    command = ["journalctl", "--unit", unit, "--since", since, "--lines", "500", "--no-pager", "--output", "cat"]
    lines = [line for line in module.run_command(command)[1].splitlines() if not ENGINE_EVENT.match(line)]
    return lines[-module.params["log_lines"] :]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "unit": {"type": "str", "required": True},
                    "health_url": {"type": "str", "default": ""},
                    "health_interval": {"type": "float", "default": 0.5},
                    "health_timeout": {"type": "float", "default": 1.0},
                    "start_timeout": {"type": "float", "default": 60.0},
                },
            },
            "state": {"type": "str", "choices": ["started", "restarted", "stopped"], "default": "started"},
            "daemon_reload": {"type": "bool", "default": False},
            "log_lines": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    names = [instance["unit"] for instance in module.params["instances"]]
    state = module.params["state"]
    if state == "restarted":
        units = names
    else:
        units = [name for name in names if is_active(module, name) != (state == "started")]
    seconds: dict[str, float] = {}
    if not module.check_mode:
        since = f"@{int(time.time())}"
        try:
            seconds = act(module, units)
        except InstanceError as error:
            log = last_log(module, error.unit, since)
            shown = "".join(f"\n  {line}" for line in log)
            module.fail_json(msg=f"{error}; its last log lines:{shown}", unit=error.unit, log=log, units=units)
    module.exit_json(changed=bool(units), units=units, seconds=seconds)


if __name__ == "__main__":
    main()
