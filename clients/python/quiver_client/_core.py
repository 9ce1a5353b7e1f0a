"""Calls to the service without I/O: what to send, and what an answer means.

A `Call` is one operation: a path, a body in segments, and how to read the answer. The
clients only carry calls to a transport and back.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_client._messages import Request, Response, Segment
from quiver_client._retry import parse_retry_after
from quiver_client._version import __version__
from quiver_client.errors import (
    STATUS_CLASSES,
    BadAnswer,
    BadRequest,
    Invalid,
    StatusError,
)
from quiver_kernels import wire
from quiver_kernels.batch import label_of
from quiver_kernels.dtypes import wire_name
from quiver_kernels.errors import MalformedMessage, QuiverError
from quiver_kernels.framing import Buffer
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.planning import BitPlan, Budget, Ways
from quiver_kernels.planning import require_vectors as require_vectors_by_name
from quiver_kernels.planwire import decode_plan, encode_plan_request
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.normed.statistics import Statistics
from quiver_kernels.sketch import Sketch
from quiver_kernels.statisticswire import statistics_request
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.treerequest import Requantize, encode_trees_request
from quiver_kernels.wire import LevelsResult

T = TypeVar("T")

USER_AGENT = f"quiver-client/{__version__} python/{platform.python_version()}"
JSON_TYPE = "application/json"
ANY_TYPE = "*/*"
_MAX_BIN = 2**32 - 1
_SHOWN_TEXT = 200


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One operation.

    Attributes
    ----------
    method, path
        Of the HTTP request.
    body
        Segments, sent one after the other.
    accept
        Media type of the answer.
    read
        Makes the result of the answer's body.
    """

    method: str
    path: str
    body: tuple[Segment, ...]
    accept: str
    read: Callable[[memoryview], T]

    def request(self, headers: Mapping[str, str], request_id: str, prefix: str = "") -> Request:
        """The HTTP request of this call; the same bytes however often it is sent."""
        fields = {
            "User-Agent": USER_AGENT,
            "Accept": self.accept,
            "Accept-Encoding": "identity",
            "X-Request-ID": request_id,
            **headers,
        }
        if self.body:
            fields["Content-Type"] = wire.MEDIA_TYPE
        return Request(self.method, prefix + self.path, fields, self.body)

    def result(self, response: Response) -> T:
        """Read the response.

        Raises
        ------
        StatusError
            Any status but 200.
        BadAnswer
            Not the media type, or not the message, that the service sends.
        """
        if response.status != 200:
            raise error_of(response)
        wanted = wire.MEDIA_TYPES if self.accept == wire.MEDIA_TYPE else (self.accept,)
        if self.accept != ANY_TYPE and response.media_type not in wanted:
            raise BadAnswer(
                f"{self.path} must answer {self.accept}; got {response.media_type or 'no type'!r}",
                status=response.status,
                request_id=response.headers.get("x-request-id"),
            )
        try:
            return self.read(response.body)
        except (QuiverError, msgspec.DecodeError) as error:
            raise BadAnswer(
                f"the answer of {self.path} cannot be read: {error}",
                status=response.status,
                request_id=response.headers.get("x-request-id"),
            ) from error


# -- operations --------------------------------------------------------------------------


def quantize(
    x: ArrayLike, weights: ArrayLike | None, options: QuantizeOptions
) -> Call[QuantizedVector]:
    """Call of ``POST /quantize``; options without a seed are given one."""
    with as_client_errors():
        segments = wire.encode_quantize_request(
            as_tensor(x, "x"), options.with_seed(), _as_weights(weights)
        )
    return post("/quantize", segments, QuantizedVector.from_bytes)


def levels(x: ArrayLike, weights: ArrayLike | None, options: QuantizeOptions) -> Call[LevelsResult]:
    """Call of ``POST /levels``."""
    with as_client_errors():
        segments = wire.encode_quantize_request(
            as_tensor(x, "x"), options, _as_weights(weights), route="levels"
        )
    return post("/levels", segments, _read_levels)


