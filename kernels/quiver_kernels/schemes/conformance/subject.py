"""A scheme with one choice of levels, block size and parameters: what is checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api
from quiver_kernels.errors import InvalidInput
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.contract import Choice, Parameter, Promises, Scheme, Value

# Block sizes beside None: one that no byte or power of two divides, and the least.
_BLOCKS = (24, 1)
SEEDS = 160
"""That statistics of the default choice go over; those of others over a part of them."""
_OTHERS_PART = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """A scheme, and what is chosen of it; everything goes through the library's own functions."""

    scheme: Scheme
    choice: Choice
    seeds: int = SEEDS

    @property
    def label(self) -> str:
        """The choice, for people."""
        given = ", ".join(f"{name}={value}" for name, value in self.choice.parameters.items())
        words = f"{self.choice.num_levels} levels, block {self.choice.block_size}"
        return f"{words}, {given}" if given else words

    @property
    def promises(self) -> Promises:
        """What the scheme says that it holds."""
        return self.scheme.promises(self.choice)

    def quantize(
        self, x: NDArray[Any], seed: int = 1, *, threads: int | None = 1
    ) -> QuantizedVector:
        """The message of `x`, computed on the CPU."""
        return api.quantize(
            x,
            method=self.scheme.name,
            num_levels=self.choice.num_levels,
            block_size=self.choice.block_size,
            seed=seed,
            parameters=dict(self.choice.parameters),
            device="cpu",
            threads=threads,
        )

    def errors(self, x: NDArray[Any], seeds: int) -> NDArray[np.float64]:
        """Decoded less original, one row for each seed, float64, shape (seeds, d)."""
        exact = x.astype(np.float64)
        rows = [api.dequantize(self.quantize(x, seed)) for seed in range(seeds)]
        return np.stack([row.astype(np.float64) - exact for row in rows])

    def is_taken(self) -> bool:
        """Whether the scheme takes this choice at all."""
        try:
            self.quantize(np.linspace(-1, 1, 60, dtype=np.float32))
        except InvalidInput:
            return False
        return True


def subjects(scheme: Scheme, seeds: int = SEEDS) -> list[Subject]:
    """The default choice, then others, one thing changed in each: those that the scheme takes.

    The first is the default, taken or not.
    """
    plain = registry.choice_of(scheme, None, None, {})
    first = Subject(scheme, plain, seeds)
    others = (Subject(scheme, choice, seeds // _OTHERS_PART) for choice in _others(scheme, plain))
    return [first, *(subject for subject in others if subject.is_taken())]


def _others(scheme: Scheme, plain: Choice) -> Iterator[Choice]:
    for block in _BLOCKS:
        yield Choice(plain.num_levels, block, plain.parameters)
    ends = {scheme.level_counts[0], scheme.level_counts[-1]} - {plain.num_levels}
    for levels in sorted(ends):
        yield Choice(levels, None, plain.parameters)
    for parameter in scheme.parameters:
        for value in _values(parameter):
            chosen = {**plain.parameters, parameter.name: value}
            yield Choice(plain.num_levels, None, chosen)
            yield Choice(plain.num_levels, _BLOCKS[0], chosen)


def _values(parameter: Parameter) -> list[Value]:
    """Other values than the default: all texts, both truths, the ends of a range."""
    found: list[Value]
    if isinstance(parameter.default, bool):
        found = [True, False]
    elif isinstance(parameter.default, str):
        found = list(parameter.choices)
    else:
        kind = type(parameter.default)
        found = [kind(end) for end in (parameter.low, parameter.high) if math.isfinite(end)]
    return [value for value in found if value != parameter.default]
