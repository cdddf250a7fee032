#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_release
short_description: Read or change the release record of a service
description:
  - The record tells the current and the previous version of a service, the state of a release under way, and the
    history. It is changed by compare-and-swap, so that two writers cannot overwrite each other.
  - A judged release keeps its state, its weights and its verdicts in it. O(begin) starts one, O(transition), O(step),
    O(weight), O(analysis) and O(migration) lead it on; all that one task gives is one transaction. A state that may
    not follow is refused with what is allowed, and a value that is there already changes nothing.
  - O(command) leaves an operator's request for the controller that runs the release.
  - Without any of these options and without O(current), O(previous), O(release_state) and O(entry) it is only read.
version_added: "0.1.0"
options:
  service:
    description:
      - Name of the service.
    type: str
    required: true
  current:
    description:
      - Version that instances get.
    type: str
  previous:
    description:
      - Version to go back to.
    type: str
  release_state:
    description:
      - State of the release, one word, such as V(rolling), V(live) or V(failed).
    type: str
  entry:
    description:
      - Entry for the history. One with the same C(version) and C(started) is completed, else it is appended.
    type: dict
    suboptions:
      version:
        description: Version that was released.
        type: str
        required: true
      from:
        description: Version before.
        type: str
      started:
        description: When the release began, RFC 3339.
        type: str
        required: true
      finished:
        description: When it ended.
        type: str
      outcome:
        description: How it ended, such as V(live) or V(rolled back).
        type: str
      reason:
        description: Why.
        type: str
  history_limit:
    description:
      - How many entries of the history to keep.
    type: int
    default: 20
  begin:
    description:
      - A release begins. It becomes the record's C(release) in state V(planned) and an entry of the history;
        C(current) of the record is set to O(begin.from), and C(state) to O(begin.strategy).
      - Refused while another release is under way. One of the same version and strategy that no user has met
        (C(planned), C(preparing), C(testing)) is started over under its own C(id).
    type: dict
    suboptions:
      id:
        description: What tells this release from all others of the service, such as a time and a host name.
        type: str
        required: true
      strategy:
        description: How the new version comes in.
        type: str
        choices: [rolling, blue_green, canary]
        required: true
      version:
        description: Version that comes in.
        type: str
        required: true
      from:
        description: Version that is live now.
        type: str
        required: true
      reason:
        description: Why.
        type: str
        default: ""
  transition:
    description:
      - The state that the release gets, with why. Of C(planned), C(preparing), C(testing), C(shifting), C(baking),
        C(promoted) and C(settled) each leads to the next one; C(shifting) to C(promoted) too. A rolling release goes
        C(planned), C(preparing), C(shifting), C(settled).
      - From all but C(settled) a release may end as C(rolled back) or C(aborted).
      - The end also sets C(current), C(previous) and C(state) of the record (V(live), V(rolled back), V(aborted)),
        completes the entry of the history and deletes a pending request.
    type: dict
    suboptions:
      to:
        description: The state.
        type: str
        choices: [planned, preparing, testing, shifting, baking, promoted, settled, rolled back, aborted]
        required: true
      reason:
        description: Why; the first 1000 characters are kept.
        type: str
        default: ""
      evidence:
        description: What it rests on, such as an analysis; at most 4 KiB are kept.
        type: dict
  step:
    description:
      - The step of the canary that begins, counted from 0.
    type: int
  weight:
    description:
      - The candidate's percentage of the traffic from now on, 0 to 100; in a rolling release the percentage of the
        placed instances that run the new version.
    type: int
  analysis:
    description:
      - One verdict, in the shape that M(causeway.platform.canary_analysis) returns. The last 200 are kept, fewer when
        they are large; one of the same C(at) replaces the other.
    type: dict
  migration:
    description:
      - How a phase of the database's migrations stands; the record keeps one entry for each phase. Also allowed after
        the end of the release, since a contract comes after it.
    type: dict
    suboptions:
      phase:
        description: The phase.
        type: str
        choices: [expand, backfill, contract]
        required: true
      versions:
        description: Versions of all files of the phase, the first 14 digits of their names; the last 100 are kept.
        type: list
        elements: str
        default: []
      state:
        description: V(done) after V(running) notes the seconds between as C(took).
        type: str
        choices: [running, done, failed, undone]
        required: true
      reason:
        description: Why, or what was done.
        type: str
        default: ""
  command:
    description:
      - What the controller of the running release shall do at its next interval. Refused when it makes no sense, such
        as V(promote) before any traffic or V(resume) without a pause.
      - V(pause) stays until V(resume) or another request replaces it, so that it outlives the controller.
      - V(none) deletes the request, once it has been obeyed.
    type: str
    choices: [abort, promote, pause, resume, none]
  command_by:
    description:
      - Who asks, as it is shown to others.
    type: str
    default: ""
  command_revision:
    description:
      - With O(command=none), delete the request only if it was last changed at this revision (C(revision) of
        RV(command)). A newer one stays.
    type: int
  owner:
    description:
      - Refuse to write unless this owner holds the service's lock (RV(causeway.platform.etcd_lock#module:owner)); this
        is checked in the same transaction.
    type: str
  expect_revision:
    description:
      - Refuse unless the record was last changed at this revision (V(0), never).
    type: int
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: full
    description: Shows the record before and after.
  idempotent:
    support: full
    description: A second run with the same values changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Read the record of orders
  causeway.platform.registry_release:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
  register: release

