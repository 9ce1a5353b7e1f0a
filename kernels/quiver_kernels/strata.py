"""Random words of workers that round together: spread evenly over [0, 1), for every element.

Words of n workers that are drawn apart fall where they like; averages of n rounded values are
better if the n words of an element share the range out. Cut it into n strata. A shared seed
permutes them anew for each element, worker r takes the stratum that falls to it, and its own
word says where in it:

    stratum(r) = (unit r + h) mod n        h uniform on 0 .. n - 1, unit coprime to n
    word(r)    = floor((stratum(r) 2**32 + private word) / n)

A unit makes this a permutation of the ranks; for one rank alone the shift h makes every stratum
equally likely, so its word is uniform and its rounding unbiased. The units let the ranks' places
change among each other from element to element. (Stratified sampling; as a rounding for means of
many senders: Suresh et al., "Correlated quantization for distributed mean estimation and
optimization", ICML 2022.)

h and the unit come from one word w of the Philox stream of the shared seed, with a counter space
of its own: counter word 2 is 2. With U units, at most `MOST_UNITS` of them,

    unit = units[hi(w U)],    h = hi(lo(w U) n)        hi, lo: upper and lower 32 bits

Each unit is met by an arithmetic progression of values lo(w U), of which an interval holds its
share up to one, so that

    | P(word < t) - t 2**-32 | < 2 U 2**-32 <= 2**-23        0 where n is a power of two
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.options import QuantizeOptions
from quiver_kernels.rng import STRATA_STREAM, random_words

MOST_UNITS = 256
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Strata:
    """One worker's place among those that round together.

    Attributes
    ----------
    world_size
        Workers, n.
    shared_seed
        The seed that all of them have.
    shifts
        unit times rank mod n, for each unit; uint32.
    """

    world_size: int
    shared_seed: int
    shifts: NDArray[np.uint32]

    @classmethod
    def of(cls, options: QuantizeOptions) -> Strata | None:
        """The place that checked options name; None if they name none. O(world_size)."""
        if options.world_size is None or options.rank is None or options.shared_seed is None:
            return None
        n = options.world_size
        shifts = (units(n) * np.uint64(options.rank) % np.uint64(n)).astype(np.uint32)
        return cls(n, options.shared_seed, shifts)

    def strata(self, start: int, count: int) -> NDArray[np.uint64]:
        """The worker's strata of elements ``start .. start + count - 1``, 0 .. n - 1."""
        n = np.uint64(self.world_size)
        drawn = random_words(self.shared_seed, start, count, STRATA_STREAM).astype(np.uint64)
        scaled = drawn * np.uint64(self.shifts.size)
        shift = self.shifts[scaled >> _HALF].astype(np.uint64)
        found: NDArray[np.uint64] = (shift + ((scaled & _LOW) * n >> _HALF)) % n
        return found

    def words(self, private: NDArray[np.uint32], start: int) -> NDArray[np.uint32]:
        """The words to round with: `private` ones of elements from `start` on, put into strata."""
        within = self.strata(start, private.size) << _HALF | private
        return (within // np.uint64(self.world_size)).astype(np.uint32)


def units(world_size: int) -> NDArray[np.uint64]:
    """Numbers below `world_size` and coprime to it, ascending: all, or `MOST_UNITS` spread out."""
    numbers = np.arange(world_size)
    found = numbers[np.gcd(numbers, world_size) == 1]
    if found.size > MOST_UNITS:
        found = found[np.arange(MOST_UNITS) * found.size // MOST_UNITS]
    chosen: NDArray[np.uint64] = found.astype(np.uint64)
    return chosen
