"""The OpenAPI document: complete, consistent, and true to the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from quiver_kernels.batch import _BatchAnswer
from quiver_kernels.planwire import _CurveMessage, _PlanAnswer, _PlanMessage
from quiver_kernels.quantized import QuantizedMessage
from quiver_kernels.request import OptionsMessage, VectorMessage
from quiver_kernels.treerequest import RequantizeMessage, _TreesMessage
from quiver_kernels.treewire import (
    TreeMessage,
    _GroupMessage,
    _OutliersMessage,
    _SectionMessage,
    _TagMessage,
)
from quiver_kernels.wire import MEDIA_TYPES, _LevelsAnswer, _QuantizeMessage
from quiver_kernels.wrapping.parts import WrapMessage
from quiver_service.errors import ERROR_KINDS


class _AggregateKeys(_TreesMessage):
    """Trees, or vectors: one of the two."""

    trees: Any = None


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def values(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        for child in node.values():
            yield from values(child, key)
    elif isinstance(node, list):
        for child in node:
            yield from values(child, key)


def test_it_is_openapi_3_1(document: Any):
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "QUIVER"


def test_the_docs_page_is_there(client: TestClient):
    assert client.get("/docs").status_code == 200


def test_pages_are_no_part_of_it(document: Any):
    assert not {"/", "/docs", "/redoc"} & set(document["paths"])


def test_every_reference_resolves(document: Any):
    references = set(values(document, "$ref"))

    assert references
    for reference in references:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_operation_ids_differ(document: Any):
    ids = list(values(document["paths"], "operationId"))

    assert len(ids) == len(set(ids)) == 10


@pytest.mark.parametrize("path", ["/quantize", "/dequantize", "/levels", "/aggregate", "/plan"])
def test_operations_describe_messagepack_both_ways(document: Any, path: str):
    operation = document["paths"][path]["post"]

    assert operation["requestBody"]["required"] is True
    assert set(MEDIA_TYPES) <= set(operation["requestBody"]["content"])
    for content in operation["requestBody"]["content"].values():
        assert content["schema"]
    answer = operation["responses"]["200"]["content"][MEDIA_TYPES[0]]
    assert answer["schema"]
    assert answer["examples"]


def test_quantize_also_describes_json_raw_bodies_and_their_query(document: Any):
    operation = document["paths"]["/quantize"]["post"]

    assert {"application/json", "application/octet-stream"} <= set(
        operation["requestBody"]["content"]
    )
    assert {p["name"] for p in operation["parameters"]} == set(OptionsMessage.__struct_fields__) - {
        "levels"
    }


@pytest.mark.parametrize("path", ["/quantize", "/dequantize", "/levels", "/aggregate", "/plan"])
def test_every_error_status_is_described(document: Any, path: str):
    described = set(document["paths"][path]["post"]["responses"])

    possible = {str(kind.status) for kind in ERROR_KINDS.values()} - {"404", "405"}
    assert described == possible | {"200"}


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("QuantizeRequest", _QuantizeMessage),
        ("VectorRequest", VectorMessage),
        ("Options", OptionsMessage),
        ("QuantizedBatch", _BatchAnswer),
        ("AggregateRequest", _AggregateKeys),
        ("Requantize", RequantizeMessage),
        ("Tree", TreeMessage),
        ("TreeGroup", _GroupMessage),
        ("TreeSection", _SectionMessage),
        ("TreeOutliers", _OutliersMessage),
        ("TreeTag", _TagMessage),
        ("QuantizedVector", QuantizedMessage),
        ("Wrap", WrapMessage),
        ("LevelsResult", _LevelsAnswer),
        ("PlanRequest", _PlanMessage),
        ("ErrorCurve", _CurveMessage),
        ("Plan", _PlanAnswer),
    ],
)
def test_schemas_have_the_keys_of_the_wire(
    document: Any, schema: str, struct: type[msgspec.Struct]
):
    described = document["components"]["schemas"][schema]
    fields = msgspec.structs.fields(struct)

    assert set(described["properties"]) == {field.name for field in fields}
    assert set(described["required"]) == {field.name for field in fields if field.required}
    for name, key in described["properties"].items():
        assert key.keys() & {"type", "$ref", "anyOf", "allOf", "const"}, name


def test_every_option_is_explained(document: Any):
    for schema in ("QuantizeRequest", "VectorRequest", "LevelsRequest", "Options"):
        for name, key in document["components"]["schemas"][schema]["properties"].items():
            assert key["description"], name


def test_examples_of_quantized_vectors_have_every_required_key(document: Any):
    required = set(document["components"]["schemas"]["QuantizedVector"]["required"])
    paths = document["paths"]
    sent = paths["/dequantize"]["post"]["requestBody"]["content"][MEDIA_TYPES[0]]["examples"]
    averaged = paths["/aggregate"]["post"]["requestBody"]["content"][MEDIA_TYPES[0]]["examples"]
    answers = paths["/quantize"]["post"]["responses"]["200"]["content"][MEDIA_TYPES[0]]["examples"]
    found = [
        vector
        for examples in (sent, averaged, answers)
        for example in examples.values()
        for vector in example["value"].get("vectors", [example["value"]])
        if "codes" in vector
    ]

    assert len(found) >= 3
    for vector in found:
        assert required <= vector.keys()


def test_the_json_examples_work(document: Any, client: TestClient):
    content = document["paths"]["/quantize"]["post"]["requestBody"]["content"]
    examples = [
        example["value"]
        for media_type in ("application/json", MEDIA_TYPES[0])
        for example in content[media_type]["examples"].values()
    ]

    assert len(examples) == 4
    for example in examples:
        answer = client.post(
            "/quantize",
            content=json.dumps(example),
            headers={"content-type": "application/json", "accept": "application/json"},
        )
        assert answer.status_code == 200
        if "vector" in example:
            assert answer.json()["seed"] == 7
        else:
            assert len(answer.json()["vectors"]) == 2
