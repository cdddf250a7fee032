# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the platform keeps in etcd (docs/design.md, section 4), and the waits for the proxies' acknowledgements."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.etcd import (
    CompactedError,
    CompareFailed,
    EtcdClient,
    EtcdError,
    KeyValue,
    Member,
    NotFound,
    Permission,
    Status,
    Unavailable,
    WatchBatch,
    compare_absent,
    compare_mod,
    op_delete,
    op_get,
    op_put,
    prefix_end,
)

if TYPE_CHECKING:
    from typing import TypeAlias

POOLS = ("stable", "candidate")
OPTIONAL_POOLS = ("baseline",)  # named in weights only while it has some
ALL_STABLE = {"stable": 100, "candidate": 0}
LABEL = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
INSTANCE = re.compile(r"^(?P<host>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)/(?P<slot>[0-9])$")
# How long to rest before asking again when the registry cannot answer in the middle of a wait.
RETRY_PAUSE = 0.5

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise


# Options that all registry modules share, documented in plugins/doc_fragments/etcd.py.
ARGUMENTS: dict[str, Json] = {
    "endpoints": {"type": "list", "elements": "str", "required": True},
    "ca_file": {"type": "path", "default": "/etc/causeway/tls/host/current/ca.pem"},
    "cert_file": {"type": "path", "default": "/etc/causeway/tls/host/current/cert.pem"},
    "key_file": {"type": "path", "default": "/etc/causeway/tls/host/current/key.pem"},
    "username": {"type": "str", "default": "root"},
    "password": {"type": "str", "no_log": True},
    "request_timeout": {"type": "float", "default": 5.0},
    "platform": {"type": "str", "required": True},
}


def connect(params: Mapping[str, Any]) -> EtcdClient:
    """The client that the shared options describe."""
    return EtcdClient(
        params["endpoints"],
        params["ca_file"],
        params["cert_file"],
        params["key_file"],
        username=params["username"] if params.get("password") else "",
        password=params.get("password") or "",
        timeout=params["request_timeout"],
    )


class RegistryError(Exception):
    """A request that the registry's content does not allow; the message says where, what, and what is allowed."""


def now() -> str:
    """The time as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def password(secret: str, user: str) -> str:
    """The etcd password of ``user``: hex HMAC-SHA256 of ``etcd/<user>`` under the platform's registry secret."""
    return hmac.new(secret.encode(), f"etcd/{user}".encode(), hashlib.sha256).hexdigest()


def check_label(what: str, value: str) -> str:
    """``value`` if it is a DNS label."""
    if not LABEL.match(value):
        raise RegistryError(
            f"{what}: '{value}' is not a DNS label (lower-case letters, digits and inner dashes, at most 63)"
        )
    return value


@dataclass(frozen=True)
class Keys:
    """Names of the platform's keys."""

    platform: str

    def __post_init__(self) -> None:
        check_label("platform", self.platform)

    @property
    def prefix(self) -> str:
        """Everything of this platform."""
        return f"/causeway/{self.platform}/"

    def of(self, kind: str, *parts: object) -> str:
        """A key, ``of("drains", "orders", "app1", 0)``."""
        return self.prefix + "/".join([kind, *(str(part) for part in parts)])


def endpoints(hosts: Mapping[str, Any], component: str = "registry", port: int = 2379) -> list[str]:
    """Client URLs of the hosts that carry ``component``, by host name."""
    return [
        f"https://{host['address']}:{port}"
        for _name, host in sorted(hosts.items())
        if component in (host.get("components") or ())
    ]


def peers(hosts: Mapping[str, Any], port: int = 2380) -> dict[str, str]:
    """Peer URLs of the hosts that carry a member of the registry, by name."""
    return {
        name: f"https://{host['address']}:{port}"
        for name, host in sorted(hosts.items())
        if "registry" in (host.get("components") or ())
    }


