# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge against a real Prometheus with made-up history, and against one that lies or is not there."""

from __future__ import annotations

import http.server
import importlib
import json
import random
import socket
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.analysis import judge, samples, scores
from ansible_collections.causeway.platform.plugins.module_utils.analysis.client import AnalysisError, Prometheus, Unseen

SCRAPE = 15
MINUTES = 60
NOW = (time.time() // SCRAPE) * SCRAPE
SINCE = NOW - MINUTES * 60
BOUNDS = (5, 10, 20, 31.5, 40, 50, 63, 80, 100, 125, 160, 200, 250, 315, 400, 500, 1000)
# Bucket of each of many latencies, as they are and twice as slow: milliseconds, median 30.
DRAWN = [one.lognormvariate(3.4, 0.5) for one in [random.Random(2)] for _number in range(20000)]
PLACES = {scale: [bisect_left(BOUNDS, value * scale) for value in DRAWN] for scale in (1.0, 2.0)}
# service: (errors stable, candidate), slowdown, (business stable, candidate), requests per minute, candidate's share
WORLDS: dict[str, dict[str, Any]] = {
    "same": {"errors": (0.01, 0.01)},
    "double": {"errors": (0.01, 0.02)},
    "rare": {"errors": (0.001, 0.004)},
    "slow": {"errors": (0.01, 0.01), "slow": 2.0},
    "poor": {"errors": (0.01, 0.01), "business": (0.5, 0.4)},
    "idle": {"errors": (0.01, 0.01), "rate": 0},
    "onesided": {"errors": (0.01, 0.01), "share": 0.0},
    "bluegreen": {"errors": (0.01, 0.01), "switch": True},
    "bluebad": {"errors": (0.01, 0.05), "switch": True},
    "blueslow": {"errors": (0.01, 0.01), "switch": True, "slow": 2.0},
    "bluepoor": {"errors": (0.01, 0.01), "switch": True, "business": (0.5, 0.4)},
    # Slower and poorer after the switch, but stable was like that for ten minutes half an hour before, whatever it was.
    "bluenoise": {"errors": (0.01, 0.01), "switch": True, "slow": 2.0, "business": (0.5, 0.4), "noise": True},
    "blueyoung": {"errors": (0.01, 0.01), "switch": True, "slow": 2.0, "since": NOW - 1800 - 240},
    "late": {"errors": (0.01, 0.01), "late": True},
    "latebad": {"errors": (0.01, 0.01), "late": True, "errors_after": 0.05},
    "stopped": {"errors": (0.01, 0.01), "until": NOW - 600},
    # With a baseline. Fresh instances of any version are twice as slow and fail and sell less, until they are warm.
    "cold": {"errors": (0.01, 0.02, 0.02), "beside": True, "cold": True, "slow": 2.0, "business": (0.5, 0.4)},
    "coldbad": {"errors": (0.01, 0.04, 0.02), "beside": True, "cold": True},
    "coldslow": {"errors": (0.01, 0.01, 0.01), "beside": True, "slow": 2.0},
    "coldpoor": {"errors": (0.01, 0.01, 0.01), "beside": True, "business": (0.5, 0.4)},
    "nobase": {"errors": (0.01, 0.01), "share": 0.1},
    # At the switch the baseline and the candidates had half each, and stable nothing.
    "half": {"errors": (0.01, 0.01, 0.01), "beside": True, "share": 0.5, "late": True},
    "halfbad": {"errors": (0.01, 0.01, 0.01), "beside": True, "share": 0.5, "late": True, "errors_after": 0.05},
}


def history(name: str, world: dict[str, Any], rng: random.Random) -> dict[tuple[str, str], list[str]]:
    """OpenMetrics lines by (metric, labels) of one service."""
    lines: dict[tuple[str, str], list[str]] = {}
    totals: dict[tuple[str, str], float] = {}
    start, end = int(world.get("since", SINCE - 3600 - 120)), int(world.get("until", NOW))
    for t in range(start, end + 1, SCRAPE):
        share = world.get("share", 0.1) if t > SINCE else 0.0
        if world.get("switch"):
            share = 1.0 if t > NOW - 1800 else 0.0
        if world.get("late") and t > NOW - 1800:
            share = 1.0
        number = world.get("rate", 2000) * SCRAPE // 60
        aside = share if world.get("beside") and share < 1.0 else 0.0
        for index, pool in enumerate(("stable", "candidate", "baseline")[: len(world["errors"])]):
            n = round(number * (1 - share - aside, share, aside)[index])
            ratio = (
                world.get("errors_after", 0.01)
                if share == 1.0 and index and "late" in world
                else world["errors"][index]
            )
            bad = sum(rng.random() < ratio for _number in range(n))
            like = 1 if world.get("noise") and NOW - 4200 <= t < NOW - 3600 else index
            like = int(bool(world.get("cold"))) if index == 2 else like
            scale = world.get("slow", 1.0) if like else 1.0
            buckets = Counter(rng.choices(PLACES[scale], k=n))
            proxy = 'instance="10.0.0.1:9102",host="e1",proxy="gateway"'
            base = f'service="{name}",direction="outbound",pool="{pool}",{proxy}'
            grown = {
                ("envoy_cluster_upstream_rq_xx", f'{base},envoy_response_code_class="2"'): n - bad,
                ("envoy_cluster_upstream_rq_xx", f'{base},envoy_response_code_class="5"'): bad,
                ("shop_value", f'service="{name}",pool="{pool}"'): None,
            }
            below = 0
            for place, bound in enumerate((*BOUNDS, "+Inf")):
                below += buckets[place]
                grown["envoy_cluster_upstream_rq_time_bucket", f'{base},le="{bound}"'] = below
            for key, more in grown.items():
                if more is None:
                    value = world.get("business", (0.5, 0.5))[like] * rng.gauss(1, 0.05)
                else:
                    totals[key] = totals.get(key, 0) + more
                    value = totals[key]
                    # Envoy shows a class of answers from the first one on.
                    if not value and key[0].endswith("_xx"):
                        continue
                lines.setdefault(key, []).append(f"{key[0]}{{{key[1]}}} {value} {t}")
    return lines


@pytest.fixture(scope="session")
def prometheus(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    by_metric: dict[str, list[str]] = {}
    rng = random.Random(4)
    for name, world in WORLDS.items():
        for (metric, _labels), lines in history(name, world, rng).items():
            by_metric.setdefault(metric, []).extend(lines)
    up = [
        f'up{{job="envoy",instance="10.0.0.1:9102",host="e1",proxy="gateway"}} 1 {t}'
        for t in range(int(SINCE - 3720), int(NOW) + 1, SCRAPE)
    ]
    text = "\n".join(line for lines in (*by_metric.values(), up) for line in lines)
    with serve(tmp_path_factory.mktemp("prometheus"), text) as url:
        yield url


METRICS: tuple[dict[str, Any], ...] = (
    {"name": "errors", "kind": "errors"},
    {"name": "latency", "kind": "latency", "margin": 0.2},
    {
        "name": "value",
        "kind": "business",
        "query": 'avg_over_time(shop_value{service="$service",pool="$pool"}[$window])',
        "margin": 0.05,
    },
)


def request(service: str, *metrics: dict[str, Any], **more: Any) -> judge.Request:
    parsed = tuple(judge.parse_metric(one, "metrics") for one in metrics or METRICS)
    options = {"weights": ((SINCE, 10.0),), "max_age": 300.0, "until": NOW, **more}
    return judge.Request(service=service, since=SINCE, metrics=parsed, **options)


def run(url: str, asked: judge.Request, **more: Any) -> dict[str, Any]:
    result = judge.Judge(Prometheus([url], timeout=5.0), asked, **more).run()
    json.dumps(result, allow_nan=False)
    return result


SWITCHED = {"weights": ((NOW - 1800, 100.0),)}


@pytest.mark.parametrize(
    ("service", "more", "verdict", "named"),
    [
        ("same", {}, "pass", ""),
        ("double", {}, "fail", "errors: worse"),
        ("rare", {}, "fail", "errors: worse"),
        ("slow", {}, "fail", "latency: worse"),
        ("poor", {}, "fail", "value: worse"),
        ("idle", {}, "insufficient_data", "no traffic at all"),
        ("onesided", {}, "insufficient_data", "candidate had 0 requests"),
        ("bluegreen", SWITCHED, "pass", ""),
        ("late", {"weights": ((SINCE, 10.0), (NOW - 1800, 100.0))}, "pass", ""),
        ("latebad", {"weights": ((SINCE, 10.0), (NOW - 1800, 100.0))}, "fail", "errors: worse"),
        ("bluebad", SWITCHED, "fail", "errors: worse"),
        ("blueslow", SWITCHED, "fail", "latency: worse"),
        ("bluepoor", SWITCHED, "fail", "value: worse"),
        ("bluenoise", SWITCHED, "pass", "stable at its slowest within the hour before"),
        ("blueyoung", SWITCHED, "pass", "too little was seen before the switch"),
        ("stopped", {}, "insufficient_data", "newest sample is 600 s old"),
        ("nobody", {}, "insufficient_data", "no series of service nobody"),
    ],
)
def test_worlds(prometheus: str, service: str, more: dict[str, Any], verdict: str, named: str) -> None:
    result = run(prometheus, request(service, **more))["analysis"]
    assert result["verdict"] == verdict, result
    assert named in result["reason"]


BASELINE = {"baseline": "baseline"}
# Judged while the time before the switch is that of the last step.
HALF = {"weights": ((SINCE, 50.0), (NOW - 1800, 100.0)), "until": NOW - 600}


@pytest.mark.parametrize(
    ("service", "more", "verdict", "named"),
    [
        ("cold", {}, "fail", "errors: worse"),
        ("cold", BASELINE, "pass", "on baseline"),
        ("coldbad", BASELINE, "fail", "errors: worse"),
        ("coldslow", BASELINE, "fail", "latency: worse"),
        ("coldpoor", BASELINE, "fail", "value: worse"),
        ("nobase", BASELINE, "insufficient_data", "baseline had 0 requests since the release began"),
        # After the switch the old version is all that was old before it, as without a baseline.
        ("half", HALF, "insufficient_data", "stable had 0 requests before the switch"),
        ("half", {**HALF, **BASELINE}, "pass", "on stable"),
        ("halfbad", {**HALF, **BASELINE}, "fail", "errors: worse"),
        ("late", {"weights": ((SINCE, 10.0), (NOW - 1800, 100.0)), **BASELINE}, "pass", "on stable"),
        ("bluebad", {**SWITCHED, **BASELINE}, "fail", "errors: worse"),
        ("bluenoise", {**SWITCHED, **BASELINE}, "pass", "stable at its slowest within the hour before"),
    ],
)
def test_worlds_with_a_baseline(prometheus: str, service: str, more: dict[str, Any], verdict: str, named: str) -> None:
    result = run(prometheus, request(service, **more))["analysis"]
    assert result["verdict"] == verdict, result
    assert named in result["reason"]
    switched = "weights" in more
    assert result.get("against") == (("stable" if switched else "baseline") if "baseline" in more else None)


def test_the_baselines_requests_are_counted_and_not_stables(prometheus: str) -> None:
    errors, *_others = run(prometheus, request("cold", **BASELINE))["analysis"]["metrics"]
    assert errors["requests"]["stable"] == pytest.approx(errors["requests"]["candidate"], rel=0.01)
    assert errors["stable"] == pytest.approx(0.02, rel=0.1)


def test_after_the_switch_a_baseline_changes_nothing(prometheus: str) -> None:
    """Where it had no traffic: every number is as without one."""
    asked = request("bluepoor", **SWITCHED)
    plain = run(prometheus, asked)["analysis"]
    beside = run(prometheus, request("bluepoor", **SWITCHED, **BASELINE))["analysis"]
    assert beside.pop("against") == "stable"
    assert {**beside, "at": ""} == {**plain, "at": ""}


def test_limit_is_a_hard_stop(prometheus: str) -> None:
    result = run(prometheus, request("same", {"kind": "errors", "limit": 0.001}))["analysis"]
    assert result["verdict"] == "fail"
    assert "the limit is 0.100%" in result["reason"]


def test_no_verdict_before_enough_requests(prometheus: str) -> None:
    result = run(prometheus, request("same", min_requests=10**6))["analysis"]
    assert result["verdict"] == "insufficient_data"


def test_clock_skew_is_corrected_or_refused(prometheus: str) -> None:
    shifted = request("double", {"kind": "errors"}, max_skew=100.0)
    late = run(prometheus, shifted, clock=lambda: time.time() - 30)
    assert late["analysis"]["verdict"] == "fail"
    assert 29 < late["prometheus"]["skew"] < 31
    far = run(prometheus, request("double"), clock=lambda: time.time() - 300)
    assert far["analysis"]["verdict"] == "insufficient_data"
    assert "clock differs" in far["analysis"]["reason"]


def test_dead_prometheus_is_skipped_while_another_lives(prometheus: str) -> None:
    client = Prometheus(["http://127.0.0.1:9", prometheus], timeout=5.0)
    result = judge.Judge(client, request("same")).run()
    assert result["analysis"]["verdict"] == "pass"
    assert "http://127.0.0.1:9" in result["prometheus"]["failures"]


def test_invalid_promql_is_an_error_of_its_own(prometheus: str) -> None:
    with pytest.raises(AnalysisError, match=r"metric value: .*parse error"):
        run(prometheus, request("same", {"name": "value", "kind": "business", "query": "sum(("}))


def test_promql_that_cannot_run_and_that_is_ambiguous_are_no_verdict(prometheus: str) -> None:
    for query in ("shop_value * on (pool) shop_value", "shop_value"):
        result = run(prometheus, request("same", {"name": "value", "kind": "business", "query": query}))["analysis"]
        assert result["verdict"] == "insufficient_data", result


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (422, b'{"status":"error","errorType":"execution","error":"boom"}'),
        (503, b"{}"),
        (200, b"[]"),
        (200, b'{"status":"success","data":{"resultType":"matrix","result":[{"values":[["x"]]}]}}'),
    ],
)
def test_strange_answers_are_no_verdict(status: int, body: bytes) -> None:
    class Strange(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Strange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = run(f"http://127.0.0.1:{server.server_port}", request("same"))
        server.shutdown()
    assert result["analysis"]["verdict"] == "insufficient_data"
    assert not result["prometheus"]["ok"]


def test_silent_prometheus_and_missing_certificates() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        client = Prometheus([f"http://127.0.0.1:{sock.getsockname()[1]}"], timeout=0.3)
        assert "no answer in time" in judge.Judge(client, request("same")).run()["analysis"]["reason"]
    with pytest.raises(Unseen, match="cannot use /nowhere"):
        Prometheus(["https://127.0.0.1:9"], "/nowhere/ca.pem").query("1")


@pytest.fixture
def module(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    from ansible.module_utils.testing import patch_module_args

    def call(**params: Any) -> dict[str, Any]:
        main = importlib.import_module("ansible_collections.causeway.platform.plugins.modules.canary_analysis").main
        capsys.readouterr()
        with patch_module_args({"service": "same", "since": str(SINCE), **params}), pytest.raises(SystemExit):
            main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


def test_module(prometheus: str, module: Callable[..., dict[str, Any]]) -> None:
    weights = [{"at": SINCE, "weight": 10}]
    result = module(urls=[prometheus], until=str(NOW), weights=weights, max_age=300, step=2, weight=10)
    assert not result.get("failed"), result
    assert not result["changed"]
    assert result["analysis"]["verdict"] == "pass", result
    assert (result["analysis"]["step"], result["analysis"]["weight"]) == (2, 10)
    assert [one["name"] for one in result["analysis"]["metrics"]] == ["errors", "latency"]
    assert result["analysis"]["metrics"][0]["requests"]["candidate"] > 10000
    beside = module(
        urls=[prometheus], until=str(NOW), service="cold", baseline="baseline", weights=weights, max_age=300
    )
    assert (beside["analysis"]["verdict"], beside["analysis"]["against"]) == ("pass", "baseline")
    blind = module(urls=["https://127.0.0.1:9"])
    assert blind["analysis"]["verdict"] == "insufficient_data"
    for wrong, said in (
        ({"kind": "speed"}, "kind"),
        ({"kind": "business"}, "query"),
        ({"kind": "errors", "margin": -1}, "margin"),
    ):
        answer = module(urls=[prometheus], analysis={"metrics": [wrong]})
        assert answer["failed"]
        assert said in answer["msg"]


# --- method kayenta ----------------------------------------------------------------------------------------------


def scored(url: str, service: str, *metrics: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = request(service, *metrics, **{"method": "kayenta", "interval": 60.0, **more})
    result = scores.ScoreJudge(Prometheus([url], timeout=5.0), asked).run()
    json.dumps(result, allow_nan=False)
    return result["analysis"]


@pytest.mark.parametrize(
    ("service", "more", "verdict", "score", "named"),
    [
        ("same", {}, "pass", 100.0, "score 100"),
        ("double", {}, "fail", 66.67, "not passing: errors"),
        ("slow", {}, "fail", 66.67, "not passing: latency"),
        ("poor", {}, "fail", 66.67, "not passing: value"),
        ("poor", {"marginal_score": 60.0}, "inconclusive", 66.67, "below 60 fails"),
        ("poor", {"pass_score": 60.0, "marginal_score": 50.0}, "pass", 66.67, ""),
        ("poor", {"groups": (("errors", 90.0), ("latency", 8.0))}, "pass", 98.0, ""),
        ("double", {"final": False}, "inconclusive", 66.67, "only shown"),
        ("same", {"final": False}, "inconclusive", 100.0, "only shown"),
        ("bluegreen", SWITCHED, "pass", 100.0, ""),
        ("bluebad", SWITCHED, "fail", 66.67, "not passing: errors"),
        ("latebad", {"weights": ((SINCE, 10.0), (NOW - 1800, 100.0))}, "fail", 66.67, "errors"),
        ("cold", {}, "fail", 0.0, "not passing: errors"),
        ("cold", BASELINE, "pass", 100.0, ""),
        ("coldpoor", BASELINE, "fail", 66.67, "not passing: value"),
        ("half", {**HALF, **BASELINE}, "pass", 100.0, ""),
        ("idle", {}, "insufficient_data", None, "5 each are needed"),
        ("onesided", {}, "insufficient_data", None, "0 for candidate"),
        ("nobody", {}, "insufficient_data", None, "no series of service nobody"),
        ("same", {"weights": ((SINCE, 10.0), (NOW - 240, 20.0))}, "insufficient_data", None, "4 intervals"),
        ("same", {"min_requests": 10**6}, "insufficient_data", None, "1000000 each"),
    ],
)
def test_scores(
    prometheus: str, service: str, more: dict[str, Any], verdict: str, score: float | None, named: str
) -> None:
    result = scored(prometheus, service, **more)
    assert (result["verdict"], result.get("score")) == (verdict, score), result
    assert named in result["reason"], result


def test_a_score_judges_its_own_step_only(prometheus: str) -> None:
    """What was bad before the last weight is not counted again, and the other way round."""
    switched = {"weights": ((SINCE, 10.0), (NOW - 1800, 100.0))}
    assert scored(prometheus, "latebad", {"kind": "errors"}, **switched)["verdict"] == "fail"
    early = {"weights": ((SINCE, 10.0),), "until": NOW - 1800}
    assert scored(prometheus, "latebad", {"kind": "errors"}, **early)["verdict"] == "pass"


def test_a_critical_metric_and_a_tolerated_effect(prometheus: str) -> None:
    both = ({"kind": "errors", "critical": True}, {"kind": "latency"})
    result = scored(prometheus, "double", *both)
    assert (result["verdict"], result["score"]) == ("fail", 0.0)
    assert "critical metric" in result["reason"]
    errors = result["metrics"][0]
    assert errors["verdict"] == "fail"
    assert errors["lower"] < errors["difference"] < errors["upper"]
    assert 0.7 < errors["difference"] < 1.3
    tolerated = {"kind": "errors", "effect": {"allowed_increase": 3}}
    assert scored(prometheus, "double", tolerated)["verdict"] == "pass"
    assert scored(prometheus, "double", {"kind": "errors", "margin": 2})["verdict"] == "pass"


def test_a_limit_stops_at_every_look(prometheus: str) -> None:
    result = scored(prometheus, "same", {"kind": "errors", "limit": 0.001}, final=False)
    assert result["verdict"] == "fail"
    assert "beyond the limit of 0.001" in result["reason"]


def test_data_that_lack_never_pass(prometheus: str) -> None:
    """Kayenta would count a group without data as 100; a critical metric without as a failure."""
    silent = {"name": "value", "kind": "business", "query": 'nothing{pool="$pool"}'}
    for more in ({"group": "own"}, {"critical": True, "group": "errors"}):
        result = scored(prometheus, "same", {"kind": "errors"}, {"kind": "latency"}, {**silent, **more})
        assert (result["verdict"], result["score"]) == ("insufficient_data", None), result
    one = scored(prometheus, "same", {"kind": "errors"}, {"kind": "latency"}, {**silent, "group": "errors"})
    assert (one["verdict"], one["groups"]) == ("pass", {"errors": 100.0, "latency": 100.0})


def test_identical_versions_are_rarely_failed(prometheus: str) -> None:
    """One look at the end of each of many windows of the same history."""
    found = [
        scored(prometheus, "same", {"kind": "errors"}, {"kind": "latency"}, weights=((SINCE + 60 * k, 10.0),),
               until=SINCE + 60 * k + 1200)["verdict"]
        for k in range(0, 40, 4)
    ]  # fmt: skip
    assert found.count("fail") <= 2, found


def test_intervals_close_with_their_edge() -> None:
    some = [samples.Step("a", t, t + 15.0, {}) for t in (0.0, 15.0, 30.0, 45.0, 60.0)]
    assert [len(one) for one in scores.ticks(some, 0.0, 30.0, 2)] == [2, 2]
    assert [len(one) for one in scores.ticks(some, 75.0, 30.0, 3, mirrored=True)] == [2, 2, 1]


def test_module_judges_by_scores(prometheus: str, module: Callable[..., dict[str, Any]]) -> None:
    given = {"urls": [prometheus], "until": str(NOW), "max_age": 300, "weights": [{"at": SINCE, "weight": 10}]}
    kayenta = {"method": "kayenta", "interval": 60}
    result = module(**given, analysis={**kayenta, "groups": {"errors": 60, "latency": 40}})
    assert result["analysis"]["score"] == 100
    assert result["analysis"]["groups"] == {"errors": 100, "latency": 100}
    early = module(**given, analysis=kayenta, final=False)
    assert (early["analysis"]["verdict"], early["analysis"]["score"]) == ("inconclusive", 100)
    assert "score" not in module(**given, analysis={"interval": 60})["analysis"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "magic"}, "analysis.method: 'magic' is unknown; allowed: sequential, kayenta"),
        ({"groups": {"speed": 100}}, "no metric is in group 'speed'; allowed: errors, latency"),
        ({"groups": {"errors": 60, "latency": 60}}, "at most 100"),
        ({"groups": {"errors": 60, "latency": 30}}, "the weights are 90 in all"),
        ({"groups": {"errors": 100}}, "the weights are 100 in all"),
        ({"groups": {"errors": "much"}}, "are numbers"),
        ({"groups": ["errors"]}, "are numbers"),
        ({"thresholds": {"pass": 50}}, "marginal <= pass"),
        ({"metrics": [{"kind": "errors", "critical": "very"}]}, "critical: 'very' is not allowed"),
        ({"metrics": [{"kind": "errors", "effect": {"allowed_increase": 0.5}}]}, "effect: allowed_increase"),
        ({"metrics": [{"kind": "errors", "effect": [1]}]}, "are numbers"),
    ],
)
def test_wrong_scores(module: Callable[..., dict[str, Any]], wrong: dict[str, Any], said: str) -> None:
    answer = module(urls=["https://127.0.0.1:9"], analysis={"method": "kayenta", **wrong})
    assert answer["failed"]
    assert said in answer["msg"]


