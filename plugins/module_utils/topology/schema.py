# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of platform.yml and of a service file, as JSON Schema (draft 2020-12), and its errors in plain words.

``allowed`` next to a rule is our annotation: what a message says is allowed. ``duration``, ``size``, ``ipv4``,
``network`` and ``calendar`` are keywords of our own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.s3 import BUCKET_TEXT, MODES
from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Document, Vaulted
from ansible_collections.causeway.platform.plugins.module_utils.topology.object_storage import MASTERS, REPOSITORIES
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import (
    Problem,
    choices,
    show,
    suggest,
    type_name,
)
from ansible_collections.causeway.platform.plugins.module_utils.topology.units import (
    check_calendar,
    parse_duration,
    parse_size,
)

try:
    import jsonschema
    from jsonschema import validators

    HAS_JSONSCHEMA = True
except ImportError:  # the plugin turns this into one clear sentence
    HAS_JSONSCHEMA = False

PLUGIN = "causeway.platform.topology"
COMPONENTS = ("gateway", "registry", "services", "metrics", "trust", "database", "backup", "object_storage")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STRATEGIES = ("rolling", "blue_green", "canary")
SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
METRIC_KINDS = ("errors", "latency", "saturation", "business")
METHODS_OF_JUDGING = ("sequential", "kayenta")
HOOK_STAGES = ("pre", "test", "verdict", "promoted", "rolled_back")
HOOK_KINDS = ("playbook", "webhook", "mail")

# The unix group causeway-tls-svc-<service> has to stay within the 31 characters that systemd-sysusers accepts.
MAX_SERVICE_NAME = 31 - len("causeway-tls-svc-")
SLOTS = 10
STABLE_SLOTS = 5  # the other five are the candidates'
MESH_PORTS = (7000, 8990)
CALL_PORTS = (9001, 9080)
MAX_MEMBERS = 7

LABEL = r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"
_LABEL_TEXT = "a DNS label: lower-case letters, digits and dashes, first a letter, last no dash, at most 63"
_URL_PATH = r"^(?!.*//)(?!.*/\.{1,2}(?:/|\Z))/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*\Z"
_ROUTE = r"^/(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*)?\Z"
_FILE = r"^[^\x00-\x1f{}]+\Z"


