"""The automata: which quantizer a state stands for, and where the lowest bit of a code leads.

Ungerboeck's trellises of 4 and 8 states, in the labelling that video and network coding use
(ISO/IEC 15938-17, ITU-T H.266).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.contract import Parameter

DEFAULT = "8-state"


@dataclass(frozen=True, slots=True)
class Machine:
    """States 0.. in which values are coded; every chunk begins in state 0.

    Attributes
    ----------
    moves
        ``moves[state][bit]``: the state after a code whose lowest bit is `bit`.
    quantizers
        ``quantizers[state]``: 0 or 1.
    """

    moves: tuple[tuple[int, int], ...]
    quantizers: tuple[int, ...]

    @property
    def num_states(self) -> int:
        """4 or 8."""
        return len(self.moves)

    def move_table(self) -> NDArray[np.uint8]:
        """`moves`, shape (states, 2)."""
        return np.array(self.moves, np.uint8)

    def quantizer_table(self) -> NDArray[np.uint8]:
        """`quantizers`, shape (states,)."""
        return np.array(self.quantizers, np.uint8)

    def back_table(self) -> NDArray[np.uint8]:
        """The two ways into each state, shape (states, 2): state before, plus 8 times the bit."""
        ways: list[list[int]] = [[] for _ in self.moves]
        for state, after in enumerate(self.moves):
            for bit in (0, 1):
                ways[after[bit]].append(state + 8 * bit)
        return np.array(ways, np.uint8)


MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        "4-state": Machine(((0, 2), (2, 0), (1, 3), (3, 1)), (0, 0, 1, 1)),
        "8-state": Machine(
            ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)),
            (0, 1, 0, 1, 0, 1, 0, 1),
        ),
    }
)


def parameter() -> Parameter:
    """The choice among them."""
    meaning = "states that choose between the two quantizers; 8: less error, some more time"
    return Parameter("trellis", meaning, DEFAULT, tuple(MACHINES))
