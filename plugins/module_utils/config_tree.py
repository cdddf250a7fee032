# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree of configuration files: described and packed on the controller, compared, validated and swapped in on a host.

The swap is a small transaction. Every new file is written and synced beside its target, the intended renames are
recorded in a journal, and only then do renames begin. A run that dies leaves the journal, and the next run either
takes back what was prepared (nothing was renamed yet) or finishes the renames (all new files are there).
"""

# About links, modes and renames, which os says plainer than pathlib.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH106, PTH108, PTH112, PTH114, PTH115, PTH118, PTH119, PTH120, PTH208
from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import grp
import gzip
import hashlib
import io
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

STATE_DIRECTORY = "/var/lib/causeway/config_tree"
RUN_DIRECTORY = "/run/causeway-config-tree"
CHECKER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_DIFF_BYTES = 104448  # what ansible.builtin.copy allows in a diff
MAX_CHECKER_OUTPUT = 65536
HIDDEN = "content hidden"
ID_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")

MESSAGE_NAME = re.compile(
    r"'(\w+)' is undefined"
    r"|has no (?:attribute|element) '?(\w+)"
    r"|(?:filter|test|lookup)(?: plugin)? '(?:\w+\.)*(\w+)'"
    r"|Could not load \"(?:\w+\.)*(\w+)\""
)

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "src": {"type": "str"},
    "files": {"type": "dict", "default": {}},
    "directories": {"type": "dict", "default": {}},
    "dest": {"type": "str", "default": "/"},
    "id": {"type": "str"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "raw", "default": "0644"},
    "directory_mode": {"type": "raw", "default": "0755"},
    "attributes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "str", "required": True},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "raw"},
            "secret": {"type": "bool"},
        },
    },
    "validate": {"type": "list", "elements": "raw", "default": []},
    "validate_only": {"type": "list", "elements": "str", "default": []},
    "validate_user": {"type": "str"},
    "validate_timeout": {"type": "int", "default": 60},
    "watch": {"type": "dict", "default": {}},
    "purge": {"type": "bool", "default": True},
    "backup": {"type": "bool", "default": False},
    "follow": {"type": "bool", "default": False},
}

Checkpoint = Callable[[str], None]


class ConfigTreeError(Exception):
    """What went wrong, in one sentence; `details` are further keys for the result (a checker's output, for example)."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


# --------------------------------------------------------------------------------------------------------------
# Description: what should be on the host


@dataclass(frozen=True)
class FileEntry:
    """One file: `path` relative to the tree's destination, its bytes, and who may read it."""

    path: str
    content: bytes
    owner: str = "root"
    group: str = "root"
    mode: int = 0o644
    secret: bool = False
    install: bool = True  # False: only staged for the checkers


@dataclass(frozen=True)
class DirectoryEntry:
    """One directory; `enforce` says that owner, group and mode hold even if the tree did not make it."""

    path: str
    owner: str = "root"
    group: str = "root"
    mode: int = 0o755
    enforce: bool = False


@dataclass(frozen=True)
class Tree:
    """Everything that one task installs; `default_directory` describes `dest` itself where it has to be made."""

    files: tuple[FileEntry, ...]
    directories: tuple[DirectoryEntry, ...]
    default_directory: DirectoryEntry = field(default_factory=lambda: DirectoryEntry(path=""))


@dataclass(frozen=True)
class Source:
    """A file before attributes are known: rendered content, and what its own entry in O(files) asks for."""

    path: str
    content: bytes
    secret: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def parse_mode(value: Any, where: str) -> int:
    """A file mode from `"0640"`, `"640"` or the integer YAML makes of an unquoted 0640; raises ConfigTreeError."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = int(value)
    else:
        text = str(value)
        if not re.fullmatch(r"(0o)?[0-7]{3,5}", text):
            raise ConfigTreeError(f"{where}: mode {text!r} is not an octal number in quotes such as '0640'")
        number = int(text, 8)
    if not 0 <= number <= 0o7777:
        raise ConfigTreeError(f"{where}: mode {value!r} is outside 0000..7777")
    return number


def check_path(path: str, where: str) -> str:
    """A path relative to the destination, without empty, `.` or `..` components; raises ConfigTreeError."""
    if not path or path.startswith("/"):
        raise ConfigTreeError(f"{where}: path {path!r} must be relative to dest, for example 'etc/app/app.conf'")
    if not path.isprintable():
        raise ConfigTreeError(f"{where}: path {path!r} contains a control character or is not valid UTF-8")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ConfigTreeError(f"{where}: path {path!r} must not contain empty, '.' or '..' components")
    return path


def compile_glob(pattern: str) -> re.Pattern[str]:
    """A matcher for whole paths: `*` and `?` stay inside one component, `**` crosses them, `[abc]` is a set."""
    result = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if pattern.startswith("**/", position):
            result.append("(?:.*/)?")
            position += 3
            continue
        if pattern.startswith("**", position):
            result.append(".*")
            position += 2
            continue
        end = pattern.find("]", position + 2) if char == "[" else -1
        if end > 0:
            inside = pattern[position + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            result.append("[" + ("^" + inside[1:] if inside[0] == "!" else inside) + "]")
            position = end + 1
            continue
        result.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
        position += 1
    return re.compile("".join(result) + r"\Z", re.DOTALL)


def parents(path: str) -> Iterator[str]:
    """The directories above a relative path, nearest last: `a/b/c` gives `a`, `a/b`."""
    parts = path.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def check_attributes(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Owner, group, mode (as a number) and secret out of a mapping, without those that are not set."""
    result = {key: options[key] for key in ("owner", "group", "secret") if options.get(key) is not None}
    for key in ("owner", "group"):
        if key in result:
            result[key] = str(result[key])
    if options.get("mode") is not None:
        result["mode"] = parse_mode(options["mode"], where)
    return result


def build_tree(sources: Iterable[Source], options: Mapping[str, Any]) -> tuple[Tree, list[str]]:
    """Combine rendered files with defaults and attributes (later ones win).

    Returns the tree and the attribute paths that matched nothing. Raises ConfigTreeError for two files of one path, a
    file where a directory is needed, and malformed paths or modes.
    """
    defaults = {
        "owner": str(options["owner"]),
        "group": str(options["group"]),
        "mode": parse_mode(options["mode"], "mode"),
    }
    directory_defaults: dict[str, Any] = {**defaults, "mode": parse_mode(options["directory_mode"], "directory_mode")}
    rules = []
    for number, rule in enumerate(options["attributes"]):
        where = f"attributes[{number}]"
        path = str(rule["path"])
        check_path(path.rstrip("/") or path, where)
        rules.append((path, compile_glob(path), check_attributes(rule, where)))
    hidden = [compile_glob(check_path(path, "validate_only")) for path in options["validate_only"]]
    matched: set[str] = set()

    files: dict[str, FileEntry] = {}
    for source in sources:
        check_path(source.path, "files")
        if source.path in files:
            raise ConfigTreeError(
                f"files: {source.path} is described twice (in the tree and in files, or with .j2 and without)"
            )
        given: dict[str, Any] = {**defaults, "secret": source.secret}
        for path, pattern, attributes in rules:
            if not path.endswith("/") and pattern.match(source.path):
                matched.add(path)
                given.update(attributes)
        given.update(check_attributes(source.overrides, f"files[{source.path}]"))
        given["secret"] = bool(given["secret"] or source.secret)
        install = not any(pattern.match(source.path) for pattern in hidden)
        files[source.path] = FileEntry(path=source.path, content=source.content, install=install, **given)

    explicit = {
        check_path(str(path).rstrip("/"), "directories"): check_attributes(wish or {}, f"directories[{path}]")
        for path, wish in options["directories"].items()
    }
    paths = {parent for entry in files.values() if entry.install for parent in parents(entry.path)}
    paths |= {parent for path in explicit for parent in [*parents(path), path]}
    for path in sorted(files.keys() & paths):
        raise ConfigTreeError(f"files: {path} is a file and also a directory of the tree")
    directories = []
    for name in sorted(paths):
        values: dict[str, Any] = dict(directory_defaults)
        enforce = name in explicit
        for path, pattern, attributes in rules:
            if path.endswith("/") and pattern.match(name + "/"):
                matched.add(path)
                values.update({key: value for key, value in attributes.items() if key != "secret"})
                enforce = True
        values.update({key: value for key, value in explicit.get(name, {}).items() if key != "secret"})
        directories.append(DirectoryEntry(path=name, enforce=enforce, **values))
    tree = Tree(
        files=tuple(files[path] for path in sorted(files)),
        directories=tuple(directories),
        default_directory=DirectoryEntry(path="", **directory_defaults),
    )
    return tree, [path for path, _pattern, _attributes in rules if path not in matched]


def check_dest(dest: str) -> str:
    """An absolute path without `.`, `..`, doubled or trailing slashes; raises ConfigTreeError."""
    if not dest.startswith("/") or os.path.normpath(dest) != dest or dest.startswith("//"):
        raise ConfigTreeError(f"dest: {dest!r} must be an absolute, plain path such as '/' or '/srv/app'")
    return dest


def lines_naming(text: str, message: str) -> list[int]:
    """Lines of a template with an expression that uses the name an error is about (`'x' is undefined` and the like)."""
    found = MESSAGE_NAME.search(message)
    if not found:
        return []
    name = re.compile(rf"\b{next(filter(None, found.groups()))}\b")
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if any(name.search(expression) for expression in re.findall(r"\{[{%].*?(?:[%}]\}|$)", line))
    ]