def _map(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _named(pattern: str, allowed: str, value: dict[str, Any]) -> dict[str, Any]:
    names = {"pattern": pattern, "allowed": allowed}
    return {"type": "object", "propertyNames": names, "additionalProperties": value}


def _text(pattern: str, allowed: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "allowed": allowed}


def _whole(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, "allowed": f"a whole number, {low} to {high}"}


def _real(low: float, high: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high, "allowed": f"a number, {low:g} to {high:g}"}


def _duration(low: str, high: str) -> dict[str, Any]:
    limits = [parse_duration(low), parse_duration(high)]
    return {
        "type": "string",
        "duration": limits,
        "allowed": f"a duration from {low} to {high}, such as 250ms, 5s or 2m",
    }


_NAME = _text(LABEL, _LABEL_TEXT)
_IPV4 = {"type": "string", "ipv4": True, "allowed": "an IPv4 address of one machine, such as 10.77.1.11"}
_PATH = _text(_URL_PATH, "an absolute URL path without //, /./ and /../, such as /healthz")
_PORT = _whole(1, 65535)
_VARS = {"type": "object"}

_DOMAIN = {
    **_text(
        r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+\Z",
        "a DNS domain of two or more labels in lower case, such as shop.internal, at most 180 characters",
    ),
    "maxLength": 180,
}
_FILE_PATH = _text(_FILE, "a path without braces and control characters")

_HOST = _map(
    {
        "address": _IPV4,
        "components": {"type": "array", "items": {"enum": list(COMPONENTS)}, "uniqueItems": True},
        "vars": _VARS,
    },
    ("address",),
)
_REGION = _map(
    {
        "state": {"enum": ["active", "standby"]},
        "gateway": _map(
            {
                "address": {**_IPV4, "allowed": 'an IPv4 address, or "" for none', "empty": True},
                "port": _PORT,
                "router_id": _whole(1, 255),
            }
        ),
        "zones": {
            **_named(LABEL, _LABEL_TEXT, _map({"hosts": _named(LABEL, _LABEL_TEXT, _HOST)}, ("hosts",))),
            "minProperties": 1,
        },
    },
    ("zones",),
)
_LAB = _map(
    {
        "name": _text(r"^[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?\Z", "lower-case letters, digits and dashes, at most 32"),
        "network": {"type": "string", "network": True, "allowed": "an IPv4 network, /16 to /28, such as 10.77.0.0/16"},
        "gateway": _IPV4,
        "packages": {
            "type": "array",
            "items": _text(r"^[a-z0-9][a-z0-9+.-]+\Z", "a Debian package name"),
            "uniqueItems": True,
        },
        "mirror": _text(r"^https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?\Z", "an http or https URL"),
        "state": _FILE_PATH,
    },
    ("name", "network"),
)

# A bucket that S3 would take; names that it keeps for itself are a rule's matter.
_BUCKET = r"^[a-z0-9](?:[a-z0-9-]{1,61}[a-z0-9])\Z"
_OBJECT_STORAGE = {
    **_map(
        {
            "masters": {"enum": list(MASTERS)},
            "replication": _text(
                r"^[0-2]{3}\Z", "three digits 0 to 2 in quotes: further copies in other regions, zones, hosts of a zone"
            ),
            "buckets": {
                **_named(
                    _BUCKET,
                    BUCKET_TEXT,
                    {
                        **_map(
                            {
                                "versioning": {"type": "boolean", "allowed": "true or false"},
                                "noncurrent_days": _whole(1, 36500),
                                "expiration_days": _whole(1, 36500),
                                "multipart_days": _whole(1, 36500),
                                "lock": _map(
                                    {"mode": {"enum": list(MODES)}, "days": _whole(1, 36500)}, ("mode", "days")
                                ),
                            }
                        ),
                        "type": ["object", "null"],
                        "allowed": "a mapping; {} for every default",
                    },
                ),
                "minProperties": 1,
            },
        }
    ),
    "type": ["object", "null"],
    "allowed": "a mapping; {} for every default",
}
_NETWORK_NAME = _text(r"^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z", "a name or an IPv4 address")
_SECRET = {"type": ["string", "vault"], "allowed": "a !vault value (ansible-vault encrypt_string)"}
_REPOSITORY = _map(
    {
        "type": {"enum": list(REPOSITORIES)},
        "path": _text(r"^/[A-Za-z0-9._/-]*\Z", "an absolute path, such as /pgbackrest"),
        "retention": _map({"full": _whole(1, 1000), "differential": _whole(1, 1000)}),
        "bucket": _text(r"^[^\x00-\x1f{}]{1,255}\Z", BUCKET_TEXT),
        "endpoint": _NETWORK_NAME,
        "region": _text(r"^[A-Za-z0-9-]{1,63}\Z", "the name of an S3 region"),
        "key": _SECRET,
        "key_secret": _SECRET,
        "uri_style": {"enum": ["host", "path"]},
        "ca_file": _FILE_PATH,
        "host": _NETWORK_NAME,
        "port": _PORT,
        "user": _text(r"^[A-Za-z_][A-Za-z0-9._-]{0,63}\Z", "the name of a user"),
        "private_key": _SECRET,
        "known_host": {
            **_text(r"^\S+ \S+ [A-Za-z0-9+/=]+\Z", "one line of known_hosts: host, kind of key, key"),
            "maxLength": 4000,
        },
    },
    ("type",),
)
_BACKUPS = _map({"repositories": {"type": "array", "maxItems": 8, "items": _REPOSITORY}})

PLATFORM: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "platform.yml",
    **_map(
        {
            "plugin": {"const": PLUGIN},
            "platform": _NAME,
            "domain": _DOMAIN,
            "services": _FILE_PATH,
            "secrets": _FILE_PATH,
            "regions": {**_named(LABEL, _LABEL_TEXT, _REGION), "minProperties": 1},
            "vars": _VARS,
            "object_storage": _OBJECT_STORAGE,
            "backups": _BACKUPS,
            "lab": _LAB,
        },
        ("plugin", "platform", "domain", "regions"),
    ),
}

