#!/usr/bin/python

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pause, resume and reload this host's PgBouncer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_admin
short_description: Pause, resume and reload a host's PgBouncer
version_added: "0.1.0"
description:
  - Talks to the admin console over its unix socket, as the user who runs PgBouncer. The module itself runs as root.
  - A pause belongs to a switchover. It ends by itself, on each host alone, as soon as PgBouncer was pointed to another
    leader, and at the latest after O(hold) seconds, so that a controller that dies does not stop a service for good.
author: The causeway.platform authors (@causeway)
options:
  name:
    description: The cluster. Required unless O(state=reloaded).
    type: str
  state:
    description:
      - V(observed) tells what there is.
      - V(paused) returns once no transaction of the writers' database runs any more; new ones wait. Readers go on.
      - V(resumed) asks Patroni who leads, points PgBouncer there and lets waiting transactions go.
      - V(reloaded) reads the configuration again, for all clusters.
    type: str
    choices: [observed, paused, resumed, reloaded]
    default: observed
  timeout:
    description:
      - Seconds that running transactions get to end. If they last longer, nothing stays paused and the module fails.
    type: float
    default: 10.0
  hold:
    description: Seconds after which a pause ends by itself.
    type: float
    default: 30.0
  config:
    description: File with the clusters of this host, written by role C(pgbouncer).
    type: path
    default: /etc/causeway/pgbouncer/clusters.json
attributes:
  check_mode:
    support: full
    description: Tells what would be done.
  diff_mode:
    support: none
    description: Nothing is written that has a text.
  idempotent:
    support: partial
    details: O(state=reloaded) always reloads.
    description: What is paused is not paused again, and the same for resuming.
"""

EXAMPLES = r"""
- name: Hold the writers of orders
  causeway.platform.pgbouncer_admin:
    name: orders
    state: paused
    timeout: 5

- name: Let them go on, at the new leader
  causeway.platform.pgbouncer_admin:
    name: orders
    state: resumed
  register: resumed

- name: Tell how long they waited
  ansible.builtin.debug:
    msg: "{{ resumed.seconds }} s"
"""

RETURN = r"""
leader:
  description: Host that the writers' database points to.
  returned: with O(name)
  type: str
  sample: db1
reader:
  description: Host that the readers' database points to.
  returned: with O(name)
  type: str
  sample: db1
paused:
  description: Whether the writers' database is paused.
  returned: with O(name)
  type: bool
  sample: false
seconds:
  description: How long the last pause lasted, or the present one lasts until now. Null if there was none.
  returned: with O(name)
  type: float
  sample: 1.42
actions:
  description: What was done.
  returned: O(state=resumed)
  type: list
  elements: str
  sample: ["orders -> db2, orders_ro -> db1", reloaded, resumed after 1.42 s]
restart_needed:
  description: Settings in the file that only a restart puts into force.
  returned: O(state=reloaded)
  type: list
  elements: str
  sample: []
"""

import pwd
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.pgbouncer import (
    Cluster,
    Config,
    Console,
    PgBouncerError,
    console_of,
    decided,
    in_force,
    load_config,
    parse_settings,
    pause,
    read_mark,
    restart_needed,
    resume,
    settle,
)


def state_of(config: Config, cluster: Cluster, console: Console) -> dict[str, Any]:
    """What is in force."""
    writer, reader = in_force(config, cluster)
    mark = read_mark(config, cluster)
    paused = console.databases().get(cluster.database, {}).get("paused") == "1"
    return {"leader": writer, "reader": reader, "paused": paused, "seconds": mark.seconds if mark else None}


def reloaded(config: Config, console: Console, settings: Path, check_mode: bool) -> dict[str, Any]:
    """Reload, and what that could not change."""
    if not check_mode:
        console.run("RELOAD")
    wanted = parse_settings(settings.read_text(encoding="utf-8"))
    return {"changed": True, "restart_needed": restart_needed(wanted, console.run("SHOW CONFIG"))}


def resumed(config: Config, cluster: Cluster, console: Console, *, check_mode: bool) -> dict[str, Any]:
    """Point to the leader of now, then let go."""
    before = state_of(config, cluster, console)
    writer, reader = decided(config, cluster)
    if check_mode:
        return {**before, "leader": writer, "changed": before["paused"] or writer != before["leader"], "actions": []}
    actions = settle(config, cluster, console, writer, reader)
    if resume(config, cluster, console)[0]:
        actions.append("resumed")
    return {**state_of(config, cluster, console), "changed": bool(actions), "actions": actions}


def run(module: AnsibleModule) -> dict[str, Any]:
    """What the state asks for."""
    params = module.params
    config = load_config(params["config"])
    console = console_of(config, pwd.getpwnam(config.user).pw_uid)
    if params["state"] == "reloaded":
        return reloaded(config, console, Path(params["config"]).with_name("pgbouncer.ini"), module.check_mode)
    cluster = config.cluster(params["name"])
    if params["state"] == "resumed":
        return resumed(config, cluster, console, check_mode=module.check_mode)
    before = state_of(config, cluster, console)
    if params["state"] == "observed" or before["paused"]:
        return {**before, "changed": False}
    if not module.check_mode:
        pause(config, cluster, console, leader=before["leader"], timeout=params["timeout"], hold=params["hold"])
        before = state_of(config, cluster, console)
    return {**before, "changed": True}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["observed", "paused", "resumed", "reloaded"], "default": "observed"},
            "timeout": {"type": "float", "default": 10.0},
            "hold": {"type": "float", "default": 30.0},
            "config": {"type": "path", "default": "/etc/causeway/pgbouncer/clusters.json"},
        },
        required_if=[("state", state, ["name"]) for state in ("observed", "paused", "resumed")],
        supports_check_mode=True,
    )
    for name in ("timeout", "hold"):
        if module.params[name] <= 0:
            module.fail_json(msg=f"{name}: {module.params[name]} must be more than 0 seconds")
    try:
        result = run(module)
    except (PgBouncerError, TimeoutError) as error:
        module.fail_json(msg=str(error))
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"PgBouncer: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
