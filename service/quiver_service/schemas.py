"""The OpenAPI document: bodies, answers, errors and examples of every route.

Routes read bodies themselves, so FastAPI cannot derive these; they are stated here once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_BITS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    DEVICES,
    GRIDS,
    MAX_BINS,
    MAX_BITS,
    MAX_GRANULARITY,
    MAX_LEVEL_SETS,
    MAX_LEVELS,
    MAX_SEED,
    MAX_WORLD_SIZE,
    MIN_BINS,
    MIN_BITS,
    MIN_GRANULARITY,
    MIN_LEVEL_SETS,
    MIN_LEVELS,
    MIN_OUTLIERS,
)
from quiver_kernels.quantized import WIRE_VERSION
from quiver_kernels.schemes.contract import MAX_PARAMETERS, MAX_SIDE_PARTS
from quiver_kernels.schemes.registry import BUILT_IN
from quiver_kernels.statisticswire import MAX_STATISTICS
from quiver_kernels.structure import MAX_STRUCTURE_DEPTH
from quiver_kernels.tensors import MAX_DIMENSIONS
from quiver_kernels.tree import (
    MAX_CLIENT_BYTES,
    MAX_LEAF_NAME_BYTES,
    MAX_LEAVES,
    MAX_SECTIONS,
)
from quiver_kernels.treerequest import DEFAULT_MIN_SIZE, MAX_AGGREGATE_TREES
from quiver_kernels.wire import (
    AUTO,
    MAX_AGGREGATE_VECTORS,
    MAX_BATCH_VECTORS,
    MAX_LIST_NUMBERS,
    MAX_NAME_BYTES,
    MAX_SKETCH_ROWS,
    MAX_SKETCHES,
    MEDIA_TYPES,
)
from quiver_kernels.wrapping.parts import BYTES, CODES
from quiver_service.errors import ERROR_KINDS
from quiver_service.negotiation import JSON, OCTETS, PROBLEM_JSON

Json = dict[str, Any]

DESCRIPTION = """\
Vectors in, levels and unbiased codes out. A stochastically quantized value is, on average,
the value itself; the levels are chosen for each vector so that the expected squared error
is as small as it can be.

**Messages are MessagePack maps** (`application/vnd.msgpack`; `application/msgpack` and
`application/x-msgpack` are read too). Schemas below show them as JSON objects; properties of
`format: binary` are MessagePack `bin` (base64 text where a message is sent or asked for as
JSON). Unknown keys, duplicate keys and trailing bytes are refused.

