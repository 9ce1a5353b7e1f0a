"""Requests and answers of the service as messages, for both ends of the wire.

Decoding shares the memory of the buffer, checks sizes before anything is allocated,
and never lets a text of the sender choose a type. docs/wire-format.md describes the
messages; `request` holds what is asked for one vector, `batch` many of them in one message,
`quantized` the quantized vector's own.
"""

from __future__ import annotations

import contextlib
import json
import operator
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
from quiver_kernels.cellwire import CellsMessage, check_columns
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.framing import Buffer, Segment, pack
from quiver_kernels.options import MAX_GRANULARITY, MIN_GRANULARITY, QuantizeOptions
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
    option_fields,
    read_request,
)
from quiver_kernels.schemes import querying
from quiver_kernels.statisticswire import (
    StatisticsMessage,
    StatisticsRequest,
    statistics_fields,
    statistics_requested,
)
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array

__all__ = [
    "MAX_AGGREGATE_VECTORS",
    "MAX_BATCH_VECTORS",
    "MAX_LIST_NUMBERS",
    "MAX_NAME_BYTES",
    "MAX_SKETCHES",
    "MAX_SKETCH_ROWS",
    "MEDIA_TYPE",
    "MEDIA_TYPES",
    "AggregateRequest",
    "BatchRequest",
    "LevelsRequest",
    "LevelsResult",
    "QuantizeRequest",
    "QuantizedBatch",
    "SketchLevelsRequest",
    "StatisticsRequest",
    "check_granularity",
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
    "encode_sketch_levels_request",
    "encode_statistics_request",
    "encode_tensor",
    "naming_sketch",
    "options_of_query",
    "quantize_request_from_raw",
    "sketch_levels_request",
]

MEDIA_TYPE = "application/vnd.msgpack"
MEDIA_TYPES = (MEDIA_TYPE, "application/msgpack", "application/x-msgpack")
MAX_AGGREGATE_VECTORS = 4096
MAX_SKETCHES = 4096
MAX_SKETCH_ROWS = 1 << 24
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class LevelsRequest:
    """A checked ``POST /levels``: as for quantizing, without a seed."""

    vector: NDArray[Any]
    weights: NDArray[Any] | None
    options: QuantizeOptions


@dataclass(frozen=True, slots=True)
class SketchLevelsRequest:
    """A ``POST /levels`` from sketches, whose columns have the right sizes.

    Attributes
    ----------
    sketches
        Their messages; what the numbers say is checked when they are read.
    num_levels
        Levels of the one table, 2..256.
    granularity
        Steps of the grid that the levels shall lie on; None: no grid.
    """

    sketches: tuple[CellsMessage, ...]
    num_levels: int
    granularity: int | Literal["auto"] | None

    @property
    def rows(self) -> int:
        """Rows of all sketches together."""
        return sum(sketch.rows for sketch in self.sketches)


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


class _LevelsMessage(OptionsMessage, forbid_unknown_fields=True, kw_only=True):
    vector: ArrayMessage | UnsetType = UNSET
    weights: ArrayMessage | None = None
    sketches: list[memoryview] | UnsetType = UNSET
    granularity: int | str | UnsetType | None = UNSET
    statistics: StatisticsMessage | UnsetType = UNSET


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
_LEVELS_REQUEST = msgspec.msgpack.Decoder(_LevelsMessage)
_SKETCH = msgspec.msgpack.Decoder(CellsMessage)
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
    return read_request(memoryview(data).cast("B"), None, options_of_query(query))


def options_of_query(query: Sequence[tuple[str, str]]) -> QuantizeOptions:
    """The options in the pairs of a query string."""
    given: dict[str, str] = {}
    for key, value in query:
        if key in given:
            raise MalformedMessage(
                f"query parameter {key[:40]!r} is given twice", code="duplicate_key"
            )
        given[key] = value
    given, texts = querying.split(given)
    try:
        options = msgspec.convert(given, OptionsMessage, strict=False)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise schema_error(error) from None
    if texts:
        options.parameters = querying.values(options.method, texts)
    return options.checked()


