"""Clients of apps on the fake backend; the helpers are those of the service's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))

import service_fakes
from quiver_service.app import create_app


@pytest.fixture
def make_client() -> Callable[..., TestClient]:
    """Clients of apps with these settings; nothing is started, for pages need no kernels."""

    def make(**values: object) -> TestClient:
        app = create_app(service_fakes.settings(**values), service_fakes.fake_engine())
        return TestClient(app)

    return make


@pytest.fixture(scope="module")
def client() -> TestClient:
    """One client for the tests of a module."""
    return TestClient(create_app(service_fakes.settings(), service_fakes.fake_engine()))
