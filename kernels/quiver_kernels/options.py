"""What a caller may choose about one quantization, checked once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.contract import Choice, Value
from quiver_kernels.wrapping import feedback

# Methods of the backends themselves; others are schemes (`quiver_kernels.schemes`).
METHODS = ("exact", "approx", "accelerated", "uniform", "simba")
GRIDS = ("robust", "uniform")
SIMBA = "simba"
DEVICES = ("auto", "cpu", "gpu")
MIN_LEVELS, MAX_LEVELS = 2, 256
MIN_BITS, MAX_BITS = 1, 8
DEFAULT_BITS = 4
MIN_BINS, MAX_BINS, DEFAULT_BINS = 2, 65_536, 1024
DEFAULT_GRID = GRIDS[0]
MAX_SEED = 2**64 - 1
MAX_WORLD_SIZE = 1 << 16
MIN_LEVEL_SETS, MAX_LEVEL_SETS, DEFAULT_LEVEL_SETS = 2, 8, 4
# Steps over the range of a grid that levels are chosen from (`gridlevels`); values of both signs
# take two at least.
MIN_GRANULARITY, MAX_GRANULARITY = 2, 1 << 16
# The method of a vector whose levels were given.
GIVEN = "given"
# Longer vectors are not sorted as a whole: their exact levels come from passes over chunks.
STREAM_FROM = 1 << 21
# `approx` takes all values of shorter vectors for candidates.
APPROX_FROM = 1 << 12
# Least share of values that are not kept exactly; all is the most, and says nothing.
MIN_OUTLIERS = 0.5
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
        ``uniform`` (equal steps) or ``simba`` (several sets of levels that both ends choose from
        with shared random numbers: `quiver_kernels.simba`), or the name of another scheme
        (`quiver_kernels.schemes`).
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
    world_size, rank, shared_seed
        Workers that round together (1..65536), which of them this is (0..world_size - 1), and
        the unsigned 64-bit seed that all of them have: `quiver_kernels.strata`. All or None.
    levels
        The table to encode with, ascending, in place of one that is chosen; the method is
        ``given`` then, or a scheme that takes a table (of levels from -1 to 1).
    level_sets
        Sets of levels of ``simba``, 2..8.
    parameters
        Of another scheme: each of its parameters with its value; empty for these methods.
    outliers
        Values beyond the quantiles 1 - a and a of the vector are kept exactly, and are clamped to
        these before the others are quantized; a share from 0.5 to below 1; None: no value is.
    entropy
        Whether codes are entropy coded where that makes the message shorter.
    feedback_scale
        Whether decoded values of methods without bias are divided by 1 + omega, omega the expected
        error over the squared norm: a contraction, as error feedback needs it.
    """

    num_levels: int
    bits: int
    method: str
    bins: int
    grid: str
    block_size: int | None
    seed: int | None
    device: str
    world_size: int | None = None
    rank: int | None = None
    shared_seed: int | None = None
    levels: tuple[float, ...] | None = None
    level_sets: int = DEFAULT_LEVEL_SETS
    parameters: tuple[tuple[str, Value], ...] = ()
    outliers: float | None = None
    entropy: bool = False
    feedback_scale: bool = False

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
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        level_sets: int = DEFAULT_LEVEL_SETS,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
    ) -> QuantizeOptions:
        """Check every option; `InvalidInput` names the field, the limit and what was got."""
        table = None
        if levels is not None:
            _exclude_choice(bits, num_levels, method, block_size)
            table = level_table(levels)
            num_levels = len(table)
        given = table is not None and method in (METHODS[0], GIVEN)
        if bits is not None and num_levels is not None:
            raise InvalidInput(
                f"bits and num_levels exclude each other; got bits={bits}, num_levels={num_levels}",
                code="invalid_option",
                field="bits",
            )
        if bits is not None:
            num_levels = 1 << _integer("bits", bits, MIN_BITS, MAX_BITS)
        if num_levels is not None:
            num_levels = _integer("num_levels", num_levels, MIN_LEVELS, MAX_LEVELS)
        if block_size is not None:
            block_size = _integer("block_size", block_size, 1, 2**63 - 1)
        method = GIVEN if given else method
        chosen = _chosen(method, table, num_levels, block_size, parameters)
        num_levels = chosen.num_levels
        if seed is not None:
            seed = _integer("seed", seed, 0, MAX_SEED)
        world_size, rank, shared_seed = _together(world_size, rank, shared_seed)
        if _truth("feedback_scale", feedback_scale):
            feedback.require_possible(method, feedback.promises_of(method, chosen))
        return cls(
            num_levels=num_levels,
            bits=(num_levels - 1).bit_length(),
            method=method,
            bins=_integer("bins", bins, MIN_BINS, MAX_BINS),
            grid=_name("grid", grid, GRIDS),
            block_size=block_size,
            seed=seed,
            device=_name("device", device, DEVICES),
            world_size=world_size,
            rank=rank,
            shared_seed=shared_seed,
            levels=table,
            level_sets=_integer("level_sets", level_sets, MIN_LEVEL_SETS, MAX_LEVEL_SETS),
            parameters=tuple(chosen.parameters.items()),
            outliers=None if outliers is None else _share("outliers", outliers),
            entropy=_truth("entropy", entropy),
            feedback_scale=feedback_scale,
        )

    @property
    def is_scheme(self) -> bool:
        """Whether the method is a scheme of `quiver_kernels.schemes`, not one of the backends'."""
        return self.method not in METHODS and self.method != GIVEN

    @property
    def is_plain(self) -> bool:
        """Whether codes point straight into one table for each block."""
        return self.method != SIMBA and not self.is_scheme and not self.is_wrapped

    @property
    def is_wrapped(self) -> bool:
        """Whether anything goes around the method (`quiver_kernels.wrapping`)."""
        return self.outliers is not None or self.entropy or self.feedback_scale

    def without_wrappers(self) -> QuantizeOptions:
        """The same for the method alone."""
        return replace(self, outliers=None, entropy=False, feedback_scale=False)

    @property
    def choice(self) -> Choice:
        """What a scheme is told."""
        return Choice(self.num_levels, self.block_size, dict(self.parameters), self.levels)

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


