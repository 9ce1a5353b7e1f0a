"""The operations: how the request of each is read, sized, computed and answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from quiver_kernels import treerequest, wire
from quiver_kernels.framing import Segment, is_well_formed
from quiver_kernels.planning import BitPlan
from quiver_kernels.planwire import PlanRequest, decode_plan_request, encode_plan
from quiver_kernels.prefix import Prefix, raw_prefix, read_prefix
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.treerequest import TreesRequest
from quiver_kernels.wire import MEDIA_TYPES
from quiver_service import effort, footprint
from quiver_service.engine import Engine
from quiver_service.footprint import Footprint
from quiver_service.negotiation import JSON, OCTETS

_LIGHT_VALUES = 256
_LIGHT_TEXT = 1024
_LIGHT_SKETCHES = 64

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete body, and how it is to be read.

    Attributes
    ----------
    checked
        Whether `is_light` has found it to be one well-formed message.
    """

    body: memoryview
    media_type: str
    query: Sequence[tuple[str, str]]
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What was computed, for metrics and the log: never the values themselves."""

    method: str
    device: str
    size: int


def is_light(upload: Upload) -> bool:
    """Whether a body has few values: a raw one, a short text, or a good message of few values."""
    if upload.media_type == OCTETS:
        return True
    if upload.media_type == JSON:
        return len(upload.body) <= _LIGHT_TEXT
    return is_well_formed(upload.body, _LIGHT_VALUES)


def says_nothing(begun: Upload, length: int) -> Prefix | None:  # noqa: ARG001 - as others
    """The prefix of bodies whose work begins when they are complete."""
    return None


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, B]):
    """One operation: how its request is read, computed and answered.

    Attributes
    ----------
    media_types
        Of the bodies it reads.
    growth
        Expected bytes of answer per byte of body, for admission.
    decode, footprint, effort, compute, encode
        Body to request, request to memory needed and to work needed, request to result, result
        to segments.
    describe
        Request and result to what is counted.
    prefix
        What the first part of a body, and the length of the whole, say of its vector, so that work
        may begin while the rest arrives.
    light
        Whether a body is read in a fraction of a millisecond, told without reading it: a
        few kilobytes can hold thousands of vectors.
    """

    media_types: tuple[str, ...]
    growth: float
    decode: Callable[[Upload], A]
    footprint: Callable[[A], Footprint]
    effort: Callable[[A], int]
    compute: Callable[[Engine, A], B]
    encode: Callable[[B], list[Segment]]
    describe: Callable[[A, B], Work]
    light: Callable[[Upload], bool] = is_light
    prefix: Callable[[Upload, int], Prefix | None] = says_nothing


Asked = wire.QuantizeRequest | wire.BatchRequest
Quantized = QuantizedVector | wire.QuantizedBatch


def _decode_quantize(upload: Upload) -> Asked:
    if upload.media_type == OCTETS:
        return wire.quantize_request_from_raw(upload.body, upload.query)
    if upload.media_type == JSON:
        return wire.decode_quantize_json(upload.body)
    return wire.decode_quantize_request(upload.body, checked=upload.checked)


def _prefix_quantize(begun: Upload, length: int) -> Prefix | None:
    if begun.media_type == OCTETS:
        return raw_prefix(length, begun.query)
    return None if begun.media_type == JSON else read_prefix(begun.body, length)


def _footprint_quantize(request: Asked) -> Footprint:
    if isinstance(request, wire.BatchRequest):
        return footprint.of_batch(request)
    return footprint.of_quantize(request)


def _effort_quantize(request: Asked) -> int:
    if isinstance(request, wire.BatchRequest):
        return effort.of_batch(request)
    return effort.of_quantize(request)


def _quantize(engine: Engine, request: Asked) -> Quantized:
    if isinstance(request, wire.BatchRequest):
        return engine.quantize_many(request)
    return engine.quantize(request)


def _encode_quantized(result: Quantized) -> list[Segment]:
    if isinstance(result, wire.QuantizedBatch):
        return wire.encode_batch(result)
    return result.to_segments()


def _describe_quantized(_: Asked, result: Quantized) -> Work:
    if isinstance(result, QuantizedVector):
        return Work(result.method, result.device, result.size)
    done = result.vectors
    method = _common({q.method for q in done})
    return Work(method, _common({q.device for q in done}), sum(q.size for q in done))


def _common(names: set[str]) -> str:
    """The one name, or ``mixed``."""
    return names.pop() if len(names) == 1 else "mixed"


Averaged = wire.AggregateRequest | TreesRequest
Aggregated = NDArray[Any] | QuantizedVector | QuantizedTree


def _is_light_aggregate(upload: Upload) -> bool:
    # A bin of a few kilobytes can hold a tree of thousands of values.
    return b"trees" not in bytes(upload.body) and is_light(upload)


def _decode_aggregate(upload: Upload) -> Averaged:
    return treerequest.decode_aggregate_request(upload.body)


def _footprint_aggregate(request: Averaged) -> Footprint:
    if isinstance(request, TreesRequest):
        return footprint.of_trees(request)
    return footprint.of_aggregate(request)


def _effort_aggregate(request: Averaged) -> int:
    if isinstance(request, TreesRequest):
        return effort.of_trees(request)
    return effort.of_aggregate(request)


def _aggregate(engine: Engine, request: Averaged) -> Aggregated:
    if isinstance(request, TreesRequest):
        return engine.aggregate_trees(request)
    return engine.aggregate(request)


def _is_light_for_levels(upload: Upload) -> bool:
    # A request with a vector has fewer values; reading many sketches takes longer.
    return is_well_formed(upload.body, _LIGHT_SKETCHES)


LevelsAsked = wire.LevelsRequest | wire.SketchLevelsRequest | wire.StatisticsRequest


def _footprint_levels(request: LevelsAsked) -> Footprint:
    if isinstance(request, wire.SketchLevelsRequest):
        return footprint.of_sketch_levels(request)
    if isinstance(request, wire.StatisticsRequest):
        return footprint.of_statistics(request)
    return footprint.of_levels(request)


def _effort_levels(request: LevelsAsked) -> int:
    if isinstance(request, wire.SketchLevelsRequest):
        return effort.of_sketch_levels(request)
    if isinstance(request, wire.StatisticsRequest):
        return effort.of_statistics(request)
    return effort.of_quantize(request)


def _levels(engine: Engine, request: LevelsAsked) -> wire.LevelsResult:
    if isinstance(request, wire.SketchLevelsRequest):
        return engine.levels_of_sketches(request)
    if isinstance(request, wire.StatisticsRequest):
        return engine.levels_of_statistics(request)
    return engine.levels(request)


def _describe_levels(request: LevelsAsked, result: wire.LevelsResult) -> Work:
    if isinstance(request, wire.SketchLevelsRequest):
        return Work(result.method, result.device, request.rows)
    if isinstance(request, wire.StatisticsRequest):
        return Work(result.method, result.device, request.size)
    return Work(result.method, result.device, request.vector.size)


def _describe_plan(request: PlanRequest, plan: BitPlan) -> Work:
    device = request.ways.options[0].device
    size = sum(curve.size for curve in plan.curves.values())
    return Work("plan", "cpu" if device == "auto" else device, size)


def _encode_aggregate(result: Aggregated) -> list[Segment]:
    if isinstance(result, QuantizedVector | QuantizedTree):
        return result.to_segments()
    return wire.encode_tensor(result)


def _describe_aggregate(request: Averaged, result: Aggregated) -> Work:
    device = result.device if isinstance(result, QuantizedVector) else "cpu"
    if isinstance(request, TreesRequest):
        return Work("aggregate", device, sum(tree.size for tree in request.trees))
    return Work("aggregate", device, sum(q.size for q in request.vectors))


QUANTIZE = Operation(
    media_types=(*MEDIA_TYPES, JSON, OCTETS),
    growth=0.25,
    decode=_decode_quantize,
    footprint=_footprint_quantize,
    effort=_effort_quantize,
    compute=_quantize,
    encode=_encode_quantized,
    describe=_describe_quantized,
    prefix=_prefix_quantize,
)
DEQUANTIZE = Operation(
    media_types=MEDIA_TYPES,
    growth=8.0,
    decode=lambda upload: QuantizedVector.from_bytes(upload.body),
    footprint=footprint.of_dequantize,
    effort=effort.of_dequantize,
    compute=Engine.dequantize,
    encode=wire.encode_tensor,
    describe=lambda q, _: Work("dequantize", "cpu", q.size),
)
LEVELS = Operation(
    media_types=MEDIA_TYPES,
    growth=0.0,
    decode=lambda upload: wire.decode_levels_request(upload.body),
    footprint=_footprint_levels,
    effort=_effort_levels,
    compute=_levels,
    encode=wire.encode_levels,
    describe=_describe_levels,
    light=_is_light_for_levels,
)
AGGREGATE = Operation(
    media_types=MEDIA_TYPES,
    growth=1.0,
    decode=_decode_aggregate,
    footprint=_footprint_aggregate,
    effort=_effort_aggregate,
    compute=_aggregate,
    encode=_encode_aggregate,
    describe=_describe_aggregate,
    light=_is_light_aggregate,
)
PLAN = Operation(
    media_types=MEDIA_TYPES,
    growth=0.0,
    decode=lambda upload: decode_plan_request(upload.body),
    footprint=footprint.of_plan,
    effort=effort.of_plan,
    compute=Engine.plan,
    encode=encode_plan,
    describe=_describe_plan,
)
