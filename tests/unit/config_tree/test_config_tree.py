"""config_tree's functions: description, transport, decision, validation, and the swap with a SIGKILL at every step."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import config_tree as ct

ME = pwd.getpwuid(os.geteuid()).pw_name
MINE = grp.getgrgid(os.getegid()).gr_name
OPTIONS: dict[str, Any] = {
    **{name: spec.get("default") for name, spec in ct.ARGUMENT_SPEC.items()},
    "owner": ME,
    "group": MINE,
}


def tree(files: dict[str, Any], **options: Any) -> ct.Tree:
    """A tree out of {path: text or bytes}."""
    sources = [ct.Source(path, ct.as_content(content)) for path, content in files.items()]
    return ct.build_tree(sources, {**OPTIONS, **options})[0]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A directory that plays the host's file system; state and locks are beside it."""
    old = os.umask(0o022)
    (tmp_path / "root").mkdir()
    yield tmp_path
    os.umask(old)


def request_for(host: Path, files: dict[str, Any], **changes: Any) -> ct.Request:
    options = {key: changes.pop(key) for key in list(changes) if key in ct.ARGUMENT_SPEC and key in TREE_OPTIONS}
    request = ct.Request(
        tree=tree(files, **options),
        identifier="demo",
        dest=str(host / "root"),
        state=str(host / "state"),
        run=str(host / "run"),
        diff=True,
    )
    return dataclasses.replace(request, **changes)


TREE_OPTIONS = ("attributes", "validate_only", "directories", "mode", "directory_mode", "owner", "group")


def snapshot(root: Path) -> dict[str, Any]:
    """Every path below a directory with its kind, mode, owner and content."""
    result: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        result[str(path.relative_to(root))] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)
    return result


# --- description ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("etc/x/*.conf", "etc/x/a.conf", True),
        ("etc/x/*.conf", "etc/x/sub/a.conf", False),
        ("etc/**", "etc/x/sub/a.conf", True),
        ("etc/**/a.conf", "etc/a.conf", True),
        ("etc/**/a.conf", "etc/x/y/a.conf", True),
        ("**/key.pem", "key.pem", True),
        ("**/key.pem", "a/monkey.pem", False),
        ("etc/x/", "etc/x/", True),
        ("etc/?", "etc/a", True),
        ("etc/?", "etc/ab", False),
        ("etc/[ab]c", "etc/bc", True),
        ("etc/[!ab]c", "etc/bc", False),
        ("etc/a.conf", "etc/a.conf.bak", False),
        ("etc/a.conf", "etc/aXconf", False),
        ("etc/[", "etc/[", True),
    ],
)
def test_globs(pattern: str, path: str, expected: bool) -> None:
    assert bool(ct.compile_glob(pattern).match(path)) is expected


@pytest.mark.parametrize("path", ["", "/etc/x", "a/../b", "./a", "a//b", "a/", "a\nb", "a\0b", "\udcff"])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(ct.ConfigTreeError, match="files: path"):
        ct.check_path(path, "files")


@pytest.mark.parametrize("dest", ["", "etc", "/a/../b", "/a/", "//a"])
def test_destinations_that_are_refused(dest: str) -> None:
    with pytest.raises(ct.ConfigTreeError, match="dest"):
        ct.check_dest(dest)


@pytest.mark.parametrize(
    ("value", "expected"), [("0640", 0o640), ("640", 0o640), ("0o640", 0o640), (0o644, 0o644), ("4755", 0o4755)]
)
def test_modes(value: Any, expected: int) -> None:
    assert ct.parse_mode(value, "mode") == expected


@pytest.mark.parametrize("value", ["u=rw", "", "999", True, -1, 0o10000, "preserve"])
def test_modes_that_are_refused(value: Any) -> None:
    with pytest.raises(ct.ConfigTreeError, match="attributes\\[0\\]: mode"):
        ct.parse_mode(value, "attributes[0]")