def placed_services(hosts: Iterable[str], services: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each of ``hosts`` with the sorted names of the services that have instances on it."""
    placed: dict[str, set[str]] = {host: set() for host in hosts}
    for name, service in services.items():
        for one in (service.get("instances") or {}).get("placed") or ():
            if one["host"] not in placed:
                raise RegistryError(
                    f"service {name} has an instance on {one['host']}, which is not a host of the platform"
                )
            placed[one["host"]].add(name)
    return {host: sorted(names) for host, names in placed.items()}


def parse_instance(instance: str) -> tuple[str, int]:
    """``app1/0`` as host and slot."""
    found = INSTANCE.match(instance)
    if not found:
        raise RegistryError(f"instance: '{instance}' is not of the form host/slot, such as app1/0 (slots 0 to 9)")
    return found["host"], int(found["slot"])


@dataclass
class Mirror:
    """A local copy of the platform's keys at one revision, kept up to date from a watch."""

    keys: Keys
    kvs: dict[str, KeyValue] = field(default_factory=dict)
    revision: int = 0

    @classmethod
    def of(cls, keys: Keys, kvs: Iterable[KeyValue], revision: int) -> Mirror:
        """A mirror from the answer to a read."""
        return cls(keys, {kv.key: kv for kv in kvs}, revision)

    def apply(self, batch: WatchBatch) -> None:
        """Bring the copy up to the batch's revision."""
        for event in batch.events:
            if event.type == "delete":
                self.kvs.pop(event.kv.key, None)
            else:
                self.kvs[event.kv.key] = event.kv
        self.revision = max(self.revision, batch.revision)

    def kv(self, kind: str, *parts: object) -> KeyValue | None:
        """One key."""
        return self.kvs.get(self.keys.of(kind, *parts))

    def value(self, kind: str, *parts: object) -> Any:
        """The value of one key, ``None`` when it is absent."""
        found = self.kv(kind, *parts)
        return None if found is None else _value(found)

    def below(self, kind: str, *parts: object) -> dict[str, KeyValue]:
        """Keys below a kind, named by what follows it."""
        start = self.keys.of(kind, *parts) + "/"
        return {key[len(start) :]: kv for key, kv in self.kvs.items() if key.startswith(start)}


def _value(kv: KeyValue) -> Any:
    try:
        return kv.json()
    except ValueError as error:
        raise RegistryError(f"{kv.key} at revision {kv.mod_revision} does not hold JSON: {error}") from error


@dataclass(frozen=True)
class Acknowledgement:
    """What one proxy in front of a service says.

    ``at`` is RFC 3339; ``active`` maps a draining instance to its requests in flight.
    """

    revision: int
    at: str = ""
    active: Mapping[str, int] | None = None


def proxies_in_front(mirror: Mirror, service: str) -> list[str]:
    """Live proxies (``host/proxy``) that send traffic to ``service``."""
    return sorted(
        name for name, kv in mirror.below("proxies").items() if service in ((_value(kv) or {}).get("services") or [])
    )


def acknowledgement(mirror: Mirror, proxy: str, service: str) -> Acknowledgement:
    """The last acknowledgement of ``proxy`` for ``service``; revision 0 when there is none."""
    said = ((mirror.value("acks", proxy) or {}).get("services") or {}).get(service) or {}
    active = said.get("active")
    return Acknowledgement(
        revision=int(said.get("revision") or 0),
        at=str(said.get("at") or ""),
        active=None if active is None else {name: int(count) for name, count in active.items()},
    )


def waiting_for(mirror: Mirror, service: str, revision: int, idle: Sequence[str] = ()) -> dict[str, str]:
    """Proxies in front of ``service`` that are not there yet, each with the reason.

    A proxy is there when it acknowledged ``revision`` or a later one and reports no request in flight for the
    instances in ``idle``. A proxy that has not reported on a registered one of them is not there.
    """
    missing: dict[str, str] = {}
    # Of an instance that is not registered, no proxy needs to know anything.
    registered = [name for name in idle if mirror.kv("services", service, name) is not None]
    for proxy in proxies_in_front(mirror, service):
        said = acknowledgement(mirror, proxy, service)
        if said.revision < revision:
            missing[proxy] = f"acknowledged revision {said.revision}, {revision} is needed"
            continue
        active = said.active or {}
        unknown = [name for name in registered if name not in active]
        busy = {name: active[name] for name in idle if active.get(name)}
        if unknown:
            missing[proxy] = f"has not reported its requests in flight to {', '.join(unknown)}"
        elif busy:
            missing[proxy] = ", ".join(f"{count} requests in flight to {name}" for name, count in sorted(busy.items()))
    return missing


def instances(mirror: Mirror, service: str) -> list[Json]:
    """Registered instances of a service, as in the registry, with their revision and whether they are draining."""
    found = []
    for name, kv in sorted(mirror.below("services", service).items()):
        found.append(
            {**_value(kv), "revision": kv.mod_revision, "draining": mirror.kv("drains", service, name) is not None}
        )
    return found


def live_pools(mirror: Mirror, service: str) -> dict[str, int]:
    """How many instances of each pool are registered and not draining."""
    counts = dict.fromkeys(POOLS, 0)
    for one in instances(mirror, service):
        if not one["draining"]:
            pool = str(one.get("pool") or "stable")
            counts[pool] = counts.get(pool, 0) + 1
    return counts


def weights(mirror: Mirror, service: str) -> tuple[dict[str, int], int]:
    """Traffic weights of a service and the revision of their key (0: absent, all goes to ``stable``)."""
    kv = mirror.kv("traffic", service)
    if kv is None:
        return dict(ALL_STABLE), 0
    return {**dict.fromkeys(POOLS, 0), **(_value(kv).get("weights") or {})}, kv.mod_revision


def service_revision(mirror: Mirror, service: str) -> int:
    """Highest revision of a key that still exists of the service; deletions cannot be seen here."""
    kvs = [*mirror.below("services", service).values(), *mirror.below("drains", service).values()]
    traffic = mirror.kv("traffic", service)
    return max([kv.mod_revision for kv in kvs] + [traffic.mod_revision if traffic else 0])


def services(mirror: Mirror) -> list[str]:
    """Names of all services that have a key of any kind."""
    names = {name.split("/")[0] for kind in ("services", "drains") for name in mirror.below(kind)}
    names |= {name for kind in ("traffic", "releases", "locks") for name in mirror.below(kind)}
    for kv in mirror.below("proxies").values():
        names |= set((_value(kv) or {}).get("services") or [])
    return sorted(names)


def describe(mirror: Mirror, service: str) -> Json:
    """All that the registry knows of one service, ready to return from a module."""
    split, revision = weights(mirror, service)
    release, lock, command = (mirror.kv(kind, service) for kind in ("releases", "locks", "commands"))
    proxies = {}
    for name in proxies_in_front(mirror, service):
        said = acknowledgement(mirror, name, service)
        proxies[name] = {"revision": said.revision, "at": said.at, "active": dict(said.active or {})}
    return {
        "revision": service_revision(mirror, service),
        "instances": instances(mirror, service),
        "drains": {name: _value(kv) for name, kv in sorted(mirror.below("drains", service).items())},
        "traffic": {"weights": split, "revision": revision},
        "release": {**_value(release), "revision": release.mod_revision} if release else {},
        "lock": {**_value(lock), "revision": lock.mod_revision} if lock else {},
        "command": {**_value(command), "revision": command.mod_revision} if command else {},
        "proxies": proxies,
    }


# --- the cluster ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberHealth:
    """One member as seen from here; ``reason`` is empty when it serves reads through the quorum."""

    member: Member
    status: Status | None
    reason: str

    def as_dict(self, leader: int) -> Json:
        """Ready to return from a module; ids are hexadecimal as in etcdctl."""
        status = self.status
        return {
            "id": f"{self.member.id:x}",
            "name": self.member.name,
            "peer_urls": list(self.member.peer_urls),
            "endpoint": self.member.client_urls[0] if self.member.client_urls else "",
            "started": bool(self.member.name),
            "learner": self.member.learner,
            "healthy": not self.reason,
            "reason": self.reason,
            "leader": bool(leader) and self.member.id == leader,
            "version": status.version if status else "",
            "db_size": status.db_size if status else 0,
            "db_size_in_use": status.db_size_in_use if status else 0,
            "revision": status.revision if status else 0,
        }


def cluster_health(client: EtcdClient) -> list[MemberHealth]:
    """State of every member, asked at its own address all at the same time."""
    members = client.member_list()
    found: dict[int, MemberHealth] = {}

    def ask(member: Member) -> None:
        if not member.client_urls:
            found[member.id] = MemberHealth(member, None, "it has never started")
            return
        url = member.client_urls[0]
        try:
            status = client.status(url)
        except EtcdError as error:
            found[member.id] = MemberHealth(member, None, str(error))
            return
        found[member.id] = MemberHealth(member, status, client.health(url) if not member.learner else "")

    threads = [threading.Thread(target=ask, args=(member,), daemon=True) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found.values(), key=lambda health: health.member.name)


def leader_of(health: Iterable[MemberHealth]) -> int:
    """Id of the leader that a healthy member follows, 0 without one."""
    leaders = [one.status.leader for one in health if one.status is not None and not one.reason]
    return leaders[0] if leaders else 0


def quorum(voters: int) -> int:
    """How many of ``voters`` voting members must live (Raft: a majority)."""
    return voters // 2 + 1


# --- waiting ----------------------------------------------------------------------------------------------------


def read(client: EtcdClient, keys: Keys) -> Mirror:
    """All keys of the platform."""
    kvs, revision = client.range(keys.prefix)
    return Mirror.of(keys, kvs, revision)


def follow(client: EtcdClient, keys: Keys, timeout: float) -> Iterator[Mirror]:
    """The mirror at once, then after every change, for at most ``timeout`` seconds.

    Ends when time is up; loss of the registry meanwhile is waited out.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            mirror = read(client, keys)
            yield mirror
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            with client.watch(keys.prefix, mirror.revision + 1) as watch:
                alarm = threading.Timer(remaining, watch.close)
                alarm.daemon = True
                alarm.start()
                try:
                    for batch in watch:
                        mirror.apply(batch)
                        yield mirror
                finally:
                    alarm.cancel()
        except (Unavailable, CompactedError):
            if time.monotonic() + RETRY_PAUSE >= deadline:
                raise
            time.sleep(RETRY_PAUSE)
        if time.monotonic() >= deadline:
            return


@dataclass
class Acks:
    """Outcome of a wait: who acknowledged which revision after how many seconds."""

    revision: int = 0
    proxies: dict[str, Json] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def note(self, mirror: Mirror, service: str, elapsed: float) -> None:
        """Write down the proxies that are there now and were not before."""
        for name in proxies_in_front(mirror, service):
            if name in self.missing:
                self.proxies.pop(name, None)
                continue
            said = acknowledgement(mirror, name, service)
            before = self.proxies.get(name)
            self.proxies[name] = {
                "revision": said.revision,
                "active": sum((said.active or {}).values()),
                "after_seconds": before["after_seconds"] if before else round(elapsed, 3),
            }

    def require(self, what: str, timeout: float) -> Acks:
        """This, or the error that names who is missing."""
        if self.missing:
            late = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.missing.items()))
            raise RegistryError(f"{what}: not finished within {timeout:g} s: {late}")
        return self


def wait_for_acks(
    client: EtcdClient,
    keys: Keys,
    service: str,
    revision: int,
    timeout: float,
    *,
    idle: Sequence[str] = (),
    minimum: int = 0,
) -> Acks:
    """Wait until every live proxy in front of ``service`` acknowledged ``revision`` and ``idle`` instances are idle."""
    started = time.monotonic()
    acks = Acks(revision)
    for mirror in follow(client, keys, timeout):
        acks.missing = waiting_for(mirror, service, revision, idle)
        if len(proxies_in_front(mirror, service)) < minimum:
            acks.missing["proxies"] = f"fewer than {minimum} live proxies are in front of {service}"
        acks.seconds = time.monotonic() - started
        acks.note(mirror, service, acks.seconds)
        if not acks.missing:
            break
    acks.seconds = round(acks.seconds, 3)
    return acks


def wait_until_registered(
    client: EtcdClient,
    keys: Keys,
    service: str,
    names: Sequence[str],
    timeout: float,
    *,
    revision: int = 0,
    version: str = "",
    minimum: int = 0,
) -> Acks:
    """Wait until the agents published ``names`` (running ``version``) and every proxy knows."""
    started = time.monotonic()
    acks = Acks(revision)
    for mirror in follow(client, keys, timeout):
        acks.missing = {}
        needed = revision
        for name in names:
            kv = mirror.kv("services", service, name)
            if kv is None:
                acks.missing[name] = "is not registered, its agent does not see it healthy"
                continue
            found = str(_value(kv).get("version", ""))
            if version and found != version:
                acks.missing[name] = f"runs version {found}, {version} is needed"
            needed = max(needed, kv.mod_revision)
        acks.revision = needed
        acks.missing.update(waiting_for(mirror, service, needed))
        if len(proxies_in_front(mirror, service)) < minimum:
            acks.missing["proxies"] = f"fewer than {minimum} live proxies are in front of {service}"
        acks.seconds = time.monotonic() - started
        acks.note(mirror, service, acks.seconds)
        if not acks.missing:
            break
    acks.seconds = round(acks.seconds, 3)
    return acks


# --- instances --------------------------------------------------------------------------------------------------


def plan_instances(mirror: Mirror, service: str, names: Sequence[str], state: str) -> list[Json]:
    """Operations (``op_*``, with the drain marker's value still empty) that bring instances to ``state``.

    ``state`` is ``drained``, ``present`` or ``removed``; nothing to do gives an empty list.
    """
    check_label("service", service)
    operations: list[Json] = []
    for name in names:
        parse_instance(name)
        drain, entry = mirror.keys.of("drains", service, name), mirror.keys.of("services", service, name)
        if state == "drained" and drain not in mirror.kvs:
            operations.append({"op": "put", "key": drain})
        elif state == "present" and drain in mirror.kvs:
            operations.append({"op": "delete", "key": drain})
        elif state == "removed":
            operations += [{"op": "delete", "key": key} for key in (drain, entry) if key in mirror.kvs]
    return operations


def apply_instances(client: EtcdClient, operations: Sequence[Json], by: str) -> int:
    """Carry a plan of :func:`plan_instances` out in one transaction; returns its revision, 0 when there is no plan."""
    if not operations:
        return 0
    marker = json.dumps({"by": by, "at": now()}, sort_keys=True)
    acts = [op_put(one["key"], marker) if one["op"] == "put" else op_delete(one["key"]) for one in operations]
    # Both kinds of operation may be carried out twice, so an unknown outcome is asked again by the caller's next run.
    return client.txn([], acts).revision


def drain_revision(mirror: Mirror, service: str, names: Sequence[str]) -> int:
    """Revision of the last of the markers of ``names``."""
    return max([kv.mod_revision for name in names if (kv := mirror.kv("drains", service, name))], default=0)


# --- traffic ----------------------------------------------------------------------------------------------------


def check_weights(wanted: Mapping[str, Any]) -> dict[str, int]:
    """Normalised weights; they must be whole numbers of 0 to 100 that sum up to 100."""
    allowed = (*POOLS, *OPTIONAL_POOLS)
    unknown = sorted(set(wanted) - set(allowed))
    if unknown:
        raise RegistryError(f"weights: unknown pool '{unknown[0]}', allowed are {', '.join(allowed)}")
    try:
        numbers = {pool: int(wanted.get(pool, 0)) for pool in allowed}
    except (TypeError, ValueError) as error:
        raise RegistryError(f"weights: {dict(wanted)} must be whole numbers") from error
    clean = {pool: weight for pool, weight in numbers.items() if pool in POOLS or weight}
    if any(not 0 <= weight <= 100 for weight in clean.values()) or sum(clean.values()) != 100:
        raise RegistryError(f"weights: {clean} must each be 0 to 100 and sum up to 100, not {sum(clean.values())}")
    return clean


def check_pools(mirror: Mirror, service: str, wanted: Mapping[str, int]) -> None:
    """Refuse to send traffic to a pool without a live instance."""
    counts = live_pools(mirror, service)
    for pool, weight in wanted.items():
        if weight and not counts.get(pool):
            raise RegistryError(
                f"weights: pool '{pool}' of service {service} would get {weight} % but has no registered instance "
                f"that is not draining; start one first, or set require_instances to false"
            )


def set_weights(client: EtcdClient, keys: Keys, service: str, wanted: Mapping[str, int], expect: int) -> int:
    """Write the weights if their key is still at revision ``expect``; returns the new revision."""
    value = json.dumps({"weights": dict(wanted), "at": now()}, sort_keys=True)
    try:
        return client.swap(keys.of("traffic", service), value, expect)
    except CompareFailed as error:
        raise RegistryError(f"traffic of service {service} was changed by somebody else: {error}") from error


# --- locks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lock:
    """Who holds a lock since when and what for; ``lease`` keeps it, ``ttl`` seconds are left."""

    name: str
    owner: str
    purpose: str
    at: str
    lease: int
    revision: int
    ttl: int = 0

    def as_dict(self) -> Json:
        """Ready to return from a module."""
        return {
            "name": self.name,
            "owner": self.owner,
            "purpose": self.purpose,
            "at": self.at,
            "ttl": self.ttl,
            "revision": self.revision,
            "lease": f"{self.lease:x}",
        }


def _lock(name: str, kv: KeyValue, ttl: int = 0) -> Lock:
    value = _value(kv)
    return Lock(
        name=name,
        owner=str(value.get("owner", "")),
        purpose=str(value.get("purpose", "")),
        at=str(value.get("at", "")),
        lease=kv.lease,
        revision=kv.mod_revision,
        ttl=ttl,
    )


def find_lock(client: EtcdClient, keys: Keys, name: str) -> Lock | None:
    """The lock as it is, with the seconds left of its lease."""
    kv = client.get(keys.of("locks", check_label("name", name)))
    if kv is None:
        return None
    try:
        return _lock(name, kv, client.lease_ttl(kv.lease) if kv.lease else 0)
    except NotFound:
        # The lease has run out and its key is about to go.
        return _lock(name, kv)


def held(lock: Lock) -> RegistryError:
    """The refusal that names the holder."""
    return RegistryError(
        f"lock {lock.name} is held by {lock.owner} since {lock.at} for {lock.purpose or 'an unknown purpose'}; "
        f"it is freed {lock.ttl} s after its holder stops renewing it"
    )


def acquire(client: EtcdClient, keys: Keys, name: str, *, owner: str, purpose: str, ttl: int) -> Lock:
    """Take the lock.

    :raises RegistryError: somebody else holds it.
    """
    key = keys.of("locks", check_label("name", name))
    value = json.dumps({"owner": owner, "purpose": purpose, "at": now()}, sort_keys=True)
    lease = client.lease_grant(ttl)
    result = client.txn([compare_absent(key)], [op_put(key, value, lease)], [op_get(key)])
    if result.succeeded:
        return _lock(name, KeyValue(key, value.encode(), mod_revision=result.revision, lease=lease), ttl)
    client.lease_revoke(lease)
    found = find_lock(client, keys, name)
    if found is None:
        raise RegistryError(f"lock {name} changed hands just now, try again")
    raise held(found)


def renew(client: EtcdClient, lock: Lock | None, name: str, owner: str) -> Lock:
    """Renew the lease of a lock that ``owner`` holds.

    :raises RegistryError: it was lost.
    """
    if lock is None:
        raise RegistryError(
            f"lock {name} was lost by {owner}: its lease ran out, so somebody else may have acted meanwhile"
        )
    if lock.owner != owner:
        raise RegistryError(f"lock {name} was lost by {owner}: {held(lock)}")
    try:
        ttl = client.lease_keepalive(lock.lease)
    except NotFound as error:
        raise RegistryError(f"lock {name} was lost by {owner}: its lease ran out") from error
    return Lock(lock.name, lock.owner, lock.purpose, lock.at, lock.lease, lock.revision, ttl)


def release_lock(client: EtcdClient, keys: Keys, lock: Lock) -> None:
    """Give the lock back, unless it changed hands meanwhile."""
    key = keys.of("locks", lock.name)
    client.txn([compare_mod(key, lock.revision)], [op_delete(key)])
    try:
        client.lease_revoke(lock.lease)
    except NotFound:
        return


# --- release records --------------------------------------------------------------------------------------------


def merge_history(history: Sequence[Json], entry: Json | None, limit: int) -> list[Json]:
    """``history`` with ``entry`` at its end, at most ``limit`` long.

    An entry of the same version that started at the same time is replaced: so a release is first noted when it starts
    and completed when it ends.
    """
    merged = [dict(one) for one in history]
    if entry is not None:
        same = [
            index
            for index, one in enumerate(merged)
            if one.get("version") == entry.get("version") and one.get("started") == entry.get("started")
        ]
        if same:
            merged[same[-1]] = {**merged[same[-1]], **entry}
        else:
            merged.append(dict(entry))
    return merged[-limit:]


def merge_release(record: Json | None, changes: Mapping[str, Any], entry: Json | None, limit: int) -> Json:
    """The release record after ``changes`` to ``current``, ``previous`` and ``state`` and one more ``entry``."""
    before = {"current": "", "previous": "", "state": "", "history": [], **(record or {})}
    after = {**before, **{name: value for name, value in changes.items() if value is not None}}
    after["history"] = merge_history(before["history"], entry, limit)
    return after


def set_release(
    client: EtcdClient,
    keys: Keys,
    service: str,
    record: Json,
    expect: int,
    *,
    compares: Sequence[Json] = (),
    operations: Sequence[Json] = (),
) -> int:
    """Write the record if its key is still at revision ``expect``; returns the new revision.

    ``operations`` are carried out in the same transaction, and all of it only if ``compares`` hold too.
    """
    key = keys.of("releases", service)
    put = op_put(key, json.dumps(record, sort_keys=True))
    result = client.txn([compare_mod(key, expect), *compares], [put, *operations], [op_get(key)])
    if result.succeeded:
        return result.revision
    found = result.kvs(0)
    if (found[0].mod_revision if found else 0) == expect:
        raise RegistryError(f"the lock or a request of the release of {service} changed just now; nothing was written")
    now_at = f"is at revision {found[0].mod_revision}" if found else "does not exist"
    raise RegistryError(
        f"the release record of {service} was changed by somebody else: {key} {now_at}, revision {expect} was expected"
    )


# --- users ------------------------------------------------------------------------------------------------------

READER = "reader"
ROOT = "root"
OWNED = ("host-", "database-", "object-storage")  # what users and roles of this platform begin with


def host_user(host: str) -> str:
    """The etcd user (and role) of a host."""
    return f"host-{host}"


def _prefix_permission(access: str, prefix: str) -> Permission:
    return Permission(access, prefix, prefix_end(prefix).decode())


def database_user(cluster: str) -> str:
    """The etcd user (and role) of a database cluster's Patroni."""
    return f"database-{cluster}"


def database_prefix(platform: str, cluster: str) -> str:
    """Where Patroni keeps what it knows of a cluster, outside the prefix that agents watch."""
    return f"/patroni/{platform}/{cluster}/"


OBJECT_STORAGE = "object-storage"  # the etcd user (and role) of the object storage's filers


def object_storage_prefix(platform: str) -> str:
    """Where the object storage's filers keep what they know of files, outside the prefix that agents watch."""
    return f"/object-storage/{platform}/"


def wanted_roles(
    keys: Keys, hosts: Mapping[str, Sequence[str]], databases: Iterable[str] = (), object_storage: bool = False
) -> dict[str, set[Permission]]:
    """Roles and their permissions; ``hosts`` maps each host to the services that have instances on it.

    ``databases`` are the clusters; the user of each reads and writes what Patroni keeps of it and nothing else.
    ``object_storage``: whether there is one, whose user does the same with what its filers keep.
    """
    roles = {f"{READER}-{keys.platform}": {_prefix_permission("READ", keys.prefix)}}
    for host, placed in hosts.items():
        check_label("hosts", host)
        own = {_prefix_permission("WRITE", keys.of(kind, host) + "/") for kind in ("proxies", "acks")}
        own |= {Permission("WRITE", keys.of(kind, host)) for kind in ("agents", "targets")}
        own |= {_prefix_permission("WRITE", keys.of("services", service, host) + "/") for service in placed}
        roles[host_user(host)] = own
    for cluster in databases:
        check_label("databases", cluster)
        roles[database_user(cluster)] = {_prefix_permission("READWRITE", database_prefix(keys.platform, cluster))}
    if object_storage:
        roles[OBJECT_STORAGE] = {_prefix_permission("READWRITE", object_storage_prefix(keys.platform))}
    return roles


def fingerprint(secret: str) -> str:
    """Tells two secrets apart without revealing either."""
    return password(secret, "fingerprint")


@dataclass(frozen=True)
class AuthState:
    """What the cluster has: users with their roles, roles with their permissions, and whose secret is in force."""

    enabled: bool
    users: dict[str, frozenset[str]]
    roles: dict[str, frozenset[Permission]]
    fingerprint: str = ""


def secret_key(keys: Keys) -> str:
    """Where the fingerprint is kept: outside the prefix that hosts may read."""
    return f"/causeway-auth/{keys.platform}"


def read_auth(client: EtcdClient, keys: Keys, enabled: bool) -> AuthState:
    """Read users, roles and permissions, only those that this platform may own."""
    owned = (ROOT, f"{READER}-{keys.platform}")
    users = [name for name in client.user_list() if name in owned or name.startswith(OWNED)]
    roles = [name for name in client.role_list() if name in owned or name.startswith(OWNED)]
    kv = client.get(secret_key(keys))
    return AuthState(
        enabled=enabled,
        users={name: frozenset(client.user_roles(name)) for name in users},
        roles={name: frozenset(client.role_permissions(name)) for name in roles},
        fingerprint=kv.text() if kv else "",
    )


def plan_auth(
    keys: Keys,
    state: AuthState,
    hosts: Mapping[str, Sequence[str]],
    secret: str,
    databases: Sequence[str] = (),
    *,
    object_storage: bool = False,
) -> list[tuple[str, ...]]:
    """Steps, in order, from ``state`` to what ``hosts``, ``databases``, ``object_storage`` and ``secret`` ask for.

    A step is ``(verb, user or role, ...)``; passwords are not part of it, so that it can be shown.
    """
    roles = wanted_roles(keys, hosts, databases, object_storage)
    users = {ROOT: {ROOT}, **{host_user(host): {f"{READER}-{keys.platform}", host_user(host)} for host in hosts}}
    users.update({database_user(cluster): {database_user(cluster)} for cluster in databases})
    if object_storage:
        users[OBJECT_STORAGE] = {OBJECT_STORAGE}
    steps: list[tuple[str, ...]] = []
    rotate = state.fingerprint != fingerprint(secret)
    for role in [ROOT, *roles]:
        if role not in state.roles:
            steps.append(("role_add", role))
        have, want = state.roles.get(role, frozenset()), roles.get(role, set())
        if role != ROOT:
            gone = sorted(have - want, key=_sort_key)
            steps += [("role_revoke", role, *_permission(one)) for one in gone]
            steps += [("role_grant", role, *_permission(one)) for one in sorted(want - have, key=_sort_key)]
    for user, granted in users.items():
        if user not in state.users:
            steps.append(("user_add", user))
        elif rotate and state.fingerprint:
            steps.append(("user_password", user))
        has = state.users.get(user, frozenset())
        steps += [("user_grant", user, role) for role in sorted(granted - has)]
        steps += [("user_revoke", user, role) for role in sorted(has - granted)]
    # Hosts and databases that left the platform keep neither a user nor a role.
    steps += [("user_delete", user) for user in sorted(set(state.users) - set(users))]
    steps += [("role_delete", role) for role in sorted(set(state.roles) - set(roles) - {ROOT})]
    if rotate:
        steps.append(("remember", secret_key(keys)))
    if not state.enabled:
        steps.append(("auth_enable", "authentication"))
    return steps


def _sort_key(permission: Permission) -> tuple[str, str, str]:
    return (permission.key, permission.range_end, permission.access)


def _permission(one: Permission) -> tuple[str, str, str]:
    return (one.access, one.key, one.range_end)


def apply_auth(client: EtcdClient, steps: Iterable[tuple[str, ...]], secret: str) -> None:
    """Carry the steps of :func:`plan_auth` out. ``root`` first, so that a run that was cut short can go on."""
    for verb, name, *rest in steps:
        if verb == "role_add":
            client.role_add(name)
        elif verb == "role_grant":
            client.role_grant(name, Permission(*rest))
        elif verb == "role_revoke":
            client.role_revoke(name, Permission(*rest))
        elif verb == "role_delete":
            client.role_delete(name)
        elif verb == "user_add":
            client.user_add(name, password(secret, name))
        elif verb == "user_password":
            client.user_change_password(name, password(secret, name))
            if name == ROOT:
                client.set_password(password(secret, name))
        elif verb == "user_grant":
            client.user_grant(name, *rest)
        elif verb == "user_revoke":
            client.user_revoke(name, *rest)
        elif verb == "user_delete":
            client.user_delete(name)
        elif verb == "remember":
            client.put(name, fingerprint(secret))
        elif verb == "auth_enable":
            client.auth_enable()
