"""What operators ask: alive, ready, metrics, limits and defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from quiver_kernels import wire
from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.options import (
    DEVICES,
    GRIDS,
    MAX_BINS,
    MAX_BITS,
    MAX_LEVEL_SETS,
    MAX_LEVELS,
    MIN_BINS,
    MIN_BITS,
    MIN_LEVEL_SETS,
    MIN_LEVELS,
    QuantizeOptions,
)
from quiver_kernels.quantized import WIRE_VERSION
from quiver_kernels.schemes import described, registry
from quiver_kernels.structure import MAX_STRUCTURE_DEPTH, MAX_STRUCTURE_NODES
from quiver_kernels.tensors import MAX_DIMENSIONS
from quiver_kernels.tree import (
    MAX_CLIENT_BYTES,
    MAX_LEAF_NAME_BYTES,
    MAX_LEAVES,
    MAX_SECTIONS,
)
from quiver_kernels.treerequest import MAX_AGGREGATE_TREES
from quiver_service._version import __version__
from quiver_service.lifecycle import Phase
from quiver_service.openapi import operations as stated
from quiver_service.services import Services, services_of

router = APIRouter()


@router.get("/livez", **stated.LIVEZ)
async def livez() -> Response:
    """Answer as long as the process can: restart it if this fails."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz", **stated.READYZ)
@router.get("/healthz", **stated.HEALTHZ)
async def readyz(request: Request) -> Response:
    """Whether requests should be sent here; ``?verbose`` lists every check."""
    services = services_of(request)
    checks = _checks(services)
    reasons = [f"{name}: {text}" for name, text in checks.items() if text is not None]
    content: dict[str, Any] = {"status": "unavailable" if reasons else "ready"}
    if reasons:
        content["reasons"] = reasons
    # Degraded, but ready: what cannot be done on one device is done on another.
    complaints = services.engine.devices.complaints()
    if complaints:
        content["degraded"] = complaints
    if "verbose" in request.query_params:
        content["checks"] = {name: text or "ok" for name, text in checks.items()}
    if not reasons:
        return JSONResponse(content)
    retry_after = str(services.draw_retry_after())
    return JSONResponse(content, status_code=503, headers={"retry-after": retry_after})


@router.get("/metrics", **stated.METRICS)
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    services = services_of(request)
    services.reporter.flush()
    return Response(services.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/info", **stated.INFO)
async def info(request: Request) -> Response:
    """Versions, methods, devices, limits and defaults of this service."""
    return JSONResponse(describe(services_of(request)))


def describe(services: Services) -> dict[str, Any]:
    """The content of ``GET /info``."""
    settings, devices = services.settings, services.engine.devices.available
    defaults = dataclasses.asdict(QuantizeOptions.create())
    del defaults["num_levels"]  # bits and num_levels exclude each other
    defaults["parameters"] = {}
    return {
        "name": "quiver",
        "version": __version__,
        "wire_version": WIRE_VERSION,
        "methods": list(registry.names()),
        "schemes": described.schemes(),
        "grids": list(GRIDS),
        "dtypes": list(WIRE_DTYPES),
        "leaf_dtypes": list(LEAF_DTYPES),
        "devices": {name: devices.get(name, False) for name in DEVICES[1:]},
        "dispatch": services.engine.devices.describe(),
        "media_types": list(wire.MEDIA_TYPES),
        "bits": {"min": MIN_BITS, "max": MAX_BITS},
        "num_levels": {"min": MIN_LEVELS, "max": MAX_LEVELS},
        "bins": {"min": MIN_BINS, "max": MAX_BINS},
        "level_sets": {"min": MIN_LEVEL_SETS, "max": MAX_LEVEL_SETS},
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_output_bytes": settings.max_output_bytes,
            "max_json_bytes": settings.max_json_bytes,
            "max_list_numbers": wire.MAX_LIST_NUMBERS,
            "max_aggregate_vectors": wire.MAX_AGGREGATE_VECTORS,
            "max_aggregate_trees": MAX_AGGREGATE_TREES,
            "max_leaves": MAX_LEAVES,
            "max_sections": MAX_SECTIONS,
            "max_leaf_name_bytes": MAX_LEAF_NAME_BYTES,
            "max_structure_depth": MAX_STRUCTURE_DEPTH,
            "max_structure_nodes": MAX_STRUCTURE_NODES,
            "max_tag_client_bytes": MAX_CLIENT_BYTES,
            "max_batch_vectors": wire.MAX_BATCH_VECTORS,
            "max_name_bytes": wire.MAX_NAME_BYTES,
            "max_dimensions": MAX_DIMENSIONS,
            "budget_bytes": settings.budget_bytes,
            "threads": settings.threads,
            "queue_size": settings.queue_size,
            "deadline_seconds": settings.deadline_seconds,
            "header_seconds": settings.header_seconds,
            "body_idle_seconds": settings.body_idle_seconds,
            "body_grace_seconds": settings.body_grace_seconds,
            "body_min_bytes_per_second": settings.body_min_bytes_per_second,
            "send_idle_seconds": settings.send_idle_seconds,
            "keep_alive_seconds": settings.keep_alive_seconds,
            "quota_requests_per_second": services.quotas.limits.requests_per_second,
            "quota_burst": services.quotas.limits.burst,
            "quota_bytes": services.quotas.limits.held_bytes,
        },
        "defaults": defaults,
    }


def _checks(services: Services) -> dict[str, str | None]:
    """Every readiness check: None when passed, else the reason."""
    lifecycle = services.lifecycle
    starting = lifecycle.phase in (Phase.STARTING, Phase.FAILED)
    full_for = services.budget.full_for()
    return {
        "warm_up": (lifecycle.failure or "kernels are being compiled") if starting else None,
        "draining": "shutting down" if lifecycle.phase is Phase.DRAINING else None,
        "workers": None if services.engine.pool.alive else "worker threads are not running",
        "budget": (
            f"byte budget exhausted for {full_for:.0f} s"
            if full_for > services.settings.saturated_seconds
            else None
        ),
    }