Every body needs a `Content-Length`. Errors are RFC 9457 problem documents with a stable
`code`. `/v1/...` serves the same operations.
"""

TAGS = [
    {"name": "operations", "description": "Quantize, decode, choose levels, average, plan."},
    {"name": "operators", "description": "Health, metrics, limits."},
]

PATHS = frozenset(
    {
        *("/quantize", "/dequantize", "/levels", "/aggregate", "/plan"),
        *("/livez", "/readyz", "/healthz", "/metrics", "/info"),
        *("/", "/ui", "/docs", "/redoc", "/openapi.json"),
    }
)
"""Paths with a label of their own in logs and metrics."""


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_BIN = {"type": "string", "format": "binary"}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "maxItems": MAX_LIST_NUMBERS}


def _array_of(what: str) -> Json:
    return {
        "description": f"{what} A tensor; or a bare `bin` of little-endian float32; or a short "
        f"list of at most {MAX_LIST_NUMBERS} numbers, taken as float32.",
        "anyOf": [_ref("Tensor"), _BIN, _NUMBERS],
    }


_OPTIONS: Json = {
    "bits": {
        "type": ["integer", "null"],
        "minimum": MIN_BITS,
        "maximum": MAX_BITS,
        "default": DEFAULT_BITS,
        "description": "Bits per code: 2^bits levels. Excludes `num_levels`; null: not given.",
    },
    "num_levels": {
        "type": ["integer", "null"],
        "minimum": MIN_LEVELS,
        "maximum": MAX_LEVELS,
        "description": "Levels per table, instead of `bits`; null: not given.",
    },
    "method": {
        "type": "string",
        "enum": list(BUILT_IN),
        "default": "exact",
        "description": "`exact`: provably optimal levels. `accelerated`: the same optimum by "
        "another recurrence. `approx`: optimal among the candidates of a `grid`, without "
        "sorting; for long vectors. `uniform`: equal steps. `simba`: several sets of levels that "
        "both ends choose from with shared random numbers; about half the error at equal bits, "
        "without `weights` and `block_size`. The others are schemes with `parameters` of their "
        "own; `GET /info` lists them, and what other packages bring.",
    },
    "bins": {
        "type": "integer",
        "minimum": MIN_BINS,
        "maximum": MAX_BINS,
        "default": DEFAULT_BINS,
        "description": "Cells that the grid of `approx` cuts the range into.",
    },
    "grid": {
        "type": "string",
        "enum": list(GRIDS),
        "default": DEFAULT_GRID,
        "description": "Candidates of `approx`. `robust`: the outermost values of its cells, which "
        "are cut finer near 0 as floating-point numbers are. `uniform`: the points of a uniform "
        "grid.",
    },
    "level_sets": {
        "type": "integer",
        "minimum": MIN_LEVEL_SETS,
        "maximum": MAX_LEVEL_SETS,
        "default": DEFAULT_LEVEL_SETS,
        "description": "Sets of levels of `simba`.",
    },
    "parameters": {
        "type": "object",
        "additionalProperties": {"type": ["boolean", "number", "string"]},
        "maxProperties": MAX_PARAMETERS,
        "default": {},
        "description": "Of another scheme that `method` names, by name: `GET /info` lists them. "
        "Those of the methods described above are keys of their own.",
    },
    "block_size": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Values that share one level table; null: all of them.",
    },
    "seed": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_SEED,
        "default": None,
        "description": "Key of the random numbers (unsigned 64-bit). The same vector, levels and "
        "seed give the same codes everywhere. Drawn when absent, always returned.",
    },
    "device": {
        "type": "string",
        "enum": list(DEVICES),
        "default": "auto",
        "description": "Where to compute; `GET /info` lists what is here.",
    },
    "world_size": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": MAX_WORLD_SIZE,
        "default": None,
        "description": "Workers whose vectors will be averaged and that round together, so that "
        "their errors cancel in part. With `rank` and `shared_seed`, or none of the three.",
    },
    "rank": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_WORLD_SIZE - 1,
        "default": None,
        "description": "Which of the workers this is: 0 up to `world_size` - 1.",
    },
    "shared_seed": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_SEED,
        "default": None,
        "description": "A seed that all workers have, new for every average (unsigned 64-bit).",
    },
    "levels": {
        "anyOf": [_ref("Tensor"), {"type": "null"}],
        "default": None,
        "description": "Encode with this very table: ascending, shape [s] with s = 2..256, float32 "
        "or float64, of values of the vector's type that bracket the vector. Excludes `bits`, "
        "`num_levels`, `method`, `block_size` and `weights`; the answer's method is `given`.",
    },
    "outliers": {
        "type": ["number", "null"],
        "minimum": MIN_OUTLIERS,
        "exclusiveMaximum": 1,
        "default": None,
        "description": "Keep values beyond the quantiles 1 - a and a of the vector exactly, and "
        "quantize the others among them; a such as 0.99; null: no value is kept.",
    },
    "entropy": {
        "type": "boolean",
        "default": False,
        "description": "Entropy code the codes, where that makes the message shorter.",
    },
    "feedback_scale": {
        "type": "boolean",
        "default": False,
        "description": "Divide what methods without bias decode to by 1 + omega, omega their "
        "expected error over the squared norm: a contraction, for error feedback.",
    },
}
_ROUNDING = frozenset(
    {
        *("seed", "world_size", "rank", "shared_seed", "levels"),
        *("outliers", "entropy", "feedback_scale"),
    }
)

_QUANTIZED_KEYS: Json = {
    "v": {"const": WIRE_VERSION, "description": "Version of the message."},
    "method": {"type": "string", "description": "How the levels were chosen."},
    "bits": {"type": "integer", "minimum": MIN_BITS, "maximum": MAX_BITS},
    "num_levels": {"type": "integer", "minimum": MIN_LEVELS, "maximum": MAX_LEVELS},
    "shape": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "maxItems": MAX_DIMENSIONS,
        "description": "Of the vector that was quantized.",
    },
    "dtype": {"type": "string", "enum": list(WIRE_DTYPES)},
    "block_size": {"type": ["integer", "null"], "minimum": 1},
    "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
    "levels": {
        "allOf": [_ref("Tensor")],
        "description": "Ascending; shape [s], or [blocks, s] with a block size; float32 (float64 "
        "for float64 vectors). First and last are the (block's) minimum and maximum. Of `simba`: "
        "shape [level_sets, s].",
    },
    "codes": {
        **_BIN,
        "description": "`bits` per value, least significant bit first, values in order; each block "
        "starts on a byte.",
    },
    "vnmse": {
        "type": "number",
        "minimum": 0,
        "description": "Expected squared error over squared norm, computed, not sampled.",
    },
    "device": {"type": "string", "description": "Where it was computed."},
    "timings_ms": {
        "type": "object",
        "additionalProperties": {"type": "number"},
        "description": "Milliseconds per stage; informative.",
    },
    "level_sets": {
        "type": ["integer", "null"],
        "minimum": MIN_LEVEL_SETS,
        "maximum": MAX_LEVEL_SETS,
        "description": "Of method `simba` only: sets of levels. Which one an element's code points "
        "into follows from `seed`.",
    },
    "parameters": {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["boolean", "number", "string"]},
        "maxProperties": MAX_PARAMETERS,
        "description": "Of a scheme, every one: it alone can read `codes` and `side` then, and "
        "`levels` has shape [s] or [0].",
    },
    "side": {
        "type": ["object", "null"],
        "additionalProperties": {
            "type": "array",
            "prefixItems": [{"type": "string", "enum": list(LEAF_DTYPES)}, _BIN],
            "minItems": 2,
            "maxItems": 2,
        },
        "maxProperties": MAX_SIDE_PARTS,
        "description": "Side information of a scheme by name: type of the numbers, and their "
        "bytes.",
    },
    "wrap": {
        "anyOf": [_ref("Wrap"), {"type": "null"}],
        "description": "What is around the method's own message, where anything is.",
    },
}


def _many(item: Json, what: str) -> Json:
    """A list of items, or a map of them by name."""
    return {
        "description": what,
        "anyOf": [
            {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_BATCH_VECTORS},
            {
                "type": "object",
                "additionalProperties": item,
                "propertyNames": {
                    "minLength": 1,
                    "maxLength": MAX_NAME_BYTES,
                    "description": f"At most {MAX_NAME_BYTES} bytes of UTF-8.",
                },
                "minProperties": 1,
                "maxProperties": MAX_BATCH_VECTORS,
            },
        ],
    }


def _object(description: str, properties: Json, required: Sequence[str]) -> Json:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TENSOR = _object(
    "An array: C order, little-endian.",
    {
        "dtype": {"type": "string", "enum": list(WIRE_DTYPES)},
        "shape": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "maxItems": MAX_DIMENSIONS,
        },
        "data": {**_BIN, "description": "Exactly product(shape) times the item size bytes."},
    },
    ["dtype", "shape", "data"],
)
_STATISTICS = _object(
    "Of blocks of the vectors of any workers: three tensors of one length, at most "
    f"{MAX_STATISTICS}. The answer is a table on [-1, 1] for `levels` of `/quantize`.",
    {
        "means": {**_TENSOR, "description": "Mean of the values over the block's norm."},
        "variances": {**_TENSOR, "description": "Variance of the same."},
        "norms": {**_TENSOR, "description": "Norm of each block; not negative."},
    },
    ["means", "variances", "norms"],
)
_LEVEL_OPTIONS = {name: option for name, option in _OPTIONS.items() if name not in _ROUNDING}
_VECTOR = _array_of("What to quantize; finite, at least one value.")
_WEIGHTS = _array_of("Importance of each value: the vector's shape, not negative; null: equal.")
_WEIGHTS["anyOf"].append({"type": "null"})
_OPTIONAL = {"device", "timings_ms", "level_sets", "parameters", "side", "wrap"}
_WRAP = _object(
    "At least one of: values kept exactly, an entropy coded payload, a scale.",
    {
        "outliers": {
            "anyOf": [
                _object(
                    "Values in place of decoded ones.",
                    {
                        "indices": {
                            **_BIN,
                            "description": "Ascending positions: the first, then each distance "
                            "from the one before less 1, as varints of 7 bits a byte.",
                        },
                        "values": {**_BIN, "description": "Of type `dtype`, one per position."},
                    },
                    ["indices", "values"],
                ),
                {"type": "null"},
            ]
        },
        "entropy": {
            "anyOf": [
                _object(
                    "`codes` is a stream that decodes to the payload.",
                    {
                        "symbols": {
                            "type": "string",
                            "enum": [CODES, BYTES],
                            "description": "Whether codes of `bits` bits are coded, or bytes.",
                        },
                        "size": {
                            "type": "integer",
                            "minimum": 1,
                            "description": "Bytes of the payload.",
                        },
                    },
                    ["symbols", "size"],
                ),
                {"type": "null"},
            ]
        },
        "scale": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "What decoded values, but those kept exactly, are multiplied by.",
        },
    },
    [],
)
_REQUIRED_QUANTIZED = [name for name in _QUANTIZED_KEYS if name not in _OPTIONAL]

COMPONENTS: Json = {
    "Tensor": _TENSOR,
    "Wrap": _WRAP,
    "Options": _object("What may be chosen about one quantization.", _OPTIONS, []),
    "QuantizeRequest": {
        **_object(
            "Body of `/quantize`: one `vector`, or many `vectors`.",
            {
                "vector": _VECTOR,
                **_OPTIONS,
                "weights": _WEIGHTS,
                "vectors": _many(
                    _ref("BatchItem"),
                    "Many vectors, by name or in a list. The options beside it hold for all of "
                    "them, but for those that an item has itself; a `seed` gives each vector a "
                    "seed of its own, derived from it and the vector's position, and so does a "
                    "`shared_seed`.",
                ),
            },
            [],
        ),
        "oneOf": [
            {"required": ["vector"]},
            {"required": ["vectors"], "properties": {"weights": {"type": "null"}}},
        ],
    },
    "BatchItem": {
        "description": "A vector, or a map of a vector, its weights and options of its own.",
        "anyOf": [_ref("Tensor"), _BIN, _NUMBERS, _ref("VectorRequest")],
    },
    "VectorRequest": _object(
        "A vector with options of its own. `bits` or `num_levels` replaces either.",
        {"vector": _VECTOR, **_OPTIONS, "weights": _WEIGHTS},
        ["vector"],
    ),
    "LevelsRequest": {
        **_object(
            "Body of `/levels`: that of `/quantize` without what is about rounding; or `sketches` "
            "of vectors, with `bits` or `num_levels`, and `granularity`; or `statistics` of blocks "
            "with the same, `method` (`alq` or `amq`) and its `parameters`.",
            {
                "vector": _array_of("What to choose levels for; finite, at least one value."),
                **_LEVEL_OPTIONS,
                "weights": _WEIGHTS,
                "sketches": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_SKETCHES,
                    "items": _BIN,
                    "description": "Messages of `quiver_kernels.Sketch`, of one type and number of "
                    f"cells, at most {MAX_SKETCH_ROWS} rows together: one table for all vectors.",
                },
                "granularity": {
                    "anyOf": [
                        {
                            "type": "integer",
                            "minimum": MIN_GRANULARITY,
                            "maximum": MAX_GRANULARITY,
                        },
                        {"const": AUTO},
                        {"type": "null"},
                    ],
                    "default": None,
                    "description": "With `sketches`: levels that are integers times a power of "
                    "two, at most so many steps apart; `auto`: as few as lose less than 1 %. Codes "
                    "of such levels add up without decoding. null: no grid.",
                },
                "statistics": _STATISTICS,
            },
            [],
        ),
        "oneOf": [{"required": [name]} for name in ("vector", "sketches", "statistics")],
    },
    "QuantizedVector": _object(
        "Self-contained and storable; what `/dequantize` and `/aggregate` take.",
        _QUANTIZED_KEYS,
        _REQUIRED_QUANTIZED,
    ),
    "QuantizedBatch": _object(
        "Answer of `/quantize` for many vectors: a list for a list, a map for a map, in the "
        "order sent.",
        {
            "v": {"const": WIRE_VERSION, "description": "Version of the message."},
            "vectors": _many(_ref("QuantizedVector"), "Each as if it had been sent alone."),
        },
        ["v", "vectors"],
    ),
    "LevelsResult": _object(
        "Answer of `/levels`.",
        {
            "levels": _ref("Tensor"),
            "num_levels": {"type": "integer"},
            "method": {"type": "string"},
            "expected_mse": {
                "type": "number",
                "description": "The objective over the number of values (weighted if weights "
                "were given).",
            },
            "vnmse": {
                "type": "number",
                "description": "Expected squared error over squared norm, unweighted.",
            },
            "device": {"type": "string"},
        },
        ["levels", "num_levels", "method", "expected_mse", "vnmse", "device"],
    ),
    "Tree": _object(
        "A model's state as named leaves, quantized or as they are (docs/wire-format.md).",
        {
            "v": {"const": WIRE_VERSION, "description": "Version of the message."},
            "kind": {"const": "tree"},
            "groups": {"type": "array", "items": _ref("TreeGroup")},
            "order": {
                "anyOf": [_BIN, {"type": "null"}],
                "description": "Position of each leaf in the original tree, groups read one after "
                "the other: little-endian unsigned 32-bit. Absent: as they stand.",
            },
            "structure": {
                "description": "How leaves are nested: a leaf's position, or a map of one entry, "
                '`{"dict": {key: node}}`, `{"list": [node]}` or `{"tuple": [node]}`; null: a flat '
                f"map of names. At most {MAX_STRUCTURE_DEPTH} deep.",
                "anyOf": [{"type": "object"}, {"type": "integer"}, {"type": "null"}],
            },
            "tag": {"anyOf": [_ref("TreeTag"), {"type": "null"}]},
        },
        ["v", "kind", "groups"],
    ),
    "TreeGroup": _object(
        "Leaves of one type, one after the other in a stream that is cut into sections.",
        {
            "dtype": {"type": "string", "enum": list(LEAF_DTYPES)},
            "names": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_LEAVES,
                "items": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_LEAF_NAME_BYTES,
                    "description": f"At most {MAX_LEAF_NAME_BYTES} bytes of UTF-8.",
                },
            },
            "shapes": {
                "type": "array",
                "items": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "maxItems": MAX_DIMENSIONS,
                },
            },
            "sections": {
                "type": "array",
                "maxItems": MAX_SECTIONS,
                "description": "A `bin` of values, little-endian; or a quantized vector of one "
                "dimension. Their sizes add up to those of the leaves.",
                "items": {"anyOf": [_BIN, _ref("TreeSection")]},
            },
        },
        ["dtype", "names", "shapes", "sections"],
    ),
    "TreeSection": _object(
        "A quantized vector, and values of it that are kept exactly.",
        {
            "vector": _ref("QuantizedVector"),
            "outliers": {"anyOf": [_ref("TreeOutliers"), {"type": "null"}]},
        },
        ["vector"],
    ),
    "TreeOutliers": _object(
        "Values in place of what their codes say.",
        {
            "indices": {
                **_BIN,
                "description": "Ascending positions: the first, then each distance less 1, in "
                "groups of 7 bits, least significant first, the high bit set on all but the last.",
            },
            "values": {**_BIN, "description": "In the group's type, little-endian."},
        },
        ["indices", "values"],
    ),
    "TreeTag": _object(
        "Who sends a tree, and on what it is based.",
        {
            "round": {"type": ["integer", "null"], "minimum": 0},
            "model_version": {"type": ["integer", "null"], "minimum": 0},
            "client": {"type": ["string", "null"], "maxLength": MAX_CLIENT_BYTES},
            "weight": {"type": ["number", "null"], "minimum": 0},
        },
        [],
    ),
    "Requantize": _object(
        "Options of the mean; `min_size` for trees alone.",
        {
            **_OPTIONS,
            "min_size": {
                "type": "integer",
                "minimum": 1,
                "default": DEFAULT_MIN_SIZE,
                "description": "Floating leaves of fewer values stay as they are.",
            },
        },
        [],
    ),
    "AggregateRequest": {
        **_object(
            "Body of `/aggregate`: `vectors`, or `trees`.",
            {
                "trees": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_AGGREGATE_TREES,
                    "description": "Trees of the same leaves: nested maps, or each message as a "
                    "`bin`. Their mean is exact and rounded once, whatever their order.",
                    "items": {"anyOf": [_ref("Tree"), _BIN]},
                },
                "vectors": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_AGGREGATE_VECTORS,
                    "description": "Quantized vectors of one shape: nested maps, or each message "
                    "as a `bin`.",
                    "items": {"anyOf": [_ref("QuantizedVector"), _BIN]},
                },
                "weights": {
                    "type": ["array", "null"],
                    "items": {"type": "number", "minimum": 0},
                    "description": "One per vector or tree, not all zero; null: equal, or those of "
                    "the trees' tags.",
                },
                "quantize": {
                    "anyOf": [_ref("Requantize"), {"type": "null"}],
                    "description": "Quantize the mean again with these options.",
                },
            },
            [],
        ),
        "oneOf": [{"required": ["vectors"]}, {"required": ["trees"]}],
    },
    "PlanRequest": _object(
        "Body of `/plan`: vectors, candidates, and at most one of three budgets.",
        {
            "vectors": {
                "type": "object",
                "additionalProperties": _array_of("Finite, at least one value."),
                "propertyNames": {"minLength": 1, "maxLength": MAX_NAME_BYTES},
                "minProperties": 1,
                "maxProperties": MAX_BATCH_VECTORS,
            },
            "bits": {
                "type": "array",
                "items": {"type": "integer", "minimum": MIN_BITS, "maximum": MAX_BITS},
                "minItems": 1,
                "uniqueItems": True,
                "description": "Candidates, each with all `methods`; default: all.",
            },
            "methods": {
                "type": "array",
                "items": {"type": "string", "enum": list(BUILT_IN)},
                "minItems": 1,
                "uniqueItems": True,
                "default": ["exact"],
            },
            **{name: _OPTIONS[name] for name in ("bins", "grid", "block_size", "device")},
            "raw": {
                "type": "boolean",
                "default": True,
                "description": "Whether sending a vector as it is is a candidate too.",
            },
            "max_bytes": {
                "type": ["integer", "null"],
                "minimum": 0,
                "description": "Bytes of codes and levels of all vectors.",
            },
            "bits_per_value": {
                "type": ["number", "null"],
                "minimum": 0,
                "description": "The same, in bits per value.",
            },
            "max_error": {
                "type": ["number", "null"],
                "minimum": 0,
                "description": "Sum of expected squared errors; bytes are minimised then.",
            },
        },
        ["vectors"],
    ),
    "ErrorCurve": _object(
        "What a vector costs, candidate by candidate: four columns of one length.",
        {
            "size": {"type": "integer"},
            "dtype": {"type": "string", "enum": list(WIRE_DTYPES)},
            "bits": {"type": "array", "items": {"type": ["integer", "null"]}},
            "methods": {"type": "array", "items": {"type": ["string", "null"]}},
            "nbytes": {"type": "array", "items": {"type": "integer"}},
            "errors": {
                "type": "array",
                "items": {"type": "number"},
                "description": "Expected squared errors, computed from all values.",
            },
        },
        ["size", "dtype", "bits", "methods", "nbytes", "errors"],
    ),
    "Plan": _object(
        "Answer of `/plan`.",
        {
            "v": {"const": WIRE_VERSION, "description": "Version of the message."},
            "curves": {"type": "object", "additionalProperties": _ref("ErrorCurve")},
            "chosen": {
                "type": "object",
                "additionalProperties": {"type": "integer", "minimum": 0},
                "description": "Position in each curve's columns; empty without a budget.",
            },
            "nbytes": {"type": "integer"},
            "error": {"type": "number"},
            "bound": {
                "type": "number",
                "description": "No choice is better than this in what was minimised.",
            },
            "optimal": {"type": "boolean", "description": "Whether the choice is proved best."},
        },
        ["v", "curves", "chosen", "nbytes", "error", "bound", "optimal"],
    ),
    "Problem": {
        "type": "object",
        "description": "RFC 9457 problem document.",
        "properties": {
            "type": {"type": "string", "description": "`urn:quiver:problem:` and the code."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {
                "type": "string",
                "description": "Names the field, the limit and what was got.",
            },
            "instance": {"type": "string", "description": "`urn:quiver:request:` and the id."},
            "code": {
                "type": "string",
                "description": "Stable. Known: " + ", ".join(f"`{code}`" for code in ERROR_KINDS),
            },
            "request_id": {"type": "string", "description": "Also in `X-Request-ID`."},
            "field": {"type": "string", "description": "What is wrong, if one thing is."},
            "limit": {"description": "The limit that was broken."},
            "got": {"description": "The value that broke it."},
            "setting": {"type": "string", "description": "Environment name that sets the limit."},
            "retry_after_seconds": {"type": "integer", "description": "As in `Retry-After`."},
        },
        "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    },
    "Readiness": {
        "type": "object",
        "properties": {
            "status": {"type": "string", "enum": ["ready", "unavailable"]},
            "reasons": {"type": "array", "items": {"type": "string"}},
            "checks": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["status"],
    },
    "Info": {
        "type": "object",
        "properties": {
            "name": {"const": "quiver"},
            "version": {"type": "string"},
            "wire_version": {"type": "integer"},
            "methods": {"type": "array", "items": {"type": "string"}},
            "schemes": {"type": "array", "items": _ref("Scheme")},
            "grids": {"type": "array", "items": {"type": "string"}},
            "dtypes": {"type": "array", "items": {"type": "string"}},
            "leaf_dtypes": {"type": "array", "items": {"type": "string"}},
            "devices": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "dispatch": _ref("Dispatch"),
            "media_types": {"type": "array", "items": {"type": "string"}},
            "bits": _ref("Range"),
            "num_levels": _ref("Range"),
            "bins": _ref("Range"),
            "level_sets": _ref("Range"),
            "limits": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "defaults": {"type": "object"},
        },
    },
    "Scheme": {
        "type": "object",
        "description": "A method: what may be chosen of it, what it sends, and what holds then.",
        "properties": {
            "name": {"type": "string"},
            "summary": {"type": "string"},
            "source": {"type": "string"},
            "rounding": {"type": "string"},
            "side_information": {"type": "string"},
            "num_levels": {"type": "array", "items": {"type": "integer"}},
            "default_num_levels": {"type": "integer"},
            "parameters": {"type": "array", "items": _ref("SchemeParameter")},
            "promises": {
                "type": "object",
                "additionalProperties": {"type": "boolean"},
                "description": "With the defaults: `unbiased`, `contraction`, `additive`, "
                "`deterministic`, `streaming`.",
            },
        },
    },
    "SchemeParameter": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "meaning": {"type": "string"},
            "default": {"type": ["boolean", "number", "string"]},
            "choices": {"type": "array", "items": {"type": "string"}},
            "min": {"type": ["number", "null"]},
            "max": {"type": ["number", "null"]},
        },
    },
    "Dispatch": {
        "type": "object",
        "description": "What `auto` means here.",
        "properties": {
            "device": {"type": "string", "enum": ["auto", "cpu", "gpu"]},
            "lanes": {
                "type": "array",
                "description": "GPUs, each used by one request at a time.",
                "items": {
                    "type": "object",
                    "properties": {
                        "number": {"type": "integer"},
                        "card": {"type": "string"},
                        "memory_bytes": {
                            "type": ["integer", "null"],
                            "description": "What requests may hold on it.",
                        },
                        "up": {"type": "boolean"},
                    },
                },
            },
            "costs": {
                "type": ["object", "null"],
                "description": "Measured at the start, for each operation and size of a value; "
                "`break_even` is the fewest values that go to an idle GPU.",
            },
        },
    },
    "Range": {
        "type": "object",
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}},
        "required": ["min", "max"],
    },
}

_ERROR_TEXTS: Mapping[int, str] = {
    400: "Malformed: not one well-formed message, duplicate keys, trailing bytes.",
    401: "A key is asked for and none, or a wrong one, was given.",
    408: "The upload stalled or was too slow.",
    411: "No Content-Length (chunked transfer is not taken).",
    413: "Body, answer or memory needed is beyond a limit; never retry.",
    415: "Media type or content encoding not supported.",
    422: "Well-formed but invalid: unknown or missing key, option out of range, wrong size, "
    "NaN or infinity, device not available.",
    429: "A client's quota is used up; retry after `Retry-After`.",
    431: "The head of the request is too large.",
    500: "A fault of the service.",
    503: "Busy, starting or shutting down; retry after `Retry-After`.",
    504: "The deadline of the service passed.",
}
_EXAMPLE_TENSOR = {"dtype": "float32", "shape": [4], "data": "AAAAAAAAgD8AAABAAABAQA=="}
# One block: mean 0, variance 0.25, norm 2.
_EXAMPLE_STATISTICS = {
    name: {"dtype": "float32", "shape": [1], "data": data}
    for name, data in (("means", "AAAAAA=="), ("variances", "AACAPg=="), ("norms", "AAAAQA=="))
}
_EXAMPLE_SKETCH = (
    "jaF2AaRraW5kpnNrZXRjaKVkdHlwZadmbG9hdDMypWNlbGxzBKhleHBvbmVudACkcm93cwSlZmlyc3QApXN0ZXBzxAaA"
    "P4AAQACnbmVhcmVzdMQEAAAAAKVzcGFuc8QEAAAAAKZjb3VudHPEBAEBAQGld2hvbGXEBAAAAACkcGFydMQEAAAAAA=="
)
_EXAMPLE_QUANTIZED = {
    "v": 1,
    "method": "exact",
    "bits": 2,
    "num_levels": 4,
    "shape": [4],
    "dtype": "float32",
    "block_size": None,
    "seed": 7,
    "vnmse": 0.0,
    "device": "cpu",
    "timings_ms": {"queue": 0.02},
    "levels": _EXAMPLE_TENSOR,
    "codes": "5A==",
}


_EXAMPLE_TREE = {
    "v": 1,
    "kind": "tree",
    "groups": [
        {
            "dtype": "float32",
            "names": ["weight"],
            "shapes": [[2, 2]],
            "sections": [{"vector": _EXAMPLE_QUANTIZED}],
        },
        {"dtype": "int64", "names": ["steps"], "shapes": [[]], "sections": ["BwAAAAAAAAA="]},
    ],
    "tag": {"round": 3, "client": "a", "weight": 2.0},
}
_EXAMPLE_MANY = {
    "vectors": {"weight": _EXAMPLE_TENSOR, "bias": {"vector": _EXAMPLE_TENSOR, "bits": 8}},
    "bits": 2,
    "seed": 7,
}


def _example(text: str, value: Json, **more: Json) -> Json:
    """An example, and others by name, each a summary and a value."""
    return {"example": {"summary": text, "value": value}, **more}


def _messages(schema: Json, examples: Json) -> Json:
    return {name: {"schema": schema, "examples": examples} for name in MEDIA_TYPES}


def _body(content: Json) -> Json:
    return {"requestBody": {"required": True, "content": content}}


def _answer(description: str, schema: Json, examples: Json) -> Json:
    entry = {"schema": schema, "examples": examples}
    return {
        "description": f"{description} JSON only if `Accept` names it (small answers).",
        "content": {MEDIA_TYPES[0]: entry, JSON: entry},
        "headers": {"X-Request-ID": {"schema": {"type": "string"}}},
    }


def _problem(status: int, text: str) -> Json:
    schema = {"schema": _ref("Problem")}
    headers: Json = {"X-Request-ID": {"schema": {"type": "string"}}}
    if status in {429, 503}:
        headers["Retry-After"] = {"schema": {"type": "integer"}}
    return {
        "description": text,
        "content": {PROBLEM_JSON: schema, MEDIA_TYPES[0]: schema},
        "headers": headers,
    }


def _operation(body: Json, answer: Json, *, parameters: Sequence[Json] = ()) -> Json:
    extra: Json = dict(body)
    if parameters:
        extra["parameters"] = list(parameters)
    responses: dict[int | str, Json] = {200: answer}
    responses.update({status: _problem(status, text) for status, text in _ERROR_TEXTS.items()})
    return {"tags": ["operations"], "responses": responses, "openapi_extra": extra}


def _probe(responses: dict[int | str, Json], *, verbose: bool = False) -> Json:
    parameter = {
        "name": "verbose",
        "in": "query",
        "required": False,
        "allowEmptyValue": True,
        "schema": {"type": "string"},
        "description": "If present, every check is listed.",
    }
    return {
        "tags": ["operators"],
        "responses": responses,
        "openapi_extra": {"parameters": [parameter]} if verbose else {},
    }


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _in_query(option: Json) -> Json:
    """An option as a query string has it: there is no null there."""
    if not isinstance(option["type"], list):
        return option
    kind, _ = option["type"]
    return {name: item for name, item in option.items() if item is not None} | {"type": kind}


def _style(option: Json) -> Json:
    """How a map stands in a query string: ``parameters[scale]=mean``."""
    return {"style": "deepObject", "explode": True} if option["type"] == "object" else {}


_RAW_PARAMETERS = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": _in_query(schema),
        **_style(schema),
        "description": f"Only with `{OCTETS}`: {schema['description']}",
    }
    for name, schema in _OPTIONS.items()
    if name != "levels"
]

QUANTIZE = _operation(
    _body(
        {
            **_messages(
                _ref("QuantizeRequest"),
                _example(
                    "Four values, 2 bits",
                    {"vector": _EXAMPLE_TENSOR, "bits": 2, "seed": 7},
                    many={"summary": "Two vectors by name", "value": _EXAMPLE_MANY},
                ),
            ),
            JSON: {
                "schema": _ref("QuantizeRequest"),
                "examples": _example(
                    "A short list",
                    {"vector": [0.0, 1.0, 2.0, 3.0], "bits": 2, "seed": 7},
                    many={
                        "summary": "Two short lists",
                        "value": {"vectors": [[0.0, 1.0], [2.0, 3.0, 4.0]], "bits": 2, "seed": 7},
                    },
                ),
            },
            OCTETS: {
                "schema": {
                    **_BIN,
                    "description": "Little-endian float32 values; options in the query string.",
                }
            },
        }
    ),
    _answer(
        "The quantized vector; or those of many `vectors`.",
        {"anyOf": [_ref("QuantizedVector"), _ref("QuantizedBatch")]},
        _example(
            "Four values, 2 bits",
            _EXAMPLE_QUANTIZED,
            many={
                "summary": "Two vectors by name",
                "value": {
                    "v": 1,
                    "vectors": {"weight": _EXAMPLE_QUANTIZED, "bias": _EXAMPLE_QUANTIZED},
                },
            },
        ),
    ),
    parameters=_RAW_PARAMETERS,
)
DEQUANTIZE = _operation(
    _body(_messages(_ref("QuantizedVector"), _example("Four values", _EXAMPLE_QUANTIZED))),
    _answer("The decoded vector.", _ref("Tensor"), _example("Four values", _EXAMPLE_TENSOR)),
)
LEVELS = _operation(
    _body(
        _messages(
            _ref("LevelsRequest"),
            _example(
                "Four values, 2 bits",
                {"vector": _EXAMPLE_TENSOR, "bits": 2},
                sketches={
                    "summary": "Sketches of two shards, levels on an integer grid",
                    "value": {"sketches": [_EXAMPLE_SKETCH] * 2, "bits": 2, "granularity": AUTO},
                },
                statistics={
                    "summary": "Statistics of a block, a table of alq",
                    "value": {"statistics": _EXAMPLE_STATISTICS, "bits": 2, "method": "alq"},
                },
            ),
        )
    ),
    _answer(
        "The level table(s) and their expected error; from sketches, whose method is `sketch`, an "
        "upper bound of it; from statistics, that of the model.",
        _ref("LevelsResult"),
        _example(
            "Four values, 2 bits",
            {
                "levels": _EXAMPLE_TENSOR,
                "num_levels": 4,
                "method": "exact",
                "expected_mse": 0.0,
                "vnmse": 0.0,
                "device": "cpu",
            },
        ),
    ),
)
AGGREGATE = _operation(
    _body(
        _messages(
            _ref("AggregateRequest"),
            _example(
                "Two vectors, weighted",
                {"vectors": [_EXAMPLE_QUANTIZED, _EXAMPLE_QUANTIZED], "weights": [1.0, 3.0]},
                trees={"summary": "One tree", "value": {"trees": [_EXAMPLE_TREE]}},
            ),
        )
    ),
    _answer(
        "The mean: a tensor, or a quantized vector if `quantize` was given; of trees a tree.",
        {"anyOf": [_ref("Tensor"), _ref("QuantizedVector"), _ref("Tree")]},
        _example("Four values", _EXAMPLE_TENSOR),
    ),
)

PLAN = _operation(
    _body(
        _messages(
            _ref("PlanRequest"),
            _example(
                "Two vectors in 48 bits per value",
                {
                    "vectors": {"weight": _EXAMPLE_TENSOR, "bias": _EXAMPLE_TENSOR},
                    "bits": [1, 2],
                    "bits_per_value": 48,
                },
            ),
        )
    ),
    _answer(
        "Error curves, and a candidate for each vector if there was a budget.",
        _ref("Plan"),
        _example(
            "One vector",
            {
                "v": 1,
                "curves": {
                    "weight": {
                        "size": 4,
                        "dtype": "float32",
                        "bits": [1, None],
                        "methods": ["exact", None],
                        "nbytes": [9, 16],
                        "errors": [4.0, 0.0],
                    }
                },
                "chosen": {"weight": 0},
                "nbytes": 9,
                "error": 4.0,
                "bound": 4.0,
                "optimal": True,
            },
        ),
    ),
)

_ALIVE = {"type": "object", "properties": {"status": {"const": "alive"}}}
_READINESS: dict[int | str, Json] = {
    200: _json("Ready.", _ref("Readiness")),
    503: _json("Starting, shutting down or exhausted; the reasons are listed.", _ref("Readiness")),
}
LIVEZ = _probe({200: _json("The process answers.", _ALIVE)})
READYZ = _probe(_READINESS, verbose=True)
HEALTHZ = {**_probe(_READINESS, verbose=True), "operation_id": "healthz", "summary": "As /readyz"}
METRICS = _probe(
    {
        200: {
            "description": "Prometheus text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
)
INFO = _probe({200: _json("Versions, limits, defaults.", _ref("Info"))})


_OPERATIONS: Mapping[str, Json] = {
    "/quantize": QUANTIZE,
    "/dequantize": DEQUANTIZE,
    "/levels": LEVELS,
    "/aggregate": AGGREGATE,
    "/plan": PLAN,
}


def _restore(path: str, operation: Json) -> None:
    """Put bodies back as they are stated here: FastAPI drops every null, of examples too."""
    stated = _OPERATIONS[path]
    operation["requestBody"] = stated["openapi_extra"]["requestBody"]
    operation["responses"]["200"]["content"] = stated["responses"][200]["content"]


def complete(document: Json) -> Json:
    """Add the shared schemas to the document that FastAPI made, and tidy what it guessed."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(COMPONENTS)
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "Only where the service was started with keys.",
        }
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method == "post":
                _restore(path, operation)
                operation["security"] = [{}, {"key": []}]
                # FastAPI assumes that every answer may be JSON of any form.
                operation["responses"].pop("default", None)
    return document
