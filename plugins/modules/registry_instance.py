#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_instance
short_description: Drain, register or remove instances of a service
description:
  - Takes instances of a service out of balancing, brings them back, or removes them from the service registry, and
    waits until every live proxy that sends traffic to the service has acknowledged this.
  - It is the node agent of the instance's host that registers an instance, once its health check passes; this module
    only waits for that.
  - All instances given are changed in one transaction.
version_added: "0.1.0"
options:
  service:
    description:
      - Name of the service.
    type: str
    required: true
  instances:
    description:
      - Instances as C(host/slot), such as V(app1/0).
    type: list
    elements: str
    required: true
    aliases: [instance]
  state:
    description:
      - V(drained) marks the instances as draining and waits until every proxy in front acknowledged that and reports no
        request in flight to them.
      - V(present) removes that mark and waits until the instances are registered and every proxy in front knows.
      - V(removed) deletes mark and registration and waits until every proxy in front knows. The instance must be
        stopped before, or its agent registers it again.
    type: str
    choices: [drained, present, removed]
    default: present
  version:
    description:
      - With O(state=present), the version that the instances must be registered with.
    type: str
  by:
    description:
      - Who drains, for the reader of the mark.
    type: str
    default: ansible
  wait:
    description:
      - Whether to wait at all.
    type: bool
    default: true
  timeout:
    description:
      - Seconds to wait.
    type: float
    default: 30.0
  minimum_proxies:
    description:
      - At least so many live proxies must be in front of the service and acknowledge.
    type: int
    default: 0
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: full
    description: Shows the instances' states before and after.
  idempotent:
    support: full
    description: A second run changes nothing, but waits again.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Take both instances on app1 out of balancing
  causeway.platform.registry_instance:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    instances: [app1/0, app1/1]
    state: drained
    timeout: 30

- name: Bring them back once they are healthy with the new version
  causeway.platform.registry_instance:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    instances: [app1/0, app1/1]
    state: present
    version: 1.1.0
    timeout: 60
"""

RETURN = r"""
revision:
  description: Revision that the proxies had to acknowledge.
  returned: always
  type: int
  sample: 4711
acknowledgements:
  description: The proxies in front that acknowledged, with the revision, the requests still in flight and how many
    seconds after the write that was.
  returned: always
  type: dict
  sample: {edge1/gateway: {revision: 4711, active: 0, after_seconds: 0.142}}
missing:
  description: Proxies and instances that were not there when time ran out, with the reason.
  returned: always
  type: dict
  sample: {edge2/gateway: 3 requests in flight to app1/0}
at:
  description: When the waiting ended, seconds since the epoch on this host's clock.
  returned: always
  type: float
  sample: 1795374757.8
waited:
  description: Seconds that the wait took.
  returned: always
  type: float
  sample: 0.311
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Acks,
    Keys,
    Mirror,
    RegistryError,
    apply_instances,
    connect,
    drain_revision,
    plan_instances,
    read,
    wait_for_acks,
    wait_until_registered,
)


def states(mirror: Mirror, service: str, names: list[str]) -> dict[str, str]:
    """One word for each instance."""
    found = {}
    for name in names:
        registered = mirror.kv("services", service, name) is not None
        draining = mirror.kv("drains", service, name) is not None
        found[name] = {
            (True, False): "present",
            (True, True): "draining",
            (False, True): "absent, draining",
            (False, False): "absent",
        }[registered, draining]
    return found


def after(before: dict[str, str], state: str) -> dict[str, str]:
    """What :func:`states` will say when all is done."""
    if state == "drained":
        return {
            name: "draining" if was in ("present", "draining") else "absent, draining" for name, was in before.items()
        }
    return dict.fromkeys(before, "present" if state == "present" else "absent")


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Plan, act, wait; returns the module's result."""
    keys, service, state = Keys(params["platform"]), params["service"], params["state"]
    names = list(dict.fromkeys(params["instances"]))
    acks = Acks()
    with connect(params) as client:
        mirror = read(client, keys)
        operations = plan_instances(mirror, service, names, state)
        before = states(mirror, service, names)
        result: dict[str, Any] = {
            "changed": bool(operations),
            "diff": {"before": before, "after": after(before, state) if operations else before},
        }
        revision = drain_revision(mirror, service, names) if state == "drained" else 0
        if not check_mode:
            revision = apply_instances(client, operations, params["by"]) or revision
            if params["wait"] and state == "present":
                acks = wait_until_registered(
                    client,
                    keys,
                    service,
                    names,
                    params["timeout"],
                    revision=revision,
                    version=params["version"] or "",
                    minimum=params["minimum_proxies"],
                )
            elif params["wait"] and (operations or state == "drained"):
                acks = wait_for_acks(
                    client,
                    keys,
                    service,
                    revision,
                    params["timeout"],
                    idle=names if state == "drained" else (),
                    minimum=params["minimum_proxies"],
                )
    result.update(
        revision=acks.revision or revision,
        acknowledgements=acks.proxies,
        missing=acks.missing,
        at=round(time.time(), 3),
        waited=acks.seconds,
    )
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "service": {"type": "str", "required": True},
            "instances": {"type": "list", "elements": "str", "required": True, "aliases": ["instance"]},
            "state": {"type": "str", "choices": ["drained", "present", "removed"], "default": "present"},
            "version": {"type": "str"},
            "by": {"type": "str", "default": "ansible"},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 30.0},
            "minimum_proxies": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        result = run(params, module.check_mode)
    except (EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error))
    if result["missing"]:
        late = "; ".join(f"{name}: {reason}" for name, reason in sorted(result["missing"].items()))
        what = f"service {params['service']}: {', '.join(params['instances'])} not {params['state']}"
        module.fail_json(msg=f"{what} within {params['timeout']:g} s: {late}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
