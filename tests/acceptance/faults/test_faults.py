"""What breaks under traffic: processes, hosts, zones, the registry, a gateway. Reads go on without a failed request.

The bounds are those of the design doubled, since CI shares two cores between the whole platform and its load; what was
measured is printed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

import pytest

Ssh = Callable[..., subprocess.CompletedProcess[str]]
Registry = Callable[..., dict[str, Any]]
Fault = Callable[..., dict[str, Any]]
PROCESS, HOST = 6.0, 12.0  # seconds until a dead process, a dead host, is out of every proxy


def having(inventory: dict[str, Any], component: str) -> list[str]:
    return [name for name, one in inventory["causeway_hosts"].items() if component in one["components"]]


def placed(inventory: dict[str, Any], service: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = inventory["causeway_services"][service]["instances"]["placed"]
    return found


def live(registry: Registry, service: str, on: str) -> set[str]:
    known = registry("registry_info", on=on, service=service, gather=["content"])
    return {one["instance"] for one in known["services"][service]["instances"]}


@pytest.fixture
def whole(inventory: dict[str, Any], registry: Registry, fault: Fault) -> Iterator[Callable[[], None]]:
    """Waits until every instance is registered again; also after each test, so that the next one begins whole."""

    def wait() -> None:
        host = having(inventory, "registry")[0]
        deadline = time.monotonic() + 120
        missing: Any = "everything"
        while time.monotonic() < deadline:
            try:
                missing = {
                    name: {one["id"] for one in placed(inventory, name)} - live(registry, name, host)
                    for name in inventory["causeway_services"]
                }
            except (KeyError, AssertionError) as error:
                missing = error
            else:
                if not any(missing.values()):
                    return
            time.sleep(1)
        raise AssertionError(f"not registered again after 120 s: {missing}")

    wait()
    yield wait
    fault(action="heal")
    wait()


WATCH = """
import json, time
path, wanted, end = {path!r}, ({address!r}, {port}), time.time() + {limit}
def there():
    found = json.load(open(path))["resources"][0].get("endpoints", [])
    ends = [e for group in found for e in group["lb_endpoints"]]
    return any((e["endpoint"]["address"]["socket_address"]["address"],
                e["endpoint"]["address"]["socket_address"]["port_value"]) == wanted for e in ends)
print("ready", flush=True)
while there() and time.time() < end:
    time.sleep(0.05)
print(time.time() if not there() else "never", flush=True)
"""


class Watchers:
    """On every proxy in front of ``one``, notes when its endpoint left the file that Envoy reads."""

    def __init__(
        self, inventory: dict[str, Any], one: dict[str, Any], limit: float, without: Container[str] = ()
    ) -> None:
        config = f"{inventory['causeway_lab']['state']}/ssh/config"
        fronts = [(host, "gateway") for host in having(inventory, "gateway")]
        fronts += [(other["host"], "sidecar-orders") for other in placed(inventory, "orders")]
        self.running = {}
        for host, proxy in sorted(set(fronts)):
            if host in without:
                continue
            path = f"/var/lib/causeway/xds/{proxy}/eds/{one['service']}_stable.json"
            script = WATCH.format(path=path, address=one["address"], port=one["port"], limit=limit)
            self.running[host, proxy] = subprocess.Popen(
                ["ssh", "-F", config, host, "python3", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            process = self.running[host, proxy]
            assert process.stdin
            process.stdin.write(script)
            process.stdin.close()
        for process in self.running.values():
            assert process.stdout
            assert process.stdout.readline() == "ready\n"

    def slowest(self, since: float) -> float:
        """Seconds until the last proxy had it out; the hosts share this machine's clock."""
        seen = {}
        for front, process in self.running.items():
            assert process.stdout
            said = process.stdout.readline().strip()
            assert said != "never", f"{front} still has the endpoint"
            seen[front] = float(said) - since
            process.wait()
        print(f"out of every proxy after {max(seen.values()):.2f} s")
        return max(seen.values())


def test_a_killed_process_costs_no_request(
    inventory: dict[str, Any], ssh: Ssh, whole: Any, traffic: Callable[..., Any]
) -> None:
    one = placed(inventory, "catalog")[0]
    with traffic() as load:
        for _attempt in range(3):
            assert ssh(one["host"], f"systemctl kill --signal=KILL catalog@{one['slot']}.service").returncode == 0
            time.sleep(4)
    assert load.summary["failed"] == 0, load.summary["failures"]