def default_id(role: str, src: str, dest: str) -> str:
    """The tree's name on the host: readable, and different for every (role, src, dest)."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in (role, src) if part)).strip("-.") or "tree"
    digest = hashlib.sha256("\0".join((role, src, dest)).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{readable[:100]}-{digest[:8]}"


def check_id(identifier: str) -> str:
    """The identifier itself; raises ConfigTreeError if it could not be a file name."""
    if not ID_PATTERN.match(identifier):
        raise ConfigTreeError(f"id: {identifier!r} may only have letters, digits, '.', '_' and '-' (128 at most)")
    return identifier


def as_content(value: Any) -> bytes:
    """The bytes of a generated file: text as it is, anything else as readable JSON with sorted keys."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return str(value).encode("utf-8", "surrogateescape")
    return (json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def plain(value: Any) -> Any:
    """Copies of ordinary types, for values that Ansible has tagged or made lazy."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return value


# --------------------------------------------------------------------------------------------------------------
# Transport: one deterministic archive


def pack(tree: Tree) -> bytes:
    """The tree as a gzipped tar; the same tree always gives the same bytes."""
    index = {
        "version": 1,
        "files": [{key: value for key, value in asdict(entry).items() if key != "content"} for entry in tree.files],
        "directories": [asdict(entry) for entry in tree.directories],
        "default_directory": asdict(tree.default_directory),
    }
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        members = [("index.json", json.dumps(index, sort_keys=True).encode("utf-8"))]
        members += [(f"files/{number}", entry.content) for number, entry in enumerate(tree.files)]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o600
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)


def unpack(data: bytes) -> Tree:
    """The tree out of :func:`pack`; raises ConfigTreeError if the archive is damaged."""
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data)), mode="r:") as archive:

            def read(name: str) -> bytes:
                stream = archive.extractfile(name)
                if stream is None:
                    raise KeyError(name)
                return stream.read()

            index = json.loads(read("index.json"))
            files = tuple(
                FileEntry(content=read(f"files/{number}"), **entry) for number, entry in enumerate(index["files"])
            )
            directories = tuple(DirectoryEntry(**entry) for entry in index["directories"])
            return Tree(files, directories, DirectoryEntry(**index["default_directory"]))
    except (tarfile.TarError, zlib.error, OSError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ConfigTreeError(f"the archive sent by the controller cannot be read: {error}") from error


def encode(data: bytes) -> str:
    """Bytes as text that a module argument can carry."""
    return base64.b64encode(data).decode("ascii")


def decode(text: str) -> bytes:
    """The inverse of :func:`encode`."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ConfigTreeError(f"the archive sent by the controller cannot be read: {error}") from error


# --------------------------------------------------------------------------------------------------------------
# Decision: what would change on this host


@dataclass(frozen=True)
class Attributes:
    """Mode, uid and gid of something that exists (or will)."""

    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, status: os.stat_result) -> Attributes:
        return cls(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)

    def text(self) -> str:
        return f"owner: {user_name(self.uid)}\ngroup: {group_name(self.gid)}\nmode: '{self.mode:04o}'\n"


