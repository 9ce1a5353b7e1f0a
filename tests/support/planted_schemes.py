"""A small scheme that conforms, and the same with one fault planted in each of many.

`Steps`: equal steps between the largest magnitude of a block and its negative, in plain NumPy.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quiver_kernels import sharing
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.packing import num_blocks, pack_codes, packed_size, unpack_codes
from quiver_kernels.rng import random_words
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises

TOPS = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38, "float64": 1.79e308}
NO_LEVELS = {name: np.zeros(0, levels_dtype(name)) for name in WIRE_DTYPES}


@dataclass(frozen=True)
class Steps:
    """Conforms; faults override one method each."""

    name: str = "steps"
    summary: str = "equal steps on both sides of zero"
    source: str = "the tests"
    level_counts: tuple[int, ...] = (3, 15, 255)
    default_levels: int = 15
    side_information: str = "a float64 scale for each block"
    rounding: str = "stochastic or nearest"
    parameters: tuple[Parameter, ...] = (
        Parameter("nearest", "round to the nearest step", default=False),
    )

    def promises(self, choice: Choice) -> Promises:
        nearest = bool(choice.parameters["nearest"])
        return Promises(
            unbiased=not nearest,
            contraction=nearest,
            additive=True,
            deterministic=nearest,
            streaming=True,
        )

    def message_bits(self, choice: Choice, size: int) -> float:
        codes = packed_size(size, choice.bits, choice.block_size)
        return 8 * (codes + 8 * num_blocks(size, choice.block_size))

    def working_bytes(self, choice: Choice, size: int) -> int:
        return 200 * size + 32 * num_blocks(size, choice.block_size)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        values = x.astype(np.float64)
        scales = self.scales(values, choice)
        each = np.repeat(scales, block_of(choice.block_size, x.size))[: x.size]
        half = (choice.num_levels - 1) / 2
        # From 0 to twice the half, whatever the scale.
        place = half + half * np.divide(values, each, where=each > 0, out=np.zeros(x.size))
        codes = self.codes(place, bool(choice.parameters["nearest"]), seed)
        error = each * ((codes - place) / half)
        if not choice.parameters["nearest"]:
            low = np.floor(place)
            error = each / half * np.sqrt((place - low) * (low + 1 - place))
        unit = np.abs(values).max() or 1.0
        norm = float(np.sum((values / unit) ** 2))
        vnmse = float(np.sum((error / unit) ** 2)) / norm if norm else 0.0
        packed = pack_codes(codes.astype(np.uint8), choice.bits, choice.block_size)
        levels = NO_LEVELS["float64" if x.dtype == np.float64 else "float32"]
        return Encoded(levels, packed, {"scales": scales}, self.stated(vnmse))

    def scales(self, values: NDArray[np.float64], choice: Choice) -> NDArray[np.float64]:
        starts = np.arange(0, values.size, choice.block_size or values.size)
        return np.maximum.reduceat(np.abs(values), starts)

    def codes(self, place: NDArray[np.float64], nearest: bool, seed: int) -> NDArray[np.float64]:
        if nearest:
            return np.rint(place)
        words = random_words(seed, 0, place.size) / 2.0**32
        return np.floor(place) + (words < place - np.floor(place))

    def stated(self, vnmse: float) -> float:
        return vnmse

    def check(self, coded: Coded) -> None:
        require(coded.levels.size == 0, "levels", "none", coded.levels.size)
        scales = coded.side.get("scales")
        blocks = num_blocks(coded.size, coded.choice.block_size)
        if scales is None or len(coded.side) != 1 or scales.dtype != np.float64:
            raise InvalidInput("side must be float64 scales", code="missing_key", field="side")
        require(scales.size == blocks, "side.scales", f"{blocks} numbers", scales.size)
        top = TOPS[coded.dtype]
        fits = bool(((scales >= 0) & (scales <= top)).all())
        require(fits, "side.scales", f"numbers from 0 to {top:g}", "something else")
        wanted = packed_size(coded.size, coded.choice.bits, coded.choice.block_size)
        require(coded.codes.size == wanted, "codes", f"{wanted} bytes", coded.codes.size)

    def decode(self, coded: Coded) -> NDArray[Any]:
        choice = coded.choice
        codes = unpack_codes(coded.codes, coded.size, choice.bits, choice.block_size)
        if codes.max() >= choice.num_levels:
            raise InvalidInput("codes must be below num_levels", code="invalid_codes")
        block = block_of(choice.block_size, coded.size)
        each = np.repeat(coded.side["scales"], block)[: coded.size]
        half = (choice.num_levels - 1) / 2
        values = self.decoded(each * self.steps((codes - half) / half))
        return values.astype(WIRE_DTYPES[coded.dtype])

    def steps(self, place: NDArray[np.float64]) -> NDArray[np.float64]:
        return place

    def decoded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values

    def warm_up(self) -> None:
        """Nothing is compiled."""


def require(holds: bool, name: str, limit: str, got: object) -> None:
    if not holds:
        raise InvalidInput(f"{name} must be {limit}; got {got}", code="size_mismatch", field=name)


def block_of(block_size: int | None, size: int) -> int:
    return min(size, block_size or size)


class Shrunk(Steps):
    """Decodes to 1 % less than it should, and promises no bias."""

    def decoded(self, values):
        return 0.99 * values


class Shifted(Steps):
    """Rounds up a little too often."""

    def codes(self, place, nearest, seed):
        if nearest:
            return np.rint(place)
        words = random_words(seed, 0, place.size) / 2.0**32
        rest = place - np.floor(place)
        return np.floor(place) + (words < rest**0.9)


class Patterned(Steps):
    """Biased by a pattern that no simple direction sees."""

    def decoded(self, values):
        signs = np.random.default_rng(99).choice([-1.0, 1.0], values.size)
        return values + 0.03 * np.abs(values).max() * signs


class Rounded(Steps):
    """Rounds to nearest and promises no bias."""

    def codes(self, place, nearest, seed):
        return np.rint(place)


class FallsShort(Steps):
    """Promises a contraction of a rounding that is none."""

    def promises(self, choice):
        return dataclasses.replace(super().promises(choice), contraction=True)


class SeedMatters(Steps):
    """Promises to be deterministic."""

    def promises(self, choice):
        return dataclasses.replace(super().promises(choice), deterministic=True)


class Uneven(Steps):
    """Steps of no grid, promised to be additive; biased, and says so."""

    def steps(self, place):
        return np.sign(place) * np.abs(place) ** 1.3

    def promises(self, choice):
        return Promises(additive=True)


class ForgetsScales(Steps):
    """Declares the bits of its codes alone."""

    def message_bits(self, choice, size):
        return 8 * packed_size(size, choice.bits, choice.block_size)


class OverstatesBits(Steps):
    """Declares twice the bits."""

    def message_bits(self, choice, size):
        return 2 * super().message_bits(choice, size)


class OverstatesError(Steps):
    """States an error that is none."""

    def stated(self, vnmse):
        return 1.1 * vnmse


class NeedsMore(Steps):
    """Declares no memory."""

    def working_bytes(self, choice, size):
        return 0


class Trusting(Steps):
    """Reads whatever it is given."""

    def check(self, coded):
        """Nothing."""


class Lavish(Steps):
    """Allocates what a message asks for, then checks it."""

    def check(self, coded):
        if coded.size < 2**33:
            np.zeros(coded.size, np.uint8)
        super().check(coded)


class Lenient(Steps):
    """Takes missing codes for zeros: a few bytes make any number of values."""

    def check(self, coded):
        if coded.codes.size:
            super().check(coded)


class Overflows(Steps):
    """Takes scales that decode to infinity, with a warning."""

    def check(self, coded):
        if "scales" in coded.side and coded.side["scales"].dtype == np.float64:
            side = {"scales": np.zeros(coded.side["scales"].size)}
            super().check(dataclasses.replace(coded, side=side))
        else:
            super().check(coded)

    def decoded(self, values):
        return values * 2.0


class Remembers(Steps):
    """Another message every time: words are drawn from a generator of its own."""

    def codes(self, place, nearest, seed):
        return super().codes(place, nearest, seed + id(place) % 64)


class CountsThreads(Steps):
    """Computes something else where threads help."""

    def stated(self, vnmse):
        helped = sharing._helpers.get() is not None
        return vnmse * (1 + 1e-5 * helped)


class Leaks(Steps):
    """The scale of a block takes the number of blocks into account."""

    def scales(self, values, choice):
        found = super().scales(values, choice)
        return found * (1 + found.size / 64)


class ZeroesFail(Steps):
    """Divides by a scale of 0."""

    def decoded(self, values):
        return values + (0.25 if not values.any() else 0.0)


class WrongType(Steps):
    """Decodes to float64, whatever the vector was."""

    def decode(self, coded):
        return super().decode(coded).astype(np.float64)


class Refuses(Steps):
    """Cannot encode what it says that it can."""

    def encode(self, x, choice, seed):
        if x.size == 1:
            raise ValueError("too short")
        return super().encode(x, choice, seed)


@dataclass(frozen=True)
class Undeclared(Steps):
    """Its default is none of its choices, and it has no source."""

    source: str = ""
    level_counts: tuple[int, ...] = (15, 3)


FAULTS: dict[type[Steps], str] = {
    Shrunk: "unbiased",
    Shifted: "unbiased",
    Patterned: "unbiased",
    Rounded: "unbiased",
    FallsShort: "contraction",
    SeedMatters: "deterministic",
    Uneven: "additive",
    ForgetsScales: "sizes",
    OverstatesBits: "size bound",
    OverstatesError: "stated error",
    NeedsMore: "memory",
    Trusting: "hostile",
    Lavish: "hostile",
    Lenient: "hostile",
    Overflows: "hostile",
    Remembers: "repeats",
    CountsThreads: "threads",
    Leaks: "blocks",
    ZeroesFail: "round trip",
    WrongType: "round trip",
    Refuses: "round trip",
    Undeclared: "declared",
}
"""Each fault, and the check that must find it."""


def register(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], name: str) -> None:
    """Make the registry find what `make` makes as if a package had brought it."""

    class Brought(importlib.metadata.EntryPoint):
        def load(self) -> Callable[[], Any]:
            return make

    point = Brought(name=name, value="planted_schemes:make", group=registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: (point,))
    registry._brought.cache_clear()
