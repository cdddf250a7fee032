"""What a version does wrong on purpose, read from the part of its name after the first dash.

    1.2.0-unhealthy           its health check fails
    1.3.0-broken              it answers 500 to every request
    2.0.1-errors2             2 % of its requests fail
    2.2.1-tail2               one request in forty takes 2 x 0.15 s longer (tail1: 0.15 s, to compare it with)
    2.3.1-sales80             it sells 80 % of what other versions sell
    3.0.0-errors0.4-tail2     both

Which requests are unlucky depends on their ids alone: a retry meets the same fate, and every version has the same
ids to stumble over (those of errors0.1 are among those of errors0.4).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

TAIL_SHARE = 1 / 40
TAIL_SECONDS = 0.15
SALE_SHARE = 0.5
PART = re.compile(r"(errors|tail|sales)(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Behaviour:
    """Shares are 0..1, seconds are added to an unlucky request's time."""

    healthy: bool = True
    error_share: float = 0.0
    tail_seconds: float = 0.0
    sale_share: float = SALE_SHARE

    @classmethod
    def parse(cls, text: str) -> Behaviour:
        """From `good`, `unhealthy`, `broken`, or parts such as `errors2`, joined by dashes. Raises ValueError."""
        if text in ("", "good"):
            return cls()
        if text == "unhealthy":
            return cls(healthy=False)
        if text == "broken":
            return cls(error_share=1.0)
        found: dict[str, float] = {}
        for part in text.split("-"):
            match = PART.fullmatch(part)
            if match is None:
                raise ValueError(f"behaviour {text!r}: {part!r} is not errors<percent>, tail<factor> or sales<percent>")
            found[match[1]] = float(match[2])
        return cls(
            error_share=min(1.0, found.get("errors", 0.0) / 100),
            tail_seconds=found.get("tail", 0.0) * TAIL_SECONDS,
            sale_share=min(1.0, SALE_SHARE * found.get("sales", 100.0) / 100),
        )

    def fails(self, identifier: str) -> bool:
        return chance("error", identifier) < self.error_share

    def delay(self, identifier: str) -> float:
        """Seconds to wait before the answer."""
        return self.tail_seconds if chance("tail", identifier) < TAIL_SHARE else 0.0

    def sells(self, identifier: str) -> bool:
        return chance("sale", identifier) < self.sale_share


def chance(what: str, identifier: str) -> float:
    """A number from 0 to 1, always the same for the same id."""
    digest = hashlib.blake2b(f"{what}/{identifier}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56
