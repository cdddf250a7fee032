# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller's half of config_tree: renders the tree and sends it in one piece."""

from __future__ import annotations

import datetime
import os
import pwd
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from jinja2.exceptions import TemplateSyntaxError

from ansible_collections.causeway.platform.plugins.module_utils import config_tree

try:
    from ansible.template import trust_as_template
except ImportError:  # ansible-core before 2.19 has no trust: every string is a template
    trust_as_template = None

display = Display()

# What travels inside the (pipelined) module call; larger archives are sent as a file first.
INLINE_LIMIT = 200_000
VAULT_HEADER = b"$ANSIBLE_VAULT;"
HOST_OPTIONS = ("dest", "validate", "validate_user", "validate_timeout", "watch", "purge", "backup", "follow")


class Renderer:
    """Renders templates with everything M(ansible.builtin.template) offers them."""

    def __init__(self, action: ActionModule, task_vars: Mapping[str, Any], dest: str) -> None:
        self.action = action
        self.dest = dest
        self.host = os.uname().nodename
        self.now = datetime.datetime.now()
        self.variables = dict(task_vars)
        if "ansible_managed" not in self.variables:
            # A constant, unlike the template module's: a time stamp would make every run a change.
            self.variables["ansible_managed"] = "Ansible managed"
        search = [*(task_vars.get("ansible_search_path") or []), action._loader.get_basedir()]
        self.search = [path for base in search for path in (f"{base}/templates", base)]

    def render(self, path: str, name: str, target: str, extra: Mapping[str, Any] | None = None) -> str:
        """The text of the template at `path`; raises AnsibleActionFail naming file and line."""
        status = Path(path).stat()
        try:
            user: str | int = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            user = status.st_uid
        variables = {
            **self.variables,
            **(extra or {}),
            "template_host": self.host,
            "template_path": name,
            "template_fullpath": path,
            "template_destpath": str(Path(self.dest, target)),
            "template_mtime": datetime.datetime.fromtimestamp(status.st_mtime),
            "template_uid": user,
            "template_run_date": self.now,
        }
        folder = str(Path(path).parent)
        search = [*self.search, f"{folder}/templates", folder]
        overrides = {"trim_blocks": True, "lstrip_blocks": False, "newline_sequence": "\n"}
        loader, templar = self.action._loader, self.action._templar
        try:
            if trust_as_template:
                source = trust_as_template(loader.get_text_file_contents(path))
                engine = templar.copy_with_new_env(searchpath=search, available_variables=variables)
                result = engine.template(source, escape_backslashes=False, overrides=overrides)
            else:
                from ansible.template import AnsibleEnvironment

                engine = templar.copy_with_new_env(
                    environment_class=AnsibleEnvironment, searchpath=search, available_variables=variables
                )
                result = engine.do_template(
                    self.action.read_source(path).decode("utf-8"),
                    preserve_trailing_newlines=True,
                    escape_backslashes=False,
                    overrides=overrides,
                )
        except Exception as error:  # a filter or lookup may raise anything
            line = template_line(error)
            lines = [line] if line else config_tree.lines_naming(self.text_of(path), str(error))
            place = f"{path}, line {' or '.join(map(str, lines))}" if lines else path
            raise AnsibleActionFail(f"the template {place} cannot be rendered: {error}") from error
        if isinstance(result, (Mapping, list, tuple)):
            raise AnsibleActionFail(
                f"the template {path} gives a data structure, not text: add a filter such as to_nice_json"
            )
        return "" if result is None else str(result)

    def text_of(self, path: str) -> str:
        """A template as it is written."""
        return self.action.read_source(path).decode("utf-8", "replace")