@dataclass(frozen=True)
class Operation:
    """One step of the swap. `path` is where it really happens, `shown` what the user calls it."""

    kind: str  # mkdir | put | attributes | delete | rmdir
    path: str
    shown: str
    after: Attributes | None = None
    before: Attributes | None = None
    content: bytes = b""
    existed: bool = False
    secret: bool = False
    directory: bool = False


@dataclass
class Plan:
    """The steps to take, the manifests that hold afterwards, and what should be told about it."""

    operations: list[Operation] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    other_manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    missing_accounts: list[str] = field(default_factory=list)

    def paths(self, *kinds: str) -> list[str]:
        return sorted(
            operation.shown + ("/" if operation.directory and operation.kind == "attributes" else "")
            for operation in self.operations
            if operation.kind in kinds
        )


class Accounts:
    """Names to numbers, asked once each; collects the unknown ones instead of stopping at the first."""

    def __init__(self) -> None:
        self.missing: dict[str, None] = {}
        self._known: dict[tuple[str, str], int | None] = {}

    def _number(self, kind: str, name: str) -> int | None:
        if (kind, name) not in self._known:
            number: int | None
            try:
                number = pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
            except KeyError:
                number = int(name) if name.isascii() and name.isdigit() else None
            if number is None:
                self.missing[f"{kind} {name!r}"] = None
            self._known[kind, name] = number
        return self._known[kind, name]

    def attributes(self, entry: FileEntry | DirectoryEntry) -> Attributes | None:
        """None if the owner or the group does not exist (yet)."""
        uid, gid = self._number("owner", entry.owner), self._number("group", entry.group)
        return None if uid is None or gid is None else Attributes(entry.mode, uid, gid)


def user_name(uid: int) -> str:
    """The account's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The group's name, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def status_of(path: str) -> os.stat_result | None:
    """lstat, or None where there is nothing; raises ConfigTreeError if a parent is not a directory."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigTreeError(f"{path}: something above it is not a directory") from error


def locate(root: str, relative: str, follow: bool, directory: bool = False) -> str:
    """Where `relative` really is below `root` (a real path), with symbolic links on the way resolved.

    A link at the end is resolved for a directory, and for a file only with O(follow): otherwise it is itself replaced.

    Raises ConfigTreeError if a link leaves `root` without O(follow), dangles, or a parent is not a directory.
    """
    current = root
    parts = relative.split("/")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1 and not directory
        candidate = os.path.join(current, part)
        status = status_of(candidate)
        if status is None:
            return os.path.join(current, *parts[number:])
        if stat.S_ISLNK(status.st_mode) and (follow or not last):
            target = os.path.realpath(candidate)
            inside = root in ("/", target) or target.startswith(root + "/")
            if not inside and not follow:
                raise ConfigTreeError(
                    f"{candidate} is a symbolic link to {target}, outside of {root}: remove it or set follow"
                )
            if not last and not os.path.isdir(target):
                raise ConfigTreeError(f"{candidate} is a symbolic link to {target}, which is not a directory")
            candidate = target
        elif not last and not stat.S_ISDIR(status.st_mode):
            raise ConfigTreeError(f"{candidate} exists and is not a directory, but the tree needs one there")
        current = candidate
    return current


def read_file(path: str) -> bytes:
    """A regular file's bytes; a symbolic link is not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def load_json(path: str) -> dict[str, Any]:
    """A JSON object out of a file of ours; raises ConfigTreeError naming the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigTreeError(
            f"{path} cannot be read ({error}); it was written by config_tree, remove it to start afresh"
        ) from error
    if not isinstance(value, dict) or "id" not in value or ("files" not in value and "steps" not in value):
        raise ConfigTreeError(
            f"{path} is not as it was written; it was written by config_tree, remove it to start afresh"
        )
    return value