def decode_levels_request(
    data: Buffer,
) -> LevelsRequest | SketchLevelsRequest | StatisticsRequest:
    """Read a request of ``/levels``: the keys of ``/quantize`` without those of rounding.

    Or a list of sketches, or statistics, in place of the vector.
    """
    message: _LevelsMessage = decode_validated(data, _LEVELS_REQUEST)
    if not isinstance(message.statistics, UnsetType):
        return _statistics_requested(message, message.statistics)
    if not isinstance(message.sketches, UnsetType):
        return _sketches_requested(message, message.sketches)
    if message.seed is not UNSET and message.seed is not None:
        raise InvalidInput(
            "seed has no meaning for /levels: levels are not random",
            code="invalid_option",
            field="seed",
        )
    for name in ("world_size", "rank", "shared_seed", "outliers", "entropy", "feedback_scale"):
        if getattr(message, name) not in (UNSET, None, False):
            raise InvalidInput(
                f"{name} has no meaning for /levels: it is about rounding",
                code="invalid_option",
                field=name,
            )
    if message.levels not in (UNSET, None):
        raise InvalidInput(
            "levels have no meaning for /levels: they are its answer",
            code="invalid_option",
            field="levels",
        )
    if message.granularity not in (UNSET, None):
        raise InvalidInput(
            "granularity belongs to sketches; got it with a vector",
            code="invalid_option",
            field="granularity",
        )
    if isinstance(message.vector, UnsetType):
        raise InvalidInput(
            "vector, sketches or statistics are required; got none of them",
            code="missing_key",
            field="vector",
        )
    request = read_request(message.vector, message.weights, message.checked())
    return LevelsRequest(request.vector, request.weights, request.options)


def _statistics_requested(
    message: _LevelsMessage, statistics: StatisticsMessage
) -> StatisticsRequest:
    for name in ("vector", "weights", "sketches", "granularity"):
        if getattr(message, name) not in (UNSET, None):
            raise InvalidInput(
                f"statistics exclude {name}; got both", code="invalid_option", field=name
            )
    return statistics_requested(statistics, message.given())


def _sketches_requested(message: _LevelsMessage, sketches: list[memoryview]) -> SketchLevelsRequest:
    for name in (*OptionsMessage.__struct_fields__, "vector", "weights"):
        if name not in ("bits", "num_levels") and getattr(message, name) not in (UNSET, None):
            raise InvalidInput(
                f"sketches exclude {name}; got both", code="invalid_option", field=name
            )
    granularity = None if isinstance(message.granularity, UnsetType) else message.granularity
    return sketch_levels_request(
        sketches, message.checked().num_levels, check_granularity(granularity)
    )


def sketch_levels_request(
    sketches: Sequence[Buffer], num_levels: int, granularity: int | Literal["auto"] | None
) -> SketchLevelsRequest:
    """A request for one table from messages of sketches; other parameters were checked.

    Raises
    ------
    MalformedMessage, InvalidInput
        ``field`` names the sketch: ``sketches[3].rows``.
    """
    if not 1 <= len(sketches) <= MAX_SKETCHES:
        raise InvalidInput(
            f"sketches must hold 1..{MAX_SKETCHES} sketches; got {len(sketches)}",
            code="invalid_option",
            field="sketches",
        )
    messages = []
    for place, data in enumerate(sketches):
        with naming_sketch(place):
            message: CellsMessage = decode_validated(data, _SKETCH)
            check_columns(message)
        messages.append(message)
    request = SketchLevelsRequest(tuple(messages), num_levels, granularity)
    if request.rows > MAX_SKETCH_ROWS:
        raise InvalidInput(
            f"sketches must have at most {MAX_SKETCH_ROWS} rows together; got {request.rows}",
            code="too_many_elements",
            field="sketches",
        )
    return request


def naming_sketch(place: int) -> contextlib.AbstractContextManager[None]:
    """Errors raised inside say that they are about the sketch at `place`."""
    return batch.naming_errors(f"sketches[{place}]", wrapped=True)


def check_granularity(value: object) -> int | Literal["auto"] | None:
    """Steps of a grid for levels: a number, ``auto``, or None."""
    if value is None:
        return None
    if isinstance(value, str) and value == AUTO:
        return "auto"
    number = operator.index(value) if hasattr(value, "__index__") else None
    if (
        isinstance(value, bool)
        or number is None
        or not MIN_GRANULARITY <= number <= MAX_GRANULARITY
    ):
        raise InvalidInput(
            f"granularity must be {MIN_GRANULARITY}..{MAX_GRANULARITY} or 'auto'; "
            f"got {value!r:.40}",
            code="invalid_option",
            field="granularity",
        )
    return number


def decode_aggregate_request(data: Buffer, *, checked: bool = False) -> AggregateRequest:
    """Read a request of ``/aggregate`` for vectors; they are messages, nested or as bin.

    `checked`: the structure of the message is known to be good.
    """
    message: _AggregateMessage = decode_validated(data, _AGGREGATE, checked=checked)
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


def encode_sketch_levels_request(
    sketches: Sequence[Buffer], num_levels: int, granularity: int | str | None = None
) -> list[Segment]:
    """A request of ``/levels`` from messages of sketches in segments."""
    fields: dict[str, Any] = {"num_levels": num_levels}
    if granularity is not None:
        fields["granularity"] = granularity
    fields["sketches"] = [memoryview(data) for data in sketches]
    return pack(fields)


def encode_statistics_request(request: StatisticsRequest) -> list[Segment]:
    """The request of ``POST /levels`` from statistics."""
    options = option_fields(request.options)
    names = ("num_levels", "method", "parameters")
    return pack({**{name: options[name] for name in names}, **statistics_fields(request)})


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
