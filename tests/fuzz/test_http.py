"""The service's fuzzer in its short form, the faults that it must find, and the checks it makes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fuzz import codec, controls, shots, traffic
from tests.fuzz.answers import Answer, NotAnAnswer, faults, take

CASES = 2000
SEED = 20


def test_broken_requests_break_nothing():
    everything = shots.range_of(codec.targets())
    with traffic.serving() as server:
        report = traffic.fuzz(server, everything, CASES, SEED, warm_up=200)

    assert report.problems() == []
    assert report.cases == CASES
    assert report.good >= 8 * 4
    # Every kind is there, and what is sent is not all alike.
    assert set(report.kinds) >= shots.KINDS.keys() - {"storms", "long_heads"}
    assert {"200", "400", "404", "405", "411", "413", "415", "422"} <= report.statuses.keys()


@pytest.mark.parametrize("fault", controls.HTTP)
def test_a_planted_fault_is_found(fault: str):
    finding = controls.of_http_fault(fault, SEED)

    assert finding.passed, finding.found


def problem(**changes: Any) -> Answer:
    document = {
        "type": "urn:quiver:problem:too_large",
        "title": "Too large",
        "status": 413,
        "detail": "the body has 5 bytes",
        "instance": "urn:quiver:request:1",
        "code": "too_large",
        "request_id": "1",
        **changes,
    }
    kept = {name: value for name, value in document.items() if value is not None}
    fields = {"x-request-id": "1", "content-type": "application/problem+json"}
    return Answer(413, fields, json.dumps(kept).encode())


def test_a_right_problem_document_is_right():
    assert faults(problem()) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"detail": None}, "no detail"),
        ({"code": "oops"}, "unknown code oops"),
        ({"code": "busy"}, "busy with status 413"),
        ({"status": 400}, "status 400 in the document"),
        ({"request_id": "2"}, "another request_id"),
        ({"detail": "x" * 3000}, "detail of 3000 characters"),
    ],
)
def test_a_wrong_problem_document_is_noticed(changes: dict[str, Any], fault: str):
    assert fault in "; ".join(faults(problem(**changes)))


def test_an_answer_without_an_id_is_noticed():
    assert faults(Answer(200, {"content-type": "text/plain"}, b"")) == ["no X-Request-ID"]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\na b: c\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\na: \x00\r\n\r\nx",
        b"x" * 70_000,
    ],
)
def test_what_is_no_answer_is_noticed(data: bytes):
    with pytest.raises(NotAnAnswer):
        take(bytearray(data))


def test_answers_are_taken_one_by_one():
    one = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"
    buffer = bytearray(one + one[:-1])

    assert take(buffer) == Answer(200, {"content-length": "2"}, b"ab")
    assert take(buffer) is None
    buffer += b"c"
    assert take(buffer) == Answer(200, {"content-length": "2"}, b"ac")
    assert not buffer
