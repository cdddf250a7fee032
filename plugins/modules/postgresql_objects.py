#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_objects
short_description: A service's database, its roles, privileges and extensions
description:
  - Brings one database to what the platform needs in one task; it runs on the host of the cluster's leader and talks to
    PostgreSQL over the unix socket by C(psql).
  - Schema C(causeway) of the database gets C(user_lookup(text)), by which PgBouncer finds passwords, and
    C(wait_for_lsn(pg_lsn, interval)), by which a session waits on a reader until it would see its own writes.
  - Passwords reach the server as SCRAM verifiers, on standard input, and no log.
version_added: "0.1.0"
options:
  port:
    description:
      - Port of the server, which is part of its socket's name.
    type: int
    required: true
  database:
    description:
      - Name of the database.
    type: str
    required: true
  owner:
    description:
      - Role that owns the database and makes its tables.
    type: str
    required: true
  application:
    description:
      - Role that reads and writes in the tables that O(owner) makes.
    type: str
    required: true
  roles:
    description:
      - Roles that must exist.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name.
        type: str
        required: true
      password:
        description: Password.
        type: str
      salt:
        description:
          - Salt of the password's verifier, 32 hexadecimal digits; by default one at random. Servers between which a
            pooler sends the same session need the same verifier, for the pooler knows no more than that.
        type: str
        default: ""
      attributes:
        description: What it may do at least.
        type: list
        elements: str
        choices: [LOGIN, REPLICATION]
        default: [LOGIN]
      member_of:
        description: Roles that it is a member of at least.
        type: list
        elements: str
        default: []
  connect:
    description:
      - Roles that may connect to the database, beside O(owner) and O(application).
    type: list
    elements: str
    default: []
  extensions:
    description:
      - Extensions that the database has at least.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - Seconds that one statement may take.
    type: float
    default: 60.0
extends_documentation_fragment:
  - causeway.platform.postgresql
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
- name: Make the database of orders
  causeway.platform.postgresql_objects:
    port: 15110
    database: orders
    owner: orders_owner
    application: orders
    roles:
      - name: orders
        password: "{{ vaulted_password }}"
      - name: monitor
        member_of: [pg_monitor]
    extensions: [pg_stat_statements]
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode, in order.
  returned: always
  type: list
  elements: str
  sample: ["create role orders", "set the password of orders", "create database orders"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import (
    SERVER,
    DATABASE_STATE,
    SERVER_STATE,
    PostgresqlError,
    Psql,
    apply,
    check_extensions,
    check_names,
    plan_database,
    plan_server,
)


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Read, plan, act; returns the module's result."""
    database, owner, application = params["database"], params["owner"], params["application"]
    extensions = params["extensions"]
    check_names([database, owner, application, *(role["name"] for role in params["roles"])])
    psql = Psql(params["port"], params["socket_path"], params["system_user"], params["timeout"])
    state = psql.ask("postgres", SERVER_STATE)
    if state["recovery"]:
        raise PostgresqlError(f"the server on port {params['port']} is a replica; run this where the leader is")
    check_extensions(state, extensions)
    connect = [owner, application, *params["connect"]]
    steps = plan_server(state, database, owner, params["roles"], list(dict.fromkeys(connect)))
    if not check_mode:
        apply(psql, steps)
    exists = database in state["databases"] or not check_mode
    inside = plan_database(
        psql.ask(database, DATABASE_STATE) if exists else {}, database, owner, application, extensions
    )
    if not check_mode:
        apply(psql, inside)
    told = [step.told for step in [*steps, *inside]]
    return {
        "changed": bool(told),
        "steps": told,
        "diff": {"before": "", "after": "".join(f"{step}\n" for step in told)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            **SERVER,
            "database": {"type": "str", "required": True},
            "owner": {"type": "str", "required": True},
            "application": {"type": "str", "required": True},
            "roles": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "no_log": True},
                    "salt": {"type": "str", "default": "", "no_log": False},
                    "attributes": {
                        "type": "list",
                        "elements": "str",
                        "choices": ["LOGIN", "REPLICATION"],
                        "default": ["LOGIN"],
                    },
                    "member_of": {"type": "list", "elements": "str", "default": []},
                },
            },
            "connect": {"type": "list", "elements": "str", "default": []},
            "extensions": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 60.0},
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
