"""Servers on real sockets, on the fake backend, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import service_fakes

START_SECONDS = 60.0


@dataclass
class LiveServer:
    """A server process on a free port."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def text(self) -> str:
        """All that it has written."""
        return self.log.read_text()


@contextlib.contextmanager
def serving(
    folder: Path, seconds_per_request: float = 0.0, kind: str = "exact", **environment: object
) -> Iterator[LiveServer]:
    """A server for as long as the block runs; `environment` holds settings."""
    descriptor, name = tempfile.mkstemp(".log", dir=folder)
    log = Path(name)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("QUIVER_")}
    given = {"QUIVER_PORT": "0", "QUIVER_THREADS": "2", **environment}
    with os.fdopen(descriptor, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, service_fakes.__file__, str(seconds_per_request), kind],
            env=clean | {key: str(value) for key, value in given.items()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield LiveServer(process, log, _announced_url(process, log))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _announced_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(
            r"^QUIVER is ready at (https?://127\.0\.0\.1:\d+)$", log.read_text(), re.MULTILINE
        )
        if found:
            return found[1]
        time.sleep(0.02)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
