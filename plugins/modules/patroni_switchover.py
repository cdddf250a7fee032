#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_switchover
short_description: Move the leadership of a PostgreSQL cluster while its clients wait at the poolers
description:
  - Runs on all members of the cluster at the same time, in one task. The hosts tell each other through the registry how
    far they are. Every pooler holds the writers, the leadership moves, every pooler is pointed to the new leader and
    lets them go. Clients notice a wait and no error.
  - If one host has a problem, nothing moves and no writer is held any more; each host fails with the reason.
  - A pooler whose module was killed lets its writers go by itself after O(hold) seconds, or when another member leads.
version_added: "0.1.0"
options:
  member:
    description:
      - Name of this host's member, which is the host's name in the pooler's configuration, too.
    type: str
    required: true
  members:
    description:
      - All members that take part, by name. The task must run on all of their hosts at the same time, so that there
        must be at least as many forks, and no C(serial) or C(throttle).
    type: list
    elements: str
    required: true
  meeting:
    description:
      - A word that all hosts of this run share and that no other run uses, such as the lock's owner.
    type: str
    required: true
  candidate:
    description:
      - Member that shall lead. Nothing is done when it does already. Patroni chooses when it is left out.
    type: str
    default: ""
  leader:
    description:
      - Member that shall lead no longer. Nothing is done when it does not lead.
    type: str
    default: ""
  max_lag:
    description:
      - Bytes that the candidate may be behind.
    type: int
    default: 1048576
  cluster:
    description:
      - The cluster's name in the pooler's configuration. When it is left out nobody is held, and transactions that run
        while the leadership moves are lost to their clients.
    type: str
    default: ""
  timeout:
    description:
      - Seconds that running transactions get to end. If they last longer, nothing moves.
    type: float
    default: 10.0
  hold:
    description:
      - Seconds that the move may take. Then the writers are let go, at whoever leads.
    type: float
    default: 15.0
  come:
    description:
      - Seconds to wait for the other hosts.
    type: float
    default: 30.0
  registry:
    description:
      - How to reach the registry.
    type: dict
    required: true
    suboptions:
      endpoints:
        description: Client URLs of its members.
        type: list
        elements: str
        required: true
      platform:
        description: Name of the platform.
        type: str
        required: true
      ca_file:
        description: PEM file of the roots.
        type: path
        default: /etc/causeway/tls/host/current/ca.pem
      cert_file:
        description: PEM file of the client certificate with its chain.
        type: path
        default: /etc/causeway/tls/host/current/cert.pem
      key_file:
        description: PEM file of its key.
        type: path
        default: /etc/causeway/tls/host/current/key.pem
      username:
        description: User of the registry.
        type: str
        default: root
      password:
        description: Its password.
        type: str
      request_timeout:
        description: Seconds that one request may take.
        type: float
        default: 5.0
  config:
    description: File with the clusters of this host's pooler, written by role C(pgbouncer).
    type: path
    default: /etc/causeway/pgbouncer/clusters.json
extends_documentation_fragment:
  - causeway.platform.patroni
attributes:
  check_mode:
    support: full
    description: Tells whether the leadership would move; each host looks for itself.
  diff_mode:
    support: none
    description: Nothing is written that has a text.
  idempotent:
    support: partial
    description: With O(candidate) or O(leader) nothing is done the second time.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Have app2 lead
  causeway.platform.patroni_switchover:
    member: "{{ inventory_hostname }}"
    members: [app1, app2, app3]
    meeting: "{{ lock.owner }}"
    cluster: orders
    candidate: app2
    endpoints: ["https://10.77.1.31:17000", "https://10.77.2.31:17000", "https://10.77.3.31:17000"]
    password: "{{ causeway_secrets.database | causeway.platform.database_password('orders', 'rest') }}"
    registry:
      platform: shop
      endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
      password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
"""

RETURN = r"""
switchover:
  description: Who handed over to whom, and the seconds until the new leader took writes.
  returned: when the leadership moved
  type: dict
  sample: {from: app1, to: app2, seconds: 1.61}
pause:
  description: Seconds that this host's pooler held the writers. Null without O(cluster).
  returned: when the leadership moved
  type: float
  sample: 1.84
"""

import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer, registry
from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.patroni import ARGUMENTS, PatroniError, connect
from ansible_collections.causeway.platform.plugins.module_utils.patroni_switchover import (
    Pooler,
    Switchover,
    SwitchoverError,
    would_move,
)
from ansible_collections.causeway.platform.plugins.module_utils.rendezvous import Rendezvous, RendezvousError


def pooler_of(params: dict[str, Any]) -> Pooler | None:
    """This host's pooler, if it shall hold the writers."""
    if not params["cluster"]:
        return None
    config = pgbouncer.load_config(params["config"])
    console = pgbouncer.console_of(config, pwd.getpwnam(config.user).pw_uid)
    return Pooler(config, config.cluster(params["cluster"]), console, params["hold"])


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Look only, or take part."""
    patroni = connect(params)
    pooler = pooler_of(params)
    wish = {"candidate": params["candidate"], "leaving": params["leader"], "max_lag": params["max_lag"]}
    if check_mode:
        return {"changed": would_move(patroni, **wish)}
    keys = registry.Keys(params["registry"]["platform"])
    with registry.connect(params["registry"]) as client:
        times = {"timeout": params["timeout"], "hold": params["hold"], "come": params["come"]}
        # The keys outlive every wait.
        meeting = Rendezvous(
            client,
            keys,
            params["meeting"],
            params["member"],
            members=params["members"],
            ttl=int(sum(times.values())) + 60,
        )
        return Switchover(patroni, meeting, pooler, **times).run(**wish)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "member": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "str", "required": True},
            "meeting": {"type": "str", "required": True},
            "candidate": {"type": "str", "default": ""},
            "leader": {"type": "str", "default": ""},
            "max_lag": {"type": "int", "default": 1048576},
            "cluster": {"type": "str", "default": ""},
            "timeout": {"type": "float", "default": 10.0},
            "hold": {"type": "float", "default": 15.0},
            "come": {"type": "float", "default": 30.0},
            "registry": {"type": "dict", "required": True, "options": registry.ARGUMENTS},
            "config": {"type": "path", "default": "/etc/causeway/pgbouncer/clusters.json"},
        },
        supports_check_mode=True,
    )
    params = module.params
    for name in ("timeout", "hold", "come"):
        if params[name] <= 0:
            module.fail_json(msg=f"{name}: {params[name]} must be more than 0 seconds")
    if params["candidate"] and params["candidate"] == params["leader"]:
        module.fail_json(msg=f"candidate and leader are both '{params['leader']}'; name one of them or two members")
    try:
        result = run(params, module.check_mode)
    except (SwitchoverError, PatroniError, RendezvousError, EtcdError, registry.RegistryError) as error:
        module.fail_json(msg=str(error))
    except (pgbouncer.PgBouncerError, TimeoutError, OSError, KeyError) as error:
        module.fail_json(msg=f"PgBouncer: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