def _chosen(
    method: object,
    table: tuple[float, ...] | None,
    num_levels: int | None,
    block_size: int | None,
    parameters: Mapping[str, object] | None,
) -> Choice:
    """Number of levels, block size and parameters, checked against what the method takes."""
    if method in METHODS or (method == GIVEN and table is not None):
        for parameter in parameters or {}:
            raise InvalidInput(
                f"method {method} has no parameters; got {parameter[:40]!r}",
                code="invalid_option",
                field="parameters",
            )
        return Choice(1 << DEFAULT_BITS if num_levels is None else num_levels, block_size)
    scheme = registry.find(method) if isinstance(method, str) else None
    if scheme is None:
        # Refused, with all names.
        _name("method", method, registry.names())
        raise AssertionError(method)
    return registry.choice_of(scheme, num_levels, block_size, parameters or {}, table)


def draw_seed() -> int:
    """A fresh seed from the operating system's random numbers."""
    return secrets.randbits(DRAWN_SEED_BITS)


def _together(
    world_size: int | None, rank: int | None, shared_seed: int | None
) -> tuple[int | None, int | None, int | None]:
    """Check what workers that round together must say: all three, or nothing."""
    if world_size is None and rank is None and shared_seed is None:
        return None, None, None
    if world_size is None or rank is None or shared_seed is None:
        chosen = {"world_size": world_size, "rank": rank, "shared_seed": shared_seed}
        missing = [name for name, value in chosen.items() if value is None]
        given = ", ".join(name for name in chosen if name not in missing)
        raise InvalidInput(
            f"world_size, rank and shared_seed belong together; got {given} "
            f"without {' and '.join(missing)}",
            code="invalid_option",
            field=missing[0],
        )
    world_size = _integer("world_size", world_size, 1, MAX_WORLD_SIZE)
    rank = _integer("rank", rank, 0, world_size - 1)
    return world_size, rank, _integer("shared_seed", shared_seed, 0, MAX_SEED)


def level_table(levels: ArrayLike) -> tuple[float, ...]:
    """The numbers of a table that was given: 2..256, finite and ascending, as float64.

    Raises
    ------
    InvalidInput
        ``invalid_levels``, or ``unsupported_dtype`` for what is no array of numbers.
    """
    try:
        table = np.asarray(levels)
        known = table.dtype.kind in "iu" or table.dtype.name in ("float32", "float64")
        values = table.astype(np.float64) if known else None
    except (ValueError, TypeError, OverflowError):
        values = None
    if values is None:
        raise InvalidInput(
            "levels must be an array of float32 or float64 numbers; got something else",
            code="unsupported_dtype",
            field="levels",
        )
    if values.ndim != 1 or not MIN_LEVELS <= values.size <= MAX_LEVELS:
        raise InvalidInput(
            f"levels must have shape [s] with s = {MIN_LEVELS}..{MAX_LEVELS}; "
            f"got {list(values.shape)}",
            code="invalid_levels",
            field="levels",
        )
    if not (np.isfinite(values).all() and (values[1:] >= values[:-1]).all()):
        raise InvalidInput(
            "levels must be finite and ascend; got NaN, infinity or a descending pair",
            code="invalid_levels",
            field="levels",
        )
    return tuple(values.tolist())


def _exclude_choice(
    bits: int | None, num_levels: int | None, method: str, block_size: int | None
) -> None:
    """Refuse options that say how levels are chosen beside levels; a default says nothing.

    A scheme may take levels as a table that many share (`registry.choice_of` asks it).
    """
    if method not in (*METHODS, GIVEN):
        block_size = None
    chosen = {
        "bits": bits,
        "num_levels": num_levels,
        "method": method if method in METHODS[1:] else None,
        "block_size": block_size,
    }
    for name, value in chosen.items():
        if value is not None:
            raise InvalidInput(
                f"levels and {name} exclude each other; got levels and {name}={value!r:.40}",
                code="invalid_option",
                field=name,
            )


def _integer(field: str, value: int, low: int, high: int) -> int:
    # operator.index semantics without bool: NumPy integers are welcome, True is not.
    if type(value) is not int and (isinstance(value, bool) or not hasattr(value, "__index__")):
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


def _truth(field: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidInput(
        f"{field} must be true or false; got {type(value).__name__}",
        code="invalid_type",
        field=field,
    )


def _share(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidInput(
            f"{field} must be a number from {MIN_OUTLIERS} to below 1; got {type(value).__name__}",
            code="invalid_type",
            field=field,
        )
    if not MIN_OUTLIERS <= value < 1:
        got = _shown(int(value)) if isinstance(value, int) else f"{float(value)!r}"
        raise InvalidInput(
            f"{field} must be a number from {MIN_OUTLIERS} to below 1; got {got}",
            code="invalid_option",
            field=field,
        )
    return float(value)


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
