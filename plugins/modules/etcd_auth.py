#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_auth
short_description: Users, roles and authentication of the registry
description:
  - Brings the registry's users and roles to what the platform needs and turns authentication on, all in one task.
  - There is user C(root) for the verbs, and for each host a user C(host-<host>) that may read the platform's keys and
    write only those of its own (its agent, its targets, its proxies and their acknowledgements, and the instances of
    the services that are placed on it), and for each database cluster a user C(database-<cluster>) that may read and
    write what Patroni keeps of it. An object storage has a user C(object-storage) of the same kind. Users of hosts and
    clusters that are no longer named are deleted.
  - Passwords are derived from O(secret); none is passed on or shown. O(username) and O(password) are not used.
version_added: "0.1.0"
options:
  secret:
    description:
      - The platform's registry secret. A user's password is the hexadecimal HMAC-SHA256 of C(etcd/<user>) under it.
    type: str
    required: true
  previous_secret:
    description:
      - The secret in force until now, when O(secret) is a new one.
    type: str
  hosts:
    description:
      - All hosts of the platform, each with the list of the services that have instances on it.
      - Filter P(causeway.platform.registry_hosts#filter) makes it.
    type: dict
    required: true
  databases:
    description:
      - All database clusters of the platform. Their keys are below C(/patroni/<platform>/<cluster>/).
    type: list
    elements: str
    default: []
  object_storage:
    description:
      - Whether the platform has an object storage. Its user C(object-storage) reads and writes what filers keep below
        C(/object-storage/<platform>/).
    type: bool
    default: false
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: full
    description: Shows the steps, without passwords.
  idempotent:
    support: full
    description: A second run changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Set up users and authentication
  causeway.platform.etcd_auth:
    platform: shop
    endpoints: ["https://10.77.1.21:2379"]
    secret: "{{ causeway_secrets.registry }}"
    hosts: {edge1: [], app1: [orders, catalog]}
    databases: [orders]
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode, in order.
  returned: always
  type: list
  elements: str
  sample: ["role_add host-app1", "role_grant host-app1 WRITE /causeway/shop/agents/app1"]
enabled:
  description: Whether authentication was on before.
  returned: always
  type: bool
  sample: true
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import AuthFailed, EtcdClient, EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    ROOT,
    Keys,
    RegistryError,
    apply_auth,
    connect,
    password,
    plan_auth,
    read_auth,
)


def login(params: dict[str, Any]) -> EtcdClient:
    """A client that is logged in as root with the secret, or else the previous secret."""
    client = connect({**params, "username": ROOT, "password": password(params["secret"], ROOT)})
    if not client.auth_enabled():
        return client
    try:
        client.authenticate()
    except AuthFailed:
        if not params["previous_secret"]:
            raise
        client.set_password(password(params["previous_secret"], ROOT))
        client.authenticate()
    return client


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Read, plan, act; returns the module's result."""
    keys = Keys(params["platform"])
    hosts = {host: list(placed or ()) for host, placed in params["hosts"].items()}
    with login(params) as client:
        enabled = client.auth_enabled()
        steps = plan_auth(
            keys,
            read_auth(client, keys, enabled),
            hosts,
            params["secret"],
            params["databases"],
            object_storage=params["object_storage"],
        )
        if not check_mode:
            apply_auth(client, steps, params["secret"])
    told = [" ".join(step) for step in steps]
    return {
        "changed": bool(steps),
        "steps": told,
        "enabled": enabled,
        "diff": {"before": "", "after": "".join(f"{step}\n" for step in told)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "secret": {"type": "str", "required": True, "no_log": True},
            "previous_secret": {"type": "str", "no_log": True},
            "hosts": {"type": "dict", "required": True},
            "databases": {"type": "list", "elements": "str", "default": []},
            "object_storage": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except (EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