def test_later_attributes_win_and_own_ones_win_over_all() -> None:
    sources = [ct.Source("etc/a/key", b"k", overrides={"mode": "0400"}), ct.Source("etc/a/b", b"")]
    rules = [
        {"path": "etc/a/*", "mode": "0600", "secret": True},
        {"path": "etc/a/key", "mode": "0640", "owner": "daemon"},
        {"path": "etc/a/", "mode": "0700"},
        {"path": "nowhere", "mode": "0600"},
    ]
    built, unmatched = ct.build_tree(sources, {**OPTIONS, "attributes": rules})
    key = next(entry for entry in built.files if entry.path == "etc/a/key")
    assert (key.mode, key.owner, key.secret) == (0o400, "daemon", True)
    directories = {entry.path: entry for entry in built.directories}
    assert (directories["etc/a"].mode, directories["etc/a"].enforce) == (0o700, True)
    assert (directories["etc"].mode, directories["etc"].enforce) == (0o755, False)
    assert unmatched == ["nowhere"]


def test_one_path_twice_is_refused() -> None:
    with pytest.raises(ct.ConfigTreeError, match="etc/a is described twice"):
        ct.build_tree([ct.Source("etc/a", b"1"), ct.Source("etc/a", b"2")], OPTIONS)


def test_a_path_cannot_be_file_and_directory() -> None:
    with pytest.raises(ct.ConfigTreeError, match="etc/a is a file and also a directory"):
        tree({"etc/a": "", "etc/a/b": ""})


def test_a_vaulted_source_cannot_be_made_public() -> None:
    source = ct.Source("a", b"", secret=True, overrides={"secret": False})
    assert ct.build_tree([source], OPTIONS)[0].files[0].secret


def test_content_is_text_or_readable_json() -> None:
    assert ct.as_content("no newline") == b"no newline"
    assert ct.as_content({"b": [1], "a": "ü"}) == '{\n  "a": "ü",\n  "b": [\n    1\n  ]\n}\n'.encode()


def test_default_ids_differ_and_are_file_names() -> None:
    ids = {
        ct.default_id(*key) for key in [("r", "s", "/"), ("r", "s", "/srv"), ("r-s", "", "/"), ("x" * 300, "ü/ö", "/")]
    }
    assert len(ids) == 4
    assert all(ct.check_id(name) == name for name in ids)


@pytest.mark.parametrize("identifier", ["", "../x", ".hidden", "a b", "x" * 129])
def test_ids_that_are_refused(identifier: str) -> None:
    with pytest.raises(ct.ConfigTreeError, match="id:"):
        ct.check_id(identifier)


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("'nothere' is undefined", [2]),
        ("object of type 'dict' has no attribute 'b'", [3]),
        ("The filter plugin 'ansible.builtin.from_json' failed: x", [4]),
        ("something else", []),
    ],
)
def test_lines_that_an_error_is_about(message: str, lines: list[int]) -> None:
    text = "nothere in prose\n{{ nothere }}\n{% if a.b %}\n{{ 'x' | from_json\n}}"
    assert ct.lines_naming(text, message) == lines


# --- transport --------------------------------------------------------------------------------------------------


def test_archive_is_deterministic_and_comes_back() -> None:
    built = tree({"etc/ü file": "ä\n", "bin": b"\x00\xff", "empty": ""}, directories={"var/x": {"mode": "0700"}})
    data = ct.pack(built)
    assert data == ct.pack(built)
    assert ct.unpack(ct.decode(ct.encode(data))) == built


@pytest.mark.parametrize("damaged", [b"", b"junk", ct.pack(ct.Tree((), ()))[:-20]])
def test_a_damaged_archive_is_refused(damaged: bytes) -> None:
    with pytest.raises(ct.ConfigTreeError, match="cannot be read"):
        ct.unpack(damaged)


# --- four steps and the file system -----------------------------------------------------------------------------


