"""The routes of the operations, and the way past the framework's router.

The routes are what FastAPI knows and documents. For a small request its router takes longer than
all that is done for it, so `Shortcut` looks an operation up by its path and serves it directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from quiver_service.exchange import exchange
from quiver_service.openapi import operations as stated
from quiver_service.operations import AGGREGATE, DEQUANTIZE, LEVELS, PLAN, QUANTIZE, Operation
from quiver_service.services import Services, services_of

VERSION_PREFIX = "/v1"

router = APIRouter()

_OPERATIONS: Mapping[str, Operation[Any, Any]] = {
    "/quantize": QUANTIZE,
    "/dequantize": DEQUANTIZE,
    "/levels": LEVELS,
    "/aggregate": AGGREGATE,
    "/plan": PLAN,
}


class Shortcut:
    """Serves the operations; whatever else is asked for goes on to the router.

    Parameters
    ----------
    app
        The next layer.
    services
        What the operations need.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._operations = {
            prefix + path: operation
            for path, operation in _OPERATIONS.items()
            for prefix in ("", VERSION_PREFIX)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        operation = None
        if scope["type"] == "http" and scope["method"] == "POST":
            operation = self._operations.get(scope["path"])
        if operation is None:
            await self._app(scope, receive, send)
            return
        answer = await exchange(self._services, scope, receive, operation)
        await answer(scope, receive, send)


async def _served(request: Request, path: str) -> Response:
    return await exchange(services_of(request), request.scope, request.receive, _OPERATIONS[path])


@router.post("/quantize", **stated.QUANTIZE)
async def quantize(request: Request) -> Response:
    """Quantize a vector: choose levels, round every value without bias, pack the codes.

    Or many vectors in one request: `vectors`, a list of them or a map of them by name.
    """
    return await _served(request, "/quantize")


@router.post("/dequantize", **stated.DEQUANTIZE)
async def dequantize(request: Request) -> Response:
    """Decode a quantized vector."""
    return await _served(request, "/dequantize")


@router.post("/levels", **stated.LEVELS)
async def levels(request: Request) -> Response:
    """Choose the level table(s) of a vector, without coding it."""
    return await _served(request, "/levels")


@router.post("/aggregate", **stated.AGGREGATE)
async def aggregate(request: Request) -> Response:
    """Weighted mean of quantized vectors, as a tensor or quantized again."""
    return await _served(request, "/aggregate")


@router.post("/plan", **stated.PLAN)
async def plan(request: Request) -> Response:
    """Choose bits and method for each of many vectors within one budget."""
    return await _served(request, "/plan")
