# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a host's PgBouncer sends each database: ask Patroni, write, reload, pause, resume.

Standard library only: the role copies this file to the hosts, where Patroni's callback and a small unit use it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = "/etc/causeway/pgbouncer/clusters.json"
PROTOCOL = 196608  # 3.0, PostgreSQL documentation, "Message Formats", StartupMessage
WRITERS = ("leader", "standby_leader")
RUNNING = ("running", "streaming")
# Words of Patroni's callbacks for a member that may be written to (4.0 says primary, older ones master).
PROMOTED = ("primary", "promoted", "master")


class PgBouncerError(Exception):
    """What went wrong, in one sentence."""


@dataclass(frozen=True)
class Cluster:
    """One PostgreSQL cluster that has a member on this host. `members`: address by host."""

    name: str
    database: str
    port: int
    rest_port: int
    max_lag: int
    members: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reader(self) -> str:
        return f"{self.database}_ro"


@dataclass(frozen=True)
class Tenancy:
    """Tenants of a service with shards, called like its own cluster. `tenants`: database by tenant; `shards`: cluster
    by shard.
    """

    name: str
    tenants: Mapping[str, str]
    shards: Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """Where a tenant is, and since which revision of the registry."""

    shard: str
    revision: int


@dataclass(frozen=True)
class Config:
    """What the role wrote. `socket`: directory of the sockets of PgBouncer and of PostgreSQL; `user`: their owner.
    `clusters`: those that this pooler offers. `registry`: file in which the node agent says where tenants are.
    """

    host: str
    socket: str
    port: int
    user: str
    state: str
    tls: str
    clusters: Mapping[str, Cluster]
    tenancies: Mapping[str, Tenancy] = field(default_factory=dict)
    registry: str = "/var/lib/causeway/xds/tenants.json"

    @property
    def console(self) -> str:
        return f"{self.socket}/.s.PGSQL.{self.port}"

    def cluster(self, name: str) -> Cluster:
        """The cluster of a name; raises PgBouncerError."""
        try:
            return self.clusters[name]
        except KeyError:
            known = ", ".join(sorted(self.clusters)) or "none"
            raise PgBouncerError(f"cluster {name!r} has no member on {self.host} (there are: {known})") from None


@dataclass(frozen=True)
class View:
    """What members of a cluster say. `leader`: host name, "" while there is none; `fit`: whether the local member
    may be read from, None when it does not answer; `answered`: whether this host is not cut off from all others.
    """

    leader: str = ""
    fit: bool | None = None
    answered: bool = False


