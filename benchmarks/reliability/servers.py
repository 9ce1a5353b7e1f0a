"""Server processes on free ports: start, watch, stop and kill."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
START_SECONDS = 240.0
STOP_SECONDS = 45.0
REAL = (sys.executable, "-m", "quiver_service")
_READY = re.compile(r"^QUIVER is ready at http://127\.0\.0\.1:(\d+)$", re.MULTILINE)


class ServerFailed(Exception):
    """A server did not start, or ended when it should not; the text holds its last lines."""


@dataclass(frozen=True)
class Sample:
    """What a process holds: resident bytes now and at most, descriptors, threads."""

    seconds: float
    rss: int
    peak_rss: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Server:
    """A server process that is ready."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def text(self) -> str:
        """All that it has written."""
        return self.log.read_text(errors="replace")

    def sample(self) -> Sample:
        return sample(self.process.pid)

    def processor_seconds(self) -> float:
        """What it has used of processors so far, all threads; in steps of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name: str) -> float:
        """A metric without labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def settles(self, seconds: float = 5.0) -> bool:
        """Whether it soon has nothing in flight: no request but the scrape's, no byte lent."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            requests = self.metric("quiver_inflight_requests") - 1
            if requests == 0 and self.metric("quiver_inflight_bytes") == 0:
                return True
            time.sleep(0.05)
        return False

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM), without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL) and take its exit status."""
        self.process.kill()
        self.process.wait()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code; an error if it takes longer than `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"still running after {seconds} s:\n{self.text()[-2000:]}") from None


def planted(fault: str, amount: int, command: Sequence[str] = REAL) -> list[str]:
    """`command`, which runs Python, with a fault of `planted.py` in it."""
    return [command[0], str(HERE / "planted.py"), fault, str(amount), *command[1:]]


def without_settings() -> dict[str, str]:
    """The environment less every setting: a scenario says itself what it sets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("QUIVER_")}


def start(
    folder: Path, command: Sequence[str] = REAL, port: int = 0, **environment: object
) -> Server:
    """A server that is ready; `environment` holds settings. The caller ends it.

    Parameters
    ----------
    folder
        Where its log goes.
    command
        `REAL`, one that `planted` gives, or another that prints the same line when ready.
    port
        0 takes a free one.
    """
    descriptor, name = tempfile.mkstemp(".log", dir=folder)
    given = {"QUIVER_HOST": "127.0.0.1", "QUIVER_PORT": port, **environment}
    with os.fdopen(descriptor, "wb") as output:
        process = subprocess.Popen(
            list(command),
            env=without_settings() | {key: str(value) for key, value in given.items()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        return Server(process, Path(name), _announced_port(process, Path(name)))
    except BaseException:
        process.kill()
        process.wait()
        raise


@contextlib.contextmanager
def serving(
    folder: Path, command: Sequence[str] = REAL, port: int = 0, **environment: object
) -> Iterator[Server]:
    """A ready server for as long as the block runs; killed at its end if it still runs."""
    server = start(folder, command, port, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def sample(pid: int) -> Sample:
    """Read a process's figures from /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return Sample(
        seconds=time.monotonic(),
        rss=int(status["VmRSS"][0]) << 10,
        peak_rss=int(status["VmHWM"][0]) << 10,
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        threads=int(status["Threads"][0]),
    )


def _announced_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := _READY.search(log.read_text(errors="replace")):
            return int(found[1])
        time.sleep(0.01)
    raise ServerFailed(
        f"no server (exit status {process.poll()}):\n{log.read_text(errors='replace')[-4000:]}"
    )
