"""One level table for the vectors of many holders, from their sketches."""

from __future__ import annotations

from collections.abc import Sequence

from quiver_kernels.cellerror import error_of
from quiver_kernels.cells import Cells
from quiver_kernels.cellwire import CellsMessage, sketch_of
from quiver_kernels.gridlevels import Granularity, grid_levels
from quiver_kernels.sketch import Sketch
from quiver_kernels.stopping import checkpoint
from quiver_kernels.wire import LevelsResult, naming_sketch

METHOD = "sketch"

# Rows that are merged at once: about a hundred bytes each are needed for it.
MERGED_ROWS = 1 << 18


def levels_of_sketches(
    sketches: Sequence[CellsMessage], num_levels: int, granularity: Granularity | None = None
) -> LevelsResult:
    """The levels of the union of the sketched vectors, and what rounding to them costs.

    Parameters
    ----------
    sketches
        Messages of sketches, which may hold wrong numbers still; at least one.
    num_levels
        Levels, 2..256.
    granularity
        None: the best levels among the least and greatest values of the merged sketch's cells.
        Else levels on an integer grid, see `gridlevels.grid_levels`.

    Returns
    -------
    LevelsResult
        Its method is ``sketch``. The levels, merged sums and intervals' costs are exact; the sum
        of squares inside a cell is not known, so ``expected_mse`` and ``vnmse`` are upper bounds,
        which are reached if all values of a cell but its ends are equal (`cellerror`).

    Raises
    ------
    InvalidInput
        A message contradicts itself (its field is named), or sketches differ in ``dtype`` or
        ``cells``.
    BackendUnavailable
        Numba is not installed.
    """
    sketch = _merged(sketches)
    checkpoint()
    if granularity is None:
        levels = sketch.levels(num_levels)
    else:
        levels = grid_levels(sketch, num_levels, granularity).levels
    checkpoint()
    error = error_of(sketch.rows, levels)
    return LevelsResult(
        levels=levels,
        num_levels=num_levels,
        method=METHOD,
        expected_mse=error.high,
        vnmse=error.vnmse,
        device="cpu",
    )


def _merged(sketches: Sequence[CellsMessage]) -> Sketch:
    """All sketches as one, some at a time: how they are grouped makes no difference."""
    waiting: list[Cells] = []
    for place, message in enumerate(sketches):
        checkpoint()
        with naming_sketch(place):
            waiting.append(sketch_of(message))
        if sum(rows.index.size for rows in waiting[1:]) > MERGED_ROWS:
            waiting = [_union(waiting)]
    return Sketch(_union(waiting))


def _union(parts: list[Cells]) -> Cells:
    return Sketch.merged([Sketch(rows) for rows in parts]).rows
