"""What the first pass over a vector finds, chunk by chunk, while its values may still be arriving.

The cells of a partition follow from the vector's range, which is not known before its last value.
So a survey counts into the cells of the range so far, and somewhat beyond it. What leaves that
gets tables of its own, and in the end all are summed up over the cells of the whole range: finer
cells lie whole in coarser ones, and all sums are exact, so the result is that of a pass that knew
the range.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import TABLES, Cells, coarsen, loosened, stacked, summed
from quiver_kernels.checks import Range, finite_range
from quiver_kernels.cpu import chunking
from quiver_kernels.cpu.approx import few_distinct
from quiver_kernels.cpu.cells import Adder, Counting, cells_of_rows
from quiver_kernels.cpu.outline import Outlining, cells_between
from quiver_kernels.partition import Layout, Partition, layout_of
from quiver_kernels.sharing import Scratch, run_parts

# A range that grows by more steps than this, each by half of it at least, is left to a pass of its
# own: every step takes the memory of a table.
_MAX_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What a first pass counts besides the range.

    Attributes
    ----------
    cells
        Those of `Partition.of`; 0: nothing is counted.
    loose
        Whether they are loose.
    num_levels
        That they are counted for: a vector that begins with no more distinct values may have no
        others, and then these are its levels. So of such a vector nothing is counted.
    """

    cells: int = 0
    loose: bool = False
    num_levels: int = 0


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The range of a vector, and the cells that were planned; None: none were."""

    bounds: Range
    cells: Cells | None = None


class Survey:
    """The first pass over a vector, of which more and more is there.

    Its methods may be called in any thread, `finish` in one.

    Parameters
    ----------
    flat
        Room for the vector, shape (n,), of a type of the wire; n > 0.
    plan
        What to count.
    """

    def __init__(self, flat: NDArray[Any], plan: Plan) -> None:
        self.flat = flat
        self.plan = plan
        self._chunks = chunking.Chunks(flat, chunking.NO_WEIGHTS)
        self._tables = _Tables(plan, layout_of(flat.dtype))
        self._there = 0
        self._taken = 0
        self._stepping = False
        self._begun = False
        self._spoiled = False
        self._changed = threading.Condition()

    def arrived(self, size: int) -> bool:
        """Note that the first `size` values are there; whether a `step` would find some."""
        self._there = size // chunking.CHUNK
        return not self._stepping and self._taken < self._there

    def step(self) -> bool:
        """Add a chunk that is there; False if there is none, or another thread is at one."""
        with self._changed:
            if self._stepping or self._begun or self._taken >= self._there:
                return False
            number = self._taken
            self._stepping = True
        try:
            self._tables.add(self._chunks[number][0])
        except Exception:  # noqa: BLE001 - whatever it is, it comes again where it is heard
            self._spoiled = True
        finally:
            with self._changed:
                self._taken += 1
                self._stepping = False
                self._changed.notify_all()
        return True

    def finish(self) -> Surveyed:
        """Add the rest of the vector, with the help of idle threads; what was found in it all.

        Raises
        ------
        InvalidInput
            ``non_finite``, with the first index.
        """
        with self._changed:
            again, self._begun = self._begun, True
            self._changed.wait_for(lambda: not self._stepping)
        if again or self._spoiled:
            # Where a try was broken off, nobody knows.
            return Survey(self.flat, self.plan).finish()
        rest = range(self._taken, len(self._chunks))
        run_parts(rest, lambda number: self._tables.add(self._chunks[number][0]))
        found = self._tables.finish()
        # Whoever offers a survey may keep it while the solver needs memory of its own.
        self._tables.clear()
        return Surveyed(finite_range(self.flat)) if found is None else found

    @contextlib.contextmanager
    def offered(self) -> Iterator[None]:
        """Let a `first_pass` over the same vector in this context begin with what is known."""
        token = _offered.set(self)
        try:
            yield
        finally:
            _offered.reset(token)


_offered: ContextVar[Survey | None] = ContextVar("quiver_survey", default=None)


def first_pass(flat: NDArray[Any], plan: Plan) -> Surveyed:
    """The range of a checked vector, and the cells of `plan`; errors as for `Survey.finish`."""
    survey = _offered.get()
    if survey is None or survey.plan != plan or not _same(survey.flat, flat):
        survey = Survey(flat, plan)
    return survey.finish()


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two flat arrays are the same memory, read in the same way."""
    same_place = a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    return same_place and (a.dtype, a.shape, a.strides) == (b.dtype, b.shape, b.strides)


