# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL cluster through Patroni's REST API: what it looks like, what hinders a change, and the changes.

Source of the API: https://patroni.readthedocs.io/en/latest/rest_api.html (Patroni 4.0). Standard library only.
"""

from __future__ import annotations

import base64
import copy
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

LEADERS = ("leader", "standby_leader")
SYNC = ("sync_standby", "quorum_standby")
# States of a replica that follows its leader, by a connection or (after a gap) from the archive.
FOLLOWING = ("streaming", "in archive recovery")
PAUSE = 0.1
# Seconds after which a copy that was never seen to begin counts as one that was quick.
SETTLE = 15.0

# Options that the modules share, documented in plugins/doc_fragments/patroni.py.
ARGUMENTS: dict[str, Json] = {
    "endpoints": {"type": "list", "elements": "str", "required": True},
    "ca_file": {"type": "path", "default": "/etc/causeway/tls/database/current/ca.pem"},
    "cert_file": {"type": "path", "default": "/etc/causeway/tls/database/current/cert.pem"},
    "key_file": {"type": "path", "default": "/etc/causeway/tls/database/current/key.pem"},
    "username": {"type": "str", "default": "rest"},
    "password": {"type": "str", "no_log": True},
    "request_timeout": {"type": "float", "default": 5.0},
}


class PatroniError(Exception):
    """A cluster that does not answer or does not do what it was asked; the message says who and why."""


@dataclass(frozen=True)
class Member:
    """One member as the cluster's view shows it; ``lag`` is bytes behind the leader, ``None`` if nobody knows."""

    name: str
    role: str
    state: str
    host: str = ""
    port: int = 0
    api_url: str = ""
    timeline: int = 0
    lag: int | None = None
    pending_restart: bool = False
    tags: Json = field(default_factory=dict)

    @property
    def leads(self) -> bool:
        """Whether it is the leader and serves."""
        return self.role in LEADERS and self.state == "running"

    @property
    def follows(self) -> bool:
        """Whether it is a replica that receives what the leader writes."""
        return self.role not in LEADERS and self.state in FOLLOWING

    @property
    def sync(self) -> bool:
        """Whether commits wait for it."""
        return self.role in SYNC

    @property
    def endpoint(self) -> str:
        """Base of its REST API."""
        parts = urlsplit(self.api_url)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


@dataclass(frozen=True)
class Cluster:
    """The members by name, as one of them sees it."""

    scope: str
    members: dict[str, Member]
    paused: bool = False
    scheduled: Json = field(default_factory=dict)

    @property
    def leader(self) -> Member | None:
        """The member that leads and serves."""
        return next((one for one in self.members.values() if one.leads), None)

    @property
    def timeline(self) -> int:
        """The leader's timeline, 0 without a leader."""
        return self.leader.timeline if self.leader else 0

    def as_dict(self) -> Json:
        """Ready to return from a module."""
        members = [
            {
                "name": one.name,
                "role": one.role,
                "state": one.state,
                "host": one.host,
                "port": one.port,
                "timeline": one.timeline,
                "lag": one.lag,
                "sync": one.sync,
                "pending_restart": one.pending_restart,
                "endpoint": one.endpoint,
                "tags": dict(one.tags),
            }
            for one in self.members.values()
        ]
        return {
            "scope": self.scope,
            "leader": self.leader.name if self.leader else "",
            "timeline": self.timeline,
            "paused": self.paused,
            "scheduled_switchover": dict(self.scheduled),
            "sync_standbys": [one.name for one in self.members.values() if one.sync and one.follows],
            "streaming": [one.name for one in self.members.values() if one.follows],
            "pending_restart": [one.name for one in self.members.values() if one.pending_restart],
            "members": members,
        }


