"""The scheme of one sign per block: encoding and decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype, wire_name
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import scaled, search
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.signed_binary.masks import Masks

_KEPT = np.array([0.0, 1.0])


@dataclass(frozen=True, slots=True)
class SignedBinary:
    """Zero, or the block's scale."""

    name: str = "signed_binary"
    summary: str = "0 or one signed scale per block, for data of one sign"
    source: str = "PLUM: signed binary, with a threshold that is searched for"
    parameters: tuple[Parameter, ...] = ()
    level_counts: tuple[int, ...] = (2,)
    default_levels: int = 2
    side_information: str = "a signed float32 scale for each block (float64 for float64 vectors)"
    rounding: str = "nearest, ties to the lower value"

    def promises(self, choice: Choice) -> Promises:  # noqa: ARG002
        """What is kept loses less than it is; the rest loses itself."""
        return Promises(contraction=True, additive=True, deterministic=True, streaming=True)

    def message_bits(self, choice: Choice, size: int) -> float:
        """A bit for each value, and scales."""
        return scaled.table_bits(scaled.Bits(1), size, choice.block_size)

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Parts of a vector, and numbers for each block."""
        block = scaled.block_of(size, choice.block_size)
        own = scaled.working_bytes(2, size, choice.block_size)
        return own + 2 * search.working_bytes(size, block)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """See `contract.Scheme`. O(d log d)."""
        dtype = wire_name(x.dtype)
        block = scaled.block_of(x.size, choice.block_size)
        above, gains_above = search.best_scales_and_gains(x, block, _KEPT)
        below, gains_below = search.best_scales_and_gains(x, block, -_KEPT[::-1])
        sizes = scaled.scales_from(np.where(gains_above >= gains_below, above, below), dtype)
        scales = np.where(gains_above >= gains_below, sizes, -sizes)

        def rows_of(part: slice) -> NDArray[Any]:
            return np.sort(scaled.decoded_rows(_KEPT, scales[part], dtype), axis=1)

        rounded = scaled.encode_rows(
            x,
            rows_of,
            2,
            choice.block_size,
            seed,
            nearest=True,
            # So that zeros of a block of zeros are not kept.
            ties_up=np.zeros(1, np.bool_),
            packing=Masks(scales < 0),
        )
        side = {scaled.SCALES: scales}
        return Encoded(np.empty(0, levels_dtype(dtype)), rounded.codes, side, rounded.vnmse)

    def check(self, coded: Coded) -> None:
        """See `contract.Scheme`."""
        scaled.require_empty_levels(coded)
        scaled.check_scales(coded, signed=True)
        scaled.require_codes(coded, scaled.Bits(1).size(coded.size, coded.block_size))

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `contract.Scheme`."""
        return scaled.decode(coded, _KEPT)

    def warm_up(self) -> None:
        """See `contract.Scheme`."""
        scaled.warm_up(_KEPT)
        search.warm_up()


def density(q: QuantizedVector) -> float:
    """The share of values of a ``signed_binary`` message that are kept, 0..1."""
    scaled.require(
        q.method == "signed_binary", "method", "must be signed_binary", repr(q.method[:40])
    )
    block = scaled.block_of(q.size, q.block_size)
    spans = scaled.spans(q.size, block, 2)
    codes = (scaled.Bits(1).unpack(q.codes, start, stop, block) for start, stop in spans)
    return sum(int(part.sum()) for part in codes) / q.size
