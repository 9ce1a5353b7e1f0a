"""What the adapters' tests share. They have an environment of their own: `make test-adapters`."""

from __future__ import annotations

import os

import pytest

# Before Flower is imported: a test reports nothing to anybody.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors here too, except what other libraries say of each other."""
    for line in (r"ignore:'click\.:DeprecationWarning",):
        config.addinivalue_line("filterwarnings", line)