def load_manifests(state: str) -> dict[str, dict[str, Any]]:
    """All manifests of the host by tree id; nothing where the state directory does not exist."""
    result = {}
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(state)):
            if name.endswith(".json"):
                result[name[: -len(".json")]] = load_json(os.path.join(state, name))
    return result


def decide(
    tree: Tree,
    identifier: str,
    dest: str,
    manifests: Mapping[str, Mapping[str, Any]],
    *,
    purge: bool = True,
    follow: bool = False,
) -> Plan:
    """Compare the tree with the host and return the steps that make them equal; touches nothing.

    Raises ConfigTreeError if something that is not a regular file is in the way. Unknown owners and groups are
    collected in `Plan.missing_accounts`.
    """
    plan = Plan()
    accounts = Accounts()
    root = os.path.realpath(dest)
    own = manifests.get(identifier, {})
    old_files: dict[str, Any] = dict(own.get("files", {}))
    once_secret = {
        path for manifest in manifests.values() for path, entry in manifest["files"].items() if entry.get("secret")
    }
    old_directories: set[str] = set(own.get("directories", []))
    made: set[str] = set()
    wanted_directories: set[str] = set()

    def add_directory(path: str, shown: str, entry: DirectoryEntry) -> None:
        wanted_directories.add(path)
        after = accounts.attributes(entry)
        status = status_of(path)
        if status is None:
            plan.operations.append(Operation("mkdir", path, shown, after=after, directory=True))
            made.add(path)
        elif not stat.S_ISDIR(status.st_mode):
            raise ConfigTreeError(f"{shown} exists and is not a directory, but the tree has a directory there")
        elif entry.enforce or path in old_directories:
            before = Attributes.of(status)
            if before != after:
                plan.operations.append(Operation("attributes", path, shown, after, before, directory=True))

    missing_root = []
    above = root
    while above != "/" and status_of(above) is None:
        missing_root.append(above)
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ConfigTreeError(f"{above} exists and is not a directory, so dest {dest} cannot be made")
    for path in reversed(missing_root):
        add_directory(path, path, tree.default_directory)
    for directory in tree.directories:
        located = locate(root, directory.path, follow, directory=True)
        add_directory(located, os.path.join(dest, directory.path), directory)

    targets: dict[str, str] = {}
    for entry in tree.files:
        if not entry.install:
            continue
        shown = os.path.join(dest, entry.path)
        path = locate(root, entry.path, follow)
        if path in targets:
            raise ConfigTreeError(
                f"{shown} and {targets[path]} are the same file on this host (a symbolic link is between)"
            )
        targets[path] = shown
        after = accounts.attributes(entry)
        secret = entry.secret or path in once_secret  # what it says so far may not be shown either
        status = status_of(path)
        if status is None:
            plan.operations.append(Operation("put", path, shown, after, content=entry.content, secret=secret))
            continue
        if stat.S_ISDIR(status.st_mode):
            raise ConfigTreeError(
                f"{shown} is a directory on this host; config_tree does not replace a directory by a file"
            )
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            raise ConfigTreeError(
                f"{shown} is neither a regular file nor a symbolic link on this host; remove it first"
            )
        before = Attributes.of(status)
        same = (
            stat.S_ISREG(status.st_mode) and status.st_size == len(entry.content) and read_file(path) == entry.content
        )
        if not same:
            plan.operations.append(
                Operation("put", path, shown, after, before, entry.content, existed=True, secret=secret)
            )
        elif before != after:
            plan.operations.append(Operation("attributes", path, shown, after, before, existed=True, secret=secret))

    plan.missing_accounts = list(accounts.missing)
    kept_files = {path: {"secret": entry.secret} for path, entry in zip(targets, (e for e in tree.files if e.install))}
    kept_directories = (old_directories & wanted_directories) | made
    if purge:
        kept_directories |= plan_purge(plan, old_files, old_directories, set(targets), wanted_directories)
    else:
        kept_files = {**old_files, **kept_files}
        kept_directories |= old_directories
    plan.manifest = {
        "version": 1,
        "id": identifier,
        "dest": dest,
        "files": dict(sorted(kept_files.items())),
        "directories": sorted(kept_directories),
    }
    for other, manifest in manifests.items():
        if other == identifier:
            continue
        taken = sorted(set(manifest.get("files", {})) & set(targets))
        if taken:
            plan.warnings.append(f"the tree {other} managed {', '.join(taken)}; {identifier} takes over")
            rest = {path: value for path, value in manifest["files"].items() if path not in targets}
            plan.other_manifests[other] = {**manifest, "files": rest}
    return plan


def plan_purge(
    plan: Plan, old_files: Mapping[str, Any], old_directories: set[str], files: set[str], directories: set[str]
) -> set[str]:
    """Add the steps that remove what the tree no longer has; returns directories of ours that have to stay."""
    gone: set[str] = set()
    for path in sorted(set(old_files) - files):
        if os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
            plan.warnings.append(f"{path} is left alone: a directory above it has become a symbolic link")
            continue
        status = status_of(path)
        if status is None:
            continue
        if not stat.S_ISREG(status.st_mode):
            plan.warnings.append(f"{path} is left alone: it is no longer a regular file")
            continue
        secret = bool((old_files[path] or {}).get("secret"))
        plan.operations.append(
            Operation("delete", path, path, before=Attributes.of(status), existed=True, secret=secret)
        )
        gone.add(path)
    stay: set[str] = set()
    for path in sorted(old_directories - directories, key=lambda name: (-name.count("/"), name)):
        status = status_of(path)
        if status is None or not stat.S_ISDIR(status.st_mode):
            continue
        if {os.path.join(path, name) for name in os.listdir(path)} <= gone:
            plan.operations.append(Operation("rmdir", path, path, before=Attributes.of(status), directory=True))
            gone.add(path)
        else:
            stay.add(path)
    return stay


