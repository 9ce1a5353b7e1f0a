"""QSGD: signs, and magnitudes rounded without bias to equal steps of a norm. O(d).

After Alistarh et al. (NeurIPS 2017): the levels are j / L of the norm, j = 0..L, so with signs
there are 2 L + 1 codes. The paper's norm is the Euclidean one of a bucket; practice prefers the
largest magnitude. Codes are counted at a fixed width, without the paper's entropy coding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Norm = Literal["euclidean", "largest"]


@dataclass(frozen=True)
class Qsgd:
    """The scheme.

    Attributes
    ----------
    bits
        Per code, at least 2: L is the most whose 2 L + 1 codes fit.
    norm
        What magnitudes are divided by.
    bucket
        Values that share a norm; None: all.
    """

    bits: int
    norm: Norm = "largest"
    bucket: int | None = None

    @property
    def steps(self) -> int:
        """L."""
        return (1 << (self.bits - 1)) - 1

    def send(self, x: NDArray[Any], seed: int) -> NDArray[np.float32]:
        """What a receiver decodes."""
        bucket = self.bucket or x.size
        padded = np.zeros(-(-x.size // bucket) * bucket, np.float32)
        padded[: x.size] = x
        rows = padded.reshape(-1, bucket)
        if self.norm == "euclidean":
            norms = np.sqrt(np.sum(np.square(rows, dtype=np.float64), axis=1)).astype(np.float32)
        else:
            norms = np.abs(rows).max(axis=1)
        scale = (norms / np.float32(self.steps))[:, np.newaxis]
        places = np.abs(rows) / np.where(scale > 0, scale, 1)
        draws = np.random.default_rng(seed).random(places.shape, dtype=np.float32)
        below = np.floor(places)
        codes = np.copysign(below + (draws < places - below), rows)
        return (codes * scale).reshape(-1)[: x.size]

    def nbytes(self, size: int) -> int:
        """Bytes of codes and float32 norms."""
        bucket = self.bucket or size
        return -(-size * self.bits // 8) + 4 * -(-size // bucket)
