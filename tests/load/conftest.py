"""The scenarios of `benchmarks/reliability`, in short forms."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS.parent / "benchmarks"))


@pytest.fixture
def fake_command() -> list[str]:
    """A server on the fake backend; add seconds per request and `exact`."""
    return [sys.executable, str(TESTS / "service" / "service_fakes.py")]


@pytest.fixture
def haproxy_here() -> None:
    """Skip where there is no haproxy; a complete run has one."""
    from reliability import haproxy

    if haproxy.executable() is None:
        reason = "haproxy is not installed: nothing can be put behind a balancer"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
