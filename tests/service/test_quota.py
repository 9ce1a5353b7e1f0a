"""What one client may use: a rate, bytes in flight, and never much memory for the accounts."""

from __future__ import annotations

import asyncio
import hashlib
import io
import sys
import threading
import time
from collections.abc import Callable

import httpx2
import pytest
from starlette.testclient import TestClient

import service_fakes
from messages import VND, pack, quantize_fields
from quiver_service.app import create_app
from quiver_service.errors import ServiceError
from quiver_service.quota import QuotaLimits, Quotas, client_of
from quiver_service.settings import Settings

BODY = pack(quantize_fields())


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal(quotas: Quotas, client: str, length: int = 0) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        quotas.enter(client, length)
    return refused.value


def test_a_burst_then_the_rate():
    clock = Clock()
    quotas = Quotas(QuotaLimits(2.0, 3), clock=clock)

    for _ in range(3):
        quotas.enter("a", 0)()
    refused = refusal(quotas, "a")
    assert (refused.code, refused.headers) == ("quota", {"retry-after": "1"})
    quotas.enter("b", 0)()
    clock.now += 0.5
    quotas.enter("a", 0)()
    refusal(quotas, "a")
    clock.now += 1000
    for _ in range(3):
        quotas.enter("a", 0)()
    refusal(quotas, "a")


def test_the_wait_that_is_told_is_enough():
    clock = Clock()
    quotas = Quotas(QuotaLimits(0.3, 1), clock=clock)
    quotas.enter("a", 0)()

    clock.now += int(refusal(quotas, "a").headers["retry-after"])

    quotas.enter("a", 0)()


def test_bytes_in_flight():
    quotas = Quotas(QuotaLimits(held_bytes=1000))
    first, second = quotas.enter("a", 600), quotas.enter("a", 400)

    assert refusal(quotas, "a", 1).code == "quota"
    quotas.enter("b", 1000)()
    first()
    third = quotas.enter("a", 600)
    assert refusal(quotas, "a", 1).code == "quota"
    second()
    third()
    quotas.enter("a", 1000)()


def test_a_body_that_never_fits_is_too_large():
    assert refusal(Quotas(QuotaLimits(held_bytes=1000)), "a", 1001).code == "too_large"


def test_a_refused_request_holds_nothing():
    quotas = Quotas(QuotaLimits(1.0, 1, 1000), clock=Clock())
    leave = quotas.enter("a", 10)
    for _ in range(5):
        refusal(quotas, "a", 990)
        refusal(quotas, "a", 2000)
    leave()

    assert quotas._idle["a"].held == quotas._idle["a"].requests == 0


def test_accounts_of_strangers_take_bounded_memory():
    quotas = Quotas(QuotaLimits(1.0, 1, 1000), max_remembered=50)
    holding = quotas.enter("holder", 900)

    for number in range(1000):
        quotas.enter(f"client {number}", 1)()

    assert len(quotas) == 51
    assert refusal(quotas, "client 999").code == "quota"
    assert refusal(quotas, "holder", 500).code == "quota", (
        "who has bytes in flight is not forgotten"
    )
    holding()
    assert len(quotas) == 50


def test_without_limits_nothing_is_remembered():
    quotas = Quotas(QuotaLimits.create(Settings()))
    for number in range(100):
        quotas.enter(str(number), 1 << 40)()

    assert len(quotas) == 0


@pytest.mark.parametrize(
    ("key", "peer", "client"),
    [
        ("abc", ("10.0.0.1", 1), "key abc"),
        (None, ("10.0.0.1", 1), "10.0.0.1"),
        (None, ("2001:db8::1", 1), "2001:db8::/64"),
        (None, ("2001:db8::ffff:2", 1), "2001:db8::/64"),
        (None, ("::ffff:10.0.0.1", 1), "10.0.0.1"),
        (None, ("testclient", 1), "testclient"),
        (None, None, "local socket"),
    ],
)
def test_who_a_request_counts_for(key: str | None, peer: object, client: str):
    assert client_of(key, {"client": peer}) == client


def test_the_default_burst_is_a_second(make_client: Callable[..., TestClient]):
    client = make_client(quota_requests_per_second=2.5)
    limits = client.get("/info").json()["limits"]

    assert (limits["quota_requests_per_second"], limits["quota_burst"]) == (2.5, 3)
    assert limits["quota_bytes"] is None


def test_too_many_requests_get_429_and_other_keys_do_not(make_client: Callable[..., TestClient]):
    client = make_client(
        api_keys="first-key-of-a-client,second-key-of-a-client",
        quota_requests_per_second=0.01,
        quota_burst=2,
    )

    def post(key: str):
        head = {"content-type": VND, "authorization": f"Bearer {key}"}
        return client.post("/quantize", content=BODY, headers=head)

    statuses = [post("first-key-of-a-client").status_code for _ in range(2)]
    refused = post("first-key-of-a-client")

    assert statuses == [200, 200]
    assert (refused.status_code, refused.json()["code"]) == (429, "quota")
    assert refused.headers["connection"] == "close"
    assert 90 < int(refused.headers["retry-after"]) <= 100
    assert refused.json()["retry_after_seconds"] == int(refused.headers["retry-after"])
    assert refused.json()["setting"] == "QUIVER_QUOTA_REQUESTS_PER_SECOND"
    assert post("second-key-of-a-client").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert 'reason="rate_limited"' in client.get("/metrics").text


async def test_bytes_are_given_back_however_a_request_ends():
    held, release = threading.Event(), threading.Event()

    def wait(operation: str) -> None:
        if operation == "quantize":
            held.set()
            release.wait(10)

    app = create_app(
        service_fakes.settings(quota_bytes=len(BODY) + 1023), service_fakes.fake_engine(wait)
    )
    quotas = app.state.services.quotas
    head = {"content-type": VND}
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
            slow = asyncio.ensure_future(client.post("/quantize", content=BODY, headers=head))
            await asyncio.to_thread(held.wait, 10)
            assert sum(account.held for account in quotas._active.values()) == len(BODY)

            refused = await client.post("/quantize", content=bytes(1024), headers=head)
            assert (refused.status_code, refused.json()["code"]) == (429, "quota")
            assert int(refused.headers["retry-after"]) >= 1
            release.set()
            assert (await slow).status_code == 200
            # Refused at each later step: media type, content, length.
            for content, extra in ((BODY, {"content-type": "text/plain"}), (b"\xc1", {})):
                answer = await client.post("/quantize", content=content, headers=head | extra)
                assert answer.status_code in {400, 415}
            assert not quotas._active
            assert all(account.held == 0 for account in quotas._idle.values())


def test_a_log_line_names_the_key_by_its_digest_only(monkeypatch: pytest.MonkeyPatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    head = {"content-type": VND, "authorization": "Bearer first-key-of-a-client"}
    settings = service_fakes.settings(api_keys="first-key-of-a-client")
    with TestClient(create_app(settings, service_fakes.fake_engine())) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.005)
        assert client.post("/quantize", content=BODY, headers=head).status_code == 200

    digest = hashlib.sha256(b"first-key-of-a-client").hexdigest()
    assert f'"key": "{digest[:12]}"' in output.getvalue()
    assert "first-key" not in output.getvalue()
    assert digest not in output.getvalue()
