"""The two backends: the compiled one under test, and the oracle."""

from __future__ import annotations

import pytest

from quiver_kernels import dispatch
from quiver_kernels.dispatch import Backend


@pytest.fixture(scope="session")
def cpu() -> Backend:
    return dispatch.load("cpu")


@pytest.fixture(scope="session")
def reference() -> Backend:
    return dispatch.load("reference")