def build_diff(plan: Plan) -> list[dict[str, str]]:
    """What C(--diff) shows: contents where they may be shown, owner, group and mode where they change."""
    result: list[dict[str, str]] = []
    for operation in plan.operations:
        if operation.kind in ("put", "delete"):
            result.append(content_diff(operation))
        if operation.before != operation.after and operation.kind in ("put", "attributes") and operation.before:
            after = operation.after.text() if operation.after else "owner or group does not exist yet\n"
            result.append(
                {
                    "before_header": f"{operation.shown} (attributes)",
                    "after_header": f"{operation.shown} (attributes)",
                    "before": operation.before.text(),
                    "after": after,
                }
            )
        if operation.kind in ("mkdir", "rmdir"):
            result.append({"prepared": f"{'+' if operation.kind == 'mkdir' else '-'} directory {operation.shown}\n"})
    return result


def content_diff(operation: Operation) -> dict[str, str]:
    """Before and after of one file, or one line that says why they are not shown."""
    before = b""
    link = ""
    if operation.existed:
        if os.path.islink(operation.path):
            link = f" -> {os.readlink(operation.path)}"
        else:
            before = read_file(operation.path)
    after = operation.content
    old = f"{operation.shown}{link}" if operation.existed else f"{operation.shown} (absent)"
    new = f"{operation.shown} (absent)" if operation.kind == "delete" else operation.shown
    reason = ""
    if operation.secret:
        reason = HIDDEN
    elif b"\0" in before or b"\0" in after:
        reason = "binary"
    elif max(len(before), len(after)) > MAX_DIFF_BYTES:
        reason = f"larger than {MAX_DIFF_BYTES} bytes"
    if not reason:
        try:
            texts = before.decode("utf-8"), after.decode("utf-8")
            return {"before_header": old, "after_header": new, "before": texts[0], "after": texts[1]}
        except UnicodeDecodeError:
            reason = "binary"
    return {"prepared": f"--- before: {old}\n+++ after: {new}\n({reason})\n"}


# --------------------------------------------------------------------------------------------------------------
# Validation: the product's own checker on the staged tree


@dataclass(frozen=True)
class Validation:
    """`done`: every checker ran and was content. `skipped`: why one could not run (check mode only)."""

    done: bool = False
    skipped: str = ""


def parse_commands(commands: Iterable[Any]) -> list[list[str]]:
    """Argument vectors out of strings (split like a shell would, without being one) or lists."""
    result = []
    for number, command in enumerate(commands):
        try:
            argv = shlex.split(str(command)) if isinstance(command, str) else [str(part) for part in command]
        except (TypeError, ValueError) as error:
            raise ConfigTreeError(f"validate[{number}]: {command!r} cannot be split into arguments: {error}") from error
        if not argv or not argv[0]:
            raise ConfigTreeError(f"validate[{number}] is empty")
        result.append(argv)
    return result


def write_stage(tree: Tree, stage: str, user: str | None) -> None:
    """The complete tree below `stage`, which only root (and the checker's user) may enter."""
    accounts = Accounts()
    for entry in tree.files:
        path = os.path.join(stage, entry.path)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        write_new(path, entry.content, accounts.attributes(entry) or Attributes(entry.mode, os.geteuid(), os.getegid()))
    for directory, names, _files in os.walk(stage):
        for name in names:
            os.chmod(os.path.join(directory, name), 0o755)
    if user:
        account = pwd.getpwnam(user)
        os.chown(stage, account.pw_uid, account.pw_gid)


@contextlib.contextmanager
def stage_directory(run: str = RUN_DIRECTORY, sweep: bool = True) -> Iterator[str]:
    """A private empty directory in memory (beside `run`), gone afterwards.

    What a killed run left goes first, unless `sweep` is false because the lock may not be ours.
    """
    parent, prefix = os.path.dirname(run), os.path.basename(run) + "."
    try:
        for name in os.listdir(parent):
            if sweep and name.startswith(prefix):
                shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
        path = tempfile.mkdtemp(prefix=prefix, dir=parent)
    except OSError:
        path = tempfile.mkdtemp(prefix=prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def mask(text: str, tree: Tree) -> str:
    """A checker's words without the lines of secret files that it may have quoted."""
    for entry in tree.files:
        if entry.secret:
            for line in entry.content.decode("utf-8", "replace").splitlines():
                if len(line.strip()) >= 6:
                    text = text.replace(line.strip(), "********")
    return text


def run_checker(argv: Sequence[str], stage: str, user: str | None, timeout: float) -> tuple[int, str, str]:
    """Exit status and output of one checker; -1 where it was stopped after `timeout` seconds."""
    options: dict[str, Any] = {}
    environment = {"PATH": CHECKER_PATH, "LANG": "C.UTF-8", "HOME": stage}
    if user:
        account = pwd.getpwnam(user)
        options = {
            "user": account.pw_uid,
            "group": account.pw_gid,
            "extra_groups": os.getgrouplist(user, account.pw_gid),
        }
        environment.update(USER=user, LOGNAME=user)
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=stage,
        env=environment,
        start_new_session=True,
        **options,
    )
    status = 0
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        status = process.returncode
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        status = -1
    return status, clip(stdout), clip(stderr)


