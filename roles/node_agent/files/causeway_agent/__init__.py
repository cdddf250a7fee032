# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node agent of causeway.platform: health checks to etcd leases, etcd state to Envoy and Prometheus files."""

from __future__ import annotations

__version__ = "0.1.0"
