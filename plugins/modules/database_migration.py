#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_migration
short_description: Apply one phase of a service's database migrations, or take it back
version_added: "0.1.0"
description:
  - Applies the files of a phase that a PostgreSQL database does not have yet with C(dbmate), each in its own
    transaction, after C(squawk) found nothing unsafe in them.
  - The files are read on the controller. What is applied stands in the database, in tables of the schema C(causeway).
  - An C(expand) that fails is undone as a whole with the files' C(migrate:down), also after a run that was killed. The
    other phases keep what they finished and go on with the next run.
author:
  - The causeway.platform authors (@causeway)
options:
  service:
    description: Name of the service, shown among the database's sessions.
    type: str
    required: true
  state:
    description:
      - V(applied) applies what is pending in O(phase).
      - V(undone) takes back an expand that O(keep=false) left open, and does nothing without one.
      - V(listed) only tells what is applied and what is pending, in all phases.
    type: str
    choices: [applied, undone, listed]
    default: applied
  phase:
    description: Phase to apply or to take back. A phase begins only when those before it have nothing pending.
    type: str
    choices: [expand, backfill, contract]
    default: expand
  directory:
    description:
      - Directory on the controller with the directories C(expand), C(backfill) and C(contract), which hold the files.
    type: path
    required: true
  connection:
    description: The database. Connect to the server itself; a pooler would drop the timeouts.
    type: dict
    required: true
    suboptions:
      host:
        description: Name or address of the server, or the directory of its unix socket.
        type: str
        required: true
      port:
        description: Port of the server.
        type: int
        default: 5432
      name:
        description: Name of the database, which has to exist.
        type: str
        required: true
      user:
        description: Role that owns what is changed.
        type: str
        required: true
      sslmode:
        description: How the server's certificate is checked.
        type: str
        choices: [disable, require, verify-ca, verify-full]
        default: verify-full
      ca:
        description: Certificates to trust, a file on the host.
        type: path
      cert:
        description: Certificate to present, a file on the host.
        type: path
      key:
        description: Private key of the certificate, a file on the host.
        type: path
  password:
    description: Password of the user. The tools get it by their environment.
    type: str
  lock_timeout:
    description: Seconds that a statement may wait for a lock; a lock request that waits holds up everybody behind it.
    type: float
    default: 2.0
  statement_timeout:
    description: Seconds that a statement may take.
    type: float
    default: 60.0
  retries:
    description:
      - How often a file is tried again after a lock timeout, a deadlock, a serialization failure or a lost connection.
    type: int
    default: 5
  backoff_base:
    description: Seconds before the first retry, doubled each time; a random half is taken away.
    type: float
    default: 0.5
  backoff_max:
    description: Longest pause between two tries, in seconds.
    type: float
    default: 30.0
  batch_pause:
    description: Seconds between two batches of a backfill.
    type: float
    default: 0.1
  keep:
    description:
      - Whether the phase is final once it succeeded. V(false) leaves an expand open, so that O(state=undone)
        takes it back; applying it again with V(true) makes it final.
    type: bool
    default: true
  lint_exclude:
    description: Rules of C(squawk) that do not count.
    type: list
    elements: str
    default: []
  dbmate:
    description: The program C(dbmate) on the host.
    type: str
    default: /usr/local/bin/dbmate
  squawk:
    description: The program C(squawk) on the host.
    type: str
    default: /usr/local/bin/squawk
  psql:
    description: The program C(psql) on the host.
    type: str
    default: psql
  _files:
    description: Internal use only. The files, once the action plugin has read them.
    type: dict
attributes:
  check_mode:
    description: Can run in check mode and predict changes without making them.
    support: full
    details: Asks the database what is applied and lints what is pending.
  diff_mode:
    description: Returns what has changed (or would change) when in diff mode.
    support: full
  idempotent:
    description: Does nothing when the database is already as described.
    support: full
notes:
  - The host needs C(dbmate), C(squawk) and C(psql), which the role C(causeway.platform.migrations) installs.
"""

EXAMPLES = r"""
- name: See what an expand would do, and whether it is safe
  causeway.platform.database_migration:
    service: orders
    phase: expand
    directory: "{{ inventory_dir }}/services/migrations/orders"
    connection: {host: db1.shop.internal, name: orders, user: orders_owner, ca: /etc/causeway/tls/host/current/ca.pem}
    password: "{{ causeway_secrets.orders_database }}"
  check_mode: true

- name: Expand the schema, and leave the way back open
  causeway.platform.database_migration:
    service: orders
    phase: expand
    directory: "{{ inventory_dir }}/services/migrations/orders"
    connection: {host: db1.shop.internal, name: orders, user: orders_owner, ca: /etc/causeway/tls/host/current/ca.pem}
    password: "{{ causeway_secrets.orders_database }}"
    keep: false

- name: Take the expand back
  causeway.platform.database_migration:
    service: orders
    state: undone
    directory: "{{ inventory_dir }}/services/migrations/orders"
    connection: {host: db1.shop.internal, name: orders, user: orders_owner, ca: /etc/causeway/tls/host/current/ca.pem}
    password: "{{ causeway_secrets.orders_database }}"
