"""Large bodies: held once, and let go at once."""

from __future__ import annotations

import gc
import http.client
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from live import LiveServer
from messages import VND, pack, quantize_fields
from quiver_kernels.errors import InvalidInput
from quiver_service.engine import Engine
from service_fakes import FakeBackend, fake_engine

MIB = 1 << 20


class Watcher(FakeBackend):
    """Remembers, without holding them, the buffers it was given."""

    def quantize(self, x: Any, options: Any, weights: Any) -> Any:
        buffer = x
        while buffer.base is not None and not isinstance(buffer.base, memoryview):
            buffer = buffer.base
        seen.append(weakref.ref(buffer.base.obj if buffer.base is not None else buffer))
        return super().quantize(x, options, weights)


seen: list[weakref.ref[Any]] = []


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Only reference counts free memory."""
    seen.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fault(kind: str) -> Callable[[str], None]:
    def before(operation: str) -> None:
        if operation == "quantize" and kind == "invalid":
            raise InvalidInput("on purpose", code="non_finite")
        if operation == "quantize" and kind == "fault":
            raise ZeroDivisionError

    return before


@pytest.mark.parametrize(("kind", "status"), [("good", 200), ("invalid", 422), ("fault", 500)])
@pytest.mark.usefixtures("_no_collector")
def test_a_body_is_let_go_with_its_request(
    make_client: Callable[..., TestClient], kind: str, status: int
):
    engine: Engine = fake_engine(fault(kind), backend=Watcher)
    client = make_client(engine)
    body = pack(quantize_fields())

    for _ in range(3):
        answer = client.post("/quantize", content=body, headers={"content-type": VND})
        assert answer.status_code == status
    # A worker has let go of its job when it has done another.
    for _ in range(4):
        client.post("/levels", content=pack({"vector": [1.0]}), headers={"content-type": VND})

    # An unexpected failure is tried once more.
    count = 6 if kind == "fault" else 3
    assert len(seen) == count
    assert [reference() is None for reference in seen] == [True] * count


def memory(server: LiveServer, name: str) -> int:
    """`VmHWM` or `VmRSS` in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name)
    )


def post_floats(server: LiveServer, size: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(
        "POST",
        "/quantize?bits=4&method=approx",
        memoryview(np.zeros(size // 4, np.float32)).cast("B"),
        {"content-type": "application/octet-stream"},
    )
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_body_is_held_once(start_server: Callable[..., LiveServer]):
    server = start_server(0, "light")
    size = 64 * MIB
    assert post_floats(server, MIB) == 200
    before = memory(server, "VmRSS")
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")

    assert post_floats(server, size) == 200

    # The body, its answer of an eighth, and the heap that is kept for the next one.
    assert memory(server, "VmHWM") - before <= 1.5 * size
