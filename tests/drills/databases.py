"""Drills of databases on a running lab, by hand. Each prints as it goes and exits with 1 if a claim failed.

    databases.py faults      every kind of fault at random moments under a ledger: nothing acknowledged may be lost
    databases.py restore     a ledger with a bad DELETE in the middle, restored to just before it, to a time, to an LSN

The lab must be up and nobody else may break it meanwhile. docs/drills.md tells what each one shows.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import DIGEST, Cluster, Ledger, Log, digest, instance_away_from, instances, judge
from running import ROOT, Drill, Platform, Row, why

TTL, LOOP_WAIT = 20.0, 2.0  # seconds, as role postgresql sets them in Patroni
HOST_LOSS = TTL + LOOP_WAIT + 5.0
BEFORE = (2.0, 2.0 + 2 * LOOP_WAIT)  # seconds of the ledger before a fault: at any moment of Patroni's loop


@dataclass
class Scene:
    """One trial: where everything is when the fault comes."""

    platform: Platform
    cluster: Cluster
    leader: str
    client: str  # host of the ledger's client
    touched: list[str] = field(default_factory=list)
    told: Row = field(default_factory=dict)

    def on(self, host: str, command: str, timeout: float = 60) -> str:
        done = self.platform.ssh(host, command, timeout)
        assert done.returncode == 0, f"{host}: {command}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def lab(self, action: str, **options: Any) -> None:
        name = self.platform.inventory["causeway_lab"]["name"]
        done = self.platform.module("lab_fault", lab=name, action=action, **options)
        assert not done["failed"], done.get("msg")


@dataclass(frozen=True)
class Fault:
    """What is done, how it is undone, and what is claimed of it. ``hold``: seconds that it lasts at least."""

    what: str
    inflict: Callable[[Scene], None]
    mend: Callable[[Scene], None] = lambda scene: None
    hold: float = 0.0
    bound: float | None = None  # seconds of outage
    quiet: bool = False  # without an error at the client


def switchover(scene: Scene) -> None:
    done = scene.platform.playbook("database_switchover", database_cluster=scene.cluster.name)
    assert done.returncode == 0, why(done.stdout)


def kill_postmaster(scene: Scene) -> None:
    scene.on(scene.leader, f"kill -9 $(head -1 {scene.cluster.data}/postmaster.pid)")


def kill_both(scene: Scene) -> None:
    """Patroni first, so that it cannot see the other one die."""
    main = f"$(systemctl show --property=MainPID --value {scene.cluster.unit})"
    scene.on(scene.leader, f"kill -9 {main} $(head -1 {scene.cluster.data}/postmaster.pid)")


def stop(scene: Scene) -> None:
    scene.on(scene.leader, f"systemctl kill --kill-whom=all --signal=STOP {scene.cluster.unit}")


def cont(scene: Scene) -> None:
    scene.on(scene.leader, f"systemctl kill --kill-whom=all --signal=CONT {scene.cluster.unit}")


def power_off(scene: Scene) -> None:
    scene.lab("power_off", a=scene.leader)


def power_on(scene: Scene) -> None:
    scene.lab("power_on", a=scene.leader)


def cut(scene: Scene) -> None:
    """From everybody, but from the client's host if nothing else runs there that keeps the cluster: a primary that has
    lost its cluster and not its clients must not acknowledge anything either.
    """
    platform = scene.platform
    voices = {*scene.cluster.hosts, *platform.having("registry")}
    if scene.client in voices:
        scene.lab("isolate", a=scene.leader)
        scene.told["cut_from"] = "everybody"
        return
    scene.told["cut_from"] = "members and registry"
    for host in sorted(voices - {scene.leader}):
        scene.lab("cut", a=scene.leader, b=host)


def heal(scene: Scene) -> None:
    scene.lab("heal")


def stop_etcd(scene: Scene, hosts: Sequence[str]) -> None:
    for host in hosts:
        scene.on(host, "systemctl kill --signal=KILL etcd; systemctl stop etcd")
        scene.touched.append(host)


def start_etcd(scene: Scene) -> None:
    for host in scene.touched:
        scene.on(host, "systemctl start --no-block etcd")


def lose_etcd_leader(scene: Scene) -> None:
    leader = scene.platform.registry("registry_info", gather=["cluster"])["leader"]
    scene.told["etcd"] = leader
    stop_etcd(scene, [leader])


def lose_etcd_quorum(scene: Scene) -> None:
    members = scene.platform.having("registry")
    stop_etcd(scene, random.sample(members, len(members) // 2 + 1))
    scene.told["etcd"] = list(scene.touched)


def restart_pooler(scene: Scene) -> None:
    scene.on(scene.leader, "systemctl restart pgbouncer")


FAULTS = [
    Fault("switchover", switchover, bound=3.0, quiet=True),
    Fault("postmaster-kill", kill_postmaster, bound=8.0),
    Fault("patroni-and-postmaster-kill", kill_both, bound=HOST_LOSS),
    Fault("stop", stop, cont, hold=5.0, bound=HOST_LOSS),
    Fault("power-off", power_off, power_on, hold=5.0, bound=HOST_LOSS),
    Fault("cut", cut, heal, hold=5.0, bound=HOST_LOSS),
    Fault("etcd-leader-loss", lose_etcd_leader, start_etcd, hold=TTL + 5),
    Fault("etcd-quorum-loss", lose_etcd_quorum, start_etcd, hold=TTL + 10),
    Fault("pooler-restart", restart_pooler),
]


def trial(cluster: Cluster, fault: Fault, folder: Path, chance: random.Random, writers: int = 4) -> Row:
    """One fault under one ledger; afterwards all members are back and stream. Returns what it cost."""
    platform = cluster.platform
    cluster.wait_whole()
    cluster.prepare()
    leader = cluster.leader()
    instance = instance_away_from(platform, cluster.known["service"], leader)
    scene = Scene(platform, cluster, leader, instance["host"])
    run = f"{fault.what}-{time.time():.0f}"
    with Ledger(platform, instance, run, folder, writers=writers) as ledger:
        ledger.wait_acknowledged()
        time.sleep(chance.uniform(*BEFORE))
        since = time.time()
        try:
            fault.inflict(scene)
            time.sleep(fault.hold)
            ledger.wait_acknowledged()
        finally:
            fault.mend(scene)
        recovery = cluster.wait_whole(300)
        ledger.wait_acknowledged()
    found = judge(ledger.log, cluster.ids(run), since)
    cluster.wait_replayed()
    missing = {host: len(ledger.log.acknowledged - cluster.ids(run, host)) for host in cluster.hosts}
    return {
        "what": fault.what,
        "leader": leader,
        "leader_after": cluster.leader(),
        "client": scene.client,
        **scene.told,
        **found,
        "missing_on_members": {host: count for host, count in missing.items() if count},
        "members_back_after": recovery,
    }


def claims_of(fault: Fault, row: Row, slack: float = 1.0) -> dict[str, bool]:
    """What is claimed of a trial, and whether it held. ``slack`` widens the bounds where the processors are shared."""
    claims = {
        "nothing acknowledged was lost": row["lost"] == 0,
        "every member has what was acknowledged": not row["missing_on_members"],
    }
    if fault.bound is not None:
        claims[f"writes were away less than {fault.bound * slack:g} s"] = row["outage"] < fault.bound * slack
    if fault.quiet:
        claims["no error at the client"] = row["errors"] == 0
    return claims


def mend_all(cluster: Cluster) -> None:
    """Undo whatever a broken trial may have left."""
    platform = cluster.platform
    scene = Scene(platform, cluster, "", "")
    scene.lab("heal")
    for host in sorted({*cluster.hosts, *platform.having("registry")}):
        scene.lab("power_on", a=host)
        platform.ssh(host, f"systemctl kill --kill-whom=all --signal=CONT {cluster.unit}")
    for host in platform.having("registry"):
        platform.ssh(host, "systemctl start --no-block etcd")


def faults(drill: Drill) -> None:
    """All trials of each kind, one kind after the other."""
    cluster = Cluster(drill.platform, drill.options.cluster)
    chosen = [one for one in FAULTS if not drill.options.case or one.what in drill.options.case]
    for fault in chosen:
        for number in range(1, drill.options.trials + 1):
            chance = random.Random(f"{drill.options.seed}/{fault.what}/{number}")
            try:
                row = trial(cluster, fault, drill.folder, chance, drill.options.writers)
                drill.note({**row, "trial": number}, claims_of(fault, row))
            except Exception as error:  # the next trial is still worth its time
                text = f"{type(error).__name__}: {error}"[:1500]
                drill.note({"what": fault.what, "trial": number, "error": text}, {"the trial ran": False})
                mend_all(cluster)
    for line in summary(drill.rows, [one.what for one in chosen]):
        print(line)


def summary(rows: Sequence[Row], kinds: Sequence[str]) -> list[str]:
    """A line per kind: the worst of its trials."""
    lines = []
    for kind in kinds:
        found = [row for row in rows if row["what"] == kind and "outage" in row]
        if not found:
            lines.append(f"{kind}: no trial ran")
            continue
        lines.append(
            f"{kind}: {len(found)} trials, {sum(row['acknowledged'] for row in found)} acknowledged, "
            f"{sum(row['lost'] for row in found)} lost, {sum(row['unsure'] for row in found)} there without an "
            f"acknowledgement, writes away {max(row['outage'] for row in found):.2f} s at most, "
            f"{max(row['errors'] for row in found)} errors at most, "
            f"all members back {max(row['members_back_after'] for row in found):.0f} s later at most"
        )
    return lines


# --- restore ----------------------------------------------------------------------------------------------------------

# Nobody writes into the ledger while its state, the position in the log and the time are read: all three say the same.
MARK = """
    BEGIN;
    LOCK TABLE drill_ledger IN SHARE ROW EXCLUSIVE MODE;
    SELECT pg_sleep(0.3);
    SELECT json_build_object(
        'ids', (SELECT coalesce(json_agg(id ORDER BY id), '[]') FROM drill_ledger WHERE run = '{run}'),
        'lsn', pg_current_wal_insert_lsn(), 'time', clock_timestamp(), 'at', extract(epoch FROM clock_timestamp())
        {more});
    SELECT pg_sleep(0.3);
    {then}
    COMMIT
