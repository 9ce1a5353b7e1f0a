"""The schemas that bodies and answers share, by name."""

from __future__ import annotations

from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.options import (
    MAX_BITS,
    MAX_GRANULARITY,
    MAX_LEVEL_SETS,
    MAX_LEVELS,
    MAX_SEED,
    MIN_BITS,
    MIN_GRANULARITY,
    MIN_LEVEL_SETS,
    MIN_LEVELS,
)
from quiver_kernels.quantized import WIRE_VERSION
from quiver_kernels.schemes.contract import MAX_PARAMETERS, MAX_SIDE_PARTS
from quiver_kernels.schemes.registry import BUILT_IN
from quiver_kernels.statisticswire import MAX_STATISTICS
from quiver_kernels.structure import MAX_STRUCTURE_DEPTH
from quiver_kernels.tensors import MAX_DIMENSIONS
from quiver_kernels.tree import MAX_CLIENT_BYTES, MAX_LEAF_NAME_BYTES, MAX_LEAVES, MAX_SECTIONS
from quiver_kernels.treerequest import DEFAULT_MIN_SIZE, MAX_AGGREGATE_TREES
from quiver_kernels.wire import (
    AUTO,
    MAX_AGGREGATE_VECTORS,
    MAX_BATCH_VECTORS,
    MAX_NAME_BYTES,
    MAX_SKETCH_ROWS,
    MAX_SKETCHES,
)
from quiver_kernels.wrapping.parts import BYTES, CODES
from quiver_service.errors import ERROR_KINDS
from quiver_service.openapi.options import LEVEL_OPTIONS, OPTIONS
from quiver_service.openapi.parts import BIN, NUMBERS, Json, array_of, closed_object, many, ref

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
        "allOf": [ref("Tensor")],
        "description": "Ascending; shape [s], or [blocks, s] with a block size; float32 (float64 "
        "for float64 vectors). First and last are the (block's) minimum and maximum. Of `simba`: "
        "shape [level_sets, s].",
    },
    "codes": {
        **BIN,
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
            "prefixItems": [{"type": "string", "enum": list(LEAF_DTYPES)}, BIN],
            "minItems": 2,
            "maxItems": 2,
        },
        "maxProperties": MAX_SIDE_PARTS,
        "description": "Side information of a scheme by name: type of the numbers, and their "
        "bytes.",
    },
    "wrap": {
        "anyOf": [ref("Wrap"), {"type": "null"}],
        "description": "What is around the method's own message, where anything is.",
    },
}


