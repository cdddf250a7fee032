"""The plugin inside Ansible: templates, vaulted values, errors."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing import vault
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.template import Templar

from ansible_collections.causeway.platform.plugins.inventory import topology
from ansible_collections.causeway.platform.plugins.inventory.topology import InventoryModule

SECRET = [("default", VaultSecret(b"password"))]


def vaulted(text: str, indent: str = "  ") -> str:
    ciphertext = VaultLib(SECRET).encrypt(text.encode()).decode()
    return "!vault |\n" + "".join(f"{indent}{line}\n" for line in ciphertext.splitlines())


@pytest.fixture
def loader() -> DataLoader:
    loader = DataLoader()
    loader.set_vault_secrets(SECRET)
    context = getattr(vault, "VaultSecretsContext", None)  # since ansible-core 2.19, set up by the command line tools
    if context and not context.current(optional=True):
        context.initialize(context(SECRET))
    return loader


@pytest.fixture
def parse(loader):
    def run(path) -> InventoryData:
        inventory, plugin = InventoryData(), InventoryModule()
        plugin._load_name = topology.PLUGIN
        assert plugin.verify_file(str(path))
        plugin.parse(inventory, loader, str(path))
        inventory.reconcile_inventory()
        return inventory

    return run


def test_groups_and_variables(files, parse):
    files.set("platform", "regions/north/zones/north-a/hosts/app1/vars", {"ansible_port": 2222})
    inventory = parse(files.write())
    assert list(inventory.hosts) == ["app1", "core1", "edge1", "app2", "core2", "app3", "core3"]
    app1 = inventory.get_host("app1")
    assert {group.name for group in app1.get_groups()} == {
        "all",
        "services",
        "region_north",
        "zone_north_a",
        "service_catalog",
        "service_orders",
    }
    assert app1.vars["ansible_host"] == "10.0.1.31"
    assert app1.vars["ansible_port"] == 2222
    shared = inventory.groups["all"].vars
    assert shared["causeway_hosts"]["core1"]["components"] == ["registry", "trust"]
    assert "causeway_secrets" not in shared
    assert not {"causeway_hosts", "causeway_services"} & set(app1.vars)


def test_vaulted_values_are_decrypted_when_used(files, parse, loader):
    files.set("platform", "secrets", "secrets.yml")
    files.text("secrets", "".join(f"{name}: {vaulted('my-' + name)}" for name in ("registry", "hsm_pin", "hsm_so_pin")))
    path = files.write()
    path.write_text(path.read_text() + f"vars:\n  db_password: {vaulted('s3cret', '    ')}")
    service = path.parent / "services" / "orders.yml"
    service.write_text(service.read_text() + f"environment:\n  DB_PASSWORD: {vaulted('pässword', '    ')}")
    shared = parse(path).groups["all"].vars
    templar = Templar(loader=loader, variables=shared)

    def value(text: str) -> str:
        return templar.template(topology.trust_as_template(text))

    assert value("{{ causeway_secrets.hsm_pin }}") == "my-hsm_pin"
    assert value("{{ db_password }}") == "s3cret"
    assert value("{{ causeway_services.orders.environment.DB_PASSWORD }}") == "pässword"
    assert "s3cret" not in repr(path.read_text())


def test_only_free_variables_are_templates(files, parse, loader):
    files.set("platform", "vars", {"greeting": "hello {{ causeway_platform }}", "nested": {"list": ["{{ 1 + 1 }}"]}})
    files.set("orders", "environment", {"FORMAT": "{{ 6 * 7 }}"})
    path = files.write()
    path.write_text(path.read_text().replace("nested:", "raw: !unsafe '{{ 1 }}'\n  nested:"))
    shared = parse(path).groups["all"].vars
    templar = Templar(loader=loader, variables=shared)

    def value(text: str):
        return templar.template(topology.trust_as_template(text))

    assert value("{{ greeting }}") == "hello shop"
    assert value("{{ nested.list[0] }}") in (2, "2")
    assert value("{{ raw }}") == "{{ 1 }}"
    assert value("{{ causeway_services.orders.environment.FORMAT }}") == "{{ 6 * 7 }}"


def test_all_problems_reach_the_user(files, parse):
    files.set("platform", "platform", "No Label")
    files.set("orders", "calls", ["nobody"])
    with pytest.raises(AnsibleParserError) as error:
        parse(files.write())
    text = str(error.value)
    assert "2 problems in the description:" in text
    assert "platform: not valid" in text
    assert "calls[0]: unknown service" in text


def test_missing_library_is_named(files, parse, monkeypatch):
    monkeypatch.setattr(topology, "HAS_JSONSCHEMA", False)
    with pytest.raises(AnsibleParserError, match="needs the Python library jsonschema on the controller"):
        parse(files.write())


@pytest.mark.parametrize(
    ("name", "text", "ours"),
    [
        ("platform.yml", "plugin: causeway.platform.topology\n", True),
        ("platform.yaml", "plugin: causeway.platform.topology # ours\n", True),
        ("shop.yml", "---\n# x\nplugin: 'causeway.platform.topology'\n", True),
        ("shop.yml", "plugin: causeway.platform.topology\r\n", True),
        ("platform.yml", "", True),
        ("platform.yml", "platform: shop\n", True),
        ("platform.yml", "plugin: amazon.aws.aws_ec2\n", False),
        ("shop.yml", "all: {hosts: {}}\n", False),
        ("shop.yml", "x:\n  plugin: causeway.platform.topology\n", False),
        ("shop.yml", "plugin: causeway.platform.topology2\n", False),
        ("shop.ini", "plugin: causeway.platform.topology\n", False),
    ],
)
def test_which_files_are_ours(tmp_path, name, text, ours):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert InventoryModule().verify_file(str(path)) is ours


def test_a_missing_file_is_not_ours(tmp_path):
    assert InventoryModule().verify_file(str(tmp_path / "platform.yml")) is False
