# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and defragmentation of the service registry, run by two systemd timers on each of its hosts.

``snapshot`` saves and verifies the local member's store and drops old snapshots. ``defragment`` gives free pages back,
member after member with the leader last, if all are healthy; only the leader's host does it, so that it happens once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from etcd import EtcdClient, EtcdError, Status

CONFIG = Path("/etc/causeway/registry/maintenance.json")
PREFIX, SUFFIX = "registry-", ".db"


@dataclass(frozen=True)
class Config:
    """What the role wrote."""

    name: str
    endpoint: str
    endpoints: list[str]
    ca: str
    cert: str
    key: str
    username: str
    snapshots: str
    retention: int
    ratio: float
    bytes: int


def outdated(names: Sequence[str], retention: int) -> list[str]:
    """Snapshots to drop: all but the newest ``retention``; their names sort by time."""
    own = sorted(name for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX))
    return own[: max(len(own) - max(retention, 1), 0)]


def defragment_order(states: Sequence[Status], ratio: float, least: int) -> list[Status]:
    """Members worth defragmenting, the leader last."""
    worth = [
        one
        for one in states
        if one.db_size - one.db_size_in_use >= least and one.db_size - one.db_size_in_use > ratio * one.db_size
    ]
    return sorted(worth, key=lambda one: one.is_leader)


def verify(path: Path) -> Mapping[str, Any]:
    """What ``etcdutl`` says of a snapshot; raises EtcdError when it is damaged."""
    command = ["/usr/bin/etcdutl", "snapshot", "status", str(path), "--write-out=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise EtcdError(f"snapshot {path} is damaged: {done.stderr.strip() or done.stdout.strip()}")
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def snapshot(config: Config, client: EtcdClient) -> None:
    """Save, verify, keep; a damaged one is removed and older ones stay."""
    folder = Path(config.snapshots)
    path = folder / f"{PREFIX}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{SUFFIX}"
    size = client.snapshot(str(path), config.endpoint)
    try:
        found = verify(path)
    except (EtcdError, OSError, subprocess.SubprocessError):
        path.unlink()
        raise
    for name in outdated(os.listdir(folder), config.retention):  # noqa: PTH208
        (folder / name).unlink()
    print(f"saved {path}: {size} bytes, revision {found['revision']}, {found['totalKey']} keys")


def defragment(config: Config, client: EtcdClient) -> None:
    """Do it if this host's member leads and everybody is healthy."""
    if not client.status(config.endpoint).is_leader:
        print("another member leads and does this")
        return
    urls = [url for member in client.member_list() for url in member.client_urls[:1]]
    for one in defragment_order([client.status(url) for url in urls], config.ratio, config.bytes):
        # Asked again before each: a member that answers nothing while it works must be the only one.
        sick = [f"{url}: {reason}" for url in urls if (reason := client.health(url))]
        if sick:
            raise EtcdError(f"not all members are healthy: {'; '.join(sick)}")
        started = time.monotonic()
        client.defragment(one.endpoint, timeout=300)
        seconds, after = time.monotonic() - started, client.status(one.endpoint)
        print(f"defragmented {one.endpoint} in {seconds:.1f} s: {one.db_size} to {after.db_size} bytes")


def main(arguments: Sequence[str]) -> int:
    """Run one of the two; returns the exit status."""
    config = Config(**json.loads(CONFIG.read_text()))
    password = (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "password").read_text().strip()
    acts = {"snapshot": snapshot, "defragment": defragment}
    try:
        with EtcdClient(
            config.endpoints, config.ca, config.cert, config.key, username=config.username, password=password
        ) as client:
            acts[arguments[0]](config, client)
    except (EtcdError, OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
