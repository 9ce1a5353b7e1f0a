"""Requests and answers of the service as messages, for both ends of the wire.

Decoding shares the memory of the buffer, checks sizes before anything is allocated,
and never lets a text of the sender choose a type. docs/wire-format.md describes the
messages; `quantized` holds the quantized vector's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.framing import Buffer, Segment, pack
from quiver_kernels.options import DEFAULT_BINS, DEFAULT_GRID, QuantizeOptions
from quiver_kernels.quantized import (
    QuantizedMessage,
    QuantizedVector,
    decode_validated,
    from_message,
    schema_error,
)
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array, vector_from_bin

MEDIA_TYPE = "application/vnd.msgpack"
MEDIA_TYPES = (MEDIA_TYPE, "application/msgpack", "application/x-msgpack")
MAX_LIST_NUMBERS = 10_000
MAX_AGGREGATE_VECTORS = 4096


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """A checked ``POST /quantize``: vector and weights of one shape, and options."""

    vector: NDArray[Any]
    weights: NDArray[Any] | None
    options: QuantizeOptions


@dataclass(frozen=True, slots=True)
class LevelsRequest:
    """A checked ``POST /levels``: as for quantizing, without a seed."""

    vector: NDArray[Any]
    weights: NDArray[Any] | None
    options: QuantizeOptions


@dataclass(frozen=True, slots=True)
class LevelsResult:
    """The answer of ``POST /levels``.

    Attributes
    ----------
    levels
        Ascending, shape (s,) or (blocks, s).
    expected_mse
        The objective over d: weighted when weights were given.
    vnmse
        Expected squared error over squared norm, unweighted.
    """

    levels: NDArray[Any]
    num_levels: int
    method: str
    expected_mse: float
    vnmse: float
    device: str


@dataclass(frozen=True, slots=True)
class AggregateRequest:
    """A checked ``POST /aggregate``: vectors of one shape, a weight each, and the answer's form."""

    vectors: tuple[QuantizedVector, ...]
    weights: tuple[float, ...] | None
    quantize: QuantizeOptions | None


class _Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    bits: int | None = None
    num_levels: int | None = None
    method: str = "exact"
    bins: int = DEFAULT_BINS
    grid: str = DEFAULT_GRID
    block_size: int | None = None
    seed: int | None = None
    device: str = "auto"

    def checked(self) -> QuantizeOptions:
        return QuantizeOptions.create(
            bits=self.bits,
            num_levels=self.num_levels,
            method=self.method,
            bins=self.bins,
            grid=self.grid,
            block_size=self.block_size,
            seed=self.seed,
            device=self.device,
        )


class _QuantizeMessage(_Options, forbid_unknown_fields=True, kw_only=True):
    vector: TensorMessage | memoryview | list[float]
    weights: TensorMessage | memoryview | list[float] | None = None


class _AggregateMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    vectors: list[QuantizedMessage | memoryview]
    weights: list[float] | None = None
    quantize: _Options | None = None


class _LevelsAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    levels: TensorMessage
    num_levels: int
    method: str
    expected_mse: float
    vnmse: float
    device: str


_QUANTIZE = msgspec.msgpack.Decoder(_QuantizeMessage)
_AGGREGATE = msgspec.msgpack.Decoder(_AggregateMessage)
_TENSOR = msgspec.msgpack.Decoder(TensorMessage)
_LEVELS = msgspec.msgpack.Decoder(_LevelsAnswer)


# -- requests, read by the service ------------------------------------------------------


def decode_quantize_request(data: Buffer) -> QuantizeRequest:
    """Read a MessagePack request of ``/quantize``; arrays share the memory of `data`."""
    return _quantize_request(decode_validated(data, _QUANTIZE))


def decode_quantize_json(data: Buffer) -> QuantizeRequest:
    """Read a JSON request of ``/quantize``: short lists, or tensors with base64 data."""
    try:
        parsed = json.loads(
            bytes(data), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except MalformedMessage:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"body is not JSON: {error}") from None
    try:
        message = msgspec.convert(parsed, _QuantizeMessage)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise schema_error(error) from None
    return _quantize_request(message)


def quantize_request_from_raw(data: Buffer, query: Sequence[tuple[str, str]]) -> QuantizeRequest:
    """Read a raw little-endian float32 body with the options of a query string."""
    given: dict[str, str] = {}
    for key, value in query:
        if key in given:
            raise MalformedMessage(
                f"query parameter {key[:40]!r} is given twice", code="duplicate_key"
            )
        given[key] = value
    try:
        options = msgspec.convert(given, _Options, strict=False)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise schema_error(error) from None
    vector = vector_from_bin(memoryview(data).cast("B"))
    return QuantizeRequest(_not_empty(vector), None, options.checked())


def decode_levels_request(data: Buffer) -> LevelsRequest:
    """Read a request of ``/levels``: the keys of ``/quantize`` without ``seed``."""
    message = decode_validated(data, _QUANTIZE)
    if message.seed is not None:
        raise InvalidInput(
            "seed has no meaning for /levels: levels are not random",
            code="invalid_option",
            field="seed",
        )
    request = _quantize_request(message)
    return LevelsRequest(request.vector, request.weights, request.options)


