"""What is public, what is imported, and that all clients offer the same."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import quiver_client
from quiver_client import AsyncClient, Client, LocalClient

METHODS = sorted(
    name for name, value in vars(Client).items() if inspect.isfunction(value) and name[0] != "_"
)

LIGHT = """
import sys
import numpy as np
from quiver_client import Client
with Client(sys.argv[1]) as client:
    q = client.quantize(np.ones(100, np.float32), seed=1)
    assert q.seed == 1
heavy = {"numba", "llvmlite", "scipy", "fastapi", "pydantic", "uvicorn", "quiver_service", "cupy",
         "urllib3", "quiver_kernels.cpu"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_remote_call_imports_nothing_heavy(server: Any, steps: Any) -> None:
    server.play(steps.ok)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, server.url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    for name in quiver_client.__all__:
        assert hasattr(quiver_client, name)
    for kind in (Client, AsyncClient, LocalClient):
        for name in METHODS:
            assert inspect.getdoc(getattr(kind, name)), (kind, name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [AsyncClient, LocalClient])
def test_the_same_methods_everywhere(kind: type, name: str) -> None:
    ours = inspect.signature(getattr(kind, name))
    assert ours == inspect.signature(getattr(Client, name))


def test_the_functions_of_the_library_have_the_same_parameters() -> None:
    import quiver_kernels

    for name in ("quantize", "optimal_levels"):
        theirs = inspect.signature(getattr(quiver_kernels, name)).parameters
        ours = inspect.signature(getattr(Client, name)).parameters
        # A service, or a process that computes for itself, has threads of its own.
        shared = [value for key, value in theirs.items() if key != "threads"]
        assert list(ours.values())[1:] == shared
