# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations, sizes and calendar expressions as people write them."""

from __future__ import annotations

import re

DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)\Z")
SIZE = re.compile(r"([1-9][0-9]*)([KMGT])\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_duration(text: str) -> float:
    """Seconds in ``250ms``, ``5s``, ``1.5m`` or ``2h``. Raises ValueError for anything else, a missing unit too."""
    match = DURATION.match(text)
    if not match:
        raise ValueError("not a duration")
    return round(float(match.group(1)) * _SECONDS[match.group(2)], 6)


def parse_size(text: str) -> int:
    """Bytes in ``256M`` (binary units, as systemd and podman read them). Raises ValueError for anything else."""
    match = SIZE.match(text)
    if not match:
        raise ValueError("not a size")
    return int(match.group(1)) * _BYTES[match.group(2)]


_SHORT = ("minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "semiannually", "annually", "yearly")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LONG_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ITEM = re.compile(r"([0-9]{1,4})(?:\.\.([0-9]{1,4}))?(?:/([0-9]{1,4}))?\Z")
_FRACTION = r"(?:\.[0-9]{1,6})?"
_SECOND = re.compile(rf"([0-9]{{1,2}}){_FRACTION}(?:\.\.([0-9]{{1,2}}){_FRACTION})?(?:/([0-9]{{1,2}}{_FRACTION}))?\Z")
_ZONE = re.compile(r"(?:UTC|[A-Z][A-Za-z0-9_+-]*(?:/[A-Z][A-Za-z0-9_+-]*)+)\Z")


def check_calendar(text: str) -> None:
    """Raises ValueError unless ``text`` is a calendar expression: ``[days] [date] [time] [zone]``, systemd.time(7).

    A strict subset of what systemd takes: weekdays by name, dates ``[year-]month-day``, times ``hour:minute[:second]``,
    lists, ranges with ``..``, repetitions with ``/``, and the words ``daily``, ``weekly`` and the like.
    """
    words = text.split(" ")
    if len(words) > 1 and _ZONE.match(words[-1]):
        words.pop()
    if len(words) == 1 and words[0].lower() in _SHORT:
        return
    rest = list(words)
    if rest and rest[0][:1].isalpha():
        _check_days(rest.pop(0))
    if rest and "-" in rest[0]:
        _check_date(rest.pop(0))
    if rest and ":" in rest[0]:
        parts = rest.pop(0).split(":")
        if len(parts) not in (2, 3):
            raise ValueError("not a time")
        for part, high in zip(parts, (23, 59)):
            _check_values(part, 0, high)
        if len(parts) == 3:
            _check_values(parts[2], 0, 59, _SECOND)
    if rest or not words:
        raise ValueError("not a calendar expression")


def _check_days(text: str) -> None:
    for item in text.lower().split(","):
        ends = [_DAYS.index(name) if name in _DAYS else _LONG_DAYS.index(name) for name in item.split("..")]
        if len(ends) > 2 or ends != sorted(ends):
            raise ValueError("not a range of days")


def _check_date(text: str) -> None:
    parts = text.split("-")
    if len(parts) not in (2, 3):
        raise ValueError("not a date")
    limits = [(1970, 2199), (1, 12), (1, 31)]
    for part, (low, high) in zip(parts, limits[-len(parts) :]):
        _check_values(part, low, high)


def _check_values(text: str, low: int, high: int, pattern: re.Pattern[str] = _ITEM) -> None:
    if text == "*":
        return
    for item in text.split(","):
        match = pattern.match(item)
        if not match:
            raise ValueError("not a value")
        first, last, step = match.groups()
        # As in systemd, the first repetition has to fall into the range.
        stride = float(step or 0)
        if not low <= int(first) <= int(first) + stride <= int(last or high) <= high or (step and not stride):
            raise ValueError("out of range")
