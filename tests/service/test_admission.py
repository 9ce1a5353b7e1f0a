"""What is refused on the head alone, in which order, and that nothing stays booked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_service.budget import Lease
from quiver_service.services import Services

Message = dict[str, Any]


async def exchange(
    app: Any,
    headers: dict[str, str],
    messages: list[Message],
    path: str = "/quantize",
) -> tuple[int, dict[str, str], list[str]]:
    """One raw ASGI request; status, headers, and what happened in which order."""
    events: list[str] = []
    answer: dict[str, Any] = {"status": 0, "headers": []}
    waiting = iter(messages)
    complete = bool(messages) and not messages[-1]["more_body"]

    async def receive() -> Message:
        events.append("receive")
        message = next(waiting, {"type": "http.disconnect"})
        if message["type"] == "http.disconnect" and complete:
            await asyncio.sleep(60)  # the client waits for its answer
        return message

    async def send(message: Message) -> None:
        events.append(message["type"])
        if message["type"] == "http.response.start":
            answer.update(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in ({"host": "x"} | headers).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    found = {k.decode(): v.decode() for k, v in answer["headers"]}
    return answer["status"], found, events


def body(data: bytes) -> list[Message]:
    return [{"type": "http.request", "body": data, "more_body": False}]


GOOD = {"content-type": VND, "content-length": "10"}
HEADS = [
    ({"content-length": "10"}, 415),
    ({**GOOD, "content-type": "text/plain"}, 415),
    ({**GOOD, "content-encoding": "gzip"}, 415),
    ({"content-type": VND}, 411),
    ({"content-type": VND, "transfer-encoding": "chunked"}, 411),
    ({**GOOD, "content-length": "-1"}, 400),
    ({**GOOD, "content-length": "+5"}, 400),
    ({**GOOD, "content-length": "1e3"}, 400),
    ({**GOOD, "content-length": str(2**64)}, 400),
    ({**GOOD, "content-length": str(1 << 40)}, 413),
    ({"content-type": "application/json", "content-length": str(2 << 20)}, 413),
    ({**GOOD, "content-encoding": "gzip", "content-length": str(1 << 40)}, 415),
]


@pytest.mark.parametrize(("head", "status"), HEADS)
async def test_a_bad_head_is_refused_before_anything_is_read(
    client: TestClient, head: dict[str, str], status: int
):
    got, headers, events = await exchange(client.app, head, body(b"x" * 10))

    assert got == status
    assert events[0] == "http.response.start"
    if {"content-length", "transfer-encoding"} & head.keys():
        assert headers["connection"] == "close"


async def test_a_full_budget_is_refused_before_anything_is_read(
    make_client: Callable[..., TestClient],
):
    client = make_client(budget_bytes=8 << 20, max_body_bytes=8 << 20)
    budget = client.app.state.services.budget
    other = budget.reserve(6 << 20)

    status, headers, events = await exchange(
        client.app, {**GOOD, "content-length": str(4 << 20)}, body(b"")
    )

    assert status == 503
    assert headers["connection"] == "close"
    assert int(headers["retry-after"]) >= 1
    assert events[0] == "http.response.start"
    other.release()
    assert budget.used == 0


async def test_an_answer_after_the_body_keeps_the_connection(client: TestClient):
    status, headers, _ = await exchange(client.app, GOOD, body(b"x" * 10))

    assert status == 400
    assert "connection" not in headers


GOOD_BODY = pack(quantize_fields())
HEAD = {"content-type": VND, "content-length": str(len(GOOD_BODY))}
PATHS_THROUGH = {
    "answered": (HEAD, body(GOOD_BODY)),
    "malformed": (HEAD, body(b"\xc1" * len(GOOD_BODY))),
    "invalid": (HEAD, body(GOOD_BODY.replace(b"bits", b"bats"))),
    "left at once": (HEAD, []),
    "left half-way": (
        HEAD,
        [{"type": "http.request", "body": GOOD_BODY[:50], "more_body": True}],
    ),
    "short": (HEAD, body(GOOD_BODY[:-1])),
    "overrun": (HEAD, body(GOOD_BODY + b"x")),
    "stalled": ({**HEAD, "x-stall": "1"}, []),
}


@pytest.mark.parametrize("case", PATHS_THROUGH)
async def test_the_budget_comes_back_on_every_path(
    make_client: Callable[..., TestClient], case: str
):
    client = make_client(body_idle_seconds=0.05)
    services: Services = client.app.state.services
    head, messages = PATHS_THROUGH[case]
    app = stalling(client.app) if case == "stalled" else client.app

    status, _, _ = await exchange(app, head, messages)

    expected = {"answered": 200, "malformed": 400, "invalid": 422, "overrun": 400, "stalled": 408}
    assert status == expected.get(case, 0)
    assert services.budget.used == 0
    assert services.metrics.registry.get_sample_value("quiver_inflight_requests") == 0


@pytest.mark.parametrize("case", ["answered", "malformed", "left half-way"])
async def test_a_release_that_is_forgotten_would_be_seen(
    make_client: Callable[..., TestClient], case: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Lease, "release", lambda _: None)
    client = make_client()
    head, messages = PATHS_THROUGH[case]

    await exchange(client.app, head, messages)

    assert client.app.state.services.budget.used > 0


def stalling(app: Any) -> Any:
    """`app` with a client that sends nothing and stays."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def never() -> Message:
            await asyncio.sleep(60)
            raise AssertionError

        await app(scope, never, send)

    return wrapped


async def test_a_client_that_leaves_is_counted_and_not_answered(client: TestClient):
    def left() -> float:
        client.app.state.services.reporter.flush()
        registry = client.app.state.services.metrics.registry
        labels = {"route": "/quantize", "code": "499", "reason": "client_disconnect"}
        return registry.get_sample_value("quiver_requests_total", labels) or 0.0

    before = left()

    _, _, events = await exchange(client.app, HEAD, [])

    assert left() == before + 1
    assert "http.response.start" not in events