def test_four_steps(host: Path) -> None:
    files = {"etc/app/a.conf": "one\n", "etc/app/sub/b file": "ü no newline", "bin": b"\0\xff", "empty": ""}
    outcomes = []
    for check in (True, False, True, False):
        before = snapshot(host)
        result = ct.converge(request_for(host, files, check_mode=check))
        outcomes.append(result["changed"])
        if check:
            assert snapshot(host) == before
    assert outcomes == [True, True, False, False]
    for path, content in files.items():
        assert (host / "root" / path).read_bytes() == ct.as_content(content)
    assert not [path for path in host.rglob("*") if ".causeway-" in path.name or path.suffix in (".journal", ".tmp")]


def test_drift_of_content_and_mode_is_corrected_and_reported(host: Path) -> None:
    files = {"etc/a": "1\n", "etc/b": "2\n", "etc/c": "3\n"}
    ct.converge(request_for(host, files))
    (host / "root/etc/a").write_text("other\n")
    (host / "root/etc/b").chmod(0o600)
    (host / "root/etc").chmod(0o700)
    result = ct.converge(request_for(host, files))
    root = f"{host}/root/etc"
    assert result["changed_paths"] == [f"{root}/", f"{root}/a", f"{root}/b"]
    assert ct.converge(request_for(host, files))["changed"] is False
    assert stat.S_IMODE((host / "root/etc/b").stat().st_mode) == 0o644


def test_a_directory_that_was_there_is_left_as_it_is(host: Path) -> None:
    (host / "root/etc").mkdir(mode=0o711)
    result = ct.converge(request_for(host, {"etc/a": ""}))
    assert result["created_directories"] == []
    assert stat.S_IMODE((host / "root/etc").stat().st_mode) == 0o711
    ct.converge(request_for(host, {"etc/a": ""}, attributes=[{"path": "etc/", "mode": "0750"}]))
    assert stat.S_IMODE((host / "root/etc").stat().st_mode) == 0o750


def test_dest_is_made(host: Path) -> None:
    result = ct.converge(request_for(host, {"a": "x"}, dest=str(host / "root/srv/app")))
    assert result["created_directories"] == [f"{host}/root/srv", f"{host}/root/srv/app"]
    assert (host / "root/srv/app/a").read_text() == "x"


def test_purge_removes_only_what_it_managed(host: Path) -> None:
    ct.converge(request_for(host, {"etc/app/a": "1", "etc/app/sub/b": "2", "etc/other/c": "3"}))
    (host / "root/etc/other/foreign").write_text("keep")
    expected = [f"{host}/root/etc/app/sub/b", f"{host}/root/etc/other/c"]
    before = snapshot(host / "root")
    assert ct.converge(request_for(host, {"etc/app/a": "1"}, check_mode=True))["purged_paths"] == expected
    assert snapshot(host / "root") == before
    result = ct.converge(request_for(host, {"etc/app/a": "1"}))
    assert result["purged_paths"] == expected
    assert result["removed_directories"] == [f"{host}/root/etc/app/sub"]
    assert (host / "root/etc/other/foreign").read_text() == "keep"
    (host / "root/etc/other/foreign").unlink()
    result = ct.converge(request_for(host, {"etc/app/a": "1"}))
    assert result["removed_directories"] == [f"{host}/root/etc/other"]
    assert ct.converge(request_for(host, {"etc/app/a": "1"}))["changed"] is False


def test_purge_can_be_deferred(host: Path) -> None:
    ct.converge(request_for(host, {"a": "1", "b": "2"}))
    assert ct.converge(request_for(host, {"a": "1"}, purge=False))["changed"] is False
    assert ct.converge(request_for(host, {"a": "1"}))["purged_paths"] == [f"{host}/root/b"]


