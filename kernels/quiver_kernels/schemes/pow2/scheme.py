"""The scheme of powers of two: parameters, promises, encoding and decoding."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, wire_name
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import magnitudes, scaled
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.pow2 import exponents
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import slices

LINEAR, LOG, UNBIASED = "linear", "log", "unbiased"
SEARCH, MAX = "search", "max"
# Grids finer than this have no room for sums in an integer.
_ADDITIVE = 24


@dataclass(frozen=True, slots=True)
class PowersOfTwo:
    """Signs and exponents."""

    name: str = "pow2"
    summary: str = "signs and powers of two below a top exponent per block"
    source: str = "DeepShift, CVPRW 2021; natural compression, arXiv 1905.10988"
    parameters: tuple[Parameter, ...] = (
        Parameter(
            "rounding",
            "linear: to the nearer power, from 3/2 of the lower one up; log: by the logarithm, "
            "from sqrt(2) up; unbiased: between the two powers at random",
            LINEAR,
            choices=(LINEAR, LOG, UNBIASED),
        ),
        Parameter(
            "top",
            "how the top exponent of a block is chosen: search, least squared error; max, from "
            "the greatest magnitude, as unbiased rounding always does",
            SEARCH,
            choices=(SEARCH, MAX),
        ),
    )
    level_counts: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    default_levels: int = 16
    side_information: str = "an int8 top exponent for each block (int16 for float64 vectors)"
    rounding: str = "nearest, or stochastic, between powers of two"

    def promises(self, choice: Choice) -> Promises:
        """Each error is at most the value, and less where that is not rounded to zero.

        Values above the greatest power of two of a type are not unbiased, and blocks below its
        normal range may be rounded to zero.
        """
        unbiased = choice.parameters.get("rounding") == UNBIASED
        return Promises(
            unbiased=unbiased,
            contraction=not unbiased,
            additive=exponents.magnitudes(choice.num_levels) <= _ADDITIVE,
            deterministic=not unbiased,
            streaming=True,
        )

    def message_bits(self, choice: Choice, size: int) -> float:
        """Packed codes, and 16 bits for each top exponent (8 but for float64)."""
        payload = scaled.Bits(choice.bits).size(size, choice.block_size)
        return 8 * payload + 16 * num_blocks(size, choice.block_size)

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Parts of a vector, and numbers for each block."""
        own = scaled.working_bytes(choice.num_levels, size, choice.block_size)
        return own + 64 * num_blocks(size, choice.block_size)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """See `contract.Scheme`. O(d)."""
        from quiver_kernels import dispatch

        dispatch.load("cpu")
        from quiver_kernels.schemes.pow2 import coding

        dtype = wire_name(x.dtype)
        block = scaled.block_of(x.size, choice.block_size)
        how = str(choice.parameters["rounding"])
        least = magnitudes.tops(x, block)
        low, high = exponents.limits(dtype)
        job = coding.Job(x, block, exponents.magnitudes(choice.num_levels), _split(how), low, high)
        if how == UNBIASED:
            # The least power that is no less.
            fraction, power = np.frexp(least)
            tops = np.clip(power - (fraction == 0.5), low, high).astype(np.int64)
        elif choice.parameters["top"] == SEARCH:
            tops = coding.search(job, least)
        else:
            fraction, power = np.frexp(least)
            up = 2.0 * fraction >= _threshold(how)
            tops = np.clip(power - 1 + up, low, high).astype(np.int64)
        tops = np.where(least > 0, tops, low)
        codes, error, norm = coding.encode(job, tops, seed if how == UNBIASED else None)
        side = {exponents.TOPS: tops.astype(exponents.side_dtype(dtype))}
        vnmse = error / norm if norm > 0 else 0.0
        return Encoded(np.empty(0, levels_dtype(dtype)), codes, side, vnmse)

    def check(self, coded: Coded) -> None:
        """See `contract.Scheme`."""
        scaled.require_empty_levels(coded)
        scaled.require_side(coded, (exponents.TOPS,))
        tops, wanted = coded.side[exponents.TOPS], exponents.side_dtype(coded.dtype)
        scaled.require(
            tops.dtype == wanted,
            "side.tops",
            f"must hold {wanted.name} numbers for {coded.dtype} vectors",
            tops.dtype.name,
            "unsupported_dtype",
        )
        blocks = num_blocks(coded.size, coded.block_size)
        scaled.require(
            tops.size == blocks,
            "side.tops",
            f"must hold {blocks} numbers, one per block",
            tops.size,
            "size_mismatch",
        )
        low, high = exponents.limits(coded.dtype)
        ends = [(int(tops[part].min()), int(tops[part].max())) for part in slices(tops.size)]
        least, most = min(end[0] for end in ends), max(end[1] for end in ends)
        scaled.require(
            low <= least and most <= high,
            "side.tops",
            f"must be {low}..{high} for {coded.dtype} vectors",
            f"{least}..{most}",
        )
        scaled.require_codes(coded, scaled.Bits(coded.bits).size(coded.size, coded.block_size))

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `contract.Scheme`. O(d)."""
        tops, dtype = coded.side[exponents.TOPS], coded.dtype
        block = scaled.block_of(coded.size, coded.block_size)
        packing = scaled.Bits(coded.bits)
        signs, offsets = exponents.signs_and_offsets(coded.num_levels)
        out = np.empty(coded.size, WIRE_DTYPES[dtype])

        def decode_span(span: tuple[int, int]) -> None:
            start, stop = span
            codes = packing.unpack(coded.codes, start, stop, block)
            # With few values to a block its row is no faster than a product for each value.
            if scaled.has_numba() and block >= coded.num_levels:
                from quiver_kernels.schemes import scaled_coding

                own = tops[start // block : -(-stop // block)]
                rows = exponents.decoded_rows(own, coded.num_levels, dtype)
                scaled_coding.look_up(codes, rows, start % block, block, out[start:stop])
                return
            powers = offsets[codes] + tops[np.arange(start, stop) // block]
            values = np.ldexp(signs[codes], powers.astype(np.int32))
            out[start:stop] = values.astype(out.dtype) + out.dtype.type(0)

        run_parts(scaled.spans(coded.size, block, coded.num_levels), decode_span)
        return out

    def warm_up(self) -> None:
        """See `contract.Scheme`."""
        from quiver_kernels import dispatch

        dispatch.load("cpu")
        from quiver_kernels.schemes.pow2 import coding

        coding.warm_up()


def _threshold(how: str) -> float:
    """Of values in [1, 2): from where on the next power is nearer."""
    return math.sqrt(2.0) if how == LOG else 1.5


def _split(how: str) -> int:
    """The fraction bits of that."""
    bits: int = struct.unpack("<q", struct.pack("<d", _threshold(how)))[0]
    return bits & ((1 << 52) - 1)
