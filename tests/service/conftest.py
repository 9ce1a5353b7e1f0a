"""What tests of the service share: an app on a fake backend, and servers on real sockets."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

import service_fakes
from live import LiveServer, serving
from quiver_service.app import create_app
from quiver_service.engine import Engine


def ready_client(engine: Engine | None = None, **values: object) -> TestClient:
    """A client of a fresh app; enter it, and it is ready."""
    app = create_app(service_fakes.settings(**values), engine or service_fakes.fake_engine())
    return TestClient(app, raise_server_exceptions=True)


def wait_ready(client: TestClient, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def make_client() -> Iterator[Callable[..., TestClient]]:
    """Builds ready clients; all are closed at the end."""
    opened: list[TestClient] = []

    def make(engine: Engine | None = None, **values: object) -> TestClient:
        client = ready_client(engine, **values)
        client.__enter__()
        opened.append(client)
        wait_ready(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def real_client() -> Iterator[TestClient]:
    """One ready client of an app on the real backends."""
    with TestClient(create_app(service_fakes.settings())) as shared:
        wait_ready(shared, 240)
        yield shared


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """One ready client for the tests of a module."""
    with ready_client() as shared:
        wait_ready(shared)
        yield shared


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers: `start_server(seconds_per_request, QUIVER_...=value)`."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **environment: stack.enter_context(
            serving(tmp_path, *arguments, **environment)
        )
