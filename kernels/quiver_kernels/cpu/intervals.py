"""Tables for finding a value's interval quickly: a first guess from equal cells, then halvings.

The interval of x is the number of inner levels, L[1] .. L[s-2], at or below it. Equal cells
between the first and the last inner level (what lies outside counts as the outermost cell) tell
how many inner levels lie in lower cells; the few of the same cell are searched by halving.
Cells of a value and of a level come from the same three roundings, each of which keeps the
order, so a level of a lower cell is below the value, however badly a cell is placed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import frozen

# Up to so many levels, a comparison with each is fastest.
_COUNTED = 5
# Cells per level, and values per level from which looking cells up is faster than halvings.
_CELLS_PER_LEVEL = 8
_VALUES_PER_LEVEL = 128


@dataclass(frozen=True, slots=True)
class IntervalTable:
    """What the kernels need to place values among rows of levels.

    Attributes
    ----------
    inner
        Shape (blocks, ...): levels but the last, then infinities that end a search.
    cells
        Shape (blocks, 2): where cells begin and how many there are per unit; of the levels' type.
    guess
        Shape (blocks, cells): inner levels in lower cells; one column: no cells.
    first_step
        The first halving's step, a power of two; 0: few levels, compare with each inner one.
    """

    inner: NDArray[Any]
    cells: NDArray[Any]
    guess: NDArray[np.uint8]
    first_step: int


def interval_table(levels: NDArray[Any], values: int) -> IntervalTable:
    """Prepare `levels`, shape (blocks, s), for rows of `values` values; O(blocks * s)."""
    blocks, s = levels.shape
    no_cells, no_guess = np.zeros((blocks, 2), levels.dtype), np.zeros((blocks, 1), np.uint8)
    if s <= _COUNTED:
        return _made(levels, no_cells, no_guess, 0)
    first, last = levels[:, 1], levels[:, -2]
    cells = _CELLS_PER_LEVEL * s
    # A range of 0, and one beyond the type's, have no useful cells.
    with np.errstate(all="ignore"):
        scale = levels.dtype.type(cells) / (last - first)
    if values < _VALUES_PER_LEVEL * s or not ((scale > 0) & (scale < np.inf)).all():
        return _made(levels, no_cells, no_guess, s - 2)
    places = np.minimum((levels[:, 1:-1] - first[:, np.newaxis]) * scale[:, np.newaxis], cells)
    row_starts = (cells + 1) * np.arange(blocks)[:, np.newaxis]
    inside = np.bincount(
        (places.astype(np.int64) + row_starts).reshape(-1), minlength=blocks * (cells + 1)
    ).astype(np.uint8)
    inside = inside.reshape(blocks, cells + 1)
    guess = np.cumsum(inside, axis=1, dtype=np.uint8) - inside
    return _made(levels, np.stack([first, scale], axis=1), guess, int(inside.max()))


def _made(
    levels: NDArray[Any], cells: NDArray[Any], guess: NDArray[np.uint8], reach: int
) -> IntervalTable:
    """The table where at most `reach` inner levels are to be searched after the guess."""
    first_step = 1 << (reach.bit_length() - 1) if reach else 0
    s = levels.shape[1]
    inner = np.full((len(levels), s - 1 + 2 * first_step), np.inf, levels.dtype)
    inner[:, : s - 1] = levels[:, :-1]
    return IntervalTable(frozen(inner), frozen(cells), frozen(guess), first_step)