_RETRIES = _map(
    {
        "attempts": _whole(0, 10),
        "per_try_timeout": _duration("1ms", "1h"),
        "backoff": _map({"base": _duration("1ms", "1m"), "max": _duration("1ms", "5m")}),
        "budget": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 100,
            "allowed": "a percentage above 0, at most 100",
        },
    }
)
_RATE = _map(
    {"requests": _whole(1, 1_000_000), "per": _duration("1s", "1h"), "burst": _whole(1, 10_000_000)}, ("requests",)
)
_SERVICE_NAME = {**_NAME, "maxLength": MAX_SERVICE_NAME, "allowed": f"{_LABEL_TEXT[:-2]}{MAX_SERVICE_NAME}"}
_CALL = {
    **_map(
        {"service": _NAME, "port": _whole(*CALL_PORTS), "timeout": _duration("1ms", "1h"), "retries": _RETRIES},
        ("service",),
    ),
    "type": ["string", "object"],
    "allowed": "the name of a service, or a mapping with the key service",
}

# RFC 9110, section 5.1: a field name is a token; Envoy keeps names that begin with a colon for itself.
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"
_WORD = r"^[a-z](?:[a-z0-9_-]{0,38}[a-z0-9])?\Z"
_WORD_TEXT = "lower-case letters, digits, - and _, at most 40"
_METRIC = _map(
    {
        "name": _text(_WORD, _WORD_TEXT),
        "kind": {"enum": list(METRIC_KINDS)},
        "query": {**_text(r"^[^\x00-\x08\x0b-\x1f]+\Z", "PromQL that yields one number"), "maxLength": 2000},
        "worse": {"enum": ["higher", "lower"]},
        "margin": _real(0, 10),
        "quantile": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "allowed": "a number above 0 and below 1, such as 0.99",
        },
        "limit": {"type": ["number", "null"], "allowed": "a number in the metric's unit"},
        "group": _text(_WORD, _WORD_TEXT),
        "critical": {"type": "boolean"},
        "effect": _map({"allowed_increase": _real(1, 100), "allowed_decrease": _real(0, 1)}),
    },
    ("name", "kind"),
)
_BOOLEAN = {"type": "boolean", "allowed": "true or false"}
_JUDGED = {
    "canary": _map(
        {
            "steps": {
                "type": "array",
                "maxItems": 50,
                "items": _map({"weight": _whole(1, 99), "duration": _duration("1s", "24h")}, ("weight",)),
            },
            "sticky": _text(rf"^(?:cookie|none|header:{_TOKEN})\Z", "cookie, none, or header: and a header's name"),
            "cohort": _map(
                {
                    "header": _text(rf"^(?:{_TOKEN})?\Z", "the name of a header"),
                    "value": _text(r"^[\x20-\x7e]{0,256}\Z", "printable ASCII, at most 256 characters"),
                }
            ),
            "instances": _whole(0, 1000),
            "baseline": {"type": "boolean"},
        }
    ),
    "blue_green": _map({"bake": _duration("0s", "24h"), "mirror": _map({"percent": _real(0, 100)})}),
    "rolling": _map({"judge": _BOOLEAN, "require": _BOOLEAN}),
    "rollback_window": _duration("0s", "168h"),
    "analysis": _map(
        {
            "interval": _duration("1s", "1h"),
            "alpha": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 0.5,
                "allowed": "a number above 0, at most 0.5",
            },
            "min_requests": _whole(1, 1_000_000_000),
            "method": {"enum": list(METHODS_OF_JUDGING)},
            "groups": _named(_WORD, _WORD_TEXT, _real(0, 100)),
            "thresholds": _map({"pass": _real(0, 100), "marginal": _real(0, 100)}),
            "metrics": {"type": "array", "maxItems": 30, "items": _METRIC},
        }
    ),
}

