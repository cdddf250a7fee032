"""The guide names every key, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.topology import schema

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "description.md").read_text()
SHARED = ("calls[].retries",)  # explained for routes


def keys(rule, path=""):
    """Dotted paths of all leaves and lists of mappings."""
    if path in SHARED:
        yield path
    elif "properties" in rule:
        for name, inner in rule["properties"].items():
            yield from keys(inner, f"{path}.{name}" if path else name)
    elif "properties" in rule.get("items", {}):
        yield path
        yield from keys(rule["items"], f"{path}[]")
    elif isinstance(rule.get("additionalProperties"), dict) and "properties" in rule["additionalProperties"]:
        yield path
        yield from keys(rule["additionalProperties"], f"{path}.*")
    else:
        yield path


PLATFORM, SERVICE = list(keys(schema.PLATFORM)), list(keys(schema.SERVICE))


@pytest.mark.parametrize("key", PLATFORM + SERVICE)
def test_every_key_is_in_the_guide(key):
    assert f"\n| `{key}` |" in TEXT


def test_the_guide_has_no_other_keys():
    rows = re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert set(rows) - set(PLATFORM) - set(SERVICE) <= {*schema.COMPONENTS, "lab"}


def test_limits_in_the_guide():
    assert f"at most {schema.MAX_SERVICE_NAME} characters" in TEXT
    assert f"{schema.MESH_PORTS[0]} to {schema.MESH_PORTS[1]}" in TEXT
