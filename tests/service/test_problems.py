"""Errors as RFC 9457 documents, and the one table behind them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import quiver_kernels
import quiver_service
from messages import VND, pack, unpack
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_service.errors import ERROR_KINDS, ServiceError, kind_of, problem_of

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}


def test_a_problem_has_all_members(client: TestClient):
    answer = client.post("/quantize", content=b"\xc1", headers={"content-type": VND})

    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document.keys() >= MEMBERS
    assert document["status"] == answer.status_code == 400
    assert document["code"] == "malformed_message"
    assert document["type"] == "urn:quiver:problem:malformed_message"
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["instance"] == f"urn:quiver:request:{document['request_id']}"


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        (VND, True),
        ("application/msgpack, application/x-msgpack;q=0.5", True),
        (f"{VND}, */*;q=0.1", False),
        (f"{VND}, application/problem+json", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_a_client_that_accepts_only_messagepack_gets_it(
    client: TestClient, accept: str, packed: bool
):
    answer = client.post("/quantize", content=b"", headers={"accept": accept})

    assert answer.status_code == 415
    if packed:
        assert answer.headers["content-type"] == VND
        assert unpack(answer.content)["code"] == "unsupported_media_type"
    else:
        assert answer.json()["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "path", ["//", "/nothing", "/quantize/", "/v2/quantize", "/v1", "//quantize"]
)
def test_unknown_paths_are_problems(client: TestClient, path: str):
    answer = client.post(f"http://testserver{path}", content=b"")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/quantize", "POST"), ("PUT", "/v1/levels", "POST"), ("POST", "/livez", "GET")],
)
def test_wrong_methods_are_problems(client: TestClient, method: str, path: str, allowed: str):
    answer = client.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_limits_are_named(client: TestClient):
    answer = client.post(
        "/quantize",
        content=b" " * (2 << 20),
        headers={"content-type": "application/json"},
    )

    document = answer.json()
    assert (document["limit"], document["got"]) == (1 << 20, 2 << 20)
    assert document["setting"] == "QUIVER_MAX_JSON_BYTES"


def test_a_field_is_named(client: TestClient):
    body = pack({"vector": [1.0, 2.0], "bits": 9})

    document = client.post("/quantize", content=body, headers={"content-type": VND}).json()

    assert document["field"] == "bits"
    assert "1 to 8" in document["detail"]
    assert "9" in document["detail"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("unauthorized", 401),
        ("stalled_upload", 408),
        ("length_required", 411),
        ("too_large", 413),
        ("unsupported_encoding", 415),
        ("quota", 429),
        ("internal", 500),
        ("busy", 503),
        ("draining", 503),
        ("not_ready", 503),
        ("deadline", 504),
    ],
)
def test_service_codes_have_their_status(code: str, status: int):
    problem = problem_of(ServiceError(code, "text"), "id", 2)

    assert problem.status == status
    assert ("retry-after" in problem.headers) == (status in {429, 503})


def test_new_codes_of_the_kernels_have_a_status():
    assert kind_of(InvalidInput("x", code="brand_new")).status == 422
    assert kind_of(MalformedMessage("x", code="brand_new")).status == 400


def test_every_code_in_the_source_is_in_the_table():
    used: set[str] = set()
    for package in (quiver_kernels, quiver_service):
        for file in Path(package.__file__).parent.rglob("*.py"):
            text = file.read_text()
            used |= set(re.findall(r'code="([a-z_]+)"', text))
            used |= set(re.findall(r'ServiceError\(\s*"([a-z_]+)"', text))

    # No route reads a file.
    assert used - set(ERROR_KINDS) == {"damaged_file"}
