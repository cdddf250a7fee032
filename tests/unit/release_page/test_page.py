# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of releases: what it says, and how a real browser shows it."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import release_page
from ansible_collections.causeway.platform.plugins.module_utils.release_record import Release

from . import sample
from .browser import Browser


def html(services: dict[str, Any] | None = None) -> str:
    return release_page.render_page(sample.services() if services is None else services, "shop", sample.at(540))


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_needs_nothing_else_and_runs_nothing() -> None:
    page = Reader(html())
    names = {tag for tag, _attributes in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "img"}
    for _tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith("#")
    assert sample.HOSTILE in page.text
    policy = [one["content"] for tag, one in page.tags if tag == "meta" and "http-equiv" in one]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_scores_are_shown_with_their_groups() -> None:
    services = sample.services()
    release = services["orders"]["release"]["release"]
    release["analyses"][-1].update(score=66.67, groups={"errors": 100.0, "latency": None})
    text = Reader(html(services)).text
    assert "score 66.67 of 100 (errors 100, latency " in text
    assert "of 100 (" not in Reader(html()).text


def test_it_is_readable_without_eyes_and_without_colours() -> None:
    page = Reader(html())
    ids = [one["id"] for _tag, one in page.tags if "id" in one]
    assert len(ids) == len(set(ids))
    for tag, one in page.tags:
        for reference in (one.get("aria-labelledby") or "").split():
            assert reference in ids
        if tag == "svg":
            assert one.get("role") == "img" or one.get("aria-hidden") == "true"
    count = {tag: sum(1 for name, _rest in page.tags if name == tag) for tag in ("table", "caption", "h1", "main")}
    assert count["table"] == count["caption"] > 10
    assert (count["h1"], count["main"]) == (1, 1)
    for words in ("✓ passed", "✕ failed", "◆ not decided yet", "○ too few data", "✕ rolled back"):
        assert words in page.text


@pytest.mark.parametrize(
    "words",
    [
        "1 release under way in 4 services",
        "takes traffic step by step",
        "50 % now",
        "alice asked to",
        "held until it is resumed",
        "Stable pool (1.0.0): 50 % of the traffic",
        "+23 %",
        "57,600",
        "+3.4 % to +18.4 %",
        "no values yet",
        "app2/0",
        "no, it is draining",
        "It was never released",
        "was rolled back",
        "after 1 min 26 s",
    ],
)
def test_it_says(words: str) -> None:
    assert words.lower() in " ".join(Reader(html()).text.lower().split())


def test_a_baseline_is_shown_beside_the_other_pools() -> None:
    services = sample.services()
    orders = services["orders"]
    plain = " ".join(Reader(html({"orders": orders})).text.split())
    assert "Baseline" not in plain
    assert "1.0.0 (stable)" in plain
    orders["instances"] += [sample.instance("app1", 7, "baseline", "1.0.0")]
    orders["traffic"]["weights"] = {"stable": 0, "candidate": 50, "baseline": 50}
    orders["release"]["release"]["analyses"][-1]["against"] = "baseline"
    read = Reader(html({"orders": orders}))
    text = " ".join(read.text.split())
    assert "Stable pool (1.0.0): 0 % of the traffic" in text
    assert "Baseline pool (1.0.0): 50 %" in text
    assert "1.0.0 (baseline)" in text
    (split,) = [tag for _name, tag in read.tags if tag.get("class") == "split"]
    assert split["aria-label"] == "Traffic: stable 0 %, candidate 50 %, baseline 50 %"
    widths = [str(tag["style"]) for name, tag in read.tags if name == "span" and "width" in str(tag.get("style"))]
    assert widths == ["width:50%", "width:0%", "width:50%"], "the whole bar"
    assert "app1/7north-bbaseline1.0.0yes" in text, "a row of instances"


def test_a_release_without_its_controller_is_told() -> None:
    services = sample.services()
    services["orders"]["lock"] = {}
    assert "Nobody holds this service" in html(services)
    assert "Nobody holds this service" not in html()


def test_a_request_for_another_release_is_not_shown() -> None:
    services = sample.services()
    services["orders"]["command"]["release"] = "another"
    assert "alice" not in html(services)


