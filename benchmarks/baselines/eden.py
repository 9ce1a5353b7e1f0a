"""EDEN and, with 1 bit, DRIVE: a random rotation, then the nearest level of a normal's table.

After Vargaftik et al. (ICML 2022 and NeurIPS 2021), from the formulas: R is a Hadamard matrix with
random signs of its columns, c the nearest entries to ``R x sqrt(d) / |x|`` of the Lloyd-Max table
of a standard normal, and ``S R^-1 c`` with ``S = |x|^2 / <c, R x>`` is decoded: unbiased over
rotations. O(d log d). Vectors are filled up with zeros to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from baselines.compiled import kernel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Eden:
    """The scheme with codes of so many bits, 1..8."""

    bits: int

    def send(self, x: NDArray[Any], seed: int) -> NDArray[np.float32]:
        """What a receiver decodes; the seed is that of the rotation."""
        norm = float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))
        if norm == 0.0:
            return np.zeros(x.size, np.float32)
        d = 1 << (x.size - 1).bit_length()
        signs = _signs(seed, d)
        rotated = np.zeros(d)
        rotated[: x.size] = x
        rotated *= signs
        hadamard(rotated)
        table = lloyd_max(1 << self.bits)
        # Rows of the transform have the norm sqrt(d): this is R x sqrt(d).
        codes = np.searchsorted((table[1:] + table[:-1]) / 2, rotated / norm)
        chosen = table[codes]
        scale = norm * norm / (float(chosen @ rotated) / np.sqrt(d))
        hadamard(chosen)
        found = scale / np.sqrt(d) * signs * chosen
        return found[: x.size].astype(np.float32)

    def nbytes(self, size: int) -> int:
        """Bytes of codes (of the filled vector), float32 scale and 64-bit seed."""
        return -(-(1 << (size - 1).bit_length()) * self.bits // 8) + 4 + 8


@cache
def lloyd_max(count: int) -> Floats:
    """Levels of least squared error for a standard normal, ascending, shape (count,).

    Fixed point: each level is the mean of what is nearest to it.
    """
    levels = np.linspace(-1.0, 1.0, count) * np.sqrt(2 * np.log(count))
    for _ in range(20_000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-0.5 * np.square(edges)) / np.sqrt(2 * np.pi)
        moved = (density[:-1] - density[1:]) / np.diff(ndtr(edges))
        change = np.abs(moved - levels).max()
        levels = moved
        if change < 1e-12:
            break
    return levels


def distortion(levels: Floats) -> float:
    """Squared error of a standard normal rounded to the nearest of `levels`, each a mean."""
    edges = (levels[1:] + levels[:-1]) / 2
    shares = np.diff(np.concatenate([[0.0], ndtr(edges), [1.0]]))
    return 1.0 - float(np.sum(shares * np.square(levels)))


def _signs(seed: int, d: int) -> Floats:
    bits = np.random.default_rng(seed).integers(0, 2, d, dtype=np.int8)
    return 1.0 - 2.0 * bits


@kernel
def hadamard(x: Floats) -> None:
    """Multiply by the Hadamard matrix of entries +-1, in place; the size is a power of two."""
    half = 1
    while half < x.size:
        for start in range(0, x.size, 2 * half):
            for i in range(start, start + half):
                a, b = x[i], x[i + half]
                x[i], x[i + half] = a + b, a - b
        half *= 2