"""
BAD = "DELETE FROM drill_ledger WHERE run = '{run}' AND id % 3 = 0;"


def mark(cluster: Cluster, run: str, bad: bool = False) -> Row:
    """The ledger at one moment; with ``bad`` a part of it is deleted there, and ``xid`` is the transaction's."""
    more, then = (", 'xid', pg_current_xact_id()::text", BAD.format(run=run)) if bad else ("", "")
    said = cluster.psql(MARK.format(run=run, more=more, then=then))
    found: Row = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    found["digest"] = digest(found["ids"])
    return found


def agrees(log: Log, one: Row) -> bool:
    """Whether a mark has all that was acknowledged before it, and nothing that was never written."""
    before = {identifier for at, identifier in log.acks if at < one["at"] - 0.5}
    return before <= set(one["ids"]) and bool(before)


def restored(drill: Drill, cluster: Cluster, **variables: Any) -> tuple[Row, float]:
    """Run database_restore; its report and the seconds it took. Raises AssertionError when it fails."""
    begun = time.monotonic()
    done = drill.platform.playbook(
        "database_restore",
        timeout=3600,
        database_cluster=cluster.name,
        database_report_dir=str(drill.folder),
        **variables,
    )
    assert done.returncode == 0, why(done.stdout)
    report: Row = json.loads((drill.folder / f"database-restore-{cluster.name}.json").read_text())
    return report, round(time.monotonic() - begun, 1)