def clip(output: bytes) -> str:
    """The end of an output, where errors are."""
    text = output[-MAX_CHECKER_OUTPUT:].decode("utf-8", "replace")
    return text if len(output) <= MAX_CHECKER_OUTPUT else "[...]\n" + text


def validate(
    tree: Tree,
    commands: Sequence[Sequence[str]],
    stage: str,
    *,
    check_mode: bool = False,
    user: str | None = None,
    timeout: float = 60,
) -> Validation:
    """Stage the tree and run the checkers in order; raises ConfigTreeError with the words of the first that fails."""
    if not commands:
        return Validation()
    if user:
        try:
            pwd.getpwnam(user)
        except KeyError as error:
            if check_mode:
                return Validation(skipped=f"the user {user!r} does not exist yet")
            raise ConfigTreeError(f"validate_user: there is no user {user!r} on this host") from error
    write_stage(tree, stage, user)
    skipped = []
    for command in commands:
        argv = [part.replace("{stage}", stage) for part in command]
        if shutil.which(argv[0], path=CHECKER_PATH) is None:
            if check_mode:
                skipped.append(f"{command[0]} is not installed yet")
                continue
            raise ConfigTreeError(
                f"the checker {command[0]!r} is not on this host, so nothing was installed", command=argv
            )
        try:
            status, stdout, stderr = run_checker(argv, stage, user, timeout)
        except OSError as error:
            raise ConfigTreeError(f"the checker {command[0]!r} cannot be run: {error}", command=argv) from error
        if status != 0:
            stdout, stderr = mask(stdout, tree), mask(stderr, tree)
            words = "\n".join(part.strip() for part in (stderr, stdout) if part.strip()) or "(it said nothing)"
            reason = f"did not end within {timeout:g} s" if status == -1 else f"failed with status {status}"
            raise ConfigTreeError(
                f"the checker {command[0]!r} {reason}, so nothing was installed: {words}",
                command=argv,
                rc=status,
                stdout=stdout,
                stderr=stderr,
            )
    return Validation(skipped="; ".join(skipped)) if skipped else Validation(done=True)


# --------------------------------------------------------------------------------------------------------------
# Act: journalled swap


def no_checkpoint(_name: str) -> None:
    """Does nothing; tests put a SIGKILL here."""


def sync_directory(path: str) -> None:
    """Make renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: str, content: bytes, attributes: Attributes) -> None:
    """A file that did not exist, on disk before this returns; nobody else could read it meanwhile."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fchown(descriptor, attributes.uid, attributes.gid)
        os.fchmod(descriptor, attributes.mode)
        os.fsync(descriptor)


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Replace one of our own files by rename, root-only, on disk before this returns."""
    temporary = path + ".tmp"
    remove(temporary)
    content = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("utf-8", "surrogateescape")
    write_new(temporary, content, Attributes(0o600, os.geteuid(), os.getegid()))
    os.rename(temporary, path)
    sync_directory(os.path.dirname(path))


def remove(path: str) -> None:
    """unlink, content if it is already gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def set_attributes(path: str, attributes: Mapping[str, int]) -> None:
    """Owner first: changing it clears set-uid bits."""
    os.chown(path, attributes["uid"], attributes["gid"])
    os.chmod(path, attributes["mode"])


def keep_old(path: str, old: str) -> None:
    """A second name for what is at `path`, so that it can come back; a copy where links are impossible."""
    try:
        os.link(path, old, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EXDEV):
            raise
        shutil.copy2(path, old, follow_symlinks=False)
        status = os.lstat(path)
        os.chown(old, status.st_uid, status.st_gid, follow_symlinks=False)


