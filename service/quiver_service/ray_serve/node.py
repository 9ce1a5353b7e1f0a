"""A node of a cluster in a container: ``python -m quiver_service.ray_serve.node head|worker``.

A head starts the cluster and deploys the service on it; a worker joins, and waits for a head if
there is none. Either ends when Ray on it ends, so that whatever keeps containers starts it again.
A worker that is told to stop lets its replicas move to other nodes first.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Role = Literal["head", "worker"]

PORT = 6379
"""Where a head listens for its cluster."""

NODE_PORT = 6380
"""Where every node listens for others."""

# All others of a node, named, so that a wall between nodes can let them through.
_PORTS = {
    "--object-manager-port": 6381,
    "--runtime-env-agent-port": 6382,
    "--dashboard-agent-grpc-port": 6383,
    "--dashboard-agent-listen-port": 6384,
    "--metrics-export-port": 6385,
}

_POLL_SECONDS = 0.2
_WATCH_SECONDS = 1.0
_MISSED = 3
_CONNECT_SECONDS = 2.0
_STOP_SECONDS = 10.0
# How long Ray waits, told to end, for what runs on its node to move.
_DRAIN_SETTING = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
# Replicas of Serve listen from port 30000 on: neither there nor where the system takes ports.
_WORKER_PORTS = (10_002, 19_999)


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is started with.

    Attributes
    ----------
    role
        ``head`` or ``worker``.
    head
        Name or address of the head's machine, for a worker.
    store_bytes
        Bytes of the object store; /dev/shm must hold them.
    num_cpus
        Processors that tasks and replicas may take; None: those of the container. A head has none.
    leave_seconds
        How long replicas may take to move when a worker is told to stop; Serve ends them without
        waiting for those in their place when less than 35 s are left.
    """

    role: Role
    head: str = "ray-head"
    store_bytes: int = 256 << 20
    num_cpus: int | None = None
    leave_seconds: float = 60.0


def ray_command(options: NodeOptions, own_address: str) -> list[str]:
    """The command that runs Ray on this node until it ends.

    Parameters
    ----------
    options
        Of the node.
    own_address
        This node's address, as other nodes see it.
    """
    low, high = _WORKER_PORTS
    given = _PORTS | {
        "--node-ip-address": own_address,
        "--node-manager-port": NODE_PORT,
        "--object-store-memory": options.store_bytes,
        "--min-worker-port": low,
        "--max-worker-port": high,
        # Nobody listens to what it would send.
        "--include-log-monitor": "false",
    }
    if options.role == "head":
        given |= {"--port": PORT, "--num-cpus": 0, "--include-dashboard": "false"}
    else:
        given["--address"] = f"{options.head}:{PORT}"
        if options.num_cpus is not None:
            given["--num-cpus"] = options.num_cpus
    parts = [f"{name}={value}" for name, value in given.items()]
    command = ["ray", "start", "--block", "--disable-usage-stats", "--log-style=record", *parts]
    return [*command, "--head"] if options.role == "head" else command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until Ray on it ends or a signal comes; returns the exit code.

    Parameters
    ----------
    arguments
        Command line without the program's name; None: the process's.
    """
    options, app = _parsed(arguments)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    own_address = socket.gethostbyname(socket.gethostname())
    if options.role == "worker":
        _say(f"waiting for a head at {options.head}:{PORT}")
        while not listens(options.head, PORT):
            if told.wait(_POLL_SECONDS):
                return 0
    command = ray_command(options, own_address)
    # In a session of its own: a signal to all must not end it before its replicas have moved.
    environment = {**os.environ, _DRAIN_SETTING: str(_drain_seconds(options))}
    with subprocess.Popen(command, env=environment, start_new_session=True) as ray:  # noqa: S603
        watched = Watched(own_address)

        def goes_on() -> bool:
            """Look, once a second, until there is a signal or nothing left to wait for."""
            return not told.wait(_WATCH_SECONDS) and ray.poll() is None and not watched.is_gone()

        try:
            code = _deploy(own_address, app, goes_on) if options.role == "head" else None
            while code is None and goes_on():
                pass
            if code is not None and not told.is_set():
                return code
            if not told.is_set():
                _say("Ray has ended")
                return 1
            return 0
        finally:
            _stop(ray, _drain_seconds(options) + _STOP_SECONDS)


class Watched:
    """Whether this node's own part of Ray is still there, from when it has been seen first.

    ``ray start`` itself waits for minutes for what has ended while it started, as it does on a
    machine that is too busy: it takes 15 s for its processes, and no setting changes that.

    Parameters
    ----------
    own_address
        Of this node.
    """

    def __init__(self, own_address: str) -> None:
        self._address = own_address
        self._seen = False
        self._missed = 0

    def is_gone(self) -> bool:
        """Look once; it is gone when it was missed three times on end."""
        if listens(self._address, NODE_PORT):
            self._seen, self._missed = True, 0
        else:
            self._missed += self._seen
        return self._missed >= _MISSED


def listens(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    with suppress(OSError), socket.create_connection((host, port), _CONNECT_SECONDS):
        return True
    return False


def _parsed(arguments: Sequence[str] | None) -> tuple[NodeOptions, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m quiver_service.ray_serve.node",
        description="Be a node of a Ray cluster. A head deploys the service, too: what is not "
        "named here goes to `python -m quiver_service.ray_serve`.",
    )
    default = NodeOptions("head")
    parser.add_argument("role", choices=["head", "worker"])
    parser.add_argument("--head", default=default.head, help="where the head is, for a worker")
    parser.add_argument("--store-bytes", type=int, default=default.store_bytes)
    parser.add_argument("--num-cpus-of-node", type=int, default=None)
    parser.add_argument("--leave-seconds", type=float, default=default.leave_seconds)
    given, app = parser.parse_known_args(arguments)
    if app and given.role == "worker":
        parser.error(f"a worker deploys nothing; got {' '.join(app)}")
    if given.store_bytes < 1:
        parser.error(f"--store-bytes must be positive; got {given.store_bytes}")
    if not 0 <= given.leave_seconds <= 3600:
        parser.error(f"--leave-seconds must be from 0 to 3600; got {given.leave_seconds}")
    options = NodeOptions(
        role=given.role,
        head=given.head,
        store_bytes=given.store_bytes,
        num_cpus=given.num_cpus_of_node,
        leave_seconds=given.leave_seconds,
    )
    return options, app


def _deploy(own_address: str, app: Sequence[str], goes_on: Callable[[], bool]) -> int | None:
    """Deploy the service: it needs workers, so this may take until they come.

    Returns the exit code of a deployment that failed, and None otherwise.
    """
    while not listens(own_address, PORT):
        if not goes_on():
            return None
    address = f"{own_address}:{PORT}"
    command = [sys.executable, "-m", "quiver_service.ray_serve", "--address", address]
    command += ["--proxies", "head", "--detach", *app]
    with subprocess.Popen(command) as deploying:  # noqa: S603
        while deploying.poll() is None and goes_on():
            pass
        if deploying.poll() is None:
            deploying.kill()
        return deploying.poll() or None


def _drain_seconds(options: NodeOptions) -> float:
    """There is nothing on a head that could move."""
    return options.leave_seconds if options.role == "worker" else 0.0


def _stop(ray: subprocess.Popen[bytes], seconds: float) -> None:
    """End it; told to, it leaves the cluster and waits until its replicas have moved."""
    if ray.poll() is None:
        ray.terminate()
    with suppress(subprocess.TimeoutExpired):
        ray.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(ray.pid, signal.SIGKILL)


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
