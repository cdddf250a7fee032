#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_lock
short_description: Hold a lock in the registry for the time of a playbook
description:
  - A lock is a key under a lease. It frees itself when its holder stops renewing it, so that a controller
    that died blocks nobody for longer than O(ttl).
  - Renew it before every step, and stop when that fails, since somebody else may act by then.
version_added: "0.1.0"
options:
  name:
    description:
      - What is locked, such as the name of a service.
    type: str
    required: true
  state:
    description:
      - V(locked) takes the lock, or renews it when O(owner) holds it already.
      - V(renewed) renews it and fails when it was lost.
      - V(unlocked) gives it back; it fails when somebody else holds it.
    type: str
    choices: [locked, renewed, unlocked]
    default: locked
  owner:
    description:
      - Token that tells the holder, different in every run. With O(state=locked) one is made when it is left out.
    type: str
  purpose:
    description:
      - What the lock is held for, told to others that are refused.
    type: str
    default: ""
  ttl:
    description:
      - Seconds after the last renewal at which the lock frees itself.
    type: int
    default: 120
  wait:
    description:
      - With O(state=locked), seconds to wait for somebody else to give the lock back.
    type: float
    default: 0.0
  force:
    description:
      - With O(state=unlocked), take the lock away from whoever holds it.
    type: bool
    default: false
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: none
    description: A lock has no content worth a diff.
  idempotent:
    support: full
    description: Taking a lock that O(owner) holds only renews it.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Lock orders
  causeway.platform.etcd_lock:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    name: orders
    purpose: release 1.1.0
  register: lock

- name: Make sure that we still hold it
  causeway.platform.etcd_lock:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    name: orders
    owner: "{{ lock.owner }}"
    state: renewed

- name: Give it back
  causeway.platform.etcd_lock:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    name: orders
    owner: "{{ lock.owner }}"
    state: unlocked
"""

RETURN = r"""
owner:
  description: Token of the holder, to renew and give back the lock with.
  returned: always
  type: str
  sample: 5f0c1c7e-5a0f-4be5-a2c1-3c3b5b9b1d2e
lock:
  description: The lock as it is afterwards, empty when it is free; C(ttl) are the seconds left.
  returned: always
  type: dict
  sample: {name: orders, owner: 5f0c1c7e-5a0f-4be5-a2c1-3c3b5b9b1d2e, purpose: release 1.1.0,
           at: "2026-11-22T16:00:00.000Z", ttl: 120, revision: 4711, lease: 694d8e9e05c52164}
"""

import time
import uuid

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdClient, EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    Lock,
    RegistryError,
    acquire,
    connect,
    find_lock,
    held,
    release_lock,
    renew,
)


POLL = 0.5


def take(
    client: EtcdClient, keys: Keys, params: dict[str, Any], owner: str, check_mode: bool
) -> tuple[bool, Lock | None]:
    """Take or renew the lock, waiting for another holder if asked to; tells whether it was free."""
    name, deadline = params["name"], time.monotonic() + params["wait"]
    while True:
        lock = find_lock(client, keys, name)
        if lock is not None and lock.owner == owner:
            return False, lock if check_mode else renew(client, lock, name, owner)
        try:
            if lock is not None:
                raise held(lock)
            if check_mode:
                return True, None
            return True, acquire(client, keys, name, owner=owner, purpose=params["purpose"], ttl=params["ttl"])
        except RegistryError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL)


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Look, decide, act; returns the module's result."""
    keys, name, state = Keys(params["platform"]), params["name"], params["state"]
    owner = params["owner"] or (str(uuid.uuid4()) if state == "locked" else "")
    with connect(params) as client:
        if state == "locked":
            changed, lock = take(client, keys, params, owner, check_mode)
        else:
            lock = find_lock(client, keys, name)
            mine = lock is not None and lock.owner == owner
            changed = state == "unlocked" and lock is not None
            if state == "renewed":
                # A check has nothing to renew when the task that would have taken the lock only checked, too.
                lock = lock if check_mode else renew(client, lock, name, owner)
            elif lock is not None:
                if not mine and not params["force"]:
                    raise held(lock)
                if not check_mode:
                    release_lock(client, keys, lock)
                    lock = None
    return {"changed": changed, "owner": owner, "lock": lock.as_dict() if lock else {}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["locked", "renewed", "unlocked"], "default": "locked"},
            "owner": {"type": "str"},
            "purpose": {"type": "str", "default": ""},
            "ttl": {"type": "int", "default": 120},
            "wait": {"type": "float", "default": 0.0},
            "force": {"type": "bool", "default": False},
        },
        required_if=[("state", "renewed", ["owner"])],
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except (EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
