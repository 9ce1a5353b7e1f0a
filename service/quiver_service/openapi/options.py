"""The options of a request, as keys of a message or in a query string."""

from __future__ import annotations

from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_BITS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    DEVICES,
    GRIDS,
    MAX_BINS,
    MAX_BITS,
    MAX_LEVEL_SETS,
    MAX_LEVELS,
    MAX_SEED,
    MAX_WORLD_SIZE,
    MIN_BINS,
    MIN_BITS,
    MIN_LEVEL_SETS,
    MIN_LEVELS,
    MIN_OUTLIERS,
)
from quiver_kernels.schemes.contract import MAX_PARAMETERS
from quiver_kernels.schemes.registry import BUILT_IN
from quiver_service.openapi.parts import Json, ref

OPTIONS: Json = {
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
        "anyOf": [ref("Tensor"), {"type": "null"}],
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

LEVEL_OPTIONS = {name: option for name, option in OPTIONS.items() if name not in _ROUNDING}
