#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_info
short_description: Look at a PostgreSQL cluster through Patroni
description:
  - Tells who leads, who follows and how far behind, who holds every commit, and who waits for a restart.
  - It runs on a host whose certificate the members accept, such as one of theirs.
version_added: "0.1.0"
options:
  gather:
    description:
      - What to ask for beside the cluster itself; V(config) is the dynamic configuration, V(history) the changes of the
        timeline, V(members) what each member tells of itself.
    type: list
    elements: str
    choices: [config, history, members]
    default: []
  wait:
    description:
      - Wait until the cluster is whole, as O(members), O(synchronous) and O(max_lag) say.
    type: bool
    default: false
  members:
    description:
      - Members that must lead or follow.
    type: list
    elements: str
    default: []
  synchronous:
    description:
      - Number of synchronous standbys that must follow.
    type: int
    default: 0
  max_lag:
    description:
      - Bytes that a replica may be behind.
    type: int
  timeout:
    description:
      - Seconds to wait with O(wait=true).
    type: float
    default: 60.0
extends_documentation_fragment:
  - causeway.platform.patroni
attributes:
  check_mode:
    support: full
    description: It changes nothing in any mode.
  diff_mode:
    support: none
    description: It changes nothing.
  idempotent:
    support: full
    description: It changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Wait until all members follow and one holds every commit
  causeway.platform.patroni_info:
    endpoints: ["https://10.77.1.31:17000", "https://10.77.2.31:17000", "https://10.77.3.31:17000"]
    members: [app1, app2, app3]
    synchronous: 1
    wait: true
"""

RETURN = r"""
cluster:
  description: The cluster; C(lag) is bytes, null if unknown.
  returned: always
  type: dict
  sample: {scope: orders, leader: app1, timeline: 3, paused: false, sync_standbys: [app2], streaming: [app2, app3],
           pending_restart: [], scheduled_switchover: {}, members: [{name: app1, role: leader, state: running,
           host: 10.77.1.31, port: 15000, timeline: 3, lag: null, sync: false, pending_restart: false,
           endpoint: "https://10.77.1.31:17000", tags: {}}]}
problems:
  description: What O(members), O(synchronous) and O(max_lag) ask for and is not so; empty when the cluster is whole.
  returned: always
  type: list
  elements: str
  sample: ["app3 is replica and starting"]
config:
  description: The dynamic configuration.
  returned: with O(gather=config)
  type: dict
  sample: {ttl: 20, loop_wait: 2}
history:
  description: Changes of the timeline, oldest first.
  returned: with O(gather=history)
  type: list
  elements: dict
  sample: [{timeline: 1, lsn: 67108960, reason: no recovery target specified, at: "2026-11-27T11:00:00+00:00",
            leader: app2}]
members:
  description: What each member that answers tells of itself; those that do not have C(error).
  returned: with O(gather=members)
  type: dict
  sample: {app1: {state: running, role: primary, server_version: 170011}}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.patroni import (
    ARGUMENTS,
    Client,
    Cluster,
    PatroniError,
    connect,
    health_problems,
)


def describe(client: Client, cluster: Cluster) -> dict[str, Any]:
    """What each member tells of itself."""
    told: dict[str, Any] = {}
    for name, one in cluster.members.items():
        try:
            told[name] = client.read("/patroni", one.endpoint)
        except PatroniError as error:
            told[name] = {"error": str(error)}
    return told


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Look, wait if asked to; returns the module's result."""
    client = connect(params)

    def problems(cluster: Cluster) -> list[str]:
        return health_problems(
            cluster, members=params["members"], synchronous=params["synchronous"], max_lag=params["max_lag"]
        )

    cluster = (
        client.wait("the cluster is not whole", params["timeout"], problems) if params["wait"] else client.cluster()
    )
    result: dict[str, Any] = {"changed": False, "cluster": cluster.as_dict(), "problems": problems(cluster)}
    if "config" in params["gather"]:
        result["config"] = client.config()
    if "history" in params["gather"]:
        result["history"] = client.history()
    if "members" in params["gather"]:
        result["members"] = describe(client, cluster)
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": ["config", "history", "members"],
                "default": [],
            },
            "wait": {"type": "bool", "default": False},
            "members": {"type": "list", "elements": "str", "default": []},
            "synchronous": {"type": "int", "default": 0},
            "max_lag": {"type": "int"},
            "timeout": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params)
    except PatroniError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
