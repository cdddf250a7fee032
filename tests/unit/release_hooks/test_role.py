# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role release with hooks that fail or hang, its real tasks against a real etcd: what follows at each stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd, registry

ROOT = Path(__file__).resolve().parents[3]
SECRET = "0123456789abcdef0123456789abcdef"  # of tests/unit/etcd
NOTHING = {"playbook": "", "webhook": {}, "mail": {}, "timeout": 20.0, "failure": "stop"}
# Nobody listens: fails after two attempts.
DEAF = {
    **NOTHING,
    "timeout": 1.0,
    "name": "deaf",
    "webhook": {"url": "http://127.0.0.1:1/", "secret": "key", "ca_file": ""},
}
KEY = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
JUDGED = {
    "canary": {"steps": [{"weight": 5, "duration": 1.0}], "instances": 0},
    "blue_green": {"bake": 1.0},
    "rollback_window": 1.0,
    "analysis": {"interval": 1.0},
}


def hook(kind: dict[str, Any], *stages: str, **change: Any) -> dict[str, Any]:
    return {**kind, "stages": list(stages), **change}


def script(folder: Path, name: str, text: str) -> dict[str, Any]:
    """A hook that runs a playbook with one shell task."""
    path = folder / f"{name}.yml"
    play = {"hosts": "core1", "gather_facts": False, "tasks": [{"ansible.builtin.shell": text}]}
    path.write_text(json.dumps([play]))
    return {**NOTHING, "name": name, "playbook": str(path)}


def service(*hooks: dict[str, Any], strategy: str = "rolling") -> dict[str, Any]:
    placed = [
        {"service": "orders", "host": host, "slot": 0, "port": 7100, "zone": host, "region": "r", "pool": "stable"}
        for host in ("app1", "app2")
    ]
    return {
        "name": "orders",
        "version": "1.0.0",
        "image": {"archive": ""},
        "mesh_port": 7100,
        "instances": {"min": 1, "max": 2, "per_host": 1, "placed": placed},
        "release": {"strategy": strategy, "batch": 1, "hooks": list(hooks), "health_timeout": 5.0, **JUDGED},
    }


