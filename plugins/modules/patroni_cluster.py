#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_cluster
short_description: Configure, switch over, restart or reinitialise a PostgreSQL cluster through Patroni
description:
  - Looks at the cluster, decides, and acts through Patroni's REST API; then waits until the cluster shows the effect.
  - It runs on a host whose certificate and address the members accept for changes, that is one of theirs.
version_added: "0.1.0"
options:
  command:
    description:
      - V(configured) brings the dynamic configuration to O(config).
      - V(switchover) moves the leadership, to O(candidate) or away from O(leader).
      - V(restart) restarts PostgreSQL of O(members), one after the other, replicas first.
      - V(reload) has O(members) read their configuration again.
      - V(reinit) copies the replicas named in O(members) anew from the leader.
      - V(pause) and V(resume) turn Patroni's maintenance mode on and off. While it is on, nobody fails over.
    type: str
    required: true
    choices: [configured, switchover, restart, reload, reinit, pause, resume]
  config:
    description:
      - Dynamic configuration for O(command=configured). Keys that it does not name stay as they are, except parameters
        of PostgreSQL, which are removed. A null removes a key.
    type: dict
  candidate:
    description:
      - Member that shall lead. Nothing is done when it does already. Patroni chooses when it is left out.
    type: str
    default: ""
  leader:
    description:
      - Member that shall lead no longer. Nothing is done when it does not lead.
    type: str
    default: ""
  max_lag:
    description:
      - Bytes that the candidate may be behind.
    type: int
    default: 1048576
  members:
    description:
      - Members to restart, reload or reinitialise; by default all, for O(command=reinit) it is required.
    type: list
    elements: str
    default: []
  pending:
    description:
      - With O(command=restart), restart only members that wait for it.
    type: bool
    default: true
  force:
    description:
      - With O(command=reinit), begin again also where a copy is under way.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that each step may take.
    type: float
    default: 60.0
extends_documentation_fragment:
  - causeway.platform.patroni
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: partial
    description: Shows the dynamic configuration before and after.
  idempotent:
    support: partial
    description:
      - V(configured), V(pause), V(resume), V(restart) of pending members and V(switchover) with O(candidate) or
        O(leader) do nothing the second time.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Have app2 lead
  causeway.platform.patroni_cluster:
    endpoints: ["https://10.77.1.31:17000", "https://10.77.2.31:17000", "https://10.77.3.31:17000"]
    password: "{{ 'orders' | causeway.platform.database_password('rest') }}"
    command: switchover
    candidate: app2

- name: Allow more connections
  causeway.platform.patroni_cluster:
    endpoints: ["https://10.77.1.31:17000", "https://10.77.2.31:17000", "https://10.77.3.31:17000"]
    password: "{{ 'orders' | causeway.platform.database_password('rest') }}"
    command: configured
    config: {postgresql: {parameters: {max_connections: 200}}}
"""

RETURN = r"""
patch:
  description: What was changed in the dynamic configuration, or would be; null where a key was removed.
  returned: with O(command=configured)
  type: dict
  sample: {postgresql: {parameters: {max_connections: 200}}}
switchover:
  description: Who handed over to whom, and the seconds until the new leader was seen.
  returned: when the leadership moved
  type: dict
  sample: {from: app1, to: app2, status: 200, said: Successfully switched over to "app2", seconds: 2.4}
steps:
  description: What was done with each member, or would be, in order.
  returned: with O(command=restart), O(command=reload) and O(command=reinit)
  type: list
  elements: dict
  sample: [{member: app3, said: restarted successfully, status: 200, seconds: 1.9}]
cluster:
  description: The cluster afterwards, as M(causeway.platform.patroni_info) returns it.
  returned: always
  type: dict
  sample: {scope: orders, leader: app2}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.patroni import (
    ARGUMENTS,
    LEADERS,
    Client,
    PatroniError,
    apply_patch,
    config_patch,
    connect,
    judge_switchover,
    reinitialize,
    reload_member,
    restart_member,
    restart_order,
    set_pause,
    switch_over,
)


