"""The ASGI app: parts, routes, lifespan."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request

from quiver_kernels.errors import QuiverError
from quiver_service import health, routes
from quiver_service._version import __version__
from quiver_service.engine import Engine
from quiver_service.errors import ServiceError
from quiver_service.heap import settle_heap
from quiver_service.middleware import RequestMiddleware
from quiver_service.openapi import document
from quiver_service.playground import pages
from quiver_service.services import Services
from quiver_service.settings import Settings

_CLOSE_SECONDS = 1.0


class QuiverApp(FastAPI):
    """FastAPI whose document also describes MessagePack bodies."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            self.openapi_schema = document.complete(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """Build the app; threads start and kernels compile in its lifespan.

    Parameters
    ----------
    settings
        See `Settings`.
    engine
        What computes; None: one on the kernels' backends, sized by `settings`.

    Returns
    -------
    FastAPI
        Its parts are at ``app.state.services``.

    Raises
    ------
    SettingsError
        The keys of the settings cannot be read.
    """
    services = Services.create(settings, engine)
    files = pages.load(playground=settings.playground)
    app = QuiverApp(
        title="QUIVER",
        summary="Adaptive stochastic quantization as a service",
        description=document.DESCRIPTION,
        version=__version__,
        openapi_tags=document.TAGS,
        lifespan=_lifespan(services),
        redirect_slashes=False,
        # The framework's page loads its scripts from another host; `pages` has one of our own.
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: _as_service_error},
        # Spans and metrics are the service's own (`tracing`, `metrics`).
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    app.include_router(routes.router)
    app.include_router(routes.router, prefix=routes.VERSION_PREFIX, include_in_schema=False)
    app.include_router(health.router)
    app.router.routes.extend(pages.routes(files))
    # The last one added is the first to see a request.
    app.add_middleware(routes.Shortcut, services=services)
    app.add_middleware(RequestMiddleware, services=services, routes=_labels(files))
    return app


def _labels(files: Mapping[str, pages.Page]) -> dict[str, str]:
    return {path: path for path in document.PATHS} | pages.labels(files)


def _lifespan(services: Services) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.engine.start()
        # Not awaited at the end: a compiler cannot be interrupted, and nobody needs its work then.
        threading.Thread(
            target=_warm_up, args=(services,), name="quiver-warm-up", daemon=True
        ).start()
        yield
        services.lifecycle.mark_draining()
        # Requests are answered or have had their grace time: nobody waits for what still runs.
        await asyncio.to_thread(services.engine.close, _CLOSE_SECONDS)
        services.buffers.close()
        services.reporter.close()
        await asyncio.to_thread(services.tracer.close)

    return lifespan


def _warm_up(services: Services) -> None:
    try:
        services.engine.warm_up()
        settle_heap()
    except Exception as error:
        # Whatever it is, the process lives on to say so at /readyz.
        named = f"warm-up failed with {type(error).__name__}; the log has the reason"
        detail = error.detail if isinstance(error, QuiverError) else named
        services.logger.exception("warm-up failed")
        services.lifecycle.mark_failed(detail)
        return
    services.lifecycle.mark_ready()
    # What few ask for is compiled, or loaded, while the others are served.
    try:
        services.engine.warm_up_schemes()
    except Exception:
        services.logger.exception("warm-up of schemes failed")


async def _as_service_error(request: Request, error: Exception) -> NoReturn:
    """Starlette's own refusals (no such path or method) as errors of ours."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path, method = request.url.path[:200], request.method
    if status == 404:
        raise ServiceError("not_found", f"there is nothing at {path}", field="path")
    if status == 405:
        allowed = Headers(getattr(error, "headers", None) or {}).get("allow", "")
        raise ServiceError(
            "method_not_allowed",
            f"{path} does not take {method}; it takes {allowed}",
            field="method",
            got=method,
            headers={"allow": allowed},
        )
    raise ServiceError("malformed_request", f"the request was refused with status {status}")