# TLS, but for a receiver on the controller itself; no user information, which would be a secret in plain text.
_WEBHOOK_URL = r"^(?:https://[A-Za-z0-9.-]+|http://(?:localhost|127\.0\.0\.1))(?::[0-9]{1,5})?(?:/[!-?A-~]*)?\Z"
_HOOK = _map(
    {
        "name": _text(r"^[a-z](?:[a-z0-9_-]{0,38}[a-z0-9])?\Z", "lower-case letters, digits, - and _, at most 40"),
        "stages": {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"enum": list(HOOK_STAGES)},
            "allowed": f"a list of {', '.join(HOOK_STAGES)}",
        },
        "playbook": _FILE_PATH,
        "webhook": _map(
            {
                "url": {
                    **_text(_WEBHOOK_URL, "an https URL without user name; http only to localhost or 127.0.0.1"),
                    "maxLength": 1000,
                },
                "secret": _text(r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z", "the name of a secret: letters, digits and _"),
                "ca_file": _FILE_PATH,
            },
            ("url", "secret"),
        ),
        "mail": _map(
            {
                "to": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 50,
                    "uniqueItems": True,
                    "items": _text(
                        r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?\Z",
                        "a mail address",
                    ),
                    "allowed": "a list of mail addresses",
                }
            },
            ("to",),
        ),
        "timeout": _duration("1s", "1h"),
        "failure": {"enum": ["stop", "ignore"]},
    },
    ("name", "stages"),
)

_NUMBERED = r"[A-Za-z_][A-Za-z0-9_$-]{0,62}"
_HOST_FILE = _text(r"^(?:/[^\x00-\x1f{}]+)?\Z", "an absolute path on the host that runs the migrations")
_MIGRATIONS = _map(
    {
        "directory": _FILE_PATH,
        "database": _map(
            {
                "host": _text(
                    r"^(?:[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?|/[^\x00-\x1f{}]+)\Z",
                    "a name, an address, or the directory of a unix socket",
                ),
                "port": _PORT,
                "name": _text(rf"^{_NUMBERED}\Z", "letters, digits, _, $ and -, at most 63"),
                "user": _text(rf"^{_NUMBERED}\Z", "letters, digits, _, $ and -, at most 63"),
                "sslmode": {"enum": list(SSL_MODES)},
                "ca": _HOST_FILE,
                "cert": _HOST_FILE,
                "key": _HOST_FILE,
            },
            ("host", "name", "user"),
        ),
        "secret": _text(
            r"^(?:[A-Za-z_][A-Za-z0-9_]*)?\Z", "the name of an entry of the secrets file, never a password"
        ),
        "lock_timeout": _duration("1ms", "1h"),
        "statement_timeout": _duration("1ms", "24h"),
        "retries": _whole(0, 100),
        "backoff": _map({"base": _duration("1ms", "1m"), "max": _duration("1ms", "1h")}),
        "batch_pause": _duration("0s", "1h"),
        "run_on": {**_text(r"^(?:[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)?\Z", "the name of a host"), "empty": True},
        "lint": _map(
            {
                "exclude": {
                    "type": "array",
                    "items": _text(r"^[a-z][a-z0-9-]{1,79}\Z", "the name of a rule of squawk"),
                    "uniqueItems": True,
                }
            }
        ),
    },
    (),
)

