"""config_tree's half on the controller: what it renders and sends, without a host."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins import loader as plugin_loader
from ansible.template import Templar
from ansible.utils.collection_loader import AnsibleCollectionConfig

from ansible_collections.causeway.platform.plugins.action import config_tree as action
from ansible_collections.causeway.platform.plugins.module_utils import config_tree as ct

COLLECTIONS = Path(__file__).resolve().parents[3] / ".cache" / "collections"
VARIABLES = {"inventory_hostname": "edge1", "app_name": "ü", "items_list": [1, 2]}


class Controller:
    """A project directory and a way to run the action in it without a connection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.templates = folder / "templates"
        self.calls: list[dict[str, Any]] = []
        self.transferred: list[bytes] = []

    def write(self, path: str, content: str | bytes) -> None:
        target = self.templates / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def run(self, variables: dict[str, Any] | None = None, no_log: bool = False, **arguments: Any) -> dict[str, Any]:
        loader = DataLoader()
        loader.set_basedir(str(self.folder))
        loader.set_vault_secrets([("default", VaultSecret(b"test"))])
        known = {**VARIABLES, **(variables or {})}
        task = Task.load({"ansible.builtin.debug": {}, "no_log": no_log}, loader=loader)
        task.args = arguments
        connection = mock.MagicMock()
        connection._shell.tmpdir = None
        plugin = action.ActionModule(
            task=task,
            connection=connection,
            play_context=PlayContext(),
            loader=loader,
            templar=Templar(loader=loader, variables=known),
            shared_loader_obj=plugin_loader,
        )

        def find(_folder: str, name: str) -> str:
            path = self.templates / name
            if not path.exists():
                raise AnsibleError(f"no {name}")
            return str(path)

        def execute(module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
            self.calls.append({"module": module_name, **module_args})
            return {"changed": True}

        def transfer(local: str, remote: str) -> str:
            self.transferred.append(Path(local).read_bytes())
            return remote

        connection._shell.join_path = lambda *parts: "/".join(parts)
        with (
            mock.patch.object(plugin, "_find_needle", find),
            mock.patch.object(plugin, "_execute_module", execute),
            mock.patch.object(plugin, "_transfer_file", transfer),
            mock.patch.object(plugin, "_fixup_perms2"),
            mock.patch.object(plugin, "_remove_tmp_path"),
            mock.patch.object(plugin, "_make_tmp_path", lambda: setattr(connection._shell, "tmpdir", "/tmp/x")),
        ):
            return plugin.run(task_vars=known)

    def sent(self, **arguments: Any) -> dict[str, ct.FileEntry]:
        self.run(**arguments)
        return {entry.path: entry for entry in ct.unpack(ct.decode(self.calls[-1]["_archive"])).files}


@pytest.fixture(autouse=True, scope="module")
def plugins_can_be_found() -> None:
    """Filters and lookups by their full names, with the checkout as the only extra collection path."""
    if AnsibleCollectionConfig.collection_finder is None:
        plugin_loader.init_plugin_loader([str(COLLECTIONS)])


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    result = Controller(tmp_path)
    result.templates.mkdir()
    return result


def test_templates_are_rendered_like_the_template_module_and_others_sent_as_they_are(controller: Controller) -> None:
    controller.write(
        "t/etc/a.conf.j2",
        "# {{ ansible_managed }}\n{% for i in items_list %}\n{{ i }}{{ app_name }}\n{% endfor %}\n\nend\n",
    )
    controller.write("t/etc/last.j2", "{{ items_list | to_json }}")
    controller.write("t/etc/b file", b"{{ raw }}\r\n\x00\xff")
    controller.write("t/empty.j2", "")
    controller.write("t/path.j2", "{{ template_path }} {{ template_destpath }}")
    files = controller.sent(src="t")
    assert files["etc/a.conf"].content.decode() == "# Ansible managed\n1ü\n2ü\n\nend\n"
    assert files["etc/last"].content == b"[1, 2]"
    assert files["etc/b file"].content == b"{{ raw }}\r\n\x00\xff"
    assert files["empty"].content == b""
    assert files["path"].content == b"t/path.j2 /path"


def test_templates_include_their_neighbours_and_read_files(controller: Controller) -> None:
    controller.write("t/a.j2", "{% include 'shared.j2' %}+{% include 'near.inc' %}")
    controller.write("shared.j2", "shared {{ app_name }}")
    controller.write("t/near.inc", "near")
    assert controller.sent(src="t")["a"].content.decode() == "shared ü+near"


def test_values_are_not_rendered_twice(controller: Controller) -> None:
    controller.write("t/a.j2", "{{ password }}")
    files = controller.sent(src="t", variables={"password": "a\\nb {{ x }"})
    assert files["a"].content == b"a\\nb {{ x }"


def test_generated_files(controller: Controller) -> None:
    controller.write("unit.j2", "slot {{ slot }} {{ app_name }}\n")
    files = controller.sent(
        files={
            "a.json": {"content": {"k": [1]}, "mode": "0600", "secret": True},
            "b": {"content": "text"},
            "u0": {"template": "unit.j2", "vars": {"slot": 0}},
            "u1": {"template": "unit.j2", "vars": {"slot": 1}, "owner": "daemon"},
        }
    )
    assert json.loads(files["a.json"].content) == {"k": [1]}
    assert (files["a.json"].mode, files["a.json"].secret) == (0o600, True)
    assert (files["u0"].content.decode(), files["u1"].content.decode()) == ("slot 0 ü\n", "slot 1 ü\n")
    assert files["u1"].owner == "daemon"


def test_vaulted_sources_are_decrypted_and_secret(controller: Controller) -> None:
    vault = VaultLib([("default", VaultSecret(b"test"))])
    controller.write("t/key.j2", vault.encrypt(b"key {{ app_name }}\n"))
    controller.write("t/raw", vault.encrypt(b"raw\n"))
    files = controller.sent(src="t")
    assert (files["key"].content.decode(), files["key"].secret) == ("key ü\n", True)
    assert (files["raw"].content, files["raw"].secret) == (b"raw\n", True)


def test_everything_is_secret_under_no_log(controller: Controller) -> None:
    assert controller.sent(files={"a": {"content": ""}}, no_log=True)["a"].secret


def test_small_trees_travel_in_the_call_and_large_ones_as_one_file(controller: Controller) -> None:
    controller.run(files={"a": {"content": "x"}})
    assert "_archive" in controller.calls[0] and not controller.transferred
    controller.write("t/random", random.Random(1).randbytes(300_000))
    controller.run(src="t")
    assert controller.calls[1]["_archive_path"] == "/tmp/x/tree.tar.gz"
    assert len(ct.unpack(controller.transferred[0]).files[0].content) == 300_000


def test_the_host_gets_no_contents_beside_the_archive(controller: Controller) -> None:
    controller.run(files={"a": {"content": "geheim"}})
    assert "geheim" not in str(controller.calls)
    assert {"files", "src", "attributes"}.isdisjoint(controller.calls[0])


def test_unmatched_attributes_are_told(controller: Controller) -> None:
    result = controller.run(files={"a": {"content": ""}}, attributes=[{"path": "b", "mode": "0600"}])
    assert result["unmatched_attributes"] == ["b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb\n{{ nothere }}\n", r"a\.j2, line 3 cannot be rendered: 'nothere' is undefined"),
        ("a\n{% if %}\n", r"a\.j2, line 2 cannot be rendered"),
        ("a\n\n\n{{ app_name.x.y }}\n", r"a\.j2, line 4 cannot be rendered"),
        ("\n{{ 'x' | from_json }}\n", r"a\.j2, line 2 cannot be rendered"),
    ],
)
def test_an_error_names_file_and_line(controller: Controller, text: str, words: str) -> None:
    controller.write("t/a.j2", text)
    with pytest.raises(AnsibleError, match=words):
        controller.run(src="t")
    assert controller.calls == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "at least one of src, files and directories"),
        ({"src": "nowhere"}, "there is no 'nowhere' in templates/"),
        ({"src": "plain"}, "is not a directory"),
        ({"files": {"a": "text"}}, r"files\[a\] must be a mapping"),
        ({"files": {"a": {}}}, "needs either content or template"),
        ({"files": {"a": {"content": "", "modus": "0600"}}}, "unknown keys modus"),
        ({"files": {"/a": {"content": ""}}}, "must be relative to dest"),
        ({"files": {"a": {"content": ""}}, "dest": "relative"}, "dest: 'relative' must be an absolute"),
        ({"files": {"a": {"content": ""}}, "id": "../x"}, "id: '../x'"),
        ({"files": {"a": {"content": ""}}, "validate": ["'"]}, r"validate\[0\]"),
        ({"files": {"a": {"content": ""}}, "typo": 1}, "[Uu]nsupported parameters.*typo"),
        ({"src": "twice"}, "a is described twice"),
        ({"src": "linked"}, "is a link to a directory"),
    ],
)
def test_what_is_refused_before_the_host_is_asked(
    controller: Controller, arguments: dict[str, Any], words: str
) -> None:
    controller.write("plain", "")
    controller.write("twice/a", "")
    controller.write("twice/a.j2", "")
    controller.write("linked/b", "")
    (controller.templates / "linked/sub").symlink_to(controller.templates / "twice")
    with pytest.raises(AnsibleError, match=words):
        controller.run(**arguments)
    assert controller.calls == []
