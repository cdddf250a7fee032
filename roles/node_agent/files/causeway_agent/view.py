# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""etcd state to desired documents, as pure functions and one plain state machine. No I/O, no clock of its own.

Which endpoints a proxy gets (docs/design.md, section 4):

* a key that vanishes while its owner's `agents/<host>` is present was deleted on purpose: it acts at once;
* a key that vanishes together with `agents/<host>` was lost with its lease: it is kept while a lost connection is less
  than `grace` seconds back that may have cost others their leases, or while no other live endpoint of its pool remains.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from causeway_agent.config import Proxy
from causeway_agent.runtime import canonical

EDS_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
RDS_TYPE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
STABLE, CANDIDATE, BASELINE = "stable", "candidate", "baseline"
DEFAULT_WEIGHTS = {STABLE: 100}
# A lost endpoint is a last resort; an hour after its pool lives without it, its address may belong to somebody else.
FORGET_AFTER = 3600.0


@dataclass(frozen=True)
class Change:
    """One event below the prefix: key relative to it, value None for a delete, and the revision."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True)
class Document:
    """An xDS file: its bytes, the version Envoy will report for them, and the services whose changes it carries."""

    content: bytes
    version: str
    services: frozenset[str]


@dataclass(frozen=True)
class ProxyView:
    """Everything one proxy needs: files by relative path, revision by service, draining endpoints by service."""

    documents: dict[str, Document]
    revisions: dict[str, int]
    drains: dict[str, dict[str, str]]


@dataclass
class Tenants:
    """Where tenants of databases with shards are (docs/sharding.md): {<service>: {<tenant>: {shard, revision}}}."""

    places: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def apply(self, changes: Iterable[Change]) -> bool:
        """Take up changes; whether any of them was about tenants. A value that is none leaves the last one in force."""
        seen = False
        for change in changes:
            kind, _slash, path = change.key.partition("/")
            service, slash, tenant = path.partition("/")
            if kind != "tenants" or not slash:
                continue
            seen = True
            if change.value is None:
                self.places.get(service, {}).pop(tenant, None)
                continue
            try:
                shard = json.loads(change.value)["shard"]
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(shard, str):
                self.places.setdefault(service, {})[tenant] = {"shard": shard, "revision": change.revision}
        return seen


@dataclass
class Lost:
    entry: dict[str, Any]
    since: float


def parse_entry(path: str, value: bytes) -> dict[str, Any] | None:
    """A `services/` value, or None if a proxy could not use it (Envoy would reject the whole file because of it)."""
    try:
        entry = json.loads(value)
        parts = path.split("/")
        if not isinstance(entry, dict) or len(parts) != 3 or entry["service"] != parts[0]:
            return None
        usable = isinstance(entry["address"], str) and _is_address(entry["address"]) and 0 < int(entry["port"]) < 65536
        entry.update(
            port=int(entry["port"]), pool=str(entry["pool"]), weight=max(1, int(entry.get("weight", 1))), host=parts[1]
        )
        for name in ("region", "zone", "version", "instance"):
            entry[name] = str(entry.get(name, ""))
    except (ValueError, KeyError, TypeError):
        return None
    return entry if usable else None


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_weights(value: bytes) -> dict[str, int] | None:
    """The weights of a `traffic/` value; None unless they are not negative and at least one is positive."""
    try:
        weights = {str(pool): int(weight) for pool, weight in json.loads(value)["weights"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return weights if all(w >= 0 for w in weights.values()) and any(weights.values()) else None


@dataclass
class RegistryState:
    """The agent's mirror of etcd. Times are seconds of a monotonic clock, given by the caller."""

    grace: float = 10.0
    known: bool = False
    connected: bool = False
    live: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: dict[str, Lost] = field(default_factory=dict)
    drains: set[str] = field(default_factory=set)
    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    agents: set[str] = field(default_factory=set)
    targets: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    base_revision: int = 0
    revision: int = 0
    revisions: dict[str, int] = field(default_factory=dict)
    grace_until: float = 0.0
    # A connection that moves to another member within this time has cost nobody a lease.
    harmless: float = 4.0
    parted: float = float("-inf")
    rejected: list[str] = field(default_factory=list)

    # --- input ---------------------------------------------------------------------------------------------------

    def snapshot(self, changes: Iterable[Change], revision: int, now: float) -> None:
        """Take over a full read at `revision`."""
        before = self.live
        after_gap = self.known and not self.connected and now - self.parted > self.harmless
        self.live, self.drains, self.traffic, self.agents, self.targets = {}, set(), {}, set(), {}
        for change in changes:
            self._put(change)
        for path, entry in before.items():
            if path not in self.live and path not in self.lost and entry["host"] not in self.agents:
                self.lost[path] = Lost(entry, now)
        self._forget_present()
        if after_gap:
            self.grace_until = now + self.grace
        self.base_revision = self.revision = revision
        self.revisions.clear()
        self.known = self.connected = True

    def apply(self, changes: Iterable[Change], now: float) -> None:
        """Take over events in order. What belongs to one revision (one transaction, one lease) is seen as a whole."""
        pending: list[Change] = []
        for change in changes:
            if pending and pending[0].revision != change.revision:
                self._apply_revision(pending, now)
                pending = []
            pending.append(change)
        self._apply_revision(pending, now)

    def disconnected(self, now: float) -> None:
        if self.connected:
            self.parted = now
        self.connected = False

    def _apply_revision(self, changes: list[Change], now: float) -> None:
        gone: list[str] = []
        for change in changes:
            self.revision = max(self.revision, change.revision)
            kind, _slash, path = change.key.partition("/")
            if kind in ("services", "drains", "traffic"):
                service = path.partition("/")[0]
                self.revisions[service] = max(change.revision, self.revisions.get(service, 0))
            if change.value is not None:
                self._put(change)
            elif kind == "services":
                gone.append(path)
            elif kind == "drains":
                self.drains.discard(path)
            elif kind == "traffic":
                self.traffic.pop(path, None)
            elif kind == "agents":
                self.agents.discard(path)
            elif kind == "targets":
                self.targets.pop(path, None)
        for path in gone:
            entry = self.live.pop(path, None)
            if entry and entry["host"] not in self.agents:
                self.lost[path] = Lost(entry, now)
            elif path.split("/")[1:2] and path.split("/")[1] in self.agents:
                self.lost.pop(path, None)
        self._forget_present()

    def _put(self, change: Change) -> None:
        kind, _slash, path = change.key.partition("/")
        value = change.value or b""
        if kind == "services":
            entry = parse_entry(path, value)
            if entry:
                self.live[path] = entry
            else:
                self.rejected.append(change.key)
        elif kind == "drains":
            self.drains.add(path)
        elif kind == "traffic":
            weights = parse_weights(value)
            if weights:
                self.traffic[path] = weights
            else:
                self.rejected.append(change.key)
        elif kind == "agents":
            self.agents.add(path)
        elif kind == "targets":
            try:
                self.targets[path] = [
                    {"job": str(t["job"]), "address": str(t["address"]), "labels": dict(t.get("labels", {}))}
                    for t in json.loads(value)
                ]
            except (ValueError, KeyError, TypeError):
                self.rejected.append(change.key)

    def _forget_present(self) -> None:
        """A lost entry is settled once it is back, or its agent is back without it."""
        for path, item in list(self.lost.items()):
            if path in self.live or item.entry["host"] in self.agents:
                del self.lost[path]

    # --- output --------------------------------------------------------------------------------------------------

    def revision_of(self, service: str) -> int:
        """Everything about the service up to this revision is in the state."""
        return max(self.base_revision, self.revisions.get(service, 0))

    def retained(self, now: float) -> dict[str, dict[str, Any]]:
        """Lost entries that proxies keep, see the module's first lines."""
        if not self.connected or now < self.grace_until:
            return {path: item.entry for path, item in self.lost.items()}
        serving = {(e["service"], e["pool"]) for path, e in self.live.items() if path not in self.drains}

        def replaced(entry: Mapping[str, Any]) -> bool:
            # A baseline runs what stable runs: a lost one is nobody's last resort while stable serves.
            pools = {entry["pool"], STABLE} if entry["pool"] == BASELINE else {entry["pool"]}
            return any((entry["service"], pool) in serving for pool in pools)

        return {path: item.entry for path, item in self.lost.items() if not replaced(item.entry)}

    def forget(self, now: float) -> None:
        """Drop lost entries that nobody will need, see FORGET_AFTER."""
        kept = self.retained(now)
        for path, item in list(self.lost.items()):
            if path not in kept and now - item.since > FORGET_AFTER:
                del self.lost[path]

    def proxy_view(self, proxy: Proxy, region: str, now: float) -> ProxyView:
        """The documents, revisions and drains for one proxy that stands in `region`."""
        entries = {**self.retained(now), **self.live}
        documents = {}
        serving = set()
        for cluster, (service, pool) in proxy.clusters.items():
            chosen = {p: e for p, e in entries.items() if e["service"] == service and e["pool"] == pool}
            resource = load_assignment(cluster, chosen, self.drains, region)
            documents[f"eds/{cluster}.json"] = document(resource, frozenset([service]))
            if any(path not in self.drains for path in chosen):
                serving.add(cluster)
        for name, route in proxy.routes.items():
            resource, services = route_configuration(route, proxy.clusters, self.traffic, serving)
            documents[f"rds/{name}.json"] = document(resource, services)
        revisions = {service: self.revision_of(service) for service in proxy.services}
        drains: dict[str, dict[str, str]] = {}
        for path in sorted(self.drains):
            service, _slash, rest = path.partition("/")
            if service in revisions:
                entry = entries.get(path)
                drains.setdefault(service, {})[rest] = f"{entry['address']}:{entry['port']}" if entry else ""
        return ProxyView(documents, revisions, drains)

    # --- across restarts of the agent ----------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """What a restarted agent needs to keep the last known endpoints."""
        live = {**{path: item.entry for path, item in self.lost.items()}, **self.live}
        return {
            "live": live,
            "drains": sorted(self.drains),
            "traffic": self.traffic,
            "targets": self.targets,
            "revision": self.revision,
        }

    @classmethod
    def load(cls, data: Mapping[str, Any], grace: float) -> RegistryState:
        """The reverse of dump(): known, not connected. Raises ValueError, KeyError or TypeError on anything odd."""
        live = {}
        for path, entry in data["live"].items():
            parsed = parse_entry(path, json.dumps(entry).encode())
            if parsed:
                live[path] = parsed
        return cls(
            grace=grace,
            known=True,
            live=live,
            drains=set(data["drains"]),
            traffic={str(s): {str(p): int(w) for p, w in weights.items()} for s, weights in data["traffic"].items()},
            targets=dict(data["targets"]),
            base_revision=int(data["revision"]),
            revision=int(data["revision"]),
        )


