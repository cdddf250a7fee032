#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: object_storage_bucket
short_description: Make an S3 bucket with versioning, retention and lifecycle
description:
  - Makes a bucket of an S3 object storage and brings its settings to what is asked for. Only what differs is written.
  - It needs no library beside Python's own. Buckets are addressed by path.
  - The bucket's lifecycle is replaced as a whole, by one rule called C(causeway).
version_added: "0.1.0"
options:
  name:
    description:
      - Name of the bucket, 3 to 63 lower-case letters, digits and dashes.
    type: str
    required: true
  state:
    description:
      - V(absent) removes an empty bucket; one with content is an error.
    type: str
    choices: [present, absent]
    default: present
  endpoint:
    description:
      - URL of the object storage without a path, such as V(https://10.77.1.21:9400).
    type: str
    required: true
  region:
    description:
      - Region that requests are signed for.
    type: str
    default: us-east-1
  access_key:
    description:
      - Access key of an identity that may administer buckets.
    type: str
    required: true
  secret_key:
    description:
      - Its secret key.
    type: str
    required: true
  ca_path:
    description:
      - File with the roots of the endpoint's certificate, by default those of the system.
    type: path
  versioning:
    description:
      - Whether deleted and overwritten objects stay as older versions. Turned off, it is suspended.
    type: bool
    default: false
  noncurrent_days:
    description:
      - Days after which older versions go; V(0) never.
    type: int
    default: 0
  expiration_days:
    description:
      - Days after which objects go; V(0) never.
    type: int
    default: 0
  multipart_days:
    description:
      - Days after which uploads that were never finished go; V(0) never.
    type: int
    default: 0
  lock_mode:
    description:
      - Object lock for new objects. No version can be removed for O(lock_days); with V(governance) one who has a right
        of its own may, with V(compliance) nobody. A lock cannot be taken away again.
    type: str
    choices: [none, governance, compliance]
    default: none
  lock_days:
    description:
      - Days of the object lock.
    type: int
    default: 0
  timeout:
    description:
      - Seconds that a request may take.
    type: float
    default: 30.0
  wait:
    description:
      - Seconds for which an object storage that does not answer, or not yet, is asked again.
    type: float
    default: 0.0
attributes:
  check_mode:
    support: full
    description: Reads the bucket and tells what would change. Where the object storage is not there yet, it fails.
  diff_mode:
    support: full
    description: Shows the settings that change.
  idempotent:
    support: full
    description: A second run changes nothing.
author:
  - The causeway.platform authors (@causeway)
"""

EXAMPLES = r"""
- name: Make the bucket of the backups
  causeway.platform.object_storage_bucket:
    name: backups
    endpoint: https://10.77.1.21:9400
    region: north
    access_key: "{{ object_storage_admin.access_key }}"
    secret_key: "{{ object_storage_admin.secret_key }}"
    ca_path: /etc/causeway/tls/object-storage/current/ca.pem
    versioning: true
    noncurrent_days: 14
    multipart_days: 7
    lock_mode: governance
    lock_days: 30
"""

RETURN = r"""
bucket:
  description: The settings afterwards, or those that would be; empty without a bucket.
  returned: success
  type: dict
  sample: {versioning: true, noncurrent_days: 14, expiration_days: 0, multipart_days: 7, lock_mode: '', lock_days: 0}
created:
  description: Whether the bucket was made, or would be.
  returned: success
  type: bool
  sample: true
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.s3 import (
    BUCKET_TEXT,
    Bucket,
    Client,
    Endpoint,
    S3Error,
    bucket_allowed,
    obstacle,
    read,
    remove,
    settled,
    write,
)

SETTINGS = ("versioning", "noncurrent_days", "expiration_days", "multipart_days", "lock_days")


def wanted_of(params: dict[str, Any]) -> Bucket | None:
    """The bucket as it shall be; None for none. S3Error with one reason."""
    if not bucket_allowed(params["name"]):
        raise S3Error(f"S3 does not allow this name; allowed are {BUCKET_TEXT}")
    if params["state"] == "absent":
        return None
    mode = "" if params["lock_mode"] == "none" else params["lock_mode"]
    bucket = Bucket(**{name: params[name] for name in SETTINGS}, lock_mode=mode)
    if bucket.problem():
        raise S3Error(bucket.problem())
    return bucket


def act(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Look, decide, do."""
    name, wanted = params["name"], wanted_of(params)
    endpoint = Endpoint(
        params["endpoint"],
        params["region"],
        params["access_key"],
        params["secret_key"],
        params["ca_path"] or "",
        params["timeout"],
    )
    client = Client(endpoint, params["wait"])
    present = read(client, name)
    if wanted is not None and obstacle(present, wanted):
        raise S3Error(obstacle(present, wanted))
    changed = present != wanted
    if changed and not check_mode:
        if wanted is None:
            remove(client, name)
        else:
            write(client, name, present, wanted)
            found = settled(client, name, wanted)
            if found != wanted:
                raise S3Error(f"it was written, but the object storage has {found}")
    before, after = (asdict(one) if one else {} for one in (present, wanted))
    return {
        "changed": changed,
        "created": present is None and wanted is not None,
        "bucket": after,
        "diff": {"before": {name: before} if before else {}, "after": {name: after} if after else {}},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "endpoint": {"type": "str", "required": True},
            "region": {"type": "str", "default": "us-east-1"},
            "access_key": {"type": "str", "required": True, "no_log": False},
            "secret_key": {"type": "str", "required": True, "no_log": True},
            "ca_path": {"type": "path"},
            "versioning": {"type": "bool", "default": False},
            "noncurrent_days": {"type": "int", "default": 0},
            "expiration_days": {"type": "int", "default": 0},
            "multipart_days": {"type": "int", "default": 0},
            "lock_mode": {"type": "str", "choices": ["none", "governance", "compliance"], "default": "none"},
            "lock_days": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 30.0},
            "wait": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module.params, module.check_mode)
    except S3Error as error:
        module.fail_json(msg=f"bucket {module.params['name']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
