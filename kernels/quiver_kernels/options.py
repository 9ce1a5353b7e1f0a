"""What a caller may choose about one quantization, checked once."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from quiver_kernels.errors import InvalidInput

METHODS = ("exact", "approx", "accelerated", "uniform")
GRIDS = ("robust", "uniform")
DEVICES = ("auto", "cpu", "gpu")
MIN_LEVELS, MAX_LEVELS = 2, 256
MIN_BITS, MAX_BITS = 1, 8
DEFAULT_BITS = 4
MIN_BINS, MAX_BINS, DEFAULT_BINS = 2, 65_536, 1024
DEFAULT_GRID = GRIDS[0]
MAX_SEED = 2**64 - 1
# Longer vectors are not sorted as a whole: their exact levels come from passes over chunks.
STREAM_FROM = 1 << 21
# `approx` takes all values of shorter vectors for candidates.
APPROX_FROM = 1 << 12
# Drawn seeds stay exact in JSON and in JavaScript numbers.
DRAWN_SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Checked options of one quantization; build it with `create`.

    Attributes
    ----------
    num_levels
        Levels per table, 2..256.
    bits
        Bits per code, the fewest that hold `num_levels`: 1..8.
    method
        ``exact`` (optimal levels), ``approx`` (optimal among the candidates of a grid),
        ``accelerated`` (the same optimum as ``exact``, Accelerated QUIVER) or
        ``uniform`` (equal steps).
    bins
        Cells of the grid of ``approx``, 2..65536.
    grid
        ``robust``: candidates are the outermost values of uniform cells, cut finer near 0 as
        floating-point numbers are; ``uniform``: the points of a uniform grid, Apx. QUIVER.
    block_size
        Values that share one level table; None: all of them.
    seed
        Key of the random numbers, an unsigned 64-bit integer; None: draw one.
    device
        ``auto``, ``cpu`` or ``gpu``.
    """

    num_levels: int
    bits: int
    method: str
    bins: int
    grid: str
    block_size: int | None
    seed: int | None
    device: str

    @classmethod
    def create(
        cls,
        *,
        bits: int | None = None,
        num_levels: int | None = None,
        method: str = "exact",
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        block_size: int | None = None,
        seed: int | None = None,
        device: str = "auto",
    ) -> QuantizeOptions:
        """Check every option; `InvalidInput` names the field, the limit and what was got."""
        if bits is not None and num_levels is not None:
            raise InvalidInput(
                f"bits and num_levels exclude each other; got bits={bits}, num_levels={num_levels}",
                code="invalid_option",
                field="bits",
            )
        if num_levels is None:
            chosen = DEFAULT_BITS if bits is None else bits
            num_levels = 1 << _integer("bits", chosen, MIN_BITS, MAX_BITS)
        num_levels = _integer("num_levels", num_levels, MIN_LEVELS, MAX_LEVELS)
        if block_size is not None:
            block_size = _integer("block_size", block_size, 1, 2**63 - 1)
        if seed is not None:
            seed = _integer("seed", seed, 0, MAX_SEED)
        return cls(
            num_levels=num_levels,
            bits=(num_levels - 1).bit_length(),
            method=_name("method", method, METHODS),
            bins=_integer("bins", bins, MIN_BINS, MAX_BINS),
            grid=_name("grid", grid, GRIDS),
            block_size=block_size,
            seed=seed,
            device=_name("device", device, DEVICES),
        )

    @property
    def spaces_evenly(self) -> bool:
        """Whether levels are points of a uniform grid, or equal steps themselves."""
        return self.method == "uniform" or (self.method == "approx" and self.grid == "uniform")

    def sorts(self, size: int) -> bool:
        """Whether the levels of one table over `size` values are found by sorting them."""
        if self.method == "approx":
            return self.grid == "robust" and size <= APPROX_FROM
        return self.method == "accelerated" or (self.method == "exact" and size <= STREAM_FROM)

    def with_seed(self) -> QuantizeOptions:
        """The same options with a seed: the given one, or one drawn from the system."""
        if self.seed is not None:
            return self
        return replace(self, seed=draw_seed())


def draw_seed() -> int:
    """A fresh seed from the operating system's random numbers."""
    return secrets.randbits(DRAWN_SEED_BITS)


def _integer(field: str, value: int, low: int, high: int) -> int:
    # operator.index semantics without bool: NumPy integers are welcome, True is not.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidInput(
            f"{field} must be an integer from {low} to {high}; got {type(value).__name__}",
            code="invalid_type",
            field=field,
        )
    number = value.__index__()
    if not low <= number <= high:
        raise InvalidInput(
            f"{field} must be an integer from {low} to {high}; got {_shown(number)}",
            code="invalid_option",
            field=field,
        )
    return number


def _shown(number: int) -> str:
    # A caller may pass an integer of any length; str() of a huge one raises.
    return str(number) if number.bit_length() <= 128 else f"{number.bit_length()} bits"


def _name(field: str, value: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        # Of any type, so not shown: an integer may have too many digits for that.
        got = "None" if value is None else type(value).__name__
        raise InvalidInput(
            f"{field} must be one of {', '.join(allowed)}; got {got}",
            code="invalid_option",
            field=field,
        )
    if value not in allowed:
        raise InvalidInput(
            f"{field} must be one of {', '.join(allowed)}; got {value[:40]!r}",
            code="invalid_option",
            field=field,
        )
    return value