def test_purge_leaves_what_became_something_else(host: Path) -> None:
    ct.converge(request_for(host, {"a": "1", "sub/b": "2"}))
    outside = host / "outside"
    outside.mkdir()
    (outside / "b").write_text("precious")
    (host / "root/a").unlink()
    (host / "root/a").symlink_to(outside / "b")
    (host / "root/sub/b").unlink()
    (host / "root/sub").rmdir()
    (host / "root/sub").symlink_to(outside)
    result = ct.converge(request_for(host, {"c": "3"}))
    assert result["purged_paths"] == []
    assert len(result["warnings"]) == 2
    assert (outside / "b").read_text() == "precious"


def test_another_tree_takes_over_without_a_purge_behind_its_back(host: Path) -> None:
    ct.converge(request_for(host, {"a": "1", "b": "1"}))
    result = ct.converge(request_for(host, {"a": "1"}, identifier="other"))
    assert "the tree demo managed" in result["warnings"][0]
    assert ct.converge(request_for(host, {"b": "1"}))["changed"] is False
    assert (host / "root/a").exists()


def test_backup(host: Path) -> None:
    ct.converge(request_for(host, {"a": "1", "b": "1"}))
    result = ct.converge(request_for(host, {"a": "2"}, backup=True))
    assert [Path(path).read_text() for path in result["backup_files"]] == ["1", "1"]
    assert ct.converge(request_for(host, {"a": "2"}, backup=True))["backup_files"] == []


def test_watch(host: Path) -> None:
    watch = {"restart": ["etc/boot*"], "reload": ["etc/**"]}
    first = ct.converge(request_for(host, {"etc/boot": "1", "etc/x": "1"}, watch=watch))
    assert first["watched"] == {"restart": True, "reload": True}
    second = ct.converge(request_for(host, {"etc/boot": "1", "etc/x": "2"}, watch=watch))
    assert second["watched"] == {"restart": False, "reload": True}
    third = ct.converge(request_for(host, {"etc/x": "2"}, watch=watch))
    assert third["watched"] == {"restart": True, "reload": True}


def test_directories_without_files(host: Path) -> None:
    wish = {"var/lib/x": {"mode": "0700"}}
    ct.converge(request_for(host, {}, directories=wish))
    assert stat.S_IMODE((host / "root/var/lib/x").stat().st_mode) == 0o700
    assert ct.converge(request_for(host, {}, directories=wish))["changed"] is False


