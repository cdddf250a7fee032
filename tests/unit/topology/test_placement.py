"""Placement: even, deterministic, and stable when the count grows."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.topology.placement import Site, place


def sites(random_: random.Random) -> list[Site]:
    found = []
    for zone in range(random_.randint(1, 6)):
        for host in range(random_.randint(1, 5)):
            found.append(Site(f"h{zone}-{host}", f"z{zone}", f"r{zone % 2}"))
    random_.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_properties(seed):
    chance = random.Random(seed)
    known, per_host = sites(chance), chance.randint(1, 4)
    capacity = len(known) * per_host
    before: set = set()
    room = Counter(site.zone for site in known)
    for count in range(capacity + 3):
        placed = place("orders", count, per_host, known)
        assert len(placed) == len(set(placed)) == min(count, capacity)
        assert before <= set(placed), "raising the count moved an instance"
        before = set(placed)

        chance.shuffle(known)
        assert place("orders", count, per_host, known) == placed, "depends on the order of the hosts"

        zones = Counter({site.zone: 0 for site in known})
        zones.update(site.zone for site, _slot in placed)
        open_zones = [zone for zone in zones if zones[zone] < room[zone] * per_host]
        for zone in open_zones:  # a zone with room has no less than any other, but for one
            assert max(zones.values()) - zones[zone] <= 1
        hosts = Counter({site.host: 0 for site in known})
        hosts.update(site.host for site, _slot in placed)
        for zone in zones:
            numbers = [hosts[site.host] for site in known if site.zone == zone]
            assert max(numbers) - min(numbers) <= 1
        for host, number in hosts.items():
            assert sorted(slot for site, slot in placed if site.host == host) == list(range(number))


def test_no_sites():
    assert place("orders", 3, 2, []) == []


def test_services_do_not_all_begin_on_one_host():
    known = [Site(f"h{number}", "z", "r") for number in range(20)]
    first = {place(f"service{number}", 1, 1, known)[0][0].host for number in range(40)}
    assert len(first) > 10


def test_a_new_host_takes_only_its_share():
    known = [Site(f"h{number}", "z", "r") for number in range(9)]
    before = set(place("orders", 5, 1, known))
    after = set(place("orders", 5, 1, [*known, Site("h9", "z", "r")]))
    assert len(before - after) <= 1
