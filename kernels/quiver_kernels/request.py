"""What a request asks for one vector: its values, its weights and its options."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import (
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    GIVEN,
    METHODS,
    QuantizeOptions,
)
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array, vector_from_bin

MAX_LIST_NUMBERS = 10_000

ArrayMessage = TensorMessage | memoryview | list[float]


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """A checked request for one vector: vector and weights of one shape, and options."""

    vector: NDArray[Any]
    weights: NDArray[Any] | None
    options: QuantizeOptions


class OptionsMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The options as they stand on the wire; what is absent is known to be."""

    bits: int | UnsetType | None = UNSET
    num_levels: int | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    bins: int | UnsetType = UNSET
    grid: str | UnsetType = UNSET
    block_size: int | UnsetType | None = UNSET
    seed: int | UnsetType | None = UNSET
    device: str | UnsetType = UNSET
    world_size: int | UnsetType | None = UNSET
    rank: int | UnsetType | None = UNSET
    shared_seed: int | UnsetType | None = UNSET
    levels: TensorMessage | UnsetType | None = UNSET
    level_sets: int | UnsetType = UNSET
    parameters: dict[str, bool | int | float | str] | UnsetType = UNSET
    outliers: float | UnsetType | None = UNSET
    entropy: bool | UnsetType = UNSET
    feedback_scale: bool | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """The options that are there, null among them."""
        values = _values_of(self)
        found = zip(OptionsMessage.__struct_fields__, values, strict=True)
        options = {name: value for name, value in found if value is not UNSET}
        if isinstance(self.levels, TensorMessage):
            options["levels"] = to_array(self.levels, "levels")
            if options.get("method", GIVEN) in METHODS:
                raise InvalidInput(
                    f"levels and method exclude each other; got levels and method={self.method!r}",
                    code="invalid_option",
                    field="method",
                )
        return options

    def checked(self) -> QuantizeOptions:
        """The options, checked, with defaults for what is absent."""
        return QuantizeOptions.create(**self.given())


_values_of = operator.attrgetter(*OptionsMessage.__struct_fields__)


class VectorMessage(OptionsMessage, forbid_unknown_fields=True, kw_only=True):
    """The request for one vector as it stands on the wire."""

    vector: ArrayMessage
    weights: ArrayMessage | None = None


def read_request(
    vector: ArrayMessage, weights: ArrayMessage | None, options: QuantizeOptions
) -> QuantizeRequest:
    """Make arrays of `vector` and `weights`, and check them; nothing is copied but lists.

    Raises
    ------
    InvalidInput
        ``field`` is in ``vector`` or ``weights``.
    """
    values = _array(vector, "vector")
    importance = None if weights is None else _array(weights, "weights")
    if importance is not None and importance.shape != values.shape:
        raise InvalidInput(
            f"weights must have the vector's shape {list(values.shape)}; "
            f"got {list(importance.shape)}",
            code="shape_mismatch",
            field="weights",
        )
    if values.size == 0:
        raise InvalidInput(
            "vector must hold at least one value; got none", code="empty_vector", field="vector"
        )
    return QuantizeRequest(values, importance, options)


def _array(value: ArrayMessage, field: str) -> NDArray[Any]:
    if isinstance(value, TensorMessage):
        return to_array(value, field)
    if isinstance(value, memoryview):
        return vector_from_bin(value, field)
    if len(value) > MAX_LIST_NUMBERS:
        raise InvalidInput(
            f"{field} given as a list holds at most {MAX_LIST_NUMBERS} numbers; got {len(value)}; "
            "send a tensor or a bin",
            code="too_many_elements",
            field=field,
        )
    # A double beyond float32's range becomes infinity here and is refused as non-finite.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(value, dtype=np.float64).astype(np.float32)


def option_fields(options: QuantizeOptions) -> dict[str, Any]:
    """The options as keys of a message."""
    fields = all_option_fields(options)
    # A service older than these keys refuses them, so they are left out where they say nothing.
    if options.grid == DEFAULT_GRID:
        del fields["grid"]
    if options.level_sets == DEFAULT_LEVEL_SETS:
        del fields["level_sets"]
    if not options.parameters:
        del fields["parameters"]
    for name in ("world_size", "rank", "shared_seed", "outliers"):
        if fields[name] is None:
            del fields[name]
    for name in ("entropy", "feedback_scale"):
        if not fields[name]:
            del fields[name]
    return with_levels(fields, options)


def with_levels(fields: dict[str, Any], options: QuantizeOptions) -> dict[str, Any]:
    """The fields with levels that were given as a tensor, in place of how to choose them."""
    kept = {name: value for name, value in fields.items() if name != "levels"}
    if options.levels is None:
        return kept
    table = np.array(options.levels)
    with np.errstate(over="ignore"):
        narrow = table.astype(np.float32)
    table = narrow if np.array_equal(narrow, table) else table
    choice = {"bits", "num_levels"}
    if not options.is_scheme:
        choice |= {"method", "block_size"}
    kept = {name: value for name, value in kept.items() if name not in choice}
    return {**kept, "levels": tensor_fields(table, "levels")}


def all_option_fields(options: QuantizeOptions) -> dict[str, Any]:
    """The options as keys of a message, defaults among them."""
    return {
        "num_levels": options.num_levels,
        "method": options.method,
        "bins": options.bins,
        "block_size": options.block_size,
        "seed": options.seed,
        "device": options.device,
        "grid": options.grid,
        "world_size": options.world_size,
        "rank": options.rank,
        "shared_seed": options.shared_seed,
        "levels": options.levels,
        "level_sets": options.level_sets,
        "parameters": dict(options.parameters),
        "outliers": options.outliers,
        "entropy": options.entropy,
        "feedback_scale": options.feedback_scale,
    }
