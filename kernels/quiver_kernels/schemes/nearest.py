"""Schemes of fixed tables, a scale for each block and nearest rounding: what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype, wire_name
from quiver_kernels.schemes import magnitudes, scaled, search
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises

SEARCH, MAX, MEAN = "search", "max", "mean"
SCALE = Parameter(
    "scale",
    "how the scale of a block is chosen: search, least squared error; max, from the greatest "
    "magnitude; mean, from the mean magnitude, best for normal data",
    SEARCH,
    choices=(SEARCH, MAX, MEAN),
)


@dataclass(frozen=True, slots=True)
class Entries:
    """A table, and how it is used.

    Attributes
    ----------
    values
        Ascending, times the scale what is decoded.
    even_from
        What the lowest counts as where a value lies midway between two: it goes to the even one.
    per_top
        With ``scale`` max: the scale over the greatest magnitude.
    per_mean
        With ``scale`` mean: the scale over the mean magnitude.
    packing
        Of the codes; None: of the fewest bits.
    """

    values: tuple[float, ...]
    even_from: int
    per_top: float
    per_mean: float
    packing: scaled.Packing | None = None

    @property
    def table(self) -> NDArray[np.float64]:
        """The values as an array."""
        return np.array(self.values)

    @property
    def payload(self) -> scaled.Packing:
        """How codes are packed."""
        return self.packing or scaled.Bits((len(self.values) - 1).bit_length())

    @property
    def is_sign(self) -> bool:
        """Whether the mean magnitude itself has the least squared error."""
        return self.values == (-1.0, 1.0)

    def scales(self, x: NDArray[Any], block: int, how: str) -> NDArray[np.float64]:
        """The scale of each block; 0 for blocks of zeros."""
        if how == SEARCH and not self.is_sign:
            return search.best_scales(x, block, self.table)
        tops = magnitudes.tops(x, block)
        with np.errstate(over="ignore"):
            if how == MAX:
                return tops * self.per_top
            return magnitudes.means(x, block, tops) * self.per_mean


@dataclass(frozen=True, slots=True)
class NearestScheme:
    """A scheme of such tables, one for each number of levels."""

    name: str
    summary: str
    source: str
    entries: Mapping[int, Entries]
    default_levels: int
    parameters: tuple[Parameter, ...] = (SCALE,)
    side_information: str = "a float32 scale for each block (float64 for float64 vectors)"
    rounding: str = "nearest, ties to even"

    @property
    def level_counts(self) -> tuple[int, ...]:
        """Of the tables."""
        return tuple(sorted(self.entries))

    def promises(self, choice: Choice) -> Promises:
        """A contraction, but where tables without zero are scaled by the greatest magnitude.

        Entries of a table lie on one grid. Below the normal range decoded values may be rounded to
        zero.
        """
        has_zero = 0.0 in self.entries[choice.num_levels].values
        return Promises(
            contraction=has_zero or self._how(choice) != MAX,
            additive=True,
            deterministic=True,
            streaming=True,
        )

    def message_bits(self, choice: Choice, size: int) -> float:
        """Packed codes, and scales."""
        payload = self.entries[choice.num_levels].payload
        return scaled.table_bits(payload, size, choice.block_size)

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Parts of a vector, and numbers for each block."""
        block = scaled.block_of(size, choice.block_size)
        own = scaled.working_bytes(choice.num_levels, size, choice.block_size)
        return own + search.working_bytes(size, block)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """See `contract.Scheme`. O(d log d) with a search, else O(d)."""
        entries, dtype = self.entries[choice.num_levels], wire_name(x.dtype)
        block = scaled.block_of(x.size, choice.block_size)
        scales = scaled.scales_from(entries.scales(x, block, self._how(choice)), dtype)
        rounded = scaled.encode(
            x,
            entries.table,
            scales,
            choice.block_size,
            seed,
            nearest=True,
            ties_up=scaled.ties_to_even(len(entries.values), entries.even_from),
            packing=entries.payload,
        )
        side = {scaled.SCALES: scales}
        return Encoded(np.empty(0, levels_dtype(dtype)), rounded.codes, side, rounded.vnmse)

    def check(self, coded: Coded) -> None:
        """See `contract.Scheme`."""
        scaled.check_sizes(coded, self.entries[coded.num_levels].payload)

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `contract.Scheme`."""
        entries = self.entries[coded.num_levels]
        return scaled.decode(coded, entries.table, entries.payload)

    def warm_up(self) -> None:
        """See `contract.Scheme`."""
        for entries in self.entries.values():
            scaled.warm_up(entries.table, entries.payload)
            if not entries.is_sign:
                search.warm_up()

    def _how(self, choice: Choice) -> str:
        # A scheme may leave no choice.
        return str(choice.parameters.get(SCALE.name, SEARCH))


def tables(*each: Entries) -> Mapping[int, Entries]:
    """`each` by the number of its levels."""
    return MappingProxyType({len(one.values): one for one in each})
