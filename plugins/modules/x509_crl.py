#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_crl
short_description: Revoke certificates and keep the revocation lists of all authorities fresh
version_added: "0.1.0"
description:
  - Signs the certificate revocation list (CRL) of every generation of every authority in the store when something
    was revoked, when little of the list's
    life remains, when it is missing or damaged, or when asked to.
  - Returns the bundles that hosts need, all root certificates and all lists. Verifiers such as Envoy want a list
    for every authority of a chain,
    so hosts must have the bundle before a new intermediate's first certificate is used.
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - causeway.platform.hsm
options:
  revoke:
    description: Certificates to revoke. Ended and already revoked ones are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      serial:
        description: Serial number in hexadecimal.
        type: str
        default: ''
      host:
        description: All valid certificates of this host.
        type: str
        default: ''
      identity:
        description:
          - All valid certificates of this identity, such as V(svc-orders); with O(revoke[].host) on that host only.
        type: str
        default: ''
      authority:
        description: Only those that this authority issued.
        type: str
        default: ''
      reason:
        description: Reason code (RFC 5280 5.3.1).
        type: str
        default: unspecified
        choices:
          - unspecified
          - key_compromise
          - ca_compromise
          - affiliation_changed
          - superseded
          - cessation_of_operation
          - certificate_hold
          - privilege_withdrawn
          - aa_compromise
  valid_for:
    description:
      - Life of a list, as a number with V(s), V(m), V(h), V(d) or V(w). Once it is over verifiers refuse every
        certificate of the authority.
    type: str
    default: 45d
  renew_at:
    description: Fraction of the life below which a list is signed again.
    type: float
    default: 0.5
  backdate:
    description: How far before now the list starts, against clocks that differ.
    type: str
    default: 5m
  force:
    description: Names of authorities whose lists are signed again in any case. The module is not idempotent with it.
    type: list
    elements: str
    default: []
  extra_roots:
    description: Further root certificates (PEM) for the bundle, while moving from or to another trust root.
    type: list
    elements: str
    default: []
  extra_crls:
    description: Their revocation lists (PEM).
    type: list
    elements: str
    default: []
  store:
    description: Directory with the authorities.
    type: path
    default: /var/lib/causeway/trust
requirements:
  - cryptography 42 or newer (Debian package C(python3-cryptography)) on the host where the module runs
seealso:
  - module: causeway.platform.x509_authority
"""

EXAMPLES = r"""
- name: Keep all revocation lists fresh
  causeway.platform.x509_crl:
    token: causeway
    pin: "{{ trust_pin }}"

- name: Revoke everything that a lost host had
  causeway.platform.x509_crl:
    token: causeway
    pin: "{{ trust_pin }}"
    revoke:
      - host: app3
        reason: key_compromise
"""

RETURN = r"""
ca:
  description: Bundle of all root certificates, newest first (PEM).
  returned: success
  type: str
  sample: "-----BEGIN CERTIFICATE-----..."
crl:
  description: Bundle of all revocation lists (PEM).
  returned: success
  type: str
  sample: "-----BEGIN X509 CRL-----..."
issuers:
  description: SHA-256 of the certificate that signs now, per authority.
  returned: success
  type: dict
  sample: {region-north: 9b0a...}
lists:
  description: One entry per list.
  returned: success
  type: list
  elements: dict
  sample:
    - authority: region-north
      generation: 1
      number: 4
      next_update: "2027-01-06T15:41:00Z"
      revoked: 2
      reason: a certificate was revoked
revoked:
  description: Serial numbers that this run revoked.
  returned: success
  type: list
  elements: str
  sample: [59c1d2...]
time:
  description: The clock of the host where the module ran (UTC), for comparison with other hosts.
  returned: success
  type: str
  sample: "2026-11-22T15:41:00Z"
