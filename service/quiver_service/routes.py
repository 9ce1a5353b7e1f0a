"""The routes of the four operations."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from quiver_service import schemas
from quiver_service.exchange import exchange
from quiver_service.operations import AGGREGATE, DEQUANTIZE, LEVELS, QUANTIZE

router = APIRouter()


@router.post("/quantize", **schemas.QUANTIZE)
async def quantize(request: Request) -> Response:
    """Quantize a vector: choose levels, round every value without bias, pack the codes."""
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
