"""Every route: its bodies, answers and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quiver_kernels.wire import AUTO, MEDIA_TYPES
from quiver_service.negotiation import JSON, OCTETS, PROBLEM_JSON
from quiver_service.openapi import examples
from quiver_service.openapi.options import OPTIONS
from quiver_service.openapi.parts import BIN, Json, ref

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
    schema = {"schema": ref("Problem")}
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
    for name, schema in OPTIONS.items()
    if name != "levels"
]

QUANTIZE = _operation(
    _body(
        {
            **_messages(
                ref("QuantizeRequest"),
                _example(
                    "Four values, 2 bits",
                    {"vector": examples.TENSOR, "bits": 2, "seed": 7},
                    many={"summary": "Two vectors by name", "value": examples.MANY},
                ),
            ),
            JSON: {
                "schema": ref("QuantizeRequest"),
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
                    **BIN,
                    "description": "Little-endian float32 values; options in the query string.",
                }
            },
        }
    ),
    _answer(
        "The quantized vector; or those of many `vectors`.",
        {"anyOf": [ref("QuantizedVector"), ref("QuantizedBatch")]},
        _example(
            "Four values, 2 bits",
            examples.QUANTIZED,
            many={
                "summary": "Two vectors by name",
                "value": {
                    "v": 1,
                    "vectors": {"weight": examples.QUANTIZED, "bias": examples.QUANTIZED},
                },
            },
        ),
    ),
    parameters=_RAW_PARAMETERS,
)
DEQUANTIZE = _operation(
    _body(_messages(ref("QuantizedVector"), _example("Four values", examples.QUANTIZED))),
    _answer("The decoded vector.", ref("Tensor"), _example("Four values", examples.TENSOR)),
)
LEVELS = _operation(
    _body(
        _messages(
            ref("LevelsRequest"),
            _example(
                "Four values, 2 bits",
                {"vector": examples.TENSOR, "bits": 2},
                sketches={
                    "summary": "Sketches of two shards, levels on an integer grid",
                    "value": {"sketches": [examples.SKETCH] * 2, "bits": 2, "granularity": AUTO},
                },
                statistics={
                    "summary": "Statistics of a block, a table of alq",
                    "value": {"statistics": examples.STATISTICS, "bits": 2, "method": "alq"},
                },
            ),
        )
    ),
    _answer(
        "The level table(s) and their expected error; from sketches, whose method is `sketch`, an "
        "upper bound of it; from statistics, that of the model.",
        ref("LevelsResult"),
        _example(
            "Four values, 2 bits",
            {
                "levels": examples.TENSOR,
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
            ref("AggregateRequest"),
            _example(
                "Two vectors, weighted",
                {"vectors": [examples.QUANTIZED, examples.QUANTIZED], "weights": [1.0, 3.0]},
                trees={"summary": "One tree", "value": {"trees": [examples.TREE]}},
            ),
        )
    ),
    _answer(
        "The mean: a tensor, or a quantized vector if `quantize` was given; of trees a tree.",
        {"anyOf": [ref("Tensor"), ref("QuantizedVector"), ref("Tree")]},
        _example("Four values", examples.TENSOR),
    ),
)

PLAN = _operation(
    _body(
        _messages(
            ref("PlanRequest"),
            _example(
                "Two vectors in 48 bits per value",
                {
                    "vectors": {"weight": examples.TENSOR, "bias": examples.TENSOR},
                    "bits": [1, 2],
                    "bits_per_value": 48,
                },
            ),
        )
    ),
    _answer(
        "Error curves, and a candidate for each vector if there was a budget.",
        ref("Plan"),
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
    200: _json("Ready.", ref("Readiness")),
    503: _json("Starting, shutting down or exhausted; the reasons are listed.", ref("Readiness")),
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
INFO = _probe({200: _json("Versions, limits, defaults.", ref("Info"))})
