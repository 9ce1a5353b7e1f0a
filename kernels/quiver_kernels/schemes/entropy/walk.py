"""Which table codes a symbol: a finite automaton that both ends know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ALPHABET = 1 << 12
"""Symbols of a table, at most."""


@dataclass(frozen=True, eq=False, slots=True)
class Walk:
    """States from which symbols are coded; every chunk begins in state 0.

    Attributes
    ----------
    moves
        uint8, shape (states, alphabet): the state after each symbol.
    tables
        uint8, shape (states,): the table that codes a state's symbol.
    """

    moves: NDArray[np.uint8]
    tables: NDArray[np.uint8]

    def __post_init__(self) -> None:
        assert 1 <= self.alphabet <= MAX_ALPHABET
        assert len(self.tables) == len(self.moves) > int(self.moves.max())

    @classmethod
    def single(cls, alphabet: int) -> Walk:
        """One table for all symbols below `alphabet`."""
        return cls(np.zeros((1, alphabet), np.uint8), np.zeros(1, np.uint8))

    @property
    def alphabet(self) -> int:
        """Number of symbols."""
        return int(self.moves.shape[1])

    @property
    def num_tables(self) -> int:
        """Number of tables."""
        return int(self.tables.max()) + 1
