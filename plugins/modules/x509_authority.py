#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_authority
short_description: Root and intermediate certification authorities whose keys stay in a PKCS#11 token
version_added: "0.1.0"
description:
  - Makes a self-signed root authority, or an intermediate that a root in the same token signs.
  - An authority has generations. Each has its own key in the token, labelled C(<key_label>-g<n>), and its own
    certificate. The newest signs; older ones
    stay in force until nothing that they issued is still valid, so that a rotation overlaps.
  - A new generation is made when there is none, when little of the certificate's life remains, or when
    O(rotate=true).
  - Certificates, revocation lists and the index of what was issued are kept below O(store) on the host where the
    module runs; no private key ever is.
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - causeway.platform.hsm
options:
  name:
    description: Name of the authority, and of its directory in the store.
    type: str
    required: true
  kind:
    description: Whether the authority signs itself or is signed by O(issuer).
    type: str
    choices: [root, intermediate]
    required: true
  issuer:
    description: Name of the root authority that signs an intermediate.
    type: str
    default: ''
  common_name:
    description: Common name of the certificate; C( G<n>) is added, because each generation needs its own name.
    type: str
    required: true
  organization:
    description: Organization in the certificate; left out when empty.
    type: str
    default: ''
  key_label:
    description: Beginning of the keys' labels in the token. Without it, the name of the authority.
    type: str
    default: ''
    aliases: [key]
  curve:
    description: Elliptic curve of a new key.
    type: str
    choices: [P-256, P-384]
    default: P-384
  valid_for:
    description:
      - Life of a new certificate, as a number with V(s), V(m), V(h), V(d) or V(w). An intermediate never outlives
        its root.
    type: str
    default: 365d
  renew_at:
    description: Fraction of the life below which a new generation is made.
    type: float
    default: 0.25
  backdate:
    description: How far before now the validity starts, against clocks that differ.
    type: str
    default: 5m
  path_length:
    description: How many authorities may follow below. Without it 1 for a root and 0 for an intermediate.
    type: int
  permitted_dns:
    description: Name constraint, DNS zones that the authority may certify. Empty means no constraint.
    type: list
    elements: str
    default: []
  permitted_uris:
    description: Name constraint, hosts in URIs that the authority may certify. Empty means no constraint.
    type: list
    elements: str
    default: []
  rotate:
    description: Make a new generation whatever the old one's life. The module is not idempotent with it.
    type: bool
    default: false
  store:
    description: Directory with the authorities.
    type: path
    default: /var/lib/causeway/trust
requirements:
  - cryptography 42 or newer (Debian package C(python3-cryptography)) on the host where the module runs
seealso:
  - module: causeway.platform.x509_certificate
  - module: causeway.platform.x509_crl
"""

EXAMPLES = r"""
- name: Make the root authority
  causeway.platform.x509_authority:
    token: causeway
    pin: "{{ trust_pin }}"
    name: root
    kind: root
    common_name: shop root
    valid_for: 3650d

- name: Make the intermediate authority of the region north
  causeway.platform.x509_authority:
    token: causeway
    pin: "{{ trust_pin }}"
    name: region-north
    kind: intermediate
    issuer: root
    common_name: shop north
"""

RETURN = r"""
name:
  description: Name of the authority.
  returned: success
  type: str
  sample: region-north
reason:
  description: Why a new generation was made; empty if none was.
  returned: success
  type: str
  sample: 24% of its life remain
generation:
  description: The generation that signs now.
  returned: success
  type: int
  sample: 2
certificate:
  description: Its certificate as PEM; empty in check mode if it does not exist yet.
  returned: success
  type: str
  sample: "-----BEGIN CERTIFICATE-----..."
fingerprint:
  description: SHA-256 of the certificate.
  returned: success
  type: str
  sample: 9b0a...
serial:
  description: Serial number of the certificate in hexadecimal.
  returned: success
  type: str
  sample: 59c1d2...
not_after:
  description: When the certificate ends (UTC).
  returned: success
  type: str
  sample: "2027-11-22T15:41:00Z"
key_label:
  description: Label of its key in the token.
  returned: success
  type: str
  sample: shop-region-north-g2
generations:
  description: All generations, oldest first.
  returned: success
  type: list
  elements: dict
  sample: [{number: 1, key_label: shop-region-north-g1, not_after: "2027-11-22T15:41:00Z", retired: false}]
