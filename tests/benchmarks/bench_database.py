"""What a transaction pays for sidecar, mutual TLS and pooler: pgbench as a service connects, and to the leader itself.

    bench_database.py [INVENTORY] [--service orders] [--seconds 10] [--clients 8] [--rounds 3] [--scale 5]

Both sides run pgbench from the same host in turn, round by round, on the same tables: `service` connects to the
sidecar's writer port as an instance of the service does, `direct` to the leader's PostgreSQL over TLS, as poolers do.
The host has an instance and a member that does not lead, if there is one. Two kinds of transactions: TPC-B-like ones
that wait for the synchronous standby, and single reads. Prints the median of the rounds and the ratio. Needs a running
lab.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "drills"))
from ledger import Cluster, instances
from running import Platform

PGBENCH = "/usr/lib/postgresql/17/bin/pgbench"
FOLDER = "/run/causeway-bench"
TABLES = "pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers"
KINDS = {"writes": [], "reads": ["-S"]}
PASSWORD = "import os; print(open(os.environ['PGPASSFILE']).readline().strip().rsplit(':', 1)[1])"


def run(platform: Platform, host: str, command: str, given: str = "", timeout: float = 300) -> str:
    """A shell command on a host; what is secret comes on standard input."""
    config = str(platform.state / "ssh" / "config")
    done = subprocess.run(
        ["ssh", "-F", config, host, command], input=given, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{host}: {done.stderr.strip() or done.stdout.strip()}"
    return done.stdout


def choose(cluster: Cluster, placed: list[dict[str, Any]], leader: str) -> dict[str, Any]:
    """An instance whose host is a member that does not lead, else the leader: others may not connect directly."""
    there = [one for one in placed if one["host"] in cluster.hosts]
    if not there:
        raise SystemExit("no host has both an instance and a member: use molecule/platform/platform.yml or one like it")
    return min(there, key=lambda one: one["host"] == leader)


def bench(
    platform: Platform, host: str, access: dict[str, str], options: argparse.Namespace, kind: str
) -> dict[str, float]:
    """Transactions per second and mean latency in milliseconds."""
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in access.items())
    argv = [PGBENCH, "-n", *KINDS[kind], f"-c{options.clients}", "-j1", f"-T{options.seconds}", "--random-seed=1"]
    said = run(platform, host, f"env {environment} {shlex.join(argv)}")
    rate, latency = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE), re.search(r"latency average = ([\d.]+)", said)
    failed = re.search(r"number of failed transactions: (\d+)", said)
    assert rate, said
    assert latency, said
    return {"rate": float(rate[1]), "latency": float(latency[1]), "failed": float(failed[1] if failed else 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("inventory", nargs="?", default="molecule/platform/platform.yml")
    parser.add_argument("--service", default="orders")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=5, help="of pgbench's tables; 1 is 100,000 accounts")
    options = parser.parse_args()
    platform = Platform(options.inventory)
    cluster = Cluster(platform, options.service)
    cluster.wait_whole()
    leader = cluster.leader()
    known = cluster.known
    one = choose(cluster, instances(platform, options.service), leader)
    host, address = one["host"], next(each["address"] for each in known["members"] if each["host"] == leader)
    index = platform.inventory["causeway_services"][options.service]["index"]
    tls = "/etc/causeway/tls/database/current"
    common = {"PGUSER": cluster.database, "PGDATABASE": cluster.database, "PGPASSFILE": f"{FOLDER}/pgpass"}
    sides = {
        "direct": {
            **common,
            "PGHOST": address,
            "PGPORT": str(known["port"]),
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": f"{tls}/ca.pem",
            "PGSSLCERT": f"{tls}/cert.pem",
            "PGSSLKEY": f"{tls}/key.pem",
        },
        "service": {**common, "PGHOST": f"10.89.{index}.1", "PGPORT": "5432", "PGSSLMODE": "disable"},
    }
    password = run(platform, host, f"podman exec {one['service']}-{one['slot']} python3 -c {shlex.quote(PASSWORD)}")
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        run(platform, host, f"mkdir -m 0700 -p {FOLDER} && umask 077 && cat > {FOLDER}/pgpass", f"*:*:*:*:{password}")
        run(
            platform,
            leader,
            f"runuser -u postgres -- env PGOPTIONS='-c role={cluster.database}_owner' {PGBENCH} -q -i"
            f" -s {options.scale} -h /run/postgresql -p {known['port']} {cluster.database}",
        )
        for _round in range(options.rounds):
            for kind in KINDS:
                for side, access in sides.items():
                    seen.setdefault((kind, side), []).append(bench(platform, host, access, options, kind))
    finally:
        run(platform, host, f"rm -rf {FOLDER}")
        cluster.psql(f"DROP TABLE IF EXISTS {TABLES}")
    print(f"from {host} to {leader}, {options.clients} clients, {options.rounds} rounds of {options.seconds} s")
    result: dict[str, Any] = {}
    for kind in KINDS:
        middle = {
            side: {
                key: statistics.median(each[key] for each in seen[kind, side]) for key in ("rate", "latency", "failed")
            }
            for side in sides
        }
        for side, found in middle.items():
            print(
                f"{kind:7} {side:8} {found['rate']:8.0f} transactions/s  {found['latency']:7.2f} ms"
                f"  failed {found['failed']:.0f}"
            )
        ratio = middle["service"]["rate"] / middle["direct"]["rate"]
        print(f"{kind:7} ratio    {ratio:8.2f} of the rate")
        result[kind] = {**middle, "ratio": round(ratio, 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
