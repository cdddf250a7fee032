# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper that systemd and Ansible ask, against a faked admin socket."""

from __future__ import annotations

import http.server
import importlib.machinery
import importlib.util
import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "roles/envoy/files/envoyctl"


def load() -> Any:
    loader = importlib.machinery.SourceFileLoader("envoyctl", str(SCRIPT))
    spec = importlib.util.spec_from_loader("envoyctl", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


envoyctl = load()


class Admin(socketserver.ThreadingUnixStreamServer):
    """Answers of an Envoy; every request is remembered."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def address_string(self) -> str:
                return "test"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                texts = outer.answers.get(self.path.partition("?")[0], [""])
                body = (texts.pop(0) if len(texts) > 1 else texts[0]).encode()
                self.send_response(200 if body != b"DRAINING" else 503)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

        super().__init__(str(path), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cw-") as name:
        path = Path(name)
        for directory in ("etc/causeway/agent/proxies.d", "etc/envoy/gateway", "run/envoy/gateway"):
            (path / directory).mkdir(parents=True)
        description = {"output": "/var/xds", "clusters": {"a_stable": {}}, "routes": {"gateway": {}}}
        (path / "etc/causeway/agent/proxies.d/gateway.json").write_text(json.dumps(description))
        for kind, file in (("identity", "key.pem"), ("trust", "ca.pem")):
            text = json.dumps({"filename": f"/tls/{file}"})
            (path / f"etc/envoy/gateway/sds-{kind}.yaml").write_text(text)
        for kind in ("lds", "cds"):
            (path / f"etc/envoy/gateway/{kind}.yaml").write_text(json.dumps({"version_info": f"new-{kind}"}))
        yield path


@pytest.fixture
def admin(root: Path) -> Iterator[Admin]:
    server = Admin(root / "run/envoy/gateway/admin.sock")
    yield server
    server.shutdown()
    server.server_close()


def test_wait_names_the_file_and_who_writes_it_until_all_are_there(root: Path) -> None:
    proxy = envoyctl.Proxy("gateway", root)
    for name, author in (
        ("var/xds/eds/a_stable.json", "the node agent"),
        ("var/xds/rds/gateway.json", "the node agent"),
        ("tls/key.pem", "role trust"),
        ("tls/ca.pem", "role trust"),
    ):
        with pytest.raises(envoyctl.EnvoyctlError, match=rf"{name} \(written by {author}\)"):
            envoyctl.wait(proxy, 0.0)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    envoyctl.wait(proxy, 0.0)


def test_ready_says_why_not(root: Path, admin: Admin) -> None:
    proxy = envoyctl.Proxy("gateway", root)
    admin.answers["/ready"] = ["DRAINING"]
    with pytest.raises(envoyctl.EnvoyctlError, match="it says DRAINING"):
        envoyctl.ready(proxy, 0.2)
    admin.answers["/ready"] = ["DRAINING", "LIVE"]
    envoyctl.ready(proxy, 2.0)


def versions(lds: str, cds: str) -> str:
    return f'cluster_manager.cds.version_text: "{cds}"\nlistener_manager.lds.version_text: "{lds}"\n'


def test_settle_waits_for_both_versions_and_quotes_what_envoy_refused(
    root: Path, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = envoyctl.Proxy("gateway", root)
    monkeypatch.setattr(envoyctl.Proxy, "stale", lambda self: False)
    admin.answers["/ready"] = ["LIVE"]
    admin.answers["/config_dump"] = ['"error_state": {"details": "bad listener"}']
    admin.answers["/stats"] = [versions("old", "new-cds")]
    with pytest.raises(envoyctl.EnvoyctlError, match="lds new-lds is not in force, old is; Envoy says: bad listener"):
        envoyctl.settle(proxy, 0.2)
    admin.answers["/stats"] = [versions("old", "new-cds"), versions("new-lds", "new-cds")]
    assert envoyctl.settle(proxy, 2.0) == {"proxy": "gateway", "stale": False}


def test_drain_fails_health_first_and_waits_for_requests(root: Path, admin: Admin) -> None:
    line = "http.{}.downstream_rq_active: {}\n"
    busy = line.format("public", 2) + line.format("admin", 1) + line.format("metrics", 1)
    idle = line.format("public", 0) + line.format("admin", 1)
    admin.answers["/stats"] = [busy, busy, idle]
    envoyctl.drain(envoyctl.Proxy("gateway", root), 0.0, 5.0)
    assert admin.asked[0] == "POST /healthcheck/fail"
    assert len([line for line in admin.asked if line.startswith("GET /stats")]) == 3


def test_drain_of_a_dead_proxy_is_over_at_once(root: Path) -> None:
    envoyctl.drain(envoyctl.Proxy("gateway", root), 60.0, 60.0)
