#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_wait
short_description: Wait while a release does nothing, until an operator wants something
description:
  - Waits for a time, for the end of the release under way, or for an operator's request
    (M(causeway.platform.registry_release), O(causeway.platform.registry_release#module:command)), whatever comes first.
  - Meanwhile it keeps the lock of the release, so that waiting may take longer than the lock's lease.
  - One run waits no longer than O(slice), so that a dead controller does not keep the lock for the whole time; repeat
    it until RV(finished).
  - Outages of the registry that are shorter than the lock's lease do not end it.
version_added: "0.1.0"
options:
  service:
    description:
      - Name of the service.
    type: str
    required: true
  seconds:
    description:
      - How long to wait at most.
    type: float
    required: true
  since:
    description:
      - When the waiting began, RV(began) of an earlier run; by default now.
    type: float
  slice:
    description:
      - How long one run may wait.
    type: float
    default: 15.0
  commands:
    description:
      - The requests that end the waiting; others are left for later.
    type: list
    elements: str
    choices: [abort, promote, pause, resume]
    default: [abort, promote, pause]
  while_locked:
    description:
      - End also when nobody holds the service's lock any more, so that no controller runs the release.
    type: bool
    default: false
  owner:
    description:
      - Who holds the service's lock (RV(causeway.platform.etcd_lock#module:owner)); it is renewed. Fails when it was
        lost.
    type: str
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Looks once and does not wait.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Let traffic flow for half a minute, unless an operator wants something
  causeway.platform.release_wait:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    service: orders
    seconds: 30
    since: "{{ begun }}"
    owner: "{{ lock.owner }}"
  register: waited
  until: waited.finished
  retries: 10
  delay: 0
"""

RETURN = r"""
began:
  description: When the waiting began, seconds since the epoch on this host's clock.
  returned: always
  type: float
  sample: 1795374757.8
finished:
  description: Whether the time has passed, the release has ended or an operator wants something.
  returned: always
  type: bool
  sample: true
command:
  description: The request that ended the waiting, else empty; C(revision) tells when it was last changed.
  returned: always
  type: dict
  sample: {command: abort, by: alice, at: "2026-11-22T16:01:00.000Z", release: 20261122-160000-core1, revision: 4712}
release:
  description: The service's release record, as M(causeway.platform.registry_release) returns it.
  returned: always
  type: dict
  sample: {current: 1.0.0, previous: "", state: canary, history: [],
           release: {id: 20261122-160000-core1, state: shifting}}
waited:
  description: Seconds since the waiting began.
  returned: always
  type: float
  sample: 12.4
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdClient, EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    RegistryError,
    check_label,
    connect,
    find_lock,
    renew,
)
from ansible_collections.causeway.platform.plugins.module_utils.release_record import (
    COMMANDS,
    Release,
    pending_command,
)

POLL = 0.5
RENEW = 3.0  # seconds; every lease in use is several times longer
PATIENCE = 60.0  # seconds without the registry


def look(client: EtcdClient, keys: Keys, service: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The service's record and the request that concerns the release under way."""
    record, request = client.get(keys.of("releases", service)), client.get(keys.of("commands", service))
    known, asked = record.json() if record else {}, request.json() if request else {}
    if not request or not pending_command(known, asked):
        return known, {}
    return known, {**asked, "revision": request.mod_revision}


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Wait; returns the module's result."""
    keys, service, owner = Keys(params["platform"]), check_label("service", params["service"]), params["owner"]
    begun = answered = time.monotonic()
    started = time.time()
    # How far back it began; a clock that was set meanwhile counts as no time.
    earlier = max(0.0, started - params["since"]) if params["since"] is not None else 0.0
    renewed = begun - RENEW
    record: dict[str, Any] = {}
    with connect(params) as client:
        while True:
            command: dict[str, Any] = {}
            free = False
            try:
                if owner and not check_mode and time.monotonic() - renewed >= RENEW:
                    renew(client, find_lock(client, keys, service), service, owner)
                    renewed = time.monotonic()
                free = params["while_locked"] and find_lock(client, keys, service) is None
                record, command = look(client, keys, service)
                answered = time.monotonic()
            except EtcdError:
                if time.monotonic() - answered > PATIENCE:
                    raise
            release = Release.of(record.get("release"))
            wanted = command.get("command") in params["commands"]
            here = time.monotonic() - begun
            rest = params["seconds"] - earlier - here
            finished = wanted or free or check_mode or rest <= 0 or (release is not None and release.ended)
            if finished or here >= params["slice"]:
                return {
                    "changed": False,
                    "began": params["since"] if params["since"] is not None else round(started, 3),
                    "finished": finished,
                    "release": record,
                    "command": command if wanted else {},
                    "waited": round(earlier + here, 3),
                }
            time.sleep(min(POLL, rest))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "service": {"type": "str", "required": True},
            "seconds": {"type": "float", "required": True},
            "since": {"type": "float"},
            "slice": {"type": "float", "default": 15.0},
            "commands": {
                "type": "list",
                "elements": "str",
                "choices": list(COMMANDS),
                "default": ["abort", "promote", "pause"],
            },
            "while_locked": {"type": "bool", "default": False},
            "owner": {"type": "str"},
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
