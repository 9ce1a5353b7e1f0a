"""What rounds cost: bytes in both directions by purpose, errors, and whether it was worth it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import Literal

from quiver_client._core import as_client_errors
from quiver_client.errors import Invalid
from quiver_kernels.dtypes import LEAF_DTYPES
from quiver_kernels.tree import QuantizedTree

Direction = Literal["up", "down"]
_COLUMNS = ("messages", "codes", "levels", "raw", "outliers", "headers", "total")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of one direction, added up.

    Attributes
    ----------
    messages
        How many were sent; a broadcast counts once for each receiver.
    values
        In all of them.
    codes, levels, raw, outliers, headers
        Their bytes: packed codes, level tables, values as they are, exact values with their
        places, all the rest.
    plain
        Bytes of the same values in their own types, without any header.
    error
        Expected squared error of all messages, where it is known.
    unknown
        Leaves whose error is not known: those that share a section.
    seconds
        Spent on encoding and decoding.
    """

    messages: int = 0
    values: int = 0
    codes: int = 0
    levels: int = 0
    raw: int = 0
    outliers: int = 0
    headers: int = 0
    plain: int = 0
    error: float = 0.0
    unknown: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Bytes of the messages."""
        return self.codes + self.levels + self.raw + self.outliers + self.headers

    @property
    def bits_per_value(self) -> float:
        """Bits of the messages per value; 0 of none."""
        return 8 * self.total / self.values if self.values else 0.0

    @property
    def break_even(self) -> float | None:
        """Bandwidth in bits per second below which compression saves time; None: not measured.

        Saved bytes take as long to send there as encoding and decoding took.
        """
        if self.seconds <= 0:
            return None
        return max(8 * (self.plain - self.total), 0) / self.seconds

    def __add__(self, other: Traffic) -> Traffic:
        """Both together."""
        names = (each.name for each in fields(self))
        return Traffic(*(getattr(self, name) + getattr(other, name) for name in names))


class Ledger:
    """Accounts of messages, round by round; safe to share between threads.

    Parameters
    ----------
    errors
        Whether expected errors are kept too, for which every message is decoded once more.
    """

    def __init__(self, *, errors: bool = False) -> None:
        self._errors = errors
        self._lock = threading.Lock()
        self._found: dict[tuple[int, Direction], Traffic] = {}

    def up(self, tree: QuantizedTree, *, round: int | None = None, seconds: float = 0.0) -> Traffic:  # noqa: A002
        """Note a message to the server.

        Parameters
        ----------
        tree
            The message.
        round
            None: that of its tag.
        seconds
            Spent on it.
        """
        return self._note("up", tree, round, 1, seconds)

    def down(
        self,
        tree: QuantizedTree,
        *,
        round: int | None = None,  # noqa: A002
        copies: int = 1,
        seconds: float = 0.0,
    ) -> Traffic:
        """Note a message from the server to so many workers; parameters as for `up`."""
        return self._note("down", tree, round, copies, seconds)

    @property
    def rounds(self) -> list[int]:
        """Rounds with messages, ascending."""
        with self._lock:
            return sorted({number for number, _ in self._found})

    def of(self, round: int, direction: Direction) -> Traffic:  # noqa: A002
        """Messages of a round in one direction."""
        with self._lock:
            return self._found.get((round, direction), Traffic())

    def total(self, direction: Direction | None = None) -> Traffic:
        """Messages of all rounds, in one direction or both."""
        with self._lock:
            found = [each for (_, way), each in self._found.items() if direction in (None, way)]
        return sum(found, Traffic())

    def table(self) -> str:
        """The accounts as text: a line for each round and direction, and the totals."""
        lines = [
            f"{'round':>6} {'way':>4} "
            + " ".join(f"{name:>9}" for name in _COLUMNS)
            + f" {'bits/val':>8} {'of plain':>8} {'error':>10} {'even Mb/s':>9}"
        ]
        ways: tuple[Direction, ...] = ("up", "down")
        rows: list[tuple[str, str, Traffic]] = [
            (str(number), way, self.of(number, way)) for number in self.rounds for way in ways
        ]
        rows += [("all", way, self.total(way)) for way in ways]
        rows.append(("all", "both", self.total()))
        lines += [_line(label, way, each) for label, way, each in rows if each.messages]
        return "\n".join(lines)

    def _note(
        self, way: Direction, tree: QuantizedTree, number: int | None, copies: int, seconds: float
    ) -> Traffic:
        number = tree.tag.round if number is None else number
        if number is None:
            raise Invalid(
                "round must be said, here or in the tree's tag; got neither",
                code="missing_key",
                field="round",
            )
        if copies < 0:
            raise Invalid(
                f"copies must not be negative; got {copies}", code="invalid_option", field="copies"
            )
        with as_client_errors():
            found = tree.ledger(errors=self._errors)
        errors = found.squared_errors.values()
        plain = sum(leaf.size * LEAF_DTYPES[leaf.dtype].itemsize for leaf in tree.leaves())
        noted = Traffic(
            messages=copies,
            values=copies * found.values,
            codes=copies * found.codes,
            levels=copies * found.levels,
            raw=copies * found.raw,
            outliers=copies * found.outliers,
            headers=copies * found.headers,
            plain=copies * plain,
            error=copies * sum(each for each in errors if each is not None),
            unknown=copies * sum(each is None for each in errors),
            seconds=seconds,
        )
        with self._lock:
            self._found[number, way] = self._found.get((number, way), Traffic()) + noted
        return noted


def _line(label: str, way: str, each: Traffic) -> str:
    numbers = " ".join(f"{getattr(each, name):9}" for name in _COLUMNS)
    share = f"{each.total / each.plain:8.4f}" if each.plain else f"{'-':>8}"
    even = "-" if each.break_even is None else f"{each.break_even / 1e6:.0f}"
    return (
        f"{label:>6} {way:>4} {numbers} {each.bits_per_value:8.3f} {share} "
        f"{each.error:10.4g} {even:>9}"
    )
