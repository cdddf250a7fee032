# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verbs for backups and restores ask for, and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("time", "lsn", "xid", "name")


def restore_target(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Options of module ``pgbackrest_restore`` from the verb's variables; ValueError for two targets at once.

    wanted: ``time``, ``lsn``, ``xid``, ``name``, ``immediate``, ``before``, ``timeline``, ``set``; empty ones are none.
    """
    given = [kind for kind in KINDS if str(wanted.get(kind) or "")]
    if wanted.get("immediate"):
        given.append("immediate")
    if len(given) > 1:
        raise ValueError(f"one target at a time, but {', '.join(f'restore_{one}' for one in given)} are given")
    kind = given[0] if given else "latest"
    return {
        "target_type": kind,
        "target": str(wanted[kind]) if kind in KINDS else "",
        "target_exclusive": bool(wanted.get("before")),
        "target_timeline": str(wanted.get("timeline") or "latest"),
        "set": str(wanted.get("set") or ""),
    }


def report(
    verb: str, cluster: str, facts: Mapping[str, Any], *, check_mode: bool = False, failure: str = ""
) -> dict[str, Any]:
    """The end of a verb as data and as readable lines (``text``).

    facts: what is known, in the order to be told; empty values are left out.
    """
    known = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
    outcome = "failed" if failure else "would be done" if check_mode else "done"
    lines = [f"{verb} of {cluster}: {outcome}", *([f"reason: {failure}"] if failure else [])]
    for name, value in known.items():
        if isinstance(value, Mapping):
            lines.append(
                f"{name}: " + ", ".join(f"{key} {one}" for key, one in value.items() if one not in (None, "", [], {}))
            )
        elif isinstance(value, list):
            lines += [f"{name}:", *(f"  {one}" for one in value)]
        else:
            lines.append(f"{name}: {value}")
    return {"verb": verb, "cluster": cluster, "outcome": outcome, "failure": failure, **known, "text": lines}