"""

RETURN = r"""
applied:
  description: Files that this run applied, in order.
  returned: success
  type: list
  elements: str
  sample: [20261122093000_add_email.sql]
undone:
  description: Files that this run took back, in order.
  returned: success
  type: list
  elements: str
  sample: []
pending:
  description: Files of the phase that are left; in check mode those that would be applied.
  returned: success
  type: list
  elements: str
  sample: []
retries:
  description: How often something was tried again.
  returned: success
  type: int
  sample: 0
database:
  description: The database, without secrets.
  returned: success
  type: str
  sample: orders_owner@db1.shop.internal:5432/orders
phases:
  description: For each phase the versions that are applied and the files that are pending, and whether a run is open.
  returned: O(state=listed)
  type: dict
  sample:
    expand: {applied: ["20261122093000"], pending: [], open: false}
    backfill: {applied: [], pending: [20261122094000_fill_email.sql], open: false}
    contract: {applied: [], pending: [], open: false}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils import migrations
from ansible_collections.causeway.platform.plugins.module_utils.migration_runner import (
    Connection,
    Limits,
    Outcome,
    Programs,
    Runner,
)

ARGUMENTS: dict[str, Any] = {
    "service": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["applied", "undone", "listed"], "default": "applied"},
    "phase": {"type": "str", "choices": list(migrations.PHASES), "default": "expand"},
    "directory": {"type": "path", "required": True},
    "connection": {
        "type": "dict",
        "required": True,
        "options": {
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 5432},
            "name": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "sslmode": {
                "type": "str",
                "choices": ["disable", "require", "verify-ca", "verify-full"],
                "default": "verify-full",
            },
            "ca": {"type": "path"},
            "cert": {"type": "path"},
            "key": {"type": "path", "no_log": False},
        },
    },
    "password": {"type": "str", "no_log": True},
    "lock_timeout": {"type": "float", "default": 2.0},
    "statement_timeout": {"type": "float", "default": 60.0},
    "retries": {"type": "int", "default": 5},
    "backoff_base": {"type": "float", "default": 0.5},
    "backoff_max": {"type": "float", "default": 30.0},
    "batch_pause": {"type": "float", "default": 0.1},
    "keep": {"type": "bool", "default": True},
    "lint_exclude": {"type": "list", "elements": "str", "default": []},
    "dbmate": {"type": "str", "default": "/usr/local/bin/dbmate"},
    "squawk": {"type": "str", "default": "/usr/local/bin/squawk"},
    "psql": {"type": "str", "default": "psql"},
    "_files": {"type": "dict"},
}


def runner_of(params: dict[str, Any]) -> Runner:
    """The module's parameters as the runner understands them; raises MigrationError."""
    for name in ("lock_timeout", "statement_timeout"):
        if params[name] < 0.001:
            raise migrations.MigrationError(f"{name}: {params[name]:g} would be no limit (allowed: 0.001 s and above)")
    if not 0 <= params["retries"] <= 100:
        raise migrations.MigrationError(f"retries: {params['retries']} (allowed: 0 to 100)")
    names = ("lock_timeout", "statement_timeout", "retries", "backoff_base", "backoff_max", "batch_pause")
    connection = {name: value for name, value in params["connection"].items() if value is not None}
    return Runner(
        params["service"],
        Connection(**connection, password=params["password"] or ""),
        Limits(**{name: params[name] for name in names}),
        Programs(dbmate=params["dbmate"], squawk=params["squawk"], psql=params["psql"]),
        migrations.parse_all(params["_files"] or {}),
    )


def listed(runner: Runner) -> dict[str, Any]:
    """What is applied and pending in all phases."""
    state = runner.state()
    return {
        phase: {
            "applied": state.applied[phase],
            "pending": [one.file for one in runner.files[phase] if one.version not in state.applied[phase]],
            "open": phase in state.runs,
        }
        for phase in migrations.PHASES
    }


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what the parameters say; returns the module's result."""
    runner = runner_of(params)
    result: dict[str, Any] = {"database": str(runner.connection), "changed": False}
    outcome, phase = Outcome(), params["phase"]
    if params["state"] == "listed":
        result["phases"] = listed(runner)
    elif params["state"] == "undone":
        if phase != "expand":
            raise migrations.MigrationError(f"phase: a {phase} cannot be taken back (allowed: expand)")
        outcome = runner.undo(phase, check=check_mode)
    else:
        outcome = runner.apply(
            phase,
            check=check_mode,
            keep=params["keep"] or phase != "expand",
            exclude=params["lint_exclude"],
        )
        result["changed"] = bool(outcome.pending) and check_mode
    result["changed"] = result["changed"] or bool(outcome.applied or outcome.undone or outcome.closed)
    lines = [f"+ {phase}/{name}\n" for name in outcome.applied or (outcome.pending if check_mode else [])]
    lines += [f"- {phase}/{name}\n" for name in outcome.undone]
    return {
        **result,
        "applied": outcome.applied,
        "undone": outcome.undone,
        "pending": outcome.pending,
        "retries": outcome.retries,
        "diff": {"prepared": "".join(lines)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = run(module.params, module.check_mode)
    except migrations.MigrationError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"database_migration cannot work on this host: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
