#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_tree
short_description: Install a whole tree of configuration files at once
version_added: "0.1.0"
author:
  - The causeway.platform authors (@causeway)
description:
  - Renders a directory of templates that mirrors the target file system, sends it as one archive, lets the
    product's own checkers validate the complete staged tree, and then swaps the changed files in by rename.
  - If a checker fails, the host stays byte for byte as it was and the task fails with the checker's words.
  - Files that this tree once managed and no longer has are removed; nothing else ever is.
  - A run that is killed in the middle is finished or taken back by the next run of any tree on that host, which then
    reports the paths concerned in RV(changed_paths), so that handlers are notified nevertheless.
options:
  src:
    description:
      - Directory below C(templates/) of the calling role (or beside the playbook); searched like
        M(ansible.builtin.template) does, or an absolute path.
      - Names that end in C(.j2) are rendered like M(ansible.builtin.template) does (C(trim_blocks) on) and lose the
        ending; all others are sent as they are. Either may be encrypted with Ansible Vault and is then secret.
      - At least one of O(src), O(files) and O(directories) is required.
    type: str
  files:
    description:
      - Further files, for what is computed in Python or rendered once per instance. Path relative to O(dest) to a
        mapping with either C(content) (text, or any other value which becomes readable JSON) or C(template) (a
        template's name, searched like O(src)), and optionally C(vars) (additional variables for that template),
        C(owner), C(group), C(mode) and C(secret).
    type: dict
    default: {}
  directories:
    description:
      - Directories to have even if no file is in them. Path relative to O(dest) to a mapping with optional C(owner),
        C(group) and C(mode). Unlike directories that only follow from files, their attributes are also corrected when
        they existed before.
    type: dict
    default: {}
  dest:
    description: Directory on the host that the tree mirrors, an absolute path.
    type: str
    default: /
  id:
    description:
      - Name of the tree on the host, under which it remembers what it manages.
      - By default made from the role's name, O(src) and O(dest). Set it when a role uses the same O(src) several times
        on a host, for example once per service; otherwise each use would purge the files of the one before.
    type: str
  owner:
    description: Owner of files, and of directories that are made.
    type: str
    default: root
  group:
    description: Group of files, and of directories that are made.
    type: str
    default: root
  mode:
    description: Mode of files, in quotes.
    type: raw
    default: "0644"
  directory_mode:
    description: Mode of directories that are made, in quotes. Directories that existed before are left as they are.
    type: raw
    default: "0755"
  attributes:
    description: Exceptions, in order; where several match, later ones win.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Glob relative to O(dest). V(*) and V(?) stay inside one component, V(**) crosses components.
          - With a trailing C(/) it applies to directories, also to those that existed before, else to files.
        type: str
        required: true
      owner:
        description: Owner.
        type: str
      group:
        description: Group.
        type: str
      mode:
        description: Mode, in quotes.
        type: raw
      secret:
        description: Whether to hide the content in diffs and in quotations by checkers.
        type: bool
  validate:
    description:
      - Checkers, run in this order and only if something would change. Each is a string that is split into arguments
        without a shell, or a list of arguments. V({stage}) stands for the root of the complete staged tree.
      - In check mode a checker that is not installed (yet) is skipped; otherwise that is an error.
    type: list
    elements: raw
    default: []
  validate_only:
    description: Globs of files that are staged for the checkers and never installed.
    type: list
    elements: str
    default: []
  validate_user:
    description: Run the checkers as this user instead of root. The staged files have their final owner and mode.
    type: str
  validate_timeout:
    description: Seconds that each checker may take.
    type: int
    default: 60
  watch:
    description:
      - Names to lists of globs relative to O(dest). RV(watched) tells for each name whether a matching file was changed
        or purged.
    type: dict
    default: {}
  purge:
    description:
      - Whether to remove files that this tree managed in an earlier run and no longer has, and directories it made that
        become empty.
    type: bool
    default: true
  backup:
    description: Whether to keep the previous version of each changed or purged file beside it.
    type: bool
    default: false
  follow:
    description:
      - Whether to write through symbolic links that lead out of O(dest), and to replace a linked file instead of the
        link to it.
    type: bool
    default: false
  _archive:
    description: Internal use only. The rendered tree, which the action plugin sends.
    type: str
  _archive_path:
    description: Internal use only. The file with the rendered tree, where it is large.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and predict changes without making them.
    support: full
    details:
      - Everything but the swap is done, also validation where the checker exists.
      - Missing owners and groups are reported as warnings.
  diff_mode:
    description: Returns what has changed (or would change) when in diff mode.
    support: full
    details: Secret, binary and very large files are named, not shown.
  idempotent:
    description: Does nothing when the host is already as described.
    support: full
notes:
  - Runs on the host as root (C(become)).
  - Extended attributes and ACLs of replaced files are not carried over.
seealso:
  - module: ansible.builtin.template
"""

EXAMPLES = r"""
- name: Config | Install the gateway's tree
  causeway.platform.config_tree:
    src: gateway
    attributes:
      - path: etc/envoy/gateway/secret*
        group: causeway-envoy
        mode: "0640"
        secret: true
    validate:
      - envoy --mode validate -c {stage}/etc/envoy/gateway/check.yaml
    validate_only:
      - etc/envoy/gateway/check.yaml
    watch:
      restart: ["etc/envoy/gateway/bootstrap.yaml", "etc/systemd/**"]
  register: __gateway_config
  notify: Restart Envoy if its bootstrap changed  # a handler with "when: __gateway_config.watched.restart"

- name: Config | Write one file per instance, computed in Python
  causeway.platform.config_tree:
    id: service-{{ service_name }}
    dest: /etc/causeway/agent
    files: "{{ service_name | causeway.platform.agent_files }}"
    mode: "0640"

- name: Config | Render one unit per slot
  causeway.platform.config_tree:
    id: units-orders
    files:
      etc/containers/systemd/orders-0.container:
        template: instance.container.j2
        vars: {slot: 0}
      etc/containers/systemd/orders-1.container:
        template: instance.container.j2
        vars: {slot: 1}
"""

RETURN = r"""
changed_paths:
  description:
    - Files that were created, replaced or given other attributes.
    - Directories (with a trailing C(/)) that were given other attributes.
  returned: success
  type: list
  elements: str
  sample: [/etc/envoy/gateway/lds.yaml]
purged_paths:
  description: Files that were removed because the tree no longer has them.
  returned: success
  type: list
  elements: str
  sample: [/etc/envoy/gateway/old.yaml]
created_directories:
  description: Directories that were made.
  returned: success
  type: list
  elements: str
  sample: [/etc/envoy/gateway]
removed_directories:
  description: Directories this tree had made and that were empty after the purge.
  returned: success
  type: list
  elements: str
  sample: []
validated:
  description:
    - Whether all checkers ran and were content.
    - False if there was nothing to validate or a checker was skipped in check mode.
  returned: success
  type: bool
  sample: true
watched:
  description: For each name in O(watch), whether a matching file was changed or purged.
  returned: success
  type: dict
  sample: {restart: false}
recovered:
  description: Trees whose interrupted run was repaired first.
  returned: success
  type: list
  elements: str
  sample: []
id:
  description: Name of the tree on the host.
  returned: success
  type: str
  sample: causeway.platform.gateway-gateway-1f0e2c9a
manifest:
  description: File on the host that records what the tree manages.
  returned: success
  type: str
  sample: /var/lib/causeway/config_tree/causeway.platform.gateway-gateway-1f0e2c9a.json
backup_files:
  description: Copies made because of O(backup).
  returned: success
  type: list
  elements: str
  sample: []
unmatched_attributes:
  description: Paths in O(attributes) that matched nothing in the tree.
  returned: success
  type: list
  elements: str
  sample: []
command:
  description: The checker that failed.
  returned: when a checker failed
  type: list
  elements: str
  sample: [envoy, --mode, validate, -c, /run/causeway-config-tree/x/etc/envoy/check.yaml]
rc:
  description: Exit status of the checker that failed; V(-1) if it took too long.
  returned: when a checker failed
  type: int
  sample: 1
stdout:
  description: What the checker that failed printed.
  returned: when a checker failed
  type: str
  sample: ""
stderr:
  description: What the checker that failed printed as errors.
  returned: when a checker failed
  type: str
  sample: "error initializing configuration"
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils import config_tree


def request_of(params: dict[str, Any], check_mode: bool, diff: bool) -> config_tree.Request:
    """The module's parameters as the host's part understands them."""
    if params["_archive"]:
        data = config_tree.decode(params["_archive"])
    elif params["_archive_path"]:
        data = config_tree.read_file(params["_archive_path"])
    else:
        raise config_tree.ConfigTreeError(
            "config_tree was called without its action plugin: use the name causeway.platform.config_tree in a task"
        )
    return config_tree.Request(
        tree=config_tree.unpack(data),
        identifier=config_tree.check_id(params["id"] or ""),
        dest=config_tree.check_dest(params["dest"]),
        commands=config_tree.parse_commands(params["validate"]),
        validate_user=params["validate_user"],
        validate_timeout=params["validate_timeout"],
        watch=params["watch"],
        purge=params["purge"],
        backup=params["backup"],
        follow=params["follow"],
        check_mode=check_mode,
        diff=diff,
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **config_tree.ARGUMENT_SPEC,
            "_archive": {"type": "str", "no_log": True},
            "_archive_path": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = config_tree.converge(request_of(module.params, module.check_mode, module._diff))
    except config_tree.ConfigTreeError as error:
        module.fail_json(msg=str(error), **error.details)
    except OSError as error:
        module.fail_json(msg=f"config_tree cannot work on this host: {error}")
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
