"""Messages of ``POST /plan``: many vectors and a budget in, error curves and a choice out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from quiver_kernels.batch import (
    MAX_BATCH_ITEMS,
    MAX_BATCH_VECTORS,
    check_names,
    label_of,
    naming_errors,
)
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer, Segment, pack
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.planning import BitPlan, Budget, Candidate, ErrorCurve, Ways
from quiver_kernels.quantized import WIRE_VERSION, decode_validated
from quiver_kernels.request import ArrayMessage, read_request
from quiver_kernels.tensors import tensor_fields

# A curve has 8 bits by all methods and the values themselves, four numbers each.
_MAX_METHODS = 64
MAX_PLAN_ITEMS = (20 + 4 * (8 * _MAX_METHODS + 1)) * MAX_BATCH_VECTORS


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A checked ``POST /plan``.

    Attributes
    ----------
    vectors
        By name; at least one value each.
    ways
        Candidates of each.
    budget
        None: curves only.
    """

    vectors: Mapping[str, NDArray[Any]]
    ways: Ways
    budget: Budget | None


class _PlanMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    vectors: dict[str, ArrayMessage]
    bits: list[int] | UnsetType = UNSET
    methods: list[str] | UnsetType = UNSET
    bins: int | UnsetType = UNSET
    grid: str | UnsetType = UNSET
    block_size: int | UnsetType | None = UNSET
    raw: bool | UnsetType = UNSET
    device: str | UnsetType = UNSET
    max_bytes: int | None = None
    bits_per_value: float | None = None
    max_error: float | None = None


class _CurveMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    size: int
    dtype: str
    bits: list[int | None]
    methods: list[str | None]
    nbytes: list[int]
    errors: list[float]


class _PlanAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    v: int
    curves: dict[str, _CurveMessage]
    chosen: dict[str, int]
    nbytes: int
    error: float
    bound: float
    optimal: bool


_WAYS = ("bits", "methods", "bins", "grid", "block_size", "raw", "device")
_BUDGET = ("max_bytes", "bits_per_value", "max_error")
_REQUEST = msgspec.msgpack.Decoder(_PlanMessage)
_ANSWER = msgspec.msgpack.Decoder(_PlanAnswer)


def encode_plan_request(
    vectors: Mapping[str, NDArray[Any]], ways: Ways, budget: Budget | None
) -> list[Segment]:
    """A request in segments, arrays uncopied."""
    fields: dict[str, Any] = {**_way_fields(ways.options), "raw": ways.raw}
    if budget is not None:
        limits = {name: getattr(budget, name) for name in _BUDGET}
        fields.update({name: value for name, value in limits.items() if value is not None})
    fields["vectors"] = {name: tensor_fields(x) for name, x in vectors.items()}
    return pack(fields)


def _way_fields(options: tuple[QuantizeOptions, ...]) -> dict[str, Any]:
    first = options[0]
    return {
        "bits": list(dict.fromkeys(each.bits for each in options)),
        "methods": list(dict.fromkeys(each.method for each in options)),
        "bins": first.bins,
        "grid": first.grid,
        "block_size": first.block_size,
        "device": first.device,
    }


def decode_plan_request(data: Buffer) -> PlanRequest:
    """Read a request; arrays share the memory of `data`.

    Raises
    ------
    MalformedMessage, InvalidInput
        As for a request of many vectors: ``field`` says which.
    """
    message: _PlanMessage = decode_validated(data, _REQUEST, MAX_BATCH_ITEMS)
    count = len(message.vectors)
    if not 1 <= count <= MAX_BATCH_VECTORS:
        raise InvalidInput(
            f"vectors must hold 1..{MAX_BATCH_VECTORS} vectors; got {count}",
            code="invalid_option",
            field="vectors",
        )
    check_names(tuple(message.vectors))
    given = {name: value for name in _WAYS if (value := getattr(message, name)) is not UNSET}
    ways = Ways.create(**given)
    limits = {name: getattr(message, name) for name in _BUDGET}
    budget = Budget.of(**limits)
    vectors = {}
    for name, value in message.vectors.items():
        with naming_errors(label_of(name), wrapped=False):
            vectors[name] = read_request(value, None, ways.options[0]).vector
    return PlanRequest(vectors, ways, budget)


def encode_plan(plan: BitPlan) -> list[Segment]:
    """The answer in segments."""
    chosen = {
        name: plan.curves[name].candidates.index(candidate)
        for name, candidate in plan.chosen.items()
    }
    return pack(
        {
            "v": WIRE_VERSION,
            "curves": {name: _curve_fields(curve) for name, curve in plan.curves.items()},
            "chosen": chosen,
            "nbytes": plan.nbytes,
            "error": plan.error,
            "bound": plan.bound,
            "optimal": plan.optimal,
        }
    )


def _curve_fields(curve: ErrorCurve) -> dict[str, Any]:
    return {
        "size": curve.size,
        "dtype": curve.dtype,
        "bits": [each.bits for each in curve.candidates],
        "methods": [each.method for each in curve.candidates],
        "nbytes": [each.nbytes for each in curve.candidates],
        "errors": [each.error for each in curve.candidates],
    }


def decode_plan(data: Buffer) -> BitPlan:
    """Read an answer.

    Raises
    ------
    MalformedMessage, InvalidInput
        No such message, or its parts disagree.
    """
    message: _PlanAnswer = decode_validated(data, _ANSWER, MAX_PLAN_ITEMS)
    curves = {name: _curve(curve, name) for name, curve in message.curves.items()}
    chosen = {}
    for name, place in message.chosen.items():
        if name not in curves or not 0 <= place < len(curves[name].candidates):
            raise _disagrees("chosen")
        chosen[name] = curves[name].candidates[place]
    if chosen and len(chosen) != len(curves):
        raise _disagrees("chosen")
    return BitPlan(curves, chosen, message.nbytes, message.error, message.bound, message.optimal)


def _curve(message: _CurveMessage, name: str) -> ErrorCurve:
    columns = (message.bits, message.methods, message.nbytes, message.errors)
    if len({len(column) for column in columns}) != 1 or not message.bits:
        raise _disagrees(f"curves.{name[:100]}")
    candidates = tuple(Candidate(*row) for row in zip(*columns, strict=True))
    return ErrorCurve(message.size, message.dtype, candidates)


def _disagrees(field: str) -> InvalidInput:
    return InvalidInput(
        f"{field} must fit the other parts of the answer; it does not",
        code="size_mismatch",
        field=field,
    )
