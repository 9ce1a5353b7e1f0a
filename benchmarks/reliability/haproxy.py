"""A balancer before several servers: haproxy, as installed by the system."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from reliability.servers import ServerFailed, free_port

START_SECONDS = 10.0
# A request that meets a dead server goes to another one. haproxy replays only what fits its
# buffer (about 15 kB); larger requests are sent again by the client.
CONFIGURATION = """\
global
    maxconn 2000

defaults
    mode http
    option redispatch 1
    retries 2
    retry-on conn-failure empty-response
    timeout connect 1s
    timeout queue 5s
    timeout client 180s
    timeout server 180s

frontend quiver
    bind 127.0.0.1:{port}
    default_backend replicas

backend replicas
    balance leastconn
    option httpchk GET /readyz
    default-server check inter 250ms fall 1 rise 1
{servers}
"""


class HaproxyMissing(Exception):
    """There is no haproxy on this machine."""


def executable() -> str | None:
    """Where haproxy is; system folders are looked through even where PATH leaves them out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("haproxy", path=path)


def configuration(port: int, replicas: Sequence[int]) -> str:
    """Listen at `port`, send to the servers at `replicas`; both on this machine."""
    lines = [f"    server replica{i} 127.0.0.1:{at}" for i, at in enumerate(replicas)]
    return CONFIGURATION.format(port=port, servers="\n".join(lines))


@contextlib.contextmanager
def balancing(folder: Path, replicas: Sequence[int]) -> Iterator[str]:
    """The URL of a balancer before servers that already answer."""
    found = executable()
    if found is None:
        raise HaproxyMissing("haproxy is not installed")
    port = free_port()
    settings, log = folder / "haproxy.cfg", folder / "haproxy.log"
    settings.write_text(configuration(port, replicas))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [found, "-db", "-f", str(settings)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ServerFailed(f"haproxy did not start:\n{log.read_text(errors='replace')[-2000:]}")
