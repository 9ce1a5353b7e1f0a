"""A balancer before several servers: haproxy, as installed by the system."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reliability.servers import ServerFailed, free_port

START_SECONDS = 10.0
# What is deployed: other addresses than these lines' are all that a scenario changes.
DEPLOYED = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
WHERE = " # where"


class HaproxyMissing(Exception):
    """There is no haproxy on this machine."""


def executable() -> str | None:
    """Where haproxy is; system folders are looked through even where PATH leaves them out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("haproxy", path=path)


def configuration(port: int, replicas: Sequence[int], metrics_port: int) -> str:
    """The deployed configuration with other addresses, all on this machine.

    Parameters
    ----------
    port, metrics_port
        Where to listen for requests, and for scrapes of the balancer's own metrics.
    replicas
        The ports of the servers, which are named replica1 and so on.

    Raises
    ------
    ValueError
        The deployed file has other addresses than the three that are replaced here.
    """
    servers = [f"    server replica{i} 127.0.0.1:{at}" for i, at in enumerate(replicas, 1)]
    places = {
        "bind :8000": f"    bind 127.0.0.1:{port}",
        "bind :8405": f"    bind 127.0.0.1:{metrics_port}",
        "server-template": "\n".join(servers),
    }
    lines = DEPLOYED.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.endswith(WHERE):
            [place] = [place for place in places if line.strip().startswith(place)] or [""]
            if not place:
                raise ValueError(f"{DEPLOYED.name}:{number + 1}: an address unknown here: {line}")
            lines[number] = places.pop(place)
    if places:
        raise ValueError(f"{DEPLOYED.name}: no line for {', '.join(places)}")
    return "\n".join(lines) + "\n"


Configure = Callable[[int, Sequence[int], int], str]


@contextlib.contextmanager
def balancing(
    folder: Path, replicas: Sequence[int], configure: Configure = configuration
) -> Iterator[str]:
    """The URL of a balancer before servers that already answer.

    `configure` makes its configuration, with the parameters of `configuration`.
    """
    found = executable()
    if found is None:
        raise HaproxyMissing("haproxy is not installed")
    port = free_port()
    settings, log = folder / "haproxy.cfg", folder / "haproxy.log"
    settings.write_text(configure(port, replicas, free_port()))
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
