"""What a request pays for gateway, mutual TLS and sidecar: the same service bare and through the platform, in one run.

    bench_gateway.py [INVENTORY] [--seconds 10] [--connections 16] [--rounds 3]

The bare service is the catalog's own image, run by podman on this machine's network; the other side is the lab's
gateway address. Both get the same load from wrk (Debian) over kept-alive HTTP/1.1 connections, in turn, round by round.
Prints requests a second and latency of each side (median of the rounds) and their ratio. Needs a running lab.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PORT = 18080
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def description(inventory: str) -> dict[str, Any]:
    """The variables of the first host."""
    listed = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-inventory"), "-i", inventory, "--list", "--export"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # Texts that may look like templates are marked.
    known: dict[str, Any] = json.loads(listed.stdout, object_hook=lambda one: one.get("__ansible_unsafe", one))
    return known["all"]["vars"]


def wrk(url: str, name: str, seconds: int, connections: int) -> dict[str, float]:
    """Requests per second, p50 and p99 in milliseconds, and answers that were no success."""
    done = subprocess.run(
        ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", "-H", f"Host: {name}", url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    def milliseconds(percent: str) -> float:
        found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", done)
        assert found, done
        return float(found[1]) * UNITS[found[2]]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    assert rate, done
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done)
    return {
        "rate": float(rate[1]),
        "p50": milliseconds("50"),
        "p99": milliseconds("99"),
        "bad": float(bad[1] if bad else 0),
    }


def podman(*arguments: str) -> str:
    state = ROOT / ".cache" / "podman"
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(state / "storage.conf"),
        "CONTAINERS_CONF": str(state / "containers.conf"),
    }
    root = [] if os.geteuid() == 0 else ["sudo", "--preserve-env"]
    done = subprocess.run([*root, "podman", *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("inventory", nargs="?", default="inventories/lab/platform.yml")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    known = description(options.inventory)
    gateway = next(iter(known["causeway_regions"].values()))["gateway"]
    image = known["causeway_services"]["catalog"]["image"]["reference"].format(version="1.0.0", service="catalog")
    container = podman(
        *("run", "--rm", "--detach", "--pull=never", "--network=host"),
        # Podman's default lies above what some machines allow.
        *("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"),
        *("--env", f"PORT={PORT}", "--env", "SERVICE=catalog", "--env", "VERSION=1.0.0", "--env", "INSTANCE=bare"),
        image,
    )
    sides = {
        "bare": (f"http://127.0.0.1:{PORT}/catalog/1", "catalog"),
        "platform": (
            f"https://{gateway['address']}:{gateway['port']}/catalog/1",
            f"gateway.{known['causeway_domain']}",
        ),
    }
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    try:
        for _attempt in range(50):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        for _round in range(options.rounds):
            for side, (url, name) in sides.items():
                seen[side].append(wrk(url, name, options.seconds, options.connections))
    finally:
        podman("kill", container)
    median = {
        side: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} for side, rounds in seen.items()
    }
    for side, one in median.items():
        print(
            f"{side:9} {one['rate']:8.0f} requests/s  p50 {one['p50']:7.2f} ms  p99 {one['p99']:7.2f} ms"
            f"  not 2xx {one['bad']:.0f}"
        )
    bare, platform = median["bare"], median["platform"]
    print(
        f"ratio     {platform['rate'] / bare['rate']:8.2f} of the rate, p99 times {platform['p99'] / bare['p99']:.1f}"
    )


if __name__ == "__main__":
    main()
