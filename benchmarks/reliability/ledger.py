"""What became of every request: sent ids, and the outcomes that came back under them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# Ids that a balance names of each fault.
_NAMED = 3


@dataclass(frozen=True)
class Balance:
    """The books at the end.

    Attributes
    ----------
    sent
        Requests.
    outcomes
        How many ended how: an HTTP status as text, or a word for an end without an answer.
    lost
        Ids without an outcome.
    doubled
        Ids with two.
    unknown
        Outcomes under ids that nobody sent.
    forbidden
        Ids whose outcome is none of the allowed ones.
    """

    sent: int
    outcomes: dict[str, int]
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    unknown: tuple[str, ...]
    forbidden: tuple[str, ...]

    @property
    def even(self) -> bool:
        """Whether every request ended once, in an allowed way."""
        return not (self.lost or self.doubled or self.unknown or self.forbidden)

    def __str__(self) -> str:
        ends = ", ".join(f"{count:,} x {name}" for name, count in sorted(self.outcomes.items()))
        faults = {
            "lost": self.lost,
            "doubled": self.doubled,
            "unknown": self.unknown,
            "not allowed": self.forbidden,
        }
        found = ", ".join(
            f"{len(ids)} {name} ({', '.join(ids[:_NAMED])})" for name, ids in faults.items() if ids
        )
        return f"{self.sent:,} sent: {ends or 'no outcome'}; {found or 'none lost or doubled'}"


@dataclass
class Ledger:
    """Ids of requests and their outcomes; safe for threads."""

    _sent: set[str] = field(default_factory=set)
    _outcomes: dict[str, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, name: str) -> None:
        """Note a request before its first byte leaves."""
        with self._lock:
            if name in self._sent:
                raise ValueError(f"request {name} was sent before")
            self._sent.add(name)

    def end(self, name: str, outcome: str) -> None:
        """Note an outcome under the id that the answer carries."""
        with self._lock:
            self._outcomes.setdefault(name, []).append(outcome)

    def balance(self, allowed: Iterable[str]) -> Balance:
        """The books, where only `allowed` outcomes are right."""
        right = set(allowed)
        with self._lock:
            ends = self._outcomes
            return Balance(
                sent=len(self._sent),
                outcomes=dict(Counter(end for found in ends.values() for end in found)),
                lost=tuple(sorted(self._sent - ends.keys())),
                doubled=tuple(sorted(name for name, found in ends.items() if len(found) > 1)),
                unknown=tuple(sorted(ends.keys() - self._sent)),
                forbidden=tuple(
                    sorted(name for name, found in ends.items() if not right.issuperset(found))
                ),
            )
