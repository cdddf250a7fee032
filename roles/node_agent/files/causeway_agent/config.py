# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent reads from disk: agent.json and the directories instances.d, proxies.d, targets.d."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Generic, TypeVar

from causeway_agent.runtime import Signature, signature

LABEL = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
PROXY = re.compile(r"^[a-z0-9][a-z0-9_-]{0,127}$")
CHECK_TARGET = {"http": "url", "tcp": "address", "command": "command"}
Parsed = TypeVar("Parsed")


class ConfigError(ValueError):
    """One sentence: where, what is wrong, what is allowed."""


@dataclass(frozen=True)
class EtcdSettings:
    endpoints: tuple[str, ...]
    ca: str = ""
    cert: str = ""
    key: str = ""
    username: str = ""
    password_file: str = ""


@dataclass(frozen=True)
class MetricsSettings:
    address: str
    port: int
    ca: str
    cert: str
    key: str
    allowed: tuple[str, ...]


@dataclass(frozen=True)
class AgentConfig:
    platform: str
    host: str
    zone: str
    region: str
    etcd: EtcdSettings
    directory: Path
    runtime_directory: Path
    state_directory: Path
    lease_ttl: int = 4
    grace: float = 10.0
    metrics: MetricsSettings | None = None
    file_sd: Path | None = None
    tenants: Path | None = None
    tls_directory: Path = Path("/etc/causeway/tls")
    log_level: str = "info"

    @property
    def prefix(self) -> str:
        return f"/causeway/{self.platform}/"


@dataclass(frozen=True)
class CheckSpec:
    """A health check; interval and timeout in seconds, thresholds in consecutive results."""

    type: str
    target: str
    argv: tuple[str, ...] = ()
    interval: float = 0.5
    timeout: float = 1.0
    unhealthy: int = 2
    healthy: int = 1


@dataclass(frozen=True)
class Instance:
    """An instance of instances.d: what to publish while all its checks pass."""

    value: dict[str, Any]
    checks: tuple[CheckSpec, ...]

    @property
    def path(self) -> str:
        return f"{self.value['service']}/{self.value['host']}/{self.value['slot']}"


@dataclass(frozen=True)
class Proxy:
    """A proxy of proxies.d: which clusters and routes to write for it, and how to ask it what it runs."""

    name: str
    admin: str
    output: Path
    clusters: dict[str, tuple[str, str]]
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The group that may read the files, when others may not (routes with a token in them); "" for everybody.
    group: str = ""

    @property
    def services(self) -> list[str]:
        return sorted({service for service, _pool in self.clusters.values()})


def _get(where: str, data: dict[str, Any], name: str, kind: Any, default: Any = ...) -> Any:
    value = data.get(name, default)
    if value is ...:
        raise ConfigError(f"{where}: {name} is missing")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kinds):
        allowed = " or ".join(k.__name__ for k in kinds)
        raise ConfigError(f"{where}: {name} is {value!r}; it must be of type {allowed}")
    return value


def _number(where: str, data: dict[str, Any], name: str, default: float, *limits: float) -> float:
    low, high = limits
    value = _get(where, data, name, (int, float), default)
    if not low <= value <= high:
        raise ConfigError(f"{where}: {name} is {value!r}; allowed: {low:g} to {high:g}")
    return float(value)


def _name(where: str, data: dict[str, Any], name: str, pattern: re.Pattern[str] = LABEL) -> str:
    value: str = _get(where, data, name, str)
    if not pattern.match(value):
        raise ConfigError(f"{where}: {name} is {value!r}; allowed: {pattern.pattern}")
    return value


