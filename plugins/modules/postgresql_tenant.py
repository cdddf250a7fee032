#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_tenant
short_description: Databases of tenants on a shard, and the steps of a move to another one
description:
  - A tenant of a service with shards has a database of its own. This module makes it, tells about it, and takes the
    steps by which it moves to another shard while it is in use. Playbook C(tenant_move) puts them in order.
  - The states V(present), V(absent), V(observed), V(published), V(copied) and V(settled) work on the server of this
    host, which must be the leader of its cluster, over the unix socket. V(switched) runs on all hosts of the move at
    the same time.
version_added: "0.1.0"
extends_documentation_fragment:
  - causeway.platform.postgresql
  - causeway.platform.etcd
options:
  endpoints:
    required: false
  platform:
    required: false
  state:
    description:
      - V(present) makes the databases of O(databases), with schema C(causeway) and privileges.
      - V(observed) tells about all databases of this server.
      - V(published) offers O(database) for copying, or fails with all reasons why it cannot move.
      - V(copied) makes a copy of O(database) from O(source), and returns once it follows the source.
      - V(switched) holds the clients, compares the copy with the original, notes the new place in the registry and lets
        the clients go on there; or lets them go on where they were, and fails.
      - V(settled) clears away what a move, or a part of one, left, by O(here).
      - V(absent) drops what a finished move left of O(database), its copy with the ending C(_moved).
    type: str
    choices: [present, absent, observed, published, copied, switched, settled]
    required: true
  port:
    description:
      - Port of the server, which is part of its socket's name. V(switched) takes O(source_port) and O(target_port).
    type: int
  databases:
    description:
      - Names of the databases that O(state=present) makes.
    type: list
    elements: str
    default: []
  database:
    description:
      - Name of the tenant's database.
    type: str
  owner:
    description:
      - Role that owns the database.
    type: str
  application:
    description:
      - Role that reads and writes in it.
    type: str
  connect:
    description:
      - Further roles that may connect to it.
    type: list
    elements: str
    default: []
  extensions:
    description:
      - Extensions that O(state=present) makes.
    type: list
    elements: str
    default: []
  template:
    description:
      - Database whose schema O(state=present) gives to databases that have no tables; it is reached by O(source). Empty
        for none.
    type: str
    default: ""
  here:
    description:
      - For O(state=settled), whether the tenant lives on this shard, as the registry says.
    type: bool
  service:
    description:
      - The service that the tenant belongs to.
    type: str
  tenant:
    description:
      - The tenant's name.
    type: str
  origin:
    description:
      - Shard that the tenant leaves.
    type: str
  destination:
    description:
      - Shard that it moves to.
    type: str
  source:
    description:
      - How O(state=copied) reaches the leader of the shard that the tenant leaves, and O(state=present) that of
        O(template).
    type: dict
    suboptions:
      host:
        description: Its address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
      user:
        description: Role that may read everything and replicate.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
      tls:
        description: Directory of this host's certificate.
        type: path
        default: /etc/causeway/tls/database/current
      sslmode:
        description: How the server is proven to be the right one.
        type: str
        choices: [verify-full, verify-ca, require, prefer, disable]
        default: verify-full
  tables:
    description:
      - Tables to compare, as O(state=published) returned them.
    type: list
    elements: str
    default: []
  sequences:
    description:
      - Sequences to copy, as O(state=published) returned them.
    type: list
    elements: str
    default: []
  matviews:
    description:
      - Materialized views that O(state=copied) fills, as O(state=published) returned them.
    type: list
    elements: str
    default: []
  verify:
    description:
      - V(checksum) compares the number of rows and a checksum of each table while clients wait, V(rows) the number.
    type: str
    choices: [checksum, rows]
    default: checksum
  host:
    description:
      - Name of this host.
    type: str
  members:
    description:
      - Names of all hosts that run O(state=switched).
    type: list
    elements: str
    default: []
  poolers:
    description:
      - Those of O(members) whose PgBouncer offers the tenant.
    type: list
    elements: str
    default: []
  source_host:
    description:
      - Host that leads the shard that the tenant leaves.
    type: str
  source_port:
    description:
      - Port of that shard.
    type: int
  target_host:
    description:
      - Host that leads the shard that the tenant moves to.
    type: str
  target_port:
    description:
      - Port of that shard.
    type: int
  meeting:
    description:
      - Name under which the hosts meet in the registry; never used twice.
    type: str
  hold:
    description:
      - Seconds that clients are held at most, beside O(timeout) for running transactions.
    type: float
    default: 30.0
  timeout:
    description:
      - Seconds. For O(state=copied) that the copy may take, for O(state=switched) that running transactions get to end,
        else that one statement may take.
    type: float
    default: 60.0
  config:
    description:
      - File of role C(pgbouncer) with the clusters and tenants of this host.
    type: path
    default: /etc/causeway/pgbouncer/clusters.json
