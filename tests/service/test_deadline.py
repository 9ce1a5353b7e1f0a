"""How long a client waits: what it may ask for, and what it gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_service.deadline import Deadline, earlier
from quiver_service.errors import ServiceError
from service_fakes import fake_engine

BODY = pack(quantize_fields())


def asked(*values: bytes) -> Deadline | None:
    return Deadline.of_client({b"x-request-timeout": list(values)} if values else {}, 100.0)


def test_no_header_is_no_wish():
    assert asked() is None


@pytest.mark.parametrize(("value", "at"), [(b"2", 102.0), (b"0.25", 100.25), (b"86400", 86_500.0)])
def test_seconds_count_from_now(value: bytes, at: float):
    wish = asked(value)

    assert wish is not None
    assert wish.at == at


@pytest.mark.parametrize(
    "value", [b"", b"0", b"-1", b"nan", b"inf", b"1e9", b"86401", b"soon", b"1 s", b"0x10", b"\xff"]
)
def test_anything_else_is_refused(value: bytes):
    with pytest.raises(ServiceError, match="X-Request-Timeout") as refused:
        asked(value)

    assert refused.value.code == "malformed_request"


def test_two_wishes_are_refused():
    with pytest.raises(ServiceError):
        asked(b"1", b"2")


def test_the_earlier_one_counts():
    service = Deadline.of_service(10, 100.0)

    assert earlier(None, service) is service
    assert earlier(asked(b"2"), service).field == "X-Request-Timeout"
    assert earlier(asked(b"20"), service).setting == "QUIVER_DEADLINE_SECONDS"


def post(client: TestClient, timeout: str) -> tuple[int, dict[str, object], float]:
    begun = time.monotonic()
    answer = client.post(
        "/quantize", content=BODY, headers={"content-type": VND, "x-request-timeout": timeout}
    )
    found = answer.json() if answer.status_code != 200 else {}
    return answer.status_code, found, time.monotonic() - begun


def test_a_request_is_answered_504_when_its_time_has_passed(
    make_client: Callable[..., TestClient],
):
    release = threading.Event()

    def wait(operation: str) -> None:
        if operation == "quantize":
            release.wait(10)

    client = make_client(fake_engine(wait))

    status, problem, seconds = post(client, "0.1")
    release.set()

    assert (status, problem["code"]) == (504, "deadline")
    assert problem["field"] == "X-Request-Timeout"
    assert seconds < 5
    assert post(client, "10")[0] == 200


def test_an_unreadable_wish_is_400(client: TestClient):
    status, problem, _ = post(client, "soon")

    assert (status, problem["field"]) == (400, "X-Request-Timeout")
