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
  - Without O(current), O(previous), O(release_state) and O(entry) it is only read.
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
"""

RETURN = r"""
release:
  description: The record, empty when there was never a release.
  returned: always
  type: dict
  sample: {current: 1.1.0, previous: 1.0.0, state: live, history: [{version: 1.1.0, from: 1.0.0,
           started: "2026-11-22T16:00:00Z", finished: "2026-11-22T16:02:00Z", outcome: live}]}
revision:
  description: Revision of the record, 0 when there is none.
  returned: always
  type: int
  sample: 4711
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    RegistryError,
    check_label,
    connect,
    merge_release,
    set_release,
)


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Read, merge, swap; returns the module's result."""
    keys, service = Keys(params["platform"]), check_label("service", params["service"])
    changes = {"current": params["current"], "previous": params["previous"], "state": params["release_state"]}
    entry = {name: value for name, value in params["entry"].items() if value is not None} if params["entry"] else None
    with connect(params) as client:
        kv = client.get(keys.of("releases", service))
        before, revision = (kv.json(), kv.mod_revision) if kv else ({}, 0)
        expect = params["expect_revision"]
        if expect is not None and expect != revision:
            raise RegistryError(
                f"the release record of {service} was last changed at revision {revision}, "
                f"expect_revision says {expect}"
            )
        wanted = before
        if entry is not None or any(value is not None for value in changes.values()):
            wanted = merge_release(before, changes, entry, params["history_limit"])
        changed = wanted != before
        if changed and not check_mode:
            revision = set_release(client, keys, service, wanted, revision)
    return {"changed": changed, "diff": {"before": before, "after": wanted}, "release": wanted, "revision": revision}


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
            "history_limit": {"type": "int", "default": 20},
            "expect_revision": {"type": "int"},
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
