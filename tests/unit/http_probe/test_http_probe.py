# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module http_probe: its headers reach the server, and secret ones nothing else."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An address that answers 418 and tells what it got, and the headers of its requests."""
    seen: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = json.dumps(seen[-1]).encode()
            self.send_response(418)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/", seen
    running.shutdown()
    running.server_close()


def run(**arguments: Any) -> tuple[dict[str, Any], str]:
    """The module as Ansible runs it; its result and its raw output."""
    code = (
        "import sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "import json\n"
        "from ansible_collections.causeway.platform.plugins.modules import http_probe\n"
        "with patch_module_args(json.loads(sys.argv[1])):\n"
        "    http_probe.main()\n"
    )
    paths = [entry for entry in sys.path if entry]
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
    )
    assert result.stdout, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stdout


def test_headers_are_sent(server: tuple[str, list[dict[str, str]]]) -> None:
    url, seen = server
    result, _output = run(url=url, headers={"x-beta": "yes", "x-number": 7}, status=[418])
    assert result["statuses"] == {"418": 1}
    assert (seen[0]["x-beta"], seen[0]["x-number"]) == ("yes", "7")


def test_secret_headers_are_sent_over_tls_only_and_never_shown(server: tuple[str, list[dict[str, str]]]) -> None:
    url, seen = server
    result, output = run(url=url, secret_headers={"x-causeway-pool": TOKEN})
    assert result["failed"]
    assert "no https address; secret_headers are sent over TLS only" in result["msg"]
    assert seen == []
    assert TOKEN not in output
    result, output = run(url="https://127.0.0.1:1/", secret_headers={"x-causeway-pool": TOKEN})
    assert "1 of 1 requests" in result["msg"]
    assert TOKEN not in output


def test_what_the_server_says_of_a_secret_is_not_shown_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ansible.module_utils.testing import patch_module_args

    from ansible_collections.causeway.platform.plugins.module_utils import http_probe as engine
    from ansible_collections.causeway.platform.plugins.modules import http_probe

    targets = []

    def probe(target: engine.Target, *_more: Any) -> engine.Outcome:
        targets.append(target)
        return engine.Outcome(sent=1, failed=1, failures=[f"status 503: you sent {target.headers['x-causeway-pool']}"])

    monkeypatch.setattr(http_probe, "probe", probe)
    arguments = {"url": "https://gateway/", "headers": {"a": "b"}, "secret_headers": {"x-causeway-pool": TOKEN}}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        http_probe.main()
    output = capsys.readouterr().out
    assert "you sent" in output and TOKEN not in output
    assert targets[0].headers == {"a": "b", "x-causeway-pool": TOKEN}
