#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbackrest_backup
short_description: Make a backup of a database cluster, or only its stanza
description:
  - Runs on the repository host. It creates the stanza where it is missing, checks the way of the log where asked, and
    makes a backup in each repository that has none of the type that is young enough.
version_added: "0.1.0"
options:
  state:
    description:
      - V(backup) makes a backup, V(stanza) only creates or upgrades what the repositories need before the first one,
        V(checked) switches the log and waits until the segment has arrived in every repository.
    type: str
    choices: [backup, stanza, checked]
    default: backup
  type:
    description:
      - Kind of backup. Without a full one before it, any kind becomes a full one.
    type: str
    choices: [full, differential, incremental]
    default: incremental
  max_age:
    description:
      - Seconds for which a backup of this kind, or of one that holds more, is young enough. V(0) always makes one.
    type: float
    default: 0.0
  wait:
    description:
      - Seconds to wait for another backup of the cluster to end.
    type: float
    default: 0.0
  repo:
    description:
      - Number of the only repository to make a backup in; V(0) for all. What failed in one keeps none of the others
        from getting theirs.
    type: int
    default: 0
  need_leader:
    description:
      - With O(state=stanza), whether it is an error that the cluster has no leader yet. Without it nothing is changed
        then, and RV(skipped_reason) tells why.
    type: bool
    default: true
extends_documentation_fragment:
  - causeway.platform.pgbackrest
attributes:
  check_mode:
    support: full
    description: Tells whether a backup would be made.
  diff_mode:
    support: none
    description: There is no content to compare.
  idempotent:
    support: full
    description: With O(max_age), and always for stanzas; V(checked) never counts as a change.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Make a full backup unless there is one of the last hour
  causeway.platform.pgbackrest_backup:
    cluster: orders
    user: pgbackrest
    type: full
    max_age: 3600

- name: Create the stanza as soon as there is a leader
  causeway.platform.pgbackrest_backup:
    cluster: orders
    user: pgbackrest
    state: stanza
    need_leader: false
"""

RETURN = r"""
reason:
  description: Why a backup was made or would be.
  returned: when one was made or would be
  type: str
  sample: there is no full backup
backup:
  description: The newest backup afterwards, empty without one; shaped as in M(causeway.platform.pgbackrest_info).
  returned: success
  type: dict
  sample: {label: 20261127-020000F, type: full, repo: 1, size: 31457280, delta: 31457280, stored: 4194304}
backups:
  description: The backups that were made, one for each repository.
  returned: when one was made
  type: list
  elements: dict
  sample: [{label: 20261127-020000F, type: full, repo: 1, size: 31457280, delta: 31457280, stored: 4194304}]
seconds:
  description: How long it took.
  returned: when something was done
  type: float
  sample: 23.4
bytes_per_second:
  description: Bytes of the database that were read per second.
  returned: when a backup was made
  type: float
  sample: 104857600.0
skipped_reason:
  description: Why nothing could be done yet.
  returned: with O(need_leader=false) and no leader
  type: str
  sample: cluster orders has no leader that can be reached
"""

import time

from collections.abc import Iterable, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest import (
    DISCONNECTED,
    TYPES,
    Backup,
    BackrestError,
    Program,
    Stanza,
    backup,
    check,
    create_stanza,
    due,
    newest,
    read_info,
    upgrade_stanza,
)
from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest_arguments import ARGUMENTS


def last(backups: Iterable[Backup]) -> dict[str, Any]:
    """The newest backup."""
    found = newest(backups)
    return {**vars(found), "timeline": found.timeline} if found else {}


def ensure_stanza(program: Program, stanza: Stanza, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Create what is missing."""
    if stanza.present:
        changed = False if check_mode else upgrade_stanza(program, stanza)
        return {"changed": changed}
    if check_mode:
        return {"changed": True}
    try:
        create_stanza(program, stanza.name)
    except BackrestError as error:
        if params["need_leader"] or error.code != DISCONNECTED:
            raise
        return {"changed": False, "skipped_reason": str(error)}
    return {"changed": True}


def act(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Look, decide, do."""
    program = Program(params["executable"], params["config"], params["user"])
    name, kind = params["cluster"], TYPES[params["type"]]
    if params["max_age"] < 0 or params["wait"] < 0:
        raise BackrestError("max_age and wait are seconds from 0")
    stanza = read_info(program, name)
    started = time.monotonic()
    if params["state"] == "checked":
        if not check_mode:
            check(program, name)
        return {"changed": False, "backup": last(stanza.backups), "seconds": round(time.monotonic() - started, 3)}
    if params["state"] == "stanza":
        return {**ensure_stanza(program, stanza, params, check_mode), "backup": last(stanza.backups)}
    if not stanza.repositories and not check_mode:
        ensure_stanza(program, stanza, {**params, "need_leader": True}, check_mode)
        stanza = read_info(program, name)
    now = time.time()
    chosen = [params["repo"]] if params["repo"] else stanza.numbers
    reasons = {repo: due(stanza.of(repo), kind, params["max_age"], now) for repo in chosen}
    wanted = [repo for repo, why in reasons.items() if why]
    if not wanted:
        return {"changed": False, "backup": last(stanza.backups)}
    reason = reasons[wanted[0]]
    if check_mode:
        return {"changed": True, "reason": reason, "backup": last(stanza.backups)}
    ensure_stanza(program, stanza, {**params, "need_leader": True}, check_mode)
    made, failures = make(program, name, kind, wanted, wait=params["wait"])
    seconds = time.monotonic() - started
    if failures:
        done = f" (made: {', '.join(one['label'] for one in made)})" if made else ""
        raise BackrestError("; ".join(failures) + done)
    return {
        "changed": True,
        "reason": reason,
        "backup": made[-1],
        "backups": made,
        "seconds": round(seconds, 3),
        "bytes_per_second": round(sum(one.get("delta", 0) for one in made) / max(seconds, 0.001), 1),
    }


def make(
    program: Program, name: str, kind: str, repos: Sequence[int], *, wait: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Backups in repositories, and why there is none in some."""
    made, failures = [], []
    for repo in repos:
        try:
            backup(program.only(repo), name, kind, wait)
            made.append(last(read_info(program.only(repo), name).of(repo)))
        except BackrestError as error:
            failures.append(f"repository {repo}: {error}" if len(repos) > 1 else str(error))
    return made, failures


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "state": {"type": "str", "choices": ["backup", "stanza", "checked"], "default": "backup"},
            "type": {"type": "str", "choices": list(TYPES), "default": "incremental"},
            "max_age": {"type": "float", "default": 0.0},
            "wait": {"type": "float", "default": 0.0},
            "repo": {"type": "int", "default": 0},
            "need_leader": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module.params, module.check_mode)
    except BackrestError as error:
        module.fail_json(msg=f"cluster {module.params['cluster']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
