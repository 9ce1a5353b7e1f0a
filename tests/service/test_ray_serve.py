"""What of the binding to Ray Serve needs no Ray; the rest is in tests/ray (`make test-ray`)."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.types import ASGIApp

from quiver_service import machine
from quiver_service.lifecycle import Lifecycle, Phase
from quiver_service.ray_serve.__main__ import main
from quiver_service.ray_serve.options import (
    ServeOptions,
    most_ongoing,
    replica_settings,
    shutdown_seconds,
)
from quiver_service.ray_serve.replica import NotHealthy, OnServe, Replica
from quiver_service.ray_serve.scaling import HELD, ByHeldBytes
from quiver_service.settings import SettingsError


@dataclass
class Context:
    """What Serve tells a policy."""

    current_num_replicas: int
    target_num_replicas: int
    aggregated_metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [([0.5, 0.5], 2), ([1.0, 1.0], 4), ([0.9, 0.1], 2), ([0.0, 0.0], 0), ([0.25], 1)],
)
def test_replicas_follow_the_bytes_held(shares: list[float], wanted: float):
    reports = {HELD: {str(number): share for number, share in enumerate(shares)}}

    # A replica that has not reported yet is taken to be like the others.
    assert ByHeldBytes(0.5)(Context(2, 7, reports)) == (pytest.approx(wanted), {})


def test_without_reports_nothing_changes():
    assert ByHeldBytes(0.5)(Context(2, 3)) == (3.0, {})
    assert ByHeldBytes(0.5)(Context(0, 3, {HELD: {"a": 1.0}})) == (3.0, {})


def test_a_replica_is_sized_for_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "cpu_limit", lambda: 8)
    monkeypatch.setattr(machine, "memory_limit", lambda: 80 << 30)

    sized = replica_settings(ServeOptions(num_cpus=2), {})
    given = {"QUIVER_THREADS": "5", "QUIVER_BUDGET_BYTES": str(1 << 30)}
    told = replica_settings(ServeOptions(num_cpus=2, settings=given), {})

    assert (sized.threads, sized.budget_bytes) == (2, 12 << 30)
    assert (told.threads, told.budget_bytes) == (5, 1 << 30)
    assert told.max_body_bytes <= told.budget_bytes


def test_serve_lets_in_what_the_service_has_room_for_and_waits_as_long_as_it():
    settings = replica_settings(
        ServeOptions(settings={"QUIVER_QUEUE_SIZE": "10", "QUIVER_GRACE_SECONDS": "50"}), {}
    )

    assert most_ongoing(settings) > settings.threads + settings.queue_size
    assert shutdown_seconds(settings) == 55
    assert shutdown_seconds(replica_settings(ServeOptions(), {})) == 35


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"QUIVER_UDS": "/run/x"}, "QUIVER_UDS has no meaning on Ray Serve"),
        ({"QUIVER_NONE": "1"}, "unknown setting QUIVER_NONE"),
        ({"QUIVER_QUEUE_SIZE": "-1"}, "QUIVER_QUEUE_SIZE"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, str], text: str):
    with pytest.raises(SettingsError, match=text):
        replica_settings(ServeOptions(settings=settings), {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"min_replicas": 3, "max_replicas": 2},
        {"target_held": 0},
        {"settings": {"PATH": "/"}},
        {"cpus": 1},
    ],
)
def test_options_that_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        ServeOptions(**wrong)


def test_the_command_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["--num-cpus", "-1"]) == 2
    assert "num_cpus" in capsys.readouterr().err
    monkeypatch.setenv("QUIVER_HOST", "0.0.0.0")
    assert main([]) == 2
    assert "no key is asked for" in capsys.readouterr().err


def test_no_ray_is_loaded_before_it_is_needed():
    modules = "quiver_service.ray_serve.replica, quiver_service.ray_serve.__main__"
    code = f"import sys, {modules}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


async def lifespan(app: OnServe) -> tuple[asyncio.Task[None], asyncio.Queue[Any]]:
    """Begin an app's lifespan; what it says comes into the queue."""
    said: asyncio.Queue[Any] = asyncio.Queue()
    asked = iter([{"type": "lifespan.startup"}])

    async def receive() -> Any:
        return next(asked)

    running = asyncio.create_task(app({"type": "lifespan"}, receive, said.put))
    await asyncio.sleep(0)
    return running, said


