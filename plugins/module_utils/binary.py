# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pinned third-party binaries: fetched once on the controller, verified, and installed in a directory of their own."""

# About links, modes and renames, which os says plainer than pathlib.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH112, PTH114, PTH115, PTH117, PTH118, PTH119, PTH120, PTH123, PTH208, PTH211
from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, cast

PREFIX = "/opt/causeway"
STAMP = ".causeway-binary.json"
CHUNK = 1 << 20
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")
# uname -m to the names that Debian and Go projects use
ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "ppc64le": "ppc64el",
    "s390x": "s390x",
    "riscv64": "riscv64",
}

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "version": {"type": "str", "required": True},
    "source": {
        "type": "dict",
        "options": {
            "wheel": {"type": "str"},
            "url": {"type": "str"},
            "file": {"type": "path"},
            "deb": {"type": "str"},
            "sha256": {"type": "raw"},
        },
        "mutually_exclusive": [("wheel", "url", "file", "deb")],
        "required_one_of": [("wheel", "url", "file", "deb")],
    },
    "members": {"type": "dict", "default": {}},
    "links": {"type": "dict", "default": {}},
    "mode": {"type": "raw", "default": "0755"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "prefix": {"type": "str", "default": PREFIX},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "cache_dir": {"type": "path", "default": "~/.cache/causeway/binaries"},
    "index_url": {"type": "str"},
    "platforms": {"type": "list", "elements": "str"},
    "timeout": {"type": "int", "default": 300},
}


class BinaryError(Exception):
    """What went wrong, in one sentence."""


@dataclass(frozen=True)
class Member:
    """One file: `source` its path in the source (empty for a plain file), `path` below the version's directory."""

    source: str
    path: str
    mode: int = 0o755