class Transaction:
    """The swap of one tree, and its repair. Steps are dicts as they stand in the journal.

    States of the journal: `prepare` (nothing visible has changed: take back), `commit` (all new files lie beside their
    targets: finish), `rollback` (a step failed: put everything back), `clean` (all done: only leftovers to remove).
    """

    def __init__(self, state: str, journal: dict[str, Any], checkpoint: Checkpoint = no_checkpoint) -> None:
        self.state = state
        self.journal = journal
        self.path = os.path.join(state, f"{journal['id']}.journal")
        self.checkpoint = checkpoint
        self.resumed = False

    @classmethod
    def new(cls, state: str, plan: Plan, backup: bool = False, checkpoint: Checkpoint = no_checkpoint) -> Transaction:
        token = secrets.token_hex(4)
        steps = []
        stamp = time.strftime("%Y-%m-%d@%H:%M:%S")
        for number, operation in enumerate(plan.operations):
            step: dict[str, Any] = {"kind": operation.kind, "path": operation.path, "existed": operation.existed}
            for key, value in (("before", operation.before), ("after", operation.after)):
                if value is not None:
                    step[key] = asdict(value)
            if operation.kind in ("put", "delete"):
                beside = os.path.join(os.path.dirname(operation.path), f".causeway-{token}-{number}")
                step["new"], step["old"] = f"{beside}.new", f"{beside}.old"
                if backup and operation.existed:
                    step["backup"] = f"{operation.path}.{stamp}~"
            steps.append(step)
        manifests = {plan.manifest["id"]: plan.manifest, **plan.other_manifests}
        changed = plan.paths("put", "attributes")
        journal = {
            "version": 1,
            "id": plan.manifest["id"],
            "state": "prepare",
            "steps": steps,
            "manifests": manifests,
            "changed_paths": changed,
            "purged_paths": plan.paths("delete"),
            "created_directories": plan.paths("mkdir"),
        }
        return cls(state, journal, checkpoint)

    @property
    def steps(self) -> list[dict[str, Any]]:
        return list(self.journal["steps"])

    @property
    def backups(self) -> list[str]:
        return sorted(step["backup"] for step in self.steps if "backup" in step)

    def enter(self, state: str) -> None:
        self.journal["state"] = state
        write_json(self.path, self.journal)
        self.checkpoint(f"state {state}")

    def run(self, contents: Mapping[str, bytes]) -> None:
        """Make it so; on an error everything is put back and the error raised."""
        try:
            self.enter("prepare")
            self.prepare(contents)
            self.enter("commit")
            self.commit()
        except OSError as error:
            if self.journal["state"] == "commit":
                with contextlib.suppress(OSError):  # no space for a journal must not keep us from going back
                    self.enter("rollback")
            self.rollback()
            raise ConfigTreeError(f"the host is as it was, because a step failed: {error}") from error
        self.finish()

    def resume(self) -> None:
        """Finish or take back what the run that wrote this journal had begun; may itself be killed and resumed."""
        self.resumed = True
        if self.journal["state"] == "commit":
            self.commit()
            self.finish()
        elif self.journal["state"] == "clean":
            self.clean()
        else:
            self.rollback()

    def prepare(self, contents: Mapping[str, bytes]) -> None:
        for step in self.steps:
            path = step["path"]
            if step["kind"] == "mkdir":
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                set_attributes(path, step["after"])
            elif step["kind"] == "put":
                write_new(step["new"], contents[path], Attributes(**step["after"]))
            if "old" in step and step["existed"]:
                if step["kind"] == "put":
                    keep_old(path, step["old"])
                if "backup" in step:
                    shutil.copy2(path, step["backup"], follow_symlinks=False)
            self.checkpoint(f"prepared {path}")
        self.sync()

    def sync(self) -> None:
        for path in sorted({os.path.dirname(step["path"]) for step in self.steps}):
            with contextlib.suppress(FileNotFoundError):
                sync_directory(path)

    def commit(self) -> None:
        for step in self.steps:
            path = step["path"]
            if step["kind"] == "put":
                if not self.resumed or os.path.lexists(step["new"]):  # the run that was killed may have renamed it
                    os.rename(step["new"], path)
            elif step["kind"] == "attributes":
                with contextlib.suppress(FileNotFoundError):
                    set_attributes(path, step["after"])
            elif step["kind"] == "delete":
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, step["old"])
            self.checkpoint(f"committed {path}")
        self.sync()

    def rollback(self) -> None:
        renamed = self.journal["state"] != "prepare"  # before that no target was touched and an old copy may be half
        for step in reversed(self.steps):
            path = step["path"]
            if step["kind"] == "put":
                if step["existed"] and renamed:
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(step["old"], path)
                elif renamed and not os.path.lexists(step["new"]):
                    remove(path)
                # rename() between two names of one file does nothing, so the second name may still be there
                remove(step["old"])
                remove(step["new"])
            elif step["kind"] == "delete":
                with contextlib.suppress(FileNotFoundError):
                    os.rename(step["old"], path)
            elif step["kind"] == "attributes" and renamed:
                with contextlib.suppress(FileNotFoundError):
                    set_attributes(path, step["before"])
            elif step["kind"] == "mkdir":
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            if "backup" in step:
                remove(step["backup"])
            self.checkpoint(f"rolled back {path}")
        self.sync()
        self.close()

    def finish(self) -> None:
        for identifier, manifest in self.journal["manifests"].items():
            write_json(os.path.join(self.state, f"{identifier}.json"), manifest)
            self.checkpoint(f"manifest {identifier}")
        self.enter("clean")
        self.clean()

    def clean(self) -> None:
        for step in self.steps:
            for key in ("new", "old"):
                if key in step:
                    remove(step[key])
            if step["kind"] == "rmdir":  # only now are the old files gone from it
                with contextlib.suppress(OSError):  # somebody has put a file there since: it stays
                    os.rmdir(step["path"])
            self.checkpoint(f"cleaned {step['path']}")
        self.close()

    def close(self) -> None:
        remove(self.path)
        sync_directory(self.state)
        self.checkpoint("closed")


@dataclass
class Recovery:
    """What interrupted runs had left to do and is now done (or, in check mode, would be)."""

    finished: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    changed_paths: list[str] = field(default_factory=list)
    purged_paths: list[str] = field(default_factory=list)
    created_directories: list[str] = field(default_factory=list)


def recover(state: str, act: bool = True, checkpoint: Checkpoint = no_checkpoint) -> Recovery:
    """Finish or take back every swap that a killed run left; with `act` false only tell."""
    result = Recovery()
    try:
        names = sorted(name for name in os.listdir(state) if name.endswith(".journal"))
    except FileNotFoundError:
        return result
    for name in names:
        transaction = Transaction(state, load_json(os.path.join(state, name)), checkpoint)
        journal = transaction.journal
        if journal["state"] in ("commit", "clean"):
            result.finished.append(journal["id"])
            result.changed_paths += journal["changed_paths"]
            result.purged_paths += journal["purged_paths"]
            result.created_directories += journal["created_directories"]
        else:
            result.undone.append(journal["id"])
        if not act:
            continue
        try:
            transaction.resume()
        except OSError as error:
            raise ConfigTreeError(
                f"the interrupted run recorded in {transaction.path} (state {journal['state']}) "
                f"cannot be repaired: {error}"
            ) from error
    if act:
        for name in os.listdir(state):
            if name.endswith(".tmp"):
                remove(os.path.join(state, name))
    return result