_CALENDAR = {
    "type": "string",
    "calendar": True,
    "empty": True,
    "allowed": 'a calendar expression of systemd, such as "Sun *-*-* 02:00:00" or daily, or "" for never',
}
_PLACEMENT = _map(
    {
        "regions": {"type": "array", "items": _NAME, "uniqueItems": True},
        "zones": {"type": "array", "items": _NAME, "uniqueItems": True},
    }
)
MAX_SHARDS = 10  # each takes one of the ten ports of its service
_TENANT_NAME = r"^[a-z][a-z0-9_]{0,29}\Z"
_TENANT_TEXT = "a tenant's name: lower-case letters, digits and _, first a letter, at most 30"
_SHARDS = {
    **_map(
        {
            "by": {"enum": ["tenant", "region"]},
            "count": _whole(1, MAX_SHARDS),
            "named": {
                **_named(
                    r"^[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?\Z",
                    "a shard's name: lower-case letters, digits and dashes, first a letter, at most 20",
                    {
                        **_map({"weight": _real(0, 1000), "region": _NAME, "number": _whole(1, MAX_SHARDS)}),
                        "type": ["object", "null"],
                        "allowed": "a mapping with weight, region and number; {} for every default",
                    },
                ),
                "minProperties": 1,
                "maxProperties": MAX_SHARDS,
            },
            "read_across": {
                "type": "array",
                "items": _text(r"^[a-z_][a-z0-9_]{0,62}\Z", "the name of a table in schema public"),
                "uniqueItems": True,
            },
        }
    ),
    "type": ["integer", "object"],
    "minimum": 1,
    "maximum": MAX_SHARDS,
    "allowed": f"a number of shards, 1 to {MAX_SHARDS}, or a mapping with by, count, named and read_across",
}
_TENANTS = {
    "type": "array",
    "maxItems": 2000,
    "items": {
        **_map({"name": _text(_TENANT_NAME, _TENANT_TEXT), "shard": _NAME, "region": _NAME}, ("name",)),
        "pattern": _TENANT_NAME,
        "type": ["string", "object"],
        "allowed": f"{_TENANT_TEXT}; or a mapping with name, shard and region",
    },
}
_DATABASE = {
    **_map(
        {
            "name": _text(r"^[a-z][a-z0-9_]{0,39}\Z", "lower-case letters, digits and _, first a letter, at most 40"),
            "members": _whole(1, MAX_MEMBERS),
            "placement": _PLACEMENT,
            "strict": _BOOLEAN,
            "max_lag": {
                "type": "string",
                "size": [64 << 10, 1 << 40],
                "allowed": "64K to 1T, in K, M, G or T, such as 16M",
            },
            "extensions": {
                "type": "array",
                "items": _text(r"^[a-z][a-z0-9_-]{0,62}\Z", "the name of an extension, as in CREATE EXTENSION"),
                "uniqueItems": True,
            },
            "pool": _map({"size": _whole(1, 500), "reserve": _whole(0, 500), "clients": _whole(1, 100_000)}),
            "settings": {
                "type": "object",
                "propertyNames": {
                    "pattern": r"^[A-Za-z_][A-Za-z0-9_]{0,62}(?:\.[A-Za-z_][A-Za-z0-9_]{0,62})?\Z",
                    "allowed": "the name of a PostgreSQL parameter",
                },
                "additionalProperties": {
                    "type": ["string", "number", "boolean"],
                    "pattern": r"^[^\x00-\x1f\x7f]{0,1000}\Z",
                    "allowed": "one line of text, a number, or true or false",
                },
            },
            "backup": _map(
                {
                    "full": _CALENDAR,
                    "differential": _CALENDAR,
                    "incremental": _CALENDAR,
                    "restore_test": _CALENDAR,
                    "retention": _map({"full": _whole(1, 1000), "differential": _whole(1, 1000)}),
                    "checks": {
                        "type": "array",
                        "maxItems": 50,
                        "items": {
                            **_text(r"^[^\x00-\x08\x0b-\x1f]*\S[^\x00-\x08\x0b-\x1f]*\Z", "a query that returns true"),
                            "maxLength": 4000,
                        },
                    },
                }
            ),
            "shards": _SHARDS,
            "tenants": _TENANTS,
        }
    ),
    "type": ["object", "null"],
    "allowed": "a mapping; {} for every default",
}

