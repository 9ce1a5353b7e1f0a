"""One replica: the app of `quiver_service.app`, ready when it is warm, in a process of Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quiver_kernels import precompiled
from quiver_service.app import create_app
from quiver_service.heap import keep_heap
from quiver_service.lifecycle import Lifecycle, Phase
from quiver_service.protocol import LINGER_SECONDS
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
    are bytes, and an answer that comes before the upload's end reaches the client.

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
            exchange = _Exchange(receive, send)
            await self._app(scope, exchange.receive, exchange.send)
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


class _Exchange:
    """The two ends of a request, sent as Serve's server needs it.

    That server closes the connection as soon as an answer is complete. If the client still sends
    then, the kernel resets the connection, and the answer may be lost: so the end of an early
    answer waits until the client has heard it and left, or has sent all, or a moment has passed.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._more = True

    async def receive(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        body = message.get("body")
        # Serve pickles what goes to its proxy, which a view cannot be; a piece is 1 MiB.
        if type(body) is memoryview:
            message = {**message, "body": bytes(body)}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and self._more:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {**message, "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._more:
                    await self.receive()