@pytest.fixture
def play(server: Any, platform: str, tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Run an entry of the role; returns the exit code, the output, and the facts afterwards."""

    def run(spec: dict[str, Any], entry: str, before: dict[str, Any] | None = None, **given: Any) -> Any:
        connection = {
            "platform": platform,
            "endpoints": [server.url],
            "password": registry.password(SECRET, "root"),
            **{f"{kind}_file": str(server.tls / f"{kind}.pem") for kind in ("ca", "cert", "key")},
        }
        variables = {
            "causeway_platform": platform,
            "causeway_services": {"orders": spec},
            "causeway_secrets": {"key": KEY, "registry": SECRET},
            "release_service": "orders",
            "release_coordinator": "core1",
            "release_registry_endpoints": [server.url],
            "release_registry_password": connection["password"],
            "ansible_python_interpreter": sys.executable,
            **given,
        }
        lock = {"causeway.platform.etcd_lock": {"name": "orders"}, "register": "release_lock"}
        facts = {"ansible.builtin.set_fact": {"release_started": "2026-11-22T16:00:00Z", **(before or {})}}
        role = {"ansible.builtin.include_role": {"name": "causeway.platform.release", "tasks_from": entry}}
        shown = {
            name: f"{{{{ {name} | default('') }}}}" for name in ("release_cursor", "release_hook_results", "error")
        }
        keep = {"copy": {"dest": f"{tmp_path}/facts.json", "content": json.dumps(shown), "mode": "0600"}}
        keep["copy"]["content"] = "{{ shown | to_json }}"
        note = {"ansible.builtin.set_fact": {"error": "{{ ansible_failed_result.msg }}"}}
        tasks = [
            *([lock, facts] if before is not None else []),
            {"block": [role], "rescue": [note]},
            {"ansible.builtin.copy": keep["copy"], "vars": {"shown": shown}},
        ]
        book = tmp_path / "play.yml"
        defaults = {"group/causeway.platform.registry": connection}
        book.write_text(
            json.dumps([{"hosts": "core1", "gather_facts": False, "module_defaults": defaults, "tasks": tasks}])
        )
        inventory = tmp_path / "inventory.json"
        host = {"ansible_connection": "local"}
        inventory.write_text(json.dumps({"all": {"hosts": {"core1": host}, "vars": variables}}))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "-vv", str(book)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        output = done.stdout + done.stderr
        assert KEY not in output
        assert (tmp_path / "facts.json").exists(), output
        return done.returncode, output, json.loads((tmp_path / "facts.json").read_text())

    return run


PLAN = {"service": "orders", "version": "1.1.0", "undo": "1.0.0", "strategy": "canary", "id": "orders-1"}
NEXT = {"action": "next", "step": 0, "reason": "it goes well"}


def test_a_veto_sends_the_release_back_and_later_hooks_are_not_asked(play: Any, tmp_path: Path) -> None:
    hooks = [
        hook(script(tmp_path, "fine", "true"), "verdict"),
        hook(script(tmp_path, "optional", "exit 3"), "verdict", failure="ignore"),
        hook(script(tmp_path, "hangs", f"touch {tmp_path}/began; sleep 60"), "verdict", timeout=6.0),
        hook(script(tmp_path, "never", f"touch {tmp_path}/never"), "verdict"),
    ]
    facts = {"release_hook_stage": "verdict", "release_hook_facts": {"verdict": "pass", "weight": 5}}
    _code, _output, found = play(service(*hooks), "hooks", {"release_plan": PLAN, "release_cursor": NEXT}, **facts)
    assert [(one["hook"], one["outcome"]) for one in found["release_hook_results"]] == [
        ("fine", "ok"),
        ("optional", "failed"),
        ("hangs", "timed_out"),
    ]
    assert found["release_cursor"]["action"] == "back"
    assert found["release_cursor"]["reason"].startswith("hook hangs (verdict) timed out: stopped after 6 s")
    assert found["error"] == found["release_cursor"]["reason"]
    assert (tmp_path / "began").exists() and not (tmp_path / "never").exists()


@pytest.mark.parametrize("stage", ["promoted", "rolled_back"])
def test_what_has_happened_stays(play: Any, tmp_path: Path, stage: str) -> None:
    hooks = [hook(DEAF, stage), hook(script(tmp_path, "after", "true"), stage)]
    before = {"release_plan": PLAN, "release_cursor": {**NEXT, "action": "promote"}}
    _code, output, found = play(service(*hooks), "hooks", before, release_hook_stage=stage)
    assert found["error"] == ""
    assert [one["outcome"] for one in found["release_hook_results"]] == ["failed", "ok"]
    assert found["release_cursor"]["action"] == "promote"
    assert "The release goes on." in output


def test_a_lost_lock_stops_it_and_no_hook_runs(play: Any, tmp_path: Path) -> None:
    hooks = [hook(script(tmp_path, "late", f"touch {tmp_path}/late"), "test")]
    before = {"release_plan": PLAN, "release_lock": {"owner": "somebody else"}}
    _code, _output, found = play(service(*hooks), "hooks", before, release_hook_stage="test")
    assert "hook late (test) failed: Hook | Keep the service's lock:" in found["error"]
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(("entry", "strategy"), [("plan", "rolling"), ("pool_plan", "canary")])
def test_a_no_before_the_release_changes_nothing(
    play: Any, instance: Any, client: etcd.EtcdClient, keys: registry.Keys, entry: str, strategy: str
) -> None:
    for name in ("app1/0", "app2/0"):
        instance(name)
    spec = service(hook(DEAF, "pre"), strategy=strategy)
    _code, _output, found = play(spec, entry, release_version="1.1.0")
    assert "hook deaf (pre) failed: ConnectionRefusedError" in found["error"]
    assert client.get(keys.of("releases", "orders")) is None
    assert client.get(keys.of("locks", "orders")) is None


@pytest.mark.parametrize(("entry", "strategy"), [("plan", "rolling"), ("pool_plan", "canary")])
def test_a_missing_secret_is_found_before_anything_changes(
    play: Any, instance: Any, client: etcd.EtcdClient, keys: registry.Keys, entry: str, strategy: str
) -> None:
    for name in ("app1/0", "app2/0"):
        instance(name)
    spec = service(hook(DEAF, "promoted"), strategy=strategy)
    _code, _output, found = play(spec, entry, release_version="1.1.0", release_hook_secrets={})
    assert "release.hooks[0] (deaf): webhook.secret: no secret key;" in found["error"]
    assert "Nothing was changed." in found["error"]
    assert client.get(keys.of("releases", "orders")) is None
    assert client.get(keys.of("locks", "orders")) is None


def test_nothing_stands_in_the_way_back(play: Any, instance: Any, client: etcd.EtcdClient, keys: registry.Keys) -> None:
    """What release_rollback does: no secret, a hook that says no, and it begins all the same."""
    for name in ("app1/0", "app2/0"):
        instance(name)
    given = {"release_version": "1.1.0", "release_hook_secrets": {}, "release_hooks_stop": False}
    _code, _output, found = play(service(hook(DEAF, "pre")), "plan", **given)
    assert found["error"] == ""
    assert found["release_hook_results"][0]["outcome"] == "failed"
    record = client.get(keys.of("releases", "orders"))
    assert record is not None and record.json()["state"] == "rolling"