SERVICE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "service file",
    **_map(
        {
            "name": _SERVICE_NAME,
            "version": _text(
                r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}\Z", 'letters, digits, ".", "_" and "-", in quotes: "1.0.0"'
            ),
            "image": _map(
                {
                    "archive": _text(
                        r"^(?:[^\x00-\x1f{}]|\{service\}|\{version\})+\Z",
                        "the path of an image archive; the only placeholders are {service} and {version}",
                    ),
                    "repository": _text(
                        r"^[a-z0-9]+(?:[.:_-][a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+\Z",
                        "an OCI repository without a tag, such as images.example.org/shop/orders",
                    ),
                    "reference": _text(
                        r"^[a-z0-9]+(?:[.:_-][a-z0-9]+)*(?:/(?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*|\{service\}))*"
                        r"(?::(?:[A-Za-z0-9._-]|\{version\})+|@sha256:[0-9a-f]{64})\Z",
                        "an OCI reference, such as localhost/causeway/{service}:{version}",
                    ),
                }
            ),
            "port": _PORT,
            "mesh_port": {
                **_whole(*MESH_PORTS),
                "allowed": f"{MESH_PORTS[0]} to {MESH_PORTS[1]}: it and the next {SLOTS - 1} ports are the service's,"
                " and clear of the platform's own",
            },
            "health": _map(
                {
                    "path": _PATH,
                    "interval": _duration("100ms", "1m"),
                    "timeout": _duration("10ms", "1m"),
                    "unhealthy": _whole(1, 100),
                    "healthy": _whole(1, 100),
                    "start_timeout": _duration("1s", "1h"),
                }
            ),
            "metrics": _map({"path": _PATH}, ("path",)),
            "instances": _map(
                {
                    "min": _whole(1, 1000),
                    "max": _whole(1, 1000),
                    "count": _whole(1, 1000),
                    "per_host": _whole(1, STABLE_SLOTS),
                }
            ),
            "placement": _PLACEMENT,
            "routes": {
                "type": "array",
                "items": _map(
                    {
                        "prefix": _text(_ROUTE, "an absolute URL path without a closing slash, such as /orders, or /"),
                        "timeout": _duration("1ms", "1h"),
                        "methods": {"type": "array", "items": {"enum": list(METHODS)}, "uniqueItems": True},
                        "retries": _RETRIES,
                        "rate_limit": _RATE,
                    },
                    ("prefix",),
                ),
            },
            "calls": {"type": "array", "items": _CALL, "maxItems": CALL_PORTS[1] - CALL_PORTS[0] + 1},
            "resources": _map(
                {
                    "memory": {
                        "type": "string",
                        "size": [16 << 20, 1 << 42],
                        "allowed": "16M or more, in K, M, G or T, such as 256M",
                    },
                    "cpus": _real(0.01, 1024),
                    "pids": _whole(1, 4_000_000),
                }
            ),
            "environment": {
                "type": "object",
                "propertyNames": {
                    "pattern": r"^[A-Za-z_][A-Za-z0-9_]*\Z",
                    "allowed": "letters, digits and _, first no digit",
                },
                "additionalProperties": {
                    "type": ["string", "number", "vault"],
                    "pattern": r"^[^\x00-\x08\x0a-\x1f]*\Z",
                    "allowed": "one line of text (in quotes), a number or a !vault value",
                },
            },
            "release": _map(
                {
                    "strategy": {"enum": list(STRATEGIES)},
                    "batch": _whole(1, 1000),
                    "pause": _duration("0s", "1h"),
                    "drain_timeout": _duration("1s", "1h"),
                    "health_timeout": _duration("1s", "1h"),
                    "verify": _map({"path": _PATH, "requests": _whole(1, 10_000)}),
                    **_JUDGED,
                    "hooks": {"type": "array", "maxItems": 20, "items": _HOOK},
                }
            ),
            "migrations": _MIGRATIONS,
            "database": _DATABASE,
            "slo": _map(
                {
                    "availability": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "exclusiveMaximum": 100,
                        "allowed": "a percentage above 0 and below 100",
                    },
                    "latency_p99": _duration("1ms", "1h"),
                }
            ),
        },
        ("name", "version", "image", "port", "mesh_port"),
    ),
}


def address_of(text: str) -> ipaddress.IPv4Address:
    """An address that one machine can have; raises ValueError."""
    address = ipaddress.IPv4Address(text)
    if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_reserved:
        raise ValueError("not the address of a machine")
    return address


def network_of(text: str) -> ipaddress.IPv4Network:
    """A network that a lab can use; raises ValueError."""
    network = ipaddress.IPv4Network(text)
    if not 16 <= network.prefixlen <= 28:
        raise ValueError("not of a usable size")
    return network


def _within(parse: Any) -> Any:
    def check(_validator: Any, limits: list[float], value: Any, _schema: Any) -> Iterator[Any]:
        if isinstance(value, str):
            try:
                if limits[0] <= parse(value) <= limits[1]:
                    return
            except ValueError:
                pass
            yield jsonschema.ValidationError("out of range")

    return check


