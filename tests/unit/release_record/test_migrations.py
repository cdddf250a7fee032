# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases of the database's migrations in the release record: noted, shown, and left out when they are done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import release, release_page
from ansible_collections.causeway.platform.plugins.module_utils import release_record as record

T0, T1, T2 = "2026-11-22T16:00:00.000Z", "2026-11-22T16:00:12.500Z", "2026-11-22T17:00:00.000Z"
FILES = ["20261122093000_add_email.sql", "20261122094000_add_phone.sql"]
BEGIN = {"id": "r1", "strategy": "canary", "version": "1.1.0", "from": "1.0.0"}


def note(phase: str, state: str, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "state": state, "versions": FILES, **more}


def begun() -> record.Release:
    return record.new_release(id="r1", strategy="canary", version="1.1.0", from_version="1.0.0", at=T0)


def test_a_phase_is_noted_with_what_it_took() -> None:
    running = record.add_migration(begun(), note("expand", "running"), T0)
    assert record.add_migration(running, note("expand", "running"), T2) is running
    done = record.add_migration(running, note("expand", "done"), T1)
    versions = ["20261122093000", "20261122094000"]
    assert done.migrations == (
        {"phase": "expand", "versions": versions, "state": "done", "at": T1, "reason": "", "took": 12.5},
    )
    assert record.add_migration(done, note("expand", "done"), T2) is done
    assert record.Release.of(done.as_dict()) == done


def test_phases_keep_their_order_and_a_started_over_release_keeps_them() -> None:
    later = record.add_migration(begun(), note("backfill", "failed", reason="x" * 2000), T0)
    both = record.add_migration(later, note("expand", "done"), T1)
    assert [one["phase"] for one in both.migrations] == ["expand", "backfill"]
    assert len(both.migrations[1]["reason"]) <= record.MAX_REASON
    dead = record.change_state(both, "preparing", T1)
    again = record.restart(dead, T2)
    assert again.migrations == both.migrations
    assert record.migration_done(again.as_dict(), "expand", FILES)


@pytest.mark.parametrize(
    ("phase", "files", "state"),
    [("expand", FILES[:1], "done"), ("expand", [*FILES, "20261123000000_c.sql"], "done"), ("backfill", FILES, "done")]
    + [("expand", FILES, state) for state in ("running", "failed", "undone")],
)
def test_what_is_not_done_with_the_same_files_is_not_left_out(phase: str, files: list[str], state: str) -> None:
    found = record.add_migration(begun(), note("expand", state), T0)
    assert not record.migration_done(found.as_dict(), phase, files)
    assert not record.migration_done({}, phase, files)


@pytest.mark.parametrize(("phase", "state"), [("shrink", "done"), ("expand", "fine")])
def test_what_cannot_be_noted_is_told(phase: str, state: str) -> None:
    with pytest.raises(release.ReleaseError, match="is unknown; allowed: "):
        record.add_migration(begun(), note(phase, state), T0)


def test_a_contract_after_the_end_changes_nothing_but_its_note() -> None:
    ended = record.change_state(begun(), record.ABORTED, T1)
    before = {"current": "2.0.0", "previous": "1.0.0", "state": "live", "release": ended.as_dict()}
    changes, entry = record.advance(before, T2, migration=note("contract", "done"))
    assert set(changes) == {"release"}
    assert changes["release"]["changed"] == T1  # the rollback window counts from it
    assert entry == {"version": "1.1.0", "started": T0, "migrations": {"contract": "done"}}


def test_the_module_notes_it(run_module: Callable[..., dict[str, Any]]) -> None:
    def run(**options: Any) -> dict[str, Any]:
        return run_module("registry_release", service="orders", **options)

    refused = run(migration=note("expand", "running"))
    assert refused["failed"] and "no release has begun" in refused["msg"]
    run(begin=BEGIN)
    assert run(check_mode=True, migration=note("expand", "running"))["changed"]
    assert run(migration=note("expand", "running"))["changed"]
    assert not run(migration=note("expand", "running"))["changed"]
    stolen = run(migration=note("expand", "done"), owner="somebody")
    assert stolen["failed"] and "not held by somebody" in stolen["msg"]
    found = run(migration=note("expand", "done", reason="proven"))["release"]
    assert [(one["phase"], one["state"]) for one in found["release"]["migrations"]] == [("expand", "done")]
    assert found["history"][-1]["migrations"] == {"expand": "done"}


def test_status_history_and_page_show_it() -> None:
    found = record.add_migration(begun(), note("expand", "running"), T0)
    changes, entry = record.advance({"release": found.as_dict()}, T1, migration=note("expand", "failed", reason="<b>"))
    services = {"orders": {"release": {**changes, "history": [entry]}}}
    assert f"  database expand: failed at {T1} after 12.5 s: <b>" in release.status_lines(services)
    header, row = release.history_lines(services)
    assert "DATABASE" in header and "expand=failed" in row
    page = release_page.render_page(services, "shop", T2)
    assert "<h3>Database</h3>" in page and "20261122093000, 20261122094000" in page and "&lt;b&gt;" in page
