"""How the scales of blocks are chosen and what travels of them: four kinds.

A scale is a float64 number here; what an E2M1 number is multiplied by. Blocks of zeros have the
scale 1, times what all blocks share, or the nearest power to it that there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.contract import Coded
from quiver_kernels.schemes.fp4.grid import TOP
from quiver_kernels.stopping import slices

Floats = NDArray[np.float64]
Side = dict[str, NDArray[Any]]

GLOBAL, SHIFT = "global", "shift"
_E8M0_BIAS, _E8M0_MOST = 127, 254
_E4M3_ONE, _E4M3_MOST, _E4M3_TOP = 0x38, 0x7E, 448.0
# Exponents of powers of two that float64 holds.
_LEAST_EXPONENT, _MOST_EXPONENT = -1074, 1023
# Times any E4M3 number it is a normal number.
_NORMAL = 2.0**-1000
# Rounding a quotient and a product loses less than so many steps.
_STEPS = 4


class Scales(Protocol):
    """A kind of scale."""

    @property
    def block(self) -> int:
        """Values that share a scale unless a caller says how many."""
        ...

    @property
    def covers(self) -> bool:
        """Whether every value lies within its block's decoded numbers."""
        ...

    def choose(self, tops: Floats, dtype: str, *, covering: bool) -> Side:
        """What travels, for blocks of these greatest magnitudes.

        `covering`: no value may lie beyond its block's numbers, where the kind can see to that.
        """
        ...

    def check(self, q: Coded) -> None:
        """Refuse parts that `values` cannot read; ``q.block_size`` is a number."""
        ...

    def values(self, side: Mapping[str, NDArray[Any]]) -> Floats:
        """The scale of each block."""
        ...

    def bits(self, blocks: int) -> int:
        """Of what travels; an upper bound."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """The greatest magnitude over 6, float32 (float64 for float64 vectors), rounded up."""

    block: int = 64
    covers: bool = True

    def choose(self, tops: Floats, dtype: str, *, covering: bool) -> Side:  # noqa: ARG002
        """See `Scales`."""
        scales = scaled.scales_from(np.where(tops > 0, tops / TOP, 1.0), dtype)
        return {scaled.SCALES: _raised(scales, tops, dtype)}

    def check(self, q: Coded) -> None:
        """See `Scales`."""
        scaled.require_side(q, (scaled.SCALES,))
        scaled.check_scales(q)

    def values(self, side: Mapping[str, NDArray[Any]]) -> Floats:
        """See `Scales`."""
        return side[scaled.SCALES].astype(np.float64)

    def bits(self, blocks: int) -> int:
        """See `Scales`."""
        return 64 * blocks


@dataclass(frozen=True, slots=True)
class Powers:
    """Powers of two as E8M0 bytes: the exponent plus 127; 255 is not used.

    A vector whose greatest scale has no such byte travels with a shift, which is added to all
    exponents.

    Attributes
    ----------
    covers
        The least power that leaves no value beyond 6 (the rule of MS-AMP); else the power below the
        greatest magnitude, over 4 (the rule of MX: magnitudes from 6 to 8 become 6).
    """

    covers: bool
    block: int = 32

    def choose(self, tops: Floats, dtype: str, *, covering: bool) -> Side:  # noqa: ARG002
        """See `Scales`."""
        fraction, power = np.frexp(tops)
        # A magnitude is a fraction of 1/2 to 1 times a power, and 6 is 3/4 of 8.
        wanted = power.astype(np.int64) - 3 + (self.covers & (fraction > 0.75))
        wanted = np.where(tops > 0, np.maximum(wanted, _LEAST_EXPONENT), 0)
        most = int(wanted.max(where=tops > 0, initial=_LEAST_EXPONENT)) if tops.any() else 0
        shift = most - _E8M0_BIAS if abs(most) > _E8M0_BIAS else 0
        stored = np.clip(wanted - shift + _E8M0_BIAS, 0, _E8M0_MOST)
        side: Side = {scaled.SCALES: stored.astype(np.uint8)}
        return {**side, SHIFT: np.array([shift], np.int16)} if shift else side

    def check(self, q: Coded) -> None:
        """See `Scales`."""
        scaled.require_side(q, (scaled.SCALES, SHIFT) if SHIFT in q.side else (scaled.SCALES,))
        low, high = _check_bytes(q, _E8M0_MOST)
        if SHIFT not in q.side:
            return
        shift = _single(q, SHIFT, np.dtype(np.int16))
        least, most = low - _E8M0_BIAS + int(shift), high - _E8M0_BIAS + int(shift)
        scaled.require(
            shift != 0 and least >= _LEAST_EXPONENT and most <= _MOST_EXPONENT,
            f"side.{SHIFT}",
            f"must not be 0, and exponents with it must be {_LEAST_EXPONENT}..{_MOST_EXPONENT}",
            f"{int(shift)}, exponents {least}..{most}",
        )

    def values(self, side: Mapping[str, NDArray[Any]]) -> Floats:
        """See `Scales`."""
        shift = int(side[SHIFT][0]) if SHIFT in side else 0
        exponents = side[scaled.SCALES].astype(np.int32) + (shift - _E8M0_BIAS)
        return np.ldexp(1.0, exponents)

    def bits(self, blocks: int) -> int:
        """See `Scales`."""
        return 8 * blocks + 16


@dataclass(frozen=True, slots=True)
class NvFp4:
    """E4M3 numbers, and one number for all: the greatest magnitude over 6 times 448."""

    block: int = 16
    covers: bool = True

    def choose(self, tops: Floats, dtype: str, *, covering: bool) -> Side:
        """See `Scales`; E4M3 numbers are rounded up where they must cover, else to the nearest."""
        most = tops.max(initial=0.0)
        # 6 times 448 in two steps: either product of the other end's may be beyond float64.
        unit = scaled.scales_from(np.array([most / TOP / _E4M3_TOP if most > 0 else 1.0]), dtype)
        unit = _raised(unit, np.array([most]), dtype, _E4M3_TOP)
        with np.errstate(over="ignore"):
            wanted = np.minimum(tops / float(unit[0]) / TOP, _E4M3_TOP)
        stored = wanted.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        if float(unit[0]) < _NORMAL:
            # Less than 1 times it would be rounded away.
            stored = np.maximum(stored, _E4M3_ONE)
        if covering:
            for _ in range(_STEPS):
                numbers = _e4m3()[stored] * float(unit[0])
                low = scaled.rounded(_times_top(numbers), dtype) < tops
                stored = stored + low.astype(np.uint8)
        stored = np.where(tops > 0, stored, _E4M3_ONE).astype(np.uint8)
        return {scaled.SCALES: stored, GLOBAL: unit}

    def check(self, q: Coded) -> None:
        """See `Scales`."""
        scaled.require_side(q, (scaled.SCALES, GLOBAL))
        _check_bytes(q, _E4M3_MOST)
        unit = _single(q, GLOBAL, levels_dtype(q.dtype))
        fine = bool(np.isfinite(unit)) and unit > 0
        scaled.require(
            fine, f"side.{GLOBAL}", "must be finite and positive", float(unit), "invalid_levels"
        )

    def values(self, side: Mapping[str, NDArray[Any]]) -> Floats:
        """See `Scales`."""
        with np.errstate(over="ignore"):
            numbers = _e4m3()[side[scaled.SCALES]] * float(side[GLOBAL][0])
        scales: Floats = np.minimum(numbers, np.finfo(np.float64).max)
        return scales

    def bits(self, blocks: int) -> int:
        """See `Scales`."""
        return 8 * blocks + 64


KINDS: Mapping[str, Scales] = MappingProxyType(
    {
        "nvfp4": NvFp4(),
        "mx": Powers(covers=False),
        "power": Powers(covers=True),
        "float32": Plain(),
    }
)
"""By the value of the parameter ``scale``."""


def _raised(scales: NDArray[Any], tops: Floats, dtype: str, times: float = 1.0) -> NDArray[Any]:
    """`scales`, a step higher where `times` 6 times a scale decodes to less than the magnitude."""
    for _ in range(_STEPS):
        with np.errstate(over="ignore"):
            numbers = times * scales.astype(np.float64)
        low = scaled.rounded(_times_top(numbers), dtype) < tops
        scales = np.where(low, np.nextafter(scales, scales.dtype.type(np.inf)), scales)
    return scales


def _times_top(numbers: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return TOP * numbers


def _e4m3() -> Floats:
    """The numbers of all bytes without a sign that are numbers."""
    stored = np.arange(_E4M3_MOST + 1, dtype=np.uint8)
    numbers: Floats = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return numbers


def _check_bytes(q: Coded, most: int) -> tuple[int, int]:
    """The least and the greatest byte of the scales; `InvalidInput` unless they fit."""
    stored, name = q.side[scaled.SCALES], f"side.{scaled.SCALES}"
    right = stored.dtype == np.uint8
    scaled.require(right, name, "must hold uint8 numbers", stored.dtype.name, "unsupported_dtype")
    blocks = num_blocks(q.size, q.block_size)
    limit = f"must hold {blocks} numbers, one per block"
    scaled.require(stored.size == blocks, name, limit, stored.size, "size_mismatch")
    ends = [(int(stored[part].min()), int(stored[part].max())) for part in slices(blocks)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    scaled.require(high <= most, name, f"must be at most {most}", high, "invalid_levels")
    return low, high


def _single(q: Coded, part: str, dtype: np.dtype[Any]) -> Any:
    """The one number of a part; `InvalidInput` unless it is one of this type."""
    found = q.side[part]
    scaled.require(
        found.dtype == dtype and found.size == 1,
        f"side.{part}",
        f"must hold one {dtype.name} number",
        f"{found.size} of {found.dtype.name}",
        "size_mismatch",
    )
    return found[0]