def _parses(parse: Any) -> Any:
    def check(_validator: Any, _wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, str) and not (value == "" and schema.get("empty")):
            try:
                parse(value)
            except ValueError:
                yield jsonschema.ValidationError("does not parse")

    return check


def _make(schema: dict[str, Any]) -> Any:
    base = validators.Draft202012Validator
    types = base.TYPE_CHECKER.redefine("vault", lambda _checker, value: isinstance(value, Vaulted))
    types = types.redefine("integer", lambda _checker, value: isinstance(value, int) and not isinstance(value, bool))
    keywords = {
        "duration": _within(parse_duration),
        "size": _within(parse_size),
        "ipv4": _parses(address_of),
        "network": _parses(network_of),
        "calendar": _parses(check_calendar),
    }
    return validators.extend(base, keywords, type_checker=types)(schema)


_VALIDATORS: dict[str, Any] = {}


def check(document: Document, schema: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Adds a problem for each breach of a schema and takes the value out, so that what is left is sound.

    Returns the paths of the values taken out.
    """
    title = schema["title"]
    if title not in _VALIDATORS:
        _VALIDATORS[title] = _make(schema)
    bad: list[tuple[Any, ...]] = []
    for error in _VALIDATORS[title].iter_errors(document.data):
        path = tuple(error.absolute_path)
        for problem, spoilt in _explain(document, error, path):
            document.problems.append(problem)
            if spoilt is not None:
                bad.append(spoilt)
    for path in bad:
        _drop(document.data, path)
    return bad


def _drop(data: Any, path: tuple[Any, ...]) -> None:
    for part in path[:-1]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return  # a value around it is gone already
    if isinstance(data, dict):
        data.pop(path[-1], None)
    elif isinstance(data, list):
        data[path[-1]] = None  # keeps the positions of the others


def _explain(document: Document, error: Any, path: tuple[Any, ...]) -> Iterator[tuple[Problem, Any]]:
    """Problems of one schema error, each with the path of the value to leave out (or None)."""
    rule, schema, value = error.validator, error.schema, error.instance
    allowed = schema.get("allowed")
    secret = "environment" in path or path[-1:] in (("key",), ("key_secret",), ("private_key",))

    def problem(where: tuple[Any, ...], text: str, got: Any = None, may: Any = None) -> Problem:
        return Problem(document.file, where, text, got, may, document.line(where))

    if rule == "additionalProperties":
        known = list(schema["properties"])
        for key in [key for key in value if key not in schema["properties"]]:
            yield problem((*path, key), f"unknown key{suggest(key, known)}", None, choices(known)), (*path, key)
    elif rule == "required":
        for key in [key for key in error.validator_value if key not in value]:
            yield problem(path, f"the key {key} is missing", None, schema["properties"][key].get("allowed")), None
    elif "propertyNames" in error.absolute_schema_path:
        yield problem((*path, value), "bad name", show(value), allowed), None
    elif rule == "type":
        kinds = {
            "object": "a mapping",
            "array": "a list",
            "string": "text",
            "integer": "a whole number",
            "number": "a number",
        }
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        may = allowed or " or ".join(str(kinds.get(kind, kind)) for kind in wanted)
        got = (
            type_name(value)
            if secret or not isinstance(value, (str, int, float))
            else f"{type_name(value)}, {show(value)}"
        )
        yield problem(path, "wrong type", got, may), path
    elif rule in ("enum", "const"):
        options = error.validator_value if rule == "enum" else [error.validator_value]
        yield (
            problem(path, f"unknown value{suggest(value, map(str, options))}", show(value), choices(map(str, options))),
            path,
        )
    elif rule == "uniqueItems":
        twice = [item for number, item in enumerate(value) if item in value[:number]]
        yield problem(path, "given twice", show(twice[0]), "each value once"), None
    elif rule in ("minProperties", "maxProperties", "minItems", "maxItems"):
        yield problem(path, "wrong number of entries", str(len(value)), f"{rule[:3]}imum {error.validator_value}"), None
    else:
        yield problem(path, "not valid", None if secret else show(value), allowed), path