def document(resource: dict[str, Any], services: frozenset[str]) -> Document:
    """An Envoy DiscoveryResponse file whose version_info is a hash of the resource."""
    version = hashlib.sha256(canonical(resource).encode()).hexdigest()[:16]
    content = json.dumps({"version_info": version, "resources": [resource]}, indent=1, sort_keys=True) + "\n"
    return Document(content.encode(), version, services)


def load_assignment(
    cluster: str, entries: Mapping[str, dict[str, Any]], drains: set[str], region: str
) -> dict[str, Any]:
    """An Envoy v3 ClusterLoadAssignment in a stable order; an empty pool gives a valid empty assignment."""
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    taken: set[tuple[str, int]] = set()
    for path in sorted(entries):
        entry = entries[path]
        place = entry["address"], entry["port"]
        if place in taken:
            # Two keys for one address (a host renamed in place): Envoy would count it twice.
            continue
        taken.add(place)
        endpoint = {
            "endpoint": {"address": {"socket_address": {"address": place[0], "port_value": place[1]}}},
            "health_status": "DRAINING" if path in drains else "HEALTHY",
            "load_balancing_weight": entry["weight"],
            "metadata": {"filter_metadata": {"envoy.lb": {"instance": entry["instance"], "version": entry["version"]}}},
        }
        groups.setdefault((int(entry["region"] != region), entry["region"], entry["zone"]), []).append(endpoint)
    return {
        "@type": EDS_TYPE,
        "cluster_name": cluster,
        "endpoints": [
            {
                "locality": {"region": group_region, "zone": zone},
                "priority": priority,
                "lb_endpoints": groups[priority, group_region, zone],
            }
            for priority, group_region, zone in sorted(groups)
        ],
    }