def parse_cluster(view: Mapping[str, Any]) -> Cluster:
    """The answer of ``GET /cluster``.

    :raises PatroniError: it is no such answer.
    """
    raw = view.get("members")
    if not isinstance(raw, list):
        raise PatroniError("Patroni's answer to /cluster has no members")
    members = {}
    for one in raw:
        lag = one.get("lag")
        members[str(one["name"])] = Member(
            name=str(one["name"]),
            role=str(one.get("role", "")),
            state=str(one.get("state", "")),
            host=str(one.get("host", "")),
            port=int(one.get("port") or 0),
            api_url=str(one.get("api_url", "")),
            timeline=int(one.get("timeline") or 0),
            lag=lag if isinstance(lag, int) else None,
            pending_restart=bool(one.get("pending_restart")),
            tags=dict(one.get("tags") or {}),
        )
    return Cluster(
        scope=str(view.get("scope", "")),
        members=dict(sorted(members.items())),
        paused=bool(view.get("pause")),
        scheduled=dict(view.get("scheduled_switchover") or {}),
    )


# --- decisions --------------------------------------------------------------------------------------------------


def health_problems(
    cluster: Cluster, *, members: Iterable[str] = (), synchronous: int = 0, max_lag: int | None = None
) -> list[str]:
    """What keeps a cluster from being whole; empty if nothing does.

    ``members`` must all be there and follow (or lead), ``synchronous`` of them must hold every commit, and none may be
    more than ``max_lag`` bytes behind.
    """
    problems = []
    leader = cluster.leader
    if leader is None:
        problems.append("there is no leader")
    for name in sorted(set(members)):
        one = cluster.members.get(name)
        if one is None:
            problems.append(f"{name} is not a member yet")
        elif not one.leads and not one.follows:
            problems.append(f"{name} is {one.role} and {one.state or 'in an unknown state'}")
        elif leader and one.timeline and one.timeline != leader.timeline:
            problems.append(f"{name} is on timeline {one.timeline}, the leader on {leader.timeline}")
    if max_lag is not None:
        for one in cluster.members.values():
            if one.follows and (one.lag is None or one.lag > max_lag):
                behind = "unknown" if one.lag is None else f"{one.lag} bytes"
                problems.append(f"{one.name} is behind by {behind}, allowed are {max_lag}")
    synced = sum(1 for one in cluster.members.values() if one.sync and one.follows)
    if synced < synchronous:
        problems.append(f"{synced} of {synchronous} synchronous standbys follow")
    return problems


def switchover_problems(cluster: Cluster, candidate: str, synchronous: bool, max_lag: int) -> list[str]:
    """Why leadership cannot move now (to ``candidate``, or to anybody if it is empty), empty if it can."""
    if cluster.leader is None:
        return ["there is no leader that could hand over; Patroni elects one by itself, or restore a member first"]
    if cluster.paused and not candidate:
        return ["the cluster is paused, so a candidate must be named"]
    problems = []
    others = [one for one in cluster.members.values() if not one.leads]
    if candidate:
        others = [one for one in others if one.name == candidate]
        if not others:
            allowed = ", ".join(sorted(set(cluster.members) - {cluster.leader.name})) or "(none)"
            return [f"candidate '{candidate}' is not a replica; allowed: {allowed}"]
    fit = []
    for one in others:
        if not one.follows:
            problems.append(f"{one.name} is {one.state or 'in an unknown state'}")
        elif one.tags.get("nofailover"):
            problems.append(f"{one.name} is tagged nofailover")
        elif synchronous and not one.sync:
            problems.append(f"{one.name} is not a synchronous standby")
        elif one.lag is None or one.lag > max_lag:
            problems.append(
                f"{one.name} is behind by {one.lag if one.lag is not None else 'an unknown number of'} bytes"
            )
        else:
            fit.append(one.name)
    return [] if fit else problems or ["there is no replica"]


def restart_order(cluster: Cluster, names: Sequence[str], pending: bool) -> list[str]:
    """Members to restart in turn: replicas first, so that the leader's turn comes when they are done.

    :raises PatroniError: a name that is not a member.
    """
    unknown = sorted(set(names) - set(cluster.members))
    if unknown:
        allowed = ", ".join(cluster.members)
        raise PatroniError(f"members: '{unknown[0]}' is not a member of {cluster.scope}; allowed: {allowed}")
    chosen = [one for one in cluster.members.values() if not names or one.name in names]
    chosen = [one for one in chosen if one.pending_restart or not pending]
    return [one.name for one in sorted(chosen, key=lambda one: (one.role in LEADERS, one.sync, one.name))]