"""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.causeway.platform.plugins.module_utils import hsm
from ansible_collections.causeway.platform.plugins.module_utils import x509_build as build
from ansible_collections.causeway.platform.plugins.module_utils import x509_store as stores
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import (
    NotReadyError,
    TrustError,
    check_fraction,
    locked,
    now,
    parse_duration,
)


def wish_of(options: dict[str, Any]) -> stores.AuthorityWish:
    root = options["kind"] == "root"
    path_length = options["path_length"]
    wish = stores.AuthorityWish(
        options["name"],
        options["kind"],
        options["issuer"],
        options["common_name"],
        options["organization"],
        options["curve"],
        options["key_label"] or options["name"],
        parse_duration(options["valid_for"], "valid_for"),
        check_fraction(options["renew_at"], "renew_at"),
        parse_duration(options["backdate"], "backdate"),
        (1 if root else 0) if path_length is None else path_length,
        tuple(options["permitted_dns"]),
        tuple(options["permitted_uris"]),
        options["rotate"],
    )
    stores.check_wish(wish)
    return wish


def describe(authority: stores.Authority | None) -> dict[str, Any]:
    return (
        {}
        if authority is None
        else {"name": authority.name, "generations": [asdict(item) for item in authority.generations]}
    )


def ensure(
    store: stores.Store, config: hsm.TokenConfig, wish: stores.AuthorityWish, check_mode: bool
) -> tuple[str, stores.Authority | None, stores.Authority | None]:
    """Why a new generation is needed, the authority before and after."""
    moment = now()
    before = store.find(wish.name)
    reason = stores.rotation_reason(wish, before, moment)
    with hsm.open_token(config) as session:
        if before and before.generations:
            certificate = store.certificate(before.name, before.current.number)
            stores.signer_for(session, before.current.key_label, certificate)
        if not reason and before:
            after = stores.retire(before, store.index(before.name), moment)
            if after != before and not check_mode:
                store.save(after)
            return "an older generation is no longer needed" if after != before else "", before, after
        if check_mode:
            return reason, before, before
        return reason, before, stores.new_generation(store, session, wish, before, moment=moment, secret=config.pin)


def result_of(store: stores.Store, authority: stores.Authority | None, name: str) -> dict[str, Any]:
    if authority is None or not authority.generations:
        return {
            "name": name,
            "generation": 0,
            "certificate": "",
            "fingerprint": "",
            "serial": "",
            "not_after": "",
            "key_label": "",
            "generations": [],
        }
    current = authority.current
    certificate = store.certificate(authority.name, current.number)
    return {
        "name": name,
        "generation": current.number,
        "certificate": build.pem(certificate),
        "fingerprint": build.fingerprint(certificate),
        "serial": current.serial,
        "not_after": current.not_after,
        "key_label": current.key_label,
        "generations": [asdict(item) for item in authority.generations],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": False},
            "pin": {"type": "str", "required": True, "no_log": True},
            "pkcs11_module": {"type": "path", "default": ""},
            "slot": {"type": "int"},
            "token_serial": {"type": "str", "default": "", "no_log": False},
            "name": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["root", "intermediate"], "required": True},
            "issuer": {"type": "str", "default": ""},
            "common_name": {"type": "str", "required": True},
            "organization": {"type": "str", "default": ""},
            "key_label": {"type": "str", "default": "", "aliases": ["key"], "no_log": False},
            "curve": {"type": "str", "choices": ["P-256", "P-384"], "default": "P-384"},
            "valid_for": {"type": "str", "default": "365d"},
            "renew_at": {"type": "float", "default": 0.25},
            "backdate": {"type": "str", "default": "5m"},
            "path_length": {"type": "int"},
            "permitted_dns": {"type": "list", "elements": "str", "default": []},
            "permitted_uris": {"type": "list", "elements": "str", "default": []},
            "rotate": {"type": "bool", "default": False},
            "store": {"type": "path", "default": "/var/lib/causeway/trust"},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    if build.CRYPTOGRAPHY_IMPORT_ERROR:
        if not module.check_mode:
            module.fail_json(msg=missing_required_lib("cryptography"), exception=build.CRYPTOGRAPHY_IMPORT_ERROR)
        module.warn(
            "cryptography is not installed on this host yet; in check mode the authority is taken to be made later"
        )
        module.exit_json(
            changed=True, reason="there is none yet", **result_of(stores.Store(options["store"]), None, options["name"])
        )
    config = hsm.TokenConfig(
        options["token"], options["pin"], options["pkcs11_module"], options["slot"], options["token_serial"]
    )
    store = stores.Store(options["store"])
    try:
        wish = wish_of(options)
        with contextlib.nullcontext() if module.check_mode else locked(Path(options["store"])):
            try:
                reason, before, after = ensure(store, config, wish, module.check_mode)
            except NotReadyError as error:
                if not module.check_mode or store.find(wish.name):
                    raise
                module.warn(f"{error}; in check mode it is taken to be made by an earlier task")
                reason, before, after = "there is none yet", None, None
            result = result_of(store, after, wish.name)
    except TrustError as error:
        module.fail_json(msg=str(error))
    shown = {"name": wish.name, "new generation": reason} if module.check_mode and reason else describe(after)
    module.exit_json(changed=bool(reason), reason=reason, diff={"before": describe(before), "after": shown}, **result)


if __name__ == "__main__":
    main()
