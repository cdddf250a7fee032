# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that run one module at the same time wait for each other through the registry.

An Ansible task that ends on every host before the next one begins costs a second and more; where clients are held
meanwhile, the steps belong into one task, and the hosts tell each other how far they are. Each writes keys
``<platform>/rendezvous/<meeting>/<step>/<member>`` under one lease, so that nothing stays behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.causeway.platform.plugins.module_utils.etcd import EtcdClient
from ansible_collections.causeway.platform.plugins.module_utils.registry import Keys

if TYPE_CHECKING:
    from typing import TypeAlias

Json: TypeAlias = "dict[str, Any]"  # in quotes: Python 3.8 could not import it otherwise

# Seconds between two looks. Each costs the registry one read of a few keys.
LOOK = 0.03
PROBLEM = "problem"


class RendezvousError(Exception):
    """Somebody did not come or gave up; the message says who and why."""


class Rendezvous:
    """One meeting of ``members``, seen from ``member``. What is said at a step is a JSON object."""

    def __init__(
        self, client: EtcdClient, keys: Keys, meeting: str, member: str, *, members: Sequence[str], ttl: int = 120
    ) -> None:
        """``meeting``: a name that is never used again; ``ttl``: seconds after which its keys are gone."""
        if member not in members:
            raise RendezvousError(f"'{member}' is not one of the members: {', '.join(members)}")
        self.client, self.member, self.members = client, member, list(members)
        self._prefix = keys.of("rendezvous", meeting, "")
        self._lease = client.lease_grant(ttl)

    def say(self, step: str, word: Mapping[str, Any]) -> None:
        """Tell the others how far this one is."""
        self.client.put(f"{self._prefix}{step}/{self.member}", json.dumps(dict(word), sort_keys=True), self._lease)

    def give_up(self, why: str) -> None:
        """End the meeting: the others stop waiting, whatever for, and say why."""
        self.say(PROBLEM, {"why": why})

    def gather(self, step: str, timeout: float) -> dict[str, Json]:
        """Wait until all members said their word at a step; returns the words by member.

        :raises RendezvousError: one gave up, or did not come within ``timeout`` seconds.
        """
        words = self._wait(step, timeout, lambda heard: len(heard) >= len(self.members))
        missing = [name for name in self.members if name not in words]
        if missing:
            raise RendezvousError(
                f"{', '.join(missing)} did not come to step '{step}' within {timeout:g} s"
                f" (the {len(self.members)} hosts must run at the same time: are there as many forks?)"
            )
        return words

    def first(self, step: str, timeout: float, look: Callable[[], None] | None = None) -> Json:
        """Wait for the first word of a step and return it; ``look`` is called before each look at the registry.

        :raises RendezvousError: one gave up, or nobody said it within ``timeout`` seconds.
        """
        words = self._wait(step, timeout, bool, look)
        if not words:
            raise RendezvousError(f"nobody came to step '{step}' within {timeout:g} s")
        return next(iter(words.values()))

    def _wait(
        self,
        step: str,
        timeout: float,
        enough: Callable[[dict[str, Json]], bool],
        look: Callable[[], None] | None = None,
    ) -> dict[str, Json]:
        deadline = time.monotonic() + timeout
        while True:
            if look:
                look()
            heard = self._heard()
            words = heard.get(step, {})
            # What is complete is done, whoever stumbles afterwards.
            if enough(words):
                return words
            for name, word in sorted(heard.get(PROBLEM, {}).items()):
                raise RendezvousError(f"{name}: {word['why']}")
            if time.monotonic() > deadline:
                return words
            time.sleep(LOOK)

    def _heard(self) -> dict[str, dict[str, Json]]:
        """What was said so far, by step and member."""
        found, _revision = self.client.range(self._prefix)
        heard: dict[str, dict[str, Json]] = {}
        for kv in found:
            step, _slash, member = kv.key[len(self._prefix) :].partition("/")
            heard.setdefault(step, {})[member] = kv.json()
        return heard