def config_patch(
    current: Mapping[str, Any], wanted: Mapping[str, Any], exact: Iterable[str] = ("postgresql.parameters",)
) -> Json:
    """What to send to ``PATCH /config`` so that ``current`` contains ``wanted``; ``None`` removes a key.

    Keys that ``wanted`` does not name stay, except below the dotted paths in ``exact``.
    """
    return _patch(current, wanted, "", frozenset(exact))


def _patch(current: Mapping[str, Any], wanted: Mapping[str, Any], path: str, exact: frozenset[str]) -> Json:
    patch: Json = {}
    for key, value in wanted.items():
        place = f"{path}.{key}" if path else str(key)
        have = current.get(key)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            below = _patch(have, value, place, exact)
            if below:
                patch[key] = below
        elif value is None:
            if key in current:
                patch[key] = None
        elif not _same(have, value):
            patch[key] = copy.deepcopy(value)
    if path in exact:
        patch.update({key: None for key in current if key not in wanted})
    return patch


def _same(have: Any, want: Any) -> bool:
    """Whether two settings are equal to Patroni, which keeps numbers and booleans as they were written."""
    if isinstance(have, bool) or isinstance(want, bool):
        return have is want
    if isinstance(have, (int, float, str)) and isinstance(want, (int, float, str)):
        return str(have) == str(want)
    return bool(have == want)


