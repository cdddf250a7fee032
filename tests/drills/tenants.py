"""Drills of tenants on a running lab, by hand. Each prints as it goes and exits with 1 if a claim failed.

    tenants.py move     a tenant with a million rows moves to another shard and back under a ledger: nothing may be lost
    tenants.py plan     one more shard: as many tenants would move as must, and only to it

The lab must be up, of a service with two shards or more, and nobody else may break it meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from ledger import DIGEST, Cluster, Ledger, digest, instances, judge
from running import ROOT, Drill, Row, why

BALLAST = """
CREATE TABLE IF NOT EXISTS drill_ballast (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL, customer text NOT NULL,
    amount numeric(12,2), note text);
ALTER TABLE drill_ballast OWNER TO {owner};
GRANT SELECT, INSERT, UPDATE, DELETE ON drill_ballast TO {role};
INSERT INTO drill_ballast (at, customer, amount, note)
  SELECT timestamptz '2026-01-01' + n * interval '1 second', 'customer ' || n % 5000, n % 100000 / 7.0, md5(n::text)
  FROM generate_series((SELECT count(*) + 1 FROM drill_ballast), {rows}) n;
CREATE TABLE IF NOT EXISTS drill_ledger (
    run text NOT NULL, id bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (run, id));
ALTER TABLE drill_ledger OWNER TO {owner};
GRANT SELECT, INSERT, DELETE ON drill_ledger TO {role};
"""


class Tenant:
    """A tenant as an operator sees it."""

    def __init__(self, drill: Drill) -> None:
        options = drill.options
        self.platform, self.service, self.name = drill.platform, options.service, options.tenant
        clusters = self.platform.inventory["causeway_databases"]
        self.sharding: Row = clusters[self.service]["sharding"]
        self.role: str = clusters[self.service]["role"]
        self.database: str = self.sharding["tenants"][self.name]["database"]
        self.clusters = {
            shard: Cluster(self.platform, one["cluster"]) for shard, one in self.sharding["shards"].items()
        }

    def shard(self) -> str:
        """Where the registry says that it is."""
        found = self.platform.registry("registry_tenants", service=self.service)
        return str(found["tenants"][self.name]["shard"])

    def psql(self, sql: str, timeout: float = 300) -> str:
        """SQL as superuser where the tenant is."""
        return self.clusters[self.shard()].psql(sql, database=self.database, timeout=timeout)


def move(drill: Drill) -> None:
    """A tenant goes from shard to shard under load."""
    options = drill.options
    tenant = Tenant(drill)
    tenant.psql(BALLAST.format(owner=f"{tenant.role}_owner", role=tenant.role, rows=options.rows))
    for number in range(options.moves):
        source = tenant.shard()
        target = next(shard for shard in sorted(tenant.clusters) if shard != source)
        run = f"move-{number}-{int(time.time())}"
        writer = instances(drill.platform, options.service)[0]
        with Ledger(
            drill.platform, writer, run, drill.folder, writers=4, interval=0.02, limit=60, database=tenant.database
        ) as ledger:
            ledger.wait_acknowledged(50)
            began = time.time()
            done = drill.platform.playbook(
                "tenant_move",
                timeout=1800,
                database_cluster=options.service,
                tenant=tenant.name,
                tenant_shard=target,
                database_report_dir=str(drill.folder),
            )
            ledger.wait_acknowledged(50)
        path = drill.folder / f"tenant-move-{options.service}-{tenant.name}.json"
        report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        there = {int(line) for line in tenant.psql(f"SELECT id FROM drill_ledger WHERE run = '{run}'").splitlines()}
        row = {
            "what": f"{source} -> {tenant.shard()}",
            **judge(ledger.log, there, began),
            **{
                key: report.get(key)
                for key in ("outcome", "rows", "bytes", "checksum", "copy_seconds", "pause", "times")
            },
            "ballast": int(tenant.psql("SELECT count(*) FROM drill_ballast")),
            "hash_equal": tenant.psql(DIGEST.format(run=run)) == digest(there),
        }
        if done.returncode:
            row["why"] = why(done.stdout)
        drill.note(
            row,
            {
                "the move succeeds": done.returncode == 0 and tenant.shard() == target,
                "nothing acknowledged is lost": row["lost"] == 0,
                "no client sees an error": row["errors"] == 0,
                "all rows are there": row["ballast"] >= options.rows,
            },
        )
        drill.platform.playbook(
            "tenant_purge", database_cluster=options.service, tenant=tenant.name, tenant_confirm=tenant.name
        )


def plan(drill: Drill) -> None:
    """One more shard: who would move."""
    sys.path.insert(0, str(ROOT / ".cache" / "collections"))
    from ansible_collections.causeway.platform.plugins.module_utils import sharding

    options = drill.options
    own = Tenant(drill).sharding
    places = drill.platform.registry("registry_tenants", service=options.service)["tenants"]
    here = {name: str(place["shard"]) for name, place in places.items() if name in own["tenants"]}
    before = [sharding.Shard(name, one["weight"], one["region"]) for name, one in own["shards"].items()]
    after = [*before, sharding.Shard("one-more", 1.0)]
    pins = {name: one["pin"] for name, one in own["tenants"].items() if one["pin"]}
    found = sharding.plan(here, after, own["by"], pins=pins, before=before)
    wanted = [name for name, shard in found["map"].items() if shard == "one-more"]
    moves = found["moves"]
    drill.note(
        {
            "what": f"{len(before)} -> {len(after)} shards",
            "tenants": len(here),
            "moves": len(moves),
            "share": found["share"],
            "minimum": found["minimum"],
        },
        {
            "only to the new shard": {one["to"] for one in moves} <= {"one-more"},
            "all that belong there, and nobody else": sorted(one["tenant"] for one in moves) == sorted(wanted),
        },
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inventory", default=str(ROOT / "molecule/database/platform.yml"))
    parser.add_argument("--service", default="orders")
    parser.add_argument("--out", default="", help="file for the rows as JSON")
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("move")
    one.add_argument("--tenant", required=True)
    one.add_argument("--rows", type=int, default=1_000_000)
    one.add_argument("--moves", type=int, default=2)
    one.set_defaults(run=move)
    two = kinds.add_parser("plan")
    two.add_argument("--tenant", required=True)
    two.set_defaults(run=plan)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    drill = Drill(parse(arguments))
    print(f"logs: {drill.folder}", flush=True)
    drill.options.run(drill)
    for broken in drill.broken:
        print(f"BROKEN {broken}")
    print(f"{len(drill.rows)} runs, {len(drill.broken)} claims broken")
    return 1 if drill.broken else 0


if __name__ == "__main__":
    sys.exit(main())