# --- samples that lie --------------------------------------------------------------------------------------------


def series(values: list[tuple[float, float]], name: str = "2", **labels: str) -> samples.Series:
    base = {
        "__name__": "envoy_cluster_upstream_rq_xx",
        "pool": "stable",
        "instance": "a",
        "envoy_response_code_class": name,
    }
    return samples.Series({**base, **labels}, tuple(values))


def total(found: list[samples.Step]) -> tuple[float, float]:
    one = samples.tally(found, "stable")
    return one.requests, one.errors


def test_reset_counts_from_zero() -> None:
    notes = samples.Notes()
    found = samples.steps([series([(0, 100), (15, 150), (30, 20), (45, 30)])], [], notes)
    assert total(found) == (80, 0)
    assert notes.resets == 1


def test_a_small_fall_is_no_reset() -> None:
    notes = samples.Notes()
    assert total(samples.steps([series([(0, 1000), (15, 999), (30, 1001)])], [], notes)) == (2, 0)
    assert notes.impossible == 1


def test_a_class_that_appears_counted_from_zero() -> None:
    good, bad = series([(0, 10), (15, 20), (30, 30)]), series([(30, 3)], "5")
    assert total(samples.steps([good, bad], [], samples.Notes())) == (23, 3)


def test_the_first_scrape_of_a_proxy_is_only_a_beginning() -> None:
    assert total(samples.steps([series([(30, 500), (45, 501)])], [], samples.Notes())) == (1, 0)