def levels_from_sketches(
    sketches: Sequence[Sketch | Buffer], num_levels: int, granularity: int | str | None
) -> Call[LevelsResult]:
    """Call of ``POST /levels`` for the vectors of many sketches."""
    messages = sketch_messages(sketches)
    options = create_options(num_levels=num_levels)
    with as_client_errors():
        chosen = wire.check_granularity(granularity)
        segments = wire.encode_sketch_levels_request(messages, options.num_levels, chosen)
    return post("/levels", segments, _read_levels)


def levels_from_statistics(
    statistics: Statistics,
    num_levels: int,
    method: str,
    parameters: Mapping[str, object] | None,
) -> Call[LevelsResult]:
    """Call of ``POST /levels`` for statistics of blocks."""
    given = {"num_levels": num_levels, "method": method, "parameters": parameters}
    with as_client_errors():
        request = statistics_request(statistics, given)
        segments = wire.encode_statistics_request(request)
    return post("/levels", segments, _read_levels)


def sketch_messages(sketches: Sequence[Sketch | Buffer]) -> list[Buffer]:
    """Sketches as messages; there must be some."""
    messages = [s.to_bytes() if isinstance(s, Sketch) else s for s in sketches]
    if not 1 <= len(messages) <= wire.MAX_SKETCHES:
        raise Invalid(
            f"sketches must hold 1..{wire.MAX_SKETCHES} sketches; got {len(messages)}",
            code="invalid_option",
            field="sketches",
        )
    return messages


def dequantize(q: QuantizedVector) -> Call[NDArray[Any]]:
    """Call of ``POST /dequantize``."""
    return post("/dequantize", q.to_segments(), _read_tensor)


def aggregate(
    vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
) -> Call[NDArray[Any]]:
    """Call of ``POST /aggregate`` for the mean itself."""
    require_vectors(vectors)
    segments = wire.encode_aggregate_request(vectors, weights)
    return post("/aggregate", segments, _read_tensor)


def aggregate_quantized(
    vectors: Sequence[QuantizedVector],
    weights: Sequence[float] | None,
    options: QuantizeOptions,
) -> Call[QuantizedVector]:
    """Call of ``POST /aggregate`` for the mean, quantized again."""
    require_vectors(vectors)
    segments = wire.encode_aggregate_request(vectors, weights, options.with_seed())
    return post("/aggregate", segments, QuantizedVector.from_bytes)


def aggregate_trees(
    trees: Sequence[QuantizedTree],
    weights: Sequence[float] | None,
    quantize: Requantize | None,
) -> Call[QuantizedTree]:
    """Call of ``POST /aggregate`` for the mean of trees."""
    require_trees(trees)
    if quantize is not None:
        quantize = replace(quantize, options=quantize.options.with_seed())
    segments = encode_trees_request(trees, weights, quantize)
    return post("/aggregate", segments, QuantizedTree.from_bytes)


def plan(vectors: Mapping[str, ArrayLike], ways: Ways, budget: Budget | None) -> Call[BitPlan]:
    """Call of ``POST /plan``."""
    with as_client_errors():
        require_vectors_by_name(vectors)
        named = {name: as_tensor(x, f"{label_of(name)}") for name, x in vectors.items()}
        for name, x in named.items():
            wire_name(x.dtype, label_of(name))
        segments = encode_plan_request(named, ways, budget)
    return post("/plan", segments, decode_plan)


def info() -> Call[dict[str, Any]]:
    """Call of ``GET /info``."""
    return Call("GET", "/info", (), JSON_TYPE, _read_json)


def readiness() -> Call[None]:
    """Call of ``GET /readyz``: only the status counts."""
    return Call("GET", "/readyz", (), ANY_TYPE, _ignore)


def post(path: str, segments: Sequence[Segment], read: Callable[[memoryview], T]) -> Call[T]:
    """A call that sends `segments` as a message and is answered with one."""
    return Call("POST", path, tuple(segments), wire.MEDIA_TYPE, read)


def key_headers(api_key: str | None) -> dict[str, str]:
    """Headers that carry the caller's key."""
    if api_key is None:
        return {}
    if not api_key or not all("!" <= character <= "~" for character in api_key):
        raise Invalid(
            "api_key must hold printable ASCII without spaces; got something else",
            code="invalid_option",
            field="api_key",
        )
    return {"Authorization": f"Bearer {api_key}"}


