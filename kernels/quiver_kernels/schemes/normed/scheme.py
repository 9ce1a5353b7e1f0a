"""The schemes whose table on [-1, 1] is multiplied by the norm of each block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype, wire_name
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.normed import fitting, norms, tables
from quiver_kernels.schemes.normed.statistics import MODELS, Mixture
from quiver_kernels.stopping import STEP

Floats = NDArray[np.float64]
TableOf = Callable[[Mixture | None, Choice], Floats]

_WIDTHS = tuple(1 << bits for bits in range(2, 9))
_ODD = tuple(sorted({*_WIDTHS, *range(3, 257, 2)}))
_AMQ_PAPER = "Adaptive Gradient Quantization for Data-Parallel SGD, NeurIPS 2020"


@dataclass(frozen=True, slots=True)
class Normed:
    """Unbiased rounding between the entries of a table on [-1, 1] times the norm of a block.

    Attributes
    ----------
    table_of
        The table for what was chosen and, where it is fitted, for a model of the values.
    fitted
        Whether it is fitted: then it travels, and may be brought by the caller.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    level_counts: tuple[int, ...]
    default_levels: int
    table_of: TableOf
    fitted: bool = False
    rounding: str = "stochastic"

    @property
    def side_information(self) -> str:
        """A norm for each block."""
        table = "the table of num_levels float32 levels, and " if self.fitted else ""
        return f"{table}a float32 norm for each block (float64 for float64 vectors)"

    @property
    def takes_table(self) -> bool:
        """Whether `Choice.table` may hold the table to use."""
        return self.fitted

    def promises(self, choice: Choice) -> Promises:  # noqa: ARG002
        """Unbiased; where norms are equal, codes may be added."""
        return Promises(unbiased=True, streaming=True)

    def message_bits(self, choice: Choice, size: int) -> float:
        """Codes, and a norm for each block; the table, if it is fitted."""
        packing = scaled.Bits(choice.bits)
        table = 64 * choice.num_levels if self.fitted else 0
        return table + scaled.table_bits(packing, size, choice.block_size)

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Parts of the vector, and some numbers for each block."""
        blocks = num_blocks(size, choice.block_size)
        own = scaled.working_bytes(choice.num_levels, size, choice.block_size)
        return own + 80 * blocks + 32 * min(size, STEP)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """See `Scheme`; O(d)."""
        block = scaled.block_of(x.size, choice.block_size)
        kind = str(choice.parameters["norm"])
        scales = norms.norms_of(x, block, kind)
        dtype = levels_dtype(wire_name(x.dtype))
        if choice.table is None:
            mixture = self._mixture(x, block, scales, choice)
            table = self.table_of(mixture, choice).astype(dtype)
        else:
            table = np.array(choice.table).astype(dtype)
        found = scaled.encode(
            x, table.astype(np.float64), scales, choice.block_size, seed, nearest=False
        )
        travels = table if self.fitted else np.empty(0, dtype)
        return Encoded(travels, found.codes, {scaled.SCALES: scales}, found.vnmse)

    def check(self, coded: Coded) -> None:
        """See `Scheme`."""
        scaled.check_scales(coded)
        scaled.require_codes(coded, scaled.Bits(coded.bits).size(coded.size, coded.block_size))
        size = coded.num_levels if self.fitted else 0
        scaled.require(
            coded.levels.size == size,
            "levels",
            f"must have {size} numbers for method {self.name}",
            coded.levels.size,
            "size_mismatch",
        )
        if self.fitted:
            scaled.require(
                float(coded.levels[0]) == -1.0 and float(coded.levels[-1]) == 1.0,
                "levels",
                "must go from -1 to 1",
                f"{coded.levels[0]} to {coded.levels[-1]}",
                "invalid_levels",
            )

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `Scheme`; O(d)."""
        if self.fitted:
            return scaled.decode(coded, coded.levels.astype(np.float64))
        # As it was rounded when it was encoded with.
        table = self.table_of(None, coded.choice).astype(levels_dtype(coded.dtype))
        return scaled.decode(coded, table.astype(np.float64))

    def warm_up(self) -> None:
        """See `Scheme`."""
        for dtype in (np.float32, np.float64):
            x = np.linspace(-1.0, 1.0, 40).astype(dtype)
            parameters = {one.name: one.default for one in self.parameters}
            choice = Choice(self.default_levels, 20, parameters)
            self.encode(x, choice, 1)

    def _mixture(
        self, x: NDArray[Any], block: int, scales: NDArray[Any], choice: Choice
    ) -> Mixture | None:
        if not self.fitted:
            return None
        statistics = norms.statistics_of(x, block, scales)
        return Mixture.of(statistics, str(choice.parameters["model"]))


def _norm(default: str) -> Parameter:
    return Parameter(
        "norm", "of a block: Euclidean, or its greatest magnitude", default, norms.NORMS
    )


_MODEL = Parameter(
    "model",
    "of the values over their norm: cut-off normal distributions, one for each of the 20 blocks of "
    "largest norm, or one for all",
    MODELS[0],
    MODELS,
)


def _even_steps(_: Mixture | None, choice: Choice) -> Floats:
    return tables.even_steps(choice.num_levels)


def _powers_of_two(_: Mixture | None, choice: Choice) -> Floats:
    return tables.powers_of_two(choice.num_levels)


def _fitted_powers(mixture: Mixture | None, choice: Choice) -> Floats:
    given = float(choice.parameters["multiplier"])
    assert mixture is not None
    multiplier = given if given > 0 else fitting.amq_multiplier(mixture, choice.num_levels)
    return tables.powers(multiplier, choice.num_levels)


def _fitted_levels(mixture: Mixture | None, choice: Choice) -> Floats:
    assert mixture is not None
    return fitting.alq_table(mixture, choice.num_levels)


def qsgd() -> Normed:
    """Equal steps on the norm of a block."""
    return Normed(
        "qsgd",
        "equal steps between minus and plus the norm of a block, zero among them",
        "QSGD, NeurIPS 2017",
        (_norm("l2"),),
        _ODD,
        16,
        _even_steps,
    )


def terngrad() -> Normed:
    """Three levels on the greatest magnitude of a block."""
    return Normed(
        "terngrad",
        "minus, zero or plus the greatest magnitude of a block",
        "TernGrad, NeurIPS 2017",
        (_norm("linf"),),
        (3, 4),
        3,
        _even_steps,
    )


def nuqsgd() -> Normed:
    """Powers of two of the norm of a block."""
    return Normed(
        "nuqsgd",
        "zero, and plus and minus the norm of a block times powers of two",
        "NUQSGD, JMLR 2021",
        (_norm("l2"),),
        _WIDTHS,
        16,
        _powers_of_two,
    )


def amq() -> Normed:
    """Powers of a multiplier that is fitted to the values' statistics."""
    multiplier = Parameter(
        "multiplier",
        "ratio of neighbouring levels; 0: the best for the values",
        0.0,
        (),
        0.0,
        0.999,
    )
    return Normed(
        "amq",
        "plus and minus the norm of a block times powers of a fitted multiplier",
        f"{_AMQ_PAPER} (AMQ)",
        (_norm("l2"), _MODEL, multiplier),
        _WIDTHS,
        16,
        _fitted_powers,
        fitted=True,
    )


def alq() -> Normed:
    """Levels fitted to the values' statistics by coordinate descent."""
    return Normed(
        "alq",
        "the norm of a block times levels fitted to means, variances and norms",
        f"{_AMQ_PAPER} (ALQ)",
        (_norm("l2"), _MODEL),
        tuple(range(3, 257)),
        16,
        _fitted_levels,
        fitted=True,
    )
