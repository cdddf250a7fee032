"""The real etcd of tests/unit/etcd."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PLACE = Path(__file__).resolve().parents[1] / "etcd" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("patroni_forget_etcd", _PLACE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["patroni_forget_etcd"] = _MODULE
_SPEC.loader.exec_module(_MODULE)

authority, tls, server = _MODULE.authority, _MODULE.tls, _MODULE.server
client, platform, run_module = _MODULE.client, _MODULE.platform, _MODULE.run_module
