# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which identities a host needs and what a rotation means: pure functions behind filters (standard library only)."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.x509_common import TrustError, check_name

SCOPES = ("all", "host", "service", "intermediate", "crl")
_GROUP_PREFIX = "causeway-tls-"
_GROUP_LENGTH = 31


def group_of(identity: str) -> str:
    """Unix group that may read an identity's key: ``causeway-tls-<identity>``.

    Group names have at most 31 characters (systemd-sysusers), so a longer one is cut and made unique by a hash.
    """
    name = _GROUP_PREFIX + identity
    if len(name) <= _GROUP_LENGTH:
        return name
    return f"{name[: _GROUP_LENGTH - 7]}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"


def identity(
    name: str,
    uri: str,
    dns: Iterable[str] = (),
    addresses: Iterable[str] = (),
    *,
    group: str = "",
    common_name: str = "",
) -> dict[str, Any]:
    check_name(name, "identity")
    for item in addresses:
        try:
            ipaddress.ip_address(item)
        except ValueError as error:
            raise TrustError(f"identity {name!r}: {item!r} is no IP address") from error
    return {
        "name": name,
        "uris": [uri],
        "dns": list(dns),
        "addresses": list(addresses),
        "group": group or group_of(name),
        "common_name": common_name or name,
    }


def identities(
    host: Mapping[str, Any],
    domain: str,
    regions: Mapping[str, Any] | None = None,
    instances: Sequence[Mapping[str, Any]] = (),
    extra: Sequence[Mapping[str, Any]] = (),
    *,
    gateway_names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The identities of one host as docs/design.md section 2 lists them, sorted by name.

    host: {name, address, region, components}. instances: those placed on the host, {service, ...}. extra: further
    identities {name, uri?, dns?, addresses?, group?, common_name?} for use without a platform description.
    gateway_names: DNS names by which clients know the gateway, beside `gateway.<domain>`.
    """
    if not domain:
        raise TrustError("the domain is empty; set trust_domain, it is the SPIFFE trust domain")
    for key in ("name", "address"):
        if not host.get(key):
            raise TrustError(f"host: {key} is missing or empty")
    name, components = str(host["name"]), set(host.get("components") or ())
    check_name(name, "host")
    result: dict[str, dict[str, Any]] = {}

    def add(own: str, uri: str, dns: Iterable[str] = (), ips: Iterable[str] = (), common_name: str = "") -> None:
        result[own] = identity(own, f"spiffe://{domain}/{uri}", dns, ips, common_name=common_name)

    full = f"{name}.{domain}"
    # The members of the registry know each other by the common name: no other certificate may join as a peer.
    member = [f"registry.{domain}"] if "registry" in components else []
    add("host", f"host/{name}", [full, *member], dict.fromkeys([str(host["address"]), "127.0.0.1"]), full)
    if "gateway" in components:
        region = (regions or {}).get(str(host.get("region", ""))) or {}
        vip = str((region.get("gateway") or {}).get("address") or "")
        dns = list(dict.fromkeys([f"gateway.{domain}", *gateway_names]))
        add("gateway", "gateway", dns, [vip] if vip else [], dns[0])
    if "metrics" in components:
        add("metrics", "metrics", [f"metrics.{domain}"])
    if "registry" in components:
        add("operator", "operator")
    if "database" in components:
        # A pooler reaches PostgreSQL of its own host over 127.0.0.1 too.
        ips = dict.fromkeys([str(host["address"]), "127.0.0.1"])
        add("database", "database", [f"database.{domain}", full], ips, f"database.{domain}")
    if "backup" in components:
        add("backup", "backup", [f"backup.{domain}", full], [str(host["address"])], f"backup.{domain}")
    if "object_storage" in components:
        # Its processes reach each other by address, clients by name.
        ips = dict.fromkeys([str(host["address"]), "127.0.0.1"])
        names = [f"object-storage.{domain}", full]
        add("object-storage", "object-storage", names, ips, f"object-storage.{domain}")
    for service in sorted({str(item["service"]) for item in instances}):
        add(f"svc-{service}", service, [f"{service}.{domain}"], (), f"{service}.{domain}")
    for item in extra:
        unknown = sorted(set(item) - {"name", "uri", "dns", "addresses", "group", "common_name"})
        if unknown or not item.get("name"):
            raise TrustError(
                f"trust_identities_extra: {'unknown key ' + unknown[0] if unknown else 'name is missing'};"
                " allowed are name, uri, dns, addresses, group, common_name"
            )
        own = str(item["name"])
        if own in result:
            raise TrustError(f"trust_identities_extra: identity {own!r} is there already")
        result[own] = identity(
            own,
            str(item.get("uri") or f"spiffe://{domain}/{own}"),
            item.get("dns") or (),
            item.get("addresses") or (),
            group=str(item.get("group") or ""),
            common_name=str(item.get("common_name") or ""),
        )
    return [result[key] for key in sorted(result)]


def requests(answers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the trust host is asked to sign, for several hosts at once.

    answers: per host {identities, authority, requested}: the identities that the controller computed, the authority
    that signs for the host, and the result of x509_identity there. Only the CSR is taken from the host; the names
    that are granted come from the controller.
    """
    result = []
    for host in sorted(answers):
        answer = answers[host]
        granted = {item["name"]: item for item in answer["identities"]}
        for item in (answer.get("requested") or {}).get("requests") or []:
            if item["identity"] not in granted:
                raise TrustError(f"{host}: asks for the identity {item['identity']!r}, which it does not have")
            wish = granted[item["identity"]]
            result.append(
                {
                    "host": host,
                    "identity": item["identity"],
                    "authority": answer["authority"],
                    "csr": item["csr"],
                    "uris": wish["uris"],
                    "dns": wish["dns"],
                    "addresses": wish["addresses"],
                    "common_name": wish["common_name"],
                }
            )
    return result


def rotation(scope: str, name: str, hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a rotation touches. hosts: per host {region, identities: [names]}.

    Returns {scope, name, regions: whose intermediate gets a new generation, crl: whether lists are signed again,
    hosts: {host: [identities]}}.
    """
    every = ", ".join(SCOPES)
    if scope not in SCOPES:
        raise TrustError(f"scope: {scope!r} is not allowed; use one of {every}, such as -e scope=all")
    if scope in ("host", "service", "intermediate") and not name:
        kind = "region" if scope == "intermediate" else scope
        raise TrustError(f"scope={scope} needs a name, such as -e scope={scope} -e name=<{kind}>")
    if scope in ("all", "crl") and name:
        raise TrustError(
            f"scope={scope} takes no name, {name!r} was given; for one host or service: scope=host|service"
        )
    regions = sorted({str(item["region"]) for item in hosts.values()})
    names = {host: list(item["identities"]) for host, item in hosts.items()}
    allowed = {
        "host": sorted(hosts),
        "service": sorted({item[4:] for listed in names.values() for item in listed if item.startswith("svc-")}),
        "intermediate": regions,
    }
    if scope in allowed and name not in allowed[scope]:
        kind = "region" if scope == "intermediate" else scope
        raise TrustError(
            f"name: there is no {kind} {name!r}; use one of {', '.join(allowed[scope]) or '(none exists)'}"
        )
    touched: dict[str, list[str]] = {}
    if scope == "all":
        touched = names
    elif scope == "host":
        touched = {name: names[name]}
    elif scope == "service":
        touched = {host: [f"svc-{name}"] for host, listed in names.items() if f"svc-{name}" in listed}
    elif scope == "intermediate":
        touched = {host: names[host] for host, item in hosts.items() if str(item["region"]) == name}
    return {
        "scope": scope,
        "name": name,
        "regions": [name] if scope == "intermediate" else [],
        "crl": scope == "crl",
        "hosts": {host: touched[host] for host in sorted(touched)},
    }


def report(
    plan: Mapping[str, Any],
    installed: Mapping[str, Mapping[str, Any]],
    requested: Mapping[str, Mapping[str, Any]],
    crl: Mapping[str, Any],
) -> dict[str, Any]:
    """The end of a rotation: what was renewed and until when every identity is valid, as data and as readable lines."""
    rows = []
    for host in sorted(requested):
        renewed = {item["identity"]: item["reasons"] for item in (requested[host].get("requests") or [])}
        final = installed.get(host) or {}
        for item in final.get("identities") or requested[host].get("identities") or []:
            rows.append(
                {
                    "host": host,
                    "identity": item["name"],
                    "serial": item["serial"],
                    "not_after": item["not_after"],
                    "renewed": item["name"] in renewed,
                    "reasons": renewed.get(item["name"], []),
                }
            )
    count = sum(1 for row in rows if row["renewed"])
    lines = [f"{count} of {len(rows)} certificates renewed (scope {plan['scope']} {plan['name']})".replace(" )", ")")]
    for row in rows:
        what = f"renewed: {', '.join(row['reasons'])}" if row["renewed"] else "kept"
        lines.append(f"{row['host']:<14} {row['identity']:<20} valid until {row['not_after'] or '-':<20} {what}")
    for item in crl.get("lists") or []:
        what = f"number {item['number']} valid until {item['next_update']}, {item['revoked']} revoked"
        lines.append(f"revocation list {item['authority']} G{item['generation']} {what}")
    return {
        "scope": plan["scope"],
        "name": plan["name"],
        "renewed": count,
        "certificates": rows,
        "revocation_lists": list(crl.get("lists") or []),
        "text": lines,
    }
