#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: oci_image
short_description: Have container images in a host's podman store
version_added: "0.1.0"
author:
  - The causeway.platform authors (@causeway)
description:
  - Makes sure that images are in the podman store of the host, each from an archive on the controller or from a
    container registry.
  - An archive is sent only if the store lacks its image, compared by the image's id, and is not kept on the host.
  - Afterwards older versions of the same repositories are removed, never one that a container uses.
options:
  images:
    description: Images to have.
    type: list
    elements: dict
    required: true
    suboptions:
      reference:
        description: Full reference with tag or digest.
        type: str
        required: true
      archive:
        description:
          - OCI or docker archive on the controller that holds this image.
          - If empty, the image is pulled from the registry that O(images[].reference) names.
        type: str
        default: ""
      image_id:
        description: Id of the image. Read from O(images[].archive) by default.
        type: str
        default: ""
  keep:
    description: How many versions of a repository stay, newest first. V(0) keeps all.
    type: int
    default: 3
  auths:
    description: Credentials by registry, each with C(username) and C(password). Not kept on the host.
    type: dict
    default: {}
  tls_verify:
    description: Whether the registry's certificate is checked.
    type: bool
    default: true
  _sources:
    description: Internal use only. Paths of the archives by reference, once the action plugin has sent them.
    type: dict
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: Compares but neither sends, loads nor removes. Without podman on the host every image counts as missing.
  diff_mode:
    support: full
  platform:
    platforms: posix
  action:
    support: full
  async:
    support: none
  bypass_host_loop:
    support: none
"""

EXAMPLES = r"""
- name: Have the image of the next release on this host
  causeway.platform.oci_image:
    images:
      - reference: localhost/causeway/orders:1.1.0
        archive: /srv/images/orders-1.1.0.tar
    keep: 3
"""

RETURN = r"""
loaded:
  description: References that were (or would be) loaded or pulled.
  type: list
  elements: str
  returned: success
  sample: ["localhost/causeway/orders:1.1.0"]
pruned:
  description: References that were removed.
  type: list
  elements: str
  returned: success
  sample: ["localhost/causeway/orders:0.9.0"]
images:
  description: Id of each wanted image that is in the store.
  type: dict
  returned: success
  sample: {"localhost/causeway/orders:1.1.0": 4bbe547c0725}
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.oci_image import (
    ImageError,
    auth_document,
    missing_images,
    present_images,
    prunable,
)

HISTORY = Path("/var/lib/causeway/images/history.json")


class Store:
    """podman's image store, asked through its command."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.podman = module.get_bin_path("podman")

    def run(self, *arguments: str) -> str:
        code, out, err = self.module.run_command([str(self.podman), *arguments])
        if code != 0:
            raise ImageError(f"podman {' '.join(arguments)} failed: {(err or out).strip()}")
        return str(out)

    def images(self) -> dict[str, str]:
        if self.podman is None:
            return {}
        return present_images(json.loads(self.run("images", "--format", "json") or "[]"))

    def load(self, image: dict[str, Any], source: str) -> None:
        self.run("load", "--quiet", "--input", source)
        found = self.images().get(image["reference"])
        if found is None and image["image_id"]:  # the archive names its image differently, or not at all
            self.run("tag", image["image_id"], image["reference"])
        elif found != (image["image_id"] or found):
            raise ImageError(
                f"{image['archive']}: {image['reference']} has id {found} after loading, not {image['image_id']}"
            )

    def pull(self, reference: str, auths: dict[str, Any], tls_verify: bool) -> None:
        arguments = ["pull", "--quiet", f"--tls-verify={str(tls_verify).lower()}"]
        if not auths:
            self.run(*arguments, reference)
            return
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json", dir="/run") as authfile:  # mode 0600
            json.dump(auth_document(auths), authfile)
            authfile.flush()
            self.run(*arguments, "--authfile", authfile.name, reference)

    def remove(self, reference: str) -> bool:
        """Whether the image went; one in use stays."""
        return bool(self.module.run_command([str(self.podman), "rmi", reference])[0] == 0)


def read_history() -> list[str]:
    try:
        content = json.loads(HISTORY.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(entry) for entry in content] if isinstance(content, list) else []


def converge(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    store = Store(module)
    wanted = [image["reference"] for image in params["images"]]
    present = store.images()
    missing = missing_images(params["images"], present)
    if store.podman is None and not module.check_mode:
        raise ImageError("podman is not installed on this host")
    sources: dict[str, str] = params["_sources"] or {}
    unsent = [image for image in params["images"] if image["archive"] and image["reference"] in missing]
    if not module.check_mode and any(image["reference"] not in sources for image in unsent):
        # the controller's half sends these archives and asks again
        return {"changed": True, "loaded": [], "pruned": [], "images": {}, "_missing": missing}
    history = [*[entry for entry in read_history() if entry not in missing], *missing]
    if not module.check_mode:
        for image in params["images"]:
            if image["reference"] not in missing:
                continue
            if image["archive"]:
                store.load(image, sources[image["reference"]])
            else:
                store.pull(image["reference"], params["auths"], params["tls_verify"])
        present = store.images() if missing else present
    # what was there before this history began counts as oldest
    history = [*sorted(reference for reference in present if reference not in history), *history]
    old, kept = prunable(history, wanted, present, params["keep"])
    pruned = []
    if missing:  # pruning belongs to the arrival of something new
        pruned = old if module.check_mode else [reference for reference in old if store.remove(reference)]
    if missing and not module.check_mode:
        HISTORY.parent.mkdir(parents=True, exist_ok=True)
        temporary = HISTORY.with_suffix(".new")
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        temporary.replace(HISTORY)
    after = {name: identifier for name, identifier in present.items() if name in wanted}
    return {
        "changed": bool(missing or pruned),
        "loaded": missing,
        "pruned": pruned,
        "images": after,
        "_missing": [],
        "diff": {"before": "", "after": "".join(f"{reference}\n" for reference in missing)},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "reference": {"type": "str", "required": True},
                    "archive": {"type": "str", "default": ""},
                    "image_id": {"type": "str", "default": ""},
                },
            },
            "keep": {"type": "int", "default": 3},
            "auths": {"type": "dict", "default": {}, "no_log": True},
            "tls_verify": {"type": "bool", "default": True},
            "_sources": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        result = converge(module)
    except (ImageError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
