# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release as a gateway and a sidecar see it, with the node agent's own documents: real Envoys, two versions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample
from live import Answer, Authority, Proxy, Upstream, client_context, connect, request, wait_for

from ansible_collections.causeway.platform.plugins.module_utils import pools
from ansible_collections.causeway.platform.plugins.module_utils.envoy import proxies
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "roles/node_agent/files"))

from causeway_agent.config import parse_proxy
from causeway_agent.view import Change, RegistryState

EDGE, APP, PORT = "127.77.1.11", "127.77.1.31", 18443
SECRET = "not a secret"
TOKEN = pools.pool_token(SECRET, "orders")
CANARY = {"strategy": "canary", "canary": {"sticky": "cookie", "cohort": {"header": "x-beta", "value": "yes"}}}
BY_HEADER = {"strategy": "canary", "canary": {"sticky": "header:x-user"}}
BASELINE = {"strategy": "canary", "canary": {"sticky": "cookie", "baseline": True}}
BASELINE_BY_HEADER = {"strategy": "canary", "canary": {"sticky": "header:x-user", "baseline": True}}
NOT_STICKY = {"strategy": "canary", "canary": {"sticky": "none"}}
BLUE_GREEN = {"strategy": "blue_green", "blue_green": {"mirror": {"percent": 100.0}}}
SETTINGS = Settings(port=PORT, health_interval=0.25)


@dataclasses.dataclass
class Stage:
    """Gateway, sidecar and two versions of orders; `play` puts a moment of a release on."""

    root: Path
    gateway: Proxy
    orders: Proxy
    stable: Upstream
    candidate: Upstream

    def platform(self, release: dict[str, Any], secret: str = SECRET) -> proxies.Platform:
        services = sample.services()
        services["orders"]["release"] = release
        services["orders"]["calls"] = []
        return dataclasses.replace(sample.platform(services), pool_secret=secret)

    def play(
        self,
        release: dict[str, Any],
        weight: int = 0,
        *,
        running: bool = True,
        secret: str = SECRET,
        split: dict[str, int] | None = None,
        beside: bool = True,
    ) -> None:
        """Write what the agent would at `weight`, with candidates running or not, and wait until Envoy has it.

        `split`: the weights of all pools. `beside`: with a baseline, whether it runs.
        """
        documents = proxies.gateway("edge1", self.platform(release, secret), SETTINGS)
        baseline = pools.has_baseline({"release": release})
        weights = split or pools.weights_of(weight, baseline=baseline)
        view = view_of(documents["proxy"], weights, running, baseline and beside)
        for name, document in sorted(view.documents.items()):
            self.gateway.write(self.gateway.xds / name, json.loads(document.content))
        expected = [document.version for document in view.documents.values()]
        wait_for(
            lambda: all(version in self.gateway.get("/stats?filter=version_text") for version in expected),
            "the gateway to take it over",
            self.gateway.log,
        )
        if running:
            wait_for(
                lambda: "orders_candidate::127.77.1.31:7115::health_flags::healthy" in self.gateway.get("/clusters"),
                "a healthy candidate",
                self.gateway.log,
            )
        if baseline and beside:
            wait_for(
                lambda: "orders_baseline::127.77.1.31:7117::health_flags::healthy" in self.gateway.get("/clusters"),
                "a healthy baseline",
                self.gateway.log,
            )

    def tls(self) -> Path:
        return self.root / "etc/causeway/tls/gateway"

    def ask(self, headers: dict[str, str] | None = None, method: str = "GET", path: str = "/orders/1") -> Answer:
        ca = self.tls() / "current/ca.pem"
        return request(EDGE, PORT, path, client_context(ca), method=method, headers=headers)

    def ask_many(self, headers: list[dict[str, str]]) -> list[Answer]:
        """One request with each of the headers, over one connection."""
        answers = []
        with connect(EDGE, PORT, client_context(self.tls() / "current/ca.pem")) as connection:
            for given in headers:
                connection.request("GET", "/orders/1", headers=given)
                answers.append(Answer(connection.getresponse()))
        assert all(answer.status == 200 for answer in answers), {answer.status for answer in answers}
        return answers