attributes:
  check_mode:
    support: full
    description: Tells what would be done; O(state=published) checks whether the tenant can move.
  diff_mode:
    support: none
    description: What is done is in RV(steps).
  idempotent:
    support: full
    description:
      - A second run changes nothing. V(copied) and V(switched) are steps of one move and are not repeated; a repeated
        move begins with V(settled).
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Make the databases of tenants that live here
  causeway.platform.postgresql_tenant:
    state: present
    port: 15110
    databases: [orders_acme, orders_bolt]
    owner: orders_owner
    application: orders
    connect: [pgbouncer, monitor]

- name: Tell what is here
  causeway.platform.postgresql_tenant:
    state: observed
    port: 15110

- name: Clear away what a broken move left where the tenant lives
  causeway.platform.postgresql_tenant:
    state: settled
    port: 15110
    database: orders_acme
    here: true
"""

RETURN = r"""
steps:
  description: What was done, or would be in check mode, in order.
  returned: O(state=present), O(state=absent), O(state=settled)
  type: list
  elements: str
  sample: [create database orders_acme]
databases:
  description: Databases of this server, with size in bytes, whether clients may come in, and their part in a move.
  returned: O(state=observed)
  type: dict
  sample: {orders_acme: {size: 8123456, open: true, move: "", note: ""}}
facts:
  description: Size in bytes, estimated rows, tables and sequences.
  returned: O(state=published)
  type: dict
  sample: {size: 8123456, rows: 1000000, tables: [public.orders], sequences: [public.orders_id_seq], matviews: []}
seconds:
  description: Seconds that the copy took.
  returned: O(state=copied)
  type: float
  sample: 21.4
check_seconds:
  description: Seconds that comparing will take, as measured on the copy.
  returned: O(state=copied)
  type: float
  sample: 0.9
moved:
  description:
    - What was verified, the pause of this host's clients in seconds (null without a pooler) and of what it consists.
  returned: O(state=switched)
  type: dict
  sample: {pause: 1.2, rows: 1000000, tables: 1, sequences: 1, checksum: 9f86d081884c7d65, lsn: 0/5A0003B8,
           times: {fence: 0.1}}
"""

import pwd
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils import pgbouncer, tenant_copy, tenant_switch
from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdError
from ansible_collections.causeway.platform.plugins.module_utils.pgbouncer import PgBouncerError
from ansible_collections.causeway.platform.plugins.module_utils.postgresql_objects import (
    SERVER,
    DATABASE_STATE,
    SERVER_STATE,
    PostgresqlError,
    Psql,
    apply,
    check_extensions,
    check_names,
    plan_database,
    plan_server,
)
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    Keys,
    RegistryError,
    connect,
    now,
)
from ansible_collections.causeway.platform.plugins.module_utils.rendezvous import Rendezvous, RendezvousError
from ansible_collections.causeway.platform.plugins.module_utils.tenants import TenantError, read_place

# Seconds that a comparison or an index of a large copy may take.
LONG = 3600.0
ANALYZE = "ANALYZE;"


def server(params: dict[str, Any], port: int, timeout: float) -> Psql:
    """This host's server."""
    return Psql(port, params["socket_path"], params["system_user"], timeout)


def origin_of(params: dict[str, Any]) -> tenant_copy.Source:
    """The other server."""
    given = params["source"]
    return tenant_copy.Source(
        given["host"], given["port"], given["user"], given["password"], given["tls"], given["sslmode"]
    )


