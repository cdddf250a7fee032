"""Two groups of instances side by side, as a rolling release has them, against a real Prometheus."""

from __future__ import annotations

import importlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.analysis import instances, judge
from ansible_collections.causeway.platform.plugins.module_utils.analysis.client import AnalysisError, Prometheus
from ansible_collections.causeway.platform.plugins.module_utils.analysis.samples import Step

SCRAPE = 5
NOW = (time.time() // SCRAPE) * SCRAPE
DRAINED, SINCE = NOW - 140, NOW - 120
BOUNDS = (5, 10, 25, 50, 100, 250, 500)
# What is new: one of two slots of app1. Each host is scraped at a moment of its own.
HOSTS = {"app1": (0.0, (0, 1)), "app2": (2.3, (0,)), "app3": (4.1, (0,))}
TIMES = {"app1/0": {"until": DRAINED, "since": SINCE}, "app1/1": {}, "app2/0": {}, "app3/0": {}}
# service: errors of old and new instances, slowdown of new ones, requests per second of old and new ones
WORLDS: dict[str, dict[str, Any]] = {
    "same": {},
    "flaky": {"errors": (0.001, 0.05)},
    "slow": {"slow": 4.0},
    "hungry": {"rates": (10, 60), "errors": (0.05, 0.05)},
    "storm": {"storm": True},
    "idle": {"rates": (0, 0)},
    "unused": {"rates": (25, 0)},
}


def history(name: str, world: dict[str, Any], rng: random.Random) -> dict[str, list[str]]:
    """OpenMetrics lines by metric, of one service."""
    series: dict[tuple[str, str], list[str]] = {}
    for host, (offset, slots) in HOSTS.items():
        totals: dict[tuple[str, str], float] = {}
        proxy = f'instance="{host}:9110",host="{host}",proxy="sidecar-{name}"'
        for number in range(int(600 / SCRAPE)):
            t = NOW - 600 + number * SCRAPE + offset
            if t > NOW:
                break
            series.setdefault(("up", f'job="envoy",{proxy}'), []).append(f"1 {t:.3f}")
            for slot in slots:
                new = TIMES[f"{host}/{slot}"] and t > SINCE
                rates, errors = world.get("rates", (25, 25)), world.get("errors", (0.01, 0.01))
                # A dependency fails for everybody for a while, up to now.
                ratio = 0.9 if world.get("storm") and t > NOW - 12 else errors[1 if new else 0]
                # What is counted while the instance is out are the release's own tests: all fail, nobody cares.
                if TIMES[f"{host}/{slot}"] and DRAINED < t <= SINCE:
                    ratio = 1.0
                n = rates[1 if new else 0] * SCRAPE
                bad = sum(rng.random() < ratio for _one in range(n))
                base = f'service="{name}",slot="{slot}",direction="inbound",{proxy}'
                slow = world.get("slow", 1.0) if new else 1.0
                drawn = [rng.lognormvariate(3.0, 0.5) * slow for _one in range(n)]
                grown = {
                    ("envoy_cluster_upstream_rq_xx", f'{base},envoy_response_code_class="2"'): n - bad,
                    ("envoy_cluster_upstream_rq_xx", f'{base},envoy_response_code_class="5"'): bad,
                    **{
                        ("envoy_cluster_upstream_rq_time_bucket", f'{base},le="{bound}"'): sum(
                            one <= float(bound) for one in drawn
                        )
                        for bound in (*BOUNDS, "+Inf")
                    },
                }
                for key, more in grown.items():
                    totals[key] = totals.get(key, 0) + more
                    if totals[key] or not key[0].endswith("_xx"):
                        series.setdefault(key, []).append(f"{totals[key]} {t:.3f}")
    lines: dict[str, list[str]] = {}
    for (metric, labels), values in series.items():
        lines.setdefault(metric, []).extend(f"{metric}{{{labels}}} {value}" for value in values)
    return lines


@pytest.fixture(scope="session")
def prometheus(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    by_metric: dict[str, list[str]] = {}
    rng = random.Random(7)
    for name, world in WORLDS.items():
        for metric, lines in history(name, world, rng).items():
            by_metric.setdefault(metric, []).extend(lines)
    text = "\n".join(line for lines in by_metric.values() for line in lines)
    with serve(tmp_path_factory.mktemp("instances"), text) as url:
        yield url


def ask(url: str, service: str, **more: Any) -> dict[str, Any]:
    parsed = tuple(judge.parse_metric({"kind": kind}, "metrics") for kind in ("errors", "latency"))
    options: dict[str, Any] = {
        "weights": ((SINCE + 2, 25.0),),
        "until": NOW,
        "max_age": 300.0,
        "scrape_interval": SCRAPE,
        "candidate": "the new version",
        "stable": "the old one",
        "instances": instances.parse_instances(TIMES),
        **more,
    }
    asked = judge.Request(service=service, since=SINCE, metrics=parsed, **options)
    result = judge.Judge(Prometheus([url], timeout=5.0), asked).run()
    json.dumps(result, allow_nan=False)
    return result["analysis"]


@pytest.mark.parametrize(
    ("service", "verdict", "words"),
    [
        ("same", "pass", "failed on the new version"),
        ("flaky", "fail", "errors: worse"),
        ("slow", "fail", "latency: worse"),
        ("hungry", "pass", ""),
        ("storm", "pass", ""),
        ("idle", "insufficient_data", "no traffic at all"),
        ("unused", "insufficient_data", "the new version had 0 requests"),
        ("nobody", "insufficient_data", "no series of service nobody"),
    ],
)
def test_worlds(prometheus: str, service: str, verdict: str, words: str) -> None:
    """ "hungry": the balancer gives the new instance more requests; "storm": both fail, seen on one side first."""
    result = ask(prometheus, service)
    assert result["verdict"] == verdict, result
    assert words in result["reason"]


def test_requests_are_counted_for_the_version_that_answered_them(prometheus: str) -> None:
    errors = ask(prometheus, "same")["metrics"][0]["requests"]
    # 120 s less what lies beyond the last scrape of all, one instance against three.
    assert 25 * 95 <= errors["candidate"] <= 25 * 120
    assert 3 * 25 * 95 <= errors["stable"] <= 3 * 25 * 125


def test_all_instances_new_is_nothing_to_compare_with(prometheus: str) -> None:
    new = {"until": DRAINED, "since": SINCE}
    result = ask(prometheus, "flaky", instances=instances.parse_instances(dict.fromkeys(TIMES, new)))
    assert (result["verdict"], "the old one had 0 requests" in result["reason"]) == ("insufficient_data", True)


def test_the_share_may_be_anything(prometheus: str) -> None:
    weights = ((SINCE - 900, 25.0), (SINCE + 2, 50.0), (SINCE + 60, 100.0))
    assert ask(prometheus, "flaky", weights=weights)["verdict"] == "fail"
    assert ask(prometheus, "same", weights=weights)["verdict"] == "pass"


def test_steps_across_a_change_belong_to_nobody() -> None:
    one = instances.Instance("a", "0", until=100, since=120)

    def side(start: float, end: float, shift: float = 0.0) -> set[str]:
        step = Step("a/sidecar-x", start, end, {("0", "class:2"): 5.0, ("9", "class:2"): 7.0})
        return {name for name, _counter in instances.by_side([step], [one], "old", "new", shift)[0].counts}

    assert side(90, 100) == {"old"}
    assert side(95, 105) == side(105, 115) == side(115, 125) == set()
    assert side(120, 130) == {"new"}
    assert side(115, 125, shift=-5) == {"new"}


def test_the_last_scrape_of_all_is_the_end_but_the_dead_are_not_waited_for() -> None:
    found = [Step(target, end - 5, end, {}) for target, end in (("a", 95), ("a", 100), ("b", 97), ("gone", 40))]
    assert instances.horizon(found, 101, 15) == 97
    assert instances.horizon([], 101, 15) == 101


def test_instances_are_parsed() -> None:
    new, old, since_ever = instances.parse_instances(
        {"a/0": {"until": 1, "since": "2"}, "a/1": None, "b/0": {"since": 3}}
    )
    assert (new.until, new.since) == (1, 2)
    assert (old.until, old.since) == (math.inf, math.inf)
    assert (since_ever.until, since_ever.since) == (3, 3)
    for wrong, words in (
        ({"a": {}}, "'a' is no instance"),
        ({"a/0": {"since": "soon"}}, "a/0.since: 'soon' is no time"),
    ):
        with pytest.raises(AnalysisError, match=words):
            instances.parse_instances(wrong)


def test_module(prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    from ansible.module_utils.testing import patch_module_args

    main = importlib.import_module("ansible_collections.causeway.platform.plugins.modules.canary_analysis").main
    baskets = {"name": "baskets", "kind": "business", "query": "baskets{pool='$pool'}"}
    params = {
        "urls": [prometheus],
        "service": "flaky",
        "since": str(SINCE),
        "until": str(NOW),
        "max_age": 300,
        "weight": 25,
        "scrape_interval": SCRAPE,
        "instances": TIMES,
    }
    for metrics in ([baskets], [baskets, {"name": "errors", "kind": "errors"}]):
        capsys.readouterr()
        with patch_module_args({**params, "analysis": {"metrics": metrics}}), pytest.raises(SystemExit):
            main()
        result = json.loads(capsys.readouterr().out)
        assert result["analysis"]["verdict"] == "fail", result
        assert result["prometheus"]["warnings"][-1] == "not judged per instance: baskets"