def backed_up(drill: Drill, cluster: Cluster, kind: str) -> Row:
    """Run database_backup; its report. Raises AssertionError when it fails."""
    done = drill.platform.playbook(
        "database_backup",
        timeout=3600,
        database_cluster=cluster.name,
        backup_type=kind,
        database_report_dir=str(drill.folder),
    )
    assert done.returncode == 0, why(done.stdout)
    report: Row = json.loads((drill.folder / f"database-backup-{cluster.name}.json").read_text())
    return report


def beside(drill: Drill, cluster: Cluster, what: str, wanted: dict[str, str], **variables: Any) -> None:
    """A copy on the backup host at a moment: its ledgers are those of the marks, by hash. ``wanted``: hash by run."""
    report, seconds = restored(drill, cluster, restore_beside=True, **variables)
    host = drill.platform.having("backup")[0]
    try:
        found = {}
        for run in wanted:
            sql = shlex.quote(DIGEST.format(run=run))
            done = drill.platform.ssh(host, f"{report['connect']} -d {cluster.database} -XqAt -c {sql}")
            assert done.returncode == 0, done.stderr
            found[run] = done.stdout.strip()
    finally:
        restored(drill, cluster, restore_beside=True, restore_state="absent")
    row = {"what": what, "seconds": seconds, "recovered": report.get("recovered"), "backup": report.get("backup")}
    drill.note({**row, "digests": found}, {"contents equal the ledger": found == wanted})


