#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_info
short_description: Tell what the service registry knows
description:
  - Reads the state of the registry's cluster and all that it knows of services, their instances, traffic, releases,
    locks, proxies and acknowledgements.
version_added: "0.1.0"
options:
  service:
    description:
      - Only this service.
    type: str
  gather:
    description:
      - What to gather. V(cluster) works without a quorum, V(content) does not.
    type: list
    elements: str
    choices: [cluster, content]
    default: [cluster, content]
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Ask the registry
  causeway.platform.registry_info:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
  register: registry

- name: Show where orders runs
  ansible.builtin.debug:
    msg: "{{ registry.services.orders.instances | map(attribute='instance') }}"
"""

RETURN = r"""
revision:
  description: Revision of the store at which the content was read.
  returned: when O(gather) has V(content)
  type: int
  sample: 4711
members:
  description: Members of the cluster, by name.
  returned: when O(gather) has V(cluster)
  type: list
  elements: dict
  sample:
    - {id: 8e9e05c52164694d, name: core1, endpoint: "https://10.77.1.21:2379", peer_urls: ["https://10.77.1.21:2380"],
       started: true, learner: false, healthy: true, reason: "", leader: true, version: 3.5.16, db_size: 65536,
       db_size_in_use: 40960, revision: 4711}
leader:
  description: Name of the leading member, empty without one.
  returned: when O(gather) has V(cluster)
  type: str
  sample: core1
quorum:
  description: Whether a majority of the voting members is healthy.
  returned: when O(gather) has V(cluster)
  type: bool
  sample: true
spare:
  description: How many more members may be lost before the registry loses its quorum; negative without quorum.
  returned: when O(gather) has V(cluster)
  type: int
  sample: 1
alarms:
  description: Alarms of the members, V(NOSPACE) or V(CORRUPT).
  returned: when O(gather) has V(cluster) and the registry has a quorum
  type: list
  elements: dict
  sample: [{member: 8e9e05c52164694d, alarm: NOSPACE}]
services:
  description:
    - Services by name. C(revision) is the highest revision of a key of the service that exists; C(instances) are the
      registered instances with their own revision and whether they are draining; C(drains) are the markers;
      C(release), C(lock) and C(command) (an operator's request) are empty when there is none; C(proxies) are the
      live proxies in front with what they acknowledged.
  returned: when O(gather) has V(content)
  type: dict
  sample:
    orders:
      revision: 4700
      instances: [{service: orders, instance: app1-0, host: app1, slot: 0, address: 10.77.1.31, port: 7100,
                   zone: north-a, region: north, pool: stable, version: 1.0.0, weight: 100, revision: 4700,
                   draining: false}]
      drains: {}
      traffic: {weights: {stable: 100, candidate: 0}, revision: 0}
      release: {current: 1.0.0, previous: "", state: live, history: [], revision: 4000}
      lock: {}
      command: {}
      proxies: {edge1/gateway: {revision: 4700, at: 1795363200.0, active: {}}}
proxies:
  description: All live proxies with the services that they send traffic to.
  returned: when O(gather) has V(content)
  type: dict
  sample: {edge1/gateway: [orders, catalog]}
agents:
  description: Hosts with a live node agent.
  returned: when O(gather) has V(content)
  type: list
  elements: str
  sample: [app1, app2, edge1]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    RegistryError,
    check_label,
    cluster_health,
    connect,
    describe,
    leader_of,
    quorum,
    read,
    services,
)


def content(client: Any, keys: Keys, service: str | None) -> dict[str, Any]:
    """Everything below the platform's prefix, by service."""
    mirror = read(client, keys)
    names = services(mirror) if service is None else [check_label("service", service)]
    return {
        "revision": mirror.revision,
        "services": {name: describe(mirror, name) for name in names},
        "proxies": {
            name: (kv.json() or {}).get("services", []) for name, kv in sorted(mirror.below("proxies").items())
        },
        "agents": sorted(mirror.below("agents")),
    }


def cluster(client: Any) -> dict[str, Any]:
    """Members and their health."""
    health = cluster_health(client)
    leader = leader_of(health)
    voters = [one for one in health if not one.member.learner]
    spare = sum(1 for one in voters if not one.reason) - quorum(len(voters))
    result: dict[str, Any] = {
        "members": [one.as_dict(leader) for one in health],
        "leader": next((one.member.name for one in health if one.member.id == leader), ""),
        "quorum": spare >= 0,
        "spare": spare,
    }
    if spare >= 0:
        result["alarms"] = [{"member": f"{one.member:x}", "alarm": one.alarm} for one in client.alarm_list()]
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "service": {"type": "str"},
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": ["cluster", "content"],
                "default": ["cluster", "content"],
            },
        },
        supports_check_mode=True,
    )
    result: dict[str, Any] = {"changed": False}
    try:
        with connect(module.params) as client:
            if "cluster" in module.params["gather"]:
                result.update(cluster(client))
            if "content" in module.params["gather"]:
                result.update(content(client, Keys(module.params["platform"]), module.params["service"]))
    except (EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
