"""Powers of two on the CPU: top exponents and codes, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.chunking import piece
from quiver_kernels.cpu.compile import Floats, Ints, frozen
from quiver_kernels.cpu.encode import fill_random
from quiver_kernels.dtypes import wire_name
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.pow2 import exponents
from quiver_kernels.schemes.pow2.kernels import (
    DEPTH,
    add_bins,
    best_top,
    encode_powers,
    search_tops,
)
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import checkpoint


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """A vector to be rounded to powers of two.

    Attributes
    ----------
    x, block, count
        The vector, flat; values per block; powers per block.
    split
        Fraction bits from which a value goes to the next power.
    low, high
        Limits of top exponents.
    """

    x: NDArray[Any]
    block: int
    count: int
    split: int
    low: int
    high: int

    def spans(self) -> list[tuple[int, int]]:
        """Parts of whole blocks, or pieces of a block."""
        return scaled.spans(self.x.size, self.block, 2 * self.count + 2)


def search(job: Job, greatest: Floats) -> Ints:
    """The top exponent of least squared error for each block; `greatest` are its magnitudes."""
    found = np.frexp(greatest)[1].astype(np.int64) - 1
    if job.block < scaled.PIECE:

        def search_span(span: tuple[int, int]) -> None:
            start, stop = span
            own = slice(start // job.block, -(-stop // job.block))
            tops = np.empty(own.stop - own.start, np.int64)
            search_tops(
                piece(job.x, start, stop),
                job.block,
                frozen(found[own]),
                job.split,
                job.count,
                job.low,
                job.high,
                tops,
            )
            found[own] = tops

        run_parts(job.spans(), search_span)
        return found
    for number in range(found.size):
        found[number] = _of_long_block(job, number * job.block, int(found[number]))
    return found


def _of_long_block(job: Job, begin: int, exponent: int) -> int:
    bins = np.zeros((DEPTH + job.count + 2, 2, 3))
    factor = float(np.ldexp(1.0, min(max(-exponent, -1000), 1000)))
    space = np.empty(256)
    end = min(begin + job.block, job.x.size)
    for start in range(begin, end, scaled.PIECE):
        checkpoint()
        values = piece(job.x, start, min(start + scaled.PIECE, end))
        add_bins(values, factor, job.split, bins, space)
    most = max(min(1, job.high - exponent), job.low - exponent)
    low = min(max(-DEPTH, job.low - exponent), most)
    return exponent + int(best_top(bins, job.count, low, most))


def encode(job: Job, tops: Ints, seed: int | None) -> tuple[NDArray[np.uint8], float, float]:
    """Packed codes, expected squared error and squared norm; no seed: to the nearest."""
    packing = scaled.Bits((2 * job.count + 1).bit_length())
    packed = np.empty(packing.size(job.x.size, job.block), np.uint8)
    unit = scaled.unit_of(job.x)
    least = exponents.least(wire_name(job.x.dtype))

    def encode_span(span: tuple[int, int]) -> Floats:
        start, stop = span
        values = piece(job.x, start, stop)
        own = slice(start // job.block, -(-stop // job.block))
        codes = np.empty(-(-values.size // 8) * 8, np.uint8)
        codes[values.size :] = 0
        sums = np.empty((own.stop - own.start, 2))
        encode_powers(
            values,
            min(job.block, values.size),
            frozen(tops[own]),
            job.count,
            job.split,
            least,
            _words(seed, start, stop),
            unit,
            codes,
            sums,
        )
        packing.pack(codes, values.size, start, job.block, packed)
        return scaled.closed(sums)

    return packed, *scaled.sums_of(run_parts(job.spans(), encode_span))


def _words(seed: int | None, start: int, stop: int) -> NDArray[np.uint32]:
    """The random words of elements from `start` on; none without a seed."""
    if seed is None:
        return frozen(np.empty(0, np.uint32))
    first, last = start // 4, -(-stop // 4)
    words = np.empty(4 * (last - first), np.uint32)
    fill_random(np.uint64(seed), np.uint64(0), first, words)
    return frozen(words[start - 4 * first :])


def warm_up() -> None:
    """Compile all kernels, and those that decode, for vectors of every type."""
    scaled.warm_up(np.array([-1.0, 0.0, 1.0]))
    for dtype in (np.float32, np.float64):
        job = Job(np.ones(9, dtype), 9, 3, 1 << 51, -100, 100)
        tops = search(job, np.ones(1))
        _of_long_block(job, 0, 0)
        for seed in (None, 1):
            encode(job, tops, seed)
