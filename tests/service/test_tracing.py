"""Traces: what a client names comes back, and with the extra every request is a span."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from live import LiveServer
from messages import VND, pack, quantize_fields
from quiver_service import tracing
from quiver_service.settings import Settings, SettingsError
from quiver_service.tracing import PassingTracer, make_tracer

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
PHASES = {"receive", "queue", "decode", "kernel", "encode", "send"}
BODY = pack(quantize_fields())
MakeClient = Callable[..., TestClient]


def quantize(client: TestClient, **headers: str) -> Any:
    return client.post("/quantize", content=BODY, headers={"content-type": VND, **headers})


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where spans go in place of a collector."""
    memory = InMemorySpanExporter()
    monkeypatch.setattr(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter", lambda: memory
    )
    return memory


@pytest.mark.parametrize(
    "value",
    [
        PARENT[:-1],
        PARENT + "0",
        PARENT.upper(),
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00_{TRACE_ID}_{PARENT_ID}_01",
        f"00-{TRACE_ID}-{PARENT_ID}-zz",
        "",
    ],
)
def test_a_header_that_names_no_trace_is_ignored(value: str):
    tracer = PassingTracer()

    assert tracer.begin({b"traceparent": [value.encode()]}, "POST", "/quantize") is None
    assert tracer.begin({b"traceparent": [PARENT.encode()]}, "POST", "/quantize") is not None


def test_two_headers_are_ignored():
    twice = {b"traceparent": [PARENT.encode(), PARENT.encode()]}

    assert PassingTracer().begin(twice, "POST", "/quantize") is None


def test_the_trace_of_the_client_is_in_answer_and_log(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
):
    client = make_client()

    named, plain = quantize(client, traceparent=PARENT), quantize(client)
    client.__exit__(None, None, None)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {line["request_id"]: line for line in lines if line["event"] == "request"}
    assert named.headers["traceparent"] == PARENT
    assert told[named.headers["x-request-id"]]["trace_id"] == TRACE_ID
    assert "traceparent" not in plain.headers
    assert "trace_id" not in told[plain.headers["x-request-id"]]


def test_a_request_is_a_span_below_the_clients(
    make_client: MakeClient, exporter: InMemorySpanExporter
):
    client = make_client(traces=True)

    answer = quantize(client, traceparent=PARENT, tracestate="vendor=7")
    client.__exit__(None, None, None)

    [span] = [span for span in exporter.get_finished_spans() if span.name == "POST /quantize"]
    attributes = span.attributes
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.context.trace_state["vendor"] == "7"
    assert span.kind is SpanKind.SERVER
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert attributes["http.route"] == "/quantize"
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.request.body.size"] == len(BODY)
    assert attributes["quiver.request_id"] == answer.headers["x-request-id"]
    assert all(attributes[f"quiver.{phase}_seconds"] >= 0 for phase in PHASES)
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(
        attributes["quiver.total_seconds"], abs=1e-6
    )


def test_a_request_without_a_trace_begins_one(
    make_client: MakeClient, exporter: InMemorySpanExporter
):
    client = make_client(traces=True)

    answers = [quantize(client) for _ in range(2)]
    client.__exit__(None, None, None)

    spans = [span for span in exporter.get_finished_spans() if span.name == "POST /quantize"]
    returned = {answer.headers["traceparent"].split("-")[1] for answer in answers}
    assert all(span.parent is None for span in spans)
    assert {f"{span.context.trace_id:032x}" for span in spans} == returned
    assert len(returned) == 2


def test_only_a_fault_of_ours_is_an_error(make_client: MakeClient, exporter: InMemorySpanExporter):
    client = make_client(traces=True)

    client.post("/quantize", content=b"\xc1", headers={"content-type": VND})
    client.get("/nowhere")
    client.__exit__(None, None, None)

    refused = {
        span.name: span for span in exporter.get_finished_spans() if "error.type" in span.attributes
    }
    assert refused["POST /quantize"].attributes["error.type"] == "malformed_message"
    assert refused["GET other"].attributes["error.type"] == "not_found"
    assert all(span.status.status_code is StatusCode.UNSET for span in refused.values())


def test_the_clients_choice_not_to_sample_is_kept(
    make_client: MakeClient, exporter: InMemorySpanExporter
):
    client = make_client(traces=True)

    answer = quantize(client, traceparent=PARENT[:-2] + "00")
    client.__exit__(None, None, None)

    assert answer.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert answer.headers["traceparent"].endswith("-00")
    assert "POST /quantize" not in {span.name for span in exporter.get_finished_spans()}


def test_without_the_extra_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(SettingsError, match=r"QUIVER_TRACES.*quiver-service\[otel\]"):
        make_tracer(Settings(traces=True))


def test_without_traces_the_sdk_is_not_imported():
    assert isinstance(make_tracer(Settings()), PassingTracer)
    assert "opentelemetry" not in vars(tracing)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector that keeps what it is sent."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_reach_a_collector_before_the_process_ends(
    start_server: Callable[..., LiveServer],
    collector: tuple[str, list[ExportTraceServiceRequest]],
):
    endpoint, received = collector
    names = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    server = start_server(QUIVER_TRACES="true", **names)
    request = urllib.request.Request(
        f"{server.url}/quantize", BODY, {"content-type": VND, "traceparent": PARENT}
    )

    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    server.process.terminate()
    assert server.process.wait(20) == 0

    resources = [group for one in received for group in one.resource_spans]
    spans = [span for group in resources for scope in group.scope_spans for span in scope.spans]
    service = {
        item.value.string_value
        for group in resources
        for item in group.resource.attributes
        if item.key == "service.name"
    }
    assert service == {"quiver"}
    assert TRACE_ID in {span.trace_id.hex() for span in spans}