def decode_aggregate_request(data: Buffer) -> AggregateRequest:
    """Read a request of ``/aggregate``; vectors are messages, nested or as bin."""
    message: _AggregateMessage = decode_validated(data, _AGGREGATE)
    count = len(message.vectors)
    if not 1 <= count <= MAX_AGGREGATE_VECTORS:
        raise InvalidInput(
            f"vectors must hold 1..{MAX_AGGREGATE_VECTORS} quantized vectors; got {count}",
            code="invalid_option",
            field="vectors",
        )
    vectors = tuple(_vector(item, i) for i, item in enumerate(message.vectors))
    options = None if message.quantize is None else message.quantize.checked()
    weights = None if message.weights is None else tuple(message.weights)
    return AggregateRequest(vectors, weights, options)


def _vector(item: QuantizedMessage | memoryview, index: int) -> QuantizedVector:
    if isinstance(item, memoryview):
        return QuantizedVector.from_bytes(item)
    return from_message(item, f"vectors[{index}].")


def _quantize_request(message: _QuantizeMessage) -> QuantizeRequest:
    vector = _array(message.vector, "vector")
    weights = None if message.weights is None else _array(message.weights, "weights")
    if weights is not None and weights.shape != vector.shape:
        raise InvalidInput(
            f"weights must have the vector's shape {list(vector.shape)}; got {list(weights.shape)}",
            code="shape_mismatch",
            field="weights",
        )
    return QuantizeRequest(_not_empty(vector), weights, message.checked())


def _array(value: TensorMessage | memoryview | list[float], field: str) -> NDArray[Any]:
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
    with np.errstate(over="ignore"):
        return np.array(value, dtype=np.float64).astype(np.float32)


def _not_empty(vector: NDArray[Any]) -> NDArray[Any]:
    if vector.size == 0:
        raise InvalidInput(
            "vector must hold at least one value; got none", code="empty_vector", field="vector"
        )
    return vector


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedMessage("a key appears twice in one object", code="duplicate_key")
    return found


def _refuse_constant(name: str) -> Any:
    raise MalformedMessage(f"body is not JSON: {name} is not a number")


# -- answers, written by the service ----------------------------------------------------


def encode_tensor(array: NDArray[Any]) -> list[Segment]:
    """A tensor message in segments, its data uncopied."""
    return pack(tensor_fields(array))


def encode_levels(result: LevelsResult) -> list[Segment]:
    """The answer of ``/levels`` in segments."""
    return pack(
        {
            "levels": tensor_fields(result.levels, "levels"),
            "num_levels": result.num_levels,
            "method": result.method,
            "expected_mse": result.expected_mse,
            "vnmse": result.vnmse,
            "device": result.device,
        }
    )


def encode_map(fields: Mapping[str, Any]) -> bytes:
    """A small map of plain values, e.g. a problem document, as MessagePack."""
    return msgspec.msgpack.encode(fields)


# -- requests, written by a client ------------------------------------------------------


def encode_quantize_request(
    vector: NDArray[Any],
    options: QuantizeOptions,
    weights: NDArray[Any] | None = None,
    *,
    route: Literal["quantize", "levels"] = "quantize",
) -> list[Segment]:
    """A request of ``/quantize`` or ``/levels`` in segments, arrays uncopied."""
    fields: dict[str, Any] = _option_fields(options)
    if route == "levels":
        del fields["seed"]
    if weights is not None:
        fields["weights"] = tensor_fields(weights, "weights")
    fields["vector"] = tensor_fields(vector)
    return pack(fields)


def encode_aggregate_request(
    vectors: Sequence[QuantizedVector],
    weights: Sequence[float] | None = None,
    quantize: QuantizeOptions | None = None,
) -> list[Segment]:
    """A request of ``/aggregate`` in segments."""
    fields: dict[str, Any] = {}
    if weights is not None:
        fields["weights"] = [float(w) for w in weights]
    if quantize is not None:
        fields["quantize"] = _option_fields(quantize)
    fields["vectors"] = [memoryview(q.to_bytes()) for q in vectors]
    return pack(fields)


def _option_fields(options: QuantizeOptions) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "num_levels": options.num_levels,
        "method": options.method,
        "bins": options.bins,
        "block_size": options.block_size,
        "seed": options.seed,
        "device": options.device,
    }
    # A service older than this key refuses it, so it is left out where it says nothing new.
    if options.grid != DEFAULT_GRID:
        fields["grid"] = options.grid
    return fields


# -- answers, read by a client ----------------------------------------------------------


def decode_tensor(data: Buffer) -> NDArray[Any]:
    """Read a tensor message; the array shares the memory of `data`."""
    return to_array(decode_validated(data, _TENSOR), "tensor")


def decode_levels(data: Buffer) -> LevelsResult:
    """Read the answer of ``/levels``."""
    message: _LevelsAnswer = decode_validated(data, _LEVELS)
    return LevelsResult(
        levels=to_array(message.levels, "levels"),
        num_levels=message.num_levels,
        method=message.method,
        expected_mse=message.expected_mse,
        vnmse=message.vnmse,
        device=message.device,
    )
