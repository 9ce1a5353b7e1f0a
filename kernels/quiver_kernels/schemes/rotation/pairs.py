"""Turns of pairs by random angles, for blocks too short for random signs alone.

A Hadamard transform with random signs takes few of all directions where a block is short, and
nearest rounding after it would be biased. So pairs of values are turned by random angles first.
Round r pairs the values i and ``(c - i) mod n``, c random. An angle's cosine and sine are
``(1 - t^2) / (1 + t^2)`` and ``2 t / (1 + t^2)``, t even in (-1, 1): the same bits anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.rng import ROTATION_STREAM, random_words

SHORT = 256
"""Blocks of fewer values have turns of pairs."""
_MOST_ROUNDS = 16

_Floats = NDArray[np.float64]


def rounds_of(size: int) -> int:
    """Rounds of turns of a block of `size` values: more where few values are turned by each."""
    return 8 if size >= 16 else _MOST_ROUNDS


def first_index(number: int) -> int:
    """Where the random words of a round begin, far beyond those of signs."""
    return (number + 1) << 52


def shifts(seed: int, size: int) -> list[int]:
    """The c of each round, for blocks of `size` values."""
    words = random_words(seed, first_index(_MOST_ROUNDS), rounds_of(size), ROTATION_STREAM)
    return [int(word) % size for word in words]


def turn_plainly(rows: _Floats, seed: int, start: int, *, back: bool) -> None:
    """Turn the pairs of each row, or turn them back, in NumPy alone."""
    size = rows.shape[1]
    places = np.arange(size)
    rounds = list(enumerate(shifts(seed, size)))
    for number, shift in reversed(rounds) if back else rounds:
        other = (shift - places) % size
        low = places[places < other]
        words = random_words(seed, first_index(number) + start, rows.size, ROTATION_STREAM)
        t = (words.reshape(rows.shape)[:, low] + 0.5) * 2.0**-31 - 1.0
        inverse = 1.0 / (1.0 + t * t)
        cosine, sine = (1.0 - t * t) * inverse, 2.0 * t * inverse
        if back:
            sine = -sine
        a, b = rows[:, low], rows[:, other[low]]
        rows[:, low], rows[:, other[low]] = cosine * a - sine * b, sine * a + cosine * b
