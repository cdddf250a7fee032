#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hsm_token
short_description: Initialise a PKCS#11 token and set its PINs
version_added: "0.1.0"
description:
  - Makes sure that a token with the given label exists and that the given PIN opens it.
  - A token that is initialised already is never initialised again; nothing in it is ever erased.
  - Changes the user PIN or the SO PIN to a new one when asked to.
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - causeway.platform.hsm
options:
  so_pin:
    description: Security officer's PIN. Needed to initialise a token, to set a missing user PIN and to change itself.
    type: str
  new_pin:
    description: Change the user PIN from O(pin) to this. When it is in force already nothing changes.
    type: str
  new_so_pin:
    description: Change the SO PIN from O(so_pin) to this. When it is in force already nothing changes.
    type: str
seealso:
  - module: causeway.platform.hsm_key
"""

EXAMPLES = r"""
- name: Initialise the token of the trust root
  causeway.platform.hsm_token:
    token: causeway
    pin: "{{ trust_pin }}"
    so_pin: "{{ trust_so_pin }}"

- name: Change the user PIN
  causeway.platform.hsm_token:
    token: causeway
    pin: "{{ old_pin }}"
    new_pin: "{{ trust_pin }}"
"""

RETURN = r"""
slot:
  description: Slot of the token; V(-1) when it does not exist yet (check mode).
  returned: success
  type: int
  sample: 1684077382
serial:
  description: Serial number of the token.
  returned: success
  type: str
  sample: 58d1b7de6461434f
actions:
  description: What was done, or would be done in check mode.
  returned: success
  type: list
  elements: str
  sample: ["initialise the token", "set the user PIN"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils import hsm
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import NotReadyError, TrustError


def plan(config: hsm.TokenConfig, options: dict[str, Any]) -> tuple[hsm.TokenInfo | None, list[str]]:
    """The token and what has to be done to it; refuses PINs that do not open it."""
    info = hsm.find_token(config)
    so_pin, new_pin, new_so_pin = options["so_pin"], options["new_pin"], options["new_so_pin"]
    if info is None:
        if not so_pin:
            raise TrustError(f"there is no token labelled {config.token!r}; so_pin is needed to initialise one")
        return None, ["initialise the token", "set the user PIN"]
    actions = []
    if not info.user_pin_set:
        if not so_pin:
            raise TrustError(f"token {config.token!r} has no user PIN; so_pin is needed to set it")
        actions.append("set the user PIN")
    elif new_pin and hsm.pin_works(config, info, new_pin):
        pass
    elif not hsm.pin_works(config, info, config.pin):
        what = "neither pin nor new_pin opens it" if new_pin else "the PIN is wrong"
        raise TrustError(
            f"token {config.token!r} (serial {info.serial}): {what}; is this another token with the same label?"
        )
    elif new_pin:
        actions.append("change the user PIN")
    if new_so_pin and not hsm.pin_works(config, info, new_so_pin, so=True):
        if not so_pin or not hsm.pin_works(config, info, so_pin, so=True):
            raise TrustError(f"token {config.token!r}: neither so_pin nor new_so_pin opens it")
        actions.append("change the SO PIN")
    return info, actions


def act(
    config: hsm.TokenConfig, options: dict[str, Any], info: hsm.TokenInfo | None, actions: list[str]
) -> hsm.TokenInfo:
    if info is None:
        info = hsm.initialise(config, options["so_pin"])
    elif "set the user PIN" in actions:
        hsm.set_user_pin(config, info, options["so_pin"])
    if "change the user PIN" in actions:
        hsm.change_pin(config, info, config.pin, options["new_pin"])
    if "change the SO PIN" in actions:
        hsm.change_pin(config, info, options["so_pin"], options["new_so_pin"], so=True)
    return info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": False},
            "pin": {"type": "str", "required": True, "no_log": True},
            "so_pin": {"type": "str", "no_log": True},
            "new_pin": {"type": "str", "no_log": True},
            "new_so_pin": {"type": "str", "no_log": True},
            "pkcs11_module": {"type": "path", "default": ""},
            "slot": {"type": "int"},
            "token_serial": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    config = hsm.TokenConfig(
        options["token"], options["pin"], options["pkcs11_module"], options["slot"], options["token_serial"]
    )
    try:
        try:
            info, actions = plan(config, options)
        except NotReadyError as error:
            if not module.check_mode:
                raise
            module.warn(f"{error}; in check mode the token is taken to be made later")
            info, actions = None, ["initialise the token", "set the user PIN"]
        before = {"token": config.token if info else "", "pending": actions}
        if actions and not module.check_mode:
            info = act(config, options, info, actions)
    except TrustError as error:
        module.fail_json(msg=str(error))
    after = {"token": config.token, "pending": []}
    module.exit_json(
        changed=bool(actions),
        slot=info.slot if info else -1,
        serial=info.serial if info else "",
        actions=actions,
        diff={"before": before, "after": after},
    )


if __name__ == "__main__":
    main()
