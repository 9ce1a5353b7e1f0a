"""The service answers as its OpenAPI document says: requests that schemathesis makes from it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fuzz import conformance, traffic

EXAMPLES = 6
SEED = 20


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with traffic.serving(("tests/service/service_fakes.py", "0", "exact")) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return conformance.document_of(url)


def test_every_operation_answers_as_described(url: str, document: Any):
    report = conformance.conform(url, EXAMPLES, SEED)

    assert report.problems == []
    described = {
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item
    }
    assert set(report.operations) == described
    # Requests of all kinds were made: served, malformed, invalid.
    assert {"200", "422"} <= set(report.statuses)


def test_a_document_that_is_wrong_is_noticed(url: str, document: Any):
    wrong = copy.deepcopy(document)
    for change in conformance.CHANGES:
        change(wrong)
    report = conformance.conform(url, EXAMPLES, SEED, paths=conformance.CHANGED, document=wrong)

    for change, sign in conformance.CHANGES.items():
        assert any(sign in problem for problem in report.problems), change.__doc__


def test_the_document_is_openapi_3_1(document: Any):
    assert conformance.document_problems(document) == []


def test_a_document_that_is_none_is_noticed(document: Any):
    broken = copy.deepcopy(document)
    broken["paths"]["/levels"]["post"]["responses"]["422"]["description"] = 5

    assert conformance.document_problems(broken) != []
