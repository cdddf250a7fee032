#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_across
short_description: Read tables of all tenants from one database, wherever the tenants are
description:
  - Makes views in schema C(across) of one database, each over the same table of all tenants, by C(postgres_fdw). The
    first column, C(tenant), is the tenant's name.
  - It runs where the leader of the database's cluster is. It asks the tenants which columns their tables have.
version_added: "0.1.0"
options:
  port:
    description:
      - Port of the server, which is part of its socket's name.
    type: int
    required: true
  database:
    description:
      - Database that gets the views.
    type: str
    required: true
  owner:
    description:
      - Role that the views belong to.
    type: str
    required: true
  application:
    description:
      - Role that may read them.
    type: str
    required: true
  tables:
    description:
      - Tables of schema C(public). Without any, what was made is taken away.
    type: list
    elements: str
    default: []
  tenants:
    description:
      - The tenants.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The tenant's name.
        type: str
        required: true
      database:
        description: Its database.
        type: str
        required: true
      hosts:
        description: Addresses of the members of its shard.
        type: list
        elements: str
        required: true
      port:
        description: Port of its shard.
        type: int
        required: true
  user:
    description:
      - Role that reads at the tenants.
    type: str
    required: true
  password:
    description:
      - Its password.
    type: str
    required: true
  tls:
    description:
      - Directory of the certificate that the server shows. Empty for none.
    type: str
    default: /etc/causeway/tls/database/current
  sslmode:
    description:
      - How the other servers are proven to be the right ones.
    type: str
    choices: [verify-full, verify-ca, require, prefer, disable]
    default: verify-full
  timeout:
    description:
      - Seconds that one statement may take.
    type: float
    default: 120.0
extends_documentation_fragment:
  - causeway.platform.postgresql
attributes:
  check_mode:
    support: full
    description: Asks the tenants in a transaction that it takes back, and tells whether anything would change.
  diff_mode:
    support: none
    description: What would change are definitions with passwords.
  idempotent:
    support: full
    description:
      - A second run changes nothing, unless tables of tenants have changed. A changed password alone is not noticed.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Let orders be read of all tenants
  causeway.platform.postgresql_across:
    port: 15110
    database: orders
    owner: orders_owner
    application: orders
    tables: [orders]
    tenants:
      - {name: acme, database: orders_acme, hosts: [10.77.1.21, 10.77.1.22], port: 15111}
    user: orders_across
    password: "{{ vaulted_password }}"
"""

RETURN = r"""
tables:
  description: Tables that are read across.
  returned: always
  type: list
  elements: str
  sample: [orders]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.postgresql_across import Tenant, Way, bring
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import SERVER, PostgresqlError, Psql


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Ask, compare, make; returns the module's result."""
    changed = bring(
        Psql(params["port"], params["socket_path"], params["system_user"], params["timeout"]),
        params["database"],
        tenants=[Tenant(one["name"], one["database"], one["hosts"], one["port"]) for one in params["tenants"]],
        tables=params["tables"],
        way=Way(params["user"], params["password"], params["tls"], params["sslmode"]),
        owner=params["owner"],
        application=params["application"],
        check_mode=check_mode,
    )
    return {"changed": changed, "tables": params["tables"]}


def main() -> None:
    """Run the module."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            **SERVER,
            "database": text,
            "owner": text,
            "application": text,
            "tables": {"type": "list", "elements": "str", "default": []},
            "tenants": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": text,
                    "database": text,
                    "hosts": {"type": "list", "elements": "str", "required": True},
                    "port": {"type": "int", "required": True},
                },
            },
            "user": text,
            "password": {**text, "no_log": True},
            "tls": {"type": "str", "default": "/etc/causeway/tls/database/current"},
            "sslmode": {
                "type": "str",
                "choices": ["verify-full", "verify-ca", "require", "prefer", "disable"],
                "default": "verify-full",
            },
            "timeout": {"type": "float", "default": 120.0},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except PostgresqlError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