def create_ways(
    max_bytes: int | None, bits_per_value: float | None, max_error: float | None, **chosen: Any
) -> tuple[Ways, Budget | None]:
    """Candidates and budget of a plan, with the client's errors."""
    with as_client_errors():
        return Ways.create(**chosen), Budget.of(max_bytes, bits_per_value, max_error)


def create_options(**chosen: Any) -> QuantizeOptions:
    """`QuantizeOptions.create` with the client's errors."""
    with as_client_errors():
        return QuantizeOptions.create(**chosen)


def require_vectors(vectors: Sequence[QuantizedVector]) -> None:
    """Refuse to aggregate nothing."""
    if not vectors:
        raise Invalid(
            "vectors must hold at least one quantized vector; got none",
            code="invalid_option",
            field="vectors",
        )


def require_trees(trees: Sequence[QuantizedTree]) -> None:
    """Refuse to aggregate nothing."""
    if not trees:
        raise Invalid(
            "trees must hold at least one tree; got none", code="invalid_option", field="trees"
        )


def create_requantize(options: QuantizeOptions | None, min_size: int) -> Requantize | None:
    """`Requantize` with the client's errors; None without options."""
    if options is None:
        return None
    with as_client_errors():
        return Requantize(options, min_size)


def as_tensor(x: ArrayLike, field: str) -> NDArray[Any]:
    """`x` as an array that can be sent; integers and lists become float64."""
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise Invalid(
            f"{field} is not an array: {error}", code="invalid_type", field=field
        ) from None
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.nbytes > _MAX_BIN:
        raise Invalid(
            f"{field} must have at most {_MAX_BIN} bytes in one message; got {array.nbytes}",
            code="too_many_elements",
            field=field,
        )
    return array


def _as_weights(weights: ArrayLike | None) -> NDArray[Any] | None:
    return None if weights is None else as_tensor(weights, "weights")


@contextlib.contextmanager
def as_client_errors() -> Iterator[None]:
    """Turn errors of the kernels into those that a service's answer would be."""
    try:
        yield
    except StatusError:
        raise
    except MalformedMessage as error:
        raise BadRequest(error.detail, code=error.code) from error
    except QuiverError as error:
        raise Invalid(error.detail, code=error.code, field=error.field) from error


# -- answers -----------------------------------------------------------------------------


def error_of(response: Response) -> StatusError:
    """The exception for a response that is not 200: from its problem document, if it is one."""
    kind = STATUS_CLASSES.get(response.status, StatusError)
    problem = _problem(response)
    own = isinstance(problem.get("code"), str) and "request_id" in problem
    detail = problem.get("detail") or problem.get("title") or _text(response)
    return kind(
        str(detail),
        code=problem["code"] if own else f"http_{response.status}",
        status=response.status,
        request_id=_optional_text(problem.get("request_id"))
        or response.headers.get("x-request-id"),
        retry_after=parse_retry_after(response.headers.get("retry-after")),
        field=_optional_text(problem.get("field")),
        own=own,
    )


def _problem(response: Response) -> dict[str, Any]:
    """The map in an error's body; empty if it holds none."""
    decode: Callable[..., Any]
    if "json" in response.media_type:
        decode = msgspec.json.decode
    elif "msgpack" in response.media_type:
        decode = msgspec.msgpack.decode
    else:
        return {}
    try:
        found = decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(response: Response) -> str:
    """Something to show of an error that is not a problem document."""
    start = bytes(response.body[:_SHOWN_TEXT]).decode("utf-8", "replace")
    words = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return f"status {response.status}: {words}" if words else f"status {response.status}"


def _optional_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _read_tensor(body: memoryview) -> NDArray[Any]:
    return _usable(wire.decode_tensor(body))


def _read_levels(body: memoryview) -> LevelsResult:
    result = wire.decode_levels(body)
    return replace(result, levels=_usable(result.levels))


def _read_json(body: memoryview) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


def _ignore(body: memoryview) -> None:
    del body


def _usable(array: NDArray[Any]) -> NDArray[Any]:
    # Aligned and writable already when the data ends the message, as the service sends it.
    return np.require(array, requirements=["A", "W"])
