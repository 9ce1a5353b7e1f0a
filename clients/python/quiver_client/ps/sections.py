"""The sections that a unit is cut into, before they are quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client.ps.layout import Unit, chunks
from quiver_client.ps.outliers import largest, without
from quiver_kernels.tree import Leaf, Outliers


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Values of one section, and their place in the unit."""

    values: NDArray[Any]
    chunk: int
    quantized: bool
    outliers: Outliers | None = None


def cut(unit: Unit, leaves: Mapping[str, NDArray[Any]], chunk_values: int) -> list[Part]:
    """The sections of a unit; copies where leaves are packed or outliers taken out."""
    stream = unit.stream(leaves)
    slices = list(chunks(stream.size, chunk_values))
    if unit.rule.raw:
        return [Part(stream[piece], chunk, False) for chunk, piece in enumerate(slices)]
    exact = largest(stream, unit.rule.count_outliers(stream.size))
    parts = []
    for chunk, piece in enumerate(slices):
        values = stream[piece]
        first, last = np.searchsorted(exact, [piece.start, piece.stop])
        inside = exact[first:last] - piece.start
        if inside.size == values.size:
            parts.append(Part(values, chunk, False))
        elif inside.size:
            rest, outliers = without(values, inside)
            parts.append(Part(rest, chunk, True, outliers))
        else:
            parts.append(Part(values, chunk, True))
    return parts


def described(unit: Unit, leaves: Mapping[str, NDArray[Any]]) -> tuple[Leaf, ...]:
    """The leaves of a unit as a message describes them."""
    return tuple(Leaf(name, leaves[name].dtype.name, leaves[name].shape) for name in unit.names)
