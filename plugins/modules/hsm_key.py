#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hsm_key
short_description: Make or remove an EC key pair in a PKCS#11 token
version_added: "0.1.0"
description:
  - Makes EC key pairs whose private half is sensitive and cannot be extracted from the token.
  - An existing key is left alone if it has the curve that was asked for and cannot leave the token; otherwise the
    module refuses.
  - Removing a key cannot be undone and needs a typed confirmation.
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - causeway.platform.hsm
options:
  label:
    description: Label of the key pair.
    type: str
    required: true
  key_id:
    description: Identifier of the key pair (CKA_ID) as hexadecimal digits. Without it one is derived from the label.
    type: str
    default: ''
  curve:
    description: Elliptic curve of a new key.
    type: str
    choices: [P-256, P-384]
    default: P-384
  state:
    description: Whether the key pair shall exist.
    type: str
    choices: [present, absent]
    default: present
  confirm:
    description:
      - The key's label once more. Needed for O(state=absent), because certificates of a removed key can never be
        renewed or revoked again.
    type: str
    default: ''
seealso:
  - module: causeway.platform.hsm_token
  - module: causeway.platform.x509_authority
"""

EXAMPLES = r"""
- name: Make the key of the root authority
  causeway.platform.hsm_key:
    token: causeway
    pin: "{{ trust_pin }}"
    label: shop-root-g1
    curve: P-384

- name: Remove the key of a retired intermediate for good
  causeway.platform.hsm_key:
    token: causeway
    pin: "{{ trust_pin }}"
    label: shop-region-north-g1
    state: absent
    confirm: shop-region-north-g1
"""

RETURN = r"""
key:
  description: The key pair; without O(state=present) or in check mode before it exists, an empty dictionary.
  returned: success
  type: dict
  sample: {label: shop-root-g1, key_id: 5f1d6bb5a7b1f1c8d1a2f3b40c0f5a11, curve: P-384, public_point: "04a1..."}
"""

import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils import hsm
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import NotReadyError, TrustError


def describe(key: hsm.KeyInfo | None) -> dict[str, str]:
    if key is None:
        return {}
    return {"label": key.label, "key_id": key.key_id, "curve": key.curve, "public_point": key.point.hex()}


def check_existing(key: hsm.KeyInfo, options: dict[str, Any]) -> None:
    if key.extractable or not key.sensitive:
        raise TrustError(f"key {key.label!r} exists but may leave the token; remove it and make a new one")
    if key.curve != options["curve"]:
        raise TrustError(f"key {key.label!r} exists on curve {key.curve}, asked for was {options['curve']}")
    if options["key_id"] and key.key_id != options["key_id"].lower():
        raise TrustError(f"key {key.label!r} exists with id {key.key_id}, asked for was {options['key_id'].lower()}")


def ensure(
    session: hsm.Session, options: dict[str, Any], check_mode: bool
) -> tuple[bool, dict[str, str], dict[str, str]]:
    """changed, before, after"""
    label = options["label"]
    before = session.find_key(label)
    if options["state"] == "absent":
        if before and not check_mode:
            session.destroy(label)
        return before is not None, describe(before), {}
    if before:
        check_existing(before, options)
        return False, describe(before), describe(before)
    if check_mode:
        return True, {}, {"label": label, "curve": options["curve"]}
    return True, {}, describe(session.generate(label, options["curve"], options["key_id"]))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": False},
            "pin": {"type": "str", "required": True, "no_log": True},
            "pkcs11_module": {"type": "path", "default": ""},
            "slot": {"type": "int"},
            "token_serial": {"type": "str", "default": "", "no_log": False},
            "label": {"type": "str", "required": True},
            "key_id": {"type": "str", "default": "", "no_log": False},
            "curve": {"type": "str", "choices": ["P-256", "P-384"], "default": "P-384"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "confirm": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    config = hsm.TokenConfig(
        options["token"], options["pin"], options["pkcs11_module"], options["slot"], options["token_serial"]
    )
    try:
        if not options["label"]:
            raise TrustError("label: may not be empty")
        if options["key_id"] and not re.fullmatch("(?:[0-9a-fA-F]{2}){1,32}", options["key_id"]):
            raise TrustError(f"key_id: {options['key_id']!r} is not allowed; use 1 to 32 pairs of hexadecimal digits")
        if options["state"] == "absent" and options["confirm"] != options["label"]:
            raise TrustError(
                f"removing key {options['label']!r} cannot be undone; type its label into confirm to do it"
            )
        try:
            with hsm.open_token(config) as session:
                changed, before, after = ensure(session, options, module.check_mode)
        except NotReadyError as error:
            if not module.check_mode:
                raise
            module.warn(f"{error}; in check mode it is taken to be made by an earlier task")
            changed, before, after = options["state"] == "present", {}, {"label": options["label"]}
    except TrustError as error:
        module.fail_json(msg=str(error))
    key = after if options["state"] == "present" and not (module.check_mode and changed) else {}
    module.exit_json(changed=changed, key=key, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