def template_line(error: BaseException) -> int | None:
    """The line of the template where the error arose, as far as it can be known."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, TemplateSyntaxError):
            return current.lineno
        traceback = current.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            template = frame.f_globals.get("__jinja_template__")
            if template is not None:  # compiled code: its lines have to be translated
                return int(template.get_corresponding_lineno(traceback.tb_lineno))
            if "__jinja_exception__" in frame.f_globals:  # a frame that Jinja has translated already
                return traceback.tb_lineno
            traceback = traceback.tb_next
        pending += [current.__cause__, current.__context__]
    return None


class ActionModule(ActionBase):
    """See the module's documentation."""

    # No temporary directory on the host unless the archive is large: one round trip in the usual case.
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(config_tree.ARGUMENT_SPEC)
        if not (options["src"] or options["files"] or options["directories"]):
            raise AnsibleActionFail("config_tree needs at least one of src, files and directories")
        try:
            config_tree.check_dest(options["dest"])
            identifier = self.identifier(options)
            config_tree.parse_commands(options["validate"])
            tree, unmatched = config_tree.build_tree(self.sources(options, task_vars), options)
        except config_tree.ConfigTreeError as error:
            raise AnsibleActionFail(str(error)) from error
        arguments = {name: config_tree.plain(options[name]) for name in HOST_OPTIONS if options[name] is not None}
        arguments["id"] = identifier
        try:
            result = self.send(config_tree.pack(tree), arguments, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        if not result.get("failed"):
            result["unmatched_attributes"] = unmatched
        return result

    def send(self, archive: bytes, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Run the host's half with the archive inside the call or, if it is large, as a file beside it."""
        text = config_tree.encode(archive)
        if len(text) <= INLINE_LIMIT:
            arguments["_archive"] = text
        else:
            if self._connection._shell.tmpdir is None:
                self._make_tmp_path()
            remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "tree.tar.gz")
            with tempfile.NamedTemporaryFile(dir=constants.DEFAULT_LOCAL_TMP) as local:
                local.write(archive)
                local.flush()
                self._transfer_file(local.name, remote)
            self._fixup_perms2((self._connection._shell.tmpdir, remote))
            arguments["_archive_path"] = remote
        return self._execute_module(
            module_name="causeway.platform.config_tree", module_args=arguments, task_vars=task_vars
        )

    def identifier(self, options: Mapping[str, Any]) -> str:
        if options["id"]:
            return config_tree.check_id(str(options["id"]))
        role = self._task._role.get_name() if self._task._role else "play"
        return config_tree.default_id(role, options["src"] or "", options["dest"])

    def find(self, name: str) -> str:
        try:
            return str(self._find_needle("templates", name))
        except AnsibleError as error:
            raise AnsibleActionFail(f"there is no {name!r} in templates/: {error}") from error

    def read_source(self, path: str) -> bytes:
        """A controller file's bytes, decrypted where Ansible Vault encrypted it."""
        return Path(self._loader.get_real_file(path)).read_bytes()

    def sources(self, options: Mapping[str, Any], task_vars: Mapping[str, Any]) -> Iterator[config_tree.Source]:
        """Every file of the tree with its content."""
        renderer = Renderer(self, task_vars, options["dest"])
        hidden = bool(self._task.no_log)
        if options["src"]:
            root = self.find(options["src"])
            if not Path(root).is_dir():
                raise AnsibleActionFail(f"src: {root} is not a directory")
            for path in walk(root):
                relative = os.path.relpath(path, root)
                secret = hidden or is_vaulted(path)
                if relative.endswith(".j2"):
                    target = relative[: -len(".j2")]
                    text = renderer.render(path, f"{options['src']}/{relative}", target)
                    yield config_tree.Source(target, config_tree.as_content(text), secret)
                else:
                    yield config_tree.Source(relative, self.read_source(path), secret)
        for target, given in options["files"].items():
            yield self.generated(str(target), given, renderer, hidden)

    def generated(self, target: str, given: Any, renderer: Renderer, hidden: bool) -> config_tree.Source:
        """One entry of O(files)."""
        where = f"files[{target}]"
        if not isinstance(given, Mapping):
            raise AnsibleActionFail(f"{where} must be a mapping with content or template, not {type(given).__name__}")
        unknown = sorted(set(given) - {"content", "template", "vars", "owner", "group", "mode", "secret"})
        if unknown:
            raise AnsibleActionFail(f"{where} has unknown keys {', '.join(map(str, unknown))}")
        if ("content" in given) == ("template" in given):
            raise AnsibleActionFail(f"{where} needs either content or template")
        overrides = {key: given[key] for key in ("owner", "group", "mode", "secret") if given.get(key) is not None}
        if "content" in given:
            return config_tree.Source(target, config_tree.as_content(given["content"]), hidden, overrides)
        path = self.find(str(given["template"]))
        text = renderer.render(path, str(given["template"]), target, given.get("vars"))
        return config_tree.Source(target, config_tree.as_content(text), hidden or is_vaulted(path), overrides)


def walk(root: str) -> Iterator[str]:
    """All files below a directory, sorted; a link to a file counts as that file, one to a directory is refused."""
    for folder, names, files in os.walk(root):
        names.sort()
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                raise AnsibleActionFail(f"src: {path} is a link to a directory; only links to files are allowed")
        for name in sorted(files):
            yield str(Path(folder, name))


def is_vaulted(path: str) -> bool:
    """Whether Ansible Vault encrypted this file: its content is then secret on the host, too."""
    with Path(path).open("rb") as stream:
        return stream.read(len(VAULT_HEADER)) == VAULT_HEADER
