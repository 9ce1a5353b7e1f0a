"""The end of a listening socket."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from quiver_service.door import close_door, turn_away

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="packet filters are Linux's")


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(request.param) as listening:
        listening.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", 0))
        yield listening


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes the sockets that a test entered."""
    with ExitStack() as stack:
        yield stack


def connected(listener: socket.socket, opened: ExitStack) -> socket.socket:
    client = opened.enter_context(socket.socket(listener.family))
    client.settimeout(5)
    client.connect(listener.getsockname())
    return client


def test_who_waits_is_let_in(listener: socket.socket, opened: ExitStack):
    listener.listen(16)
    clients = [connected(listener, opened) for _ in range(8)]

    turn_away(listener)
    waiting = close_door(listener)
    for entered in waiting:
        opened.enter_context(entered)

    assert [w.getpeername() for w in waiting] == [c.getsockname() for c in clients]


@LINUX
def test_nobody_begins_any_more(listener: socket.socket):
    listener.listen(16)
    assert turn_away(listener)

    with socket.socket(listener.family) as late:
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        assert close_door(listener) == []


@LINUX
@pytest.mark.parametrize("closed_at_once", [False, True])
def test_a_handshake_that_has_begun_ends(
    listener: socket.socket, opened: ExitStack, closed_at_once: bool
):
    # The last packet of a handshake is dropped: the client is connected, the server has nothing
    # in its queue before the first data come.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    listener.listen(16)
    client = connected(listener, opened)

    assert turn_away(listener)
    if closed_at_once:  # what the wait is for
        assert close_door(listener) == []
        client.sendall(b"hello")
        with pytest.raises(ConnectionError):
            client.recv(1)
        return
    client.sendall(b"hello")
    assert select.select([listener], [], [], 5)[0]
    (waiting,) = close_door(listener)
    opened.enter_context(waiting)

    assert waiting.recv(5) == b"hello"
    waiting.sendall(b"hello back")
    assert client.recv(10) == b"hello back"
