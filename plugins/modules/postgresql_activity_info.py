#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_activity_info
short_description: Transactions, replication and slots of a PostgreSQL on this host
description:
  - What a verb must know before it takes a server away. Queries are not shown, since they may hold data.
version_added: "0.1.0"
options:
  port:
    description:
      - Port of the server, which is part of its socket's name.
    type: int
    required: true
  longer_than:
    description:
      - Leave out transactions that are younger, in seconds.
    type: float
    default: 0.0
  timeout:
    description:
      - Seconds that the query may take.
    type: float
    default: 10.0
extends_documentation_fragment:
  - causeway.platform.postgresql
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
- name: Look for transactions that have been open for half a minute
  causeway.platform.postgresql_activity_info:
    port: 15110
    longer_than: 30
"""

RETURN = r"""
recovery:
  description: Whether the server is a replica.
  returned: always
  type: bool
  sample: false
transactions:
  description: Open transactions of clients, the oldest first.
  returned: always
  type: list
  elements: dict
  sample: [{pid: 4711, database: orders, role: orders, application: psql, state: idle in transaction, seconds: 94.2}]
prepared:
  description: Prepared transactions.
  returned: always
  type: list
  elements: dict
  sample: [{gid: transfer-1, database: orders, role: orders, seconds: 12.0}]
replication:
  description: Replicas that are connected; C(lag) is bytes not replayed.
  returned: always
  type: list
  elements: dict
  sample: [{member: app2, state: streaming, sync_state: sync, lag: 0}]
slots:
  description: Replication slots; C(retained) is bytes of WAL that one keeps.
  returned: always
  type: list
  elements: dict
  sample: [{name: app2, type: physical, active: true, wal_status: reserved, retained: 0}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import (
    SERVER,
    ACTIVITY,
    PostgresqlError,
    Psql,
)


def run(params: dict[str, Any]) -> dict[str, Any]:
    """Ask; returns the module's result."""
    psql = Psql(params["port"], params["socket_path"], params["system_user"], params["timeout"])
    state = psql.ask("postgres", ACTIVITY)
    for kind in ("transactions", "prepared"):
        state[kind] = [one for one in state[kind] if one["seconds"] >= params["longer_than"]]
    return {"changed": False, **state}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            **SERVER,
            "longer_than": {"type": "float", "default": 0.0},
            "timeout": {"type": "float", "default": 10.0},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params)
    except PostgresqlError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
