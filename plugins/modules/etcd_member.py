#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_member
short_description: Found, start, join, restart or remove a member of the registry
description:
  - Runs on the member's host and brings its etcd to the state asked for, looking at the live cluster first. It never
    takes a member away when the others would have no quorum.
version_added: "0.1.0"
options:
  name:
    description:
      - Name of the member.
    type: str
    required: true
  state:
    description:
      - V(probed) only looks.
      - V(started) starts etcd with the data it has, or founds a cluster of O(initial_cluster), and does not wait.
      - V(healthy) waits until the member serves through a quorum.
      - V(joined) adds the member to the live cluster as a learner, starts it without data, and promotes it when it has
        caught up. A member of the same address that lost its data is replaced. Use C(throttle=1).
      - V(current) restarts etcd if it does not run with the settings, unit or roots on disk, but only while all
        other members are healthy; a leader hands over first. Use C(throttle=1).
      - V(absent) removes the member from the cluster, from any host. Whether its host lives does not matter.
      - V(retired) stops O(unit) and O(timers) on this host, as far as they exist, and sets its data aside. It refuses
        while the member is still in the cluster.
    type: str
    choices: [probed, started, healthy, joined, current, absent, retired]
    default: probed
  peer_url:
    description:
      - Peer URL of the member. Required unless O(state=absent) or O(state=retired).
    type: str
  client_url:
    description:
      - Client URL of the member. Required unless O(state=absent) or O(state=retired).
    type: str
  initial_cluster:
    description:
      - Members of a cluster to found, name to peer URL, with O(state=started).
    type: dict
  data_dir:
    description:
      - Data directory of the member.
    type: path
    default: /var/lib/etcd/causeway
  environment_file:
    description:
      - Settings of etcd.
    type: path
    default: /etc/default/etcd
  join_file:
    description:
      - Settings that only a first start reads; this module writes them.
    type: path
    default: /etc/default/etcd-join
  running_ca_file:
    description:
      - Copy of the roots that the running process uses, compared with O(ca_file).
    type: path
    default: /run/etcd/ca.pem
  unit:
    description:
      - systemd unit of etcd.
    type: str
    default: etcd.service
  timers:
    description:
      - systemd timers that belong to the member, for O(state=retired).
    type: list
    elements: str
    default: [causeway-registry-snapshot.timer, causeway-registry-defragment.timer]
  timeout:
    description:
      - Seconds to wait for the cluster or the member.
    type: float
    default: 60.0
extends_documentation_fragment:
  - causeway.platform.etcd
attributes:
  check_mode:
    support: full
    description: Tells what would change and changes nothing.
  diff_mode:
    support: none
    description: There is no content to compare.
  idempotent:
    support: full
    description: A second run changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Restart members that do not run with their settings, one at a time
  causeway.platform.etcd_member:
    platform: shop
    endpoints: ["https://10.77.1.21:2379", "https://10.77.1.22:2379", "https://10.77.1.23:2379"]
    password: "{{ causeway_secrets.registry | causeway.platform.registry_password('root') }}"
    name: core1
    peer_url: https://10.77.1.21:2380
    client_url: https://10.77.1.21:2379
    state: current
  throttle: 1
