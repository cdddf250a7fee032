# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that all modules of the registry share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  endpoints:
    description:
      - Client URLs of the registry's members. One that answers is enough; the others are tried in turn.
    type: list
    elements: str
    required: true
  platform:
    description:
      - Name of the platform. All keys are below C(/causeway/<platform>/).
    type: str
    required: true
  ca_file:
    description:
      - PEM file of the roots that the members' certificates are checked against.
      - It is a path on the host where the module runs, as are O(cert_file) and O(key_file).
    type: path
    default: /etc/causeway/tls/host/current/ca.pem
  cert_file:
    description:
      - PEM file of the client certificate with its chain.
    type: path
    default: /etc/causeway/tls/host/current/cert.pem
  key_file:
    description:
      - PEM file of the client certificate's key.
    type: path
    default: /etc/causeway/tls/host/current/key.pem
  username:
    description:
      - User of the registry.
    type: str
    default: root
  password:
    description:
      - Password of O(username). Without it no user is used, which only works before authentication is turned on.
    type: str
  request_timeout:
    description:
      - Seconds that one request to the registry may take, over all O(endpoints) together.
    type: float
    default: 5.0
"""
