"""Connections to one service, kept and shared between threads."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections import deque

from quiver_client._cancellation import Cancellation
from quiver_client._connection import Connection, StaleConnection
from quiver_client._deadline import Deadline
from quiver_client._messages import Request, Response
from quiver_client._target import Target
from quiver_client.errors import ClientClosed, ConnectionFailed, TimedOut

EXPECT_ABOVE = 1 << 20
MAX_ANSWER = 16 << 30


class Transport:
    """Sends requests over kept connections; safe for any number of threads.

    Parameters
    ----------
    target
        Where the service is.
    connect_timeout
        Seconds to establish a connection.
    ssl_context
        For ``https``; None: the system's trusted certificates.
    max_idle
        Connections kept open between requests. Those in use are not limited.
    expect_above
        Bytes of a body above which leave is asked before it is sent, so that a busy
        service refuses without reading it.
    max_answer
        Bytes of the largest answer taken.
    """

    def __init__(
        self,
        target: Target,
        *,
        connect_timeout: float = 5.0,
        ssl_context: ssl.SSLContext | None = None,
        max_idle: int = 32,
        expect_above: int = EXPECT_ABOVE,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self.target = target
        self._connect_timeout = connect_timeout
        self._ssl_context = ssl_context
        self._max_idle = max_idle
        self._expect_above = expect_above
        self._max_answer = max_answer
        # Appending to and popping from a deque is atomic: no lock.
        self._idle: deque[Connection] = deque()
        self._process = os.getpid()
        self._expects = True
        self._closed = False

    def send(
        self, request: Request, deadline: Deadline, cancellation: Cancellation | None = None
    ) -> Response:
        """Send once and read the whole response, of whatever status.

        Raises
        ------
        ConnectionFailed, TimedOut, BadAnswer
            No complete response.
        ClientClosed
            After `close`.
        """
        cancellation = cancellation or Cancellation()
        kept = self._take()
        if kept is not None:
            with contextlib.suppress(StaleConnection):
                return self._exchange(kept, request, deadline, cancellation)
        fresh = self._connect(deadline)
        return self._exchange(fresh, request, deadline, cancellation)

    def close(self) -> None:
        """Close the idle connections; those in use close when their request is done."""
        self._closed = True
        self._drop_idle()

    def _exchange(
        self,
        connection: Connection,
        request: Request,
        deadline: Deadline,
        cancellation: Cancellation,
    ) -> Response:
        expect = self._expects and request.length > self._expect_above
        try:
            with cancellation.guarding(connection.sock):
                response = connection.exchange(request, self.target.host_header, deadline, expect)
        except BaseException:
            # Also on KeyboardInterrupt: a half-read connection must not be used again.
            connection.close()
            cancellation.check()
            raise
        if connection.ignores_expect or (expect and response.status == 417):
            self._expects = False
        self._give(connection)
        if expect and response.status == 417:
            return self.send(request, deadline, cancellation)
        return response

    def _take(self) -> Connection | None:
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._process != os.getpid():
            # After a fork the parent owns these sockets: two writers would mix requests.
            self._process = os.getpid()
            self._drop_idle()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_quiet():
                return connection
            connection.close()

    def _give(self, connection: Connection) -> None:
        if not connection.reusable or self._closed or len(self._idle) >= self._max_idle:
            connection.close()
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _connect(self, deadline: Deadline) -> Connection:
        seconds = min(self._connect_timeout, deadline.require())
        try:
            sock = self._open_socket(seconds)
        except ssl.SSLCertVerificationError as error:
            raise ConnectionFailed(
                f"the certificate of {self.target} is not trusted: {error.verify_message}",
                transient=False,
            ) from None
        except OSError as error:
            if isinstance(error, TimeoutError) and deadline.left() <= 0:
                raise TimedOut(f"no connection to {self.target} within the timeout") from None
            raise ConnectionFailed(f"no connection to {self.target}: {error}") from None
        return Connection(sock, tls=self.target.tls, max_answer=self._max_answer)

    def _open_socket(self, seconds: float) -> socket.socket:
        target = self.target
        if target.socket_path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(seconds)
                sock.connect(target.socket_path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((target.host, target.port), seconds)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not target.tls:
                return sock
            if self._ssl_context is None:
                self._ssl_context = ssl.create_default_context()
            return self._ssl_context.wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise
