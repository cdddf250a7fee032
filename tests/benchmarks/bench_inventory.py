"""How long a description takes to become an inventory: 1,000 hosts and 100 services in under 3 s.

Run from the repository's root: python tests/benchmarks/bench_inventory.py [--hosts N] [--services N] [--repeat N]
The budget holds for the slowest in-process run: reading, checking, deriving and filling Ansible's inventory. The work
is computing in one thread, so it is measured in CPU seconds, which other processes disturb less; elapsed time is shown
too.
"ansible-inventory --graph" is shown for comparison; it also starts Ansible. Exit code 1 if over the budget.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".cache" / "collections"))

BUDGET = 3.0


def write_description(folder: Path, hosts: int, services: int) -> Path:
    """Two regions of three zones; every tenth host a gateway, five registry hosts, the others run services."""
    regions: dict = {}
    for number in range(hosts):
        region, zone = ("north", "south")[number % 2], "abc"[number // 2 % 3]
        entry = regions.setdefault(region, {"gateway": {"address": f"10.250.0.{1 + number % 2}"}, "zones": {}})
        components = ["registry", "trust"][: 2 if number == 0 else 1] if number < 5 else ["services"]
        if number >= 5 and number % 10 in (8, 9):
            components = ["gateway"]
        members = entry["zones"].setdefault(f"{region}-{zone}", {"hosts": {}})["hosts"]
        members[f"host{number}"] = {"address": f"10.{number >> 8}.{number & 255}.1", "components": components}
    platform = {"plugin": "causeway.platform.topology", "platform": "bench", "domain": "bench.internal"}
    (folder / "services").mkdir()
    for number in range(services):
        service = {
            "name": f"service{number}",
            "version": "1.0.0",
            "image": {"archive": "images/{service}-{version}.tar"},
            "port": 8080,
            "mesh_port": 7000 + 10 * number,
            "instances": {"min": 6, "max": 20, "per_host": 2},
            "routes": [{"prefix": f"/service{number}", "timeout": "2s", "retries": {"attempts": 3}}],
            "calls": [{"service": f"service{(number + step) % services}", "timeout": "1s"} for step in (1, 2, 3)],
            "environment": {"LOG_LEVEL": "info", "WORKERS": 4},
        }
        (folder / "services" / f"service{number}.yml").write_text(yaml.safe_dump(service, sort_keys=False))
    path = folder / "platform.yml"
    path.write_text(yaml.safe_dump({**platform, "regions": regions}, sort_keys=False))
    return path


def timed_parse(path: Path) -> tuple[float, float, float, int]:
    """CPU seconds to read and check, CPU and elapsed seconds for all of it, and the number of hosts."""
    from ansible.inventory.data import InventoryData
    from ansible.parsing.dataloader import DataLoader

    from ansible_collections.causeway.platform.plugins.inventory.topology import InventoryModule
    from ansible_collections.causeway.platform.plugins.module_utils.topology.description import read_description

    start = time.process_time()
    read_description(path)
    read = time.process_time() - start
    inventory, plugin = InventoryData(), InventoryModule()
    plugin._load_name = "causeway.platform.topology"
    start, clock = time.process_time(), time.perf_counter()
    plugin.parse(inventory, DataLoader(), str(path))
    inventory.reconcile_inventory()
    return read, time.process_time() - start, time.perf_counter() - clock, len(inventory.hosts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_description(Path(folder), options.hosts, options.services)
        size = sum(item.stat().st_size for item in Path(folder).rglob("*.yml"))
        runs = [timed_parse(path) for _run in range(options.repeat)]
        reads, totals, clocks = (sorted(values) for values in list(zip(*runs))[:3])
        start = time.perf_counter()
        command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(path), "--graph"]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        graph = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        command_time = time.perf_counter() - start
    middle = options.repeat // 2
    load = os.getloadavg()[0]
    print(f"{runs[0][3]} hosts, {options.services} services, {size >> 10} KiB, {len(runs)} runs")
    print(f"{os.cpu_count()} cores, load {load:.1f}")
    print(f"read, check, derive:  {reads[middle]:.2f} s CPU median, {reads[-1]:.2f} s slowest")
    print(f"inventory, all of it: {totals[middle]:.2f} s CPU median, {totals[-1]:.2f} s slowest (budget {BUDGET:g} s)")
    print(f"                      {clocks[0]:.2f} to {clocks[-1]:.2f} s elapsed")
    print(f"ansible-inventory --graph: {command_time:.2f} s elapsed, {len(graph.stdout.splitlines())} lines")
    return int(totals[-1] > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
