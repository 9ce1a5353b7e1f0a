"""What becomes of messages that come after their round: a policy, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from quiver_client.errors import Invalid

Kind = Literal["reject", "discount", "buffer"]


@dataclass(frozen=True, slots=True)
class Late:
    """Whether messages of earlier rounds count in the current one; make it by a class method.

    Attributes
    ----------
    kind
        ``reject``: they do not. ``discount``: with a smaller weight. ``buffer``: so too, and a
        round is ready when `size` messages of any rounds have come (FedBuff).
    exponent
        A message that is n rounds late weighs ``(1 + n) ** -exponent`` times its weight.
    rounds
        Messages that are later than this are refused, whatever the policy; who has sent is
        remembered so long, so that none counts twice.
    size
        Of the buffer.
    """

    kind: Kind
    exponent: float = 0.5
    rounds: int = 16
    size: int | None = None

    def __post_init__(self) -> None:
        """Check; `Invalid` names the attribute."""
        _check(math.isfinite(self.exponent) and self.exponent >= 0, "exponent", self.exponent)
        _check(1 <= self.rounds <= 2**20, "rounds", self.rounds)
        _check(self.size is None or 1 <= self.size <= 2**20, "size", self.size)

    @classmethod
    def reject(cls, *, rounds: int = 16) -> Late:
        """Late messages do not count."""
        return cls("reject", rounds=rounds)

    @classmethod
    def discount(cls, exponent: float = 0.5, *, rounds: int = 16) -> Late:
        """Late messages count less, the later the less."""
        return cls("discount", exponent, rounds)

    @classmethod
    def buffer(cls, size: int, exponent: float = 0.5, *, rounds: int = 16) -> Late:
        """As `discount`; and a round is ready when `size` messages have come."""
        return cls("buffer", exponent, rounds, size)

    def factor(self, rounds: int) -> float:
        """What a message's weight is multiplied by, 1 if it is not late; 0: it does not count."""
        if rounds == 0:
            return 1.0
        if self.kind == "reject" or rounds > self.rounds:
            return 0.0
        return float((1 + rounds) ** -self.exponent)


def _check(holds: bool, name: str, got: object) -> None:
    limits = {
        "exponent": "must be finite and not negative",
        "rounds": f"must be from 1 to {2**20}",
        "size": f"must be from 1 to {2**20}",
    }
    if not holds:
        raise Invalid(f"{name} {limits[name]}; got {got}", code="invalid_option", field=name)