def apply_patch(current: Mapping[str, Any], patch: Mapping[str, Any]) -> Json:
    """``current`` after Patroni has taken ``patch``."""
    result = copy.deepcopy(dict(current))
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = apply_patch(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


# --- transport --------------------------------------------------------------------------------------------------


class Client:
    """Talks to the members; those that do not answer are passed over where any may answer."""

    def __init__(
        self,
        endpoints: Sequence[str],
        ca_file: str,
        cert_file: str,
        key_file: str,
        *,
        username: str = "",
        password: str = "",
        timeout: float = 5.0,
    ) -> None:
        """``endpoints``: base addresses (https) of the members' APIs; ``timeout``: seconds per request."""
        if not endpoints:
            raise PatroniError("endpoints: name at least one member's address, such as https://10.77.1.31:17000")
        for one in endpoints:
            if urlsplit(one).scheme != "https" or not urlsplit(one).hostname:
                raise PatroniError(f"endpoints: '{one}' is not an https address")
        self.endpoints = [one.rstrip("/") for one in endpoints]
        self.timeout = timeout
        token = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}"} if password else {}
        try:
            self._context = ssl.create_default_context(cafile=ca_file)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
            self._context.load_cert_chain(cert_file, key_file)
        except (OSError, ssl.SSLError) as error:
            raise PatroniError(f"cannot load the TLS files ({ca_file}, {cert_file}, {key_file}): {error}") from error

    def request(
        self, endpoint: str, method: str, path: str, body: Any = None, *, timeout: float | None = None
    ) -> tuple[int, str]:
        """One request to one member; returns status and text.

        :raises PatroniError: it does not answer.
        """
        parts = urlsplit(endpoint)
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, context=self._context, timeout=timeout or self.timeout
        )
        headers = dict(self._headers) if method != "GET" else {}
        payload = None
        if body is not None:
            payload = json.dumps(body)
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, payload, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise PatroniError(f"{endpoint}{path}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()

    def _decode(self, endpoint: str, path: str, text: str) -> Json:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise PatroniError(f"{endpoint}{path}: not JSON: {text[:200]!r}") from error
        if not isinstance(value, dict):
            return {"value": value}
        return value

    def read(self, path: str, endpoint: str = "") -> Json:
        """``GET`` from ``endpoint``, or from the first member that answers.

        :raises PatroniError: none does.
        """
        failures = []
        for one in [endpoint] if endpoint else self.endpoints:
            try:
                status, text = self.request(one, "GET", path)
                # A member that is not fit for what was asked answers 503 and tells its state all the same.
                if status in (200, 503) and text.lstrip()[:1] in ("{", "["):
                    return self._decode(one, path, text)
                failures.append(f"{one}{path}: HTTP {status} {text[:200].strip()}")
            except PatroniError as error:
                failures.append(str(error))
        raise PatroniError("no member answers: " + "; ".join(failures))

    def act(
        self, endpoint: str, method: str, path: str, body: Any = None, *, timeout: float | None = None
    ) -> tuple[int, str]:
        """A request that changes something.

        :raises PatroniError: it was refused.
        """
        status, text = self.request(endpoint, method, path, body, timeout=timeout)
        if status >= 400:
            raise PatroniError(f"{endpoint}{path}: HTTP {status}: {text.strip() or 'no reason given'}")
        return status, text.strip()

    def cluster(self) -> Cluster:
        """The cluster as the first member that answers sees it."""
        return parse_cluster(self.read("/cluster"))

    def config(self) -> Json:
        """The dynamic configuration."""
        return self.read("/config")

    def history(self) -> list[Json]:
        """Changes of the timeline, oldest first."""
        rows = self.read("/history").get("value") or []
        names = ("timeline", "lsn", "reason", "at", "leader")
        return [dict(zip(names, row)) for row in rows]

    def write_config(self, patch: Mapping[str, Any]) -> None:
        """``PATCH /config`` through the first member that answers."""
        failures = []
        for one in self.endpoints:
            try:
                status, text = self.request(one, "PATCH", "/config", dict(patch))
            except PatroniError as error:
                failures.append(str(error))
                continue
            if status != 200:
                raise PatroniError(f"{one}/config: HTTP {status}: {text.strip()}")
            return
        raise PatroniError("no member answers: " + "; ".join(failures))

    def member(self, name: str, cluster: Cluster | None = None) -> Member:
        """A member by name.

        :raises PatroniError: there is none of that name.
        """
        found = cluster or self.cluster()
        if name not in found.members:
            raise PatroniError(f"'{name}' is not a member of {found.scope}; members: {', '.join(found.members)}")
        return found.members[name]

    def wait(self, what: str, timeout: float, ask: Callable[[Cluster], list[str]]) -> Cluster:
        """Wait until ``ask`` has nothing to complain about; returns the cluster as it is then.

        :raises PatroniError: it still has after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                cluster = self.cluster()
                problems = ask(cluster)
            except PatroniError as error:
                problems = [str(error)]
            if not problems:
                return cluster
            if time.monotonic() > deadline:
                raise PatroniError(f"{what} within {timeout:g} s: {'; '.join(problems)}")
            time.sleep(PAUSE)


def connect(params: Mapping[str, Any]) -> Client:
    """The client that the shared options describe."""
    return Client(
        params["endpoints"],
        params["ca_file"],
        params["cert_file"],
        params["key_file"],
        username=params["username"],
        password=params.get("password") or "",
        timeout=params["request_timeout"],
    )


# --- acts -------------------------------------------------------------------------------------------------------


def switch_over(client: Client, cluster: Cluster, candidate: str, timeout: float) -> Json:
    """Move leadership; returns who leads now and how long there was no leader that took writes, in seconds.

    :raises PatroniError: Patroni refused, or there is no new leader in time.
    """
    old = cluster.leader
    if old is None:
        raise PatroniError(f"{cluster.scope} has no leader that could hand over")
    began = time.monotonic()
    body = {"leader": old.name, **({"candidate": candidate} if candidate else {})}
    # Patroni answers when it is done: a demotion waits for a checkpoint.
    status, said = client.act(old.endpoint, "POST", "/switchover", body, timeout=max(timeout, client.timeout))
    others = [one.endpoint for one in cluster.members.values() if one.name != old.name and one.endpoint]
    client.endpoints = list(dict.fromkeys(others + client.endpoints))

    def moved(now: Cluster) -> list[str]:
        if now.leader is None or now.leader.name == old.name:
            return [f"{now.leader.name if now.leader else 'nobody'} leads"]
        return []

    after = client.wait(f"{cluster.scope} has no new leader", timeout, moved)
    if after.leader is None:  # moved() has seen one
        raise PatroniError(f"{cluster.scope} has no leader")
    return {
        "from": old.name,
        "to": after.leader.name,
        "status": status,
        "said": said,
        "seconds": round(time.monotonic() - began, 3),
    }


def judge_switchover(client: Client, cluster: Cluster, candidate: str, leaving: str, max_lag: int) -> tuple[str, bool]:
    """Who leads, and whether the leadership has to move.

    :raises PatroniError: it has to and cannot; all reasons at once.
    """
    for name in filter(None, (candidate, leaving)):
        client.member(name, cluster)
    leader = cluster.leader.name if cluster.leader else ""
    if leader and (leader == candidate or (leaving and leaving != leader)):
        return leader, False
    problems = switchover_problems(cluster, candidate, bool(client.config().get("synchronous_mode")), max_lag)
    if problems:
        raise PatroniError(f"{cluster.scope} cannot switch over: {'; '.join(problems)}")
    return leader, True


def restart_member(client: Client, name: str, pending: bool, timeout: float) -> Json:
    """Restart one member's PostgreSQL and wait until it leads or follows again."""
    member = client.member(name)
    began = time.monotonic()
    body: Json = {"restart_pending": True} if pending else {}
    status, said = client.act(member.endpoint, "POST", "/restart", body, timeout=timeout)

    def back(now: Cluster) -> list[str]:
        one = now.members.get(name)
        if one is None or not (one.leads or one.follows):
            return [f"{name} is {one.state if one else 'not a member'}"]
        return [f"{name} still waits for a restart"] if one.pending_restart else []

    client.wait(f"{name} is not back", timeout, back)
    return {"member": name, "said": said, "status": status, "seconds": round(time.monotonic() - began, 3)}


def reload_member(client: Client, member: Member) -> Json:
    """Have one member read its configuration again; ``changed`` tells whether Patroni found something to do."""
    status, said = client.act(member.endpoint, "POST", "/reload")
    return {"member": member.name, "said": said, "changed": status == 202}


def reinitialize(client: Client, name: str, force: bool, timeout: float) -> Json:
    """Copy a replica anew from the leader and wait until it follows."""
    cluster = client.cluster()
    member = client.member(name, cluster)
    if member.role in LEADERS:
        raise PatroniError(f"{name} leads {cluster.scope}: move the leadership away first (database_switchover)")
    if cluster.leader is None:
        raise PatroniError(f"{cluster.scope} has no leader to copy from")
    began = time.monotonic()
    _status, said = client.act(member.endpoint, "POST", "/reinitialize", {"force": force})
    left: list[bool] = []

    def copied(now: Cluster) -> list[str]:
        one = now.members.get(name)
        state = one.state if one else "gone"
        # It still follows for a moment after the request.
        if not one or not one.follows:
            left.append(True)
            return [f"{name} is {state}"]
        done = left or time.monotonic() - began > SETTLE
        return [] if done else [f"{name} has not begun"]

    client.wait(f"{name} does not follow", timeout, copied)
    return {"member": name, "said": said, "seconds": round(time.monotonic() - began, 3)}


def set_pause(client: Client, paused: bool, timeout: float) -> None:
    """Turn Patroni's maintenance mode on or off and wait until every member that answers knows."""
    client.write_config({"pause": True if paused else None})
    word = "paused" if paused else "resumed"

    def known(now: Cluster) -> list[str]:
        missing = []
        for one in now.members.values():
            try:
                seen = bool(client.read("/patroni", one.endpoint).get("pause"))
            except PatroniError:
                continue
            if seen != paused:
                missing.append(f"{one.name} is not {word} yet")
        return missing

    client.wait(f"not every member is {word}", timeout, known)