def route_configuration(
    route: Mapping[str, Any],
    clusters: Mapping[str, tuple[str, str]],
    traffic: Mapping[str, Mapping[str, int]],
    serving: Collection[str] | None = None,
) -> tuple[dict[str, Any], frozenset[str]]:
    """A copy of the route as it holds now, and the services it sends to.

    `serving`: the clusters with an endpoint that is not draining (None: all of them). Weights are filled in; a route
    whose metadata `causeway.needs` names a cluster is left out unless that serves and has weight; a pool is mirrored
    to while it serves and has none.
    """
    resource: dict[str, Any] = {"@type": RDS_TYPE, **copy.deepcopy(dict(route))}
    alive = set(clusters) if serving is None else set(serving)
    services: set[str] = set()

    def weight_of(cluster: str) -> int:
        service, pool = clusters[cluster]
        return traffic.get(service, DEFAULT_WEIGHTS).get(pool, 0)

    def fits(item: Any) -> bool:
        needs = _needs(item)
        if needs in clusters:
            services.add(clusters[needs][0])
            return needs in alive and weight_of(needs) > 0
        return True

    def mirrored(policy: Any) -> bool:
        cluster = str(policy.get("cluster")) if isinstance(policy, dict) else ""
        if cluster in clusters:
            services.add(clusters[cluster][0])
            return cluster in alive and weight_of(cluster) == 0
        return True

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                visit(item)
            return
        if not isinstance(node, dict):
            return
        for key, chosen in (("routes", fits), ("request_mirror_policies", mirrored)):
            if isinstance(node.get(key), list):
                node[key] = [item for item in node[key] if chosen(item)]
        if node.get("request_mirror_policies") == []:
            del node["request_mirror_policies"]
        if isinstance(node.get("cluster"), str) and node["cluster"] in clusters:
            services.add(clusters[node["cluster"]][0])
        weighted = node.get("weighted_clusters")
        if isinstance(weighted, dict) and isinstance(weighted.get("clusters"), list):
            services.update(_fill(weighted["clusters"], clusters, traffic, alive))
        for child in node.values():
            visit(child)

    visit(resource)
    return resource, frozenset(services)