def in_place(drill: Drill, cluster: Cluster, what: str, wanted: dict[str, str], **variables: Any) -> None:
    """The cluster itself back to a moment: every member has the ledgers of the marks, and a new backup was made."""
    before = max(int(one.get("TL") or 0) for one in cluster.members())
    report, seconds = restored(drill, cluster, restore_confirm=cluster.name, **variables)
    cluster.wait_whole(300)
    found = {host: {run: cluster.psql(DIGEST.format(run=run), host) for run in wanted} for host in cluster.hosts}
    after = max(int(one.get("TL") or 0) for one in cluster.members())
    row = {"what": what, "seconds": seconds, "recovered": report.get("recovered"), "timelines": [before, after]}
    claims = {
        "contents of every member equal the ledger": all(one == wanted for one in found.values()),
        "it is on a timeline of its own": after > before,
        "a new backup was made": bool(report.get("new_backup")),
    }
    drill.note({**row, "digests": found, "new_backup": report.get("new_backup")}, claims)


def restore(drill: Drill) -> None:
    """A bad DELETE in the middle of a ledger, and the ways back before it; then everything once more."""
    cluster = Cluster(drill.platform, drill.options.cluster)
    cluster.wait_whole()
    cluster.prepare()
    backed_up(drill, cluster, "incremental")
    instance = instances(drill.platform, cluster.known["service"])[0]
    third, stamp = drill.options.minutes * 20, int(time.time())
    first, second = f"restore-{stamp}-1", f"restore-{stamp}-2"
    with Ledger(drill.platform, instance, first, drill.folder, writers=drill.options.writers) as ledger:
        time.sleep(third)
        early = mark(cluster, first)
        time.sleep(third)
        bad = mark(cluster, first, bad=True)
        time.sleep(third)
        late = mark(cluster, first)
    deleted = len(set(bad["ids"]) - set(late["ids"]))
    claims = {
        "the marks agree with the ledger": agrees(ledger.log, early) and agrees(ledger.log, bad),
        "the DELETE did harm": deleted > 0,
        "no error at the client": not ledger.log.errors,
    }
    row = {"what": "ledger", "acknowledged": len(ledger.log.acks), "deleted": deleted}
    drill.note({**row, **{name: one["digest"] for name, one in (("early", early), ("bad", bad))}}, claims)

    cluster.archive()
    beside(drill, cluster, "beside, to a time", {first: early["digest"]}, restore_time=early["time"])
    beside(drill, cluster, "beside, to an LSN", {first: early["digest"]}, restore_lsn=early["lsn"])
    back = {first: bad["digest"]}
    in_place(drill, cluster, "in place, just before the DELETE", back, restore_xid=bad["xid"], restore_before=True)

    with Ledger(drill.platform, instance, second, drill.folder, writers=drill.options.writers) as ledger:
        time.sleep(min(third, 20))
        again = mark(cluster, second)
        time.sleep(5)
    made = backed_up(drill, cluster, "incremental")
    drill.note(
        {"what": "a backup after the restore", "backup": made.get("backup")},
        {"one was made": bool(made.get("backup")), "the mark agrees with the ledger": agrees(ledger.log, again)},
    )
    both = {**back, second: again["digest"]}
    beside(drill, cluster, "again beside, to a time", both, restore_time=again["time"])
    in_place(drill, cluster, "again in place, to an LSN", both, restore_lsn=again["lsn"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lab = str(ROOT / "inventories" / "lab" / "platform.yml")
    parser.add_argument("--inventory", default=lab, help="platform.yml of the lab; default: %(default)s")
    parser.add_argument("--cluster", default="orders", help="default: %(default)s")
    parser.add_argument("--writers", type=int, default=4, help="connections of the ledger; default: %(default)s")
    parser.add_argument("--out", default="", help="file for the results, JSON, written after every trial")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("faults", help="nothing acknowledged is lost, whatever breaks")
    one.add_argument("--trials", type=int, default=10, help="of each kind; default: %(default)s")
    one.add_argument("--case", action="append", choices=[fault.what for fault in FAULTS])
    one.add_argument("--seed", type=int, default=1, help="of the moments of the faults")
    one.set_defaults(run=faults)
    one = verbs.add_parser("restore", help="point-in-time recovery around a bad DELETE")
    one.add_argument("--minutes", type=float, default=5.0, help="of the ledger; default: %(default)g")
    one.set_defaults(run=restore)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    drill = Drill(options)
    print(f"logs: {drill.folder}", flush=True)
    options.run(drill)
    for broken in drill.broken:
        print(f"BROKEN {broken}")
    print(f"{len(drill.rows)} runs, {len(drill.broken)} claims broken")
    return 1 if drill.broken else 0


if __name__ == "__main__":
    sys.exit(main())
