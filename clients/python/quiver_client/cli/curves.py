"""What bits buy: expected error and bytes of a vector by method and number of bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client._sync import Client
from quiver_client.cli.tables import number, table


@dataclass(frozen=True, slots=True)
class Point:
    """One way to send the vector.

    Attributes
    ----------
    method, bits
        Of the quantization.
    nbytes
        Of codes, levels and side information.
    vnmse
        Expected squared error over squared norm; 0 for a vector of zeros.
    """

    method: str
    bits: int
    nbytes: int
    vnmse: float


def error_curves(
    client: Client | LocalClient,
    x: NDArray[Any],
    methods: Sequence[str],
    bits: Sequence[int],
    block_size: int | None = None,
) -> list[Point]:
    """The points of a vector, method by method; from levels and all its values, not sampled."""
    given = {"x": x}
    planned = client.plan(given, bits=bits, methods=methods, block_size=block_size, raw=False)
    norm = float(np.linalg.norm(x.astype(np.float64))) ** 2
    return [
        Point(str(one.method), int(one.bits or 0), one.nbytes, one.error / norm if norm else 0.0)
        for one in planned.curves["x"].candidates
    ]


def curve_table(points: Sequence[Point], nbytes: int) -> str:
    """Errors with a row for each number of bits and a column for each method.

    Parameters
    ----------
    points
        Of `error_curves`.
    nbytes
        Of the values as they are.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    by_place = {(point.bits, point.method): point for point in points}
    rows = [["bits", "bytes", "smaller", *methods]]
    for width in dict.fromkeys(point.bits for point in points):
        row = [by_place.get((width, method)) for method in methods]
        size = max(point.nbytes for point in row if point is not None)
        errors = [number(None if point is None else point.vnmse) for point in row]
        rows.append([str(width), f"{size:,}", f"{nbytes / size:.1f}x", *errors])
    return table(rows, left=0, indent=2)


def gain(points: Sequence[Point], best: str = "exact", plain: str = "uniform") -> str | None:
    """What `best` buys against `plain`, in a sentence about 4 bits, or the nearest to them.

    None where one of them is missing, or there is nothing to gain.
    """
    curves: Mapping[str, dict[int, float]] = {
        method: {point.bits: point.vnmse for point in points if point.method == method}
        for method in (best, plain)
    }
    shared = sorted(set(curves[best]) & set(curves[plain]), key=lambda bits: (abs(bits - 4), bits))
    if not shared or not 0 < curves[best][shared[0]] < curves[plain][shared[0]]:
        return None
    bits = shared[0]
    error = curves[best][bits]
    said = (
        f"At {_bits(bits)}, levels fitted to these values ({best}) have "
        f"{curves[plain][bits] / error:.3g} times less error than equal steps ({plain})"
    )
    enough = [width for width in sorted(curves[plain]) if curves[plain][width] <= error]
    if enough and enough[0] > bits:
        return f"{said}, which need {_bits(enough[0])} to be as good."
    if not enough and max(curves[plain]) > bits:
        return f"{said}, which are not as good even with {_bits(max(curves[plain]))}."
    return f"{said}."


def _bits(count: int) -> str:
    return f"{count} bit" if count == 1 else f"{count} bits"
