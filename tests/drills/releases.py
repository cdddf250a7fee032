"""Drills of releases on a running lab, by hand. Each prints as it goes and exits with 1 if a claim failed.

    releases.py clean        every kind of release again and again under traffic of every kind: nothing may fail
    releases.py judged       a bad version comes in as a canary over a base: it must go back by itself
    releases.py transitions  the controller is killed at every change of state: the next run finishes or undoes
    releases.py pause        pause, resume, promote and abort of a canary that shifts
    releases.py blind        nobody sends requests, or Prometheus goes away: nothing is promoted

The lab must be up (make demo) and nobody else may release on it meanwhile. docs/drills.md tells what each one shows.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from running import (
    ENDED,
    ROOT,
    Drill,
    Row,
    Traffic,
    assert_recorded,
    live,
    other,
    said_last,
    traffic_row,
)

# Every change of a release's state, in order, by the task that records it.
TRANSITIONS = (
    "Plan | Begin the release's record",
    "Record that the candidates are prepared",
    "Shift | Record that the candidates are tested",
    "Shift | Record that traffic begins to move",
    "Check | Record the step",
    "Check | Record the verdict",
    "Bake | Record the promotion",
    "Return | Record that the release is live",
)
LOCK = 45  # seconds that a dead controller's lock lives; a step of the release must renew it in less
# name: base, candidate, does it have to go back
CASES = {
    "errors-1-2": ("2.0.0-errors1", "2.0.1-errors2", True),
    "errors-0.1-0.4": ("2.1.0-errors0.1", "2.1.1-errors0.4", True),
    "latency-x2": ("2.2.0-tail1", "2.2.1-tail2", True),
    "sales-80": ("2.3.0-sales100", "2.3.1-sales80", True),
    "same": ("2.0.0-errors1", "2.0.2-errors1", False),
}
SELECTOR = '{service="$service", pool="$pool"}[$window]'
METRICS = [
    {
        "name": "errors",
        "kind": "errors",
        "query": "",
        "worse": "higher",
        "margin": 0.0,
        "quantile": 0.99,
        "limit": None,
    },
    {
        "name": "latency",
        "kind": "latency",
        "query": "",
        "worse": "higher",
        "margin": 0.2,
        "quantile": 0.99,
        "limit": None,
    },
    {
        "name": "sales",
        "kind": "business",
        "query": f"sum(rate(demo_sales_total{SELECTOR})) / sum(rate(demo_visits_total{SELECTOR}))",
        "worse": "lower",
        "margin": 0.05,
        "quantile": 0.99,
        "limit": None,
    },
]


def seconds_between(start: str, end: str) -> float:
    """Of two times as the registry writes them."""
    first, last = (datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (start, end))
    return round((last - first).total_seconds(), 1)


def slowest_way_back(report: Row) -> float:
    """Seconds until the last proxy had given all traffic to the old pool."""
    return max((float(one["after_seconds"]) for one in report["back"].values()), default=-1.0)


# --- clean ------------------------------------------------------------------------------------------------------------


def clean(drill: Drill) -> None:
    """Runs of each kind, one after another; every run has its own traffic and its own line."""
    kinds = drill.options.kind or ["rolling", "canary", "blue_green", "way_back"]
    for number in range(1, drill.options.runs + 1):
        for kind in kinds:
            service = "catalog" if kind == "canary" else "orders"
            before = drill.only(service)
            wanted = other({before})
            begun = time.monotonic()
            row: Row = {"what": kind, "run": number, "service": service, "version": wanted}
            with drill.load() as load:
                if kind == "way_back":
                    row["way_back"], code, said = back_within_window(drill, service, wanted)
                else:
                    window = {} if kind == "rolling" else {"release_window": 5}
                    done = drill.platform.playbook(
                        f"release_{kind}", timeout=1800, **drill.variables(service, wanted, **window)
                    )
                    code, said = done.returncode, done.stdout
            row.update(seconds=round(time.monotonic() - begun, 1), **traffic_row(load))
            if code:
                row["said"] = said_last(said)
            claims = {"no request failed": load.summary["failed"] == 0, "the verb succeeded": code == 0}
            if kind == "way_back":
                claims["back at every proxy in under a second"] = 0 <= row["way_back"] < 1
                claims["the old version alone is live"] = drill.settled(service, before)
            elif kind != "rolling":
                claims["the new version alone is live"] = drill.settled(service, wanted)
            drill.note(row, claims)
    for kind in kinds:
        rows = [row for row in drill.rows if row["what"] == kind]
        back = max((row.get("way_back", -1.0) for row in rows), default=-1.0)
        print(
            f"{kind}: {len(rows)} runs, {sum(row['sent'] for row in rows)} sent, {sum(row['failed'] for row in rows)} "
            f"failed, {max(row['seconds'] for row in rows):g} s the longest"
            + (f", back at every proxy in {back:.3f} s at most" if back >= 0 else "")
        )


def back_within_window(drill: Drill, service: str, wanted: str) -> tuple[float, int, str]:
    """A switch, and the way back while the old pool is warm: seconds at the slowest proxy, and how release_rollback
    ended. The release itself must end as rolled back.
    """
    controller = drill.start("release_blue_green", **drill.variables(service, wanted, release_window=600))
    controller.wait_for("Bake | Note the time", timeout=900)
    asked = drill.platform.playbook("release_rollback", timeout=900, release_service=service)
    code, said = controller.wait(900)
    report = drill.report(service)
    gone_back = code != 0 and report["state"] in ("rolled back", "aborted")
    return slowest_way_back(report), asked.returncode or int(not gone_back), asked.stdout + said


# --- judged -----------------------------------------------------------------------------------------------------------


def judged(drill: Drill) -> None:
    """Each case: the base goes live the rolling way, then the other version comes in as a canary over it."""
    options, platform = drill.options, drill.platform
    names = options.case or list(CASES)
    wanted = sorted({version for name in names for version in CASES[name][:2]})
    built = platform.playbook("images_build", timeout=1800, images_build_versions=wanted)
    if built.returncode:
        raise SystemExit(f"the images could not be built: {said_last(built.stdout)}")
    service = "catalog"
    services = drill.services(
        service,
        canary={
            **platform.inventory["causeway_services"][service]["release"]["canary"],
            "baseline": options.baseline,
            "steps": [{"weight": options.weight, "duration": float(options.hold)}],
        },
        analysis={"interval": float(options.interval), "alpha": 0.05, "min_requests": 100, "metrics": METRICS},
    )
    for name in names:
        base, version, bad = CASES[name]
        for number in range(1, options.runs + 1):
            if live(platform.known(service)) != {base}:
                done = platform.playbook("release_rolling", timeout=1800, **drill.variables(service, base))
                if done.returncode:
                    raise SystemExit(f"{base} could not be released: {said_last(done.stdout)}")
            # Slow answers and uploads are more than one in a hundred: they would be the p99 of both versions.
            with drill.load(mixed=False) as load:
                time.sleep(10)  # Prometheus has seen both sides of every counter before it is asked
                done = platform.playbook(
                    "release_canary",
                    timeout=int(options.hold) * 4 + 1800,
                    **drill.variables(service, version, causeway_services=services, release_window=0),
                )
            drill.note(*verdict(drill, name, number, version, bad, load, done.returncode))


def verdict(
    drill: Drill, name: str, number: int, version: str, bad: bool, load: Traffic, code: int
) -> tuple[Row, dict[str, bool]]:
    """What a case shows: verdict, times, and how many requests met the candidate."""
    report = drill.report("catalog")
    record = drill.platform.known("catalog")["release"]["release"]
    weights = record["weights"]
    begun = next((one["at"] for one in weights if one["weight"] > 0), "")
    last = (record["analyses"] or [{"at": "", "verdict": "", "reason": "", "metrics": []}])[-1]
    ended = next((one["at"] for one in reversed(weights) if one["weight"] == 0 and one["at"] > begun), "")
    met = max((int(one["requests"]["candidate"] or 0) for one in last["metrics"]), default=0)
    row = {
        "what": name,
        "run": number,
        "version": version,
        "state": report["state"],
        "reason": report["reason"],
        "verdict": last["verdict"],
        "verdicts": [one["verdict"] for one in record["analyses"]],
        "by": [one["name"] for one in last["metrics"] if one["verdict"] == "fail"],
        "seconds_to_verdict": seconds_between(begun, last["at"]) if begun and last["at"] else None,
        "seconds_to_back": seconds_between(begun, ended) if begun and ended else None,
        "way_back": slowest_way_back(report),
        "requests_met_candidate": met,  # as the judge counted them, callers inside the platform included
        "seen_by_clients": load.summary["versions"].get(version, {}).get("count", 0),
        **traffic_row(load),
    }
    if bad:
        return row, {
            "it went back by itself": report["state"] == "rolled back" and last["verdict"] == "fail" and code != 0
        }
    return row, {"an equal version was let through": report["state"] == "settled" and code == 0}


# --- transitions ------------------------------------------------------------------------------------------------------


def transitions(drill: Drill) -> None:
    """One release per transition: killed there, looked at, run again until it has ended."""
    chance = random.Random(drill.options.seed)
    for strategy in drill.options.strategy or ["canary", "blue_green"]:
        service = "catalog" if strategy == "canary" else "orders"
        for words in TRANSITIONS:
            before = drill.only(service)
            wanted = other({before})
            variables = drill.variables(service, wanted, release_lock_ttl=LOCK, release_window=0)
            delay = round(
                chance.uniform(0, 2), 2
            )  # seconds after it was recorded: Ansible names a task with its result
            claims = {}
            with drill.load() as load:
                controller = drill.start(f"release_{strategy}", **variables)
                controller.wait_for(words, timeout=900)
                time.sleep(delay)
                controller.kill()
                found = drill.platform.known(service)
                claims["never two versions without a record, killed"] = recorded(found, wanted)
                time.sleep(LOCK + 2)
                state = drill.platform.known(service)
                claims["never two versions without a record, lock gone"] = recorded(state, wanted)
                again = drill.platform.playbook(f"release_{strategy}", timeout=1800, **variables)
            finished = again.returncode == 0 or "already live" in again.stdout
            ended = wanted if finished else before
            claims["the next run finished or undid it"] = drill.settled(service, ended)
            claims["no request failed"] = load.summary["failed"] == 0
            record = state["release"].get("release") or {}
            row = {
                "what": f"{strategy}: {words}",
                "killed_after": delay,
                "state": record.get("state", ""),
                "weights": state["traffic"].get("weights", {}),
                "then": "finished" if finished else "undone",
                **traffic_row(load),
            }
            if not claims["the next run finished or undid it"]:
                row["said"] = said_last(again.stdout)
            drill.note(row, claims)


def recorded(state: Row, version: str) -> bool:
    try:
        assert_recorded(state, version)
    except AssertionError as error:
        print(f"no record: {error}", file=sys.stderr)
        return False
    return True


# --- pause ------------------------------------------------------------------------------------------------------------


def pause(drill: Drill) -> None:
    """A canary is paused, goes on, and is promoted; another one is paused and aborted."""
    platform, service = drill.platform, "catalog"
    for end in ("promote", "abort"):
        before = drill.only(service)
        wanted = other({before})
        variables = drill.variables(service, wanted, release_window=0)
        claims: dict[str, bool] = {}
        with drill.load() as load:
            controller = drill.start("release_canary", **variables)
            controller.wait_for("Check | Note the time")
            claims["release_pause succeeded"] = (
                platform.playbook("release_pause", release_service=service).returncode == 0
            )
            code, said = controller.wait(300)
            state = platform.known(service)
            weight = state["traffic"]["weights"]["candidate"]
            claims["the paused run ends without an error"] = code == 0
            claims["the lock is free"] = state["lock"] == {}
            time.sleep(15)
            held = platform.known(service)
            claims["the weights stay"] = weight > 0 and held["traffic"]["weights"]["candidate"] == weight
            claims["the record stays open"] = held["release"]["release"]["state"] not in ENDED
            told = platform.playbook("release_status", release_service=service).stdout
            claims["release_status tells"] = "pause" in told
            if end == "promote":
                resumed = platform.playbook("release_resume", release_service=service)
                claims["release_resume succeeded"] = resumed.returncode == 0
                controller = drill.start("release_canary", **variables)
                controller.wait_for("Check | Note the time")
                asked = platform.playbook("release_promote", release_service=service)
            else:
                asked = platform.playbook("release_abort", release_service=service)
                controller = drill.start("release_canary", **variables)
            claims[f"release_{end} succeeded"] = asked.returncode == 0
            code, said = controller.wait(900)
        state_now = platform.known(service)["release"]["release"]["state"]
        expected = ("settled", wanted) if end == "promote" else ("aborted", before)
        claims[f"it ended {expected[0]}"] = state_now == expected[0]
        claims["one version alone is live"] = drill.settled(service, expected[1])
        claims["no request failed"] = load.summary["failed"] == 0
        row = {"what": f"pause, then {end}", "state": state_now, "held_at": weight, "code": code, **traffic_row(load)}
        if not all(claims.values()):
            row["said"] = said_last(said) + said_last(told)
        drill.note(row, claims)


# --- blind ------------------------------------------------------------------------------------------------------------


def blind(drill: Drill) -> None:
    """A canary that the judge cannot see: it is held, goes back in the end, and is never promoted."""
    platform, service = drill.platform, "catalog"
    watchers = platform.having("metrics")
    for what in ("no traffic", "prometheus stopped", "prometheus lost its data"):
        before = drill.only(service)
        wanted = other({before})
        # Whoever else calls the service is traffic, too: for the first case only this program would be.
        with drill.load() if what != "no traffic" else contextlib.nullcontext() as load:
            controller = drill.start("release_canary", **drill.variables(service, wanted, release_window=0))
            try:
                controller.wait_for("Check | Record the verdict")
                for host in watchers if load else ():
                    lost = " && rm -rf /var/lib/prometheus/metrics2/*" if "lost" in what else ""
                    done = platform.ssh(host, f"systemctl stop prometheus{lost}")
                    assert done.returncode == 0, done.stderr
                    if lost:
                        platform.ssh(host, "systemctl start prometheus")
                code, _said = controller.wait(1800)
            finally:
                for host in watchers:
                    platform.ssh(host, "systemctl start prometheus")
        record = platform.known(service)["release"]["release"]
        verdicts = [one["verdict"] for one in record["analyses"]]
        row = {
            "what": what,
            "state": record["state"],
            "reason": record["reason"],
            "verdicts": verdicts,
            **(traffic_row(load) if load else {}),
        }
        # After its data are lost Prometheus sees again what happens from then on: that may be enough for a verdict.
        claims = {"no request failed": not load or load.summary["failed"] == 0}
        if "lost" in what:
            claims["it ended"] = record["state"] in ENDED
            claims["one version alone is live"] = drill.settled(service, wanted if code == 0 else before)
        else:
            claims["it was not promoted"] = record["state"] == "rolled back" and code != 0
            claims["the judge did not see enough"] = verdicts[-1] == "insufficient_data"
            claims["the old version alone is live"] = drill.settled(service, before)
        drill.note(row, claims)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    text = __doc__ or ""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    lab = str(ROOT / "inventories" / "lab" / "platform.yml")
    parser.add_argument("--inventory", default=lab, help="platform.yml of the lab; default: %(default)s")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second; default: %(default)g")
    parser.add_argument("--out", default="", help="file for the results, JSON, written after every run")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("clean", help="rolling, canary, blue-green and the way back: no request fails")
    one.add_argument("--runs", type=int, default=10, help="of each kind; default: %(default)s")
    one.add_argument("--kind", action="append", choices=["rolling", "canary", "blue_green", "way_back"])
    one.set_defaults(run=clean)
    one = verbs.add_parser("judged", help="bad versions go back by themselves")
    one.add_argument("--runs", type=int, default=1, help="of each case; default: %(default)s")
    one.add_argument("--case", action="append", choices=list(CASES))
    one.add_argument("--weight", type=int, default=10, help="per cent of the traffic; default: %(default)s")
    one.add_argument("--hold", type=float, default=600.0, help="seconds at this weight; default: %(default)g")
    one.add_argument("--baseline", action="store_true", help="with a baseline pool of the old version")
    one.add_argument("--interval", type=float, default=15.0, help="seconds between verdicts; default: %(default)g")
    one.set_defaults(run=judged)
    one = verbs.add_parser("transitions", help="the controller is killed at every change of state")
    one.add_argument("--strategy", action="append", choices=["canary", "blue_green"])
    one.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    one.set_defaults(run=transitions)
    one = verbs.add_parser("pause", help="pause, resume, promote, abort")
    one.set_defaults(run=pause)
    one = verbs.add_parser("blind", help="nobody sends requests, or Prometheus goes away")
    one.set_defaults(run=blind)
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