def view_of(proxy: dict[str, Any], weights: dict[str, int], running: bool, baseline: bool = False) -> Any:
    """The agent's documents of a proxy: one stable instance, one candidate if `running`, one `baseline` if asked."""
    state = RegistryState()
    state.snapshot([Change("agents/app1", b"{}", 1)], 1, 0.0)
    (first,) = (one for one in sample.services()["orders"]["instances"]["placed"] if one["host"] == "app1")
    beside = pools.mirrored_slots([first], baseline=baseline)
    members = [first, *(one for one in beside if running or one["pool"] != pools.CANDIDATE)]
    for number, member in enumerate(members):
        value = json.dumps({**member, "instance": member["id"], "version": "1", "weight": 100}).encode()
        state.apply([Change(f"services/orders/app1/{member['slot']}", value, 2 + number)], 0.0)
    state.apply([Change("traffic/orders", json.dumps({"weights": weights}).encode(), 9)], 0.0)
    return state.proxy_view(parse_proxy("proxy", proxy), "north", 0.0)


@pytest.fixture(scope="module")
def stage(envoy: str) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="cw-") as name, contextlib.ExitStack() as stack:
        root = Path(name)
        authority = Authority("causeway test root")
        for identity, who in (("gateway", "gateway"), ("svc-orders", "orders"), ("metrics", "metrics")):
            authority.write(
                root / "etc/causeway/tls" / identity, f"spiffe://{sample.DOMAIN}/{who}", [f"{who}.{sample.DOMAIN}"]
            )
        upstreams = [Upstream("127.89.1.10", 8080, "stable"), Upstream("127.89.1.15", 8080, "candidate")]
        beside = Upstream("127.89.1.17", 8080, "baseline")
        for upstream in (*upstreams, beside):
            stack.callback(upstream.close)
        stage = Stage(root, None, None, *upstreams)  # type: ignore[arg-type]
        platform = stage.platform(BASELINE)
        stage.orders = Proxy(envoy, root, proxies.sidecar("app1", "orders", platform, SETTINGS))
        stage.gateway = Proxy(envoy, root, proxies.gateway("edge1", platform, SETTINGS))
        for proxy in (stage.orders, stage.gateway):
            stack.callback(proxy.stop)
        # The files must be there before Envoy starts.
        documents = proxies.gateway("edge1", platform, SETTINGS)
        for path, document in view_of(documents["proxy"], {"stable": 100}, True, True).documents.items():
            stage.gateway.write(stage.gateway.xds / path, json.loads(document.content))
        stage.orders.start()
        stage.gateway.start()
        stage.play(CANARY)
        wait_for(lambda: stage.ask().status == 200, "the first answer", stage.gateway.log)
        yield stage


def served_by(answers: list[Answer]) -> list[str]:
    return [answer.json()["service"] for answer in answers]


def test_without_a_release_nothing_is_different(stage: Stage) -> None:
    stage.play(CANARY, running=False)
    answers = stage.ask_many([{}, {"x-beta": "yes"}, {"cookie": "causeway-orders=old"}])
    assert served_by(answers) == ["stable"] * 3
    assert not any("set-cookie" in answer.headers for answer in answers)


def test_a_new_user_gets_a_cookie_and_stays_where_it_was_placed(stage: Stage) -> None:
    stage.play(CANARY, 40)
    first = stage.ask_many([{} for _number in range(100)])
    share = served_by(first).count("candidate")
    assert 15 <= share <= 65, "of 100 at weight 40: outside by chance once in a million runs"
    cookies = []
    for answer in first:
        match = re.fullmatch(
            r"(causeway-orders=[0-9a-f-]{36}); Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax",
            answer.headers["set-cookie"],
        )
        assert match, answer.headers["set-cookie"]
        cookies.append(match[1])
    assert len(set(cookies)) == 100
    again = stage.ask_many([{"cookie": f"theme=dark; {cookie}"} for cookie in cookies])
    assert served_by(again) == served_by(first)
    assert not any("set-cookie" in answer.headers for answer in again)


