"""The release section of a service file: its defaults, and one clear message for each mistake."""

from __future__ import annotations

import pytest

METRIC = {
    "name": "errors",
    "kind": "errors",
    "query": "",
    "worse": "higher",
    "margin": 0.0,
    "quantile": 0.99,
    "limit": None,
    "group": "errors",
    "critical": False,
    "effect": {"allowed_increase": 1.0, "allowed_decrease": 1.0},
}
LATENCY = {
    **METRIC,
    "name": "latency",
    "kind": "latency",
    "margin": 0.2,
    "group": "latency",
    "effect": {"allowed_increase": 1.2, "allowed_decrease": 0.8},
}
DEFAULTS = {
    "strategy": "canary",
    "batch": 1,
    "pause": 2.0,
    "drain_timeout": 30.0,
    "health_timeout": 60.0,
    "verify": {"path": "/orders", "requests": 20},
    "canary": {
        "steps": [
            {"weight": 5, "duration": 60.0},
            {"weight": 25, "duration": 60.0},
            {"weight": 50, "duration": 60.0},
        ],
        "sticky": "cookie",
        "cohort": {"header": "", "value": ""},
        "instances": 0,
        "baseline": False,
    },
    "blue_green": {"bake": 60.0, "mirror": {"percent": 0.0}},
    "rolling": {"judge": True, "require": False},
    "rollback_window": 300.0,
    "analysis": {
        "interval": 30.0,
        "alpha": 0.05,
        "min_requests": 100,
        "method": "sequential",
        "groups": {},
        "thresholds": {"pass": 95.0, "marginal": 75.0},
        "metrics": [METRIC, LATENCY],
    },
    "hooks": [],
}
QUERY = 'sum(rate(orders_total{service="$service", pool="${pool}", code!~"5..$"}[$window]))'


def spec(files, **release):
    files.set("orders", "release", release)
    return files.read().variables["causeway_services"]["orders"]["release"]


@pytest.mark.parametrize("given", [{}, {"canary": {"steps": []}}, {"canary": {}, "analysis": {"metrics": []}}])
def test_every_default_is_filled_in(files, given):
    assert spec(files, strategy="canary", **given) == DEFAULTS


def test_everything_can_be_said(files):
    found = spec(
        files,
        strategy="blue_green",
        canary={
            "steps": [{"weight": 1, "duration": "90s"}, {"weight": 99}],
            "sticky": "header:X-User",
            "cohort": {"header": "X-Group", "value": "Beta"},
            "instances": 4,
        },
        blue_green={"bake": "0s", "mirror": {"percent": 12.5}},
        rollback_window="2h",
        analysis={
            "interval": "10s",
            "alpha": 0.5,
            "min_requests": 1,
            "metrics": [
                {"name": "rate", "kind": "business", "query": QUERY, "margin": 0.05},
                {"name": "cpu", "kind": "saturation", "query": "cpu{pool='$pool'}", "limit": 0.9},
                {"name": "slow", "kind": "latency", "quantile": 0.5, "limit": None},
            ],
        },
    )
    assert found["canary"] == {
        "steps": [{"weight": 1, "duration": 90.0}, {"weight": 99, "duration": 60.0}],
        "sticky": "header:x-user",
        "cohort": {"header": "x-group", "value": "Beta"},
        "instances": 4,
        "baseline": False,
    }
    assert found["blue_green"] == {"bake": 0.0, "mirror": {"percent": 12.5}}
    assert (found["rollback_window"], found["analysis"]["interval"]) == (7200.0, 10.0)
    rate, cpu, slow = found["analysis"]["metrics"]
    assert (rate["worse"], rate["margin"], rate["query"]) == ("lower", 0.05, QUERY)
    assert (cpu["worse"], cpu["margin"], cpu["limit"]) == ("higher", 0.0, 0.9)
    assert (slow["quantile"], slow["limit"], slow["margin"]) == (0.5, None, 0.2)


def steps(*weights):
    return {"canary": {"steps": [{"weight": weight} for weight in weights]}}


def metric(**options):
    return {"analysis": {"metrics": [{"name": "m", **options}]}}


def kayenta(**options):
    return {"analysis": {"method": "kayenta", **options}, "blue_green": {"bake": "5m"}}


