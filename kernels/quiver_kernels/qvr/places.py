"""Which chunk holds which values: it follows from the header alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from quiver_kernels.qvr.header import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """A chunk: its number in the file, its tensor's number, its first value and their count."""

    number: int
    tensor: int
    first: int
    count: int

    @property
    def stop(self) -> int:
        """One past its last value."""
        return self.first + self.count


class Places:
    """The chunks of some tensors, in the order in which they lie in the file."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._begins = list(accumulate((tensor.chunks for tensor in tensors), initial=0))

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Place:
        """The chunk of a number; O(log tensors)."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        # A tensor without chunks begins where the next one does, so the last one is meant.
        tensor = bisect_right(self._begins, number) - 1
        entry = self._tensors[tensor]
        first = (number - self._begins[tensor]) * entry.chunk
        return Place(number, tensor, first, min(entry.chunk, entry.size - first))

    def numbers(self, tensor: int, start: int, stop: int) -> range:
        """The chunks that hold values `start` to `stop` of a tensor; none for no values."""
        begin, size = self._begins[tensor], self._tensors[tensor].chunk
        if start >= stop:
            return range(begin, begin)
        return range(begin + start // size, begin + (stop - 1) // size + 1)
