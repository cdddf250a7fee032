# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which shard a tenant lives on, and who moves when shards come, go or change their weight: pure functions.

Weighted rendezvous hashing. D. Thaler and C. Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (University of
Michigan, CSE-TR-316-96, 1996) and "Using Name-Based Mappings to Increase Hit Rates" (IEEE/ACM Transactions on
Networking 6(1), 1998): every shard gets a random number from the names of tenant and shard, the highest wins. Weights
by the logarithmic method of C. Schindelhauer and G. Schomaker, "Weighted Distributed Hash Tables" (SPAA 2005), as in
the IETF's draft-ietf-bess-weighted-hrw: with h uniform in (0, 1) the shard with the highest -w / ln(h) wins, and shard
j wins with probability w_j / sum(w).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEYS = ("tenant", "region")


class ShardingError(Exception):
    """What is wrong with tenants or shards, in one sentence."""


@dataclass(frozen=True)
class Shard:
    """A shard. A weight of 0 takes no tenants but those pinned to it; `region` counts when sharding by region."""

    name: str
    weight: float = 1.0
    region: str = ""


@dataclass(frozen=True)
class Move:
    """One tenant on its way."""

    tenant: str
    source: str
    target: str
    reason: str


def uniform(tenant: str, shard: str) -> float:
    """A number in (0, 1) that depends on both names alone, by BLAKE2b (RFC 7693).

    52 bits of it, so that neither 0 nor 1 can come out of the rounding.
    """
    # The length stands first: tenant "ab" on shard "c" is another pair than "a" on "bc".
    text = tenant.encode()
    digest = hashlib.blake2b(len(text).to_bytes(8, "big") + text + shard.encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52


def score(tenant: str, shard: Shard) -> float:
    """The tenant's score on a shard with weight above 0; the highest wins."""
    return -shard.weight / math.log(uniform(tenant, shard.name))


def parse_shards(given: Mapping[str, Any]) -> list[Shard]:
    """Shards out of `{name: {weight: 1.0, region: ""}}`, by name; raises ShardingError."""
    shards = []
    for name, options in sorted(given.items()):
        values = options or {}
        if not isinstance(values, Mapping):
            raise ShardingError(f"shard {name!r}: {values!r} is not a mapping with weight and region")
        unknown = sorted(set(values) - {"weight", "region"})
        if unknown:
            raise ShardingError(f"shard {name!r}: unknown key {unknown[0]!r}; allowed are weight, region")
        weight = values.get("weight", 1.0)
        try:
            number = float("nan") if isinstance(weight, bool) else float(weight)
        except (TypeError, ValueError):
            number = float("nan")
        if not (math.isfinite(number) and number >= 0):
            raise ShardingError(f"shard {name!r}: weight {weight!r} is no number from 0 up")
        shards.append(Shard(str(name), number, str(values.get("region") or "")))
    if not shards:
        raise ShardingError("there are no shards")
    return shards


def candidates(tenant: str, shards: Sequence[Shard], region: str | None) -> list[Shard]:
    """Shards that may take a tenant, `region` is None when sharding by tenant. Raises ShardingError if none may."""
    fit = [shard for shard in shards if shard.weight > 0 and (region is None or shard.region == region)]
    if fit:
        return fit
    if region is None:
        raise ShardingError(f"tenant {tenant!r} is on no shard: every shard has weight 0")
    known = ", ".join(sorted({shard.region for shard in shards if shard.weight > 0})) or "none"
    raise ShardingError(
        f"tenant {tenant!r} is on no shard: none with a weight is in region {region!r}, only in {known}"
    )


def place(
    tenants: Iterable[str],
    shards: Sequence[Shard],
    by: str = "tenant",
    regions: Mapping[str, str] | None = None,
    pins: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Shard of each tenant. With `by="region"` a tenant is on a shard of its region (`regions`: region by tenant), and
    its name chooses among several. `pins`: shard by tenant, set by hand. Raises ShardingError.
    """
    if by not in KEYS:
        raise ShardingError(f"by: {by!r} is not allowed; use one of {', '.join(KEYS)}")
    names = {shard.name for shard in shards}
    pins = pins or {}
    for tenant, shard in sorted(pins.items()):
        if shard not in names:
            known = ", ".join(sorted(names))
            raise ShardingError(
                f"tenant {tenant!r} is pinned to shard {shard!r}, which does not exist; there are {known}"
            )
    result: dict[str, str] = {}
    for tenant in tenants:
        if not tenant or tenant in result:
            raise ShardingError(f"tenant {tenant!r} is {'listed twice' if tenant else 'an empty name'}")
        region = None
        if by == "region":
            region = (regions or {}).get(tenant, "")
            if not region and tenant not in pins:
                raise ShardingError(f"tenant {tenant!r} has no region, and the shards go by region")
        if tenant in pins:
            result[tenant] = pins[tenant]
        else:
            fit = candidates(tenant, shards, region)
            # Equal scores need equal hashes; the name makes even that case the same everywhere.
            result[tenant] = max(fit, key=lambda shard: (score(tenant, shard), shard.name)).name
    return result


def moves(
    current: Mapping[str, str],
    wanted: Mapping[str, str],
    shards: Sequence[Shard],
    pins: Mapping[str, str] | None = None,
) -> list[Move]:
    """Who has to move from where to where: tenants of shards that are gone first, then by name.

    `current`: where each tenant is now. `wanted`: where it belongs, from `place`.
    """
    names = {shard.name for shard in shards}
    result = []
    for tenant, target in wanted.items():
        source = current.get(tenant, "")
        if source and source != target:
            reason = "pinned" if tenant in (pins or {}) else "placement" if source in names else "shard is gone"
            result.append(Move(tenant, source, target, reason))
    return sorted(result, key=lambda move: (move.source in names, move.source, move.tenant))


def minimum(before: Sequence[Shard], after: Sequence[Shard]) -> float:
    """The smallest share of tenants (0 to 1) that any method must move, on average, to follow a change of weights.

    Half the sum of differences between the shares (total variation distance): what a shard has too much must leave it,
    and no more has to. Without pins and regions.
    """
    shares: list[dict[str, float]] = []
    for shards in (before, after):
        total = math.fsum(shard.weight for shard in shards)
        if total <= 0:
            raise ShardingError("every shard has weight 0")
        shares.append({shard.name: shard.weight / total for shard in shards})
    old, new = shares
    return math.fsum(max(0.0, new.get(name, 0.0) - old.get(name, 0.0)) for name in {*old, *new})


def plan(
    current: Mapping[str, str],
    shards: Sequence[Shard],
    by: str = "tenant",
    regions: Mapping[str, str] | None = None,
    pins: Mapping[str, str] | None = None,
    *,
    before: Sequence[Shard] | None = None,
) -> dict[str, Any]:
    """The moves from where tenants are to where they belong; with the shards as they were (`before`) also the share
    that any method would have to move. Raises ShardingError.
    """
    wanted = place(current, shards, by, regions, pins)
    found = moves(current, wanted, shards, pins)
    return {
        "moves": [
            {"tenant": move.tenant, "from": move.source, "to": move.target, "reason": move.reason} for move in found
        ],
        "map": wanted,
        "share": len(found) / len(wanted) if wanted else 0.0,
        "minimum": None if before is None else minimum(before, shards),
    }
