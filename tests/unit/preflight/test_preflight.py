"""A host that cannot carry its components is told everything that is wrong, at once."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.preflight import host_problems

FIT: dict[str, Any] = {
    "distribution": "Debian",
    "distribution_major_version": "13",
    "service_mgr": "systemd",
    "memtotal_mb": 2048,
    "mounts": [{"mount": "/", "size_available": 5 << 30}],
    "date_time": {"epoch_int": 1000},
}


def problems(**changes: Any) -> list[str]:
    return host_problems({**FIT, **changes}, ["13"], memory_min=512, disk_min=1024, clock_skew_max=60, now=1000.0)


def test_a_fit_host_has_no_problem() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distribution": "Ubuntu"}, "allowed: Debian 13"),
        ({"distribution_major_version": "12"}, "the system is Debian 12"),
        ({"service_mgr": "sysvinit"}, "PID 1 is sysvinit"),
        ({"memtotal_mb": 256}, "memory is 256 MiB"),
        (
            {"mounts": [{"mount": "/", "size_available": 1 << 40}, {"mount": "/var", "size_available": 1 << 20}]},
            "1 MiB are free",
        ),
        ({"date_time": {"epoch_int": 2000}}, "+1000 s off"),
    ],
)
def test_each_problem_is_named(changes: dict[str, Any], words: str) -> None:
    (problem,) = problems(**changes)
    assert words in problem


def test_all_problems_come_at_once() -> None:
    assert len(problems(distribution="Fedora", service_mgr="runit", memtotal_mb=1)) == 3