"""

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.causeway.platform.plugins.module_utils import hsm
from ansible_collections.causeway.platform.plugins.module_utils import x509_build as build
from ansible_collections.causeway.platform.plugins.module_utils import x509_store as stores
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import (
    TrustError,
    check_fraction,
    iso,
    locked,
    now,
    parse_duration,
)


def ensure(store: stores.Store, config: hsm.TokenConfig, options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """The module's result, with ``before`` and ``after`` of the lists."""
    moment = now()
    life = parse_duration(options["valid_for"], "valid_for")
    backdate = parse_duration(options["backdate"], "backdate")
    renew_at = check_fraction(options["renew_at"], "renew_at")
    unknown = sorted(set(options["force"]) - set(store.names()))
    if unknown and not check_mode:
        raise TrustError(f"force: there is no authority {unknown[0]!r}; known are {', '.join(store.names()) or 'none'}")
    extra_roots = [
        build.pem(item) for text in options["extra_roots"] for item in build.parse_certificates(text, "extra_roots")
    ]
    extra_crls = [build.pem(item) for text in options["extra_crls"] for item in build.parse_crls(text)]
    wanted = [stores.Revocation(**item) for item in options["revoke"]]
    old = {name: store.index(name) for name in store.names()}
    indexes, fresh = stores.revoke(old, wanted, moment)
    work = stores.plan_lists(store, indexes, renew_at, options["force"], moment)
    before = [stores.describe_list(item) for item in stores.plan_lists(store, old, 0.0, [], moment)]
    changed = bool(fresh) or any(item.reason for item in work)
    if changed and not check_mode:
        with hsm.open_token(config) as session:
            for name, entries in indexes.items():
                if entries != old[name]:
                    store.save_index(name, entries, moment)
            work = stores.sign_lists(
                store, session, work, life=life, backdate=backdate, moment=moment, secret=config.pin
            )
    authorities = [store.get(name) for name in store.names()]
    return {
        "changed": changed,
        "ca": "".join([*map(build.pem, store.roots(moment)), *extra_roots]),
        "crl": "".join([*(build.pem(item.crl) for item in work if item.crl is not None), *extra_crls]),
        "issuers": {
            item.name: build.fingerprint(store.certificate(item.name, item.current.number)) for item in authorities
        },
        "lists": [stores.describe_list(item) for item in work],
        "revoked": fresh,
        "time": iso(moment),
        "diff": {
            "before": [{**item, "reason": ""} for item in before],
            "after": [stores.describe_list(item) for item in work],
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": False},
            "pin": {"type": "str", "required": True, "no_log": True},
            "pkcs11_module": {"type": "path", "default": ""},
            "slot": {"type": "int"},
            "token_serial": {"type": "str", "default": "", "no_log": False},
            "revoke": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "serial": {"type": "str", "default": ""},
                    "host": {"type": "str", "default": ""},
                    "identity": {"type": "str", "default": ""},
                    "authority": {"type": "str", "default": ""},
                    "reason": {"type": "str", "default": "unspecified", "choices": list(build.REASONS)},
                },
            },
            "valid_for": {"type": "str", "default": "45d"},
            "renew_at": {"type": "float", "default": 0.5},
            "backdate": {"type": "str", "default": "5m"},
            "force": {"type": "list", "elements": "str", "default": []},
            "extra_roots": {"type": "list", "elements": "str", "default": []},
            "extra_crls": {"type": "list", "elements": "str", "default": []},
            "store": {"type": "path", "default": "/var/lib/causeway/trust"},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    if build.CRYPTOGRAPHY_IMPORT_ERROR:
        if not module.check_mode:
            module.fail_json(msg=missing_required_lib("cryptography"), exception=build.CRYPTOGRAPHY_IMPORT_ERROR)
        module.warn(
            "cryptography is not installed on this host yet; in check mode the lists are taken to be made later"
        )
        module.exit_json(changed=True, ca="", crl="", issuers={}, lists=[], revoked=[], time=iso(now()))
    config = hsm.TokenConfig(
        options["token"], options["pin"], options["pkcs11_module"], options["slot"], options["token_serial"]
    )
    try:
        with contextlib.nullcontext() if module.check_mode else locked(Path(options["store"])):
            result = ensure(stores.Store(options["store"]), config, options, module.check_mode)
    except TrustError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