def test_a_hanging_process_leaves_every_proxy(
    inventory: dict[str, Any], ssh: Ssh, whole: Any, traffic: Callable[..., Any]
) -> None:
    one = placed(inventory, "catalog")[0]
    name = f"$(podman ps --format '{{{{.Names}}}}' | grep -E 'catalog.*{one['slot']}$' | head -1)"
    pid = ssh(one["host"], f"podman inspect -f '{{{{.State.Pid}}}}' {name}").stdout.strip()
    assert pid.isdigit()
    with traffic() as load:
        watchers = Watchers(inventory, one, PROCESS)
        since = time.time()
        ssh(one["host"], f"kill -STOP {pid}")
        try:
            assert watchers.slowest(since) < PROCESS
        finally:
            ssh(one["host"], f"kill -CONT {pid}")
    assert load.summary["failed"] == 0, load.summary["failures"]


@pytest.mark.parametrize("how", ["power_off", "isolate"])
def test_a_lost_host_costs_no_read(
    how: str,
    inventory: dict[str, Any],
    fault: Fault,
    whole: Callable[[], None],
    traffic: Callable[..., Any],
) -> None:
    last = having(inventory, "registry")
    one = next(one for one in placed(inventory, "catalog") if one["host"] != last[0])
    with traffic() as load:
        watchers = Watchers(inventory, one, HOST + 5, without=[one["host"]])
        since = time.time()
        try:
            fault(action=how, a=one["host"])
            assert watchers.slowest(since) < HOST
            time.sleep(3)
        finally:
            fault(action="power_on" if how == "power_off" else "heal", a=one["host"])
        whole()
    assert load.summary["failed"] == 0, load.summary["failures"]


def test_a_cut_zone_costs_no_read(
    inventory: dict[str, Any], fault: Fault, whole: Callable[[], None], traffic: Callable[..., Any]
) -> None:
    """A zone without a gateway: who holds the address on either side of a cut is another question."""
    hosts = inventory["causeway_hosts"]
    gateways = {hosts[name]["zone"] for name in having(inventory, "gateway")}
    one = next(one for one in placed(inventory, "catalog") if one["zone"] not in gateways)
    inside = [name for name, host in hosts.items() if host["zone"] == one["zone"]]
    with traffic() as load:
        watchers = Watchers(inventory, one, HOST + 5, without=inside)
        since = time.time()
        fault(action="isolate", a=f"zone:{one['zone']}")
        assert watchers.slowest(since) < HOST
        time.sleep(3)
        fault(action="heal")
        whole()
    assert load.summary["failed"] == 0, load.summary["failures"]


def test_traffic_goes_on_without_the_registry(
    inventory: dict[str, Any], ssh: Ssh, whole: Callable[[], None], traffic: Callable[..., Any]
) -> None:
    members = having(inventory, "registry")
    with traffic() as load:
        try:
            for host in members[1:]:
                ssh(host, "systemctl stop etcd")
            time.sleep(15)  # no quorum
            ssh(members[0], "systemctl stop etcd")
            time.sleep(60)  # nothing at all
        finally:
            for host in members:
                ssh(host, "systemctl start --no-block etcd")
        whole()
        time.sleep(5)
    assert load.summary["failed"] == 0, load.summary["failures"]


def test_the_address_moves_when_its_gateway_loses_power(
    inventory: dict[str, Any], ssh: Ssh, fault: Fault, whole: Callable[[], None], traffic: Callable[..., Any]
) -> None:
    address = next(iter(inventory["causeway_regions"].values()))["gateway"]["address"]
    holders = [host for host in having(inventory, "gateway") if f" {address}/" in ssh(host, "ip -4 -o address").stdout]
    assert len(holders) == 1
    with traffic() as load:
        time.sleep(3)
        fault(action="power_off", a=holders[0])
        time.sleep(8)
        fault(action="power_on", a=holders[0])
        time.sleep(5)
    print(json.dumps({"holder": holders[0], "longest_gap": load.summary["longest_gap"]["seconds"]}))
    assert load.summary["longest_gap"]["seconds"] < 5
    now = [host for host in having(inventory, "gateway") if f" {address}/" in ssh(host, "ip -4 -o address").stdout]
    assert len(now) == 1
    assert now != holders
