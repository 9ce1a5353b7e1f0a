"""What operators see: probes, metrics, info, ids and log lines."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_service import __version__
from quiver_service.app import create_app
from service_fakes import fake_engine, settings


def test_probes_of_a_ready_service(client: TestClient):
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/healthz").json() == {"status": "ready"}


def test_verbose_lists_checks(client: TestClient):
    checks = client.get("/readyz?verbose").json()["checks"]

    assert checks == {"warm_up": "ok", "draining": "ok", "workers": "ok", "budget": "ok"}


def test_not_ready_until_warm():
    warm = threading.Event()
    engine = fake_engine(lambda operation: operation == "warm_up" and warm.wait(10))
    with TestClient(create_app(settings(), engine)) as client:
        cold = client.get("/readyz")
        early = client.post(
            "/quantize", content=pack(quantize_fields()), headers={"content-type": VND}
        )
        alive = client.get("/livez")
        warm.set()
        deadline = time.monotonic() + 5
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline

    assert cold.status_code == 503
    assert cold.json()["reasons"] == ["warm_up: kernels are being compiled"]
    assert "retry-after" in cold.headers
    assert (early.status_code, early.json()["code"]) == (503, "not_ready")
    assert alive.status_code == 200


def test_a_failed_warm_up_is_said():
    def fail(_: str) -> None:
        raise ValueError("no compiler")

    with TestClient(create_app(settings(), fake_engine(fail))) as client:
        time.sleep(0.1)
        answer = client.get("/readyz")

    assert answer.status_code == 503
    assert "ValueError" in answer.json()["reasons"][0]


def test_draining_and_exhaustion_are_said(make_client: Callable[..., TestClient]):
    client = make_client(budget_bytes=1 << 20, max_body_bytes=1 << 20, saturated_seconds=0.01)
    services = client.app.state.services
    lease = services.budget.reserve(1 << 20)
    time.sleep(0.02)
    full = client.get("/readyz")
    lease.release()
    services.lifecycle.mark_draining()
    draining = client.get("/readyz")

    assert "budget" in full.json()["reasons"][0]
    assert draining.json()["reasons"] == ["draining: shutting down"]
    assert draining.headers["connection"] == "close"


def test_info(client: TestClient):
    info = client.get("/info").json()

    assert info["version"] == __version__
    assert info["wire_version"] == 1
    assert {"exact", "approx"} <= set(info["methods"])
    assert info["grids"] == ["robust", "uniform"]
    assert info["defaults"]["grid"] == "robust"
    assert info["devices"] == {"cpu": True, "gpu": False}
    assert info["bits"] == {"min": 1, "max": 8}
    assert info["dtypes"] == ["float16", "bfloat16", "float32", "float64"]
    assert info["limits"]["max_body_bytes"] == 1 << 28
    assert info["defaults"]["bits"] == 4


def test_metrics(make_client: Callable[..., TestClient]):
    client = make_client()
    client.post("/v1/quantize", content=pack(quantize_fields()), headers={"content-type": VND})
    client.post("/quantize", content=b"", headers={"content-type": "text/plain"})
    client.get("/made/up/path")

    text = client.get("/metrics").text

    for line in (
        'quiver_requests_total{code="200",reason="ok",route="/quantize"} 1.0',
        'quiver_requests_total{code="415",reason="invalid",route="/quantize"} 1.0',
        'quiver_requests_total{code="404",reason="invalid",route="other"} 1.0',
        'quiver_elements_total{device="cpu",method="exact"} 8.0',
        'quiver_phase_duration_seconds_count{phase="kernel"} 1.0',
        'quiver_request_size_bytes_count{route="/quantize"} 1.0',
        "quiver_inflight_bytes 0.0",
        "quiver_queue_depth 0.0",
        "quiver_ready 1.0",
        f"quiver_budget_bytes {float(1 << 30)!r}".replace("1073741824.0", "1.073741824e+09"),
    ):
        assert line in text, line
    assert "made" not in text
    assert "process_resident_memory_bytes" in text


def test_two_apps_do_not_share_metrics(make_client: Callable[..., TestClient]):
    first, second = make_client(), make_client()

    first.get("/nothing")

    assert 'code="404"' not in second.get("/metrics").text


@pytest.mark.parametrize("given", ["abc", "A.b_c-9", "x" * 128])
def test_a_good_request_id_is_kept(client: TestClient, given: str):
    assert client.get("/livez", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é".encode().decode("latin-1"), 'a"b'])
def test_a_bad_request_id_is_replaced(client: TestClient, given: str):
    answer = client.get("/livez", headers={"x-request-id": given.encode("latin-1")})

    made = answer.headers["x-request-id"]
    assert made != given
    assert (len(made), made[14], made[19] in "89ab") == (36, "7", True)


def test_fresh_ids_are_ordered_in_time(client: TestClient):
    ids = []
    for _ in range(3):
        ids.append(client.get("/livez").headers["x-request-id"])
        time.sleep(0.002)

    assert ids == sorted(ids)
    assert len(set(ids)) == 3


def test_http_1_1_needs_a_host(client: TestClient):
    answer = client.get("/livez", headers={"host": ""})

    assert answer.status_code == 200  # an empty Host is a Host


def test_one_log_line_per_request_without_values(monkeypatch: pytest.MonkeyPatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    secret = 12345.678
    with TestClient(create_app(settings(), fake_engine())) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.005)
        client.post(
            "/quantize",
            content=pack({"vector": [secret, 1.0], "seed": 7}),
            headers={"content-type": VND, "x-request-id": "mine"},
        )
        client.get("/livez")
    lines = [json.loads(line) for line in output.getvalue().splitlines()]

    assert len(lines) == 1 + sum(line["status"] == 503 for line in lines)
    line = lines[-1]
    assert line.keys() >= {"ts", "level", "request_id", "route", "status", "code", "ms"}
    assert (line["request_id"], line["route"], line["status"]) == ("mine", "/quantize", 200)
    assert (line["kind"], line["device"], line["n"]) == ("exact", "cpu", 2)
    assert line["bytes_in"] > 0
    assert line["bytes_out"] > 0
    assert "12345" not in output.getvalue()


def test_keys(make_client: Callable[..., TestClient]):
    client = make_client(api_keys="first, second")
    body, head = pack(quantize_fields()), {"content-type": VND}

    def status(authorization: str | None) -> int:
        extra = {} if authorization is None else {"authorization": authorization}
        return client.post("/quantize", content=body, headers=head | extra).status_code

    assert status("Bearer first") == status("bearer second") == 200
    for bad in (None, "Bearer", "Bearer third", "Basic first", "first", "Bearer first, second"):
        assert status(bad) == 401
    refused = client.post("/quantize", content=body, headers=head)
    assert refused.json()["code"] == "unauthorized"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["connection"] == "close"
    assert client.get("/readyz").status_code == 200
