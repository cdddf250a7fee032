# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads one YAML file into plain values, keeping the line of each, with limits on everything that a file can blow up.

Own composer over libyaml's events: the usual one recurses in C (a file of 100,000 ``[`` kills the process), expands
aliases without a limit and lets the last of two equal keys win silently.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import Problem, show

try:  # always there where Ansible runs; module_utils must be importable without it
    import yaml
    from yaml.constructor import SafeConstructor

    _Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _SCALARS: Any = SafeConstructor()
except ImportError:
    _Loader = _SCALARS = None

MAX_FILE_SIZE = 2 * 1024 * 1024
MAX_VALUES = 300_000
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_VAULT_HEADER = "$ANSIBLE_VAULT;"


@dataclass(frozen=True)
class Vaulted:
    """A ``!vault`` value, still encrypted. Its text is not shown by ``repr``."""

    ciphertext: str = field(repr=False)


@dataclass(frozen=True)
class Unsafe:
    """An ``!unsafe`` text: never a template."""

    text: str


@dataclass
class Node:
    """A YAML node: ``value`` is text, a list of nodes, or a list of (key node, value node)."""

    tag: str
    value: Any
    line: int
    size: int = 1


@dataclass
class Document:
    """A file that was read: its values, and the lines they came from."""

    file: str
    path: Path
    data: Any = None
    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: tuple[Any, ...]) -> int:
        """The line of a value, or of the nearest enclosing one that exists; 0 if there is none."""
        node, line = self.root, self.root.line if self.root else 0
        for part in path:
            found = None
            if node is not None and isinstance(part, int) and node.tag == _TAG + "seq":
                found = (node.value[part].line, node.value[part]) if part < len(node.value) else None
            elif node is not None and node.tag == _TAG + "map":
                found = next(((key.line, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found
        return line

    def report(self, path: tuple[Any, ...], text: str, got: str | None = None, allowed: str | None = None) -> None:
        """Adds a problem at a path of this file."""
        self.problems.append(Problem(self.file, path, text, got, allowed, self.line(path)))

    def refused(self, *path: Any) -> bool:
        """Whether something at or below a path of this file has been reported already."""
        return any(problem.path[: len(path)] == path for problem in self.problems)


class _Broken(Exception):
    def __init__(self, text: str, line: int = 0, got: str | None = None, allowed: str | None = None) -> None:
        super().__init__(text)
        self.text, self.line, self.got, self.allowed = text, line, got, allowed


def read_text(path: Path) -> str:
    """The text of a regular UTF-8 file within the size limit; raises _Broken otherwise."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Broken("not a regular file", allowed="a YAML file")
        if status.st_size > MAX_FILE_SIZE:
            raise _too_large(status.st_size)
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError as error:
        raise _Broken("no such file") from error
    except OSError as error:
        raise _Broken(f"cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_SIZE:
        raise _too_large(len(raw))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Broken("not UTF-8 text", line, f"byte 0x{raw[error.start]:02x}", "UTF-8") from error


def _too_large(size: int) -> _Broken:
    return _Broken("file too large", 0, f"{size} bytes", f"at most {MAX_FILE_SIZE} bytes ({MAX_FILE_SIZE >> 20} MiB)")


def read_document(path: Path, file: str) -> Document:
    """Reads a YAML file that holds one mapping. Never raises for bad content: the problems are in the result."""
    document = Document(file, path)
    try:
        document.root = _compose(read_text(path))
        if document.root is None:
            raise _Broken("the file is empty", allowed="a mapping of keys and values")
    except _Broken as broken:
        document.problems.append(Problem(file, (), broken.text, broken.got, broken.allowed, broken.line))
        return document
    document.data = _construct(document.root, document, ())
    if not isinstance(document.data, dict):
        document.report((), "wrong content", show(document.data), "a mapping of keys and values")
        document.data = None
    return document


def _compose(text: str) -> Node | None:
    """The document's root node, or None for an empty document; raises _Broken."""
    loader = _Loader(text)
    try:
        root = _Composer(loader.get_event, loader.resolve).compose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "cannot be parsed"
        column = f" in column {mark.column + 1}" if mark else ""
        raise _Broken(f"YAML syntax error{column}: {problem}", mark.line + 1 if mark else 0) from error
    except yaml.YAMLError as error:  # control characters
        raise _Broken("YAML syntax error: a character that YAML does not allow", allowed="printable text") from error
    finally:
        loader.dispose()
    return root


class _Composer:
    def __init__(self, get_event: Callable[[], Any], resolve: Callable[[Any, Any, Any], str]) -> None:
        self._next, self._resolve = get_event, resolve
        self._anchors: dict[str, Node] = {}
        self._values = 0

    def compose(self) -> Node | None:
        self._next()  # start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        event = self._next()
        root = self._node(event, 0)
        self._next()  # end of the document
        following = self._next()
        if not isinstance(following, yaml.StreamEndEvent):
            raise _Broken("more than one YAML document", following.start_mark.line + 1, allowed="one document a file")
        return None if root.tag == _TAG + "null" else root

    def _count(self, size: int, line: int) -> None:
        self._values += size
        if self._values > MAX_VALUES:
            raise _Broken("too many values, aliases counted in full", line, allowed=f"at most {MAX_VALUES}")

    def _node(self, event: Any, depth: int) -> Node:
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise _Broken("nested too deeply", line, allowed=f"at most {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            target = self._anchors.get(str(event.anchor))
            if target is None:
                raise _Broken("alias of an anchor that is not complete before it", line, show(f"*{event.anchor}"))
            self._count(target.size, line)
            return target
        self._count(1, line)
        if isinstance(event, yaml.ScalarEvent):
            tag = event.tag
            if tag is None or tag == "!":
                tag = self._resolve(yaml.ScalarNode, event.value, event.implicit)
            node = Node(tag, event.value, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(event.tag or _TAG + "seq", [], line)
            child = self._next()
            while not isinstance(child, yaml.SequenceEndEvent):
                item = self._node(child, depth + 1)
                node.value.append(item)
                node.size += item.size
                child = self._next()
        else:
            node = Node(event.tag or _TAG + "map", [], line)
            child = self._next()
            while not isinstance(child, yaml.MappingEndEvent):
                key = self._node(child, depth + 1)
                value = self._node(self._next(), depth + 1)
                node.value.append((key, value))
                node.size += key.size + value.size
                child = self._next()
        if event.anchor:
            self._anchors[event.anchor] = node
        return node


def _construct(node: Node, document: Document, path: tuple[Any, ...]) -> Any:
    if node.tag == _TAG + "map" and isinstance(node.value, list):
        return _mapping(node, document, path)
    if node.tag == _TAG + "seq" and isinstance(node.value, list):
        return [_construct(item, document, (*path, number)) for number, item in enumerate(node.value)]
    if not isinstance(node.value, str):
        document.problems.append(_unknown_tag(node, document, path))
        return None
    return _scalar(node, document, path)


def _mapping(node: Node, document: Document, path: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    merged: list[dict[Any, Any]] = []
    lines: dict[Any, int] = {}
    free = "vars" in path
    for key_node, value_node in node.value:
        if key_node.tag == _TAG + "merge":
            value = _construct(value_node, document, path)
            candidates = value if isinstance(value, list) else [value]
            merged += [item for item in candidates if isinstance(item, dict)]
            if not all(isinstance(item, dict) for item in candidates):
                text = "wrong value for the merge key <<"
                document.problems.append(Problem(document.file, path, text, show(value), "a mapping", key_node.line))
            continue
        key = _construct(key_node, document, path) if isinstance(key_node.value, str) else None
        if not isinstance(key, str) and not (free and isinstance(key, (int, float))):
            got = show(key_node.value)
            text = "a key that is not text"
            document.problems.append(Problem(document.file, path, text, got, "text; put it in quotes", key_node.line))
            continue
        if key in lines:
            text = f"key given twice, first in line {lines[key]}"
            document.problems.append(Problem(document.file, (*path, key), text, line=key_node.line))
            continue
        lines[key] = key_node.line
        result[key] = _construct(value_node, document, (*path, key))
    for extra in merged:
        for key, value in extra.items():
            result.setdefault(key, value)
    return result


def _scalar(node: Node, document: Document, path: tuple[Any, ...]) -> Any:
    kind = node.tag[len(_TAG) :] if node.tag.startswith(_TAG) else node.tag
    if kind in ("str", "timestamp", "value"):  # a date stays the text it was written as
        return node.value
    if kind == "null":
        return None
    if kind == "!vault":
        if not node.value.lstrip().startswith(_VAULT_HEADER):
            text = "a !vault value that is not encrypted"
            document.problems.append(
                Problem(document.file, path, text, None, f"text beginning with {_VAULT_HEADER}", node.line)
            )
        return Vaulted(node.value)
    if kind == "!unsafe":
        return Unsafe(node.value)
    if kind in ("bool", "int", "float"):
        plain = yaml.ScalarNode(node.tag, node.value)
        try:
            number = getattr(_SCALARS, f"construct_yaml_{kind}")(plain)
            if not isinstance(number, float) or math.isfinite(number):
                return number
        except (ValueError, KeyError, IndexError):
            pass
        document.problems.append(Problem(document.file, path, "not a usable number", show(node.value), None, node.line))
        return None
    document.problems.append(_unknown_tag(node, document, path))
    return None


def _unknown_tag(node: Node, document: Document, path: tuple[Any, ...]) -> Problem:
    return Problem(document.file, path, "unknown YAML tag", show(node.tag), "!vault, !unsafe and no other", node.line)
