#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbackrest_info
short_description: Tell which backups a database cluster has, and whether a restore target can be reached
description:
  - Reads the repositories with C(pgbackrest info). With O(target_type) it also chooses the backup that a restore would
    start from, and fails with one clear reason when there is none.
version_added: "0.1.0"
options:
  target_type:
    description:
      - Kind of the target to check; left out, no target is checked.
    type: str
    choices: [latest, immediate, time, lsn, xid, name]
  target:
    description:
      - Value of the target, see M(causeway.platform.pgbackrest_restore).
    type: str
    default: ""
  target_exclusive:
    description:
      - Stop just before the target.
    type: bool
    default: false
  target_timeline:
    description:
      - Timeline to follow, a number or V(latest).
    type: str
    default: latest
  set:
    description:
      - Backup to start from; left out, the best one is chosen.
    type: str
    default: ""
  repo:
    description:
      - Number of the only repository to ask; V(0) for all.
    type: int
    default: 0
extends_documentation_fragment:
  - causeway.platform.pgbackrest
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: It changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Read the backups of orders
  causeway.platform.pgbackrest_info:
    cluster: orders
    user: pgbackrest
  register: backups

- name: See which backup a restore to just before a bad transaction would start from
  causeway.platform.pgbackrest_info:
    cluster: orders
    user: pgbackrest
    target_type: xid
    target: "4711"
    target_exclusive: true
"""

RETURN = r"""
stanza:
  description: What the repositories hold; backups in the order of their end, times in seconds since the epoch.
  returned: success
  type: dict
  sample: {name: orders, code: 0, message: ok, present: true, locked: false, versions: ["17"],
           archive_min: "000000010000000000000002", archive_max: "000000010000000000000009",
           repositories: [{key: 1, code: 0, message: ok}],
           backups: [{label: 20261127-020000F, type: full, repo: 1, start: 1795744800, stop: 1795744823,
                      lsn_start: 0/4000028, lsn_stop: 0/4000120, wal_start: "000000010000000000000004",
                      wal_stop: "000000010000000000000004", size: 31457280, delta: 31457280, stored: 4194304,
                      error: false, prior: "", timeline: 1}]}
chosen:
  description: Backups that lead to the target, the one to try first in front.
  returned: with O(target_type)
  type: list
  elements: str
  sample: [20261127-020000F]
target:
  description: The target in words.
  returned: with O(target_type)
  type: str
  sample: just before xid 4711
"""

import time

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest import (
    BackrestError,
    Program,
    candidates,
    make_target,
    read_histories,
    read_info,
)
from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest_arguments import ARGUMENTS, TARGET


def gather(params: dict[str, Any]) -> dict[str, Any]:
    """Read, and choose where a target is given."""
    program = Program(params["executable"], params["config"], params["user"], params["repo"])
    wanted = None
    if params["target_type"]:
        # What has no meaning is told before anything is asked.
        wanted = make_target(
            params["target_type"], params["target"], params["target_exclusive"], params["target_timeline"]
        )
    stanza = read_info(program, params["cluster"])
    result: dict[str, Any] = {"changed": False, "stanza": stanza.as_dict()}
    if wanted:
        known, ancestors = read_histories(program, stanza, wanted) if stanza.backups else ([], {})
        chosen = candidates(stanza, wanted, time.time(), params["set"], ancestors=ancestors, known=known)
        result.update(chosen=[one.label for one in chosen], target=wanted.words())
    return result


def main() -> None:
    """Run the module."""
    argument_spec = {**ARGUMENTS, **TARGET, "target_type": {**TARGET["target_type"], "default": None}}
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True)
    try:
        result = gather(module.params)
    except BackrestError as error:
        module.fail_json(msg=f"cluster {module.params['cluster']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
