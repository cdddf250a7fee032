#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_advise
short_description: Propose indexes of a PostgreSQL database and prove what they would save
description:
  - Reads the statements that took most time (C(pg_stat_statements)), plans them, and looks for sequential scans of
    large tables. For those it tries indexes that do not exist (C(hypopg)) and proposes the ones with which the
    planner's cost falls by at least O(min_saving).
  - Tells foreign keys without an index, indexes that another one makes superfluous, and indexes that no member reads.
  - Runs on the host of the member that leads and changes nothing, unless O(apply) names proposals.
  - Statements are planned as the roles that ran them, inside one transaction that is rolled back. Those of superusers
    and of the platform's own roles are left out.
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
  gather:
    description:
      - V(usage) only counts how often each index was read on this member, leader or replica, for O(usage).
    type: str
    choices: [advice, usage]
    default: advice
  usage:
    description:
      - RV(usage) of the members by their names. Replicas count their own readers.
    type: dict
    default: {}
  members:
    description:
      - Names of all members. While one of them is missing in O(usage), no index is called unused.
    type: list
    elements: str
    default: []
  statements:
    description:
      - How many statements to look at.
    type: int
    default: 20
  proposals:
    description:
      - How many indexes to propose at most.
    type: int
    default: 10
  min_saving:
    description:
      - Share of a statement's cost that an index must save, above 0 and below 1.
    type: float
    default: 0.2
  min_rows:
    description:
      - Rows from which a table is large.
    type: int
    default: 10000
  min_size:
    description:
      - Bytes from which an unused index is worth a word.
    type: int
    default: 1048576
  apply:
    description:
      - Names of proposals to create with C(CREATE INDEX CONCURRENTLY). A name whose index is there already is no error,
        one that is neither there nor proposed is.
    type: list
    elements: str
    default: []
  lock_timeout:
    description:
      - Seconds to wait for a lock while an index is created. An index that fails is removed again.
      - A transaction that has been open for longer refuses O(apply) before anything changes.
    type: float
    default: 5.0
  timeout:
    description:
      - Seconds that one step may take; creating an index is one.
    type: float
    default: 3600.0
extends_documentation_fragment:
  - causeway.platform.postgresql
attributes:
  check_mode:
    support: full
    description: It advises as always and tells which indexes it would create.
  diff_mode:
    support: full
    description: Shows the statements that create indexes.
  idempotent:
    support: full
    description: A second run changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Look where the leader is
  causeway.platform.database_advise:
    port: 15110
    database: orders
  register: advice

- name: Create one of the proposed indexes
  causeway.platform.database_advise:
    port: 15110
    database: orders
    apply: [lines_order_id_idx]
"""

RETURN = r"""
database:
  description: Name of the database.
  returned: with O(gather=advice)
  type: str
  sample: orders
since:
  description: Since when statements are counted.
  returned: with O(gather=advice)
  type: str
  sample: "2026-11-27T10:00:00Z"
statements:
  description: Statements that took most time; times in milliseconds, cost in the planner's unit.
  returned: with O(gather=advice)
  type: list
  elements: dict
  sample: [{id: "-42/orders", role: orders, query: "SELECT * FROM lines WHERE order_id = $1", calls: 900,
            total: 45000.0, mean: 50.0, cost: 18000.5, scans: [public.lines], error: ""}]
proposals:
  description: Indexes that would help, with their proofs; C(saved) is milliseconds of the total if time follows cost.
  returned: with O(gather=advice)
  type: list
  elements: dict
  sample: [{name: lines_order_id_idx, schema: public, table: public.lines, keys: [order_id],
            sql: 'CREATE INDEX CONCURRENTLY "lines_order_id_idx" ON "public"."lines" USING btree (order_id)',
            reason: statements, saved: 44900.1, size: 22487040, writes: 1000000,
            proofs: [{query: "-42/orders", before: 18000.5, after: 8.5, saved: 0.9995,
                      text: "SELECT * FROM lines WHERE order_id = $1"}]}]
foreign_keys:
  description: Foreign keys that no index serves.
  returned: with O(gather=advice)
  type: list
  elements: dict
  sample: [{name: lines_order_id_fkey, schema: public, table: lines, columns: [order_id], references: orders,
            rows: 1000000, deletes: 12}]
