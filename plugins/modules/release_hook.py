#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: release_hook
short_description: Run one hook of a release
version_added: "0.1.0"
description:
  - Tells an event of a release to a playbook, a webhook or by mail, and says how that ended.
  - It runs on the controller and ends when O(timeout) is over, whatever the other side does. A playbook is stopped then
    with all its children.
  - A hook that fails or hangs does not fail the task; what follows is decided by RV(outcome).
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Checks the options, tells nobody and returns V(skipped).
  diff_mode:
    support: none
  platform:
    platforms: posix
options:
  name:
    description: Name of the hook.
    type: str
    required: true
  event:
    description: What is told, as P(causeway.platform.release_hook_event#filter) makes it.
    type: dict
    required: true
  timeout:
    description: Seconds that the hook may take, attempts and pauses included.
    type: float
    default: 60.0
  playbook:
    description: Runs a playbook, which finds the event in the variable C(release_event).
    type: dict
    suboptions:
      path:
        description: The playbook.
        type: path
        required: true
      inventory:
        description: Sources of its inventory.
        type: list
        elements: str
        default: []
      configuration:
        description: The C(ansible.cfg) that it uses; when empty the one that Ansible finds.
        type: str
        default: ""
      executable:
        description: Path of C(ansible-playbook); when empty the one beside this task's Python, then the one in E(PATH).
        type: str
        default: ""
  webhook:
    description: Sends the event as JSON in a signed POST (Standard Webhooks). Redirects are not followed.
    type: dict
    suboptions:
      url:
        description: An https URL; http only to C(localhost) or C(127.0.0.1).
        type: str
        required: true
      secret:
        description: Signing key, C(whsec_) and 24 to 64 bytes in base64.
        type: str
        required: true
      ca_file:
        description: Certificates to trust. The system's own when empty.
        type: str
        default: ""
  mail:
    description: Sends the event by SMTP.
    type: dict
    suboptions:
      to:
        description: Recipients.
        type: list
        elements: str
        required: true
      sender:
        description: Address of the sender.
        type: str
        required: true
      host:
        description: SMTP server.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 587
      username:
        description: Name to log in with.
        type: str
        default: ""
      password:
        description: Password of O(mail.username).
        type: str
        default: ""
      secure:
        description:
          - V(starttls) and V(always) verify the server's certificate; V(never) sends in the clear, without login only.
        type: str
        choices: [starttls, always, never]
        default: starttls
      ca_file:
        description: Certificates to trust. The system's own when empty.
        type: str
        default: ""
"""

EXAMPLES = r"""
- name: Ask the change calendar
  causeway.platform.release_hook:
    name: calendar
    event: "{{ release_plan | causeway.platform.release_hook_event('pre', at, causeway_platform) }}"
    timeout: 20
    webhook:
      url: https://changes.example.org/hooks/causeway
      secret: "{{ causeway_secrets.calendar_hook }}"
  delegate_to: localhost
  register: asked

- name: Do not begin without its consent
  ansible.builtin.assert:
    that: asked.outcome == 'ok'
    fail_msg: "{{ asked.message }}"
"""

RETURN = r"""
outcome:
  description: V(ok), V(failed), V(timed_out), or V(skipped) in check mode.
  type: str
  returned: always
  sample: failed
message:
  description: What the other side said, shortened.
  type: str
  returned: always
  sample: "HTTP 409: freeze until Monday"
seconds:
  description: How long it took.
  type: float
  returned: always
  sample: 0.214
attempts:
  description: How often it was tried.
  type: int
  returned: always
  sample: 1
"""

import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils import release_hooks
from ansible_collections.causeway.platform.plugins.module_utils.release_hook_run import (
    Outcome,
    post_webhook,
    run_playbook,
    send_mail,
)


def run(params: dict[str, Any], executable: str) -> Outcome:
    """Run the one kind of hook that is given."""
    event, seconds = params["event"], params["timeout"]
    if params["playbook"]:
        playbook = params["playbook"]
        return run_playbook(
            executable, playbook["path"], playbook["inventory"], event, seconds, configuration=playbook["configuration"]
        )
    if params["webhook"]:
        webhook = params["webhook"]
        return post_webhook(webhook["url"], webhook["secret"], event, seconds, webhook["ca_file"])
    return send_mail(params["mail"], params["mail"]["to"], event, seconds)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "event": {"type": "dict", "required": True},
            "timeout": {"type": "float", "default": 60.0},
            "playbook": {
                "type": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "inventory": {"type": "list", "elements": "str", "default": []},
                    "configuration": {"type": "str", "default": ""},
                    "executable": {"type": "str", "default": ""},
                },
            },
            "webhook": {
                "type": "dict",
                "options": {
                    "url": {"type": "str", "required": True},
                    "secret": {"type": "str", "required": True, "no_log": True},
                    "ca_file": {"type": "str", "default": ""},
                },
            },
            "mail": {
                "type": "dict",
                "options": {
                    "to": {"type": "list", "elements": "str", "required": True},
                    "sender": {"type": "str", "required": True},
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 587},
                    "username": {"type": "str", "default": ""},
                    "password": {"type": "str", "default": "", "no_log": True},
                    "secure": {"type": "str", "choices": ["starttls", "always", "never"], "default": "starttls"},
                    "ca_file": {"type": "str", "default": ""},
                },
            },
        },
        mutually_exclusive=[("playbook", "webhook", "mail")],
        required_one_of=[("playbook", "webhook", "mail")],
        supports_check_mode=True,
    )
    params, executable = module.params, ""
    if params["timeout"] <= 0:
        module.fail_json(msg=f"timeout: {params['timeout']:g} is no time; allowed: seconds above 0")
    if params["webhook"] and not release_hooks.safe_url(params["webhook"]["url"]):
        module.fail_json(msg="webhook.url: not a URL to send to; allowed: https, or http to localhost or 127.0.0.1")
    if params["playbook"]:
        executable = params["playbook"]["executable"] or module.get_bin_path(
            "ansible-playbook", opt_dirs=[str(Path(sys.executable).parent)], required=True
        )
    if module.check_mode:
        module.exit_json(changed=False, outcome="skipped", message="check mode", seconds=0.0, attempts=0)
    try:
        found = run(params, executable)
    except release_hooks.HookError as error:
        module.fail_json(msg=str(error))
        return
    module.exit_json(changed=False, **found.as_dict())


if __name__ == "__main__":
    main()
