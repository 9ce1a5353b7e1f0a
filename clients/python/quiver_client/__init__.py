"""Client of the QUIVER quantization service: blocking, asynchronous, or without a service."""

from quiver_client import errors
from quiver_client._async import AsyncClient
from quiver_client._connect import connect, connect_async
from quiver_client._local import LocalClient
from quiver_client._retry import RetryPolicy
from quiver_client._sync import Client
from quiver_client._version import __version__
from quiver_client.errors import QuiverClientError
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import LevelsResult

__all__ = [
    "AsyncClient",
    "Client",
    "LevelsResult",
    "LocalClient",
    "QuantizeOptions",
    "QuantizedVector",
    "QuiverClientError",
    "RetryPolicy",
    "__version__",
    "connect",
    "connect_async",
    "errors",
]