"""

RETURN = r"""
probe:
  description: What was found, for filter P(causeway.platform.registry_plan#filter).
  returned: when O(state=probed)
  type: dict
  sample: {name: core1, peer_url: "https://10.77.1.21:2380", has_data: true, founding: false, running: true,
           members: ["https://10.77.1.21:2380"]}
reasons:
  description: Why etcd was restarted, replaced or removed, or would be.
  returned: when there is something to tell
  type: list
  elements: str
  sample: [ETCD_QUOTA_BACKEND_BYTES]
seconds:
  description: How long the member was away or took to come.
  returned: when it was started, restarted or joined
  type: float
  sample: 1.7
"""

import contextlib
import os
import shutil
import time

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdClient, EtcdError, Member
from ansible_collections.causeway.platform.plugins.module_utils.etcd_member import (
    cluster_after_add,
    environment_changes,
    initial_cluster,
    own_member,
    parse_environment,
    removal_obstacles,
    restart_obstacles,
    successor,
    systemd_seconds,
)
from ansible_collections.causeway.platform.plugins.module_utils.registry import (
    ARGUMENTS,
    RegistryError,
    cluster_health,
    connect,
)

# A follower this close to the leader's log counts as caught up; etcd itself promotes a learner at 90 %.
CLOSE = 100
PAUSE = 0.25


class Host:
    """etcd on this host: its unit, its files."""

    def __init__(self, params: dict[str, Any], run: Callable[..., tuple[int, str, str]]) -> None:
        self.unit = params["unit"]
        self.data = Path(params["data_dir"])
        self.join_file = Path(params["join_file"])
        self.environment_file = Path(params["environment_file"])
        self.ca, self.running_ca = Path(params["ca_file"]), Path(params["running_ca_file"])
        self._run = run

    def systemctl(self, *arguments: str, unit: str = "") -> str:
        """Run systemctl; returns what it prints."""
        code, out, err = self._run(["systemctl", *arguments, unit or self.unit])
        if code:
            raise RegistryError(f"systemctl {' '.join(arguments)} {unit or self.unit}: {(err or out).strip()}")
        return out

    def exists(self, unit: str) -> bool:
        """Whether systemd knows a unit."""
        return self.systemctl("show", "--property=LoadState", "--value", unit=unit).strip() == "loaded"

    def show(self) -> dict[str, str]:
        """Properties of the unit."""
        names = "ActiveState,SubState,MainPID,ExecMainStartTimestamp,NeedDaemonReload,FragmentPath,DropInPaths"
        out = self.systemctl("show", f"--property={names}", "--timestamp=us+utc")
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    @property
    def running(self) -> bool:
        """Whether etcd runs or is starting."""
        return self.show().get("ActiveState") in ("active", "activating", "reloading")

    @property
    def has_data(self) -> bool:
        """Whether there is a write-ahead log."""
        return (self.data / "member" / "wal").is_dir() and any((self.data / "member" / "wal").iterdir())

    @property
    def founding(self) -> bool:
        """Whether the last start was to found a cluster that was never seen healthy."""
        with contextlib.suppress(FileNotFoundError):
            return parse_environment(self.join_file.read_text()).get("ETCD_INITIAL_CLUSTER_STATE") == "new"
        return False

    def write_join(self, cluster: str, state: str, token: str) -> None:
        """Settings for the next first start."""
        temporary = self.join_file.with_suffix(".part")
        temporary.write_text(
            "# Managed by causeway.platform.etcd_member; only a start without data reads this.\n"
            f"ETCD_INITIAL_CLUSTER={cluster}\nETCD_INITIAL_CLUSTER_STATE={state}\nETCD_INITIAL_CLUSTER_TOKEN={token}\n"
        )
        temporary.chmod(0o644)
        temporary.replace(self.join_file)

    def settle(self) -> None:
        """From now on a start without data must never found a cluster."""
        text = self.join_file.read_text().replace("CLUSTER_STATE=new", "CLUSTER_STATE=existing")
        temporary = self.join_file.with_suffix(".part")
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.replace(self.join_file)

    def set_aside(self) -> None:
        """Move data away that the cluster does not know any more (one generation is kept)."""
        if self.data.exists():
            stale = self.data.with_name(self.data.name + ".stale")
            shutil.rmtree(stale, ignore_errors=True)
            self.data.rename(stale)

    def stale(self) -> list[str]:
        """Why the running process should be restarted."""
        shown = self.show()
        pid = int(shown.get("MainPID", "0"))
        if not pid:
            return ["it does not run"]
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").replace("\0", "\n")
        reasons = environment_changes(parse_environment(self.environment_file.read_text()), parse_environment(raw))
        started = systemd_seconds(shown.get("ExecMainStartTimestamp", ""))
        for path in (shown.get("FragmentPath", ""), *shown.get("DropInPaths", "").split()):
            if path and Path(path).stat().st_mtime > started:
                reasons.append(path)
        if self.running_ca.exists() and self.running_ca.read_bytes() != self.ca.read_bytes():
            reasons.append(str(self.ca))
        return reasons


class Act:
    """The states, each with its look, its decision and its act."""

    def __init__(self, params: dict[str, Any], host: Host, client: EtcdClient, check_mode: bool) -> None:
        self.params, self.host, self.client, self.check_mode = params, host, client, check_mode
        self.name, self.peer_url, self.url = params["name"], params["peer_url"], params["client_url"]
        self.deadline = time.monotonic() + params["timeout"]

    def until(self, what: str, ask: Callable[[], str]) -> None:
        """Wait until ``ask`` has nothing to complain about."""
        while True:
            try:
                reason = ask()
            except EtcdError as error:
                reason = str(error)
            if not reason:
                return
            if time.monotonic() > self.deadline:
                raise RegistryError(f"{what} within {self.params['timeout']:g} s: {reason}")
            time.sleep(PAUSE)

    def members(self) -> list[Member] | None:
        """Members of the live cluster, ``None`` when no member answers."""
        try:
            return self.client.member_list()
        except EtcdError as error:
            if error.code is not None and not hasattr(error, "failures"):
                raise
            return None

    def probed(self) -> dict[str, Any]:
        """Only look."""
        try:
            members = self.members()
        except EtcdError:
            members = None
        return {
            "probe": {
                "name": self.name,
                "peer_url": self.peer_url,
                "has_data": self.host.has_data,
                "founding": self.host.founding,
                "running": self.host.running,
                "members": None if members is None else sorted(url for one in members for url in one.peer_urls),
            }
        }

    def started(self) -> dict[str, Any]:
        """Start with data, or found."""
        if self.host.running:
            return {"changed": False}
        founds = not self.host.has_data
        if founds and not self.params["initial_cluster"]:
            raise RegistryError(f"member {self.name} has no data in {self.host.data}; join it instead of starting it")
        if not self.check_mode:
            if founds:
                cluster = initial_cluster(self.params["initial_cluster"])
                self.host.write_join(cluster, "new", self.params["platform"])
            elif not self.host.join_file.exists():
                # A host whose /etc is new, with its old data: the unit only asks for the file.
                self.host.write_join("", "existing", self.params["platform"])
            self.host.systemctl("enable", "--quiet")
            self.host.systemctl("start", "--no-block")
        return {"changed": True}

    def healthy(self) -> dict[str, Any]:
        """Wait."""
        started = time.monotonic()
        self.until(f"member {self.name} is not healthy", lambda: self.client.health(self.url))
        if self.host.founding and not self.check_mode:
            self.host.settle()
        return {"changed": False, "seconds": round(time.monotonic() - started, 3)}

    def joined(self) -> dict[str, Any]:
        """Add, start, catch up, promote."""
        members = self.members()
        if members is None:
            raise RegistryError(
                f"member {self.name} has no data and no other member answers; bring a majority of the others back, "
                f"or restore a snapshot"
            )
        own = own_member(members, self.peer_url)
        if own and own.name and not own.learner and self.host.has_data:
            return {"changed": False}
        reasons = [f"{self.name} lost its data" if own else f"{self.name} is not a member"]
        if self.check_mode:
            return {"changed": True, "reasons": reasons}
        started = time.monotonic()
        resume = own is not None and own.learner and bool(own.name) and self.host.has_data
        if own and not resume:
            obstacles = removal_obstacles(cluster_health(self.client), own.id)
            if obstacles:
                raise RegistryError(f"member {self.name} cannot be replaced: {'; '.join(obstacles)}")
        if not resume:
            self.host.systemctl("stop")
            if own:
                self.client.member_remove(own.id)
            self.host.set_aside()
            own = self.add()
            self.host.write_join(
                cluster_after_add(self.client.member_list(), own.id, self.name), "existing", self.params["platform"]
            )
        if own is None:
            raise RegistryError(f"member {self.name} is in no cluster")
        member = own.id
        self.host.systemctl("enable", "--quiet")
        self.host.systemctl("start", "--no-block")
        self.until(f"member {self.name} did not catch up", lambda: self.promote(member))
        self.until(f"member {self.name} is not healthy", lambda: self.client.health(self.url))
        return {"changed": True, "reasons": reasons, "seconds": round(time.monotonic() - started, 3)}

    def add(self) -> Member:
        """Announce this member as a learner; the cluster takes one after the other and only while it is healthy."""
        added: list[Member] = []

        def ask() -> str:
            added.append(self.client.member_add([self.peer_url], learner=True))
            return ""

        self.until(f"member {self.name} could not be added", ask)
        return added[-1]

    def promote(self, member: int) -> str:
        """Make the learner a voter; an empty answer means done."""
        found = next((one for one in self.client.member_list() if one.id == member), None)
        if found is None:
            raise RegistryError(f"member {self.name} was removed by somebody else while it was joining")
        if found.learner:
            self.client.member_promote(member)
        return ""

    def current(self) -> dict[str, Any]:
        """Restart if it is stale and may be."""
        reasons = self.host.stale()
        if not reasons:
            return {"changed": False}
        if self.check_mode:
            return {"changed": True, "reasons": reasons}
        own = own_member(self.client.member_list(), self.peer_url)
        if own is None:
            raise RegistryError(f"{self.name} ({self.peer_url}) is not a member of the registry")
        member = own.id

        def ask() -> str:
            health = cluster_health(self.client)
            obstacles = restart_obstacles(health, member)
            if not obstacles and any(one.status and one.status.is_leader and one.member.id == member for one in health):
                heir = successor(health, member)
                if heir:
                    self.client.move_leader(heir, self.url)
            return "; ".join(obstacles)

        self.until(f"member {self.name} may not be restarted", ask)
        started = time.monotonic()
        self.host.systemctl("restart")
        self.until(f"member {self.name} did not come back", lambda: self.client.health(self.url))
        self.until(f"member {self.name} did not catch up", self.behind)
        return {"changed": True, "reasons": reasons, "seconds": round(time.monotonic() - started, 3)}

    def behind(self) -> str:
        """Empty when this member's log is as long as the others'."""
        health = cluster_health(self.client)
        logs = {one.member.name: one.status.raft_index for one in health if one.status}
        missing = max(logs.values(), default=0) - logs.get(self.name, 0)
        return f"{missing} entries behind" if missing > CLOSE else ""

    def absent(self) -> dict[str, Any]:
        """Remove."""
        member = next((one for one in self.client.member_list() if self.name == one.name), None)
        if member is None and self.peer_url:
            member = own_member(self.client.member_list(), self.peer_url)
        if member is None:
            return {"changed": False}
        health = cluster_health(self.client)
        obstacles = removal_obstacles(health, member.id)
        if obstacles:
            raise RegistryError(f"member {self.name} may not be removed: {'; '.join(obstacles)}")
        if not self.check_mode:
            leading = next(
                (one for one in health if one.member.id == member.id and one.status and one.status.is_leader), None
            )
            heir = successor(health, member.id)
            if leading and leading.status and heir:
                self.client.move_leader(heir, leading.status.endpoint)
            self.client.member_remove(member.id)
        return {"changed": True, "reasons": [f"member {member.id:x} of {', '.join(member.peer_urls)}"]}

    def retired(self) -> dict[str, Any]:
        """Stop what is left of a removed member on this host."""
        if any(one.name == self.name for one in self.client.member_list()):
            raise RegistryError(f"{self.name} is still a member of the registry; remove it with state=absent first")
        present = [unit for unit in (*self.params["timers"], self.host.unit) if self.host.exists(unit)]
        changed = bool(present) and (self.host.has_data or self.host.join_file.exists())
        if changed and not self.check_mode:
            for unit in present:
                self.host.systemctl("disable", "--now", "--quiet", unit=unit)
            self.host.set_aside()
            self.host.join_file.unlink(missing_ok=True)
        return {"changed": changed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["probed", "started", "healthy", "joined", "current", "absent", "retired"],
                "default": "probed",
            },
            "peer_url": {"type": "str"},
            "client_url": {"type": "str"},
            "initial_cluster": {"type": "dict"},
            "data_dir": {"type": "path", "default": "/var/lib/etcd/causeway"},
            "environment_file": {"type": "path", "default": "/etc/default/etcd"},
            "join_file": {"type": "path", "default": "/etc/default/etcd-join"},
            "running_ca_file": {"type": "path", "default": "/run/etcd/ca.pem"},
            "unit": {"type": "str", "default": "etcd.service"},
            "timers": {
                "type": "list",
                "elements": "str",
                "default": ["causeway-registry-snapshot.timer", "causeway-registry-defragment.timer"],
            },
            "timeout": {"type": "float", "default": 60.0},
        },
        required_if=[
            (("state", state, ["peer_url", "client_url"]))
            for state in ("probed", "started", "healthy", "joined", "current")
        ],
        supports_check_mode=True,
    )
    # A member that is asked for a list must not be this one, which may just be starting.
    params = module.params
    state = params["state"]
    others = [url for url in params["endpoints"] if url != params["client_url"]] or params["endpoints"]
    endpoints = others if state in ("joined", "probed") else params["endpoints"]
    result: dict[str, Any] = {"changed": False}
    os.umask(0o022)
    try:
        with connect({**params, "endpoints": endpoints}) as client:
            act = Act(params, Host(params, module.run_command), client, module.check_mode)
            result.update(getattr(act, state)())
    except (EtcdError, RegistryError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"member {params['name']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
