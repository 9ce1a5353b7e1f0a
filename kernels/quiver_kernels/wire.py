"""Requests and answers of the service as messages, for both ends of the wire.

Decoding shares the memory of the buffer, checks sizes before anything is allocated,
and never lets a text of the sender choose a type. docs/wire-format.md describes the
messages; `request` holds what is asked for one vector, `batch` many of them in one message,
`quantized` the quantized vector's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from quiver_kernels import batch
from quiver_kernels.batch import (
    MAX_BATCH_VECTORS,
    MAX_NAME_BYTES,
    BatchRequest,
    QuantizedBatch,
    decode_batch,
    encode_batch,
    encode_batch_request,
)
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.framing import Buffer, Segment, pack
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import (
    QuantizedMessage,
    QuantizedVector,
    decode_validated,
    from_message,
    schema_error,
)
from quiver_kernels.request import (
    MAX_LIST_NUMBERS,
    ArrayMessage,
    OptionsMessage,
    QuantizeRequest,
    VectorMessage,
    option_fields,
    read_request,
)
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array

__all__ = [
    "MAX_AGGREGATE_VECTORS",
    "MAX_BATCH_VECTORS",
    "MAX_LIST_NUMBERS",
    "MAX_NAME_BYTES",
    "MEDIA_TYPE",
    "MEDIA_TYPES",
    "AggregateRequest",
    "BatchRequest",
    "LevelsRequest",
    "LevelsResult",
    "QuantizeRequest",
    "QuantizedBatch",
    "decode_aggregate_request",
    "decode_batch",
    "decode_levels",
    "decode_levels_request",
    "decode_quantize_json",
    "decode_quantize_request",
    "decode_tensor",
    "encode_aggregate_request",
    "encode_batch",
    "encode_batch_request",
    "encode_levels",
    "encode_map",
    "encode_quantize_request",
    "encode_tensor",
    "quantize_request_from_raw",
]

MEDIA_TYPE = "application/vnd.msgpack"
MEDIA_TYPES = (MEDIA_TYPE, "application/msgpack", "application/x-msgpack")
MAX_AGGREGATE_VECTORS = 4096


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


class _QuantizeMessage(OptionsMessage, forbid_unknown_fields=True, kw_only=True):
    vector: ArrayMessage | UnsetType = UNSET
    weights: ArrayMessage | None = None
    # Read item by item, so that errors can say which one they are about.
    vectors: msgspec.Raw | UnsetType = UNSET


class _AggregateMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    vectors: list[QuantizedMessage | memoryview]
    weights: list[float] | None = None
    quantize: OptionsMessage | None = None


class _LevelsAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    levels: TensorMessage
    num_levels: int
    method: str
    expected_mse: float
    vnmse: float
    device: str


_QUANTIZE = msgspec.msgpack.Decoder(_QuantizeMessage)
_VECTOR = msgspec.msgpack.Decoder(VectorMessage)
_AGGREGATE = msgspec.msgpack.Decoder(_AggregateMessage)
_TENSOR = msgspec.msgpack.Decoder(TensorMessage)
_LEVELS = msgspec.msgpack.Decoder(_LevelsAnswer)


# -- requests, read by the service ------------------------------------------------------


def decode_quantize_request(
    data: Buffer, *, checked: bool = False
) -> QuantizeRequest | BatchRequest:
    """Read a MessagePack request of ``/quantize``; arrays share the memory of `data`.

    `checked`: `framing.is_well_formed` was asked already.
    """
    message: _QuantizeMessage = decode_validated(
        data, _QUANTIZE, batch.MAX_BATCH_ITEMS, checked=checked
    )
    return _requested(message, message.vectors, batch.read_packed)


def decode_quantize_json(data: Buffer) -> QuantizeRequest | BatchRequest:
    """Read a JSON request of ``/quantize``: short lists, or tensors with base64 data."""
    try:
        parsed = json.loads(
            bytes(data), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except MalformedMessage:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"body is not JSON: {error}") from None
    vectors = parsed.pop("vectors", UNSET) if isinstance(parsed, dict) else UNSET
    try:
        message = msgspec.convert(parsed, _QuantizeMessage)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise schema_error(error) from None
    return _requested(message, vectors, batch.read_parsed)


def _requested(
    message: _QuantizeMessage,
    vectors: Any,
    read_batch: Callable[[Any, dict[str, Any]], BatchRequest],
) -> QuantizeRequest | BatchRequest:
    if vectors is UNSET:
        if isinstance(message.vector, UnsetType):
            raise InvalidInput(
                "vector, or vectors for many, is required; got neither",
                code="missing_key",
                field="vector",
            )
        return read_request(message.vector, message.weights, message.checked())
    if message.vector is not UNSET:
        raise InvalidInput(
            "vector and vectors exclude each other; got both",
            code="invalid_option",
            field="vectors",
        )
    if message.weights is not None:
        raise InvalidInput(
            "weights of vectors belong into their items, beside each vector; got weights for all",
            code="invalid_option",
            field="weights",
        )
    return read_batch(vectors, message.given())


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
        options = msgspec.convert(given, OptionsMessage, strict=False)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise schema_error(error) from None
    return read_request(memoryview(data).cast("B"), None, options.checked())


def decode_levels_request(data: Buffer) -> LevelsRequest:
    """Read a request of ``/levels``: the keys of ``/quantize`` without ``seed``."""
    message: VectorMessage = decode_validated(data, _VECTOR)
    if message.seed is not UNSET and message.seed is not None:
        raise InvalidInput(
            "seed has no meaning for /levels: levels are not random",
            code="invalid_option",
            field="seed",
        )
    request = read_request(message.vector, message.weights, message.checked())
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
    fields: dict[str, Any] = option_fields(options)
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
        fields["quantize"] = option_fields(quantize)
    fields["vectors"] = [memoryview(q.to_bytes()) for q in vectors]
    return pack(fields)


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