def _object(where: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: found {type(data).__name__}; it must be a JSON object")
    return data


def load_json(path: Path) -> Any:
    """Parse a JSON file; raises ConfigError naming the file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid JSON: {error}") from error


def load_agent(path: Path) -> AgentConfig:
    """Read agent.json. Raises ConfigError."""
    where = str(path)
    data = _object(where, load_json(path))
    etcd = _object(f"{where}: etcd", data.get("etcd"))
    endpoints = _get(f"{where}: etcd", etcd, "endpoints", list)
    if not endpoints or not all(isinstance(e, str) and e.startswith(("http://", "https://")) for e in endpoints):
        raise ConfigError(f"{where}: etcd.endpoints is {endpoints!r}; it must be a list of http(s) URLs")
    files = {
        name: _get(f"{where}: etcd", etcd, name, str, "") for name in ("ca", "cert", "key", "username", "password_file")
    }
    metrics = None
    if data.get("metrics"):
        section = _object(f"{where}: metrics", data["metrics"])
        inside = f"{where}: metrics"
        metrics = MetricsSettings(
            address=_get(inside, section, "address", str),
            port=int(_number(inside, section, "port", 9101, 0, 65535)),
            ca=_get(inside, section, "ca", str),
            cert=_get(inside, section, "cert", str),
            key=_get(inside, section, "key", str),
            allowed=tuple(_get(inside, section, "allowed", list)),
        )
    file_sd = _get(where, data, "file_sd", str, "")
    tenants = _get(where, data, "tenants", str, "")
    return AgentConfig(
        platform=_name(where, data, "platform"),
        host=_name(where, data, "host", re.compile(r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")),
        zone=_get(where, data, "zone", str, ""),
        region=_get(where, data, "region", str, ""),
        etcd=EtcdSettings(endpoints=tuple(endpoints), **files),
        lease_ttl=int(_number(where, data, "lease_ttl", 4, 2, 600)),
        grace=_number(where, data, "grace", 10, 0, 3600),
        metrics=metrics,
        file_sd=Path(file_sd) if file_sd else None,
        tenants=Path(tenants) if tenants else None,
        directory=Path(_get(where, data, "directory", str, str(path.parent))),
        runtime_directory=Path(os.environ.get("RUNTIME_DIRECTORY", "/run/causeway-agent")),
        state_directory=Path(os.environ.get("STATE_DIRECTORY", "/var/lib/causeway-agent")),
        tls_directory=Path(_get(where, data, "tls_directory", str, "/etc/causeway/tls")),
        log_level=_get(where, data, "log_level", str, "info"),
    )


def parse_check(where: str, data: Any) -> CheckSpec:
    """Validate one health check. Raises ConfigError."""
    check = _object(where, data)
    kind = _get(where, check, "type", str)
    if kind not in CHECK_TARGET:
        raise ConfigError(f"{where}: type is {kind!r}; allowed: {', '.join(CHECK_TARGET)}")
    target = _get(where, check, CHECK_TARGET[kind], (str, list) if kind == "command" else str)
    argv: tuple[str, ...] = ()
    if kind == "command":
        # A list is run as it is; a string is split at white space. Never a shell.
        argv = tuple(target.split() if isinstance(target, str) else target)
        if not argv or not all(isinstance(word, str) for word in argv):
            raise ConfigError(f"{where}: command is {target!r}; it must be a list of words, the first a program")
        target = " ".join(argv)
    elif kind == "http" and not target.startswith("http://"):
        raise ConfigError(f"{where}: url is {target!r}; it must start with http://")
    elif kind == "tcp" and not re.match(r"^.+:\d{1,5}$", target):
        raise ConfigError(f"{where}: address is {target!r}; it must be host:port")
    return CheckSpec(
        type=kind,
        target=target,
        argv=argv,
        interval=_number(where, check, "interval", 0.5, 0.05, 3600),
        timeout=_number(where, check, "timeout", 1.0, 0.05, 600),
        unhealthy=int(_number(where, check, "unhealthy", 2, 1, 100)),
        healthy=int(_number(where, check, "healthy", 1, 1, 100)),
    )


def parse_instance(where: str, data: Any, host: str) -> Instance:
    """Validate one file of instances.d. Raises ConfigError."""
    item = dict(_object(where, data))
    checks = item.pop("checks", [])
    if not isinstance(checks, list) or not checks:
        raise ConfigError(f"{where}: checks is {checks!r}; at least one check is needed")
    owner = _get(where, item, "host", str)
    if owner != host:
        raise ConfigError(f"{where}: host is {owner!r}; only instances of this host ({host}) may be published")
    value = {
        **item,
        "service": _name(where, item, "service"),
        "slot": int(_number(where, item, "slot", -1, 0, 9)),
        "port": int(_number(where, item, "port", 0, 1, 65535)),
        "address": _get(where, item, "address", str),
        "zone": _get(where, item, "zone", str, ""),
        "region": _get(where, item, "region", str, ""),
        "pool": _name(where, {"pool": "stable", **item}, "pool"),
        "version": _get(where, item, "version", str, ""),
        "weight": int(_number(where, item, "weight", 1, 1, 10000)),
    }
    value.setdefault("instance", f"{host}-{value['slot']}")
    return Instance(value, tuple(parse_check(f"{where}: checks[{i}]", check) for i, check in enumerate(checks)))


def parse_proxy(where: str, data: Any) -> Proxy:
    """Validate one file of proxies.d. Raises ConfigError."""
    item = _object(where, data)
    clusters = {}
    for name, target in _object(f"{where}: clusters", item.get("clusters", {})).items():
        inside = f"{where}: clusters.{name}"
        if not PROXY.match(name):
            raise ConfigError(f"{inside}: the cluster's name must match {PROXY.pattern}")
        entry = _object(inside, target)
        clusters[name] = (_name(inside, entry, "service"), _name(inside, entry, "pool"))
    routes = _object(f"{where}: routes", item.get("routes", {}))
    for name, route in routes.items():
        if not PROXY.match(name):
            raise ConfigError(f"{where}: routes.{name}: the route's name must match {PROXY.pattern}")
        _object(f"{where}: routes.{name}", route)
    output = Path(_get(where, item, "output", str))
    if not output.is_absolute():
        raise ConfigError(f"{where}: output is {str(output)!r}; it must be an absolute path")
    group = _get(where, item, "group", str, "")
    return Proxy(_name(where, item, "proxy", PROXY), _get(where, item, "admin", str), output, clusters, routes, group)


def parse_targets(where: str, data: Any) -> list[dict[str, Any]]:
    """Validate one file of targets.d: a list of scrape targets. Raises ConfigError."""
    if not isinstance(data, list):
        raise ConfigError(f"{where}: found {type(data).__name__}; it must be a list of targets")
    targets = []
    for index, item in enumerate(data):
        inside = f"{where}: [{index}]"
        entry = _object(inside, item)
        labels = {str(k): str(v) for k, v in _object(f"{inside}: labels", entry.get("labels", {})).items()}
        targets.append(
            {
                "job": _name(inside, entry, "job", PROXY),
                "address": _get(inside, entry, "address", str),
                "labels": labels,
            }
        )
    return targets


class ConfigDirectory(Generic[Parsed]):
    """The parsed *.json files of a directory, followed by polling.

    A file that turns bad is reported once and keeps its last good value: one broken file must not take an instance that
    serves traffic out of every proxy. A removed file removes its value.
    """

    def __init__(self, path: Path, parse: Callable[[str, Any], Parsed]) -> None:
        self.path, self._parse = path, parse
        self.values: dict[str, Parsed] = {}
        self.errors: dict[str, str] = {}
        self._seen: dict[str, Signature | None] = {}

    def poll(self) -> tuple[bool, list[str]]:
        """Look once. Return (did a value change, messages about files that are newly bad)."""
        try:
            names = sorted(e.name for e in os.scandir(self.path) if e.name.endswith(".json") and e.name[0] != ".")
        except FileNotFoundError:
            names = []
        except OSError as error:
            # Not knowing is not the same as empty: keep everything.
            message = f"{self.path}: cannot be listed: {error.strerror}"
            known = self.errors.get("") == message
            self.errors[""] = message
            return False, [] if known else [message]
        self.errors.pop("", None)
        changed, messages = False, []
        for gone in set(self._seen) - set(names):
            del self._seen[gone]
            self.errors.pop(gone, None)
            changed |= self.values.pop(gone, None) is not None
        for name in names:
            mark = signature(self.path / name)
            if name in self._seen and self._seen[name] == mark:
                continue
            self._seen[name] = mark
            try:
                value = self._parse(str(self.path / name), load_json(self.path / name))
            except ConfigError as error:
                if self.errors.get(name) != str(error):
                    messages.append(str(error))
                self.errors[name] = str(error)
                continue
            self.errors.pop(name, None)
            if self.values.get(name) != value:
                self.values[name] = value
                changed = True
        return changed, messages
