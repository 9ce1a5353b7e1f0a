"""One replica: the app of `quiver_service.app`, ready when it is warm, in a process of Ray's."""

from __future__ import annotations

import asyncio
import os
import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quiver_kernels import precompiled
from quiver_service.app import create_app
from quiver_service.heap import keep_heap
from quiver_service.lifecycle import Lifecycle, Phase
from quiver_service.ray_serve.options import ServeOptions, replica_settings
from quiver_service.ray_serve.scaling import HELD
from quiver_service.services import Services

_POLL_SECONDS = 0.05
# As in `server`: a kernel's thread in Python code must not keep the event loop waiting for long.
_SWITCH_SECONDS = 0.0005


class NotHealthy(Exception):
    """The replica cannot serve any more; Serve replaces it."""


class Replica:
    """What Serve calls in a replica's process; its requests go to the app.

    Parameters
    ----------
    options
        Of the application.
    """

    def __init__(self, options: ServeOptions) -> None:
        settings = replica_settings(options)
        keep_heap()
        sys.setswitchinterval(_SWITCH_SECONDS)
        if settings.precompiled_dir is not None:
            # Before anything imports Numba.
            precompiled.offer(settings.precompiled_dir, os.environ)
        self._app = create_app(settings)
        self._services: Services = self._app.state.services

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app; Serve asks once, before requests come."""
        return OnServe(self._app, self._services.lifecycle)

    def check_health(self) -> None:
        """Raise if this replica must be replaced; Serve asks every few seconds."""
        lifecycle, pool = self._services.lifecycle, self._services.engine.pool
        if lifecycle.phase is Phase.FAILED:
            raise NotHealthy(lifecycle.failure or "warm-up failed")
        if lifecycle.phase is Phase.READY and not pool.alive:
            raise NotHealthy("worker threads are not running")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling.ByHeldBytes` goes by."""
        budget = self._services.budget
        return {HELD: budget.used / budget.capacity}


class OnServe:
    """An app as Serve takes it.

    Its lifespan has begun when its kernels are compiled, so no request comes before. What it sends
    are bytes.

    Parameters
    ----------
    app
        From `create_app`.
    lifecycle
        Its own.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "lifespan":

            async def send_bytes(message: Message) -> None:
                body = message.get("body")
                # Serve pickles what goes to its proxy, which a view cannot be; a piece is 1 MiB.
                await send(
                    {**message, "body": bytes(body)} if type(body) is memoryview else message
                )

            await self._app(scope, receive, send_bytes)
            return

        async def send_when_warm(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                # A thread sets it.
                while self._lifecycle.phase is Phase.STARTING:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
                if self._lifecycle.phase is Phase.FAILED:
                    failure = self._lifecycle.failure or "warm-up failed"
                    message = {"type": "lifespan.startup.failed", "message": failure}
            await send(message)

        await self._app(scope, receive, send_when_warm)