def parse_config(text: str) -> Config:
    """The configuration out of its JSON; raises PgBouncerError."""
    try:
        data = json.loads(text)
        clusters = {name: Cluster(name=name, **entry) for name, entry in data.pop("clusters").items()}
        tenancies = {name: Tenancy(name=name, **entry) for name, entry in data.pop("tenancies", {}).items()}
        return Config(clusters=clusters, tenancies=tenancies, **data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PgBouncerError(f"the configuration of the poolers is wrong: {error!r}") from error


def load_config(path: str = CONFIG) -> Config:
    """The configuration of this host; raises PgBouncerError."""
    try:
        return parse_config(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PgBouncerError(f"{path}: {error.strerror}") from error


# --- the admin console ------------------------------------------------------------------------------------------------


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _error_text(body: bytes) -> str:
    parts = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return parts.get(b"M", "unknown error")


class Console:
    """PgBouncer's admin console over its unix socket, as the user who runs it: that one needs no password."""

    def __init__(self, path: str, owner: int | None = None, timeout: float = 5.0) -> None:
        """`owner`: user id to connect as, for root."""
        self.path = path
        self.owner = owner
        self.timeout = timeout

    def run(self, sql: str, timeout: float | None = None) -> list[dict[str, str]]:
        """Rows of one command; raises PgBouncerError, TimeoutError when there is no answer within `timeout` seconds."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self.timeout if timeout is None else timeout)
            try:
                self._connect(connection)
                parameters = b"user\0pgbouncer\0database\0pgbouncer\0\0"
                body = struct.pack("!i", PROTOCOL) + parameters
                connection.sendall(struct.pack("!i", len(body) + 4) + body)
                stream = connection.makefile("rb")
                self._read(stream)
                connection.sendall(_message(b"Q", sql.encode() + b"\0"))
                return self._read(stream)
            except socket.timeout as error:
                raise TimeoutError(f"PgBouncer did not answer {sql!r} in time") from error
            except OSError as error:
                raise PgBouncerError(f"PgBouncer at {self.path}: {error.strerror or error}") from error

    def _connect(self, connection: socket.socket) -> None:
        if self.owner is None or self.owner == os.geteuid() or os.geteuid() != 0:
            connection.connect(self.path)
            return
        # The peer is whom the kernel saw at connect(). Becoming that user would change the whole process with its other
        # threads: a child does, and connects the socket that both have.
        child = os.fork()
        if child == 0:
            code = errno.EIO
            try:
                os.seteuid(self.owner)
                connection.connect(self.path)
                code = 0
            except OSError as error:
                code = error.errno or errno.ETIMEDOUT
            finally:
                os._exit(code)
        code = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        if code:
            raise OSError(code, os.strerror(code))

    @staticmethod
    def _read(stream: Any) -> list[dict[str, str]]:
        """Messages until the server is ready; the rows among them."""
        names: list[str] = []
        rows: list[dict[str, str]] = []
        failure = ""
        while True:
            head = stream.read(5)
            if len(head) < 5:
                raise PgBouncerError(failure or "PgBouncer closed the connection")
            body = stream.read(struct.unpack("!i", head[1:])[0] - 4)
            kind = head[:1]
            if kind == b"R" and struct.unpack("!i", body[:4])[0] != 0:
                raise PgBouncerError("PgBouncer asks for a password: this user is not the one who runs it")
            if kind == b"E":
                failure = _error_text(body)
            elif kind == b"T":
                names = _columns(body)
            elif kind == b"D":
                rows.append(dict(zip(names, _values(body))))
            elif kind == b"Z":
                if failure:
                    raise PgBouncerError(f"PgBouncer says: {failure}")
                return rows

    def databases(self) -> dict[str, dict[str, str]]:
        """SHOW DATABASES by name."""
        return {row["name"]: row for row in self.run("SHOW DATABASES")}


def _columns(body: bytes) -> list[str]:
    names, place = [], 2
    for _number in range(struct.unpack("!h", body[:2])[0]):
        end = body.index(b"\0", place)
        names.append(body[place:end].decode())
        place = end + 19
    return names


def _values(body: bytes) -> list[str]:
    values, place = [], 2
    for _number in range(struct.unpack("!h", body[:2])[0]):
        length = struct.unpack("!i", body[place : place + 4])[0]
        place += 4
        values.append(body[place : place + max(length, 0)].decode(errors="replace"))
        place += max(length, 0)
    return values


def console_of(config: Config, owner: int | None = None) -> Console:
    """The console of this host's PgBouncer."""
    return Console(config.console, owner)


# --- Patroni ----------------------------------------------------------------------------------------------------------


def leader_of(document: Mapping[str, Any], cluster: Cluster) -> str:
    """Host of the running leader in an answer of Patroni's `GET /cluster`; "" while there is none."""
    hosts = {address: host for host, address in cluster.members.items()}
    for member in document.get("members") or []:
        if member.get("role") in WRITERS and member.get("state") in RUNNING:
            return hosts.get(str(member.get("host")), "")
    return ""


class Patroni:
    """Asks the members' REST interfaces with this host's database certificate."""

    def __init__(self, config: Config, timeout: float = 1.0) -> None:
        self.config = config
        self.timeout = timeout
        self._generation = ""
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 with the certificate in force; made anew only after a renewal."""
        generation = os.path.realpath(self.config.tls)
        if self._context is None or generation != self._generation:
            context = ssl.create_default_context(cafile=f"{self.config.tls}/ca.pem")
            context.load_cert_chain(f"{self.config.tls}/cert.pem", f"{self.config.tls}/key.pem")
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            self._context, self._generation = context, generation
        return self._context

    def get(self, address: str, port: int, path: str) -> tuple[int, bytes]:
        """Status and body; raises OSError."""
        connection = http.client.HTTPSConnection(address, port, timeout=self.timeout, context=self.context())
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def status(self, cluster: Cluster, host: str, path: str) -> int:
        """Status of an answer, 0 when there is none."""
        try:
            return self.get(cluster.members[host], cluster.rest_port, path)[0]
        except OSError:
            return 0

    def writable(self, cluster: Cluster, host: str) -> bool:
        """Whether a member's server has left recovery. The leader's lock comes first: until then it refuses writes."""
        if host not in cluster.members:
            return False
        try:
            state = json.loads(self.get(cluster.members[host], cluster.rest_port, "/patroni")[1])
        except (OSError, ValueError):
            return False
        return state.get("state") == "running" and state.get("role") in (*PROMOTED, *WRITERS)

    def look(self, cluster: Cluster, writer: str = "") -> View:
        """Who leads, by the local member or else by the first other one that knows; whether the local one is fit.

        A leader other than ``writer``, where queries go now, counts once it takes writes.
        Without etcd nobody knows, and Patroni's failsafe mode may keep the leader: then it tells itself.
        """
        own = self.config.host
        local = self.status(cluster, own, f"/read-only?lag={cluster.max_lag}") if own in cluster.members else 0
        fit = local == 200 if local else None
        met = len(cluster.members) == 1
        for host in sorted(cluster.members, key=lambda name: (name != own, name)):
            with contextlib.suppress(OSError, ValueError):
                status, body = self.get(cluster.members[host], cluster.rest_port, "/cluster")
                met = met or host != own
                if status == 200:
                    leader = leader_of(json.loads(body), cluster)
                    return View(leader if leader == writer or self.writable(cluster, leader) else "", fit, True)
        leads = own in cluster.members and self.status(cluster, own, "/primary") == 200
        return View(own if leads else "", fit, met or leads)


# --- what PgBouncer should do -----------------------------------------------------------------------------------------


def target(config: Config, cluster: Cluster, host: str) -> tuple[str, int]:
    """Host parameter and port under which this host's PgBouncer reaches a member."""
    return (config.socket if host == config.host else cluster.members[host], cluster.port)


def databases_text(config: Config, cluster: Cluster, writer: str, reader: str, tenants: Sequence[str] = ()) -> str:
    """The included file of a cluster: `<name>` on the host `writer`, `<name>_ro` on the host `reader`; the same for
    the databases of the tenants that are there.

    Passwords are asked for at the reader, which is there also while nobody leads.
    """
    options = "".join(f" {name}={value}" for name, value in sorted(cluster.options.items()))
    lines = ["; Written by causeway-pgbouncer-sync and Patroni's callback; changes here are lost.", "[databases]"]
    for database in (cluster.database, *tenants):
        for name, host in ((database, writer), (f"{database}_ro", reader)):
            address, port = target(config, cluster, host)
            lines.append(f"{name} = host={address} port={port} dbname={database}{options}")
    return "\n".join(lines) + "\n"


def chosen(text: str, config: Config, cluster: Cluster) -> tuple[str, str]:
    """(writer, reader) out of an included file; where it does not say, this host, or any member for a cluster that has
    none here.
    """
    addresses = {address: host for host, address in cluster.members.items()}
    default = config.host if config.host in cluster.members else min(cluster.members)
    result = []
    for name in (cluster.database, cluster.reader):
        found = re.search(rf"^{re.escape(name)} = host=(\S+)", text, re.M)
        result.append(addresses.get(found[1], default) if found else default)
    return result[0], result[1]


def in_force(config: Config, cluster: Cluster) -> tuple[str, str]:
    """(writer, reader) of the included file that is there."""
    return chosen(_read(file_of(config, cluster)), config, cluster)


def file_of(config: Config, cluster: Cluster) -> Path:
    return Path(config.state) / f"{cluster.name}.ini"


def mark_of(config: Config, cluster: Cluster) -> Path:
    return Path(config.state) / f"{cluster.name}.pause"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _private(name: str, flags: int) -> int:
    # The directory is the user's, and root writes here too: it must not follow a link to somewhere else.
    return os.open(name, flags | os.O_NOFOLLOW, 0o640)


def _write(path: Path, text: str) -> None:
    """Replace a file at one moment; it keeps the owner of its directory, also when root writes it."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        owner = path.parent.stat()
        if os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    temporary.rename(path)


@contextlib.contextmanager
def locked(config: Config, cluster: Cluster | Tenancy) -> Iterator[None]:
    """One at a time: the callback, the unit and the module may come together."""
    kind = "tenants." if isinstance(cluster, Tenancy) else ""
    path = Path(config.state) / f".{kind}{cluster.name}.lock"
    with open(path, "a", encoding="utf-8", opener=_private) as file:
        owner = path.parent.stat()
        if os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(config: Config) -> list[str]:
    """Files that PgBouncer includes, where there are none or options changed; returns what was written."""
    written = []
    for tenancy in config.tenancies.values():
        adopt(config, tenancy)
    for cluster in config.clusters.values():
        with locked(config, cluster):
            text = _read(file_of(config, cluster))
            wanted = databases_text(config, cluster, *chosen(text, config, cluster), tenants_of(config, cluster))
            if text != wanted:
                _write(file_of(config, cluster), wanted)
                written.append(cluster.name)
    return written


@dataclass(frozen=True)
class Mark:
    """A pause under way or the last one. Times in seconds since the epoch; `ended` 0 while it lasts."""

    leader: str
    since: float
    until: float
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it lasted, or lasts until now."""
        return round(max(0.0, (self.ended or time.time()) - self.since), 3)


def read_mark_file(path: Path) -> Mark | None:
    try:
        return Mark(**json.loads(_read(path)))
    except (ValueError, TypeError):
        return None


def read_mark(config: Config, cluster: Cluster) -> Mark | None:
    return read_mark_file(mark_of(config, cluster))


def _write_mark(config: Config, cluster: Cluster, mark: Mark) -> None:
    _write(mark_of(config, cluster), json.dumps(mark.__dict__) + "\n")


def settle(config: Config, cluster: Cluster, console: Console, writer: str, reader: str) -> list[str]:
    """Make PgBouncer send writes to host `writer` and reads to host `reader`; says what it did.

    What runs is compared, not only the file, so that a reload that went wrong is repeated. A pause that waits for
    another leader ends here, as does one whose time is up: nobody may hold a service for ever.
    """
    done: list[str] = []
    with locked(config, cluster):
        tenants = tenants_of(config, cluster)
        wanted = databases_text(config, cluster, writer, reader, tenants)
        path = file_of(config, cluster)
        changed = _read(path) != wanted
        if changed:
            _write(path, wanted)
            done.append(f"{cluster.database} -> {writer}, {cluster.reader} -> {reader}")
        shown = console.databases()
        names = (cluster.database, *tenants)
        hosts = [pair for name in names for pair in ((name, writer), (f"{name}_ro", reader))]
        if changed or any(not _shows(shown.get(name), *target(config, cluster, host)) for name, host in hosts):
            console.run("RELOAD")
            done.append("reloaded")
            shown = console.databases()
        mark = read_mark(config, cluster)
        paused = shown.get(cluster.database, {}).get("paused") == "1"
        if mark and not mark.ended and (not paused or mark.leader != writer or time.time() > mark.until):
            if paused:
                _resume(config, console, names, shown)
            ended = Mark(mark.leader, mark.since, mark.until, time.time())
            _write_mark(config, cluster, ended)
            done.append(f"resumed after {ended.seconds:g} s")
    return done


def _shows(row: Mapping[str, str] | None, host: str, port: int) -> bool:
    """Whether a row of SHOW DATABASES is this target. PgBouncer shows no host or the directory for a unix socket."""
    if row is None:
        return False
    same = row.get("host") == host or (host.startswith("/") and not row.get("host"))
    return same and row.get("port") == str(port)


def pause(config: Config, cluster: Cluster, console: Console, *, leader: str, timeout: float, hold: float) -> Mark:
    """PAUSE the writers' database: returns once no transaction runs any more. Ends when another host leads, or after
    `hold` seconds. Raises PgBouncerError, with the database resumed, when transactions last longer than `timeout`.
    """
    with locked(config, cluster):
        now = time.time()
        mark = Mark(leader, now, now + timeout + hold)
        _write_mark(config, cluster, mark)
        names = (cluster.database, *tenants_of(config, cluster))
        try:
            _pause(console, names, timeout)
        except (TimeoutError, PgBouncerError) as error:
            with contextlib.suppress(PgBouncerError, TimeoutError):
                _resume(config, console, names, console.databases())
            _write_mark(config, cluster, Mark(leader, now, mark.until, time.time()))
            if isinstance(error, TimeoutError):
                raise PgBouncerError(
                    f"{cluster.database}: transactions still ran after {timeout:g} s; nothing is paused any more"
                ) from error
            raise
        return mark


def resume(config: Config, cluster: Cluster, console: Console) -> tuple[bool, Mark | None]:
    """End a pause of the writers' database: whether it still was paused, and how long it lasted if that is known."""
    with locked(config, cluster):
        shown = console.databases()
        paused = shown.get(cluster.database, {}).get("paused") == "1"
        if paused:
            _resume(config, console, (cluster.database, *tenants_of(config, cluster)), shown)
        mark = read_mark(config, cluster)
        if mark and not mark.ended:
            mark = Mark(mark.leader, mark.since, mark.until, time.time())
            _write_mark(config, cluster, mark)
        return paused, mark


def _pause(console: Console, names: Sequence[str], timeout: float) -> None:
    """PAUSE one database after the other; raises TimeoutError when transactions last longer than `timeout` in all."""
    deadline = time.monotonic() + timeout
    for name in names:
        console.run(f"PAUSE {name}", max(0.01, deadline - time.monotonic()))


def _resume(config: Config, console: Console, names: Sequence[str], shown: Mapping[str, Mapping[str, str]]) -> None:
    """RESUME those that are paused, except tenants that a move holds."""
    for name in names:
        held = read_mark_file(hold_of(config, name))
        if shown.get(name, {}).get("paused") == "1" and (held is None or held.ended):
            console.run(f"RESUME {name}")


# --- tenants ----------------------------------------------------------------------------------------------------------


def routes_of(config: Config, tenancy: Tenancy) -> Path:
    return Path(config.state) / f"{tenancy.name}.routes.json"


def hold_of(config: Config, database: str) -> Path:
    return Path(config.state) / f"{database}.hold"


def parse_routes(data: Any) -> dict[str, Route]:
    """Routes by tenant; what is no route is left out."""
    found = {}
    for tenant, entry in (data if isinstance(data, dict) else {}).items():
        with contextlib.suppress(TypeError, ValueError, KeyError):
            found[str(tenant)] = Route(str(entry["shard"]), int(entry["revision"]))
    return found


def read_routes(config: Config, tenancy: Tenancy) -> dict[str, Route]:
    """What is in force on this host."""
    try:
        return parse_routes(json.loads(_read(routes_of(config, tenancy))))
    except ValueError:
        return {}


def registry_routes(config: Config, tenancy: Tenancy) -> dict[str, Route]:
    """What the node agent last heard from the registry."""
    try:
        return parse_routes(json.loads(_read(Path(config.registry))).get(tenancy.name))
    except (ValueError, AttributeError):
        return {}


def tenants_of(config: Config, cluster: Cluster) -> list[str]:
    """Databases of the tenants that are in a cluster, as this host knows."""
    return sorted(
        database
        for tenancy in config.tenancies.values()
        if cluster.name in tenancy.shards.values()
        for tenant, database in tenancy.tenants.items()
        for route in [read_routes(config, tenancy).get(tenant)]
        if route and tenancy.shards.get(route.shard) == cluster.name
    )


def newer(have: Mapping[str, Route], heard: Mapping[str, Route]) -> dict[str, Route]:
    """Routes that were heard and are newer than those in force."""
    return {name: one for name, one in heard.items() if name not in have or have[name].revision < one.revision}


def adopt(config: Config, tenancy: Tenancy, heard: Mapping[str, Route] | None = None) -> list[str]:
    """Put newer routes into force, by default those of the node agent; returns clusters that have more or fewer
    tenants now, those with more first. The files of the clusters are written, PgBouncer has not read them.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(config, tenancy))
        have = read_routes(config, tenancy)
        changes = newer(have, registry_routes(config, tenancy) if heard is None else heard)
        if not changes:
            return []
        gaining = {tenancy.shards.get(one.shard, "") for one in changes.values()}
        losing = {tenancy.shards.get(have[name].shard, "") for name in changes if name in have} - gaining
        affected = [config.clusters[name] for name in (*sorted(gaining), *sorted(losing)) if name in config.clusters]
        # Whoever settles a cluster meanwhile would take a tenant out of one file that is not in the other yet.
        for cluster in sorted(affected, key=lambda one: one.name):
            stack.enter_context(locked(config, cluster))
        routes = {name: one.__dict__ for name, one in sorted({**have, **changes}.items())}
        _write(routes_of(config, tenancy), json.dumps(routes, indent=1) + "\n")
        # PgBouncer throws out clients of a database that is in no file, and takes the last of two: two before none.
        for cluster in affected:
            writer, reader = in_force(config, cluster)
            text = databases_text(config, cluster, writer, reader, tenants_of(config, cluster))
            _write(file_of(config, cluster), text)
        return [cluster.name for cluster in affected]


def follow_tenants(config: Config, tenancy: Tenancy, console: Console) -> list[str]:
    """Follow the registry, and end moves' holds whose time is up; says what it did."""
    done = []
    changed = adopt(config, tenancy)
    if changed:
        console.run("RELOAD")
        done.append(f"other tenants in {', '.join(changed)}")
    for database in tenancy.tenants.values():
        mark = read_mark_file(hold_of(config, database))
        if mark and not mark.ended and time.time() > mark.until:
            seconds = release(config, console, database)
            done.append(f"{database}: let go after {seconds:g} s, for nobody else did")
    return done


def hold(config: Config, console: Console, database: str, *, timeout: float, hold: float) -> Mark:
    """Hold the clients of one tenant, writers and readers, at most `timeout` + `hold` seconds: returns once no
    transaction runs. Raises PgBouncerError, with nobody held, when transactions last longer than `timeout`.
    """
    now = time.time()
    mark = Mark("", now, now + timeout + hold)
    _write(hold_of(config, database), json.dumps(mark.__dict__) + "\n")
    try:
        _pause(console, (database, f"{database}_ro"), timeout)
    except (TimeoutError, PgBouncerError) as error:
        with contextlib.suppress(PgBouncerError, TimeoutError):
            release(config, console, database)
        if isinstance(error, TimeoutError):
            raise PgBouncerError(
                f"{database}: transactions still ran after {timeout:g} s; nobody is held any more"
            ) from error
        raise
    return mark


def release(config: Config, console: Console, database: str) -> float:
    """Let the clients of a tenant go on; returns the seconds that they were held, 0 if they were not."""
    shown = console.databases()
    for name in (database, f"{database}_ro"):
        if shown.get(name, {}).get("paused") == "1":
            console.run(f"RESUME {name}")
    mark = read_mark_file(hold_of(config, database))
    if mark is None:
        return 0.0
    if not mark.ended:
        mark = Mark(mark.leader, mark.since, mark.until, time.time())
        _write(hold_of(config, database), json.dumps(mark.__dict__) + "\n")
    return mark.seconds


def send(config: Config, console: Console, tenancy: Tenancy, tenant: str, route: Route) -> None:
    """Point a tenant's database to another shard at once."""
    if adopt(config, tenancy, {tenant: route}):
        console.run("RELOAD")


def renew(console: Console) -> None:
    """Show a renewed certificate: connections to servers are made anew as soon as their transaction is over."""
    console.run("RELOAD")
    console.run("RECONNECT")


def disconnect(config: Config, cluster: Cluster, console: Console) -> None:
    """Close the writers' connections: their sidecars find a host that can reach the leader."""
    with locked(config, cluster):
        for name in (cluster.database, *tenants_of(config, cluster)):
            console.run(f"KILL {name}")
            console.run(f"RESUME {name}")


def restart_needed(settings: Mapping[str, str], running: list[dict[str, str]]) -> list[str]:
    """Settings that only a restart changes and that run with another value. `running`: rows of SHOW CONFIG."""
    shown = {row["key"]: row for row in running}
    return sorted(
        name
        for name, value in settings.items()
        if name in shown and shown[name].get("changeable") == "no" and shown[name].get("value", "") != value
    )


def parse_settings(text: str) -> dict[str, str]:
    """Section [pgbouncer] of a pgbouncer.ini."""
    section, result = "", {}
    for line in (raw.strip() for raw in text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == "pgbouncer" and "=" in line and line[:1] not in (";", "#", "%"):
            name, _separator, value = line.partition("=")
            result[name.strip()] = value.strip()
    return result


@dataclass
class Follower:
    """Decisions of the unit that follows one cluster, over its looks once a second."""

    host: str
    silent: int = 0
    unfit: int = 0
    # Looks, one a second: cut off for so long, held sessions are better off at another host; so are readers when the
    # local Patroni is silent.
    patience: int = 5

    def decide(self, view: View, writer: str, reader: str) -> tuple[str, str, bool]:
        """(writer, reader, disconnect) from the last look and what is in force."""
        self.silent = 0 if view.answered else self.silent + 1
        # Patroni alone may be restarting; a lagging member is told at once.
        self.unfit = 0 if view.fit else self.unfit + (self.patience if view.fit is False else 1)
        leader = view.leader or writer
        local = self.unfit < self.patience or leader == self.host
        # Without a leader nobody else is fit either: readers keep what they have.
        kept = self.host if local else (view.leader or reader)
        return leader, kept, self.silent == self.patience


def decided(config: Config, cluster: Cluster, timeout: float = 3.0) -> tuple[str, str]:
    """(writer, reader) as they should be now, by one look at Patroni; what is in force where that tells nothing."""
    writer, reader = in_force(config, cluster)
    view = Patroni(config, timeout).look(cluster, writer)
    return Follower(config.host).decide(view, writer, reader)[:2]