- name: Note that a release begins
  causeway.platform.registry_release:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    release_state: rolling
    entry: {version: 1.1.0, from: 1.0.0, started: "2026-11-22T16:00:00Z"}
    expect_revision: "{{ release.revision }}"

- name: Note that it ended well
  causeway.platform.registry_release:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    current: 1.1.0
    previous: 1.0.0
    release_state: live
    entry: {version: 1.1.0, started: "2026-11-22T16:00:00Z", finished: "2026-11-22T16:02:00Z", outcome: live}

- name: Begin a canary
  causeway.platform.registry_release:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    owner: "{{ lock.owner }}"
    begin: {id: 20261122-160000-core1, strategy: canary, version: 1.1.0, from: 1.0.0}

- name: Send 5 % of the traffic to the candidates
  causeway.platform.registry_release:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    owner: "{{ lock.owner }}"
    transition: {to: shifting, reason: the tests passed}
    step: 0
    weight: 5
  register: release

- name: Ask the controller of the release to go back
  causeway.platform.registry_release:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    command: abort
    command_by: alice
"""

RETURN = r"""
release:
  description: The record, empty when there was never a release.
  returned: always
  type: dict
  sample: {current: 1.1.0, previous: 1.0.0, state: live, history: [{version: 1.1.0, from: 1.0.0,
           started: "2026-11-22T16:00:00Z", finished: "2026-11-22T16:02:00Z", outcome: live}],
           release: {id: 20261122-160000-core1, strategy: canary, version: 1.1.0, from: 1.0.0, state: settled, step: 2,
           weight: 0, started: "2026-11-22T16:00:00Z", changed: "2026-11-22T16:02:00Z", reason: "",
           transitions: [], weights: [], analyses: [], migrations: []}}
revision:
  description: Revision of the record, 0 when there is none.
  returned: always
  type: int
  sample: 4711
command:
  description:
    - The request for the release under way, empty when there is none. C(release) is the id of the release that it is
      for, C(revision) tells when it was last changed.
  returned: always
  type: dict
  sample: {command: pause, by: alice, at: "2026-11-22T16:01:00.000Z", release: 20261122-160000-core1, revision: 4712}
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import (
    EtcdClient,
    EtcdError,
    compare_mod,
    op_delete,
    op_put,
)
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    RegistryError,
    check_label,
    connect,
    find_lock,
    held,
    merge_release,
    now,
    set_release,
)
from ansible_collections.causeway.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.causeway.platform.plugins.module_utils.release_record import (
    COMMANDS,
    MIGRATION_STATES,
    PHASES,
    STATES,
    STRATEGIES,
    advance,
    pending_command,
    request_after,
)


