# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small pieces that every Envoy document is made of: typed configs, durations, xDS responses, file sources."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

TYPE = "type.googleapis.com/envoy."
LISTENER = TYPE + "config.listener.v3.Listener"
CLUSTER = TYPE + "config.cluster.v3.Cluster"
SECRET = TYPE + "extensions.transport_sockets.tls.v3.Secret"
ROUTES = TYPE + "config.route.v3.RouteConfiguration"
ENDPOINTS = TYPE + "config.endpoint.v3.ClusterLoadAssignment"

CONFIG_ROOT = "/etc/envoy"
XDS_ROOT = "/var/lib/causeway/xds"
RUN_ROOT = "/run/envoy"
TLS_ROOT = "/etc/causeway/tls"


class EnvoyConfigError(Exception):
    """The description cannot be turned into an Envoy configuration; the message says where and what is allowed."""


def duration(seconds: float) -> str:
    """Protobuf JSON duration: 0.25 -> "0.250s". Raises EnvoyConfigError for a negative or non-finite value."""
    value = float(seconds)
    if not math.isfinite(value) or value < 0:
        raise EnvoyConfigError(f"duration {seconds!r}: must be a finite number of seconds, 0 or more")
    return f"{value:g}s" if value == int(value) else f"{value:.3f}s"


def typed(extension: str, **fields: Any) -> Json:
    """A google.protobuf.Any: the type name below type.googleapis.com/envoy., then the fields."""
    return {"@type": TYPE + extension, **fields}


def named(name: str, extension: str, **fields: Any) -> Json:
    """An extension entry: name and typed_config."""
    return {"name": name, "typed_config": typed(extension, **fields)}


def content_version(content: Any) -> str:
    """Version of an xDS document: a hash of its content, so that equal content has an equal version."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def discovery(type_url: str, resources: list[Json]) -> Json:
    """An xDS DiscoveryResponse as Envoy reads it from a file."""
    tagged = [{"@type": type_url, **resource} for resource in resources]
    return {"version_info": content_version(tagged), "resources": tagged}


def file_source(path: str) -> Json:
    """Config source of one xDS file. The directory is watched, so that a file replaced by rename is noticed."""
    return {
        "path_config_source": {"path": path, "watched_directory": {"path": path.rsplit("/", 1)[0]}},
        "resource_api_version": "V3",
    }


def pipe(path: str, mode: int | None = None) -> Json:
    """Address of a unix socket."""
    return {"pipe": {"path": path, **({} if mode is None else {"mode": mode})}}


def socket(address: str, port: int) -> Json:
    """TCP address."""
    return {"socket_address": {"address": address, "port_value": int(port)}}


def static_endpoints(cluster: str, addresses: list[Json]) -> Json:
    """Load assignment with fixed endpoints."""
    return {
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}],
    }


def header(key: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Json:
    """Header to add; the default replaces what is there."""
    return {"header": {"key": key, "value": value}, "append_action": action}


def merged(base: Json, extra: Json) -> Json:
    """Deep merge of dictionaries; lists and scalars of the second win. Inputs stay untouched."""
    result = copy.deepcopy(base)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
