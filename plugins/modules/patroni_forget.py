#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_forget
short_description: Have Patroni forget how far a stopped cluster had come
description:
  - After a restore in place the cluster is younger than what Patroni remembers in etcd. Its last position and its
    synchronous standbys would keep the restored member from leading, so they are removed, as are notes of old members.
  - The dynamic configuration and the cluster's identity stay. C(patronictl remove) would take them too, and whoever
    starts with an empty directory then would found another cluster.
  - It refuses while a Patroni of the cluster lives, so that nobody leads with other data meanwhile.
version_added: "0.1.0"
options:
  cluster:
    description:
      - Name of the cluster.
    type: str
    required: true
  state:
    description:
      - V(idle) only waits until no Patroni of the cluster lives, V(forgotten) then removes the keys.
    type: str
    choices: [idle, forgotten]
    default: forgotten
  identity:
    description:
      - System identifier of the restored cluster. Where Patroni knows another one (all members were lost, and an empty
        cluster was made in their place), it is told this one.
    type: str
    default: ""
  stopped:
    description:
      - Members whose Patroni was stopped for certain. Their keys run out later and are not waited for.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - Seconds to wait for the last of them to be gone; longer than Patroni's C(ttl).
    type: float
    default: 60.0
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would be removed and does not wait.
  diff_mode:
    support: none
    description: RV(keys) tells it all.
  idempotent:
    support: full
    description: What is forgotten stays forgotten.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Forget where orders had been
  causeway.platform.patroni_forget:
    platform: shop
    endpoints: ["https://10.77.1.21:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    cluster: orders
"""

RETURN = r"""
keys:
  description: Keys that were removed or would be, below C(/patroni/<platform>/<cluster>/).
  returned: success
  type: list
  elements: str
  sample: [status, sync]
"""

import time

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdClient, EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import ARGUMENTS, RegistryError, connect

KEPT = ("config", "initialize")
PAUSE = 0.5


def alive(keys: list[str], stopped: list[str]) -> list[str]:
    """Signs of life: the leader's key and those of members vanish with their leases."""
    known = {f"members/{name}" for name in stopped}
    return [key for key in keys if key == "leader" or (key.startswith("members/") and key not in known)]


def forget(client: EtcdClient, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Wait, then remove."""
    prefix = f"/patroni/{params['platform']}/{params['cluster']}/"
    deadline = time.monotonic() + params["timeout"]
    while True:
        values = {one.key[len(prefix) :]: one.text() for one in client.range(prefix)[0]}
        keys = sorted(values)
        found = alive(keys, params["stopped"])
        if not found or check_mode:
            break
        if time.monotonic() > deadline:
            raise RegistryError(
                f"a Patroni of cluster {params['cluster']} lives ({', '.join(found)}): stop it on every host first"
            )
        time.sleep(PAUSE)
    gone = [key for key in keys if key not in KEPT and key not in found]
    if params["state"] == "idle":
        return {"changed": False, "keys": []}
    other = bool(params["identity"]) and values.get("initialize") != params["identity"]
    if not check_mode:
        if other:
            client.put(f"{prefix}initialize", params["identity"])
        for key in gone:
            client.delete(prefix + key)
    return {"changed": bool(gone) or other, "keys": gone}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "cluster": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["idle", "forgotten"], "default": "forgotten"},
            "identity": {"type": "str", "default": ""},
            "stopped": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    try:
        with connect(module.params) as client:
            result = forget(client, module.params, module.check_mode)
    except (EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
