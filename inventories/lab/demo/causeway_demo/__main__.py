"""``python3 -m causeway_demo``: runs the service named by the image."""

from __future__ import annotations

import sys

from causeway_demo import catalog, common, orders

SERVICES = {"catalog": catalog.setup, "orders": orders.setup}

if __name__ == "__main__":
    settings = common.Settings.from_environment()
    if settings.service not in SERVICES:
        sys.exit(f"SERVICE is {settings.service!r}, allowed: {', '.join(sorted(SERVICES))}")
    common.serve(settings, SERVICES[settings.service])
