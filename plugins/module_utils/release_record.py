# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a release (docs/design.md, section 8): its states, what it keeps, and what a new run does with
the one that it finds. Pure functions; nothing here reads a clock or the registry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.release import VERSION, ReleaseError

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

STRATEGIES = ("rolling", "blue_green", "canary")
COMMANDS = ("abort", "promote", "pause", "resume")
PHASES = ("expand", "backfill", "contract")
# How a phase of the database's migrations stands; an expand is done once the running version was proven on it.
MIGRATION_STATES = ("running", "done", "failed", "undone")
VERDICTS = ("pass", "fail", "inconclusive", "insufficient_data")

ROLLED_BACK = "rolled back"
ABORTED = "aborted"
SETTLED = "settled"
ENDED = (SETTLED, ROLLED_BACK, ABORTED)
# Nothing has met a user yet, so these are simply done again from the beginning.
EARLY = ("planned", "preparing", "testing")
_JUDGED = {
    "planned": ("preparing",),
    "preparing": ("testing",),
    "testing": ("shifting",),
    "shifting": ("baking", "promoted"),
    "baking": ("promoted",),
    "promoted": (SETTLED,),
}
_ROLLING = {"planned": ("preparing",), "preparing": ("shifting",), "shifting": (SETTLED,)}
STATES = (*_JUDGED, *ENDED)

_VERSION_TEXT = "letters, digits, '.', '_' and '-', at most 128"

# What the history of a service calls the end of a release.
OUTCOMES = {SETTLED: "live", ROLLED_BACK: "rolled back", ABORTED: "aborted"}

# etcd refuses values above 1.5 MB, and every agent reads each change: the record stays far below.
MAX_ANALYSES = 200
MAX_WEIGHTS = 200
MAX_TRANSITIONS = 100
MAX_REASON = 1000
MAX_EVIDENCE = 4096
MAX_METRICS = 30
MAX_VERSIONS = 100
MAX_RELEASE = 256 << 10
_SERIES = ("transitions", "weights", "analyses", "migrations")