@pytest.mark.parametrize("release", [CANARY, BY_HEADER], ids=["cookie", "header"])
def test_users_only_ever_move_from_stable_to_candidate(stage: Stage, release: dict[str, Any]) -> None:
    users = [
        {"cookie": f"causeway-orders=user-{number}"} if release is CANARY else {"x-user": f"user-{number}"}
        for number in range(200)
    ]
    moved: set[int] = set()
    for weight in (1, 5, 25, 50, 75, 99, 100):
        stage.play(release, weight)
        now = {number for number, pool in enumerate(served_by(stage.ask_many(users))) if pool == "candidate"}
        assert moved <= now, f"at {weight}: {sorted(moved - now)} went back"
        moved = now
    assert len(moved) == len(users)
    stage.play(release, 0)
    assert set(served_by(stage.ask_many(users))) == {"stable"}, "the way back"


@pytest.mark.parametrize("release", [BASELINE, BASELINE_BY_HEADER], ids=["cookie", "header"])
def test_users_of_three_pools_never_move_back_to_the_old_version(stage: Stage, release: dict[str, Any]) -> None:
    """Places move from stable to the baseline or to the candidates, and from the baseline only at the switch."""
    users = [
        {"cookie": f"causeway-orders=user-{number}"} if release is BASELINE else {"x-user": f"user-{number}"}
        for number in range(200)
    ]
    before = ["stable"] * len(users)
    for weight in (1, 5, 25, 40, 50):
        stage.play(release, weight)
        now = served_by(stage.ask_many(users))
        moves = {(old, new) for old, new in zip(before, now) if old != new}
        assert moves <= {("stable", "baseline"), ("stable", "candidate")}, weight
        before = now
    assert set(before) == {"baseline", "candidate"}, "at 50 nothing is left for stable"
    assert 60 <= before.count("baseline") <= 140, "of 200 at weight 50: outside by chance once in 100 million runs"
    stage.play(release, 50, beside=False)
    alone = served_by(stage.ask_many(users))
    assert alone == [{"baseline": "stable"}.get(pool, pool) for pool in before], "without a baseline they are stable's"
    stage.play(release, 100)
    assert set(served_by(stage.ask_many(users))) == {"candidate"}
    stage.play(release, 0)
    assert set(served_by(stage.ask_many(users))) == {"stable"}, "the way back"


def test_a_gateway_without_the_baseline_gives_its_share_to_stable(stage: Stage) -> None:
    users = [{"cookie": f"causeway-orders=user-{number}"} for number in range(200)]
    stage.play(CANARY, 25)
    wanted = served_by(stage.ask_many(users))
    stage.play(CANARY, split=pools.weights_of(25, baseline=True))
    assert served_by(stage.ask_many(users)) == wanted


def test_not_sticky_means_each_request_anew(stage: Stage) -> None:
    stage.play(NOT_STICKY, 50)
    answers = stage.ask_many([{"cookie": "causeway-orders=me", "x-user": "me"}] * 60)
    assert set(served_by(answers)) == {"stable", "candidate"}
    assert not any("set-cookie" in answer.headers for answer in answers)


def test_a_cohort_goes_to_candidates_that_take_traffic_and_never_to_an_empty_pool(stage: Stage) -> None:
    beta = [{"x-beta": "yes"}] * 20
    stage.play(CANARY, 5)
    assert set(served_by(stage.ask_many(beta))) == {"candidate"}
    assert "stable" in served_by(stage.ask_many([{"x-beta": "no"}] * 20))
    stage.play(CANARY, 0)
    assert set(served_by(stage.ask_many(beta))) == {"stable"}, "not before the release gives them traffic"
    stage.play(CANARY, 5, running=False)
    assert set(served_by(stage.ask_many(beta))) == {"stable"}, "candidates are gone"


@pytest.mark.parametrize("release", [CANARY, BLUE_GREEN, {}], ids=["canary", "blue-green", "none"])
def test_the_token_reaches_candidates_at_weight_zero_and_goes_no_further(stage: Stage, release: dict[str, Any]) -> None:
    stage.play(release, 0)
    answer = stage.ask({"x-causeway-pool": TOKEN})
    assert (answer.status, answer.json()["service"]) == (200, "candidate")
    assert "x-causeway-pool" not in answer.json()["headers"]
    for wrong in ("candidate", TOKEN[:-1], TOKEN + "0", pools.pool_token(SECRET, "catalog")):
        answer = stage.ask({"x-causeway-pool": wrong})
        assert (answer.status, answer.json()["service"]) == (200, "stable")
        assert "x-causeway-pool" not in answer.json()["headers"]


