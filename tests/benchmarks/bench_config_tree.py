"""Twenty files by ansible.builtin.template (twenty tasks, and one looped task) against one config_tree task.

Usage: bench_config_tree.py INVENTORY [--hosts PATTERN] [--files 20] [--repeat 1]

All three put the same contents below /tmp/bench on the hosts. Printed are seconds of the whole ansible-playbook run,
connections warm, for the first run (all files new) and again (nothing to do), the controller's CPU seconds in brackets
(they depend less on what else the machine does), and the ratio of the former to config_tree's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
REMOTE = "/tmp/bench"
TEMPLATE = """# {{ ansible_managed }}, file %d
{%% for name in groups['all'] | sort %%}
upstream {{ name }} {{ hostvars[name].ansible_host | default(name) }}:%d;
{%% endfor %%}
listen {{ inventory_hostname }};
"""


class Cost(NamedTuple):
    """Seconds of one run, and of the controller's processors."""

    seconds: float
    cpu: float


def write_templates(folder: Path, count: int) -> list[str]:
    """Templates of a plausible size; their names without the ending."""
    tree = folder / "templates" / "bench"
    tree.mkdir(parents=True)
    names = [f"etc/app{number % 4}/part{number}.conf" for number in range(count)]
    for number, name in enumerate(names):
        path = tree / f"{name}.j2"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEMPLATE % (number, 7000 + number), encoding="utf-8")
    return names


def plays(names: list[str]) -> dict[str, list[dict[str, object]]]:
    """Tasks of each variant."""
    folders = sorted({str(Path(name).parent) for name in names})

    def template(name: str, variant: str) -> dict[str, str]:
        return {"src": f"bench/{name}.j2", "dest": f"{REMOTE}/{variant}/{name}", "mode": "0644"}

    def make_directories(variant: str) -> dict[str, object]:
        return {
            "name": "Make the directories",
            "ansible.builtin.file": {
                "path": f"{REMOTE}/{variant}/{{{{ item }}}}",
                "state": "directory",
                "mode": "0755",
            },
            "loop": folders,
        }

    return {
        "template, a task per file": [
            make_directories("tasks"),
            *[{"name": f"Render {name}", "ansible.builtin.template": template(name, "tasks")} for name in names],
        ],
        "template, looped": [
            make_directories("loop"),
            {"name": "Render", "ansible.builtin.template": template("{{ item }}", "loop"), "loop": names},
        ],
        "config_tree": [
            {
                "name": "Install the tree",
                "causeway.platform.config_tree": {"src": "bench", "dest": f"{REMOTE}/tree", "id": "bench"},
            }
        ],
    }


def play(folder: Path, inventory: str, hosts: str, name: str, tasks: list[dict[str, object]]) -> Cost:
    """Run one play and return its cost; ends the program with Ansible's words if it fails."""
    book = folder / f"{name.replace(' ', '_').replace(',', '')}.yml"
    content = [{"name": name, "hosts": hosts, "gather_facts": False, "become": True, "tasks": tasks}]
    book.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    program = shutil.which("ansible-playbook")
    if program is None:
        sys.exit("ansible-playbook is not on the PATH")
    begin, before = time.monotonic(), os.times()
    done = subprocess.run(
        [program, "-i", inventory, str(book)], env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    seconds, after = time.monotonic() - begin, os.times()
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(seconds, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inventory")
    parser.add_argument("--hosts", default="all", help="host pattern (default: all)")
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    inventory = str(Path(options.inventory).resolve())
    clean = [
        {"name": "Remove what the benchmark made", "ansible.builtin.file": {"path": path, "state": "absent"}}
        for path in (REMOTE, "/var/lib/causeway/config_tree/bench.json")
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        variants = plays(write_templates(folder, options.files))
        best = {name: [Cost(float("inf"), float("inf"))] * 2 for name in variants}
        for _round in range(options.repeat):
            play(folder, inventory, options.hosts, "clean", clean)  # also warms the connections
            for name, tasks in variants.items():
                for again in (0, 1):
                    cost = play(folder, inventory, options.hosts, name, tasks)
                    print(
                        f"  {name}, {'again' if again else 'first'}: {cost.seconds:.1f} s", file=sys.stderr, flush=True
                    )
                    best[name][again] = min(best[name][again], cost)
        play(folder, inventory, options.hosts, "clean", clean)
    print(f"{options.files} files, hosts {options.hosts}, best of {options.repeat}")
    print(f"{'variant':28}{'first, s [CPU]':>18}{'ratio':>7}{'again, s [CPU]':>18}{'ratio':>7}")
    for name, costs in best.items():
        cells = [
            f"{f'{cost.seconds:.1f} [{cost.cpu:.1f}]':>18}{cost.seconds / base.seconds:7.1f}"
            for cost, base in zip(costs, best["config_tree"])
        ]
        print(f"{name:28}{''.join(cells)}")


if __name__ == "__main__":
    main()
