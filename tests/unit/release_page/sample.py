"""What registry_info returns of a platform in the middle of a canary, with some hostile text in it."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import release_record

START = datetime(2026, 11, 22, 16, 0, 0, tzinfo=timezone.utc)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


def at(seconds: float) -> str:
    """A time of the sample."""
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def analysis(number: int, errors: str = "pass") -> dict[str, Any]:
    """One verdict; bands narrow as data come in. Changes are relative to stable."""
    width = 2 / math.sqrt(number + 1)
    seen = 400 * (number + 1)
    verdict = "insufficient_data" if number == 0 else errors
    return {
        "at": at(45 + 30 * (number + 1)),
        "verdict": verdict,
        "reason": "fewer than 100 requests to the candidates"
        if number == 0
        else "no metric is worse by more than its margin",
        "metrics": [
            {
                "name": "errors",
                "kind": "errors",
                "verdict": verdict,
                "reason": f"{HOSTILE} 1.1 % of {seen} requests failed, 1.0 % of the stable ones",
                "stable": 0.010,
                "candidate": 0.011,
                "difference": 0.1 + 0.2 * math.sin(number),
                "lower": 0.1 - width,
                "upper": 0.1 + width,
                "unit": "ratio",
                "requests": {"stable": seen * 9, "candidate": seen},
                "e_value": 0.8 + number / 10,
            },
            {
                "name": "latency",
                "kind": "latency",
                "verdict": "inconclusive" if number < 4 else "pass",
                "reason": "p99 of 142 ms is within 20 % of 131 ms",
                "stable": 0.131,
                "candidate": 0.142,
                "difference": 0.084,
                "lower": None if number < 2 else 0.084 - width / 10,
                "upper": 0.084 + width / 5,
                "unit": "seconds",
                "requests": {"stable": seen * 9, "candidate": seen},
            },
            {
                "name": "orders placed",
                "kind": "business",
                "verdict": "inconclusive",
                "reason": "no samples yet",
                "unit": "1/s",
            },
        ],
    }


def instance(host: str, slot: int, pool: str, version: str, draining: bool = False) -> dict[str, Any]:
    return {
        "service": "orders",
        "instance": f"{host}-{slot}",
        "host": host,
        "slot": slot,
        "zone": f"north-{'abc'[int(host[-1]) % 3]}",
        "region": "north",
        "pool": pool,
        "version": version,
        "draining": draining,
    }


def led(*steps: tuple[float, dict[str, Any]]) -> dict[str, Any]:
    """The record after these steps of registry_release."""
    record: dict[str, Any] = {"current": "1.0.0", "previous": "0.9.0", "history": [], "state": ""}
    for seconds, options in steps:
        changes, entry = release_record.advance(record, at(seconds), **options)
        record = {**record, **changes}
        if entry:
            same = [one for one in record["history"] if one["started"] == entry["started"]]
            others = [one for one in record["history"] if one not in same]
            record["history"] = [*others, {**(same[0] if same else {}), **entry}]
    return record


def begin(strategy: str, version: str) -> dict[str, Any]:
    return {"begin": {"id": "r1", "strategy": strategy, "version": version, "from": "1.0.0"}}


def to(state: str, reason: str = "", **options: Any) -> dict[str, Any]:
    return {"transition": {"to": state, "reason": reason}, **options}


def services() -> dict[str, Any]:
    """Four services: a canary under way, one that was rolled back, a live one, one never released."""
    orders = led(
        (0, begin("canary", "1.1.0")),
        (2, to("preparing")),
        (21, to("testing", "2 candidates are healthy")),
        (44, to("shifting", "20 test requests answered through the gateway")),
        (45, {"step": 0, "weight": 5}),
        (110, {"step": 1, "weight": 25}),
        (290, {"step": 2, "weight": 50}),
        *((75 + 30 * number, {"analysis": analysis(number)}) for number in range(16)),
    )
    orders["history"] = [
        {"version": "0.9.0", "from": "0.8.2", "started": at(-90_000), "finished": at(-89_700), "outcome": "live"},
        {
            "version": "1.0.0",
            "from": "0.9.0",
            "started": at(-9_000),
            "finished": at(-8_700),
            "outcome": "rolled back",
            "reason": "app3/0: Instance | Test it through its sidecar: 503 on the first of 20 requests",
            "strategy": "rolling",
        },
        *orders["history"],
    ]
    catalog = led(
        (0, begin("blue_green", "2.0.0")),
        (3, to("preparing")),
        (30, to("testing")),
        (52, to("shifting", weight=100)),
        (53, to("baking")),
        (
            84,
            {
                "analysis": {
                    **analysis(1, "fail"),
                    "at": at(84),
                    "verdict": "fail",
                    "reason": "errors: 4.2 % against 1.0 %",
                }
            },
        ),
        (85, {"weight": 0}),
        (
            86,
            {
                "transition": {
                    "to": "rolled back",
                    "reason": f"errors: 4.2 % against 1.0 %, e-value 61 {HOSTILE}",
                    "evidence": {"e_value": 61.2, "note": HOSTILE},
                }
            },
        ),
    )
    live = {
        "current": "3.0.1",
        "previous": "3.0.0",
        "state": "live",
        "history": [
            {"version": "3.0.1", "from": "3.0.0", "started": at(-500), "finished": at(-300), "outcome": "live"}
        ],
    }
    split = {"weights": {"stable": 50, "candidate": 50}, "revision": 7}
    pools = [instance(f"app{number}", 0, "stable", "1.0.0", number == 2) for number in range(1, 5)]
    pools += [instance(f"app{number}", 5, "candidate", "1.1.0") for number in (1, 3)]
    return {
        "catalog": {
            "instances": [instance("app1", 0, "stable", "1.0.0")],
            "release": catalog,
            "traffic": {},
            "lock": {},
        },
        "orders": {
            "instances": pools,
            "release": orders,
            "traffic": split,
            "lock": {"owner": "x", "purpose": f"canary of 1.1.0 {HOSTILE}", "at": at(0)},
            "command": {"command": "pause", "by": "alice", "at": at(520), "release": "r1"},
        },
        "payments": {"instances": [instance("app2", 1, "stable", "3.0.1")], "release": live, "traffic": {}, "lock": {}},
        "search": {"instances": [], "release": {}, "traffic": {}, "lock": {}},
    }