def holder(client: EtcdClient, keys: Keys, service: str, owner: str) -> dict[str, Any]:
    """The condition that ``owner`` still holds the service's lock; raises RegistryError when it does not now."""
    lock = find_lock(client, keys, service)
    if lock is None:
        raise RegistryError(f"lock {service} is not held by {owner}: take it first, or somebody else may act meanwhile")
    if lock.owner != owner:
        raise held(lock)
    return compare_mod(keys.of("locks", service), lock.revision)


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Read, merge, swap; returns the module's result."""
    keys, service, at = Keys(params["platform"]), check_label("service", params["service"]), now()
    changes = {"current": params["current"], "previous": params["previous"], "state": params["release_state"]}
    entry = {name: value for name, value in params["entry"].items() if value is not None} if params["entry"] else None
    request_key, limit = keys.of("commands", service), params["history_limit"]
    with connect(params) as client:
        kv, asked = client.get(keys.of("releases", service)), client.get(request_key)
        before, revision = (kv.json(), kv.mod_revision) if kv else ({}, 0)
        request, request_revision = (asked.json(), asked.mod_revision) if asked else ({}, 0)
        expect = params["expect_revision"]
        if expect is not None and expect != revision:
            raise RegistryError(
                f"the release record of {service} was last changed at revision {revision}, "
                f"expect_revision says {expect}"
            )
        wanted = before
        if entry is not None or any(value is not None for value in changes.values()):
            wanted = merge_release(before, changes, entry, limit)
        given = {name: params[name] for name in ("begin", "step", "weight", "analysis", "transition", "migration")}
        if any(value is not None for value in given.values()):
            wanted = merge_release(wanted, *advance(wanted, at, **given), limit)
        stays = params["command_revision"] not in (None, request_revision)
        after = request_after(
            service,
            wanted,
            request,
            command=None if params["command"] == "none" and stays else params["command"],
            by=params["command_by"],
            at=at,
            sweep=wanted != before,
        )
        compares = [holder(client, keys, service, params["owner"])] if params["owner"] else []
        operations = []
        if after != request:
            compares.append(compare_mod(request_key, request_revision))
            operations.append(
                op_put(request_key, json.dumps(after, sort_keys=True)) if after else op_delete(request_key)
            )
        if not check_mode and wanted != before:
            revision = set_release(client, keys, service, wanted, revision, compares=compares, operations=operations)
        elif not check_mode and operations:
            written = client.txn(compares, operations)
            if not written.succeeded:
                raise RegistryError(f"a request for the release of {service} came in just now; look again")
            request_revision = written.revision
    if after != request and wanted != before:
        request_revision = revision
    command = {**after, "revision": request_revision} if pending_command(wanted, after) else {}
    return {
        "changed": wanted != before or after != request,
        "diff": {"before": _shown(before, request, after), "after": _shown(wanted, after, request)},
        "release": wanted,
        "revision": revision,
        "command": command,
    }


def _shown(record: dict[str, Any], request: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A record for the diff, with the request when that changes too."""
    return {**record, "command": request} if request != other else record


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "service": {"type": "str", "required": True},
            "current": {"type": "str"},
            "previous": {"type": "str"},
            "release_state": {"type": "str"},
            "entry": {
                "type": "dict",
                "options": {
                    "version": {"type": "str", "required": True},
                    "from": {"type": "str"},
                    "started": {"type": "str", "required": True},
                    "finished": {"type": "str"},
                    "outcome": {"type": "str"},
                    "reason": {"type": "str"},
                },
            },
            "begin": {
                "type": "dict",
                "options": {
                    "id": {"type": "str", "required": True},
                    "strategy": {"type": "str", "choices": list(STRATEGIES), "required": True},
                    "version": {"type": "str", "required": True},
                    "from": {"type": "str", "required": True},
                    "reason": {"type": "str", "default": ""},
                },
            },
            "transition": {
                "type": "dict",
                "options": {
                    "to": {"type": "str", "choices": list(STATES), "required": True},
                    "reason": {"type": "str", "default": ""},
                    "evidence": {"type": "dict"},
                },
            },
            "step": {"type": "int"},
            "weight": {"type": "int"},
            "analysis": {"type": "dict"},
            "migration": {
                "type": "dict",
                "options": {
                    "phase": {"type": "str", "choices": list(PHASES), "required": True},
                    "versions": {"type": "list", "elements": "str", "default": []},
                    "state": {"type": "str", "choices": list(MIGRATION_STATES), "required": True},
                    "reason": {"type": "str", "default": ""},
                },
            },
            "command": {"type": "str", "choices": [*COMMANDS, "none"]},
            "command_by": {"type": "str", "default": ""},
            "command_revision": {"type": "int"},
            "owner": {"type": "str"},
            "history_limit": {"type": "int", "default": 20},
            "expect_revision": {"type": "int"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except (EtcdError, RegistryError, ReleaseError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