@pytest.mark.parametrize(
    "services",
    [
        {},
        {"a": {}},
        {"a": {"instances": [], "release": {"release": {}}, "traffic": None, "lock": None}},
        {"a": {"release": {"release": {"id": "x", "state": "shifting", "weights": [{"at": "?", "weight": None}]}}}},
        {
            "a": {
                "release": {
                    "release": {"analyses": [{"at": "yesterday", "verdict": "odd", "metrics": [{"name": "m"}]}]}
                }
            }
        },
        {"a": {"release": {"history": [{}], "current": None, "state": "odd"}}},
    ],
    ids=["no service", "nothing known", "empty values", "no times", "odd verdicts", "odd history"],
)
def test_odd_content_gives_a_page_all_the_same(services: dict[str, Any]) -> None:
    assert html(services).rstrip().endswith("</html>")


def test_the_weights_are_steps() -> None:
    release = Release.of(sample.services()["orders"]["release"]["release"])
    assert release
    plot = release_page.weights_plot(release)
    points = [tuple(map(float, point.split(","))) for point in plot.line.split()]
    assert all(one[0] == other[0] or one[1] == other[1] for one, other in zip(points, points[1:]))
    assert len({y for _x, y in points}) == 4
    assert points[-1][0] == release_page.WIDTH - release_page.RIGHT


def test_the_band_holds_the_difference_and_unbounded_sides_reach_the_edge() -> None:
    release = Release.of(sample.services()["orders"]["release"]["release"])
    assert release
    errors = release_page.metric_plot(release, "errors")
    ys = [float(point.split(",")[1]) for point in errors.area.split()]
    half = len(ys) // 2
    for mark, top, bottom in zip(errors.marks, ys[:half], reversed(ys[half:])):
        assert top - 0.2 <= mark.y <= bottom + 0.2
    assert [mark.shape for mark in errors.marks] == ["empty"] + ["pass"] * 15
    latency = release_page.metric_plot(release, "latency")
    bottoms = [float(point.split(",")[1]) for point in latency.area.split()][-2:]
    assert bottoms == [release_page.HEIGHT - release_page.BOTTOM] * 2
    assert release_page.metric_plot(release, "orders placed").line == ""


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0123, "ratio", "1.23 %"),
        (0.142, "seconds", "142 ms"),
        (1.5, "seconds", "1.5 s"),
        (57600, "", "57,600"),
        (12.25, "1/s", "12.25 1/s"),
        (None, "ratio", "-"),
        (math.nan, "", "-"),
        (True, "", "-"),
    ],
)
def test_numbers(value: Any, unit: str, shown: str) -> None:
    assert release_page.show_number(value, unit) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "+50 %"), (-0.0012, "-0.12 %"), (29.6, "+2,960 %"), (None, "-"), (math.inf, "-")]
)
def test_changes_are_relative_to_the_version_before(value: Any, shown: str) -> None:
    assert release_page.show_change(value) == shown


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.013, 0.021), (0, 0), (5, 5), (1e-9, 3e-9), (-4e6, 1e7)])
def test_ticks_are_round_and_cover(low: float, high: float) -> None:
    ticks = release_page.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12


# --- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("browser"))
    try:
        yield one
    finally:
        one.close()


def pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and the different lines of an 8-bit PNG, still filtered: a blank picture has next to none."""
    width, height = struct.unpack(">II", png[16:24])
    data, place = b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += 12 + length
    raw = zlib.decompress(data)
    size = len(raw) // height
    return width, height, {raw[row * size : (row + 1) * size] for row in range(height)}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    page = tmp_path / "release-status.html"
    page.write_text(html())
    browser.messages.clear()
    browser.open(page, width, dark=dark)
    assert browser.messages == []
    assert browser.evaluate("document.title") == "Releases of shop"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing sticks out of its place, except in a box that scrolls by itself.
    wide = """[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, .hidden, svg')
        && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""
    assert browser.evaluate(wide) == []
    # Every plot is drawn, and its smallest text can be read.
    boxes = "[...document.querySelectorAll('svg[role=img]')].map(one => one.getBoundingClientRect())"
    plots = browser.evaluate(f"{boxes}.map(box => [box.width, box.height])")
    assert len(plots) == 6
    assert all(box[0] > 250 and box[1] > 90 for box in plots)
    sizes = "[...document.querySelectorAll('svg[role=img] text')].map(one => one.getBoundingClientRect().height)"
    assert min(browser.evaluate(sizes)) >= 10
    # Text stands out from what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1).
    assert min(browser.evaluate(CONTRAST)) >= 4.5
    shot_width, height, lines = pixels(browser.screenshot(tmp_path / "page.png"))
    assert (shot_width, height > 1500) == (width, True)
    assert len(lines) > 300


CONTRAST = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = one => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!color.endsWith(', 0)')) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('h1, h2, h3, h4, p, .badge, th, td, summary, li, footer')].map(one => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
})()"""
