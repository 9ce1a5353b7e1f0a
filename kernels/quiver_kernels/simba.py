"""Level sets that sender and receiver choose from with shared random numbers (Simba).

There are l ascending sets of s levels. Both ends draw, for each element, the set h from the
message's seed; a code is an index into it. So a value is rounded among l s levels with the bits
of s, and unbiasedly over h and the rounding together ("Shared randomness" in docs/numerics.md;
the scheme is that of "Simba", SIGMETRICS 2026).

In state i = 0 .. l (s - 1) set h stands at its level number (i + l - 1 - h) // l, so from one
state to the next the sets step up in turn, each by one level. The threshold T_i is the mean of
the levels at which the sets stand. A value T_i <= x <= T_{i+1} goes to the levels of state i, or,
with probability p = (x - T_i) / (T_{i+1} - T_i), to those of state i + 1; only one set's
differ. Averaged over h the result is x, and with v_i the variance of the levels of state i its
expected squared error is

    (1 - p) v_i + p v_{i+1} + (x - T_i)(T_{i+1} - x)

This module has what both ends need, in plain NumPy; `cpu.simba` has the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import SIMBA, QuantizeOptions
from quiver_kernels.rng import SETS_STREAM, random_words
from quiver_kernels.strata import Strata

# Narrower steps between thresholds, in units of the range, have no finite reciprocal.
_NARROWEST = 2.0**-960
_TWO_32 = 2.0**32


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What rounding to level sets needs, all in units of the vector's range.

    Attributes
    ----------
    at
        T_i, ascending, shape (l (s - 1) + 1,).
    inverse
        1 / (T_{i+1} - T_i), one less; 0 where thresholds coincide.
    variance
        v_i, of the levels of each state.
    """

    at: NDArray[np.float64]
    inverse: NDArray[np.float64]
    variance: NDArray[np.float64]

    @classmethod
    def of(cls, levels: NDArray[Any], unit: float) -> Thresholds:
        """Of level sets, shape (l, s), each ascending; `unit` brings them near 1. O(l^2 s)."""
        sets, s = levels.shape
        state = np.arange(sets * (s - 1) + 1)
        stands = [
            levels[h].astype(np.float64)[_standing(state, h, sets)] * unit for h in range(sets)
        ]
        rough = sum(stands, np.zeros(state.size)) / sets
        # Where all sets stand at one level, this is the level; sums alone may miss it.
        mean = rough + sum((level - rough for level in stands), np.zeros(state.size)) / sets
        at = np.maximum.accumulate(mean)
        variance = sum(((level - at) ** 2 for level in stands), np.zeros(state.size)) / sets
        gaps = np.diff(at)
        wide = gaps > _NARROWEST
        return cls(at, np.where(wide, 1.0 / np.where(wide, gaps, 1.0), 0.0), variance)


def _standing(state: NDArray[np.int64], h: int, sets: int) -> NDArray[np.int64]:
    return (state + sets - 1 - h) // sets


def shared_sets(seed: int, start: int, count: int, level_sets: int) -> NDArray[np.uint8]:
    """The sets h of elements ``start .. start + count - 1`` of the message with `seed`.

    The upper 32 bits of l times a Philox word of its own stream, counter word 2 being 3.
    """
    words = random_words(seed, start, count, SETS_STREAM).astype(np.uint64)
    return (words * np.uint64(level_sets) >> np.uint64(32)).astype(np.uint8)


def round_to_sets(
    x: NDArray[Any],
    levels: NDArray[Any],
    seed: int,
    unit: float,
    strata: Strata | None = None,
) -> NDArray[np.uint8]:
    """Unbiased codes of flat `x` for level sets, shape (l, s)."""
    table = Thresholds.of(levels, unit)
    values, sets = x.astype(np.float64) * unit, len(levels)
    state = _state_of(values, table)
    words = random_words(seed, 0, x.size)
    if strata is not None:
        words = strata.words(words, 0)
    p = (values - table.at[state]) * table.inverse[state]
    # r < floor(t) for a whole r is r + 1 <= t, and r + 1 is exact in float64.
    up = (words + 1.0 <= p * _TWO_32) | (values >= table.at[state + 1])
    h = shared_sets(seed, 0, x.size, sets)
    turn = state % sets
    codes: NDArray[np.uint8] = (state // sets + (h < turn) + ((h == turn) & up)).astype(np.uint8)
    return codes


def squared_errors(x: NDArray[Any], levels: NDArray[Any], unit: float) -> NDArray[np.float64]:
    """Expected squared error of each value, in squared units."""
    table = Thresholds.of(levels, unit)
    values = x.astype(np.float64) * unit
    state = _state_of(values, table)
    left, right = values - table.at[state], table.at[state + 1] - values
    p = np.where(right <= 0, 1.0, np.clip(left * table.inverse[state], 0.0, 1.0))
    v = table.variance
    found: NDArray[np.float64] = (1 - p) * v[state] + p * v[state + 1]
    return found + np.maximum(left * right, 0.0)


def _state_of(values: NDArray[np.float64], table: Thresholds) -> NDArray[np.int64]:
    """The last state with T_i <= x, at most the last but one."""
    return np.clip(np.searchsorted(table.at, values, side="right") - 1, 0, table.inverse.size - 1)


def refuse_unsupported(options: QuantizeOptions, *, weighted: bool) -> None:
    """Refuse what level sets do not go with: blocks and weights."""
    if options.method != SIMBA:
        return
    wrong = "weights" if weighted else None if options.block_size is None else "block_size"
    if wrong is not None:
        raise InvalidInput(
            f"{wrong} cannot be given with method simba, which has one table for all values "
            f"and no weights; got {wrong}",
            code="invalid_option",
            field=wrong,
        )
