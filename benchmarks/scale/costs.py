"""What operations cost: straight lines through measured times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

BITS = 4
FLOAT_BYTES = 4.0
CODE_BYTES_PER_VALUE = BITS / 8


@dataclass(frozen=True)
class Line:
    """Seconds as `fixed` + `each` times a number."""

    fixed: float
    each: float

    def seconds(self, number: float) -> float:
        """What so many take."""
        return self.fixed + self.each * number


def fit(numbers: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line of least squared relative error, neither part below 0.

    Of the three candidates (both parts, either alone) the best with no negative part is taken,
    which is the optimum of this convex problem.
    """
    n, t = np.asarray(numbers, np.float64), np.asarray(seconds, np.float64)
    columns = np.stack([1 / t, n / t], axis=1)
    candidates = []
    for used in ([0, 1], [0], [1]):
        part, *_ = np.linalg.lstsq(columns[:, used], np.ones_like(t), rcond=None)
        both = np.zeros(2)
        both[used] = part
        if (both >= 0).all():
            candidates.append((float(np.sum((columns @ both - 1) ** 2)), both))
    _, (fixed, each) = min(candidates, key=lambda found: found[0])
    return Line(float(fixed), float(each))


@dataclass(frozen=True)
class Costs:
    """Costs of one thread, by the number of values unless said.

    Attributes
    ----------
    solve, encode, decode
        Levels of a vector (exact, 16), codes with a table (4 bits), values from codes.
    add_float, add_decoded, add_codes
        A vector into a sum: float32 values, quantized ones with their own tables, and codes of a
        shared table without decoding.
    sketch, merge
        A sketch of a vector; sketches into one, by their number.
    request
        ``POST /quantize`` through the service, seen by the client.
    hop
        The same for a few values, in seconds: what a request costs whatever it asks.
    sketch_bytes, head_bytes
        Of a sketch; of a quantized vector beside its codes.
    """

    solve: Line
    encode: Line
    decode: Line
    add_float: Line
    add_decoded: Line
    add_codes: Line
    sketch: Line
    merge: Line
    request: Line
    hop: float
    sketch_bytes: float
    head_bytes: float

    @classmethod
    def from_dict(cls, found: Mapping[str, object]) -> Costs:
        """The reverse of `as_dict`."""
        parts = {k: Line(**v) if isinstance(v, dict) else float(str(v)) for k, v in found.items()}
        return cls(**parts)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self)
