#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_identity
short_description: Private keys and certificates on the host that uses them
version_added: "0.1.0"
description:
  - Makes private keys on the host, returns the certificate signing requests (CSRs) that are needed, and installs
    the answers. A private key never leaves the host.
  - A certificate is asked for when it is missing or damaged, when its names changed, when its issuer is no longer
    the current one, when it was revoked, when
    little of its life remains, or when O(force) names it.
  - Key, certificate, root bundle and revocation lists of an identity lie in one directory, and the symbolic link
    C(current) is pointed to it by rename, so that a
    reader that watches the directory sees all of them change at once.
  - A newer O(ca) or O(crl) is put beside the present certificate already with O(state=requested), before anybody
    uses a certificate that needs it.
author:
  - The causeway.platform authors (@causeway)
options:
  state:
    description: V(requested) returns the needed CSRs; V(installed) installs O(certificates).
    type: str
    choices: [requested, installed]
    default: requested
  identities:
    description: The identities that this host shall have.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the identity and of its directory.
        type: str
        required: true
      uris:
        description: URIs, for SPIFFE exactly one.
        type: list
        elements: str
        default: []
      dns:
        description: DNS names.
        type: list
        elements: str
        default: []
      addresses:
        description: IP addresses.
        type: list
        elements: str
        default: []
      group:
        description: Unix group that may read the private key; without it C(causeway-tls-<name>).
        type: str
        default: ''
      common_name:
        description: Common name of the CSR; without it the name.
        type: str
        default: ''
  certificates:
    description: What P(causeway.platform.x509_certificate#module) returned. Only entries of O(host) are used.
    type: list
    elements: dict
    default: []
    suboptions:
      identity:
        description: Identity that the certificate is for.
        type: str
        required: true
      certificate:
        description: Leaf and intermediate as PEM.
        type: str
        required: true
      host:
        description: Host that the certificate is for.
        type: str
        default: ''
      authority:
        description: Authority that signed it.
        type: str
        default: ''
      generation:
        description: Its generation.
        type: int
        default: 0
      serial:
        description: Serial number.
        type: str
        default: ''
      not_before:
        description: Start of validity.
        type: str
        default: ''
      not_after:
        description: End of validity.
        type: str
        default: ''
  host:
    description: Name of this host in O(certificates). Empty means that all entries are for this host.
    type: str
    default: ''
  ca:
    description: Bundle of root certificates (PEM). Empty only in check mode.
    type: str
    default: ''
  crl:
    description: Bundle of revocation lists (PEM).
    type: str
    default: ''
  issuer:
    description:
      - SHA-256 of the intermediate that signs now; a certificate of another one is replaced. Empty means any.
    type: str
    default: ''
  renew_at:
    description: Fraction of the life below which a certificate is replaced.
    type: float
    default: 0.34
  force:
    description:
      - Names of identities whose certificates are replaced in any case. The module is not idempotent with it.
    type: list
    elements: str
    default: []
  request:
    description:
      - Whether to ask for certificates at all with O(state=requested); V(false) only puts a newer O(ca) and O(crl)
        in place.
    type: bool
    default: true
  reference_time:
    description:
      - RV(causeway.platform.x509_crl#module:time) of the trust host. This host's clock may not differ by more than
        O(clock_tolerance). Empty means no check.
    type: str
    default: ''
  clock_tolerance:
    description: How far the clocks may differ, as a number with V(s), V(m), V(h), V(d) or V(w).
    type: str
    default: 5m
  keep:
    description: How many generations to keep, the current one included.
    type: int
    default: 2
  purge:
    description: Remove identities below O(path) that are not listed, with their private keys.
    type: bool
    default: false
  path:
    description: Directory of the identities.
    type: path
    default: /etc/causeway/tls
  sysusers_file:
    description: Where to declare the groups for systemd-sysusers. Empty means that the groups must exist.
    type: path
    default: /etc/sysusers.d/causeway-tls.conf
attributes:
  check_mode:
    support: full
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    support: full
    description:
      - Returns details on what has changed (or possibly needs changing in check_mode), when in diff mode. Private
        keys are never in it.
  idempotent:
    support: full
    description: Nothing changes while every certificate is in order.
requirements:
  - cryptography 42 or newer (Debian package C(python3-cryptography)) on the host
notes:
  - A key whose CSR was never answered is replaced at the next run.
seealso:
  - module: causeway.platform.x509_certificate
  - module: causeway.platform.x509_crl
"""

EXAMPLES = r"""
- name: Make keys and ask for certificates
  causeway.platform.x509_identity:
    identities:
      - name: svc-orders
        uris: ["spiffe://shop.internal/orders"]
        dns: [orders.shop.internal]
    ca: "{{ lists.ca }}"
    crl: "{{ lists.crl }}"
  register: asked

- name: Install what was signed
  causeway.platform.x509_identity:
    state: installed
    identities:
      - name: svc-orders
        uris: ["spiffe://shop.internal/orders"]
        dns: [orders.shop.internal]
    certificates: "{{ signed.certificates }}"
    host: "{{ inventory_hostname }}"
    ca: "{{ lists.ca }}"
    crl: "{{ lists.crl }}"
"""

RETURN = r"""
requests:
  description: The CSRs, each with the reasons in words. The CSR is empty in check mode.
  returned: success
  type: list
  elements: dict
  sample: [{identity: svc-orders, csr: "-----BEGIN CERTIFICATE REQUEST-----...", reasons: [30% of its life remain]}]
identities:
  description: What is installed now.
  returned: success
  type: list
  elements: dict
  sample: [{name: svc-orders, generation: gen-59c1d2..., serial: 59c1d2..., not_after: "2026-12-22T15:46:00Z", names: "URI:spiffe://shop.internal/orders"}]
actions:
  description: What was done, or would be done in check mode.
  returned: success
  type: list
  elements: str
  sample: ["svc-orders: ask for a certificate (30% of its life remain)"]
"""

import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.causeway.platform.plugins.module_utils import x509_build as build
from ansible_collections.causeway.platform.plugins.module_utils import x509_host as hosts
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import (
    TrustError,
    check_fraction,
    from_iso,
    now,
    parse_duration,
    write_file,
)
from ansible_collections.causeway.platform.plugins.module_utils.x509_identities import group_of


def identities_of(options: dict[str, Any]) -> list[hosts.Identity]:
    result = [
        hosts.Identity(
            item["name"],
            build.Names.of(item["uris"], item["dns"], item["addresses"]),
            item["group"] or group_of(item["name"]),
            item["common_name"] or item["name"],
        )
        for item in options["identities"]
    ]
    hosts.check_identities(result)
    return result


def groups_to_make(identities: list[hosts.Identity], path: Path) -> tuple[str, list[str]]:
    """New text of the sysusers.d file (empty: it is right) and the groups that do not exist yet."""
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    text = hosts.sysusers_text(identities, present)
    missing = sorted({item.group for item in identities if hosts.group_id(item.group) < 0})
    return (text if text != present else ""), missing


def make_groups(module: AnsibleModule, text: str, path: Path) -> None:
    if text:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(path, text.encode(), 0o644)
    module.run_command([module.get_bin_path("systemd-sysusers", required=True), str(path)], check_rc=True)


def request(module: AnsibleModule, identities: list[hosts.Identity], options: dict[str, Any]) -> dict[str, Any]:
    """state=requested: groups, newer bundles, permissions, then the CSRs. Returns requests and actions."""
    path, moment, act = Path(options["path"]), now(), not module.check_mode
    renew_at = check_fraction(options["renew_at"], "renew_at")
    reference = from_iso(options["reference_time"]) if options["reference_time"] else None
    hosts.check_clock(moment, reference, parse_duration(options["clock_tolerance"], "clock_tolerance"))
    unknown = sorted(set(options["force"]) - {item.name for item in identities})
    if unknown:
        raise TrustError(
            f"force: this host has no identity {unknown[0]!r}; it has {', '.join(item.name for item in identities)}"
        )
    revoked = hosts.revoked_serials(options["crl"])
    actions: list[str] = []
    if options["sysusers_file"]:
        text, missing = groups_to_make(identities, Path(options["sysusers_file"]))
        if text or missing:
            actions.append(f"make the groups {', '.join(missing)}" if missing else "declare the groups")
            if act:
                make_groups(module, text, Path(options["sysusers_file"]))
    if act:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    requests = []
    for identity in identities:
        found = hosts.inspect(path, identity.name)
        if not found.problems:
            wrong = hosts.wrong_permissions(path, identity, found.directory) if act or path.exists() else []
            if wrong:
                actions.append(f"{identity.name}: set owner and mode of {', '.join(item[0].name for item in wrong)}")
                if act:
                    hosts.repair_permissions(wrong)
        why = hosts.reasons(
            found,
            identity,
            issuer=options["issuer"],
            revoked=revoked,
            renew_at=renew_at,
            moment=moment,
            force=identity.name in options["force"],
        )
        if not found.problems and options["ca"] and (found.ca != options["ca"] or found.crl != options["crl"]):
            actions.append(f"{identity.name}: put newer roots and revocation lists in place")
            if act:
                base = path / identity.name / found.directory
                contents = {name: (base / name).read_bytes() for name in ("key.pem", "cert.pem")}
                install(path, identity, found.serial, contents, options)
        if why and options["request"]:
            actions.append(f"{identity.name}: ask for a certificate ({', '.join(why)})")
            requests.append(
                {"identity": identity.name, "csr": hosts.make_request(path, identity) if act else "", "reasons": why}
            )
    if options["purge"]:
        actions += purge(path, {item.name for item in identities}, act)
    return {"requests": requests, "actions": actions}


def install(
    path: Path, identity: hosts.Identity, serial: str, contents: dict[str, bytes], options: dict[str, Any]
) -> None:
    bundles = {"ca.pem": options["ca"].encode(), "crl.pem": options["crl"].encode()}
    hosts.install_generation(path, identity, serial, {**contents, **bundles})
    hosts.prune(path, identity.name, options["keep"])


def purge(path: Path, wanted: set[str], act: bool) -> list[str]:
    doomed = sorted(
        item for item in path.glob("*") if item.is_dir() and (item / "current").is_symlink() and item.name not in wanted
    )
    for item in doomed if act else []:
        shutil.rmtree(item)
    return [f"{item.name}: remove the identity and its private key" for item in doomed]


def answer(identities: list[hosts.Identity], options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """state=installed: checks every certificate first, then installs all of them."""
    path = Path(options["path"])
    known = {item.name: item for item in identities}
    mine = [item for item in options["certificates"] if not options["host"] or item["host"] == options["host"]]
    checked = []
    for item in mine:
        if item["identity"] not in known:
            raise TrustError(
                f"there is a certificate for the identity {item['identity']!r}, which this host does not have"
            )
        identity = known[item["identity"]]
        found = hosts.inspect(path, identity.name)
        if not found.problems and found.serial == build.leaf_serial(item["certificate"]):
            continue  # installed by an earlier run
        try:
            key, serial = hosts.check_answer(path, identity, item["certificate"], options["ca"])
        except TrustError as error:
            raise TrustError(f"{identity.name}: {error}") from error
        checked.append((identity, key, serial, item["certificate"].encode()))
    for identity, key, serial, certificate in checked if not check_mode else []:
        install(path, identity, serial, {"key.pem": key, "cert.pem": certificate}, options)
    return {
        "requests": [],
        "actions": [f"{identity.name}: install the certificate {serial}" for identity, _key, serial, _chain in checked],
    }


def summary(identities: list[hosts.Identity], path: Path) -> list[dict[str, str]]:
    return [{"name": item.name, **hosts.inspect(path, item.name).summary()} for item in identities]


def main() -> None:
    names = {
        "uris": {"type": "list", "elements": "str", "default": []},
        "dns": {"type": "list", "elements": "str", "default": []},
        "addresses": {"type": "list", "elements": "str", "default": []},
        "group": {"type": "str", "default": ""},
        "common_name": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["requested", "installed"], "default": "requested"},
            "identities": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, **names},
            },
            "certificates": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "identity": {"type": "str", "required": True},
                    "certificate": {"type": "str", "required": True},
                    "host": {"type": "str", "default": ""},
                    "authority": {"type": "str", "default": ""},
                    "generation": {"type": "int", "default": 0},
                    "serial": {"type": "str", "default": ""},
                    "not_before": {"type": "str", "default": ""},
                    "not_after": {"type": "str", "default": ""},
                },
            },
            "host": {"type": "str", "default": ""},
            "ca": {"type": "str", "default": ""},
            "crl": {"type": "str", "default": ""},
            "issuer": {"type": "str", "default": ""},
            "renew_at": {"type": "float", "default": 0.34},
            "force": {"type": "list", "elements": "str", "default": []},
            "request": {"type": "bool", "default": True},
            "reference_time": {"type": "str", "default": ""},
            "clock_tolerance": {"type": "str", "default": "5m"},
            "keep": {"type": "int", "default": 2},
            "purge": {"type": "bool", "default": False},
            "path": {"type": "path", "default": "/etc/causeway/tls"},
            "sysusers_file": {"type": "path", "default": "/etc/sysusers.d/causeway-tls.conf"},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    path = Path(options["path"])
    if build.CRYPTOGRAPHY_IMPORT_ERROR:
        if not module.check_mode:
            module.fail_json(msg=missing_required_lib("cryptography"), exception=build.CRYPTOGRAPHY_IMPORT_ERROR)
        module.warn(
            "cryptography is not installed on this host yet; in check mode certificates are taken to be asked for later"
        )
        asked = [
            {"identity": item["name"], "csr": "", "reasons": ["there is none yet"]} for item in options["identities"]
        ]
        requested = options["state"] == "requested" and options["request"]
        module.exit_json(changed=requested, requests=asked if requested else [], identities=[], actions=[])
    os.umask(0o022)  # the directories above the identities are for everybody; keys get their modes explicitly
    try:
        if options["keep"] < 1:
            raise TrustError("keep: at least 1 generation has to stay")
        identities = identities_of(options)
        if not options["ca"] and not module.check_mode:
            raise TrustError("ca: the bundle of root certificates may not be empty")
        before = summary(identities, path)
        if options["state"] == "requested":
            result = request(module, identities, options)
        else:
            result = answer(identities, options, module.check_mode)
        after = summary(identities, path)
    except TrustError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    diff = (
        {"before": {"identities": before}, "after": {"identities": after, "actions": result["actions"]}}
        if result["actions"]
        else {"before": {}, "after": {}}
    )
    module.exit_json(changed=bool(result["actions"]), identities=after, diff=diff, **result)


if __name__ == "__main__":
    main()