_TENSOR = closed_object(
    "An array: C order, little-endian.",
    {
        "dtype": {"type": "string", "enum": list(WIRE_DTYPES)},
        "shape": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "maxItems": MAX_DIMENSIONS,
        },
        "data": {**BIN, "description": "Exactly product(shape) times the item size bytes."},
    },
    ["dtype", "shape", "data"],
)
_STATISTICS = closed_object(
    "Of blocks of the vectors of any workers: three tensors of one length, at most "
    f"{MAX_STATISTICS}. The answer is a table on [-1, 1] for `levels` of `/quantize`.",
    {
        "means": {**_TENSOR, "description": "Mean of the values over the block's norm."},
        "variances": {**_TENSOR, "description": "Variance of the same."},
        "norms": {**_TENSOR, "description": "Norm of each block; not negative."},
    },
    ["means", "variances", "norms"],
)
_VECTOR = array_of("What to quantize; finite, at least one value.")
_WEIGHTS = array_of("Importance of each value: the vector's shape, not negative; null: equal.")
_WEIGHTS["anyOf"].append({"type": "null"})
_OPTIONAL = {"device", "timings_ms", "level_sets", "parameters", "side", "wrap"}
_WRAP = closed_object(
    "At least one of: values kept exactly, an entropy coded payload, a scale.",
    {
        "outliers": {
            "anyOf": [
                closed_object(
                    "Values in place of decoded ones.",
                    {
                        "indices": {
                            **BIN,
                            "description": "Ascending positions: the first, then each distance "
                            "from the one before less 1, as varints of 7 bits a byte.",
                        },
                        "values": {**BIN, "description": "Of type `dtype`, one per position."},
                    },
                    ["indices", "values"],
                ),
                {"type": "null"},
            ]
        },
        "entropy": {
            "anyOf": [
                closed_object(
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
    "Options": closed_object("What may be chosen about one quantization.", OPTIONS, []),
    "QuantizeRequest": {
        **closed_object(
            "Body of `/quantize`: one `vector`, or many `vectors`.",
            {
                "vector": _VECTOR,
                **OPTIONS,
                "weights": _WEIGHTS,
                "vectors": many(
                    ref("BatchItem"),
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
        "anyOf": [ref("Tensor"), BIN, NUMBERS, ref("VectorRequest")],
    },
    "VectorRequest": closed_object(
        "A vector with options of its own. `bits` or `num_levels` replaces either.",
        {"vector": _VECTOR, **OPTIONS, "weights": _WEIGHTS},
        ["vector"],
    ),
    "LevelsRequest": {
        **closed_object(
            "Body of `/levels`: that of `/quantize` without what is about rounding; or `sketches` "
            "of vectors, with `bits` or `num_levels`, and `granularity`; or `statistics` of blocks "
            "with the same, `method` (`alq` or `amq`) and its `parameters`.",
            {
                "vector": array_of("What to choose levels for; finite, at least one value."),
                **LEVEL_OPTIONS,
                "weights": _WEIGHTS,
                "sketches": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_SKETCHES,
                    "items": BIN,
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
    "QuantizedVector": closed_object(
        "Self-contained and storable; what `/dequantize` and `/aggregate` take.",
        _QUANTIZED_KEYS,
        _REQUIRED_QUANTIZED,
    ),
    "QuantizedBatch": closed_object(
        "Answer of `/quantize` for many vectors: a list for a list, a map for a map, in the "
        "order sent.",
        {
            "v": {"const": WIRE_VERSION, "description": "Version of the message."},
            "vectors": many(ref("QuantizedVector"), "Each as if it had been sent alone."),
        },
        ["v", "vectors"],
    ),
    "LevelsResult": closed_object(
        "Answer of `/levels`.",
        {
            "levels": ref("Tensor"),
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
    "Tree": closed_object(
        "A model's state as named leaves, quantized or as they are (docs/wire-format.md).",
        {
            "v": {"const": WIRE_VERSION, "description": "Version of the message."},
            "kind": {"const": "tree"},
            "groups": {"type": "array", "items": ref("TreeGroup")},
            "order": {
                "anyOf": [BIN, {"type": "null"}],
                "description": "Position of each leaf in the original tree, groups read one after "
                "the other: little-endian unsigned 32-bit. Absent: as they stand.",
            },
            "structure": {
                "description": "How leaves are nested: a leaf's position, or a map of one entry, "
                '`{"dict": {key: node}}`, `{"list": [node]}` or `{"tuple": [node]}`; null: a flat '
                f"map of names. At most {MAX_STRUCTURE_DEPTH} deep.",
                "anyOf": [{"type": "object"}, {"type": "integer"}, {"type": "null"}],
            },
            "tag": {"anyOf": [ref("TreeTag"), {"type": "null"}]},
        },
        ["v", "kind", "groups"],
    ),
    "TreeGroup": closed_object(
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
                "items": {"anyOf": [BIN, ref("TreeSection")]},
            },
        },
        ["dtype", "names", "shapes", "sections"],
    ),
    "TreeSection": closed_object(
        "A quantized vector, and values of it that are kept exactly.",
        {
            "vector": ref("QuantizedVector"),
            "outliers": {"anyOf": [ref("TreeOutliers"), {"type": "null"}]},
        },
        ["vector"],
    ),
    "TreeOutliers": closed_object(
        "Values in place of what their codes say.",
        {
            "indices": {
                **BIN,
                "description": "Ascending positions: the first, then each distance less 1, in "
                "groups of 7 bits, least significant first, the high bit set on all but the last.",
            },
            "values": {**BIN, "description": "In the group's type, little-endian."},
        },
        ["indices", "values"],
    ),
    "TreeTag": closed_object(
        "Who sends a tree, and on what it is based.",
        {
            "round": {"type": ["integer", "null"], "minimum": 0},
            "model_version": {"type": ["integer", "null"], "minimum": 0},
            "client": {"type": ["string", "null"], "maxLength": MAX_CLIENT_BYTES},
            "weight": {"type": ["number", "null"], "minimum": 0},
        },
        [],
    ),
    "Requantize": closed_object(
        "Options of the mean; `min_size` for trees alone.",
        {
            **OPTIONS,
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
        **closed_object(
            "Body of `/aggregate`: `vectors`, or `trees`.",
            {
                "trees": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_AGGREGATE_TREES,
                    "description": "Trees of the same leaves: nested maps, or each message as a "
                    "`bin`. Their mean is exact and rounded once, whatever their order.",
                    "items": {"anyOf": [ref("Tree"), BIN]},
                },
                "vectors": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_AGGREGATE_VECTORS,
                    "description": "Quantized vectors of one shape: nested maps, or each message "
                    "as a `bin`.",
                    "items": {"anyOf": [ref("QuantizedVector"), BIN]},
                },
                "weights": {
                    "type": ["array", "null"],
                    "items": {"type": "number", "minimum": 0},
                    "description": "One per vector or tree, not all zero; null: equal, or those of "
                    "the trees' tags.",
                },
                "quantize": {
                    "anyOf": [ref("Requantize"), {"type": "null"}],
                    "description": "Quantize the mean again with these options.",
                },
            },
            [],
        ),
        "oneOf": [{"required": ["vectors"]}, {"required": ["trees"]}],
    },
    "PlanRequest": closed_object(
        "Body of `/plan`: vectors, candidates, and at most one of three budgets.",
        {
            "vectors": {
                "type": "object",
                "additionalProperties": array_of("Finite, at least one value."),
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
            **{name: OPTIONS[name] for name in ("bins", "grid", "block_size", "device")},
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
    "ErrorCurve": closed_object(
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
    "Plan": closed_object(
        "Answer of `/plan`.",
        {
            "v": {"const": WIRE_VERSION, "description": "Version of the message."},
            "curves": {"type": "object", "additionalProperties": ref("ErrorCurve")},
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
            "schemes": {"type": "array", "items": ref("Scheme")},
            "grids": {"type": "array", "items": {"type": "string"}},
            "dtypes": {"type": "array", "items": {"type": "string"}},
            "leaf_dtypes": {"type": "array", "items": {"type": "string"}},
            "devices": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "dispatch": ref("Dispatch"),
            "media_types": {"type": "array", "items": {"type": "string"}},
            "bits": ref("Range"),
            "num_levels": ref("Range"),
            "bins": ref("Range"),
            "level_sets": ref("Range"),
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
            "parameters": {"type": "array", "items": ref("SchemeParameter")},
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