duplicates:
  description: Indexes that another one makes superfluous.
  returned: with O(gather=advice)
  type: list
  elements: dict
  sample: [{index: public.lines_a, table: public.lines, kind: prefix, of: public.lines_a_b, size: 16384,
            sql: 'DROP INDEX CONCURRENTLY "public"."lines_a"'}]
unused:
  description: Indexes that no member has read.
  returned: with O(gather=advice)
  type: list
  elements: dict
  sample: [{index: public.lines_note, table: public.lines, size: 8388608, since: {db1: "2026-11-01T00:00:00Z"},
            valid: true, sql: 'DROP INDEX CONCURRENTLY "public"."lines_note"'}]
notes:
  description: What could not be told, and why.
  returned: with O(gather=advice)
  type: list
  elements: str
  sample: []
applied:
  description: Indexes that were created, or would be.
  returned: with O(gather=advice)
  type: list
  elements: str
  sample: [lines_order_id_idx]
text:
  description: All of it for people.
  returned: with O(gather=advice)
  type: str
  sample: "Database orders, statements since 2026-11-27T10:00:00Z"
usage:
  description: How this member reads its indexes; if it does not answer, C(answered) is false and C(reason) tells why.
  returned: with O(gather=usage)
  type: dict
  sample: {answered: true, recovery: false, since: "2026-11-01T00:00:00Z", scans: {public.lines_pkey: 42}}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils import database_advise, database_advise_run
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import SERVER, PostgresqlError, Psql


def usage(psql: Psql, database: str) -> dict[str, Any]:
    """How this member reads its indexes. One that is down is an answer too: the others can still be advised."""
    try:
        return {"answered": True, **psql.ask(database, database_advise_run.USAGE)}
    except PostgresqlError as error:
        return {"answered": False, "reason": str(error)}


def check(params: dict[str, Any]) -> None:
    """Raises AdviseError for settings that make no sense."""
    if not 0 < params["min_saving"] < 1:
        raise database_advise.AdviseError(f"min_saving: {params['min_saving']:g} is not above 0 and below 1")
    for name in ("statements", "proposals", "lock_timeout", "timeout"):
        if params[name] <= 0:
            raise database_advise.AdviseError(f"{name}: {params[name]:g} is not above 0")


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Look, advise and, if asked, create; returns the module's result."""
    check(params)
    psql = Psql(params["port"], params["socket_path"], params["system_user"], params["timeout"])
    if params["gather"] == "usage":
        return {"changed": False, "usage": usage(psql, params["database"])}
    adviser = database_advise_run.Adviser(psql, params["database"])
    advice = database_advise_run.gather(
        adviser,
        limit=params["statements"],
        least=params["min_saving"],
        rows=params["min_rows"],
        size=params["min_size"],
        proposals=params["proposals"],
        usage={name: one for name, one in params["usage"].items() if one.get("answered")},
        members=params["members"],
    )
    wanted = database_advise_run.check_names(advice, params["apply"])
    if wanted:
        database_advise_run.free_space(adviser, wanted)
        database_advise_run.open_transactions(psql, params["database"], params["lock_timeout"])
    del advice["indexes"]
    if not check_mode:
        for proposal in wanted:
            database_advise_run.create(psql, params["database"], proposal, params["lock_timeout"])
    advice["applied"] = [proposal["name"] for proposal in wanted]
    created = "".join(f"{proposal['sql']};\n" for proposal in wanted)
    return {
        "changed": bool(wanted),
        **advice,
        "text": database_advise.report(advice),
        "diff": {"before": "", "after": created},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            "database": {"type": "str", "required": True},
            **SERVER,
            "gather": {"type": "str", "choices": ["advice", "usage"], "default": "advice"},
            "usage": {"type": "dict", "default": {}},
            "members": {"type": "list", "elements": "str", "default": []},
            "statements": {"type": "int", "default": 20},
            "proposals": {"type": "int", "default": 10},
            "min_saving": {"type": "float", "default": 0.2},
            "min_rows": {"type": "int", "default": 10000},
            "min_size": {"type": "int", "default": 1048576},
            "apply": {"type": "list", "elements": "str", "default": []},
            "lock_timeout": {"type": "float", "default": 5.0},
            "timeout": {"type": "float", "default": 3600.0},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except (database_advise.AdviseError, PostgresqlError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
