"""The backends' own methods under the contract: adaptive tables, solved for each vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import MAX_LEVEL_SETS, SIMBA
from quiver_kernels.packing import num_blocks, packed_size
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises

_TABLES = "num_levels float32 levels (float64 for float64 vectors) for each block"
_SETS = "level_sets times num_levels levels"
# The most that a search for the levels of one table takes.
_SEARCH_BYTES = 96 << 20
_PAPER = "Optimal and Approximate Adaptive Stochastic Quantization, NeurIPS 2024"


@dataclass(frozen=True, slots=True)
class Native:
    """A method whose levels and codes the backends compute; its options are theirs."""

    name: str
    summary: str
    source: str
    side_information: str = _TABLES
    rounding: str = "stochastic"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """None: options of requests of their own."""
        return ()

    @property
    def level_counts(self) -> tuple[int, ...]:
        """All."""
        return tuple(range(2, 257))

    @property
    def default_levels(self) -> int:
        """4 bits."""
        return 16

    def promises(self, choice: Choice) -> Promises:  # noqa: ARG002
        """Unbiased; no contraction where levels are few."""
        return Promises(unbiased=True, streaming=True)

    def message_bits(self, choice: Choice, size: int) -> float:
        """Codes, and tables of float64."""
        tables = MAX_LEVEL_SETS if self.name == SIMBA else num_blocks(size, choice.block_size)
        codes = packed_size(size, choice.bits, choice.block_size)
        return 8 * (codes + 8 * tables * choice.num_levels)

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Values, tables and a search; the service reckons these methods' memory more closely."""
        tables = num_blocks(size, choice.block_size) * choice.num_levels
        return 64 * size + 16 * tables + _SEARCH_BYTES

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """As the backend of the CPU does it."""
        from quiver_kernels import dispatch
        from quiver_kernels.options import QuantizeOptions

        options = QuantizeOptions.create(
            num_levels=choice.num_levels,
            method=self.name,
            block_size=choice.block_size,
            seed=seed,
        )
        q = dispatch.load("cpu").quantize(x, options, None)
        return Encoded(q.levels, q.codes, {}, q.vnmse)

    def check(self, coded: Coded) -> None:  # noqa: ARG002
        """Messages of these methods have no parameters; readers check them as such."""
        raise InvalidInput(
            f"method {self.name} has no parameters", code="invalid_option", field="parameters"
        )

    def decode(self, coded: Coded) -> NDArray[Any]:
        """See `check`."""
        self.check(coded)
        raise AssertionError(self.name)

    def warm_up(self) -> None:
        """The backends warm up by themselves."""


def exact() -> Native:
    """The optimal table."""
    return Native("exact", "optimal levels for this very vector, with a proof", _PAPER)


def accelerated() -> Native:
    """The same, two levels a step."""
    return Native("accelerated", "the same optimum by two levels a step", f"{_PAPER}, section 4")


def approx() -> Native:
    """The best table among the candidates of a grid."""
    return Native(
        "approx", "the best levels among the candidates of a grid", f"{_PAPER}, section 5"
    )


def uniform() -> Native:
    """Equal steps."""
    return Native("uniform", "equal steps from the least value to the greatest", "min-max scaling")


def simba() -> Native:
    """Level sets with shared randomness."""
    return Native(
        "simba",
        "level sets that both ends choose from with shared random numbers",
        "Simba, SIGMETRICS 2026",
        _SETS,
    )
