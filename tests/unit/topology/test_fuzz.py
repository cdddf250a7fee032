"""Whatever is put where, the answer is a description or a list of problems: never another exception, never silence."""

from __future__ import annotations

import copy
import random

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Vaulted

JUNK = [
    None,
    True,
    0,
    -1,
    3.5,
    10**30,
    "",
    "x",
    "../x",
    "north-a",
    "catalog",
    "5s",
    "10.0.1.31",
    "/",
    "a\nb",
    "\u202e",
    "{{ x }}",
    [],
    {},
    [[]],
    [None],
    ["x", "x"],
    [{}],
    {"x": {}},
    {"": None},
    {"x": [1]},
]
HOOKS = [
    {"name": "a", "stages": ["test"], "webhook": {"url": "https://x.test/", "secret": "s"}},
    {"name": "b", "stages": ["pre", "verdict"], "mail": {"to": ["a@x.test"]}, "timeout": "9s", "failure": "stop"},
]


def spots(value, path=()):
    """Every path in a structure."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from spots(item, (*path, key))


DATABASE = {
    "name": "orders",
    "members": 1,
    "placement": {"zones": ["north-a"]},
    "extensions": ["vector", "pg_cron"],
    "pool": {"size": 5},
    "settings": {"work_mem": "64MB", "cron.max_running_jobs": 3},
    "backup": {"full": "daily", "retention": {"full": 2}, "checks": ["SELECT true"]},
}


@pytest.mark.parametrize("seed", range(200))
def test_junk_anywhere(files, seed):
    chance = random.Random(seed)
    files.set("orders", "environment", {"A": "b"})
    files.set("orders", "placement", {"zones": ["north-a", "north-b", "north-c"], "regions": ["north"]})
    scores = {"method": "kayenta", "groups": {"errors": 100}, "thresholds": {"pass": 90}}
    metrics = [{"name": "errors", "kind": "errors", "effect": {"allowed_increase": 2}, "group": "errors"}]
    analysis = {**scores, "metrics": metrics}
    files.set("orders", "release", {"batch": 1, "verify": {"path": "/orders/1"}, "analysis": analysis, "hooks": HOOKS})
    files.set("orders", "routes/0/retries", {"attempts": 1, "backoff": {"base": "10ms"}})
    files.set("platform", "lab", {"name": "x", "network": "10.0.0.0/16", "packages": ["curl"]})
    files.set("platform", "vars", {"x": 1})
    files.set("orders", "database", copy.deepcopy(DATABASE))
    files.set(
        "platform", "regions/north/zones/north-a/hosts/core1/components", ["registry", "trust", "database", "backup"]
    )
    for _change in range(chance.choice([1, 1, 1, 3])):
        file = chance.choice(["platform", "orders"])
        path = chance.choice([path for path in spots(files.data[file]) if path] or [("x",)])
        target = files.data[file]
        for part in path[:-1]:
            target = target[part]
        if isinstance(target, dict) and chance.random() < 0.2:
            target[chance.choice(["x", "", "componets", "a b", "vars"])] = copy.deepcopy(chance.choice(JUNK))
        elif isinstance(target, (dict, list)):
            target[path[-1]] = copy.deepcopy(chance.choice(JUNK))
    assert isinstance(files.problems(), list)


def test_a_vaulted_value_is_no_text_elsewhere(files):
    path = files.write()
    text = path.read_text().replace("platform: shop", "platform: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162")
    files.text("platform", text)
    problems = files.problems()
    assert len(problems) == 1
    assert "platform: wrong type (got a !vault value; allowed: a DNS label" in problems[0]
    assert Vaulted("x") != "x"
