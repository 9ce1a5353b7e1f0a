"""The scheme of E2M1 numbers: parameters, promises, encoding and decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, wire_name
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import magnitudes, scaled
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.fp4 import grid
from quiver_kernels.schemes.fp4.scales import KINDS, Scales

NEAREST, STOCHASTIC = "nearest", "stochastic"
_SCALE, _ROUNDING = "scale", "rounding"


@dataclass(frozen=True, slots=True)
class Fp4:
    """Sign, two bits of exponent, one of mantissa, times a scale for each block."""

    name: str = "fp4"
    summary: str = "four-bit floats (E2M1) with scales as NVFP4, MX, powers of two or float32"
    source: str = "OCP Microscaling Formats 1.0; arXiv 2501.17116 (MS-AMP)"
    parameters: tuple[Parameter, ...] = (
        Parameter(
            _SCALE,
            "what the scale of a block is: nvfp4, E4M3 times one float32 for all, blocks of 16 "
            "unless told; mx, E8M0 by the rule of OCP MX (beyond 6 saturates), blocks of 32; "
            "power, E8M0, the least that does not saturate, blocks of 32; float32, the greatest "
            "magnitude over 6, blocks of 64",
            "nvfp4",
            choices=tuple(KINDS),
        ),
        Parameter(
            _ROUNDING,
            "nearest, ties to even; stochastic, without bias but for values that saturate (mx)",
            NEAREST,
            choices=(NEAREST, STOCHASTIC),
        ),
    )
    level_counts: tuple[int, ...] = (16,)
    default_levels: int = 16
    side_information: str = (
        "for each block a byte (with nvfp4 one float32 more, with mx and power for far-out values "
        "an int16), or a float32; float64 in place of float32 for float64 vectors"
    )
    rounding: str = "nearest, ties to even, or stochastic"

    def promises(self, choice: Choice) -> Promises:
        """To the nearest no error is larger than the value, since zero is there."""
        at_random = choice.parameters[_ROUNDING] == STOCHASTIC
        return Promises(
            unbiased=at_random and _kind(choice).covers,
            contraction=not at_random,
            deterministic=not at_random,
            streaming=True,
        )

    def message_bits(self, choice: Choice, size: int) -> float:
        """Packed codes, and scales."""
        choice = _with_block(choice)
        codes = grid.E2M1().size(size, choice.block_size)
        return 8 * codes + _kind(choice).bits(num_blocks(size, choice.block_size))

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Parts of a vector, and numbers for each block."""
        block = _with_block(choice).block_size
        return scaled.working_bytes(16, size, block) + 96 * num_blocks(size, block)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """See `contract.Scheme`. O(d)."""
        from quiver_kernels import dispatch

        dispatch.load("cpu")
        from quiver_kernels.schemes.fp4 import compiled

        choice, dtype = _with_block(choice), wire_name(x.dtype)
        kind, nearest = _kind(choice), choice.parameters[_ROUNDING] == NEAREST
        block = scaled.block_of(x.size, choice.block_size)
        fast = compiled.takes(dtype)
        tops = compiled.tops(x, block) if fast else magnitudes.tops(x, block)
        side = kind.choose(tops, dtype, covering=not nearest)
        scales = kind.values(side)
        if nearest and fast:
            unit = Range(0.0, float(tops.max())).unit
            rounded = compiled.encode(x, scales, block, dtype, unit)
        else:
            rounded = scaled.encode(
                x,
                grid.ascending(),
                scales,
                choice.block_size,
                seed,
                nearest=nearest,
                ties_up=grid.ties_up(),
                packing=grid.E2M1(),
            )
        return Encoded(np.empty(0, levels_dtype(dtype)), rounded.codes, side, rounded.vnmse)

    def check(self, coded: Coded) -> None:
        """See `contract.Scheme`."""
        q = replace(coded, choice=_with_block(coded.choice))
        scaled.require_empty_levels(q)
        _kind(q.choice).check(q)
        scaled.require_codes(q, grid.E2M1().size(q.size, q.block_size))

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `contract.Scheme`. O(d)."""
        choice = _with_block(coded.choice)
        scales = _kind(choice).values(coded.side)
        if scaled.has_numba() and coded.dtype in ("float32", "float64"):
            from quiver_kernels.schemes.fp4 import compiled

            out = np.empty(coded.size, WIRE_DTYPES[coded.dtype])
            block = scaled.block_of(coded.size, choice.block_size)
            compiled.decode(coded.codes, scales, block, out)
            return out
        q = replace(coded, choice=choice, side={scaled.SCALES: scales})
        return scaled.decode(q, grid.by_code(), grid.E2M1())

    def warm_up(self) -> None:
        """See `contract.Scheme`."""
        from quiver_kernels import dispatch

        dispatch.load("cpu")
        from quiver_kernels.schemes.fp4 import compiled

        compiled.warm_up()
        scaled.warm_up(grid.ascending(), grid.E2M1())


def _kind(choice: Choice) -> Scales:
    return KINDS[str(choice.parameters[_SCALE])]


def _with_block(choice: Choice) -> Choice:
    """The choice with the block size that its kind of scale has by default."""
    if choice.block_size is not None:
        return choice
    return replace(choice, block_size=_kind(choice).block)
