# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two groups of instances of one pool, as a rolling release has them: those of the new version against those of the old
one, from what each instance's own sidecar counted (direction ``inbound``, label ``slot``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .client import AnalysisError
from .samples import Step

EDGE = 0.5  # seconds by which times are rounded


@dataclass(frozen=True)
class Instance:
    """When an instance ran which version, epoch seconds: the old one before ``until``, the new one from ``since`` on.
    Without ``until`` it still runs the old one; what was counted between the two belongs to neither.
    """

    host: str
    slot: str
    until: float = math.inf
    since: float = math.inf


def parse_instances(given: Mapping[str, Any] | None) -> tuple[Instance, ...]:
    """Instances from ``{host/slot: {until, since}}``. Raises AnalysisError."""
    found = []
    for name, times in (given or {}).items():
        host, slash, slot = str(name).rpartition("/")
        if not (host and slash and slot.isdigit()):
            raise AnalysisError(f"instances: {name!r} is no instance; allowed: host/slot, such as app1/0")
        values = []
        for key in ("until", "since"):
            value = (times or {}).get(key)
            try:
                number = math.inf if value is None else float(value)
            except (TypeError, ValueError):
                number = math.nan
            if math.isnan(number) or number < 0:
                raise AnalysisError(f"instances.{name}.{key}: {value!r} is no time; allowed: epoch seconds")
            values.append(number)
        until, since = min(values), values[1]
        found.append(Instance(host, slot, until, since))
    return tuple(found)


def by_side(
    found: Sequence[Step], instances: Sequence[Instance], stable: str, candidate: str, shift: float = 0.0
) -> list[Step]:
    """Steps whose counters (by slot) are summed by side. ``shift`` is added to the instances' times."""
    known = {(one.host, one.slot): one for one in instances}
    result = []
    for step in found:
        host = step.target.rpartition("/")[0]
        counts: dict[tuple[str, str], float] = {}
        for (slot, name), number in step.counts.items():
            one = known.get((host, slot))
            if one is None:
                continue
            if step.end <= one.until + shift + EDGE:
                side = stable
            elif step.start >= one.since + shift - EDGE:
                side = candidate
            else:
                continue
            counts[side, name] = counts.get((side, name), 0.0) + number
        result.append(Step(step.target, step.start, step.end, counts))
    return result


def horizon(found: Sequence[Step], until: float, patience: float) -> float:
    """Up to when all sidecars were scraped. One that was not for ``patience`` seconds is gone and is not waited for.

    Sidecars are scraped at different moments: errors that both versions share would else be seen on one side first.
    """
    newest: dict[str, float] = {}
    for step in found:
        newest[step.target] = max(newest.get(step.target, 0.0), step.end)
    return min((end for end in newest.values() if end >= until - patience), default=until)


def bins(found: Sequence[Step], since: float, width: float) -> list[list[Step]]:
    """Steps of about the same time: those whose middle lies in the same ``width`` seconds."""
    groups: dict[int, list[Step]] = {}
    for step in found:
        groups.setdefault(math.floor(((step.start + step.end) / 2 - since) / width), []).append(step)
    return [groups[number] for number in sorted(groups)]
