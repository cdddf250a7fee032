"""Durations and sizes."""

from __future__ import annotations

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.topology.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("1.5s", 1.5), ("0s", 0.0), ("25ms", 0.025)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "-5s", "5 s", "s", "5S", "1e3s", "5s\n", "\u0665s", "5d", ".5s", "5.s"])
def test_not_durations(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("256M", 256 << 20), ("1G", 1 << 30), ("4K", 4096), ("2T", 2 << 40)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "256", "0M", "1.5G", "256MB", "256m", "-1M", "1M\n"])
def test_not_sizes(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