async def started(scope: Any, receive: Any, send: Any) -> None:
    """An app that is there at once."""
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize("warm", [True, False])
async def test_a_replica_is_there_when_it_is_warm(warm: bool):
    lifecycle = Lifecycle()
    running, said = await lifespan(OnServe(started, lifecycle))
    await asyncio.sleep(0.12)
    assert said.empty()

    if warm:
        lifecycle.mark_ready()
    else:
        lifecycle.mark_failed("no compiler")
    message = await asyncio.wait_for(said.get(), 5)
    await running

    assert message["type"] == f"lifespan.startup.{'complete' if warm else 'failed'}"
    assert warm or message["message"] == "no compiler"


async def answered(app: ASGIApp, sent: list[Any]) -> list[Any]:
    """What is said to a client that sends some messages and then nothing."""
    said: list[Any] = []

    async def receive() -> Any:
        return sent.pop(0) if sent else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    await asyncio.wait_for(OnServe(app, Lifecycle())({"type": "http"}, receive, send), 10)
    return said


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answer without a look at the body."""
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"busy"})


@pytest.mark.parametrize(
    "sent",
    [
        [{"type": "http.request", "more_body": True}] * 3 + [{"type": "http.request"}],
        [{"type": "http.request", "more_body": True}, {"type": "http.disconnect"}],
    ],
    ids=["to its end", "until it leaves"],
)
async def test_an_early_answer_ends_when_the_client_does(sent: list[Any]):
    left = sent.copy()
    begun: list[Any] = []

    async def receive() -> Any:
        begun.append("read")
        return left.pop(0)

    async def send(message: Any) -> None:
        begun.append((message.get("body"), message.get("more_body", False)))

    await OnServe(refuse, Lifecycle())({"type": "http"}, receive, send)

    assert begun == [(None, False), (b"busy", True), *["read"] * len(sent), (b"", False)]


async def test_an_early_answer_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quiver_service.ray_serve.replica.LINGER_SECONDS", 0.05)

    said = await answered(refuse, [{"type": "http.request", "more_body": True}])

    assert [message.get("body") for message in said] == [None, b"busy", b""]


async def test_what_goes_to_serve_can_be_pickled():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": memoryview(b"codes"), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    said = await answered(app, [{"type": "http.request"}])

    assert [message.get("body") for message in said] == [None, b"codes", b""]
    assert [type(message["body"]) for message in said[1:]] == [bytes, bytes]


def test_health_and_what_a_replica_reports():
    replica = Replica(ServeOptions(settings={"QUIVER_BUDGET_BYTES": str(64 << 20)}))
    services = replica._services

    replica.check_health()
    lease = services.budget.reserve(16 << 20)
    assert replica.record_autoscaling_stats()[HELD] == pytest.approx(0.25, abs=0.01)
    lease.release()
    assert json.dumps(replica.record_autoscaling_stats()) == f'{{"{HELD}": 0.0}}'

    # Its threads have not been started: a replica that thinks it is ready is sick.
    services.lifecycle.mark_ready()
    assert services.lifecycle.phase is Phase.READY
    with pytest.raises(NotHealthy, match="worker threads"):
        replica.check_health()


def test_a_warm_up_that_failed_is_not_healthy():
    replica = Replica(ServeOptions())
    replica._services.lifecycle.mark_failed("no compiler")

    with pytest.raises(NotHealthy, match="no compiler"):
        replica.check_health()


def test_every_argument_is_documented():
    page = (Path(__file__).parents[2] / "docs/ray.md").read_text()
    schema = ServeOptions.model_json_schema()["properties"]

    for name, field_ in ServeOptions.model_fields.items():
        default = schema[name].get("default", {})
        row = f"| `{name}` | {json.dumps(default)} | {field_.description} |"
        assert row in page, row
    assert len(re.findall(r"^\| `\w+` \| .* \| [A-Z].*\.\)? \|$", page, re.MULTILINE)) == len(
        schema
    )