class Act:
    """The commands, each with its look, its decision and its act."""

    def __init__(self, params: dict[str, Any], client: Client, check_mode: bool) -> None:
        self.params, self.client, self.check_mode = params, client, check_mode
        self.timeout = params["timeout"]

    def configured(self) -> dict[str, Any]:
        """Bring the dynamic configuration in line."""
        before = self.client.config()
        patch = config_patch(before, self.params["config"])
        if patch and not self.check_mode:
            self.client.write_config(patch)
        return {"changed": bool(patch), "patch": patch, "diff": {"before": before, "after": apply_patch(before, patch)}}

    def switchover(self) -> dict[str, Any]:
        """Move the leadership."""
        candidate, leaving = self.params["candidate"], self.params["leader"]
        cluster = self.client.cluster()
        now, moves = judge_switchover(self.client, cluster, candidate, leaving, self.params["max_lag"])
        if not moves:
            return {"changed": False}
        if self.check_mode:
            return {"changed": True, "switchover": {"from": now, "to": candidate}}
        return {"changed": True, "switchover": switch_over(self.client, cluster, candidate, self.timeout)}

    def restart(self) -> dict[str, Any]:
        """Restart in turn."""
        pending = self.params["pending"]
        names = restart_order(self.client.cluster(), self.params["members"], pending)
        if self.check_mode:
            return {"changed": bool(names), "steps": [{"member": name} for name in names]}
        return {
            "changed": bool(names),
            "steps": [restart_member(self.client, name, pending, self.timeout) for name in names],
        }

    def reload(self) -> dict[str, Any]:
        """Have the members read their files."""
        cluster = self.client.cluster()
        names = restart_order(cluster, self.params["members"], False)
        if self.check_mode:
            return {"changed": False, "steps": [{"member": name} for name in names]}
        steps = [reload_member(self.client, cluster.members[name]) for name in names]
        return {"changed": any(step["changed"] for step in steps), "steps": steps}

    def reinit(self) -> dict[str, Any]:
        """Copy anew."""
        cluster = self.client.cluster()
        names = restart_order(cluster, self.params["members"], False)
        led = [name for name in names if cluster.members[name].role in LEADERS]
        if led:
            raise PatroniError(f"{led[0]} leads {cluster.scope}: move the leadership away first (database_switchover)")
        if self.check_mode:
            return {"changed": True, "steps": [{"member": name} for name in names]}
        return {
            "changed": True,
            "steps": [reinitialize(self.client, name, self.params["force"], self.timeout) for name in names],
        }

    def pause(self) -> dict[str, Any]:
        """Maintenance mode on."""
        return self._set_pause(True)

    def resume(self) -> dict[str, Any]:
        """Maintenance mode off."""
        return self._set_pause(False)

    def _set_pause(self, paused: bool) -> dict[str, Any]:
        if bool(self.client.config().get("pause")) == paused:
            return {"changed": False}
        if not self.check_mode:
            set_pause(self.client, paused, self.timeout)
        return {"changed": True}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "command": {
                "type": "str",
                "required": True,
                "choices": ["configured", "switchover", "restart", "reload", "reinit", "pause", "resume"],
            },
            "config": {"type": "dict"},
            "candidate": {"type": "str", "default": ""},
            "leader": {"type": "str", "default": ""},
            "max_lag": {"type": "int", "default": 1048576},
            "members": {"type": "list", "elements": "str", "default": []},
            "pending": {"type": "bool", "default": True},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 60.0},
        },
        required_if=[("command", "configured", ["config"])],
        supports_check_mode=True,
    )
    params = module.params
    if params["command"] == "reinit" and not params["members"]:
        module.fail_json(msg="members: name the replicas to copy anew, command=reinit has no default")
    if params["candidate"] and params["candidate"] == params["leader"]:
        module.fail_json(msg=f"candidate and leader are both '{params['leader']}'; name one of them or two members")
    try:
        client = connect(params)
        result = getattr(Act(params, client, module.check_mode), params["command"])()
        result["cluster"] = client.cluster().as_dict()
    except PatroniError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
