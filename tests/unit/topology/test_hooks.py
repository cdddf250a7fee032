"""Hooks in a service file: what is filled in, and one clear message for each mistake."""

from __future__ import annotations

import pytest
import yaml

URL = "https://hooks.example.test:8443/causeway?team=a"
WEBHOOK = {"name": "h", "stages": ["test"], "webhook": {"url": URL, "secret": "hook"}}
MAIL = {"name": "h", "stages": ["promoted"], "mail": {"to": ["ops@example.test"]}}


def spec(files, *hooks):
    files.set("orders", "release", {"hooks": list(hooks)})
    return files.read().variables["causeway_services"]["orders"]["release"]["hooks"]


def test_defaults_and_files_beside_the_service_file(files):
    (files.folder / "services").mkdir()
    for name in ("smoke.yml.d", "ca.pem"):
        (files.folder / "services" / name).write_text("x")
    (files.folder / "hooks").mkdir()
    (files.folder / "hooks" / "smoke.yml").write_text("[]")
    found = spec(
        files,
        {"name": "smoke", "stages": ["verdict", "pre"], "playbook": "../hooks/smoke.yml", "timeout": "5m"},
        {**WEBHOOK, "name": "gate", "webhook": {**WEBHOOK["webhook"], "ca_file": "ca.pem"}, "failure": "ignore"},
        {**MAIL, "stages": ["pre"]},
        {**MAIL, "name": "strict", "stages": ["pre"], "failure": "stop"},
    )
    nothing = {"playbook": "", "webhook": {}, "mail": {}}
    assert found == [
        {
            **nothing,
            "name": "smoke",
            "stages": ["pre", "verdict"],
            "playbook": f"{files.folder}/hooks/smoke.yml",
            "timeout": 300.0,
            "failure": "stop",
        },
        {
            **nothing,
            "name": "gate",
            "stages": ["test"],
            "webhook": {"url": URL, "secret": "hook", "ca_file": f"{files.folder}/services/ca.pem"},
            "timeout": 60.0,
            "failure": "ignore",
        },
        {
            **nothing,
            "name": "h",
            "stages": ["pre"],
            "mail": {"to": ["ops@example.test"]},
            "timeout": 60.0,
            "failure": "ignore",  # a mail asks nobody
        },
        {
            **nothing,
            "name": "strict",
            "stages": ["pre"],
            "mail": {"to": ["ops@example.test"]},
            "timeout": 60.0,
            "failure": "stop",
        },
    ]


def webhook(**change):
    return {**WEBHOOK, "webhook": {key: value for key, value in {**WEBHOOK["webhook"], **change}.items() if value}}


MISTAKES = {
    "stage": ({**WEBHOOK, "stages": ["tset"]}, ["hooks[0].stages[0]: unknown value", 'mean "test"?', "pre, test, ver"]),
    "no stage": ({**WEBHOOK, "stages": []}, ["hooks[0].stages: wrong number of entries"]),
    "stages missing": ({"name": "h", "mail": MAIL["mail"]}, ["hooks[0]: the key stages is missing", "pre, test"]),
    "a stage as text": ({**WEBHOOK, "stages": "test"}, ["hooks[0].stages: wrong type", "a list of pre, test, verdict"]),
    "name": ({**WEBHOOK, "name": "My Hook"}, ["hooks[0].name: not valid"]),
    "two kinds": (
        {**WEBHOOK, "mail": MAIL["mail"]},
        ["hooks[0]: a hook does one thing (got webhook and mail; allowed: one of playbook, webhook, mail)"],
    ),
    "no kind": ({"name": "h", "stages": ["pre"]}, ["hooks[0]: a hook does one thing (got nothing; allowed: one of"]),
    "no such playbook": (
        {"name": "h", "stages": ["pre"], "playbook": "../smoke.yml"},
        ['hooks[0].playbook: no such file (got "../smoke.yml"; allowed: a file, its path relative to this one)'],
    ),
    "no such ca file": (webhook(ca_file="x.pem"), ["hooks[0].webhook.ca_file: no such file", '"x.pem"']),
    "http": (
        webhook(url="http://hooks.example.test/"),
        ["webhook.url: not valid", "an https URL without user name; http only to localhost or 127.0.0.1"],
    ),
    "http to a name like localhost": (webhook(url="http://localhost.example.test/"), ["webhook.url: not valid"]),
    "password in the URL": (webhook(url="https://me:word@example.test/"), ["webhook.url: not valid"]),
    "no URL at all": (webhook(url="ftp://example.test/"), ["webhook.url: not valid"]),
    "no secret": (webhook(secret=""), ["hooks[0].webhook: the key secret is missing", "the name of a secret"]),
    "a secret in place of its name": (webhook(secret="whsec_MDEyMw=="), ["webhook.secret: not valid"]),
    "the platform's secret": (webhook(secret="registry"), ["webhook.secret: a secret of the platform's own"]),
    "address": ({**MAIL, "mail": {"to": ["ops"]}}, ["mail.to[0]: not valid", "a mail address"]),
    "address with a line end": ({**MAIL, "mail": {"to": ["a@b.test\nBcc: c@d.test"]}}, ["mail.to[0]: not valid"]),
    "nobody": ({**MAIL, "mail": {"to": []}}, ["mail.to: wrong number of entries"]),
    "timeout 0": ({**WEBHOOK, "timeout": "0s"}, ["hooks[0].timeout: not valid", '"0s"', "a duration from 1s to 1h"]),
    "timeout without unit": ({**WEBHOOK, "timeout": 0}, ["hooks[0].timeout: wrong type"]),
    "failure": ({**WEBHOOK, "failure": "warn"}, ["hooks[0].failure: unknown value", "stop, ignore"]),
    "stop what has happened": ({**MAIL, "failure": "stop"}, ["hooks[0].failure: nothing is left to stop", "ignore"]),
    "unknown key": ({**WEBHOOK, "when": ["pre"]}, ["hooks[0].when: unknown key"]),
}


@pytest.mark.parametrize(("hook", "words"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_gets_one_message(files, hook, words):
    files.set("orders", "release", {"hooks": [hook]})
    problems = files.problems()
    assert len(problems) == 1, problems
    assert "services/orders.yml:" in problems[0]
    for word in words:
        assert word in problems[0]


def test_names_are_given_once(files):
    files.set("orders", "release", {"hooks": [WEBHOOK, {**MAIL, "stages": ["pre"]}]})
    assert ["hooks[1].name: given twice" in problem for problem in files.problems()] == [True]


def test_http_to_this_machine_is_enough(files):
    for url in ("http://localhost:8000/x", "http://127.0.0.1/"):
        assert spec(files, webhook(url=url))[0]["webhook"]["url"] == url
    assert yaml.safe_load("on: 1") == {True: 1}  # why the key is not "on"