def test_duplicates_count_once() -> None:
    notes = samples.Notes()
    points = [(0.0, 0.0), (15.0, 10.0), (30.0, 20.0)]
    assert total(samples.steps([series(points), series(points[:2], job="again")], [], notes)) == (20, 0)
    assert notes.duplicates == 1


def test_a_missing_sample_joins_two_steps() -> None:
    found = samples.steps([series([(0, 0), (15, 10), (30, 20)]), series([(0, 0), (30, 2)], "5")], [], samples.Notes())
    assert [(s.start, s.end) for s in found] == [(0, 30)]
    assert total(found) == (22, 2)


def test_nonsense_is_dropped() -> None:
    notes = samples.Notes()
    data = {
        "resultType": "matrix",
        "result": [{"metric": {}, "values": [[1, "1"], [2, "NaN"], [3, "+Inf"], [99, "5"]]}],
    }
    assert samples.matrix(data, 10.0, notes)[0].samples == ((1.0, 1.0),)
    assert (notes.not_numbers, notes.future) == (2, 1)


def test_a_request_that_a_retry_saved_counts_as_failed() -> None:
    retried = samples.Series(
        {"__name__": "envoy_cluster_upstream_rq_retry_success", "pool": "stable", "instance": "a"}, ((0, 0), (15, 4))
    )
    assert total(samples.steps([series([(0, 0), (15, 100)]), retried], [], samples.Notes())) == (100, 4)


def test_the_worst_metric_rules() -> None:
    def of(*verdicts: str) -> str:
        return judge.overall([{"verdict": v, "reason": v} for v in verdicts])[0]

    assert of("pass", "pass") == "pass"
    assert of("pass", "inconclusive") == "inconclusive"
    assert of("inconclusive", "insufficient_data") == "insufficient_data"
    assert of("insufficient_data", "fail", "pass") == "fail"
