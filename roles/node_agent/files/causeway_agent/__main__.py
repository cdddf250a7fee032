# Copyright The causeway.platform authors.  GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry point of `python3 -m causeway_agent`."""

from __future__ import annotations

import sys

from causeway_agent.main import main

sys.exit(main())
