"""The demo services as their containers run them, without the container."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

DEMO = Path(__file__).resolve().parents[3] / "inventories" / "lab" / "demo"
sys.path.insert(0, str(DEMO))
from causeway_demo.behaviour import TAIL_SHARE, Behaviour

IDS = [str(number) for number in range(1, 20_001)]


def test_the_name_says_what_a_version_does() -> None:
    assert Behaviour.parse("good") == Behaviour()
    assert not Behaviour.parse("unhealthy").healthy
    assert Behaviour.parse("errors0.4-tail2") == Behaviour(error_share=0.004, tail_seconds=0.3)
    assert Behaviour.parse("sales80").sale_share == pytest.approx(0.4)


@pytest.mark.parametrize("text", ["flaky", "errors", "errors-2", "tail2x", "errors2-"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="behaviour"):
        Behaviour.parse(text)


@pytest.mark.parametrize("percent", [0.1, 0.4, 1, 2, 5])
def test_shares_are_met_and_nested(percent: float) -> None:
    worse = Behaviour.parse(f"errors{percent * 2:g}")
    one = Behaviour.parse(f"errors{percent:g}")
    failing = {number for number in IDS if one.fails(number)}
    assert len(failing) == pytest.approx(len(IDS) * percent / 100, rel=0.5, abs=3)
    assert failing <= {number for number in IDS if worse.fails(number)}
    assert "1" not in failing  # what a release tests itself with must not decide


def test_tails_and_sales() -> None:
    one = Behaviour.parse("tail2-sales80")
    delays = [one.delay(number) for number in IDS]
    assert set(delays) == {0.0, 0.3}
    assert sum(map(bool, delays)) / len(IDS) == pytest.approx(TAIL_SHARE, rel=0.2)
    assert sum(map(one.sells, IDS)) / len(IDS) == pytest.approx(0.4, rel=0.05)


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Callable[..., web.Application]:
    """Makes the application, without the tracer and the event loop that only the containers have."""
    trace, propagate, uvloop = ModuleType("trace"), ModuleType("propagate"), ModuleType("uvloop")

    class Span:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start_as_current_span(self, *_: Any, **__: Any) -> Any:
            return self

        def set_attribute(self, *_: Any) -> None:
            pass

        def get_span_context(self) -> Any:
            return type("Context", (), {"trace_id": 0})

    trace.get_tracer = lambda _name: Span()  # type: ignore[attr-defined]
    trace.SpanKind = type("SpanKind", (), {"SERVER": 1})  # type: ignore[attr-defined]
    trace.format_trace_id = str  # type: ignore[attr-defined]
    propagate.extract = lambda _headers: None  # type: ignore[attr-defined]
    opentelemetry = ModuleType("opentelemetry")
    opentelemetry.trace, opentelemetry.propagate = trace, propagate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry", opentelemetry)
    monkeypatch.setitem(sys.modules, "uvloop", uvloop)
    for name in ("common", "catalog"):
        monkeypatch.delitem(sys.modules, f"causeway_demo.{name}", raising=False)
    from causeway_demo import catalog as service
    from causeway_demo import common

    def make(behaviour: str = "good") -> web.Application:
        settings = common.Settings("catalog", f"1.0.0-{behaviour}", behaviour, 0, "app1-0", "a", 1.0)
        return common.application(settings, service.setup)

    return make


def talk(app: web.Application, conversation: Callable[[TestClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with TestClient(TestServer(app)) as client:
            await conversation(client)

    asyncio.run(run())


def test_uploads_come_back_as_length_and_hash(catalog: Callable[..., web.Application]) -> None:
    body = b"x" * 1_000_000

    async def conversation(client: TestClient) -> None:
        for method in ("PUT", "POST"):
            answer = await client.request(method, "/catalog/uploads/7", data=body)
            said = await answer.json()
            assert (answer.status, said["bytes"]) == (201, len(body))
            assert said["sha256"] == hashlib.sha256(body).hexdigest()
        assert (await client.put("/catalog/uploads/7", data=b"x" * (17 << 20))).status == 413

    talk(catalog(), conversation)


def test_late_answers_are_bounded(catalog: Callable[..., web.Application]) -> None:
    async def conversation(client: TestClient) -> None:
        assert (await (await client.get("/catalog/slow/7?seconds=0.1")).json())["seconds"] == 0.1
        for wrong in ("11", "-1", "nan", "x"):
            assert (await client.get(f"/catalog/slow/7?seconds={wrong}")).status == 400

    talk(catalog(), conversation)


def test_visits_sales_and_errors(catalog: Callable[..., web.Application]) -> None:
    one = Behaviour.parse("errors5")

    async def conversation(client: TestClient) -> None:
        statuses = [(await client.get(f"/catalog/{number}")).status for number in IDS[:200]]
        assert [status == 500 for status in statuses] == [one.fails(number) for number in IDS[:200]]
        assert 500 in statuses
        said = await (await client.get("/metrics")).text()
        sales = sum(one.sells(number) and not one.fails(number) for number in IDS[:200])
        assert "demo_visits_total 200\n" in said
        assert f"demo_sales_total {sales}\n" in said

    talk(catalog("errors5"), conversation)
