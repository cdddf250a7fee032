# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about members of the registry: who founds, starts, joins, restarts or leaves it, and when it may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.etcd import Member
from ansible_collections.causeway.platform.plugins.module_utils.registry import MemberHealth, RegistryError, quorum

# `systemctl show --timestamp=us+utc` prints "Sun 2026-11-22 15:44:54.814214 UTC".
SYSTEMD_TIME = "%a %Y-%m-%d %H:%M:%S.%f UTC"


@dataclass(frozen=True)
class Probe:
    """What a host says of its own member.

    :ivar has_data: there is a write-ahead log.
    :ivar founding: it was told to found a cluster that has not been seen healthy yet.
    :ivar members: peer URLs of the live cluster's members as seen from here, ``None`` when no member answers.
    """

    name: str
    peer_url: str
    has_data: bool = False
    founding: bool = False
    members: Sequence[str] | None = None


def plan_start(expected: Sequence[str], probes: Iterable[Probe]) -> dict[str, str]:
    """What each probed host has to do: ``bootstrap``, ``start`` or ``join``.

    ``expected`` are the names of all hosts that should carry a member. The live cluster decides, never their order:
    a cluster is founded only when no host has one and every host takes part.
    """
    found = {probe.name: probe for probe in probes}
    live = next((probe.members for probe in found.values() if probe.members is not None), None)
    if live is not None:
        return {name: "start" if probe.has_data and probe.peer_url in live else "join" for name, probe in found.items()}
    old = [name for name, probe in found.items() if probe.has_data and not probe.founding]
    if old:
        # The cluster was stopped: those with data bring it back, the others join it then.
        return {name: "start" if probe.has_data else "join" for name, probe in found.items()}
    absent = sorted(set(expected) - set(found))
    if absent:
        raise RegistryError(
            f"no member of the registry answers and none of {', '.join(sorted(found)) or 'the hosts'} has data; "
            f"a new registry needs all its hosts, not reached: {', '.join(absent)}"
        )
    return {name: "start" if probe.has_data else "bootstrap" for name, probe in found.items()}


def initial_cluster(members: Mapping[str, str]) -> str:
    """etcd's ``name=peer-url,...``."""
    return ",".join(f"{name}={url}" for name, url in sorted(members.items()))


def cluster_after_add(members: Iterable[Member], own: int, name: str) -> str:
    """The ``initial-cluster`` with which the member ``own``, just added, has to start."""
    known = {}
    for member in members:
        for url in member.peer_urls:
            # Another member that was added and never started has no name; any unique one will do.
            known[name if member.id == own else member.name or f"unstarted-{member.id:x}"] = url
    return initial_cluster(known)


def own_member(members: Iterable[Member], peer_url: str) -> Member | None:
    """The member that has this peer URL."""
    return next((member for member in members if peer_url in member.peer_urls), None)


def restart_obstacles(health: Sequence[MemberHealth], own: int) -> list[str]:
    """Why the member ``own`` may not be stopped now; empty when it may.

    All others must be healthy, and without it there must be a quorum. The only member of a cluster may always.
    """
    voters = [one for one in health if not one.member.learner]
    if len(voters) <= 1:
        return []
    others = [one for one in voters if one.member.id != own]
    sick = [f"{one.member.name or 'unstarted member'} is not healthy: {one.reason}" for one in others if one.reason]
    well = len(others) - len(sick)
    if not sick and well < quorum(len(voters)):
        sick.append(f"{len(voters)} members need {quorum(len(voters))} for a quorum, {well} would be left")
    return sick


def removal_obstacles(health: Sequence[MemberHealth], own: int) -> list[str]:
    """Why the member ``own`` may not be removed now; empty when it may.

    Those left must have a quorum among themselves, and at least one must be left.
    """
    gone = next((one for one in health if one.member.id == own), None)
    left = [one for one in health if one.member.id != own and not one.member.learner]
    if gone is None or gone.member.learner:
        return []
    if not left:
        return ["it is the only member"]
    well = sum(1 for one in left if not one.reason)
    if well < quorum(len(left)):
        sick = ", ".join(one.member.name or f"{one.member.id:x}" for one in left if one.reason)
        return [
            f"of the {len(left)} members left {quorum(len(left))} must be healthy, {well} are (not healthy: {sick})"
        ]
    return []


def successor(health: Sequence[MemberHealth], own: int) -> int:
    """The healthy voter with the longest log beside ``own``, 0 without one: it takes the leadership over."""
    fit = [one for one in health if one.member.id != own and not one.member.learner and not one.reason and one.status]
    return max(fit, key=lambda one: one.status.raft_index if one.status else 0).member.id if fit else 0


def parse_environment(text: str) -> dict[str, str]:
    """Settings of a systemd EnvironmentFile= as our role writes it: ``NAME=value``, no quotes, comments."""
    settings = {}
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            settings[name] = value
    return settings


def environment_changes(wanted: Mapping[str, str], running: Mapping[str, str]) -> list[str]:
    """Names of settings with which the running process does not run."""
    # What only the first start reads does not make a process stale.
    ignored = {"ETCD_INITIAL_CLUSTER", "ETCD_INITIAL_CLUSTER_STATE", "ETCD_INITIAL_CLUSTER_TOKEN"}
    names = {name for name in (*wanted, *running) if name.startswith("ETCD_")} - ignored
    return sorted(name for name in names if wanted.get(name) != running.get(name))


def systemd_seconds(value: str) -> float:
    """A timestamp of ``systemctl show --timestamp=us+utc`` as seconds since the epoch, 0 when it is empty."""
    if not value.strip():
        return 0.0
    return datetime.strptime(value.strip(), SYSTEMD_TIME).replace(tzinfo=timezone.utc).timestamp()


def summary(health: Sequence[MemberHealth]) -> str:
    """One line about all members, for messages."""
    return ", ".join(f"{one.member.name or f'{one.member.id:x}'}: {one.reason or 'healthy'}" for one in health)


def probe_from(facts: Mapping[str, Any]) -> Probe:
    """A probe from what module ``etcd_member`` returned."""
    return Probe(
        name=facts["name"],
        peer_url=facts["peer_url"],
        has_data=bool(facts["has_data"]),
        founding=bool(facts["founding"]),
        members=facts["members"],
    )
