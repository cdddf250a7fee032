#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbackrest_restore
short_description: Restore a database cluster to a moment, in place or beside
description:
  - Chooses the backup that leads to the target, restores it into a data directory and, unless told otherwise, has
    PostgreSQL recover to the target and promote itself.
  - Everything that can be wrong with the target is found before the directory is touched.
  - A restore that was killed is simply run again; with O(delta) it goes on with what is there.
version_added: "0.1.0"
options:
  state:
    description:
      - V(absent) stops and removes a copy that was restored with O(beside=true), and refuses anything else.
    type: str
    choices: [restored, absent]
    default: restored
  path:
    description:
      - Data directory. The one above it must exist.
    type: path
    required: true
  target_type:
    description:
      - V(latest) is the end of the archive, V(immediate) the end of the backup.
    type: str
    choices: [latest, immediate, time, lsn, xid, name]
    default: latest
  target:
    description:
      - A time with its zone, a position in the log, a transaction id, or the name of a restore point.
    type: str
    default: ""
  target_exclusive:
    description:
      - Stop just before the target, with a time, an LSN or a transaction.
    type: bool
    default: false
  target_timeline:
    description:
      - Timeline to follow, a number or V(latest).
    type: str
    default: latest
  set:
    description:
      - Backup to start from. Left out, the newest that ended before the time or LSN; for a transaction or a name the
        newest, and older ones where the target is not found behind it.
    type: str
    default: ""
  repo:
    description:
      - Number of the only repository to restore from; V(0) for the one that has the fitting backup.
    type: int
    default: 0
  delta:
    description:
      - Keep files that are already right. Needed where the directory is not empty.
    type: bool
    default: false
  beside:
    description:
      - It is a copy that must never archive; tablespaces are put below O(tablespaces).
    type: bool
    default: false
  tablespaces:
    description:
      - Directory for the tablespaces of a copy beside; by default O(path) with C(.tablespaces).
    type: path
  instance:
    description:
      - V(none) leaves the recovery to whoever starts PostgreSQL next, V(stopped) recovers and shuts down cleanly,
        V(running) leaves the copy running as a transient unit on a unix socket in O(work).
    type: str
    choices: [none, stopped, running]
    default: stopped
  work:
    description:
      - Directory for the socket, configuration and log of the instance; by default O(path) with C(.work).
    type: path
  port:
    description:
      - Number in the name of the socket.
    type: int
    default: 5432
  archive_command:
    description:
      - Command by which the recovered instance archives its new timeline. Not with O(beside).
    type: str
    default: ""
  bin_dir:
    description:
      - Directory of PostgreSQL's programs.
    type: path
    default: /usr/lib/postgresql/17/bin
  timeout:
    description:
      - Seconds that the recovery may take.
    type: float
    default: 86400.0
extends_documentation_fragment:
  - causeway.platform.pgbackrest
attributes:
  check_mode:
    support: full
    description: Checks the target, the directory and the space, and changes nothing.
  diff_mode:
    support: none
    description: A database has no diff worth reading.
  idempotent:
    support: full
    description: The same restore again changes nothing, as long as nothing else has used the directory.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Recover the stopped cluster to just before a bad transaction
  causeway.platform.pgbackrest_restore:
    cluster: orders
    user: postgres
    path: /var/lib/postgresql/17/orders
    delta: true
    target_type: xid
    target: "4711"
    target_exclusive: true
    archive_command: pgbackrest --stanza=orders archive-push %p

- name: Look at yesterday's data in a copy
  causeway.platform.pgbackrest_restore:
    cluster: orders
    user: pgbackrest
    path: /var/lib/causeway/backup/beside/orders
    target_type: time
    target: "2026-11-26 11:30:00+00:00"
    beside: true
    instance: running

- name: Remove the copy
  causeway.platform.pgbackrest_restore:
    cluster: orders
    user: pgbackrest
    path: /var/lib/causeway/backup/beside/orders
    state: absent
"""

RETURN = r"""
set:
  description: Backup it started from, or would.
  returned: with O(state=restored)
  type: str
  sample: 20261127-020000F
target:
  description: The target in words.
  returned: with O(state=restored)
  type: str
  sample: just before xid 4711
recovered:
  description: Timeline, position, time of the last transaction and identity of the cluster after the recovery.
  returned: when PostgreSQL recovered
  type: dict
  sample: {timeline: 2, lsn: 0/9000060, last_transaction: "2026-11-27 11:29:58+00:00", identity: "7712819613798151109"}
seconds:
  description: How long restore and recovery took.
  returned: when something was restored
  type: dict
  sample: {restore: 12.3, recover: 4.5}
bytes:
  description: Size of the database in the backup.
  returned: with O(state=restored)
  type: int
  sample: 31457280
socket:
  description: Directory of the unix socket of the running copy.
  returned: with O(instance=running)
  type: str
  sample: /var/lib/causeway/backup/beside/orders.work
unit:
  description: Transient unit of the running copy.
  returned: with O(instance=running)
  type: str
  sample: causeway-restored-orders-5432.service
