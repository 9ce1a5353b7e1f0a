"""The process: socket, event loop, signals, the printed address, the exit code."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from quiver_kernels import precompiled
from quiver_service.app import create_app
from quiver_service.auth import SHORT_KEY, check_exposure, is_local
from quiver_service.door import HANDSHAKE_SECONDS, close_door, turn_away
from quiver_service.heap import keep_heap
from quiver_service.lifecycle import Phase
from quiver_service.logs import configure_standard_logging
from quiver_service.protocol import FAREWELL_SECONDS, LINGER_SECONDS, GuardedProtocol
from quiver_service.services import Services
from quiver_service.settings import Settings
from quiver_service.tls import server_context

_BACKLOG = 2048
_SWITCH_SECONDS = 0.0005
_STARTUP_FAILURE = 3


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

    Raises
    ------
    SettingsError
        Strangers could connect and nothing asks who they are, or a file that a setting
        names cannot be used.
    """
    check_exposure(settings)
    encryption = server_context(settings)
    keep_heap()
    # A kernel's thread that is in Python code must not keep the event loop waiting for long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    configure_standard_logging(settings.log_level)
    try:
        listener = _listen(settings)
    except OSError as error:
        sys.stderr.write(f"QUIVER cannot listen on {_place(settings)}: {_reason(error)}\n")
        return 1
    # Before anything imports Numba.
    choice = None
    if settings.precompiled_dir is not None:
        choice = precompiled.offer(settings.precompiled_dir, os.environ)
    app = create_app(settings) if app is None else app
    server = QuiverServer(app, settings, listener, encryption)
    services: Services = app.state.services
    if choice is not None:
        services.logger.info("precompiled kernels", target=choice.level, reason=choice.reason)
    _warn(services)
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
    encryption
        Makes it HTTPS; None: HTTP.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        listener: socket.socket | None,
        encryption: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(_config(app, settings))
        services: Services = app.state.services
        self._lifecycle = services.lifecycle
        self._settings = settings
        self._listener = listener
        self._encryption = encryption
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; uvicorn's own gives a TLS handshake a minute."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(_STARTUP_FAILURE)
        loop, config, path = asyncio.get_running_loop(), self.config, self._settings.uds
        if path is not None:
            server = await loop.create_unix_server(
                self._protocol, path=str(path), backlog=config.backlog
            )
            # Whoever may enter its folder may connect.
            path.chmod(0o666)
            self.servers = [server]
        else:
            self.servers = [await self._serve_tcp(listener) for listener in sockets or ()]
        self.started = True

    async def _serve_tcp(self, listener: socket.socket) -> asyncio.Server:
        # The loop closes the socket that it is given; ours stays, until the door closes.
        return await asyncio.get_running_loop().create_server(
            self._protocol, sock=listener.dup(), backlog=self.config.backlog, **self._tls()
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let in who waits at the door, close it, finish what has begun."""
        if self._listener is not None:
            if turn_away(self._listener):
                await asyncio.sleep(HANDSHAKE_SECONDS)
            for server in self.servers:
                server.close()
            loop = asyncio.get_running_loop()
            entering = [
                loop.create_task(loop.connect_accepted_socket(self._protocol, sock, **self._tls()))
                for sock in close_door(self._listener)
            ]
            if entering:
                await asyncio.wait(entering, timeout=FAREWELL_SECONDS)
        await super().shutdown(sockets)

    def _tls(self) -> dict[str, Any]:
        if self._encryption is None:
            return {}
        return {
            "ssl": self._encryption,
            "ssl_handshake_timeout": self._settings.header_seconds,
            "ssl_shutdown_timeout": LINGER_SECONDS,
        }

    def _protocol(self) -> GuardedProtocol:
        return GuardedProtocol(
            header_seconds=self._settings.header_seconds,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

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
        scheme = "http" if self._encryption is None else "https"
        host, port = self._listener.getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
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
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(0, "its folder is not there or not to be written to") from None
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(0, "another process listens there")


def _warn(services: Services) -> None:
    settings, keys = services.settings, services.keys
    guarded = keys.digests or settings.tls_client_ca_file is not None
    if not guarded and not is_local(settings):
        services.logger.warning(
            "no keys are set and the address is not local: whoever reaches it may use it",
            host=settings.host,
        )
    if keys.digests and settings.tls_cert_file is None and not is_local(settings):
        services.logger.warning(
            "keys travel unencrypted unless a proxy in front speaks TLS", host=settings.host
        )
    if keys.short:
        services.logger.warning(
            "keys that are short can be guessed", keys=keys.short, characters_below=SHORT_KEY
        )


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return f"{reason}; QUIVER_PORT chooses another (0: a free one)"
    return reason


def _place(settings: Settings) -> str:
    return str(settings.uds) if settings.uds is not None else f"{settings.host}:{settings.port}"
