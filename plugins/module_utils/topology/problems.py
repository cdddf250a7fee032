# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong in a description, where, and what is allowed there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_SHOWN = 60
MAX_PROBLEMS = 100


@dataclass(frozen=True)
class Problem:
    """One mistake. ``got`` is already safe to show: secrets are never put there."""

    file: str
    path: tuple[Any, ...]
    text: str
    got: str | None = None
    allowed: str | None = None
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        where = f" {render_path(self.path)}:" if self.path else ""
        details = []
        if self.got is not None:
            details.append(f"got {self.got}")
        if self.allowed is not None:
            details.append(f"allowed: {self.allowed}")
        return f"{place}:{where} {self.text}" + (f" ({'; '.join(details)})" if details else "")


class DescriptionError(Exception):
    """Every problem of a description at once, in the order of files, lines and paths."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        unique = dict.fromkeys(problems)
        self.problems = sorted(unique, key=lambda p: (p.file, p.line, render_path(p.path), p.text))
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.problems)
        shown = [f"  - {problem}" for problem in self.problems[:MAX_PROBLEMS]]
        if count > MAX_PROBLEMS:
            shown.append(f"  ... and {count - MAX_PROBLEMS} more")
        return "\n".join([f"{count} {'problem' if count == 1 else 'problems'} in the description:", *shown])


def render_path(path: Iterable[Any]) -> str:
    """``("routes", 0, "prefix")`` as ``routes[0].prefix``."""
    text = ""
    for part in path:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
            continue
        word = str(part)
        if not word or not word.isprintable() or len(word) > MAX_SHOWN:
            word = show(word)
        text += f".{word}" if text else word
    return text


def show(value: Any) -> str:
    """A short, printable, one-line form of a value from a file."""
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if not isinstance(value, (str, int, float)):
        return type_name(value)
    try:
        text = json.dumps(value, ensure_ascii=not str(value).isprintable())
    except ValueError:  # an integer too long to print
        return "a very long number"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + '..."'


def type_name(value: Any) -> str:
    """What a person calls the type of a value in YAML."""
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    if value is None:
        return "nothing"
    return names.get(type(value), "a !vault value" if type(value).__name__ == "Vaulted" else type(value).__name__)


def nearest(word: Any, options: Iterable[str]) -> str | None:
    """The option that was probably meant, or None."""
    found = difflib.get_close_matches(str(word), list(options), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(word: Any, options: Iterable[str]) -> str:
    """A phrase to append to a message about an unknown name; empty if nothing is near."""
    found = nearest(word, options)
    return f', did you mean "{found}"?' if found else ""


def choices(options: Iterable[str], limit: int = 30) -> str:
    """A list of allowed names, cut where it would stop being readable."""
    names = list(options)
    if not names:
        return "none is defined"
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
