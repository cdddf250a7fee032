"""A real PostgreSQL for the demo service, the one of the migrations' tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PLACE = Path(__file__).resolve().parents[1] / "migrations" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("demo_postgresql", _PLACE)
assert _SPEC
assert _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["demo_postgresql"] = _MODULE
_SPEC.loader.exec_module(_MODULE)

cluster = _MODULE.cluster
