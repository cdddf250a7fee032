# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab is, decided without a machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import lab as plan

HOSTS = {
    "app1": {"address": "10.77.1.31", "zone": "north-a", "region": "north", "components": ["services"]},
    "core1": {"address": "10.77.1.21", "zone": "north-a", "region": "north"},
    "app2": {"address": "10.77.2.31", "zone": "north-b", "region": "north"},
    "far1": {"address": "10.77.9.31", "zone": "south-a", "region": "south"},
}
MACHINE = plan.Machine(cgroup_v2=False, systemd=False, raises_limits=False, files=20000, processes=32768)


def lab(**changes: Any) -> plan.Lab:
    return plan.parse_lab(**{"name": "demo", "network": "10.77.0.0/16", "hosts": HOSTS, **changes})


def fault(kind: str = "cut", a: str = "app1", b: str = "core1", amount: float = 0) -> plan.Fault:
    return plan.checked_fault(lab(), kind, a, b, amount)


def test_addresses_of_gateway_and_cache_come_from_the_network() -> None:
    assert (lab().gateway, lab().cache) == ("10.77.0.1", "10.77.0.2")
    assert lab(gateway="10.77.0.2").cache == "10.77.0.1"
    assert lab(cache=False).cache == ""
    assert [node.name for node in lab().nodes] == ["lab-cache", *HOSTS]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Demo"}, "name 'Demo' is no DNS label"),
        ({"name": "../x"}, "no DNS label"),
        ({"network": "10.77.0.0"}, "too small"),
        ({"network": "10.77.0.1/16"}, "host bits"),
        ({"network": "10.77.0.0/30"}, "too small"),
        ({"gateway": "10.1.1.1"}, "gateway '10.1.1.1' is no address of"),
        ({"hosts": {}}, "at least one"),
        ({"hosts": {"a": {"address": "10.78.0.9"}}}, "outside 10.77.0.0/16"),
        ({"hosts": {"a": {"address": "10.77.0.1"}}}, "belongs to the gateway"),
        ({"hosts": {"a": {"address": "10.77.0.2"}}}, "belongs to the package cache"),
        ({"hosts": {"a": {"address": "10.77.255.255"}}}, "belongs to broadcasts"),
        ({"hosts": {"a": {"address": "10.77.0.9"}, "b": {"address": "10.77.0.9"}}}, "belongs to host a"),
        ({"hosts": {"a": {}}}, "no IPv4 address"),
        ({"hosts": {"lab-cache": {"address": "10.77.0.9"}}}, "other than lab-cache"),
    ],
)
def test_wrong_descriptions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(plan.LabError, match=words):
        lab(**changes)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(plan.LabError) as error:
        lab(name="X", hosts={"a": {"address": "1.2.3.4"}, "b": {"address": "nonsense"}})
    assert str(error.value).count(";") == 2


@pytest.mark.parametrize("name", ["a", "demo", "causeway-demo", "causeway-ci", "x" * 32])
def test_bridge_names_fit_an_interface_and_differ(name: str) -> None:
    bridge = lab(name=name).bridge
    assert len(bridge) <= 15
    assert bridge != lab(name=name + "2").bridge


def test_record_survives() -> None:
    assert plan.Lab.from_json(lab().to_json()) == lab()
    with pytest.raises(plan.LabError, match="unreadable"):
        plan.Lab.from_json("{")


@pytest.mark.parametrize(
    ("state", "address", "step"),
    [
        ("", "", "create"),
        ("running", "10.77.1.31", "none"),
        ("running", "10.77.1.99", "recreate"),
        ("exited", "10.77.1.31", "start"),
        ("stopped", "10.77.1.31", "start"),
        ("paused", "10.77.1.31", "unpause"),
        ("created", "10.77.1.31", "recreate"),
        ("initialized", "10.77.1.31", "recreate"),
        ("removing", "10.77.1.31", "recreate"),
    ],
)
def test_next_step(state: str, address: str, step: str) -> None:
    assert plan.next_step(state, address, lab().host("app1")) == step


def test_engine_settings_follow_the_machine() -> None:
    hybrid = plan.engine_configuration(MACHINE, "/n", "/run/l")
    assert 'runtime = "runc"' in hybrid
    assert 'cgroup_manager = "cgroupfs"' in hybrid
    assert "nofile=20000:20000" in hybrid
    ordinary = plan.engine_configuration(plan.Machine(True, True, True, 1, 1), "/n", "/run/l")
    assert not any(word in ordinary for word in ("runc", "cgroup_manager", "ulimits"))
    assert 'tmp_dir = "/run/l/libpod"' in ordinary


def test_hosts_are_not_privileged_and_use_the_cache() -> None:
    arguments = plan.run_arguments(
        lab(), lab().host("app1"), "image", MACHINE, network="demo-1", key="ssh-ed25519 A", volumes=[]
    )
    assert "--privileged" not in arguments
    assert any(argument.startswith("--cap-drop=SYS_TIME") for argument in arguments)
    assert "LAB_APT_PROXY=http://10.77.0.2:3142" in arguments
    assert arguments[arguments.index("--mac-address") + 1] == "02:4c:0a:4d:01:1f"
    cache = plan.run_arguments(lab(), lab().nodes[0], "image", MACHINE, network="demo-1", key="", volumes=["/x:/y"])
    assert "LAB_APT_PROXY=" in cache
    assert "/x:/y" in cache


def test_network_document_names_our_bridge() -> None:
    document = json.loads(plan.network_document(lab(), "demo-1"))
    assert document["network_interface"] == lab().bridge
    assert len(document["id"]) == 64


