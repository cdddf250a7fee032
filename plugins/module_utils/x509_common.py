# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all parts of the trust root share: exceptions, durations, atomic files, the lock (standard library only)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


class TrustError(Exception):
    """One clear sentence about what is wrong with a token, key, certificate or request."""


class NotReadyError(TrustError):
    """Something an earlier task would make (library, token, key, authority) is not there; expected in check mode."""


def now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def parse_duration(text: str, what: str) -> timedelta:
    """``90s``, ``5m``, ``12h``, ``30d`` or ``2w`` as a timedelta; raises TrustError naming ``what``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", str(text))
    if not match or float(match.group(1)) <= 0:
        raise TrustError(f"{what}: {text!r} is no duration; write a positive number and s, m, h, d or w, such as 30d")
    return timedelta(seconds=float(match.group(1)) * _UNITS[match.group(2)])


def check_name(name: str, what: str) -> str:
    """The name, if it may become a directory and a DNS label; raises TrustError otherwise."""
    if not NAME_PATTERN.fullmatch(str(name)):
        raise TrustError(f"{what}: {name!r} is not allowed; use 1 to 63 of a-z, 0-9 and inner dashes")
    return str(name)


def check_fraction(value: float, what: str) -> float:
    if not 0 <= value < 1:
        raise TrustError(f"{what}: {value} is not allowed; use a fraction of the life from 0 up to, not including, 1")
    return value


def iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_iso(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes, mode: int, gid: int = -1) -> None:
    """Writes a file by rename with its final mode from the first byte on; readers see the old or the new one."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if gid >= 0:
                os.fchown(stream.fileno(), -1, gid)
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the store's lock: two runs at once may not both number a revocation list or rotate an authority."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / ".lock").open("w", encoding="ascii") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