class _Frame:
    """Cells for a range, and somewhat beyond it on both sides."""

    def __init__(self, low: float, high: float, plan: Plan, layout: Layout) -> None:
        self.partition = Partition.of(low, high, plan.cells, layout)
        largest = float(np.finfo(layout.dtype).max)
        # Halves, since the range may exceed float64.
        margin = 0.5 * high - 0.5 * low
        self.low, self.high = (
            float(layout.dtype.type(min(max(end, -largest), largest)))
            for end in (low - margin, high + margin)
        )
        kind = Outlining if plan.loose else Counting
        self.tables: Counting | Outlining = kind(self.partition, self.low, self.high)

    def holds(self, low: float, high: float) -> bool:
        """Whether all values of a range have a cell."""
        return self.low <= low and high <= self.high


class _Slot:
    """Adds chunks to a table of the frame that each is for; one thread at a time."""

    def __init__(self) -> None:
        self._frame: _Frame | None = None
        self._adder: Adder | None = None

    def add(self, values: NDArray[Any], frame: _Frame) -> None:
        if self._adder is None or self._frame is not frame:
            self.finish()
            self._frame, self._adder = frame, frame.tables.adder()
        self._adder.add(values)

    def finish(self) -> None:
        if self._adder is not None:
            self._adder.finish()


class _Tables:
    """What is counted, from any thread."""

    def __init__(self, plan: Plan, layout: Layout) -> None:
        self._plan = plan
        self._layout = layout
        self._low, self._high = math.inf, -math.inf
        self._finite = True
        self._counts: bool | None = None
        self._frames: list[_Frame] = []
        self._slots = self._scratch()
        self._lock = threading.Lock()

    def add(self, values: NDArray[Any]) -> None:
        """Add a chunk's values."""
        # NaN passes through min and max, infinities show up in them.
        low, high = float(values.min()), float(values.max())
        with self._lock:
            if not (math.isfinite(low) and math.isfinite(high)):
                self._finite = False
                return
            frame = self._widened(values, low, high)
        if frame is not None:
            with self._slots.one() as slot:
                slot.add(values, frame)

    def finish(self) -> Surveyed | None:
        """What was found; None if some values are not finite."""
        if not self._finite:
            return None
        for slot in self._slots.made:
            slot.finish()
        bounds = Range(self._low, self._high)
        return Surveyed(bounds, self._cells(bounds) if self._counts else None)

    def clear(self) -> None:
        """Hold no memory any more."""
        self._frames, self._slots = [], self._scratch()

    def _scratch(self) -> Scratch[_Slot]:
        return Scratch(TABLES[self._layout.integer.itemsize], _Slot)

    def _widened(self, values: NDArray[Any], low: float, high: float) -> _Frame | None:
        """The frame for some more values; None if nothing is counted."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        if self._counts is None:
            self._counts = self._plan.cells > 0 and not _few(values, self._plan.num_levels)
        if self._counts and not (self._frames and self._frames[-1].holds(low, high)):
            self._counts = len(self._frames) < _MAX_FRAMES
            self._frames.append(_Frame(self._low, self._high, self._plan, self._layout))
        return self._frames[-1] if self._counts else None

    def _cells(self, bounds: Range) -> Cells:
        """The sum of all frames' cells, over those of the whole range."""
        low, high = bounds.low, bounds.high
        partition = Partition.of(low, high, self._plan.cells, self._layout)
        loose = self._plan.loose
        parts = [
            cells_of_rows(frame.partition, frame.tables.rows(), loose=loose)
            for frame in self._frames
        ]
        if len(parts) > 1 or parts[0].partition != partition:
            cells = summed(stacked([coarsen(part, partition) for part in parts if part.index.size]))
            parts = [loosened(cells) if loose else cells]
        return cells_between(parts[0], low, high) if loose else parts[0]


def _few(values: NDArray[Any], num_levels: int) -> bool:
    """Whether no more than so many values are distinct."""
    return few_distinct(values, np.empty(num_levels), 0) >= 0
