"""The real etcd of tests/unit/etcd, for the module's part."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PLACE = Path(__file__).resolve().parents[1] / "etcd" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("release_record_etcd", _PLACE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["release_record_etcd"] = _MODULE
_SPEC.loader.exec_module(_MODULE)

authority, tls, server = _MODULE.authority, _MODULE.tls, _MODULE.server
client, platform, keys, run_module = _MODULE.client, _MODULE.platform, _MODULE.keys, _MODULE.run_module
