#!/usr/bin/python
# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: http_probe
short_description: Prove that an address answers requests as it should
version_added: "0.1.0"
description:
  - Sends a number of GET requests over mutual TLS and fails when more than O(max_failed) are not answered as wanted.
  - Release verbs use it to test an instance through its sidecar before it takes traffic, and the gateway afterwards.
author:
  - The causeway.platform authors (@causeway)
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Sends nothing and reports zero requests.
  diff_mode:
    support: none
  platform:
    platforms: posix
options:
  url:
    description: Address to ask, with path.
    type: str
    required: true
  server_name:
    description: Name checked against the certificate, where the address is not that name.
    type: str
    default: ""
  identity:
    description: URI that must be among the names of the certificate, for example a SPIFFE identity.
    type: str
    default: ""
  ca_file:
    description: Certificates to trust. The system's own when empty.
    type: path
  cert_file:
    description: Certificate to present.
    type: path
  key_file:
    description: Private key of O(cert_file).
    type: path
  headers:
    description: Request headers to send.
    type: dict
    default: {}
  secret_headers:
    description:
      - Further request headers, whose values are secret, for example C(x-causeway-pool).
      - They are sent only where O(url) is an V(https) address.
    type: dict
    default: {}
  requests:
    description: How many requests to send, one after another.
    type: int
    default: 1
  interval:
    description: Seconds between two requests.
    type: float
    default: 0.0
  timeout:
    description: Seconds one request may take.
    type: float
    default: 5.0
  keep_alive:
    description: Whether all requests share one connection. By default each opens its own.
    type: bool
    default: false
  status:
    description: Status codes that count as success.
    type: list
    elements: int
    default: [200]
  max_failed:
    description: How many requests may fail before the task does.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Test the new instance with the gateway's identity
  causeway.platform.http_probe:
    url: https://10.77.1.31:7110/orders/1
    server_name: orders.shop.internal
    identity: spiffe://shop.internal/orders
    ca_file: /etc/causeway/tls/gateway/current/ca.pem
    cert_file: /etc/causeway/tls/gateway/current/cert.pem
    key_file: /etc/causeway/tls/gateway/current/key.pem
    requests: 20

- name: Test the candidates through the gateway while they take no traffic
  causeway.platform.http_probe:
    url: https://10.77.1.10/orders/1
    identity: spiffe://shop.internal/gateway
    ca_file: /etc/causeway/tls/gateway/current/ca.pem
    secret_headers:
      x-causeway-pool: "{{ causeway_secrets.registry | causeway.platform.service_pool_token('orders') }}"
    requests: 20
"""

RETURN = r"""
sent:
  description: Requests sent.
  type: int
  returned: always
  sample: 20
failed:
  description: Requests not answered as wanted.
  type: int
  returned: always
  sample: 0
statuses:
  description: Answers by status code, V(error) for no answer.
  type: dict
  returned: always
  sample: {"200": 20}
failures:
  description: The first different failures, in words.
  type: list
  elements: str
  returned: always
  sample: []
slowest:
  description: Seconds the slowest request took.
  type: float
  returned: always
  sample: 0.031
median:
  description: Seconds the median request took.
  type: float
  returned: always
  sample: 0.008
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.causeway.platform.plugins.module_utils.http_probe import Outcome, ProbeError, Target, probe


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "server_name": {"type": "str", "default": ""},
            "identity": {"type": "str", "default": ""},
            "ca_file": {"type": "path"},
            "cert_file": {"type": "path"},
            "key_file": {"type": "path", "no_log": False},
            "headers": {"type": "dict", "default": {}},
            "secret_headers": {"type": "dict", "default": {}, "no_log": True},
            "requests": {"type": "int", "default": 1},
            "interval": {"type": "float", "default": 0.0},
            "timeout": {"type": "float", "default": 5.0},
            "keep_alive": {"type": "bool", "default": False},
            "status": {"type": "list", "elements": "int", "default": [200]},
            "max_failed": {"type": "int", "default": 0},
        },
        required_by={"key_file": ["cert_file"]},
        supports_check_mode=True,
    )
    params = module.params
    if params["secret_headers"] and not params["url"].startswith("https://"):
        module.fail_json(msg=f"url: {params['url']!r} is no https address; secret_headers are sent over TLS only")
    target = Target(
        url=params["url"],
        server_name=params["server_name"],
        identity=params["identity"],
        ca_file=params["ca_file"] or "",
        cert_file=params["cert_file"] or "",
        key_file=params["key_file"] or "",
        timeout=params["timeout"],
        headers={str(k): str(v) for k, v in {**params["headers"], **params["secret_headers"]}.items()},
    )
    if module.check_mode:
        module.exit_json(changed=False, **Outcome().report())
    try:
        outcome = probe(target, params["requests"], params["status"], params["interval"], params["keep_alive"])
    except ProbeError as error:
        module.fail_json(msg=str(error))
        return
    report = outcome.report()
    if outcome.failed > params["max_failed"]:
        module.fail_json(
            msg=f"{outcome.failed} of {outcome.sent} requests to {target.url} failed: {'; '.join(outcome.failures)}",
            **report,
        )
    module.exit_json(changed=False, **report)


if __name__ == "__main__":
    main()