def test_scores_can_be_said(files):
    own = {"name": "m", "kind": "business", "query": QUERY, "margin": 0.1, "group": "shop", "critical": True}
    found = spec(files, **kayenta(groups={"shop": 60.0, "errors": 40}, metrics=[own, {"name": "e", "kind": "errors"}]))
    analysis = found["analysis"]
    assert (analysis["method"], analysis["groups"]) == ("kayenta", {"shop": 60.0, "errors": 40.0})
    shop, errors = analysis["metrics"]
    assert (shop["group"], shop["critical"]) == ("shop", True)
    assert shop["effect"] == {"allowed_increase": 1.1, "allowed_decrease": 0.9}
    assert (errors["group"], errors["critical"]) == ("errors", False)


MISTAKES = {
    "strategy": ({"strategy": "canray"}, ["release.strategy: unknown value", 'mean "canary"?', "rolling, blue_green"]),
    "falling": (steps(5, 50, 25), ["steps[2].weight: steps do not rise (got 25; allowed: 51 to 99)"]),
    "equal": (steps(5, 5), ["steps[1].weight: steps do not rise (got 5; allowed: 6 to 99)"]),
    "after the last": (steps(99, 99), ["steps[1].weight: steps do not rise (got 99; allowed: no further step)"]),
    "weight 0": (steps(0), ["steps[0].weight: not valid (got 0; allowed: a whole number, 1 to 99)"]),
    "weight 100": (steps(100), ["steps[0].weight: not valid (got 100;"]),
    "weight missing": ({"canary": {"steps": [{"duration": "5s"}]}}, ["steps[0]: the key weight is missing"]),
    "duration 0": (
        {"canary": {"steps": [{"weight": 5, "duration": "0s"}]}},
        ["steps[0].duration: not valid", 'got "0s"', "a duration from 1s to 24h"],
    ),
    "duration without unit": ({"canary": {"steps": [{"weight": 5, "duration": 30}]}}, ["duration: wrong type", "30"]),
    "sticky": ({"canary": {"sticky": "header:x y"}}, ["canary.sticky: not valid", "cookie, none, or header: and"]),
    "sticky header without a name": ({"canary": {"sticky": "header:"}}, ["canary.sticky: not valid"]),
    "sticky on our header": ({"canary": {"sticky": "header:X-Causeway-Pool"}}, ["a header of the platform's own"]),
    "cohort on our header": (
        {"canary": {"cohort": {"header": "x-causeway-pool", "value": "a"}}},
        ["cohort.header: a header of the platform's own"],
    ),
    "half a cohort": (
        {"canary": {"cohort": {"header": "x-beta"}}},
        ["canary.cohort: one half of a cohort (got only header; allowed: both header and value, or neither)"],
    ),
    "candidates": (
        {"canary": {"instances": 5}},
        ["canary.instances: more candidates than stable instances (got 5; allowed: 0", "to 4, the number of stable"],
    ),
    "step over the baseline": (
        {"canary": {"baseline": True, "steps": [{"weight": 51}]}},
        ["steps[0].weight: no room for the baseline (got 51; allowed: at most 50: with baseline"],
    ),
    "baseline": ({"canary": {"baseline": "yes"}}, ["canary.baseline: wrong type"]),
    "mirror": ({"blue_green": {"mirror": {"percent": 101}}}, ["mirror.percent: not valid (got 101"]),
    "bake": ({"blue_green": {"bake": "1d"}}, ["blue_green.bake: not valid", '"1d"']),
    "alpha 0": (
        {"analysis": {"alpha": 0}},
        ["analysis.alpha: not valid (got 0; allowed: a number above 0, at most 0.5)"],
    ),
    "alpha 0.6": ({"analysis": {"alpha": 0.6}}, ["analysis.alpha: not valid (got 0.6"]),
    "two of one name": (
        {"analysis": {"metrics": [{"name": "m", "kind": "errors"}, {"name": "m", "kind": "latency"}]}},
        ['metrics[1].name: given twice (got "m"; allowed: each name once)'],
    ),
    "kind": (metric(kind="error"), ["metrics[0].kind: unknown value", 'mean "errors"?']),
    "no kind": (metric(), ["metrics[0]: the key kind is missing"]),
    "business without a query": (metric(kind="business"), ["metrics[0]: the key query is missing", "for each $pool"]),
    "empty query": (metric(kind="saturation", query=" "), ["metrics[0]: the key query is missing"]),
    "query on errors": (metric(kind="errors", query="x"), ['query: a query for errors (got "x"; allowed: no query']),
    "query on latency": (metric(kind="latency", query="x{pool='$pool'}"), ["query: a query for latency"]),
    "no pool": (
        metric(kind="business", query="x[$window]"),
        ["query: the query does not tell the pools apart", "$pool"],
    ),
    "placeholder": (
        metric(kind="business", query="x{pool='$pool'}[$windo]"),
        ['unknown placeholder, did you mean "window"? (got $windo; allowed: $service, $pool, $window)'],
    ),
    "fewer errors": (metric(kind="errors", worse="lower"), ["worse: fewer errors are not worse"]),
    "quantile of errors": (
        metric(kind="errors", quantile=0.9),
        ["quantile: a quantile of errors (got 0.9; allowed: with"],
    ),
    "quantile 1": (metric(kind="latency", quantile=1), ["quantile: not valid (got 1;"]),
    "margin": (metric(kind="latency", margin=-0.1), ["margin: not valid (got -0.1"]),
    "limit": (metric(kind="latency", limit="1s"), ["limit: wrong type", "a number in the metric's unit"]),
    "method": ({"analysis": {"method": "kayent"}}, ["analysis.method: unknown value", 'mean "kayenta"?']),
    "groups without their method": (
        {"analysis": {"groups": {"errors": 100}}},
        ["analysis.groups: scores without their method", "allowed: with method kayenta only"],
    ),
    "critical without its method": (metric(kind="errors", critical=True), ["metrics[0].critical: scores without"]),
    "group of no metric": (
        kayenta(groups={"error": 50}),
        ['groups.error: no metric is in this group (got "error"; allowed: errors, latency)'],
    ),
    "weight of a group": (kayenta(groups={"errors": 101}), ["groups.errors: not valid (got 101"]),
    "weights short": (
        kayenta(groups={"errors": 50, "latency": 40}),
        ["analysis.groups: the weights do not add up (got 90 in all; allowed: 100 in all)"],
    ),
    "weights for one": (
        kayenta(groups={"errors": 100}),
        ["analysis.groups: no weight is left (got 100 in all; allowed: below 100 in all: latency shares the rest)"],
    ),
    "marginal": (
        kayenta(thresholds={"pass": 70}),
        ["analysis.thresholds: marginal is above pass (got 75; allowed: at most thresholds.pass, 70)"],
    ),
    "threshold": (kayenta(thresholds={"pass": 101}), ["thresholds.pass: not valid (got 101"]),
    "effect": (
        kayenta(metrics=[{"name": "m", "kind": "errors", "effect": {"allowed_decrease": 0.9}}]),
        ["effect.allowed_decrease: a change that is not worse, for worse is higher", "allowed: allowed_increase"],
    ),
    "effect below 1": (
        kayenta(metrics=[{"name": "m", "kind": "errors", "effect": {"allowed_increase": 0.9}}]),
        ["effect.allowed_increase: not valid (got 0.9"],
    ),
    "critical": (
        kayenta(metrics=[{"name": "m", "kind": "errors", "critical": "yes"}]),
        ["metrics[0].critical: wrong type"],
    ),
    "step too short to judge": (
        {**kayenta(), "strategy": "canary", "canary": {"steps": [{"weight": 5, "duration": "2m"}]}},
        ["steps[0].duration: too short for its method (got 120s; allowed: at least 150s, 5 times analysis.interval"],
    ),
    "bake too short to judge": (
        {**kayenta(), "strategy": "blue_green", "blue_green": {"bake": "0s"}},
        ["blue_green.bake: too short for its method (got 0s;"],
    ),
    "judge": ({"rolling": {"judge": "sometimes"}}, ["rolling.judge: wrong type", "true or false"]),
    "unknown key": ({"canary": {"step": []}}, ["canary.step: unknown key", 'mean "steps"?']),
}


@pytest.mark.parametrize(("release", "words"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_gets_one_message(files, release, words):
    files.set("orders", "release", release)
    problems = files.problems()
    assert len(problems) == 1, problems
    assert "services/orders.yml:" in problems[0]
    for word in words:
        assert word in problems[0]


def test_a_baseline_needs_room_on_the_host(files):
    files.set("orders", "release", {"strategy": "canary", "canary": {"baseline": True}})
    assert not files.problems()
    files.set("orders", "instances/per_host", 3)
    (problem,) = files.problems()
    assert "canary.baseline: no room for the baseline on a host (got per_host 3; allowed:" in problem


def test_mistakes_come_all_at_once(files):
    files.set(
        "orders", "release", {**steps(9, 3), "analysis": {"alpha": 1, "metrics": [{"name": "m", "kind": "business"}]}}
    )
    files.set("orders", "instances/per_host", 6)
    text = "\n".join(files.problems())
    assert len(files.problems()) == 4
    for words in (
        "do not rise",
        "alpha",
        "query is missing",
        "per_host: not valid (got 6; allowed: a whole number, 1 to 5)",
    ):
        assert words in text
