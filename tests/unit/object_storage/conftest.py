# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real SeaweedFS with S3 on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "envoy"))

from ansible_collections.causeway.platform.plugins.module_utils import object_storage, s3

SECRET = "a secret of sixteen characters"
BUCKETS = ("backups", "others")


def find_weed() -> str | None:
    """Path of the binary: CAUSEWAY_WEED, then /opt/causeway, then PATH."""
    named = os.environ.get("CAUSEWAY_WEED")
    if named:
        return named
    installed = sorted(Path("/opt/causeway").glob("seaweedfs-*/bin/weed"))
    return (
        str(installed[-1])
        if installed
        else shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    )


@pytest.fixture(scope="session")
def weed() -> str:
    """The binary; `make test` installs it, elsewhere set CAUSEWAY_WEED."""
    binary = find_weed()
    if binary is None:
        pytest.skip("no weed: set CAUSEWAY_WEED, or install it below /opt/causeway or in PATH")
    return binary


def free_ports(count: int) -> list[int]:
    """Ports that are free, also 10000 further on, where SeaweedFS puts gRPC."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1] % 20000 + 20000
            try:
                for number in (port, port + 10000):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    return found


@pytest.fixture(scope="session")
def endpoint(weed: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of S3; identities as the role writes them."""
    folder = tmp_path_factory.mktemp("weed")
    (folder / "s3.json").write_text(json.dumps(object_storage.identities(BUCKETS, SECRET)))
    master, volume, filer, own = free_ports(4)
    (folder / "data").mkdir()
    words = [weed, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    words += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={own}"]
    words += ["-master.telemetry=false", "-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0"]
    words += [f"-s3.config={folder / 's3.json'}", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty=false"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{own}"
        deadline = time.monotonic() + 60
        while True:
            try:
                s3.Client(s3.Endpoint(url, "north", **keys("admin"))).request("GET")
                break
            except s3.S3Error:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait(30)


def keys(user: str) -> dict[str, str]:
    return object_storage.keys(SECRET, user)


@pytest.fixture
def client(endpoint: str) -> Callable[[str], s3.Client]:
    """A client as one of the identities."""
    return lambda user: s3.Client(s3.Endpoint(endpoint, "north", **keys(user)))


@pytest.fixture
def module(endpoint: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the module as the administrator; returns its result, ``failed`` among it."""
    from ansible.module_utils.testing import patch_module_args

    from ansible_collections.causeway.platform.plugins.modules import object_storage_bucket

    def run(name: str, check: bool = False, **more: Any) -> dict[str, Any]:
        capsys.readouterr()
        arguments = {"name": name, "endpoint": endpoint, "region": "north", **keys("admin"), **more}
        with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            object_storage_bucket.main()
        out = capsys.readouterr().out
        assert keys("admin")["secret_key"] not in out
        result: dict[str, Any] = json.loads(out)
        return result

    return run
