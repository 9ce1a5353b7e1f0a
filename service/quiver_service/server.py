"""The process: socket, event loop, signals, the printed address, the exit code."""

from __future__ import annotations

import functools
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from quiver_service.app import create_app
from quiver_service.heap import keep_heap
from quiver_service.lifecycle import Phase
from quiver_service.logs import configure_standard_logging
from quiver_service.protocol import GuardedProtocol
from quiver_service.services import Services
from quiver_service.settings import Settings

_BACKLOG = 2048


def run(settings: Settings, app: FastAPI | None = None) -> int:
    """Serve until a signal comes.

    SIGTERM and SIGINT drain: /readyz turns 503 while requests are still taken for
    ``drain_seconds``, then the listener closes and requests in flight have
    ``grace_seconds``. A second signal stops at once.

    Parameters
    ----------
    settings
        See `Settings`.
    app
        What to serve; None: `create_app`.

    Returns
    -------
    int
        Exit code: 0 after a drain, 1 if the service could not start.
    """
    keep_heap()
    configure_standard_logging(settings.log_level)
    try:
        listener = _listen(settings)
    except OSError as error:
        sys.stderr.write(f"QUIVER cannot listen on {_place(settings)}: {error.strerror or error}\n")
        return 1
    app = create_app(settings) if app is None else app
    server = QuiverServer(app, settings, listener)
    services: Services = app.state.services
    if not services.keys.digests and not _is_local(settings):
        services.logger.warning(
            "no keys are set and the address is not local: whoever reaches it may use it",
            host=settings.host,
        )
    try:
        server.run(sockets=None if listener is None else [listener])
    finally:
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)
    return server.exit_code


class QuiverServer(uvicorn.Server):
    """uvicorn with our own signals: unready first, then closed, then gone.

    Parameters
    ----------
    app
        From `create_app`.
    settings
        See `Settings`.
    listener
        The bound socket; None: a Unix socket of the settings.
    """

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket | None) -> None:
        super().__init__(_config(app, settings))
        services: Services = app.state.services
        self._lifecycle = services.lifecycle
        self._settings = settings
        self._listener = listener
        self._announced = False
        self._stop_at: float | None = None
        self.exit_code = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGTERM and SIGINT while the block runs."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; on a second signal stop at once."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._lifecycle.mark_draining()
        self._stop_at = time.monotonic() + self._settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Say when ready, and stop when drained; ten times a second."""
        phase = self._lifecycle.phase
        if phase is Phase.READY and not self._announced:
            self._announced = True
            sys.stdout.write(f"QUIVER is ready at {self._address()}\n")
            sys.stdout.flush()
        elif phase is Phase.FAILED:
            sys.stderr.write(f"QUIVER cannot start: {self._lifecycle.failure}\n")
            self.exit_code = 1
            self.should_exit = True
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def _address(self) -> str:
        if self._listener is None:
            return f"unix://{self._settings.uds}"
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    protocol: Any = functools.partial(GuardedProtocol, header_seconds=settings.header_seconds)
    return uvicorn.Config(
        app,
        uds=None if settings.uds is None else str(settings.uds),
        http=cast("type[GuardedProtocol]", protocol),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
    )


def _listen(settings: Settings) -> socket.socket | None:
    """Bind before anything is compiled, so that a taken port is found at once."""
    if settings.uds is not None:
        _clear_stale(settings.uds)
        return None
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _clear_stale(path: Path) -> None:
    """Remove the socket file of a process that is gone; refuse if one answers."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(0, "a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(0, "another process listens there")


def _is_local(settings: Settings) -> bool:
    return settings.uds is not None or settings.host in {"127.0.0.1", "::1", "localhost"}


def _place(settings: Settings) -> str:
    return str(settings.uds) if settings.uds is not None else f"{settings.host}:{settings.port}"