"""

import contextlib
import fcntl
import json
import os
import shutil
import time

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest import (
    NAME,
    Backup,
    BackrestError,
    Instance,
    Layout,
    Place,
    Program,
    Target,
    as_user,
    attempt,
    control_value,
    find_candidates,
    in_use,
    make_target,
    marker,
    note,
    restore,
    restored,
    run,
)
from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest_arguments import ARGUMENTS, TARGET

SOCKET_LIMIT = 107  # bytes of a unix socket's path
ROOM = 64 * 1024 * 1024


class Act:
    """One restore: look, decide, do."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.params, self.check_mode = params, check_mode
        self.name, self.path, self.user = params["cluster"], params["path"].rstrip("/"), params["user"]
        if not NAME.match(self.name):
            raise BackrestError("that is no name of a cluster")
        self.program = Program(params["executable"], params["config"], self.user, params["repo"])
        self.work = params["work"] or f"{self.path}.work"
        self.tablespaces = params["tablespaces"] or f"{self.path}.tablespaces"
        self.unit = f"causeway-restored-{self.name}-{params['port']}.service"
        self.instance = Instance(
            Layout(
                data=self.path,
                work=self.work,
                bin=params["bin_dir"],
                user=self.user,
                port=params["port"],
                archive="" if params["beside"] else params["archive_command"],
            )
        )

    def absent(self) -> dict[str, Any]:
        """Stop and remove a copy."""
        present = [place for place in (self.path, self.work, self.tablespaces) if Path(place).exists()]
        found = read_marker(self.path)
        if not present and not found:
            return {"changed": False}
        if not found.get("request", {}).get("beside"):
            raise BackrestError(f"{self.path} is no copy that was restored beside; it is not removed")
        if not self.check_mode:
            self.stop_unit()
            obstacle = in_use(self.path)
            if obstacle:
                raise BackrestError(obstacle)
            for place in present:
                shutil.rmtree(place)
            marker(self.path).unlink()
            Path(f"{self.path}.lock").unlink(missing_ok=True)
        return {"changed": True}

    def stop_unit(self) -> None:
        """Stop the transient unit, if there is one."""
        if Path("/run/systemd/system").is_dir():
            state = run(["systemctl", "show", "--property=ActiveState", "--value", self.unit]).strip()
            if state != "inactive":
                run(["systemctl", "stop", "--quiet", self.unit])

    def request(self, target: Target) -> dict[str, Any]:
        """What was asked for; the same words again change nothing."""
        options = {one: self.params[one] for one in ("set", "repo", "beside", "instance", "port")}
        return {"cluster": self.name, **asdict(target), **options}

    def fresh(self, target: Target) -> dict[str, Any]:
        """The marker of the same restore that nothing has used since; empty otherwise."""
        found = restored(self.path)
        if not found or found.get("request") != self.request(target):
            return {}
        if self.params["instance"] == "running":
            return found if found.get("recovered") and in_use(self.path) else {}
        if self.params["instance"] == "stopped":
            return found if found.get("checkpoint") == self.checkpoint() else {}
        return {} if found.get("recovered") else found

    def checkpoint(self) -> str:
        """Where the stopped cluster is; another value means that something ran on it."""
        text = self.instance.controldata()
        return f"{control_value(text, 'Database cluster state')} at {control_value(text, 'Latest checkpoint location')}"

    def obstacles(self, tries: Sequence[Backup]) -> str:
        """Why it cannot be done; empty when it can."""
        path = Path(self.path)
        if not path.is_absolute() or not path.parent.is_dir():
            return f"path {self.path}: the directory above it must exist"
        if self.params["beside"] and self.params["archive_command"]:
            return "a copy beside must not archive: leave archive_command out"
        if self.params["instance"] == "running" and not self.params["beside"]:
            return "only a copy beside can be left running"
        if len(f"{self.work}/.s.PGSQL.{self.params['port']}".encode()) > SOCKET_LIMIT:
            return f"work {self.work}: too long for a unix socket"
        if self.params["instance"] != "none" and not Path(self.params["bin_dir"], "postgres").exists():
            return f"PostgreSQL is not installed in {self.params['bin_dir']}"
        busy = in_use(self.path)
        if busy and not self.own_leftover():
            return busy
        filled = path.is_dir() and any(path.iterdir())
        if filled and not self.params["delta"]:
            return f"{self.path} is not empty; restore with delta, or choose another directory"
        if filled and self.params["beside"] and not read_marker(self.path).get("request", {}).get("beside"):
            return f"{self.path} holds something else than a copy; choose another directory"
        need = max(one.size for one in tries) + ROOM
        room = shutil.disk_usage(path.parent).free
        return "" if filled or room >= need else f"{path.parent} has {room} bytes free, the restore needs {need}"

    def restored(self) -> dict[str, Any]:
        """Restore, recover, leave it as asked for."""
        params = self.params
        target = make_target(
            params["target_type"], params["target"], params["target_exclusive"], params["target_timeline"]
        )
        done = self.fresh(target)
        if done:
            return self.result(False, target, done)
        _stanza, tries = find_candidates(self.program, target, self.name, params["set"])
        obstacle = self.obstacles(tries)
        if obstacle:
            raise BackrestError(obstacle)
        if self.check_mode:
            return self.result(True, target, {"label": tries[0].label, "bytes": tries[0].size})
        with self.alone():
            return self.work_on(tries, target)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A run whose controller died goes on to its end; a second one must not join it."""
        with Path(f"{self.path}.lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BackrestError(f"another restore into {self.path} is under way; wait for its end") from error
            yield

    def work_on(self, tries: Sequence[Backup], target: Target) -> dict[str, Any]:
        """Restore the first of the backups that leads to the target."""
        params = self.params
        if self.own_leftover():
            self.stop_unit()
            if in_use(self.path):
                run(self.instance.tool("pg_ctl", "stop", "-s", "-m", "immediate", "-D", self.path, "-t", "60"))
        if params["beside"]:
            # Noted first: a copy that was killed half-way can still be recognised and removed.
            note(self.path, {"request": self.request(target)})
        self.make_directory()
        request = self.request(target)
        if params["instance"] == "none":
            tries = tries[:1]
        chosen, facts = attempt(tries, lambda one: self.once(one, target), target)
        found = {"request": request, "label": chosen.label, "bytes": chosen.size, **facts}
        note(self.path, found)
        return self.result(True, target, found)

    def own_leftover(self) -> bool:
        """Whether the server on the directory is one that an earlier restore started."""
        try:
            pid = int(Path(self.path, "postmaster.pid").read_text(encoding="utf-8").split()[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError, IndexError):
            return False
        return f"config_file={self.work}/postgresql.conf" in command

    def make_directory(self) -> None:
        """The data directory and that of the tablespaces, for their owner alone."""
        for place in (self.path, *([self.tablespaces] if self.params["beside"] else [])):
            Path(place).mkdir(mode=0o700, exist_ok=True)
            if self.user and os.geteuid() == 0:
                shutil.chown(place, self.user, self.user)

    def once(self, chosen: Backup, target: Target) -> dict[str, Any]:
        """Restore one backup and recover."""
        params = self.params
        again = params["delta"] or any(Path(self.path).iterdir())
        place = Place(self.path, again, params["beside"], self.tablespaces)
        seconds = {"restore": round(restore(self.program, self.name, chosen, target, place), 3)}
        if params["beside"]:
            note(self.path, {"request": self.request(target)})
        if params["instance"] == "none":
            return {"seconds": seconds}
        started = time.monotonic()
        try:
            self.instance.start()
            self.instance.wait(params["timeout"])
            self.instance.forget_recovery()
            facts = self.instance.facts()
            self.instance.stop()
        finally:
            self.instance.kill()
        seconds["recover"] = round(time.monotonic() - started, 3)
        checkpoint = self.checkpoint()
        if params["instance"] == "running":
            self.run_unit()
        else:
            shutil.rmtree(self.work, ignore_errors=True)
        return {"seconds": seconds, "recovered": facts, "checkpoint": checkpoint}

    def run_unit(self) -> None:
        """Leave the copy running: gone with the next boot, as a copy should be."""
        command = self.instance.command()
        options = [f"--unit={self.unit}", "--collect", "--quiet", "--property=PrivateNetwork=true"]
        if self.user:
            options.append(f"--uid={self.user}")
        run(["systemd-run", *options, "--", *command[len(as_user(self.user)) :]])
        self.instance.process = None
        self.instance.wait(60)

    def result(self, changed: bool, target: Target, found: dict[str, Any]) -> dict[str, Any]:
        """What the module returns."""
        result: dict[str, Any] = {"changed": changed, "set": found.get("label", ""), "target": target.words()}
        result.update({one: found[one] for one in ("recovered", "seconds", "bytes") if one in found})
        if self.params["instance"] == "running":
            result.update(socket=self.work, unit=self.unit)
        return result


def read_marker(path: str) -> dict[str, Any]:
    """The marker whatever has happened since."""
    try:
        found: dict[str, Any] = json.loads(marker(path).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            **TARGET,
            "state": {"type": "str", "choices": ["restored", "absent"], "default": "restored"},
            "path": {"type": "path", "required": True},
            "delta": {"type": "bool", "default": False},
            "beside": {"type": "bool", "default": False},
            "tablespaces": {"type": "path"},
            "instance": {"type": "str", "choices": ["none", "stopped", "running"], "default": "stopped"},
            "work": {"type": "path"},
            "port": {"type": "int", "default": 5432},
            "archive_command": {"type": "str", "default": ""},
            "bin_dir": {"type": "path", "default": "/usr/lib/postgresql/17/bin"},
            "timeout": {"type": "float", "default": 86400.0},
        },
        supports_check_mode=True,
    )
    try:
        act = Act(module.params, module.check_mode)
        result = act.absent() if module.params["state"] == "absent" else act.restored()
    except (BackrestError, OSError) as error:
        module.fail_json(msg=f"cluster {module.params['cluster']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
