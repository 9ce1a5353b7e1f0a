"""EDEN and DRIVE: a random rotation, then nearest levels of one table for all vectors.

Turned at random, the values of any block are close to normal ones, so the Lloyd-Max table of the
normal distribution suits them all. Only a scale travels with each block.

The estimate is unbiased over seeds for a rotation that takes all directions alike. This one does,
but for a few thousandths of the norm (measured at 1 bit on vectors of one and two large values); a
single message is as biased as any nearest rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.eden import parts
from quiver_kernels.schemes.eden.layout import SPAN, Layout

UNBIASED = "unbiased"
CONTRACTION = "contraction"

_SCALE = Parameter(
    "scale",
    "unbiased: the mean over seeds is the vector, but for what a rotation of finite length leaves; "
    "contraction: least error, for error feedback",
    UNBIASED,
    choices=(UNBIASED, CONTRACTION),
)
_EXTRA = Parameter("extra", "share of values with one bit more", 0.0, low=0.0, high=1.0)
_KEEP = Parameter("keep", "share of turned values that are sent", 1.0, low=1 / 1024, high=1.0)


@dataclass(frozen=True, slots=True)
class Eden:
    """A scheme of a rotation and a table; see the module."""

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    level_counts: tuple[int, ...]
    default_levels: int
    side_information: str = (
        "scale for each block (float32; float64 for float64 vectors), one int16 exponent; blocks "
        "of 16384 values unless given, at most 65536"
    )
    rounding: str = "nearest, after a random rotation"

    def promises(self, choice: Choice) -> Promises:
        """By the scale that was chosen; a contraction needs all values to be sent."""
        contraction = choice.parameters["scale"] == CONTRACTION
        everything = choice.parameters.get("keep", 1.0) == 1.0
        return Promises(
            unbiased=not contraction, contraction=contraction and everything, streaming=True
        )

    def message_bits(self, choice: Choice, size: int) -> float:
        """Exact but for scales of 64 bits, and for values picked at random: an upper bound."""
        layout = _layout(choice, size, 0)
        # Offsets decide whether a value more is picked, at either end of a span.
        more = 0 if layout.is_plain else 8 * 4 * len(layout.spans())
        return 8 * layout.payload() + more + 64 * layout.blocks + 16

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Rows of a span several times over, and sums of all blocks."""
        layout = _layout(choice, size, 0)
        span = min(size, max(SPAN, layout.block))
        return 80 * span + 128 * layout.blocks + (1 << 18)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """See `contract.Scheme`."""
        from quiver_kernels.schemes.eden.encoding import encode

        layout = _layout(choice, x.size, seed)
        unbiased = choice.parameters["scale"] == UNBIASED
        return encode(x, layout, choice.num_levels, seed, unbiased=unbiased)

    def check(self, coded: Coded) -> None:
        """See `contract.Scheme`."""
        parts.check(coded, _layout_of(coded))

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `contract.Scheme`."""
        from quiver_kernels.schemes.eden.decoding import decode

        return decode(coded, _layout_of(coded))

    def warm_up(self) -> None:
        """See `contract.Scheme`."""
        from quiver_kernels.schemes.eden.warming import warm_up

        warm_up(self.name)


def eden() -> Eden:
    """The scheme ``eden``."""
    return Eden(
        name="eden",
        summary="random rotation, nearest level of the normal table; 1 to 8 bits and between, or "
        "below 1",
        source="EDEN: Communication-Efficient and Robust Distributed Mean Estimation, ICML 2022",
        parameters=(_SCALE, _EXTRA, _KEEP),
        level_counts=tuple(range(2, 257)),
        default_levels=16,
    )


def drive() -> Eden:
    """The scheme ``drive``."""
    return Eden(
        name="drive",
        summary="random rotation, then signs: 1 bit per value",
        source="DRIVE: One-bit Distributed Mean Estimation, NeurIPS 2021",
        parameters=(_SCALE,),
        level_counts=(2,),
        default_levels=2,
    )


def _layout_of(coded: Coded) -> Layout:
    return _layout(coded.choice, coded.size, coded.seed)


def _layout(choice: Choice, size: int, seed: int) -> Layout:
    extra, keep = (float(choice.parameters.get(*pair)) for pair in (("extra", 0.0), ("keep", 1.0)))
    if extra > 0 and choice.num_levels > 128:
        raise InvalidInput(
            f"parameters.extra must be 0 with more than 128 levels; got {extra:g}",
            code="invalid_option",
            field="parameters.extra",
        )
    return Layout.of(size, choice.block_size, choice.bits, keep, extra, seed)