def present(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the databases."""
    owner, application = params["owner"], params["application"]
    check_names([owner, application, *params["connect"], *params["databases"]])
    psql = server(params, params["port"], params["timeout"])
    state = psql.ask("postgres", SERVER_STATE)
    if state["recovery"]:
        raise TenantError(f"the server on port {params['port']} is a replica; run this where the leader is")
    check_extensions(state, params["extensions"])
    told = []
    for name in params["databases"]:
        steps = plan_server(state, name, owner, [], list(dict.fromkeys([owner, application, *params["connect"]])))
        if not check_mode:
            apply(psql, steps)
        exists = name in state["databases"] or not check_mode
        inside = plan_database(
            psql.ask(name, DATABASE_STATE) if exists else {}, name, owner, application, params["extensions"]
        )
        if not check_mode:
            apply(psql, inside)
        told += [step.told for step in steps] + [f"{name}: {step.told}" for step in inside]
        if (
            params["template"]
            and not check_mode
            and tenant_copy.fill(psql, name, origin_of(params), params["template"])
        ):
            told.append(f"{name}: take over the schema of {params['template']}")
    return {"changed": bool(told), "steps": told}


def observed(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Tell about the databases."""
    known = tenant_copy.databases(server(params, params["port"], params["timeout"]))
    return {"changed": False, "databases": {name: tenant_copy.describe(one) for name, one in sorted(known.items())}}


def absent(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Drop what a finished move left."""
    psql, name = server(params, params["port"], params["timeout"]), tenant_copy.left_behind(params["database"])
    entry = tenant_copy.databases(psql).get(name)
    if entry is None:
        return {"changed": False, "steps": []}
    if not entry["comment"].startswith(tenant_copy.LEFT):
        raise TenantError(f"database {name} is not what a move left behind, and is not dropped")
    if not check_mode:
        tenant_copy.drop(psql, name)
    return {"changed": True, "steps": [f"dropped {name}, {entry['size']} bytes, {entry['comment']}"]}


def published(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Offer the tenant's tables."""
    psql = server(params, params["port"], params["timeout"])
    if check_mode:
        facts = psql.ask(params["database"], tenant_copy.FACTS)
        found = tenant_copy.objections(params["database"], facts)
        if found:
            raise TenantError(f"database {params['database']} cannot move: {'; '.join(found)}")
    else:
        tenant_copy.publish(psql, params["database"], params["destination"])
        facts = psql.ask(params["database"], tenant_copy.FACTS)
    tables = [name for name in facts["tables"] if name != tenant_copy.MARK_TABLE]
    kept = {name: facts[name] for name in ("size", "rows", "sequences", "matviews")}
    return {"changed": True, "facts": {**kept, "tables": tables}}


def copied(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the copy."""
    if check_mode:
        return {"changed": True, "seconds": 0.0, "check_seconds": 0.0}
    source, name = origin_of(params), params["database"]
    psql, started = server(params, params["port"], LONG), time.monotonic()
    connecting = list(dict.fromkeys([params["owner"], params["application"], *params["connect"]]))
    tenant_copy.begin_copy(psql, name, params["owner"], connect=connecting, source=source, origin=params["origin"])
    tenant_copy.wait_copy(psql, name, params["timeout"])
    facts = psql.ask(name, tenant_copy.FACTS)
    # Plans and materialized views do not come with the rows.
    psql.run(name, "".join(f"REFRESH MATERIALIZED VIEW {view};\n" for view in params["matviews"]) + ANALYZE)
    seconds, checking = time.monotonic() - started, time.monotonic()
    tables = [table for table in facts["tables"] if table != tenant_copy.MARK_TABLE]
    tenant_copy.sums(psql, name, tables, params["verify"] == "checksum")
    return {
        "changed": True,
        "seconds": round(seconds, 3),
        "check_seconds": round(time.monotonic() - checking, 3),
    }


def settled(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Clear away what a move left."""
    psql = server(params, params["port"], params["timeout"])
    steps = tenant_copy.settle(psql, params["database"], params["here"], now(), check_mode)
    return {"changed": bool(steps), "steps": steps}


def switched(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """This host's part in the switch."""
    if check_mode:
        return {"changed": True, "moved": {}}
    keys, own = Keys(params["platform"]), params["host"]
    move = tenant_switch.Move(
        params["service"],
        params["tenant"],
        params["database"],
        params["origin"],
        params["destination"],
        params["tables"],
        params["sequences"],
        params["verify"] == "checksum",
    )
    with connect(params) as client:
        place = read_place(client, keys, move.service, move.tenant)
        if place is None or place.shard != move.source:
            raise TenantError(
                f"tenant {move.tenant} is not on shard {move.source}, but {place.shard if place else 'on none'}"
            )
        revision = place.revision
        limits = tenant_switch.Limits(params["timeout"], params["hold"])
        switch = tenant_switch.Switch(
            move,
            Rendezvous(client, keys, params["meeting"], own, members=params["members"], ttl=int(params["hold"]) + 300),
            tenant_switch.Decision(client, keys, params["meeting"], move, revision),
            limits,
            params["poolers"],
            tenant_switch.reader(client, keys, move),
            pooler=pooler(params) if own in params["poolers"] else None,
            source=server(params, params["source_port"], LONG) if own == params["source_host"] else None,
            target=server(params, params["target_port"], LONG) if own == params["target_host"] else None,
            # A connection that two processes share would be of use to neither.
            connect=lambda: tenant_switch.Decision(connect(params), keys, params["meeting"], move, revision),
        )
        return {"changed": True, "moved": switch.run()}


def pooler(params: dict[str, Any]) -> tenant_switch.Pooler:
    """This host's PgBouncer."""
    config = pgbouncer.load_config(params["config"])
    tenancy = config.tenancies.get(params["service"])
    if tenancy is None:
        raise TenantError(f"the pooler of {config.host} does not offer the tenants of {params['service']}")
    return tenant_switch.Pooler(config, tenancy, pgbouncer.console_of(config, pwd.getpwnam(config.user).pw_uid))


STATES = {
    "present": (present, ["port", "owner", "application"]),
    "observed": (observed, ["port"]),
    "absent": (absent, ["port", "database"]),
    "published": (published, ["port", "database", "destination"]),
    "copied": (copied, ["port", "database", "owner", "application", "origin", "source"]),
    "settled": (settled, ["port", "database", "here"]),
    "switched": (
        switched,
        [
            *("platform", "endpoints", "service", "tenant", "database", "origin", "destination", "host", "meeting"),
            *("source_host", "source_port", "target_host", "target_port"),
        ],
    ),
}


def main() -> None:
    """Run the module."""
    texts = ("database", "owner", "application", "service", "tenant", "origin", "destination", "host", "meeting")
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "endpoints": {"type": "list", "elements": "str"},
            "platform": {"type": "str"},
            **{name: {"type": "str"} for name in (*texts, "source_host", "target_host")},
            **{name: {"type": "int"} for name in ("port", "source_port", "target_port")},
            **{
                name: {"type": "list", "elements": "str", "default": []}
                for name in (
                    "databases",
                    "connect",
                    "extensions",
                    "tables",
                    "sequences",
                    "matviews",
                    "members",
                    "poolers",
                )
            },
            "state": {"type": "str", "choices": list(STATES), "required": True},
            **SERVER,
            "here": {"type": "bool"},
            "template": {"type": "str", "default": ""},
            "source": {
                "type": "dict",
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "user": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "tls": {"type": "path", "default": "/etc/causeway/tls/database/current"},
                    "sslmode": {
                        "type": "str",
                        "choices": ["verify-full", "verify-ca", "require", "prefer", "disable"],
                        "default": "verify-full",
                    },
                },
            },
            "verify": {"type": "str", "choices": ["checksum", "rows"], "default": "checksum"},
            "hold": {"type": "float", "default": 30.0},
            "timeout": {"type": "float", "default": 60.0},
            "config": {"type": "path", "default": "/etc/causeway/pgbouncer/clusters.json"},
        },
        required_if=[("state", state, needed) for state, (_act, needed) in STATES.items()],
        supports_check_mode=True,
    )
    act, _needed = STATES[module.params["state"]]
    try:
        result = act(module.params, module.check_mode)
    except (TenantError, PostgresqlError, PgBouncerError, RendezvousError, EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error))
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"postgresql_tenant: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
