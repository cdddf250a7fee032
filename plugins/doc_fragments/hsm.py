# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of all modules that open a PKCS#11 token."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  token:
    description: Label of the PKCS#11 token.
    type: str
    required: true
  pin:
    description:
      - User PIN of the token. It is handed to the library inside the module's process and appears nowhere else.
    type: str
    required: true
  pkcs11_module:
    description:
      - Path of the vendor's PKCS#11 library on the host where the module runs.
      - Empty means SoftHSM2's library, wherever the distribution put it.
    type: path
    default: ''
  slot:
    description:
      - Slot of the token, needed only where several tokens have the same label. SoftHSM2's slots change, so prefer
        O(token_serial) there.
    type: int
  token_serial:
    description: Serial number of the token, where several have the same label.
    type: str
    default: ''
attributes:
  check_mode:
    support: full
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    support: full
    description: Returns details on what has changed (or possibly needs changing in check_mode), when in diff mode.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
requirements:
  - PyKCS11 (Debian package C(python3-pykcs11)) on the host where the module runs
notes:
  - SoftHSM2 reads the path of its configuration from the environment variable E(SOFTHSM2_CONF); set it with the
    task's C(environment) where it is not the default.
  - In check mode on a host where the library, the token or a key that earlier tasks would make is missing, the
    module predicts a change and says so in a warning.
"""
