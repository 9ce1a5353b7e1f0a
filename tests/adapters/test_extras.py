"""Only who imports an adapter loads what it adapts to, where all of that is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

FOREIGN = {"torch", "flwr", "safetensors"}


def loaded(modules: str) -> set[str]:
    """Which of them are there after an import."""
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return FOREIGN & set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("quiver_client, quiver_client.ps, quiver_client.adapters", set()),
        ("quiver_client.adapters.safetensors_io", {"safetensors"}),
        ("quiver_client.adapters.flower", {"flwr"}),
        ("quiver_client.adapters.torch_ddp", {"torch"}),
    ],
)
def test_what_an_import_loads(modules: str, expected: set[str]):
    assert loaded(modules) == expected
