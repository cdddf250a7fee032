"""binary's functions: what is asked for, sources of every kind, comparison, and the swap of the directory."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import binary

CONTENT = b"#!/bin/sh\necho hello\n"


def make_source(folder: Path, kind: str) -> Path:
    """A source with the file pkg/tool in it (or, plain, that file itself)."""
    path = folder / f"source-{kind}"
    if kind == "plain":
        path.write_bytes(CONTENT)
    elif kind == "plain.gz":
        path = folder / "source.plain.gz"
        path.write_bytes(gzip.compress(CONTENT))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("pkg/tool", CONTENT)
            archive.writestr("pkg/other", b"other")
    else:
        packed = "xz" if kind == "deb" else kind
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{packed}") as archive:  # type: ignore[call-overload]
            for name, content in (("./pkg/tool", CONTENT), ("./pkg/other", b"other")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        data = buffer.getvalue()
        if kind == "deb":
            members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data)]
            data = b"!<arch>\n" + b"".join(
                f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
                for name, body in members
            )
        path.write_bytes(data)
    return path


def wanted_for(prefix: Path, source: Path, **changes: Any) -> binary.Wanted:
    plain = "plain" in source.name
    with binary.open_plain(str(source)) as stream:
        sha256 = binary.sha256_of(stream)
    wanted = binary.Wanted(
        name="tool",
        version="1.0",
        sha256=sha256,
        members=binary.parse_members({"" if plain else "pkg/tool": "bin/tool"}, "0755"),
        prefix=str(prefix / "opt"),
        uid=os.geteuid(),
        gid=os.getegid(),
    )
    return dataclasses.replace(wanted, **changes)


@pytest.mark.parametrize("kind", ["plain", "plain.gz", "zip", "", "gz", "bz2", "xz", "deb"])
def test_sources_of_every_kind(tmp_path: Path, kind: str) -> None:
    source = make_source(tmp_path, kind)
    wanted = wanted_for(tmp_path, source)
    assert binary.compare(wanted).reasons == ("not installed",)
    binary.install(wanted, str(source))
    installed = tmp_path / "opt/tool-1.0/bin/tool"
    assert installed.read_bytes() == CONTENT
    assert installed.stat().st_mode & 0o7777 == 0o755
    assert not binary.compare(wanted).changed
    assert [path.name for path in (tmp_path / "opt").iterdir()] == ["tool-1.0"]


def test_one_member_may_go_to_two_places(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gz")
    members = (binary.Member("pkg/tool", "a"), binary.Member("pkg/tool", "b", 0o700), binary.Member("pkg/other", "c"))
    wanted = wanted_for(tmp_path, source, members=members)
    binary.install(wanted, str(source))
    assert [(tmp_path / "opt/tool-1.0" / name).read_bytes() for name in "abc"] == [CONTENT, CONTENT, b"other"]
    assert not binary.compare(wanted).changed


@pytest.mark.parametrize("kind", ["zip", "gz", "deb"])
def test_a_missing_member_is_named_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    source = make_source(tmp_path, kind)
    wanted = wanted_for(tmp_path, source, members=(binary.Member("pkg/none", "x"),))
    with pytest.raises(binary.BinaryError, match="has no file 'pkg/none'"):
        binary.install(wanted, str(source))
    assert list((tmp_path / "opt").iterdir()) == []


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path, "zip")
    with pytest.raises(binary.BinaryError, match="is pinned; nothing was installed"):
        binary.install(wanted_for(tmp_path, source, sha256="0" * 64), str(source))
    assert not (tmp_path / "opt").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"!<arch>\nshort", b"PK\x03\x04 truncated"])
def test_a_damaged_source_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "damaged"
    source.write_bytes(content)
    wanted = wanted_for(tmp_path, source, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(binary.BinaryError):
        binary.install(wanted, str(source))
    assert list((tmp_path / "opt").iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"short"), "has another size"),
        (lambda path: path.write_bytes(CONTENT.replace(b"hello", b"holla")), "has another content"),
        (lambda path: (path.unlink(), path.symlink_to("/bin/sh")), "is not a regular file"),
        (lambda path: (path.parent.parent / binary.STAMP).unlink(), "not installed"),
        (lambda path: (path.parent.parent / binary.STAMP).write_text('{"members": {"bin/tool": {}}}'), "not installed"),
    ],
)
def test_damage_is_seen_and_repaired(tmp_path: Path, spoil: Any, reason: str) -> None:
    source = make_source(tmp_path, "gz")
    wanted = wanted_for(tmp_path, source)
    binary.install(wanted, str(source))
    spoil(tmp_path / "opt/tool-1.0/bin/tool")
    difference = binary.compare(wanted)
    assert difference.install and reason in difference.reasons[0]
    binary.install(wanted, str(source))
    assert not binary.compare(wanted).changed


def test_a_new_time_alone_is_no_damage(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gz")
    wanted = wanted_for(tmp_path, source)
    binary.install(wanted, str(source))
    os.utime(tmp_path / "opt/tool-1.0/bin/tool", (1, 1))
    assert not binary.compare(wanted).changed


def test_a_mode_is_corrected_without_the_source(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gz")
    wanted = wanted_for(tmp_path, source)
    binary.install(wanted, str(source))
    (tmp_path / "opt/tool-1.0/bin/tool").chmod(0o644)
    difference = binary.compare(wanted)
    assert difference.attributes and not difference.install
    binary.set_attributes(wanted)
    assert not binary.compare(wanted).changed


def test_links_are_made_turned_and_removed(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gz")
    link = tmp_path / "usr/bin/tool"
    for version in ("1.0", "2.0"):
        wanted = wanted_for(tmp_path, source, version=version, links={str(link): "bin/tool"})
        binary.install(wanted, str(source))
        difference = binary.compare(wanted)
        assert list(difference.links) == [str(link)] and not difference.install
        binary.set_links(difference.links)
        assert link.read_bytes() == CONTENT
        assert not binary.compare(wanted).changed
    first = wanted_for(tmp_path, source, links={str(link): "bin/tool"})
    assert binary.find_removal(first) == [first.directory]  # the link leads to 2.0 and stays
    binary.remove(binary.find_removal(first))
    assert link.exists()
    binary.remove(binary.find_removal(wanted))
    assert not link.is_symlink() and binary.find_removal(wanted) == []


def test_a_file_in_a_links_place_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gz")
    (tmp_path / "tool").write_text("own")
    with pytest.raises(binary.BinaryError, match="is not a symbolic link"):
        binary.compare(wanted_for(tmp_path, source, links={str(tmp_path / "tool"): "bin/tool"}))


def test_what_killed_runs_left_is_swept(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gz")
    wanted = wanted_for(tmp_path, source)
    for name in (".tool-1.0.0123abcd.new", ".tool-1.0.0123abcd.old", ".tool-2.0.0123abcd.new"):
        (tmp_path / "opt" / name).mkdir(parents=True)
    binary.install(wanted, str(source))
    assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == [".tool-2.0.0123abcd.new", "tool-1.0"]


def test_the_directory_is_exchanged_without_renameat2_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path, "gz")
    wanted = wanted_for(tmp_path, source)
    binary.install(wanted, str(source))
    monkeypatch.setattr(binary.ctypes, "CDLL", lambda *_arguments, **_options: object())
    (tmp_path / "opt/tool-1.0/bin/tool").unlink()
    binary.install(wanted, str(source))
    assert not binary.compare(wanted).changed
    assert [path.name for path in (tmp_path / "opt").iterdir()] == ["tool-1.0"]


# --- what is asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "architecture", "expected"),
    [
        ("A" * 64, "x86_64", "a" * 64),
        ({"x86_64": "a" * 64}, "x86_64", "a" * 64),
        ({"amd64": "a" * 64, "arm64": "b" * 64}, "aarch64", "b" * 64),
        (None, "x86_64", ""),
    ],
)
def test_hashes_by_architecture(value: Any, architecture: str, expected: str) -> None:
    assert binary.pick_sha256(value, architecture) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"x86_64": "a" * 64}, "nothing for aarch64; it knows x86_64"),
        ("abc", "is not a SHA-256"),
        ({"aarch64": 7}, "not a SHA-256"),
    ],
)
def test_hashes_that_are_refused(value: Any, words: str) -> None:
    with pytest.raises(binary.BinaryError, match=words):
        binary.pick_sha256(value, "aarch64")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a": "/bin/a"}, "must be a relative path"),
        ({"a": "../a"}, "must be a relative path"),
        ({"a": ""}, "must be a relative path"),
        ({"a": "x", "b": "x"}, "is used twice"),
        ({"a": binary.STAMP}, "reserved"),
        ({"a": {"path": "a", "mode": "u+x"}}, "is not an octal number"),
    ],
)
def test_members_that_are_refused(members: dict[str, Any], words: str) -> None:
    with pytest.raises(binary.BinaryError, match=words):
        binary.parse_members(members, "0755")


@pytest.mark.parametrize(
    ("links", "words"), [({"bin/a": "a"}, "must be an absolute"), ({"/bin/a": "b"}, "is not among the members")]
)
def test_links_that_are_refused(links: dict[str, str], words: str) -> None:
    with pytest.raises(binary.BinaryError, match=words):
        binary.parse_links(links, (binary.Member("a", "a"),))


@pytest.mark.parametrize(
    "arguments",
    [("../x", "1", "/opt"), ("x", "1/2", "/opt"), ("x", "", "/opt"), ("x", "1", "opt"), ("x", "1", "/a/..")],
)
def test_names_that_are_refused(arguments: tuple[str, str, str]) -> None:
    with pytest.raises(binary.BinaryError):
        binary.check_name(*arguments)


def test_urls_are_filled_in() -> None:
    text = "https://example.org/{version}/tool-{architecture}-{debian_architecture}{other}.tar.gz"
    assert binary.expand(text, "1.0", "aarch64") == "https://example.org/1.0/tool-aarch64-arm64{other}.tar.gz"


def test_platform_tags_fit_debian_13() -> None:
    tags = binary.wheel_platforms("x86_64")
    assert {"manylinux_2_41_x86_64", "manylinux_2_31_x86_64", "manylinux2014_x86_64", "linux_x86_64"} <= set(tags)
    assert "manylinux_2_42_x86_64" not in tags
