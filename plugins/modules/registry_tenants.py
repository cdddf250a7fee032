#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_tenants
short_description: Where the tenants of a service with shards are
description:
  - Reads from the registry on which shard each tenant is, and notes where new ones begin.
  - A tenant that has a place keeps it. Only a move changes it (M(causeway.platform.postgresql_tenant)).
version_added: "0.1.0"
extends_documentation_fragment:
  - causeway.platform.etcd
options:
  service:
    description:
      - The service.
    type: str
    required: true
  state:
    description:
      - V(observed) tells where tenants are. V(assigned) also notes the place of those of O(belongs) that have none.
    type: str
    choices: [observed, assigned]
    default: observed
  belongs:
    description:
      - Shard of each tenant by the description.
    type: dict
    default: {}
  shards:
    description:
      - Cluster of each shard by the description.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Tells what would be noted.
  diff_mode:
    support: full
    description: Shows the tenants that get a place.
  idempotent:
    support: full
    description: A second run changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Note where new tenants begin
  causeway.platform.registry_tenants:
    platform: shop
    endpoints: ["https://10.77.1.21:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    belongs: {acme: s1, bolt: s2}
    shards: {s1: orders, s2: orders-s2}
    state: assigned
"""

RETURN = r"""
tenants:
  description: Where each tenant is, and where it came from.
  returned: always
  type: dict
  sample: {acme: {shard: s1, before: "", since: "2026-11-27T15:00:00.000Z", revision: 4711}}
unavailable:
  description: True when the registry did not answer.
  returned: on failure
  type: bool
  sample: true
assigned:
  description: Tenants that got a place.
  returned: always
  type: list
  elements: str
  sample: [acme]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    RegistryError,
    connect,
)
from ansible_collections.causeway.platform.plugins.module_utils.tenants import TenantError, assign, read_places


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Read and, if asked to, note; returns the module's result."""
    keys, service = Keys(params["platform"]), params["service"]
    with connect(params) as client:
        if params["state"] == "assigned":
            new, places = assign(
                client, keys, service, belongs=params["belongs"], shards=params["shards"], check_mode=check_mode
            )
        else:
            new, places = [], read_places(client, keys, service)
    after = "".join(f"{tenant} on {places[tenant].shard}\n" for tenant in new)
    return {
        "changed": bool(new),
        "assigned": new,
        "tenants": {tenant: place.as_dict() for tenant, place in places.items()},
        "diff": {"before": "", "after": after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "service": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["observed", "assigned"], "default": "observed"},
            "belongs": {"type": "dict", "default": {}},
            "shards": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except EtcdError as error:
        module.fail_json(msg=str(error), unavailable=True)
    except (RegistryError, TenantError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
