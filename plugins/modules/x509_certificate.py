#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_certificate
short_description: Sign certificates for hosts and services with a key inside a PKCS#11 token
version_added: "0.1.0"
description:
  - Signs one or many certificate signing requests (CSRs) in one call, so that a whole fleet costs one task.
  - A certificate is made from the names that the caller grants, never from the CSR. A CSR that asks for another
    name, has no valid signature or no EC key is
    refused, and then nothing at all is signed; the message names every request that is wrong.
  - Each certificate is entered in the authority's index before it is returned.
  - Idempotence lies with P(causeway.platform.x509_identity#module), which asks for a CSR only when a certificate is
    needed; without O(requests) nothing changes.
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - causeway.platform.hsm
attributes:
  idempotent:
    support: partial
    description: Every request that is given is signed; an empty list changes nothing.
options:
  requests:
    description: What shall be signed.
    type: list
    elements: dict
    required: true
    suboptions:
      host:
        description: Host that asks, for the index and for messages.
        type: str
        required: true
      identity:
        description: Identity on that host, for the index and for messages.
        type: str
        required: true
      authority:
        description: Name of the authority that signs.
        type: str
        required: true
      csr:
        description: The request as PEM. It may be empty in check mode.
        type: str
        required: true
      uris:
        description: Granted URIs, for SPIFFE exactly one.
        type: list
        elements: str
        default: []
      dns:
        description: Granted DNS names.
        type: list
        elements: str
        default: []
      addresses:
        description: Granted IP addresses.
        type: list
        elements: str
        default: []
      common_name:
        description: Common name; without it the identity.
        type: str
        default: ''
  valid_for:
    description: Life of the certificates, as a number with V(s), V(m), V(h), V(d) or V(w). None outlives its issuer.
    type: str
    default: 30d
  backdate:
    description: How far before now the validity starts, against clocks that differ.
    type: str
    default: 5m
  organization:
    description: Organization in the certificates; left out when empty.
    type: str
    default: ''
  store:
    description: Directory with the authorities.
    type: path
    default: /var/lib/causeway/trust
requirements:
  - cryptography 42 or newer (Debian package C(python3-cryptography)) on the host where the module runs
seealso:
  - module: causeway.platform.x509_identity
  - module: causeway.platform.x509_authority
"""

EXAMPLES = r"""
- name: Sign the request of a service
  causeway.platform.x509_certificate:
    token: causeway
    pin: "{{ trust_pin }}"
    requests:
      - host: app1
        identity: svc-orders
        authority: region-north
        csr: "{{ lookup('ansible.builtin.file', 'orders.csr') }}"
        uris: ["spiffe://shop.internal/orders"]
        dns: [orders.shop.internal]
"""

RETURN = r"""
certificates:
  description: One entry per request, in the same order. In check mode empty.
  returned: success
  type: list
  elements: dict
  sample:
    - host: app1
      identity: svc-orders
      authority: region-north
      generation: 1
      serial: 59c1d2...
      not_before: "2026-11-22T15:41:00Z"
      not_after: "2026-12-22T15:46:00Z"
      certificate: "-----BEGIN CERTIFICATE-----..."
"""

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.causeway.platform.plugins.module_utils import hsm
from ansible_collections.causeway.platform.plugins.module_utils import x509_build as build
from ansible_collections.causeway.platform.plugins.module_utils import x509_store as stores
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import (
    NotReadyError,
    TrustError,
    locked,
    now,
    parse_duration,
)


def requests_of(options: dict[str, Any]) -> list[stores.LeafRequest]:
    return [
        stores.LeafRequest(
            item["host"],
            item["identity"],
            item["authority"],
            item["csr"],
            build.Names.of(item["uris"], item["dns"], item["addresses"]),
            item["common_name"] or item["identity"],
            options["organization"],
        )
        for item in options["requests"]
    ]


def sign(
    store: stores.Store,
    config: hsm.TokenConfig,
    options: dict[str, Any],
    requests: list[stores.LeafRequest],
    check_mode: bool,
) -> list[dict[str, Any]]:
    life = parse_duration(options["valid_for"], "valid_for")
    backdate = parse_duration(options["backdate"], "backdate")
    if check_mode:
        stores.check_requests(store, [item for item in requests if item.csr])
        return []
    stores.check_requests(store, requests)  # before the token is touched
    with hsm.open_token(config) as session:
        return stores.issue(store, session, requests, life=life, backdate=backdate, moment=now(), secret=config.pin)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": False},
            "pin": {"type": "str", "required": True, "no_log": True},
            "pkcs11_module": {"type": "path", "default": ""},
            "slot": {"type": "int"},
            "token_serial": {"type": "str", "default": "", "no_log": False},
            "requests": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "identity": {"type": "str", "required": True},
                    "authority": {"type": "str", "required": True},
                    "csr": {"type": "str", "required": True},
                    "uris": {"type": "list", "elements": "str", "default": []},
                    "dns": {"type": "list", "elements": "str", "default": []},
                    "addresses": {"type": "list", "elements": "str", "default": []},
                    "common_name": {"type": "str", "default": ""},
                },
            },
            "valid_for": {"type": "str", "default": "30d"},
            "backdate": {"type": "str", "default": "5m"},
            "organization": {"type": "str", "default": ""},
            "store": {"type": "path", "default": "/var/lib/causeway/trust"},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    if not options["requests"]:
        module.exit_json(changed=False, certificates=[], diff={"before": [], "after": []})
    if build.CRYPTOGRAPHY_IMPORT_ERROR:
        if not module.check_mode:
            module.fail_json(msg=missing_required_lib("cryptography"), exception=build.CRYPTOGRAPHY_IMPORT_ERROR)
        module.warn("cryptography is not installed on this host yet; in check mode the requests are not looked at")
        module.exit_json(changed=True, certificates=[])
    config = hsm.TokenConfig(
        options["token"], options["pin"], options["pkcs11_module"], options["slot"], options["token_serial"]
    )
    certificates: list[dict[str, Any]] = []
    try:
        with contextlib.nullcontext() if module.check_mode else locked(Path(options["store"])):
            try:
                requests = requests_of(options)
                certificates = sign(stores.Store(options["store"]), config, options, requests, module.check_mode)
            except NotReadyError as error:
                if not module.check_mode:
                    raise
                module.warn(f"{error}; in check mode it is taken to be made by an earlier task")
    except TrustError as error:
        module.fail_json(msg=str(error))
    shown = [f"{item['host']}/{item['identity']} by {item['authority']}" for item in options["requests"]]
    module.exit_json(changed=True, certificates=certificates, diff={"before": [], "after": shown})


if __name__ == "__main__":
    main()