@dataclass(frozen=True)
class Wanted:
    """What should be on the host; `sha256` is the source's for this host's architecture."""

    name: str
    version: str
    sha256: str
    members: tuple[Member, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    prefix: str = PREFIX
    uid: int = 0
    gid: int = 0

    @property
    def directory(self) -> str:
        return os.path.join(self.prefix, f"{self.name}-{self.version}")


@dataclass(frozen=True)
class Difference:
    """What differs on the host: the binaries, links to make or turn (path to target), owners or modes, and why."""

    install: bool = False
    links: Mapping[str, str] = field(default_factory=dict)
    attributes: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.install or self.attributes or bool(self.links)


# --------------------------------------------------------------------------------------------------------------
# What is asked for


def check_relative(path: str, where: str) -> str:
    """A path that stays below its directory; raises BinaryError."""
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise BinaryError(f"{where}: {path!r} must be a relative path without '.' and '..', for example 'bin/envoy'")
    return path


def parse_mode(value: Any, where: str) -> int:
    """A file mode from `"0755"` or the integer YAML makes of an unquoted 0755; raises BinaryError."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = int(value)
    elif re.fullmatch(r"(0o)?[0-7]{3,5}", str(value)):
        number = int(str(value), 8)
    else:
        raise BinaryError(f"{where}: mode {value!r} is not an octal number in quotes such as '0755'")
    if not 0 <= number <= 0o7777:
        raise BinaryError(f"{where}: mode {value!r} is outside 0000..7777")
    return number


def parse_members(members: Mapping[str, Any], mode: Any) -> tuple[Member, ...]:
    """O(members) as sorted tuples; raises BinaryError for paths that leave the directory or occur twice."""
    default = parse_mode(mode, "mode")
    result = []
    for source, target in members.items():
        where = f"members[{source}]"
        if isinstance(target, Mapping):
            path, own = str(target.get("path", "")), target.get("mode")
            result.append(
                Member(str(source), check_relative(path, where), default if own is None else parse_mode(own, where))
            )
        else:
            result.append(Member(str(source), check_relative(str(target), where), default))
    paths = [member.path for member in result]
    for path in paths:
        if paths.count(path) > 1 or path == STAMP:
            raise BinaryError(f"members: {path!r} is used twice or reserved")
    return tuple(sorted(result, key=lambda member: member.path))


def parse_links(links: Mapping[str, Any], members: tuple[Member, ...]) -> dict[str, str]:
    """O(links): absolute path to a member's path; raises BinaryError otherwise."""
    known = {member.path for member in members}
    for link, target in links.items():
        if not os.path.isabs(link) or os.path.normpath(link) != link:
            raise BinaryError(f"links: {link!r} must be an absolute, plain path such as '/usr/local/bin/envoy'")
        if str(target) not in known:
            raise BinaryError(f"links[{link}]: {target!r} is not among the members ({', '.join(sorted(known))})")
    return {str(link): str(target) for link, target in links.items()}


def check_name(name: str, version: str, prefix: str) -> None:
    """Raises BinaryError if name or version could not be part of a directory's name, or the prefix is no plain path."""
    if not prefix.startswith("/") or os.path.normpath(prefix) != prefix or prefix.startswith("//"):
        raise BinaryError(f"prefix: {prefix!r} must be an absolute, plain path such as '{PREFIX}'")
    for key, value in (("name", name), ("version", version)):
        if not NAME_PATTERN.match(value):
            raise BinaryError(f"{key}: {value!r} may only have letters, digits, '.', '_', '+' and '-' (64 at most)")


def pick_sha256(value: Any, architecture: str) -> str:
    """The pinned hash for an architecture (`uname -m`): one, or a mapping by that or by Debian's name; or empty."""
    if isinstance(value, Mapping):
        names = (architecture, ARCHITECTURES.get(architecture, ""))
        found = next((str(value[name]) for name in names if name in value), None)
        if found is None:
            raise BinaryError(
                f"source.sha256 has nothing for {architecture}; it knows {', '.join(sorted(map(str, value)))}"
            )
        value = found
    if value in (None, ""):
        return ""
    text = str(value).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise BinaryError(f"source.sha256: {value!r} is not a SHA-256 in hexadecimal (64 digits)")
    return text


def expand(text: str, version: str, architecture: str) -> str:
    """Fill `{version}`, `{architecture}` (x86_64) and `{debian_architecture}` (amd64) into a URL or path."""
    values = {
        "version": version,
        "architecture": architecture,
        "debian_architecture": ARCHITECTURES.get(architecture, architecture),
    }
    return re.sub(r"\{(version|architecture|debian_architecture)\}", lambda match: values[match.group(1)], text)


def wheel_platforms(architecture: str, newest_glibc: int = 41) -> list[str]:
    """pip's platform tags that fit a glibc host of this architecture (Debian 13 has glibc 2.41), best first."""
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in range(newest_glibc, 16, -1)]
    legacy = {"x86_64": ["manylinux2014", "manylinux2010", "manylinux1"], "aarch64": ["manylinux2014"]}
    tags += [f"{name}_{architecture}" for name in legacy.get(architecture, [])]
    return [*tags, f"linux_{architecture}"]


# --------------------------------------------------------------------------------------------------------------
# Reading sources


def sha256_of(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(CHUNK), b""):
        digest.update(block)
    return digest.hexdigest()


def sha256_of_file(path: str) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as stream:
        return sha256_of(stream)


