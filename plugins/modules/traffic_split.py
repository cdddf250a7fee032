#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: traffic_split
short_description: Split a service's traffic between its pools
description:
  - Writes the weights of a service's pools in one transaction, refuses when somebody else changed them
    meanwhile, and waits until every live proxy that sends traffic to the service has acknowledged them.
version_added: "0.1.0"
options:
  service:
    description:
      - Name of the service.
    type: str
    required: true
  weights:
    description:
      - Percentage of each pool. Pools are V(stable), V(candidate) and V(baseline); one left out gets 0. The sum is 100.
    type: dict
    required: true
  expect_revision:
    description:
      - Refuse unless the weights were last changed at this revision (V(0), never), as RV(revision) of an earlier
        run told. Without it they must only not change between reading and writing.
    type: int
  require_instances:
    description:
      - Refuse to give traffic to a pool that has no registered instance that is not draining.
    type: bool
    default: true
  wait:
    description:
      - Whether to wait for the acknowledgements.
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
    description: Shows the weights before and after.
  idempotent:
    support: full
    description: A second run changes nothing, but waits again.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Send a tenth of the traffic to the candidate
  causeway.platform.traffic_split:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    weights: {stable: 90, candidate: 10}
  register: split

- name: Go back, unless somebody else changed the split since
  causeway.platform.traffic_split:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    weights: {stable: 100}
    expect_revision: "{{ split.revision }}"
"""

RETURN = r"""
revision:
  description: Revision of the weights, which the proxies had to acknowledge; 0 when they were never set.
  returned: always
  type: int
  sample: 4711
weights:
  description: The weights in force.
  returned: always
  type: dict
  sample: {stable: 90, candidate: 10}
previous:
  description: The weights before.
  returned: always
  type: dict
  sample: {stable: 100, candidate: 0}
acknowledgements:
  description: The proxies in front that acknowledged, with the revision and how many seconds after the write that was.
  returned: always
  type: dict
  sample: {edge1/gateway: {revision: 4711, active: 0, after_seconds: 0.142}}
missing:
  description: Proxies that had not acknowledged when time ran out, with the reason.
  returned: always
  type: dict
  sample: {edge2/gateway: "acknowledged revision 4700, 4711 is needed"}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Acks,
    Keys,
    RegistryError,
    check_label,
    check_pools,
    check_weights,
    connect,
    read,
    set_weights,
    wait_for_acks,
)


from ansible_collections.causeway.platform.plugins.module_utils.registry import weights as read_weights


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Plan, act, wait; returns the module's result."""
    keys, service = Keys(params["platform"]), check_label("service", params["service"])
    wanted = check_weights(params["weights"])
    acks = Acks()
    with connect(params) as client:
        mirror = read(client, keys)
        before, revision = read_weights(mirror, service)
        expect = params["expect_revision"]
        if expect is not None and expect != revision:
            raise RegistryError(
                f"traffic of service {service} was last changed at revision {revision}, expect_revision says {expect}"
            )
        changed = before != wanted
        if changed and params["require_instances"]:
            check_pools(mirror, service, wanted)
        if not check_mode:
            if changed:
                revision = set_weights(client, keys, service, wanted, revision)
            if params["wait"]:
                acks = wait_for_acks(
                    client, keys, service, revision, params["timeout"], minimum=params["minimum_proxies"]
                )
    return {
        "changed": changed,
        "diff": {"before": before, "after": wanted},
        "revision": revision,
        "weights": wanted,
        "previous": before,
        "acknowledgements": acks.proxies,
        "missing": acks.missing,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "service": {"type": "str", "required": True},
            "weights": {"type": "dict", "required": True},
            "expect_revision": {"type": "int"},
            "require_instances": {"type": "bool", "default": True},
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
        what = f"service {params['service']}: the weights are written but not in force everywhere"
        module.fail_json(msg=f"{what} after {params['timeout']:g} s: {late}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