# --- things in the way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: (root / "etc/a").mkdir(parents=True), "etc/a is a directory on this host"),
        (lambda root: (root / "etc").write_text(""), "etc exists and is not a directory"),
        (lambda root: ((root / "etc").mkdir(), os.mkfifo(root / "etc/a")), "neither a regular file"),
        (lambda root: (root / "etc").symlink_to(root.parent), "outside of"),
        (lambda root: (root / "etc").symlink_to(root / "nowhere"), "which is not a directory"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_changes(host: Path, prepare: Any, words: str) -> None:
    prepare(host / "root")
    before = snapshot(host / "root")
    with pytest.raises(ct.ConfigTreeError, match=words):
        ct.converge(request_for(host, {"0": "x", "etc/a": "x"}))
    assert snapshot(host / "root") == before


def test_links_inside_are_followed_for_directories_and_replaced_for_files(host: Path) -> None:
    root = host / "root"
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    (root / "target").write_text("old")
    (root / "file").symlink_to("target")
    ct.converge(request_for(host, {"link/a": "x", "file": "new"}))
    assert (root / "link").is_symlink() and (root / "real/a").read_text() == "x"
    assert not (root / "file").is_symlink() and (root / "target").read_text() == "old"


def test_follow_writes_through_links(host: Path) -> None:
    root = host / "root"
    (host / "outside").mkdir()
    (host / "outside/target").write_text("old")
    (root / "link").symlink_to(host / "outside")
    (root / "file").symlink_to(host / "outside/target")
    ct.converge(request_for(host, {"link/a": "x", "file": "new"}, follow=True))
    assert (host / "outside/a").read_text() == "x"
    assert (root / "file").is_symlink() and (host / "outside/target").read_text() == "new"


def test_two_names_for_one_file_are_refused(host: Path) -> None:
    (host / "root/real").mkdir()
    (host / "root/link").symlink_to("real")
    with pytest.raises(ct.ConfigTreeError, match="are the same file"):
        ct.converge(request_for(host, {"real/a": "1", "link/a": "2"}))


def test_unknown_accounts_are_an_error_before_anything_changes(host: Path) -> None:
    request = request_for(
        host, {"a": "1", "b": "2"}, attributes=[{"path": "b", "owner": "no-such", "group": "none-such"}]
    )
    with pytest.raises(ct.ConfigTreeError, match="owner 'no-such', group 'none-such' does not exist"):
        ct.converge(request)
    assert snapshot(host / "root") == {}
    result = ct.converge(dataclasses.replace(request, check_mode=True))
    assert result["changed"] and "does not exist on this host yet" in result["warnings"][0]


def test_a_damaged_manifest_is_named(host: Path) -> None:
    (host / "state").mkdir()
    (host / "state/demo.json").write_text("{")
    with pytest.raises(ct.ConfigTreeError, match=r"demo\.json cannot be read"):
        ct.converge(request_for(host, {"a": ""}))


# --- diff -------------------------------------------------------------------------------------------------------


def test_secrets_are_not_in_the_diff_even_when_they_cease_to_be_secret(host: Path) -> None:
    rule = [{"path": "key", "secret": True, "mode": "0600"}]
    for files, options in [
        ({"key": "geheim-1"}, {"attributes": rule}),
        ({"key": "geheim-2"}, {"attributes": rule}),
        ({"key": "public"}, {}),
        ({"key": "geheim-3"}, {"attributes": rule}),
        ({}, {"directories": {"x": {}}}),
    ]:
        result = ct.converge(request_for(host, files, **options))
        assert result["changed"]
        assert "geheim" not in str(result)
        assert ct.HIDDEN in str(result["diff"])


def test_diff_shows_text_and_names_binaries(host: Path) -> None:
    ct.converge(request_for(host, {"a": "old\n", "b": b"\0"}))
    diff = ct.converge(request_for(host, {"a": "new\n", "b": b"\1\0"}, attributes=[{"path": "a", "mode": "0600"}]))[
        "diff"
    ]
    assert {"before": "old\n", "after": "new\n"}.items() <= diff[0].items()
    assert "'0644'" in diff[1]["before"] and "'0600'" in diff[1]["after"]
    assert "(binary)" in diff[2]["prepared"]


# --- validation -------------------------------------------------------------------------------------------------


def test_checkers_see_the_complete_tree_and_validate_only_is_never_installed(host: Path) -> None:
    files = {"etc/a": "1", "etc/check.yaml": "2"}
    commands = ct.parse_commands(["test -f {stage}/etc/check.yaml", ["cmp", "{stage}/etc/a", "{stage}/etc/a"]])
    result = ct.converge(request_for(host, files, validate_only=["etc/check*"], commands=commands))
    assert result["validated"] is True
    assert not (host / "root/etc/check.yaml").exists()
    changed = {"etc/a": "9", "etc/check.yaml": "2"}
    result = ct.converge(request_for(host, changed, validate_only=["etc/check*"], commands=commands, check_mode=True))
    assert result["validated"] is True
    assert not list(host.glob("run.*"))


def test_a_failing_checker_leaves_everything_and_shows_its_words(host: Path) -> None:
    ct.converge(request_for(host, {"etc/a": "good", "etc/gone": "x"}))
    before = snapshot(host / "root"), snapshot(host / "state")
    commands = [["true"], ["sh", "-c", "echo to stdout; echo line 7: bad >&2; exit 3"], ["touch", f"{host}/root/never"]]
    with pytest.raises(ct.ConfigTreeError, match="line 7: bad\nto stdout") as caught:
        ct.converge(request_for(host, {"etc/a": "bad", "etc/new/b": ""}, commands=commands))
    assert (caught.value.details["rc"], caught.value.details["stdout"]) == (3, "to stdout\n")
    assert (snapshot(host / "root"), snapshot(host / "state")) == before
    assert not list(host.glob("run.*"))


def test_a_checker_that_hangs_is_stopped_with_its_children(host: Path) -> None:
    commands = [["sh", "-c", "sleep 60 & sleep 60"]]
    with pytest.raises(ct.ConfigTreeError, match=r"did not end within 0\.2 s"):
        ct.converge(request_for(host, {"a": ""}, commands=commands, validate_timeout=0.2))


def test_a_missing_checker_is_an_error_but_skipped_in_check_mode(host: Path) -> None:
    request = request_for(host, {"a": ""}, commands=[["no-such-checker", "{stage}"]])
    with pytest.raises(ct.ConfigTreeError, match="'no-such-checker' is not on this host"):
        ct.converge(request)
    result = ct.converge(dataclasses.replace(request, check_mode=True))
    assert result["validated"] is False and "no-such-checker is not installed yet" in result["warnings"][0]


def test_a_checker_cannot_quote_secrets(host: Path) -> None:
    files = {"key": "password: geheim-geheim\n"}
    commands = [["sh", "-c", "cat {stage}/key; exit 1"]]
    request = request_for(host, files, attributes=[{"path": "key", "secret": True}], commands=commands)
    with pytest.raises(ct.ConfigTreeError) as caught:
        ct.converge(request)
    assert "geheim" not in str(caught.value) + str(caught.value.details)


def test_checkers_do_not_run_when_nothing_changes(host: Path) -> None:
    ct.converge(request_for(host, {"a": ""}))
    assert ct.converge(request_for(host, {"a": ""}, commands=[["false"]]))["changed"] is False


@pytest.mark.parametrize("command", ["", "'", []])
def test_commands_that_are_refused(command: Any) -> None:
    with pytest.raises(ct.ConfigTreeError, match=r"validate\[0\]"):
        ct.parse_commands([command])


# --- interruption -----------------------------------------------------------------------------------------------

OLD = {"etc/a": "old a\n", "etc/b": "same\n", "etc/c": "old c\n", "etc/gone/d": "old d\n", "etc/gone/e": "old e\n"}
NEW = {"etc/a": "new a\n", "etc/b": "same\n", "etc/c": "old c\n", "etc/fresh/f": "new f\n", "g": "new g\n"}
NEW_OPTIONS: dict[str, Any] = {"attributes": [{"path": "etc/c", "mode": "0600"}]}


def kill_at(step: int) -> ct.Checkpoint:
    """A checkpoint that kills its process when it is reached for the `step`-th time."""
    count = 0

    def checkpoint(_name: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


def run_and_kill(request: ct.Request, step: int) -> bool:
    """Run in a child that is killed at a step; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            ct.converge(request, kill_at(step))
        finally:
            os._exit(0)
    _pid, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def steps_of(request: ct.Request) -> list[str]:
    """The checkpoints that a whole run passes."""
    names: list[str] = []
    ct.converge(request, names.append)
    return names


def expected(host: Path, name: str, files: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    place = host / name
    (place / "root").mkdir(parents=True)
    ct.converge(request_for(place, files, **options))
    return snapshot(place / "root")


def test_a_kill_at_every_step_is_repaired_by_the_next_run(host: Path) -> None:
    old = expected(host, "old", OLD, {})
    new = expected(host, "new", NEW, NEW_OPTIONS)
    probe = host / "probe"
    (probe / "root").mkdir(parents=True)
    ct.converge(request_for(probe, OLD))
    names = steps_of(request_for(probe, NEW, **NEW_OPTIONS))
    assert snapshot(probe / "root") == new
    assert len(names) > 20
    finished = undone = 0
    for step in range(1, len(names) + 1):
        place = host / f"kill{step}"
        (place / "root").mkdir(parents=True)
        ct.converge(request_for(place, OLD))
        request = request_for(place, NEW, **NEW_OPTIONS)
        assert run_and_kill(request, step), f"not killed at {names[step - 1]}"
        # Whatever is visible at this moment is one or the other version as a whole, never a part of one.
        for path in ("etc/a", "etc/c", "etc/b"):
            assert (place / "root" / path).read_text() in (OLD[path], NEW[path])
        # What the journal says is done before the new tree is even looked at.
        recovery = ct.recover(request.state)
        state = snapshot(place / "root")
        assert state in (old, new), f"neither old nor new after a kill at {names[step - 1]}"
        finished += bool(recovery.finished)
        undone += bool(recovery.undone)
        if recovery.finished:
            assert state == new
            assert f"{place}/root/etc/a" in recovery.changed_paths
        ct.converge(request)
        assert snapshot(place / "root") == new
        assert ct.converge(request)["changed"] is False
        assert [path.name for path in Path(request.state).iterdir()] == ["demo.json"]
    assert finished > 5 and undone > 5


def test_a_kill_during_the_repair_is_repaired_too(host: Path) -> None:
    old = expected(host, "old", OLD, {})
    new = expected(host, "new", NEW, NEW_OPTIONS)
    probe = host / "probe"
    (probe / "root").mkdir(parents=True)
    ct.converge(request_for(probe, OLD))
    names = steps_of(request_for(probe, NEW, **NEW_OPTIONS))
    first_kills = [names.index("state commit"), names.index("state commit") + 1, names.index("state clean") + 2]
    for first in first_kills:
        second = 0
        while True:
            second += 1
            place = host / f"twice{first}-{second}"
            (place / "root").mkdir(parents=True)
            ct.converge(request_for(place, OLD))
            request = request_for(place, NEW, **NEW_OPTIONS)
            assert run_and_kill(request, first)
            # The interrupted repair is that of a run which wants the old tree again: repair first, then its own work.
            killed = run_and_kill(request_for(place, OLD), second)
            ct.recover(request.state)
            assert snapshot(place / "root") in (old, new)
            ct.converge(request)
            assert snapshot(place / "root") == new
            if not killed:
                break
        assert second > 5


def test_the_run_after_a_kill_reports_what_was_finished_for_it(host: Path) -> None:
    ct.converge(request_for(host, OLD))
    request = request_for(host, NEW, **NEW_OPTIONS)
    probe = host / "probe"
    (probe / "root").mkdir(parents=True)
    ct.converge(request_for(probe, OLD))
    names = steps_of(request_for(probe, NEW, **NEW_OPTIONS))
    assert run_and_kill(request, names.index("state clean"))
    check = ct.converge(dataclasses.replace(request, check_mode=True))
    assert check["changed"] and "would be repaired" in check["warnings"][0]
    result = ct.converge(request)
    assert result["changed"] and f"{host}/root/etc/a" in result["changed_paths"] and result["recovered"] == ["demo"]
    assert result["purged_paths"] == [f"{host}/root/etc/gone/d", f"{host}/root/etc/gone/e"]


@pytest.mark.parametrize("call", ["rename", "link", "chmod"])
def test_an_error_in_any_step_puts_everything_back(host: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    original = getattr(os, call)
    number = 0
    while True:
        number += 1
        place = host / f"{call}{number}"
        (place / "root").mkdir(parents=True)
        ct.converge(request_for(place, OLD))
        before = snapshot(place / "root")
        calls = 0

        def failing(*arguments: Any, limit: int = number, root: str = f"{place}/root", **options: Any) -> Any:
            nonlocal calls
            if str(arguments[0]).startswith(root):
                calls += 1
                if calls == limit:
                    raise OSError(5, "Input/output error", arguments[0])
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                ct.converge(request_for(place, NEW, **NEW_OPTIONS))
            except ct.ConfigTreeError as error:
                assert "the host is as it was" in str(error)
                failed = True
            else:
                failed = False
        if not failed:
            assert number > 1
            return
        assert snapshot(place / "root") == before
        assert [path.name for path in (place / "state").iterdir()] == ["demo.json"]