def read_members(path: str, names: Iterable[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Streams of the named members of a zip, wheel, tar (gz, bz2, xz), deb or plain file; each to be read at once.

    A plain file has the single name "" and may travel gzipped as `*.plain.gz`. Raises BinaryError if the source cannot
    be read or a name is missing.
    """
    wanted = dict.fromkeys(names)
    try:
        if list(wanted) == [""]:
            del wanted[""]
            with open_plain(path) as stream:
                yield "", stream
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in [name for name in wanted if name in archive.NameToInfo]:
                    del wanted[name]
                    with archive.open(name) as stream:
                        yield name, stream
        else:
            with open_tar(path) as tar:
                for info in tar:
                    name = info.name[2:] if info.name.startswith("./") else info.name
                    content = tar.extractfile(info) if name in wanted and info.isreg() else None
                    if content is not None:
                        del wanted[name]
                        yield name, content
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise BinaryError(f"the source {os.path.basename(path)} cannot be read: {error}") from error
    if wanted:
        raise BinaryError(f"the source {os.path.basename(path)} has no file {', '.join(map(repr, wanted))}")


def open_plain(path: str) -> IO[bytes]:
    """A plain file, whether or not it travels gzipped."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.endswith(".plain.gz") else open(path, "rb")


@contextlib.contextmanager
def open_tar(path: str) -> Iterator[tarfile.TarFile]:
    """A tar archive, or the one inside a Debian package."""
    with open(path, "rb") as raw:
        packaged = raw.read(8) == b"!<arch>\n"
        if not packaged:
            raw.seek(0)
        with tarfile.open(fileobj=deb_data(raw) if packaged else raw, mode="r:*") as archive:
            yield archive


def deb_data(stream: IO[bytes]) -> IO[bytes]:
    """The data.tar of a Debian package; `stream` stands after the archive's magic."""
    while True:
        header = stream.read(60)
        if len(header) < 60:
            raise BinaryError("the Debian package has no data archive")
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        content = stream.read(size + size % 2)[:size]
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                raise BinaryError("the Debian package is compressed with zstd; repack it with xz or give its files")
            return io.BytesIO(content)


# --------------------------------------------------------------------------------------------------------------
# Compare


def load_stamp(directory: str) -> dict[str, Any]:
    """What an earlier run noted, or nothing."""
    try:
        with open(os.path.join(directory, STAMP), encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return {}
    shaped = isinstance(value, dict) and isinstance(value.get("members"), dict)
    shaped = shaped and all(
        {"source", "sha256", "size", "mtime_ns"} <= set(entry) for entry in value["members"].values()
    )
    return value if shaped else {}


def compare(wanted: Wanted) -> Difference:
    """Compare the host with what is wanted; cheap: contents are only read if size or time of a file have changed."""
    reasons = []
    install = attributes = False
    stamp = load_stamp(wanted.directory)
    if not stamp:
        install = True
        reasons.append("not installed")
    elif stamp.get("sha256") != wanted.sha256:
        install = True
        reasons.append("the source's hash differs")
    elif {name: entry.get("source") for name, entry in stamp["members"].items()} != {
        m.path: m.source for m in wanted.members
    }:
        install = True
        reasons.append("other members are wanted")
    else:
        for member in wanted.members:
            path = os.path.join(wanted.directory, member.path)
            reason = damage(path, stamp["members"][member.path])
            if reason:
                install = True
                reasons.append(f"{member.path} {reason}")
                continue
            status = os.lstat(path)
            if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (member.mode, wanted.uid, wanted.gid):
                attributes = True
                reasons.append(f"{member.path} has another owner or mode")
    links = {}
    for link, target in wanted.links.items():
        full = os.path.join(wanted.directory, target)
        if os.path.lexists(link) and not os.path.islink(link):
            raise BinaryError(f"links: {link} exists on this host and is not a symbolic link; remove it first")
        if not os.path.islink(link) or os.readlink(link) != full:
            links[link] = full
            reasons.append(f"{link} does not lead to {full}")
    return Difference(install, links, attributes, tuple(reasons))


def damage(path: str, noted: Mapping[str, Any]) -> str:
    """Why the file is not what was installed; empty if it is."""
    try:
        status = os.lstat(path)
    except OSError:
        return "is missing"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != noted["size"]:
        return "has another size"
    if status.st_mtime_ns != noted["mtime_ns"] and sha256_of_file(path) != noted["sha256"]:
        return "has another content"
    return ""


# --------------------------------------------------------------------------------------------------------------
# Act


def install(wanted: Wanted, source: str) -> None:
    """Unpack the members beside the final directory and swap it in by rename; raises BinaryError."""
    if wanted.sha256:
        verify(source, wanted.sha256)
    os.makedirs(wanted.prefix, mode=0o755, exist_ok=True)
    sweep(wanted)
    fresh = os.path.join(wanted.prefix, f".{wanted.name}-{wanted.version}.{secrets.token_hex(4)}.new")
    os.mkdir(fresh, 0o755)
    try:
        os.chmod(fresh, 0o755)
        members = {}
        by_source: dict[str, list[Member]] = {}
        for member in wanted.members:
            by_source.setdefault(member.source, []).append(member)
        for name, stream in read_members(source, by_source):
            first, *others = by_source[name]
            members[first.path] = write_member(fresh, first, stream, wanted)
            for member in others:
                with open(os.path.join(fresh, first.path), "rb") as again:
                    members[member.path] = write_member(fresh, member, again, wanted)
        stamp = {"name": wanted.name, "version": wanted.version, "sha256": wanted.sha256, "members": members}
        with open(os.path.join(fresh, STAMP), "w", encoding="utf-8") as note:
            json.dump(stamp, note, indent=1, sort_keys=True)
            note.write("\n")
            note.flush()
            os.fsync(note.fileno())
        os.chmod(os.path.join(fresh, STAMP), 0o644)
        swap_in(fresh, wanted.directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def verify(source: str, sha256: str) -> None:
    """Raises BinaryError unless the file (a `.plain.gz` is a compressed plain file) has this SHA-256."""
    with open_plain(source) as stream:
        found = sha256_of(stream)
    if found != sha256:
        raise BinaryError(f"the source has the SHA-256 {found}, but {sha256} is pinned; nothing was installed")


def write_member(fresh: str, member: Member, stream: IO[bytes], wanted: Wanted) -> dict[str, Any]:
    """Write one file durably and return its entry in the stamp."""
    path = os.path.join(fresh, member.path)
    folder = fresh
    for part in member.path.split("/")[:-1]:
        folder = os.path.join(folder, part)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        os.chmod(folder, 0o755)
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        for block in iter(lambda: stream.read(CHUNK), b""):
            digest.update(block)
            target.write(block)
        target.flush()
        os.fchown(descriptor, wanted.uid, wanted.gid)
        os.fchmod(descriptor, member.mode)
        os.fsync(descriptor)
        status = os.fstat(descriptor)
    return {
        "source": member.source,
        "sha256": digest.hexdigest(),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def swap_in(fresh: str, final: str) -> None:
    """Put a directory in the place of another; with Linux' renameat2 in one step, so that the path always exists."""
    try:
        os.rename(fresh, final)
        return
    except OSError:
        if not os.path.isdir(final):
            raise
    exchange = 2  # RENAME_EXCHANGE, linux/fs.h
    here = -100  # AT_FDCWD
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2") and libc.renameat2(here, os.fsencode(fresh), here, os.fsencode(final), exchange) == 0:
        return  # the old one is now at `fresh`, which the caller removes
    old = fresh[: -len(".new")] + ".old"
    os.rename(final, old)
    os.rename(fresh, final)
    shutil.rmtree(old, ignore_errors=True)


def sweep(wanted: Wanted) -> None:
    """Remove what killed runs left; where one died between two renames, first put the old directory back."""
    pattern = re.compile(re.escape(f".{wanted.name}-{wanted.version}.") + r"[0-9a-f]{8}\.(new|old)")
    for name in sorted(os.listdir(wanted.prefix)):
        if pattern.fullmatch(name):
            path = os.path.join(wanted.prefix, name)
            if name.endswith(".old") and not os.path.lexists(wanted.directory):
                os.rename(path, wanted.directory)
            else:
                shutil.rmtree(path, ignore_errors=True)


def set_attributes(wanted: Wanted) -> None:
    """Correct owner and mode of what is installed."""
    for member in wanted.members:
        path = os.path.join(wanted.directory, member.path)
        os.chown(path, wanted.uid, wanted.gid)
        os.chmod(path, member.mode)


def set_links(links: Mapping[str, str]) -> None:
    """Make or turn symbolic links by rename, so that each exists at any moment."""
    for link, target in links.items():
        os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
        temporary = os.path.join(os.path.dirname(link), f".{os.path.basename(link)}.{secrets.token_hex(4)}")
        os.symlink(target, temporary)
        try:
            os.rename(temporary, link)
        except OSError:
            os.unlink(temporary)
            raise


def find_removal(wanted: Wanted) -> list[str]:
    """What V(absent) would remove: the directory, and those of the links that lead into it."""
    result = [
        link for link in wanted.links if os.path.islink(link) and os.readlink(link).startswith(wanted.directory + "/")
    ]
    return result + ([wanted.directory] if os.path.lexists(wanted.directory) else [])


def remove(paths: list[str]) -> None:
    """Unlink links, delete directories."""
    for path in paths:
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)