def test_a_test_sees_an_empty_pool_and_every_failure(stage: Stage) -> None:
    stage.play(CANARY, 0, running=False)
    assert stage.ask({"x-causeway-pool": TOKEN}).status == 503
    assert stage.ask().status == 200
    stage.play(CANARY, 0)
    answer = stage.ask({"x-causeway-pool": TOKEN}, path="/orders/flaky-test")
    assert answer.status == 503, "no retry"


def test_without_a_secret_there_is_no_such_way(stage: Stage) -> None:
    stage.play(CANARY, 0, secret="")
    answer = stage.ask({"x-causeway-pool": TOKEN})
    assert (answer.status, answer.json()["service"]) == (200, "stable")
    assert stage.ask({"x-causeway-pool": ""}).json()["service"] == "stable"


def test_safe_requests_are_mirrored_while_candidates_have_no_weight(stage: Stage) -> None:
    stage.play(BLUE_GREEN, 0)
    path = "/orders/mirrored"

    def seen() -> dict[str, int]:
        return {method: stage.candidate.seen.get(f"{method} {path}", 0) for method in ("GET", "POST")}

    for method in ("GET", "POST"):
        for _number in range(5):
            answer = stage.ask(method=method, path=path)
            assert (answer.status, answer.json()["service"]) == (200, "stable")
    wait_for(lambda: seen()["GET"] == 5, "five copies")
    stage.play(BLUE_GREEN, 100)
    assert stage.ask(path=path).json()["service"] == "candidate"
    stage.play(BLUE_GREEN, 0, running=False)
    assert stage.ask(path=path).json()["service"] == "stable"
    time.sleep(0.2)
    assert seen() == {"GET": 6, "POST": 0}, "no copies beside real requests, none of unsafe ones"


def test_candidates_that_die_cost_no_requests_once_the_agent_knows(stage: Stage) -> None:
    for release in (CANARY, BLUE_GREEN):
        for weight in (5, 100):
            stage.play(release, weight, running=False)
            assert set(served_by(stage.ask_many([{"cookie": f"causeway-orders={n}"} for n in range(30)]))) == {"stable"}


def test_a_slot_without_a_container_fails_quickly(stage: Stage) -> None:
    stage.play(CANARY, running=False)
    stage.candidate.server.shutdown()
    stage.candidate.server.server_close()
    # Threads of the closed server still answer on kept connections, until the sidecar gives those up.
    time.sleep(SETTINGS.app_idle_timeout + 0.5)
    context = client_context(stage.tls() / "current/ca.pem", stage.tls())
    started = time.monotonic()
    assert request(APP, 7115, "/healthz", context).status == 503
    assert time.monotonic() - started < 1.0
    assert request(APP, 7110, "/healthz", context).status == 200


def test_latency_histograms_of_pools_are_fine_and_others_are_not(stage: Stage) -> None:
    metrics = stage.gateway.get("/stats/prometheus")

    def limits(name: str, cluster: str) -> list[float]:
        found = re.findall(
            rf'^{name}_bucket{{[^}}]*cluster_name="{cluster}"[^}}]*le="([0-9.]+)"}}', metrics, re.MULTILINE
        )
        return sorted(float(text) for text in found)

    fine = limits("envoy_cluster_upstream_rq_time", "orders_stable")
    assert {25.0, 50.0, 63.0, 100.0, 250.0, 1000.0} <= set(fine)
    steps = [high / low for low, high in zip(fine, fine[1:]) if low >= 5 and high <= 10000]
    assert max(steps) < 1.281
    assert 35 <= len(fine) <= 50
    assert len(limits("envoy_cluster_upstream_cx_connect_ms", "orders_stable")) < 25
    lines = [line for line in metrics.splitlines() if line.startswith("envoy_cluster_upstream_rq_time_bucket")]
    lines = [line for line in lines if 'cluster_name="orders_stable"' in line]
    print(f"{len(fine)} buckets, {sum(map(len, lines))} of {len(metrics)} bytes of metrics for one pool")
    assert sum(map(len, lines)) < 6000
