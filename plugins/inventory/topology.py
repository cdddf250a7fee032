# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory plugin: a thin layer between Ansible and module_utils/topology."""

from __future__ import annotations

DOCUMENTATION = r"""
name: topology
short_description: One description of a platform and its services as an inventory
version_added: "0.1.0"
author:
  - The causeway.platform authors (@causeway)
description:
  - Reads C(platform.yml), which says what machines there are, and one file per service, which says what the service is
    and needs.
  - Checks all of it before anything runs and reports every problem at once, with file, line, path, value and what is
    allowed.
  - Makes one group per component (C(gateway), C(registry), C(services), C(metrics), C(trust),
    C(database), C(backup), C(object_storage)), region (C(region_north)), zone (C(zone_north_a)), service
    (C(service_orders)) and database (C(database_orders)), and the variables C(causeway_*) that the roles of this
    collection read.
  - Every key of both kinds of file is explained in C(docs/description.md) of this collection.
notes:
  - Set C(any_unparsed_is_failed) in the section C(inventory) of C(ansible.cfg), so that a refused description ends a
    run instead of leaving it with no hosts.
  - Values in O(vars) may be templates and may be vaulted. Nothing in a service file is ever a template.
requirements:
  - jsonschema >= 4.0 (Python library, on the controller)
options:
  plugin:
    description: Says that the file is meant for this plugin.
    type: str
    required: true
    choices: [causeway.platform.topology]
  platform:
    description: Name of the platform, a DNS label.
    type: str
    required: true
  domain:
    description: DNS zone of the platform and trust domain of its SPIFFE identities.
    type: str
    required: true
  services:
    description: Folder of the service files, relative to this file.
    type: str
    default: services
  secrets:
    description:
      - YAML file in which each value is encrypted with C(ansible-vault encrypt_string), relative to this file.
      - Needs the names C(registry), C(hsm_pin) and C(hsm_so_pin), C(database) and C(backup) if a service has a
        database, and C(object_storage) if a host has that component; the playbook C(causeway.platform.secrets_init)
        makes them.
      - Without it set C(causeway_secrets) elsewhere, such as in C(group_vars).
    type: str
  regions:
    description: Regions with their virtual address, zones and hosts.
    type: dict
    required: true
  vars:
    description: Variables for all hosts.
    type: dict
    default: {}
  object_storage:
    description: Buckets, copies and masters of the hosts with the component C(object_storage).
    type: dict
    default: {}
  backups:
    description: Further repositories of the databases' backups, beside the one on the host with component C(backup).
    type: dict
    default: {}
  lab:
    description: Makes the hosts containers on this machine; read by the lab's playbooks only.
    type: dict
    default: {}
"""

EXAMPLES = r"""
# inventories/shop/platform.yml
plugin: causeway.platform.topology
platform: shop
domain: shop.internal
services: services/
secrets: secrets.yml
regions:
  north:
    state: active
    gateway: {address: 192.0.2.10}
    zones:
      north-a:
        hosts:
          edge1: {address: 192.0.2.11, components: [gateway]}
          core1: {address: 192.0.2.21, components: [registry, trust]}
          app1: {address: 192.0.2.31, components: [services]}
      north-b:
        hosts:
          edge2: {address: 192.0.2.12, components: [gateway]}
          core2: {address: 192.0.2.22, components: [registry]}
          app2: {address: 192.0.2.32, components: [services]}
      north-c:
        hosts:
          core3: {address: 192.0.2.23, components: [registry, metrics]}

# inventories/shop/services/orders.yml
---
name: orders
version: "1.0.0"
image: {archive: "../images/{service}-{version}.tar"}
port: 8080
mesh_port: 7110
instances: {min: 2, max: 4}
routes:
  - {prefix: /orders}
"""

import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.utils.unsafe_proxy import wrap_var

from ansible_collections.causeway.platform.plugins.module_utils.topology.description import read_description
from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Unsafe, Vaulted
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import DescriptionError
from ansible_collections.causeway.platform.plugins.module_utils.topology.schema import HAS_JSONSCHEMA, PLUGIN

try:
    from ansible.template import trust_as_template
except ImportError:  # ansible-core 2.18 renders every text that is not marked unsafe

    def trust_as_template(value: Any) -> Any:
        return value


OURS = re.compile(
    rb"""^(?:plugin|["']plugin["'])\s*:\s*["']?""" + re.escape(PLUGIN.encode()) + rb"""["']?\s*(?:#.*)?$""",
    re.MULTILINE,
)
ANY_PLUGIN = re.compile(rb"^plugin\s*:", re.MULTILINE)
HEAD = 64 * 1024
MARKS = ("{{", "{%", "{#")


class InventoryModule(BaseInventoryPlugin):
    """The plugin."""

    NAME = PLUGIN

    def verify_file(self, path: str) -> bool:
        """A YAML file that names this plugin; or a platform.yml that names none: its owner is told what is missing."""
        if not super().verify_file(path) or not path.endswith((".yml", ".yaml")):
            return False
        try:
            with Path(path).open("rb") as stream:
                head = stream.read(HEAD)
        except OSError:
            return False
        return bool(OURS.search(head)) or (Path(path).stem == "platform" and not ANY_PLUGIN.search(head))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fills the inventory or raises AnsibleParserError with all problems."""
        super().parse(inventory, loader, path, cache)
        if not HAS_JSONSCHEMA:
            raise AnsibleParserError(
                f"{PLUGIN} needs the Python library jsonschema on the controller: pip install jsonschema"
            )
        try:
            description = read_description(Path(path))
        except DescriptionError as error:
            raise AnsibleParserError(str(error)) from None
        for warning in description.warnings:
            self.display.warning(f"{path}: {warning}")

        for name in description.groups:
            inventory.add_group(name)
        for name, variables in description.hosts.items():
            inventory.add_host(name)
            for key, value in variables.items():
                inventory.set_variable(name, key, value)
            for key, value in description.host_free.get(name, {}).items():
                inventory.set_variable(name, key, self._value(value, True, path))
        for name, group in description.groups.items():
            for host in group.hosts:
                inventory.add_host(host, group=name)
            for child in group.children:
                inventory.add_child(name, child)
        for key, value in description.variables.items():
            inventory.set_variable("all", key, self._value(value, False, path))
        for key, value in description.free.items():
            inventory.set_variable("all", key, self._value(value, True, path))
        if description.secrets:
            # Ansible's own reader makes the lazily decrypted strings, whatever they are called in its version.
            inventory.set_variable(
                "all", "causeway_secrets", loader.load_from_file(str(description.secrets), cache="none")
            )

    def _value(self, value: Any, template: bool, path: str) -> Any:
        """Values as Ansible wants them: vaulted text lazily decrypted, other text a template only where allowed."""
        if isinstance(value, dict):
            return {key: self._value(item, template, path) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, template, path) for item in value]
        if isinstance(value, Vaulted):
            lines = "".join(f"  {line}\n" for line in value.ciphertext.split())
            return self.loader.load(f"value: !vault |\n{lines}", file_name=path)["value"]
        if isinstance(value, Unsafe):
            return wrap_var(value.text)
        if isinstance(value, str):
            if template:
                return trust_as_template(value)
            return wrap_var(value) if any(mark in value for mark in MARKS) else value
        return value