def _needs(route: Any) -> str:
    """The cluster that a route's metadata says it needs; "" if none."""
    try:
        return str(route["metadata"]["filter_metadata"]["causeway"]["needs"])
    except (KeyError, TypeError):
        return ""


def _fill(
    members: list[Any],
    clusters: Mapping[str, tuple[str, str]],
    traffic: Mapping[str, Mapping[str, int]],
    alive: Collection[str],
) -> set[str]:
    """Set the weights of one weighted_clusters list in place; Envoy refuses a sum of 0, so stable takes all then.

    Candidates or baselines that are all gone give their weight to a stable pool that serves: a release that dies costs
    no requests. So does a baseline that this proxy does not know (its service's file was changed and not all hosts have
    that), else the candidates would get more than the release gave them.
    Never the other way round: only a release decides that a new version takes traffic.
    """
    known = [m for m in members if isinstance(m, dict) and m.get("name") in clusters]
    for member in known:
        service, pool = clusters[member["name"]]
        weights = traffic.get(service, DEFAULT_WEIGHTS)
        member["weight"] = weights.get(pool, 0)
        if pool == STABLE and (service, BASELINE) not in [clusters[m["name"]] for m in known]:
            member["weight"] += weights.get(BASELINE, 0)
    if known and not any(m.get("weight", 0) for m in members if isinstance(m, dict)):
        for member in known:
            member["weight"] = DEFAULT_WEIGHTS.get(clusters[member["name"]][1], 0)
    for member in known:
        service, pool = clusters[member["name"]]
        stable = next((m for m in known if clusters[m["name"]] == (service, STABLE) and m["name"] in alive), None)
        if pool in (CANDIDATE, BASELINE) and member["name"] not in alive and stable is not None:
            stable["weight"], member["weight"] = stable["weight"] + member["weight"], 0
    return {clusters[m["name"]][0] for m in known}


def file_sd(targets: Mapping[str, list[dict[str, Any]]]) -> dict[str, bytes]:
    """Prometheus file_sd documents by job, in a stable order."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for host in sorted(targets):
        for target in targets[host]:
            labels = {"host": host, **{str(k): str(v) for k, v in target["labels"].items()}}
            jobs.setdefault(target["job"], []).append({"targets": [target["address"]], "labels": labels})
    return {job: (json.dumps(groups, indent=1, sort_keys=True) + "\n").encode() for job, groups in sorted(jobs.items())}
