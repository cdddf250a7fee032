# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the lab's engine that need neither root nor podman."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import lab_engine
from ansible_collections.causeway.platform.plugins.module_utils.lab import LabError


@pytest.fixture
def run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lab_engine, "RUN_ROOT", tmp_path / "run")
    return tmp_path / "run"


def test_a_failing_program_is_named_with_its_last_words() -> None:
    with pytest.raises(LabError, match=r"'sh -c .* failed with 3: no luck"):
        lab_engine.command("sh", "-c", "echo no luck >&2; exit 3")
    with pytest.raises(LabError, match="not installed"):
        lab_engine.command("no-such-program")
    with pytest.raises(LabError, match="did not end within"):
        lab_engine.command("sleep", "5", timeout=0.1)


def test_unknown_lab_is_refused_with_those_that_are_up(run_root: Path) -> None:
    with pytest.raises(LabError, match=r"no lab 'demo' is up .*none"):
        lab_engine.Engine.of("demo")
    (run_root / "other").mkdir(parents=True)
    (run_root / "other" / "owner").write_text("/somewhere\n")
    with pytest.raises(LabError, match="up: other"):
        lab_engine.Engine.of("demo")
    assert lab_engine.Engine.of("other").state == Path("/somewhere")


def test_one_change_at_a_time(run_root: Path) -> None:
    first, second = lab_engine.Engine("demo", run_root), lab_engine.Engine("demo", run_root)
    with first.lock(), pytest.raises(LabError, match="being changed by another process"), second.lock(timeout=0.3):
        pass
    with second.lock(timeout=0.3):
        pass


def test_half_written_files_are_never_seen(tmp_path: Path) -> None:
    target = tmp_path / "a" / "file"
    lab_engine.write(target, "one")
    lab_engine.write(target, "two", 0o600)
    assert target.read_text() == "two"
    assert oct(target.stat().st_mode & 0o777) == "0o600"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_image_is_named_by_what_goes_into_it(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_text("one")
    first = lab_engine.plan_image(tmp_path, "trixie", init, ["b", "a"], "mirror://x/debian")
    assert first.path == lab_engine.plan_image(tmp_path, "trixie", init, ["a", "b"], "mirror://x/debian").path
    assert first.path != lab_engine.plan_image(tmp_path, "trixie", init, [], "mirror://x/debian").path
    init.write_text("two")
    assert first.path != lab_engine.plan_image(tmp_path, "trixie", init, ["b", "a"], "mirror://x/debian").path


def test_killed_build_leaves_no_image(tmp_path: Path) -> None:
    image = lab_engine.ImagePlan(tmp_path / "x.tar", ["sh", "-c", f"echo half >{tmp_path}/x.tar.part; exit 1"])
    with pytest.raises(LabError):
        lab_engine.build_image(image)
    assert not image.path.exists()
    good = lab_engine.ImagePlan(image.path, ["sh", "-c", f"echo whole >{tmp_path}/x.tar.part"])
    assert lab_engine.build_image(good)
    assert image.path.read_text() == "whole\n"
    assert not lab_engine.build_image(good)


def test_all_items_are_tried_before_the_error_comes() -> None:
    seen = []

    def act(item: int) -> int:
        seen.append(item)
        if item == 1:
            raise LabError("one")
        return item

    with pytest.raises(LabError, match="one"):
        lab_engine.each([1, 2, 3], act)
    assert sorted(seen) == [1, 2, 3]
