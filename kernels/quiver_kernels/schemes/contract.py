"""What a scheme is: its parameters, its promises, what travels, encoding and decoding.

A scheme turns a vector into the parts of a message and back. What all share (the message, its
checks, devices, the service) is elsewhere and reads what is declared here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

Value = int | float | str | bool
"""Of a parameter."""

MAX_PARAMETERS = 16
MAX_SIDE_PARTS = 8
MAX_TEXT = 32


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that a caller may choose about a scheme, beside the number of levels.

    Attributes
    ----------
    name, meaning
        For callers and pages.
    default
        Its type is the parameter's: bool, int, float (takes integers too) or str.
    choices
        Of a text: what it may be.
    low, high
        Of a number: least and greatest value.
    """

    name: str
    meaning: str
    default: Value
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def checked(self, value: object) -> Value:
        """`value`, of the parameter's type and within its limits.

        Raises
        ------
        InvalidInput
            ``field`` is ``parameters.<name>``.
        """
        limit, fits = self._limit(value)
        if not fits:
            got = (
                f"{value!r:.40}" if isinstance(value, (bool, float, str)) else type(value).__name__
            )
            if isinstance(value, int) and not isinstance(value, bool):
                # An integer may have too many digits to be shown.
                got = str(value) if value.bit_length() <= 64 else f"{value.bit_length()} bits"
            raise InvalidInput(
                f"parameters.{self.name} must be {limit}; got {got}",
                code="invalid_option",
                field=f"parameters.{self.name}",
            )
        assert isinstance(value, (bool, int, float, str))  # else it does not fit
        return float(value) if isinstance(self.default, float) else value

    def _limit(self, value: object) -> tuple[str, bool]:
        if isinstance(self.default, bool):
            return "true or false", isinstance(value, bool)
        if isinstance(self.default, str):
            return f"one of {', '.join(self.choices)}", value in self.choices
        whole = isinstance(self.default, int)
        kind = "an integer" if whole else "a number"
        number = not isinstance(value, bool) and isinstance(value, int if whole else (int, float))
        inside = number and self.low <= value <= self.high  # type: ignore[operator]
        return f"{kind} from {self.low:g} to {self.high:g}", inside


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        # It may have too many digits to be shown.
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.40}" if isinstance(value, (int, float, str)) else type(value).__name__


@dataclass(frozen=True, slots=True)
class Promises:
    """What a scheme, with some parameters, holds; the conformance kit tests each.

    Attributes
    ----------
    unbiased
        The mean of the decoded vectors over all seeds is the vector.
    contraction
        The squared error is below the squared norm, for every vector but zero: raw error feedback
        converges.
    additive
        Codes of workers with equal side information may be added before they are decoded.
    deterministic
        The seed does not matter.
    streaming
        Each block is encoded by itself, or in passes; memory beside input and output is bounded.
    """

    unbiased: bool = False
    contraction: bool = False
    additive: bool = False
    deterministic: bool = False
    streaming: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What a caller chose, checked: levels, block size, and every parameter.

    Attributes
    ----------
    table
        Levels that the caller brings, where the scheme takes them (`takes_table`): a table that
        many share.
    """

    num_levels: int
    block_size: int | None = None
    parameters: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    table: tuple[float, ...] | None = None

    @property
    def bits(self) -> int:
        """The fewest that hold a code."""
        return (self.num_levels - 1).bit_length()


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """The parts of a message that a scheme makes.

    Attributes
    ----------
    levels
        The table that codes point into, ascending, shape (s,), float32 or float64 as the vector's
        levels are (`dtypes.levels_dtype`); shape (0,) for none.
    codes
        The payload, uint8.
    side
        Side information by name: scales, norms, exponents; float16, float32, float64, uint8,
        int8, uint16, uint32 or uint64 arrays.
    vnmse
        Expected (of deterministic schemes: actual) squared error over the squared norm.
    """

    levels: NDArray[Any]
    codes: NDArray[np.uint8]
    side: Mapping[str, NDArray[Any]]
    vnmse: float


@dataclass(frozen=True, eq=False, slots=True)
class Coded:
    """What a scheme decodes: the parts of a message, and what they are the parts of.

    Attributes
    ----------
    size, dtype
        Number of values, at least one, and wire name of their type.
    choice, seed
        As they were encoded with; parameters and the number of levels have been checked.
    levels, codes, side
        As in `Encoded`, but of any length and, in `side`, by any names and of any types: see
        `Scheme.check`. They may be unaligned and read-only.
    """

    size: int
    dtype: str
    choice: Choice
    seed: int
    levels: NDArray[Any]
    codes: NDArray[np.uint8]
    side: Mapping[str, NDArray[Any]]

    @property
    def num_levels(self) -> int:
        """Of the choice."""
        return self.choice.num_levels

    @property
    def block_size(self) -> int | None:
        """Of the choice."""
        return self.choice.block_size

    @property
    def bits(self) -> int:
        """The fewest that hold a code."""
        return self.choice.bits


class Scheme(Protocol):
    """One way to quantize. Instances hold no state; all methods may run side by side."""

    @property
    def name(self) -> str:
        """The ``method`` of requests and messages: lower case, digits, underscores; up to 32."""
        ...

    @property
    def summary(self) -> str:
        """One line for lists."""
        ...

    @property
    def source(self) -> str:
        """Where it is from: paper, section, or our derivation."""
        ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What may be chosen; values travel in the message."""
        ...

    @property
    def level_counts(self) -> tuple[int, ...]:
        """Numbers of levels that it takes, ascending, and so the widths of codes."""
        ...

    @property
    def default_levels(self) -> int:
        """One of them."""
        ...

    @property
    def side_information(self) -> str:
        """What travels beside the codes, in words."""
        ...

    @property
    def rounding(self) -> str:
        """``stochastic``, ``nearest``, ``sign``, ``Viterbi``..."""
        ...

    def promises(self, choice: Choice) -> Promises:
        """What holds with these choices."""
        ...

    def message_bits(self, choice: Choice, size: int) -> float:
        """Bits of levels, codes and side information of `size` values.

        An upper bound; exact for schemes whose messages have one size.
        """
        ...

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Bytes that encoding or decoding takes beside input and output; an upper bound."""
        ...

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:
        """Encode flat, finite `x` of float16, bfloat16, float32 or float64, at least one value.

        Long work calls `stopping.checkpoint` now and then. The result depends on the values, the
        choice and the seed alone.
        """
        ...

    def check(self, coded: Coded) -> None:
        """Refuse parts that `decode` cannot read, before anything is allocated by their sizes.

        Raises
        ------
        InvalidInput
            It names the part, the limit and what was got.
        """
        ...

    def decode(self, coded: Coded) -> NDArray[Any]:
        """The decoded vector, flat, of ``coded.dtype``; needs NumPy alone. `check` has passed.

        Raises
        ------
        InvalidInput
            Only the payload itself tells that it cannot be read.
        """
        ...

    def warm_up(self) -> None:
        """Compile every kernel that `encode` and `decode` use."""
        ...
