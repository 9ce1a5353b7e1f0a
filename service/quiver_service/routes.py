"""The routes of the four operations."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from quiver_service import schemas
from quiver_service.exchange import exchange
from quiver_service.operations import AGGREGATE, DEQUANTIZE, LEVELS, QUANTIZE


class OperationRoute(APIRoute):
    """A route whose function takes the request as it is.

    Nothing is to be parsed, injected or validated for it, which for small requests takes as
    long as all the rest.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        return self.endpoint


router = APIRouter(route_class=OperationRoute)


@router.post("/quantize", **schemas.QUANTIZE)
async def quantize(request: Request) -> Response:
    """Quantize a vector: choose levels, round every value without bias, pack the codes.

    Or many vectors in one request: `vectors`, a list of them or a map of them by name.
    """
    return await exchange(request, QUANTIZE)


@router.post("/dequantize", **schemas.DEQUANTIZE)
async def dequantize(request: Request) -> Response:
    """Decode a quantized vector."""
    return await exchange(request, DEQUANTIZE)


@router.post("/levels", **schemas.LEVELS)
async def levels(request: Request) -> Response:
    """Choose the level table(s) of a vector, without coding it."""
    return await exchange(request, LEVELS)


@router.post("/aggregate", **schemas.AGGREGATE)
async def aggregate(request: Request) -> Response:
    """Weighted mean of quantized vectors, as a tensor or quantized again."""
    return await exchange(request, AGGREGATE)