@contextlib.contextmanager
def exclusive(run: str = RUN_DIRECTORY, create: bool = True) -> Iterator[None]:
    """One config_tree at a time on a host; the lock goes away with the process. Check mode makes no lock file."""
    try:
        if create:
            os.makedirs(run, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        descriptor = os.open(os.path.join(run, "lock"), flags, 0o600)
    except OSError as error:
        if not create:
            yield
            return
        raise ConfigTreeError(f"{run} cannot be used ({error}); config_tree needs root (become: true)") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------------------------------------------
# All together


@dataclass(frozen=True)
class Request:
    """What the module was asked to do on this host."""

    tree: Tree
    identifier: str
    dest: str = "/"
    commands: Sequence[Sequence[str]] = ()
    validate_user: str | None = None
    validate_timeout: float = 60
    watch: Mapping[str, Sequence[str]] = field(default_factory=dict)
    purge: bool = True
    backup: bool = False
    follow: bool = False
    check_mode: bool = False
    diff: bool = False
    state: str = STATE_DIRECTORY
    run: str = RUN_DIRECTORY


def converge(request: Request, checkpoint: Checkpoint = no_checkpoint) -> dict[str, Any]:
    """Bring the host to the tree and return the module's result; raises ConfigTreeError."""
    with exclusive(request.run, create=not request.check_mode):
        recovery = recover(request.state, act=not request.check_mode, checkpoint=checkpoint)
        manifests = load_manifests(request.state)
        plan = decide(
            request.tree, request.identifier, request.dest, manifests, purge=request.purge, follow=request.follow
        )
        if plan.missing_accounts and not request.check_mode:
            raise ConfigTreeError(
                f"{', '.join(plan.missing_accounts)} does not exist on this host, so nothing was installed; "
                "make the account first"
            )
        diff = build_diff(plan) if request.diff else []
        validation = Validation()
        if plan.operations and request.commands:
            with stage_directory(request.run, sweep=not request.check_mode) as stage:
                validation = validate(
                    request.tree,
                    request.commands,
                    stage,
                    check_mode=request.check_mode,
                    user=request.validate_user,
                    timeout=request.validate_timeout,
                )
        backups: list[str] = []
        if not request.check_mode:
            backups = act(request, plan, manifests, checkpoint)
    return report(request, plan, recovery=recovery, validation=validation, diff=diff, backups=backups)


def act(
    request: Request, plan: Plan, manifests: Mapping[str, Mapping[str, Any]], checkpoint: Checkpoint = no_checkpoint
) -> list[str]:
    """Swap the files in, or only note what is managed if they are all there already; returns the backups made."""
    os.makedirs(request.state, mode=0o755, exist_ok=True)
    if plan.operations:
        transaction = Transaction.new(request.state, plan, request.backup, checkpoint)
        transaction.run({operation.path: operation.content for operation in plan.operations if operation.kind == "put"})
        return transaction.backups
    for identifier, manifest in {request.identifier: plan.manifest, **plan.other_manifests}.items():
        if manifests.get(identifier) != manifest:
            write_json(os.path.join(request.state, f"{identifier}.json"), manifest)
    return []


def report(
    request: Request,
    plan: Plan,
    *,
    recovery: Recovery,
    validation: Validation,
    diff: list[dict[str, str]],
    backups: list[str],
) -> dict[str, Any]:
    """The module's result. Paths that an interrupted run had changed count, so that handlers still hear of them."""
    changed_paths = sorted({*plan.paths("put", "attributes"), *recovery.changed_paths})
    purged_paths = sorted({*plan.paths("delete"), *recovery.purged_paths})
    created = sorted({*plan.paths("mkdir"), *recovery.created_directories})
    warnings = list(plan.warnings)
    if recovery.finished or recovery.undone:
        verb = "would be repaired" if request.check_mode else "was repaired"
        warnings.append(f"an interrupted run of {', '.join(recovery.finished + recovery.undone)} {verb}")
    if plan.missing_accounts:
        warnings.append(f"{', '.join(plan.missing_accounts)} does not exist on this host yet")
    if validation.skipped:
        warnings.append(f"validation was skipped: {validation.skipped}")
    base = request.dest.rstrip("/") + "/"
    touched = [path[len(base) :] if path.startswith(base) else path for path in changed_paths + purged_paths]
    watched = {
        name: any(pattern.match(path) for pattern in map(compile_glob, globs) for path in touched)
        for name, globs in request.watch.items()
    }
    result: dict[str, Any] = {
        "changed": bool(plan.operations or recovery.finished),
        "changed_paths": changed_paths,
        "purged_paths": purged_paths,
        "created_directories": created,
        "removed_directories": plan.paths("rmdir"),
        "validated": validation.done,
        "recovered": sorted(recovery.finished + recovery.undone),
        "watched": watched,
        "id": request.identifier,
        "manifest": os.path.join(request.state, f"{request.identifier}.json"),
        "backup_files": backups,
        "warnings": warnings,
    }
    if request.diff:
        result["diff"] = diff
    return result
