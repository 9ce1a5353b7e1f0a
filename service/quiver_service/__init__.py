"""HTTP service for adaptive stochastic quantization.

The app needs FastAPI and the kernels; they are imported when `create_app` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quiver_service._version import __version__
from quiver_service.settings import Settings

if TYPE_CHECKING:
    from quiver_service.app import create_app

__all__ = ["Settings", "__version__", "create_app"]


def __getattr__(name: str) -> Any:
    # The health check imports this package every few seconds and needs no FastAPI.
    if name == "create_app":
        from quiver_service.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
