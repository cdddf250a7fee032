# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that the modules for Patroni share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  endpoints:
    description:
      - Base addresses of the REST APIs of the cluster's members. One that answers is enough to look and to configure.
    type: list
    elements: str
    required: true
  ca_file:
    description:
      - PEM file of the roots that the members' certificates are checked against.
      - It is a path on the host where the module runs, as are O(cert_file) and O(key_file).
    type: path
    default: /etc/causeway/tls/database/current/ca.pem
  cert_file:
    description:
      - PEM file of the client certificate with its chain.
    type: path
    default: /etc/causeway/tls/database/current/cert.pem
  key_file:
    description:
      - PEM file of the client certificate's key.
    type: path
    default: /etc/causeway/tls/database/current/key.pem
  username:
    description:
      - User of the REST API.
    type: str
    default: rest
  password:
    description:
      - Password of O(username), needed for what changes something.
    type: str
  request_timeout:
    description:
      - Seconds that a request to one member may take.
    type: float
    default: 5.0
"""
