# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that wait for each other, over a real etcd."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd, registry
from ansible_collections.causeway.platform.plugins.module_utils.rendezvous import Rendezvous, RendezvousError

NAMES = ["db1", "db2", "db3"]


@pytest.fixture
def meet(client: etcd.EtcdClient, keys: registry.Keys) -> Callable[[str], Rendezvous]:
    word = str(uuid.uuid4())
    return lambda name: Rendezvous(client, keys, word, name, members=NAMES, ttl=30)


def test_nobody_goes_on_before_all_are_there(meet: Callable[[str], Rendezvous]) -> None:
    left: dict[str, float] = {}

    def come(name: str, after: float) -> None:
        meeting = meet(name)
        time.sleep(after)
        meeting.say("here", {"name": name})
        words = meeting.gather("here", 10)
        left[name] = time.monotonic()
        assert words == {one: {"name": one} for one in NAMES}

    began = time.monotonic()
    threads = [threading.Thread(target=come, args=(name, delay)) for name, delay in zip(NAMES, (0.0, 0.1, 0.6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(left) == NAMES
    assert min(left.values()) - began >= 0.6


def test_who_does_not_come_is_named(meet: Callable[[str], Rendezvous]) -> None:
    meet("db2").say("here", {})
    one = meet("db1")
    one.say("here", {})
    with pytest.raises(RendezvousError, match=r"^db3 did not come to step 'here' within 0\.2 s .*forks"):
        one.gather("here", 0.2)


def test_one_that_gives_up_ends_every_wait(meet: Callable[[str], Rendezvous]) -> None:
    said: dict[str, str] = {}

    def wait(name: str, act: Callable[[Rendezvous], Any]) -> None:
        try:
            act(meet(name))
        except RendezvousError as error:
            said[name] = str(error)

    threads = [
        threading.Thread(target=wait, args=("db1", lambda meeting: meeting.gather("held", 10))),
        threading.Thread(target=wait, args=("db2", lambda meeting: meeting.first("leads", 10))),
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    meet("db3").give_up("transactions still ran after 5 s")
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 5
    assert said == dict.fromkeys(("db1", "db2"), "db3: transactions still ran after 5 s")


def test_what_is_complete_stays_done_whoever_stumbles_afterwards(meet: Callable[[str], Rendezvous]) -> None:
    meet("db2").say("leads", {"name": "db2"})
    meet("db1").give_up("the answer came late")
    assert meet("db3").first("leads", 1) == {"name": "db2"}


def test_a_stranger_is_refused(meet: Callable[[str], Rendezvous]) -> None:
    with pytest.raises(RendezvousError, match="'db9' is not one of the members: db1, db2, db3"):
        meet("db9")


def test_nothing_stays_behind(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    meeting = Rendezvous(client, keys, str(uuid.uuid4()), "db1", members=["db1"], ttl=2)
    meeting.say("here", {})
    assert client.range(keys.of("rendezvous", ""))[0]
    deadline = time.monotonic() + 10
    while client.range(keys.of("rendezvous", ""))[0]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