@dataclass(frozen=True)
class Release:
    """One release, under way or the last one. Times are RFC 3339 in UTC, ``weight`` is the candidate's percentage, in a
    rolling release that of the instances with the new version.
    """

    id: str
    strategy: str
    version: str
    from_version: str
    state: str = "planned"
    step: int = 0
    weight: int = 0
    started: str = ""
    changed: str = ""
    reason: str = ""
    transitions: tuple[Json, ...] = ()
    weights: tuple[Json, ...] = ()
    analyses: tuple[Json, ...] = ()
    migrations: tuple[Json, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ENDED

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> Release | None:
        """The release in a record's ``release``; ``None`` when there is none."""
        if not value:
            return None
        known = {one.name for one in fields(cls)}
        found = {name: content for name, content in value.items() if name in known}
        for name in _SERIES:
            found[name] = tuple(value.get(name) or ())
        empty = {"id": "", "strategy": "", "version": ""}
        return cls(**{**empty, **found, "from_version": str(value.get("from") or "")})

    def as_dict(self) -> Json:
        """As it is kept in etcd."""
        value = asdict(self)
        value["from"] = value.pop("from_version")
        for name in _SERIES:
            value[name] = list(value[name])
        return value


def cut(text: Any, limit: int = MAX_REASON) -> str:
    """``text`` in at most ``limit`` characters, with a mark where it was cut."""
    clean = str(text).strip()
    return clean if len(clean) <= limit else clean[: limit - 4].rstrip() + " ..."


def bounded(evidence: Any, limit: int = MAX_EVIDENCE) -> Any:
    """``evidence`` if its JSON has at most ``limit`` bytes, else the beginning of that JSON as text."""
    text = json.dumps(evidence, sort_keys=True, default=str)
    # JSON knows no NaN and no infinity.
    return json.loads(text, parse_constant=lambda _name: None) if len(text) <= limit else {"truncated": text[:limit]}


def _fit(release: Release) -> Release:
    """The release with its oldest analyses left out until the whole is small enough."""
    release = replace(
        release,
        transitions=release.transitions[-MAX_TRANSITIONS:],
        weights=release.weights[-MAX_WEIGHTS:],
        analyses=release.analyses[-MAX_ANALYSES:],
    )
    sizes = [len(json.dumps(one)) for one in release.analyses]
    rest = len(json.dumps(replace(release, analyses=()).as_dict()))
    while sizes and rest + sum(sizes) > MAX_RELEASE:
        sizes.pop(0)
    return replace(release, analyses=release.analyses[len(release.analyses) - len(sizes) :])


def _transition(at: str, old: str, new: str, reason: Any, evidence: Any) -> Json:
    return {"at": at, "from": old, "to": new, "reason": cut(reason), "evidence": bounded(evidence)}


def new_release(*, id: str, strategy: str, version: str, from_version: str, at: str, reason: str = "") -> Release:
    """A release that is planned. Raises ReleaseError for a strategy or a version that cannot be."""
    if strategy not in STRATEGIES:
        raise ReleaseError(f"strategy: {strategy!r} is unknown; allowed: {', '.join(STRATEGIES)}")
    if not id:
        raise ReleaseError("id: a release needs one that is its own, such as a time and a host name")
    for name, value in (("version", version), ("from", from_version)):
        if not VERSION.match(value):
            raise ReleaseError(f"{name}: {value!r} is not a version; allowed: {_VERSION_TEXT}")
    # A rolling release may repair: bring stragglers to the version that the others have.
    if version == from_version and strategy != "rolling":
        raise ReleaseError(f"version: {version} is the version before too; a release goes from one to another")
    return Release(
        id=id,
        strategy=strategy,
        version=version,
        from_version=from_version,
        started=at,
        changed=at,
        reason=cut(reason),
        transitions=(_transition(at, "", "planned", reason, None),),
        weights=({"at": at, "weight": 0},),
    )


def allowed(release: Release) -> tuple[str, ...]:
    """States that may follow."""
    if release.ended:
        return ()
    table = _ROLLING if release.strategy == "rolling" else _JUDGED
    return (*table.get(release.state, ()), ROLLED_BACK, ABORTED)


def change_state(release: Release, to: str, at: str, reason: str = "", evidence: Any = None) -> Release:
    """``release`` in state ``to``. The state it already has changes nothing, so a run may be repeated.

    Raises ReleaseError when ``to`` cannot follow: it says from where, to what, and what is allowed.
    """
    if to not in STATES:
        raise ReleaseError(f"transition: {to!r} is no state of a release; allowed: {', '.join(STATES)}")
    if to == release.state:
        return release
    if to not in allowed(release):
        may = ", ".join(allowed(release)) or "none, it has ended"
        raise ReleaseError(
            f"release {release.id} ({release.strategy} of {release.version}) cannot go from {release.state} to {to}; "
            f"allowed: {may}"
        )
    entry = _transition(at, release.state, to, reason, evidence)
    return _fit(replace(release, state=to, changed=at, reason=cut(reason), transitions=(*release.transitions, entry)))


def restart(release: Release, at: str, reason: str = "started over: the run before did not finish") -> Release:
    """A release that no user has met yet, planned once more; its id and its past stay."""
    if release.state not in EARLY:
        raise ReleaseError(
            f"release {release.id} is in state {release.state} and cannot start over; allowed in: {', '.join(EARLY)}"
        )
    if release.state == "planned":
        return release
    entry = _transition(at, release.state, "planned", reason, None)
    return _fit(
        replace(
            release,
            state="planned",
            step=0,
            weight=0,
            weights=release.weights if not release.weight else (*release.weights, {"at": at, "weight": 0}),
            changed=at,
            reason=cut(reason),
            transitions=(*release.transitions, entry),
        )
    )


def _require_open(release: Release, what: str) -> None:
    if release.ended:
        raise ReleaseError(f"{what}: release {release.id} has ended ({release.state}); nothing may be added to it")


def add_weight(release: Release, weight: int, at: str) -> Release:
    """The release with the candidate's share of traffic, 0 to 100; the same weight again changes nothing."""
    if not 0 <= weight <= 100:
        raise ReleaseError(f"weight: {weight} is not a percentage; allowed: 0 to 100")
    if weight == release.weight and release.weights:
        return release
    _require_open(release, "weight")
    return _fit(replace(release, weight=weight, changed=at, weights=(*release.weights, {"at": at, "weight": weight})))


def set_step(release: Release, step: int, at: str) -> Release:
    """The release at a step of its canary, counted from 0."""
    if step < 0:
        raise ReleaseError(f"step: {step} is not a step; allowed: 0 and above")
    if step == release.step:
        return release
    _require_open(release, "step")
    return replace(release, step=step, changed=at)


def _number(value: Any) -> float | int | None:
    """A finite number, else ``None``: JSON knows neither NaN nor infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def _metric(value: Mapping[str, Any]) -> Json:
    requests = value.get("requests") or {}
    return {
        "name": cut(value.get("name", ""), 80),
        "kind": cut(value.get("kind", ""), 20),
        "verdict": value.get("verdict") if value.get("verdict") in VERDICTS else "inconclusive",
        "reason": cut(value.get("reason", ""), 400),
        "unit": cut(value.get("unit", ""), 40),
        **{
            name: _number(value.get(name))
            for name in ("stable", "candidate", "difference", "lower", "upper", "e_value")
        },
        "requests": {pool: _number(requests.get(pool)) for pool in ("stable", "candidate")},
    }


def clean_analysis(analysis: Mapping[str, Any], release: Release, at: str) -> Json:
    """An analysis with all its fields; raises ReleaseError for an unknown verdict."""
    verdict = analysis.get("verdict")
    if verdict not in VERDICTS:
        raise ReleaseError(f"analysis: verdict {verdict!r} is unknown; allowed: {', '.join(VERDICTS)}")
    step, weight = _number(analysis.get("step")), _number(analysis.get("weight"))
    return {
        "at": str(analysis.get("at") or at),
        "step": release.step if step is None else int(step),
        "weight": release.weight if weight is None else weight,
        "verdict": verdict,
        "reason": cut(analysis.get("reason", ""), 600),
        "metrics": [_metric(one) for one in list(analysis.get("metrics") or ())[:MAX_METRICS]],
        **_scores(analysis),
        **({"against": "baseline"} if analysis.get("against") == "baseline" else {}),
    }


def _scores(analysis: Mapping[str, Any]) -> Json:
    """Score and groups of an analysis by method kayenta; the sequential one has none."""
    if _number(analysis.get("score")) is None:
        return {}
    groups = list((analysis.get("groups") or {}).items())[:MAX_METRICS]
    return {"score": _number(analysis["score"]), "groups": {cut(name, 40): _number(value) for name, value in groups}}


def add_analysis(release: Release, analysis: Mapping[str, Any], at: str) -> Release:
    """The release with one more verdict, of which the last 200 are kept; one of the same time replaces the other."""
    entry = clean_analysis(analysis, release, at)
    if entry in release.analyses:
        return release
    _require_open(release, "analysis")
    others = tuple(one for one in release.analyses if one.get("at") != entry["at"])
    return _fit(replace(release, changed=at, analyses=(*others, entry)))


def _apart(begin: Any, end: str) -> float:
    """Seconds between two RFC 3339 times; 0 for what is none."""
    try:
        first, last = (datetime.fromisoformat(str(text).replace("Z", "+00:00")) for text in (begin, end))
        return round(max(0.0, (last - first).total_seconds()), 1)
    except (TypeError, ValueError):
        return 0.0


def add_migration(release: Release, migration: Mapping[str, Any], at: str) -> Release:
    """The release with how a phase of its database's migrations stands: one entry for each phase, in their order.

    ``versions`` are all of the phase's files, applied now or before; the last 100 are kept. A phase that ``running``
    began gets the seconds that it ``took``. The same again changes nothing. Unlike all else it may come after the end
    of the release, since a contract does, and leaves ``changed`` alone, from which the rollback window counts.
    """
    phase, state = migration.get("phase"), migration.get("state")
    if phase not in PHASES:
        raise ReleaseError(f"migration: phase {phase!r} is unknown; allowed: {', '.join(PHASES)}")
    if state not in MIGRATION_STATES:
        raise ReleaseError(f"migration: state {state!r} is unknown; allowed: {', '.join(MIGRATION_STATES)}")
    known = {str(one.get("phase")): one for one in release.migrations}
    old = known.get(phase) or {}
    entry = {
        "phase": phase,
        "versions": sorted(str(one)[:14] for one in migration.get("versions") or ())[-MAX_VERSIONS:],
        "state": state,
        "at": at,
        "reason": cut(migration.get("reason") or ""),
        "took": _apart(old.get("at"), at) if old.get("state") == "running" and state != "running" else 0.0,
    }
    told = ("versions", "state", "reason")
    if all(old.get(name) == entry[name] for name in told):
        return release
    known[phase] = entry
    return _fit(replace(release, migrations=tuple(known[one] for one in PHASES if one in known)))


def migration_done(value: Mapping[str, Any] | None, phase: str, versions: Sequence[str]) -> bool:
    """Whether a release (as in a record) has noted that a phase is done with all of these files."""
    listed = (value or {}).get("migrations") or ()
    entry: Mapping[str, Any] = next((one for one in listed if one.get("phase") == phase), {})
    wanted = sorted(str(one)[:14] for one in versions)[-MAX_VERSIONS:]
    return entry.get("state") == "done" and list(entry.get("versions") or ()) == wanted


# --- the service's record around it -----------------------------------------------------------------------------


def begin_record(record: Mapping[str, Any] | None, release: Release) -> tuple[Json, Json]:
    """What changes in a service's record when ``release`` begins: ``(changes, entry of the history)``.

    A dead run of the same version and strategy that no user has met is started over under its own id. Raises
    ReleaseError while another one is under way.
    """
    found = Release.of((record or {}).get("release"))
    if found and not found.ended:
        same = (found.version, found.strategy) == (release.version, release.strategy)
        if not same or found.state not in EARLY:
            raise ReleaseError(
                f"begin: release {found.id} ({found.strategy} of {found.version}) is under way, in state "
                f"{found.state}; end it first with release_abort or release_rollback"
            )
        release = restart(found, release.started)
    changes = {"current": release.from_version, "state": release.strategy, "release": release.as_dict()}
    entry = {
        "version": release.version,
        "from": release.from_version,
        "started": release.started,
        "strategy": release.strategy,
    }
    return changes, entry


def settle_record(release: Release) -> tuple[Json, Json | None]:
    """What changes in a service's record with ``release``; once it has ended, also what is live and how it ended."""
    changes: Json = {"release": release.as_dict()}
    if not release.ended:
        return changes, None
    outcome = OUTCOMES[release.state]
    changes["state"] = outcome
    changes["current"] = release.from_version
    if release.state == SETTLED:
        changes["current"] = release.version
        # A repair brings stragglers to the version that is live: the one before stays as it was.
        if release.version != release.from_version:
            changes["previous"] = release.from_version
    entry = {
        "version": release.version,
        "started": release.started,
        "finished": release.changed,
        "outcome": outcome,
        "reason": release.reason,
    }
    return changes, entry


def advance(
    record: Mapping[str, Any] | None,
    at: str,
    *,
    begin: Mapping[str, Any] | None = None,
    step: int | None = None,
    weight: int | None = None,
    analysis: Mapping[str, Any] | None = None,
    transition: Mapping[str, Any] | None = None,
    migration: Mapping[str, Any] | None = None,
) -> tuple[Json, Json | None]:
    """What changes in a service's record when all of these are done at once, in this order: ``(changes, entry)``."""
    release = Release.of((record or {}).get("release"))
    changes: Json = {}
    entry: Json | None = None
    if begin is not None:
        planned = new_release(
            id=begin["id"],
            strategy=begin["strategy"],
            version=begin["version"],
            from_version=begin["from"],
            reason=begin.get("reason") or "",
            at=at,
        )
        changes, entry = begin_record(record, planned)
        release = Release.of(changes["release"])
    if release is None:
        raise ReleaseError("no release has begun, so there is none to change; give begin first")
    before = release
    if step is not None:
        release = set_step(release, step, at)
    if weight is not None:
        release = add_weight(release, weight, at)
    if analysis is not None:
        release = add_analysis(release, analysis, at)
    if transition is not None:
        release = change_state(
            release, transition["to"], at, transition.get("reason") or "", transition.get("evidence")
        )
    if release != before:
        further, end = settle_record(release)
        changes.update(further)
        entry = {**(entry or {}), **end} if end else entry
    if migration is not None and (noted := add_migration(release, migration, at)) != release:
        # Of a release that has ended long ago only this changes: what is live may be another version by now.
        changes["release"] = noted.as_dict()
        phases = {one["phase"]: one["state"] for one in noted.migrations}
        entry = {**(entry or {"version": noted.version, "started": noted.started}), "migrations": phases}
    return changes, entry


# --- operators' requests ----------------------------------------------------------------------------------------

_COMMANDED = {
    "abort": tuple(_JUDGED),
    "promote": ("shifting", "baking"),
    "pause": ("shifting", "baking", "promoted"),
    "resume": tuple(_JUDGED),
}


def check_command(
    service: str, command: str, record: Mapping[str, Any] | None, pending: Mapping[str, Any] | None = None
) -> Release:
    """The release that ``command`` is for. Raises ReleaseError, one sentence, when it makes no sense now."""
    release = Release.of((record or {}).get("release"))
    if command not in COMMANDS:
        raise ReleaseError(f"command: {command!r} is unknown; allowed: {', '.join(COMMANDS)}")
    if release is None:
        raise ReleaseError(f"service {service}: no release is under way, so there is nothing to {command}")
    if release.ended:
        raise ReleaseError(
            f"service {service}: no release is under way, so there is nothing to {command}; the last one, of version "
            f"{release.version}, is {OUTCOMES[release.state]} since {release.changed}"
        )
    states = _COMMANDED[command]
    if release.state not in states:
        raise ReleaseError(
            f"service {service}: the release of {release.version} is in state {release.state}; {command} is allowed "
            f"in: {', '.join(states)}"
        )
    asked = (pending or {}).get("command") if (pending or {}).get("release") == release.id else None
    if command == "resume" and asked not in ("pause", "resume"):
        raise ReleaseError(f"service {service}: the release of {release.version} is not paused, so it cannot resume")
    return release


def pending_command(record: Mapping[str, Any] | None, pending: Mapping[str, Any] | None) -> str:
    """The request that concerns the release under way: a command's name, or nothing."""
    release = Release.of((record or {}).get("release"))
    if not pending or release is None or release.ended or pending.get("release") != release.id:
        return ""
    return str(pending.get("command") or "")


def request_after(
    service: str,
    record: Mapping[str, Any],
    pending: Json,
    *,
    command: str | None,
    by: str,
    at: str,
    sweep: bool,
) -> Json:
    """The request that is pending after ``command`` (``none``: it was obeyed); empty when none is.

    ``sweep`` drops one that no longer concerns a release under way. Raises ReleaseError like :func:`check_command`.
    """
    if command is None:
        return {} if sweep and not pending_command(record, pending) else pending
    if command == "none":
        return {}
    release = check_command(service, command, record, pending)
    if pending_command(record, pending) == command:
        return pending
    return {"command": command, "by": cut(by, 100), "at": at, "release": release.id}


_PROMISES = {
    "abort": "goes back to {before}, which gets all of the traffic again, and is recorded as aborted",
    "promote": "is not judged any further: version {version} gets all of the traffic",
    "pause": "is held at {weight} % of the traffic until release_resume or release_abort",
    "resume": "goes on where it was held, at {weight} % of the traffic",
}


def promise(
    value: Mapping[str, Any] | None, command: str, lock: Mapping[str, Any] | None, interval: float
) -> list[str]:
    """What an operator's request will do and when, in sentences. ``lock`` is the service's, ``interval`` the seconds
    between two checks of the controller.
    """
    release = Release.of(value)
    if release is None or command not in COMMANDS:
        raise ReleaseError("promise: there is no release, or the command is unknown")
    what = _PROMISES[command].format(before=release.from_version, version=release.version, weight=release.weight)
    lines = [f"asked to {command}: the {release.strategy} release of {release.version} (state {release.state}) {what}"]
    if lock:
        return [*lines, f"its controller obeys at its next check, in about {interval:g} s at the latest"]
    return [
        *lines,
        f"no controller runs it now (nobody holds the lock): the request waits until release_{release.strategy} of "
        f"{release.version} is run again; release_rollback undoes the release at once",
    ]


# --- decisions --------------------------------------------------------------------------------------------------


def candidate_count(release: Mapping[str, Any], stable: int, strategy: str = "") -> int:
    """Instances of the candidate pool beside ``stable`` ones: all for blue-green; for a canary what its file says, or
    enough for its largest weight, at least one and never more than the stable pool. ``release`` is the service's
    normalised section.
    """
    if (strategy or release["strategy"]) != "canary":
        return stable
    canary = release["canary"]
    wanted = int(canary["instances"]) or math.ceil(stable * max(step["weight"] for step in canary["steps"]) / 100)
    return max(1, min(stable, wanted))


@dataclass(frozen=True)
class Action:
    """What a run does with what it finds: ``action`` is ``start``, ``resume``, ``settle``, ``undo_then_start``,
    ``undo`` or ``refuse``; ``reason`` says why in words, ``id``, ``step`` and ``weight`` where to go on.
    """

    action: str
    reason: str
    id: str = ""
    state: str = ""
    step: int = 0
    weight: int = 0
    version: str = ""
    from_version: str = ""
    leftovers: list[str] = field(default_factory=list)

    def as_dict(self) -> Json:
        return asdict(self)


def _leftovers(live: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(f"{one['host']}/{one['slot']}" for one in live if one.get("pool") in ("candidate", "baseline"))


def _at(action: str, release: Release, reason: str, leftovers: list[str] | None = None) -> Action:
    return Action(
        action=action,
        reason=reason,
        id=release.id,
        state=release.state,
        step=release.step,
        weight=release.weight,
        version=release.version,
        from_version=release.from_version,
        leftovers=leftovers or [],
    )


def next_action(
    record: Mapping[str, Any] | None,
    version: str,
    *,
    current: str,
    strategy: str,
    live: Sequence[Mapping[str, Any]] = (),
    weights: Mapping[str, Any] | None = None,
    command: Mapping[str, Any] | None = None,
) -> Action:
    """What a run that shall bring ``version`` does with the record that it finds, whoever died before.

    ``current`` is what instances run now (the record's, else the description's), ``live`` the registered instances,
    ``weights`` the traffic split, ``command`` the pending request. Called under the service's lock, so no other
    controller acts. Never raises: what cannot be is an action ``refuse`` with one sentence.
    """
    record = record or {}
    release, left = Release.of(record.get("release")), _leftovers(live)
    stray = bool(left) or any(int((weights or {}).get(pool) or 0) > 0 for pool in ("candidate", "baseline"))
    mixed = sorted({str(one["version"]) for one in live if one.get("pool", "stable") == "stable"} - {current})
    if not version:
        return Action("refuse", "there is no version before to go back to; give release_version", leftovers=left)
    if not VERSION.match(version):
        reason = f"release_version: {version!r} is not a version; allowed: {_VERSION_TEXT}"
        return Action("refuse", reason, leftovers=left)
    if release and not release.ended:
        if pending_command(record, command) == "abort":
            who = (command or {}).get("by") or "an operator"
            return _at("undo", release, f"{_name(release)} was cut short, and {who} asked to abort it", left)
        return _unfinished(release, version, strategy, left)
    if record.get("state") == "rolling" and strategy != "rolling":
        reason = "a rolling release was cut short; end it first with release_rolling or release_rollback"
        return Action("refuse", reason, leftovers=left)
    if release and release.state == SETTLED and release.version == version == current and stray:
        return _at("settle", release, f"version {version} is live, and candidates of it are left over", left)
    if version == current and not (strategy == "rolling" and (mixed or record.get("state") == "rolling")):
        return Action("refuse", f"version {version} is already live", leftovers=left)
    if mixed and strategy != "rolling" and not stray:
        reason = f"the stable pool runs {', '.join(mixed)} beside {current}; repair it first with release_rolling"
        return Action("refuse", reason, leftovers=left)
    facts: Json = {"version": version, "from_version": current, "leftovers": left}
    if stray:
        return Action("undo_then_start", "candidates of a release that has ended are left over: they go first", **facts)
    return Action("start", "no release is under way", **facts)


def _name(release: Release) -> str:
    return f"the {release.strategy} release of {release.version} (state {release.state})"


def _unfinished(release: Release, version: str, strategy: str, left: list[str]) -> Action:
    """What a run does with a release whose controller died."""
    what = _name(release)
    if release.version != version:
        return _at("refuse", release, f"{what} is under way; end it first with release_abort or release_rollback", left)
    if release.strategy != strategy:
        verb = f"release_{release.strategy}"
        return _at(
            "refuse", release, f"{what} is under way; go on with {verb}, or end it first with release_rollback", left
        )
    if release.state == "promoted":
        return _at("settle", release, f"{what} was cut short after its promotion", left)
    if release.state in EARLY:
        return _at("start", release, f"{what} was cut short before any user met it: it starts over", left)
    return _at("resume", release, f"{what} was cut short at step {release.step}, weight {release.weight}", left)