def test_archives_of_this_machine() -> None:
    lines = ["x/debian/ main", "x/debian/ contrib", "x/debian-security/ main", "y/other/ main"]
    listed = "\n".join(f"mirror://{line}" for line in lines)
    assert plan.archive_uris(listed) == ("mirror://x/debian/", "mirror://x/debian-security/")
    assert plan.archive_uris("mirror://x/ubuntu/ main") == ("", "")


def test_image_key_depends_on_every_input() -> None:
    assert plan.image_key("a", "b") != plan.image_key("ab", "")
    assert plan.image_key("a") == plan.image_key("a")


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app1", ["app1"]),
        ("north-a", ["app1", "core1"]),
        ("zone:north-a", ["app1", "core1"]),
        ("north", ["app1", "core1", "app2"]),
        ("region:south", ["far1"]),
    ],
)
def test_selectors(selector: str, names: list[str]) -> None:
    assert [host.name for host in plan.select(lab(), selector)] == names


@pytest.mark.parametrize("selector", ["", "nobody", "zone:north", "planet:earth", "zone:"])
def test_unknown_selectors_name_what_is_allowed(selector: str) -> None:
    with pytest.raises(plan.LabError, match="allowed are app1, core1, app2, far1, north, north-a"):
        plan.select(lab(), selector)


@pytest.mark.parametrize(
    ("kind", "a", "b", "amount", "words"),
    [
        ("cut", "app1", "north-a", 0, "both sides hold app1"),
        ("loss", "app1", "app2", 0, "more than 0"),
        ("loss", "app1", "app2", 100.5, "at most 100"),
        ("delay", "app1", "app2", 0, "more than 0"),
        ("rate", "app1", "outside", 5, "between hosts only"),
    ],
)
def test_impossible_faults_are_refused(kind: str, a: str, b: str, amount: float, words: str) -> None:
    with pytest.raises(plan.LabError, match=words):
        fault(kind, a, b, amount)


def test_faults_are_replaced_and_healed() -> None:
    cut, loss = fault(), fault("loss", amount=10)
    assert plan.with_fault([cut], cut) == [cut]
    assert plan.with_fault([cut], fault(a="core1", b="app1")) == [cut]
    assert plan.with_fault([cut, loss], fault("loss", amount=20)) == [cut, fault("loss", amount=20)]
    other = fault(a="app1", b="app2")
    assert plan.healed([cut, other]) == []
    assert plan.healed([cut, other], "app2") == [cut]
    assert plan.healed([cut, other], "app1", "core1") == [other]
    assert plan.faults_from_json(plan.faults_to_json([cut, loss])) == [cut, loss]


def test_ruleset_matches_hosts_whatever_address_they_carry() -> None:
    rules = plan.fault_ruleset(lab(), [fault()], {"app1": "veth1"})
    assert "ether saddr { 02:4c:0a:4d:01:1f } ether daddr { 02:4c:0a:4d:01:15 } counter drop" in rules
    assert rules.count("oifname") == 1  # core1 is off, so it has no port
    assert 'oifname { "veth1" }' in rules
    assert "10.77" not in rules


def test_outside_keeps_ssh() -> None:
    rules = plan.fault_ruleset(lab(), [fault(b="outside")], {})
    assert rules.index("tcp sport 22 accept") < rules.index("ether type { ip, ip6 }")
    assert "chain forward" not in rules


def test_no_fault_leaves_no_table() -> None:
    assert plan.fault_ruleset(lab(), [], {}).splitlines() == [
        "table bridge lab_demo { }",
        "delete table bridge lab_demo",
    ]


@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("nft") is None, reason="no nft or unshare here")
@pytest.mark.parametrize("kind", ["cut", "loss"])
@pytest.mark.parametrize("b", ["core1", "others", "outside", "north-b"])
def test_nft_takes_every_ruleset(kind: str, b: str) -> None:
    rules = plan.fault_ruleset(lab(), [fault(kind, "app1", b, 12.5)], {"app1": "veth1", "core1": "veth2"})
    argv = ["unshare", "--map-root-user", "--net", "nft", "--check", "--file", "-"]
    done = subprocess.run(argv, input=rules, text=True, capture_output=True, timeout=20, check=False)
    if "unshare" in done.stderr:
        pytest.skip("this machine allows no network namespace here")
    assert done.returncode == 0, done.stderr


def test_shapes_act_where_their_target_receives() -> None:
    ports = {"app1": "veth1", "core1": "veth2"}
    commands = plan.shaping_commands(lab(), [fault("rate", amount=500), fault("delay", amount=20)], ports)
    roots = [command for command in commands if "root" in command]
    assert [command[3] for command in roots] == ["veth1", "veth2"]
    assert ["class", "add", "dev", "veth1", "parent", "1:", "classid", "1:1", "htb", "rate", "500kbit"] in commands
    assert ["qdisc", "add", "dev", "veth1", "parent", "1:2", "netem", "delay", "20ms", "limit", "10000"] in commands
    assert all(
        command[-3] == lab().host("core1").mac for command in commands if command[0] == "filter" and "veth1" in command
    )
    assert plan.shaping_commands(lab(), [fault()], ports) == []


def test_ssh_configuration_knows_all_hosts() -> None:
    text = plan.ssh_configuration(lab(), "/state/ssh")
    assert 'IdentityFile "/state/ssh/id"' in text
    assert "Host app1\n  HostName 10.77.1.31\n" in text
