"""What tests of more than one folder share: a server, started as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 240
STOP_SECONDS = 45
COMPILE = (
    "from quiver_kernels import dispatch; dispatch.load('cpu').warm_up()",
    "from quiver_kernels.schemes import registry; registry.warm_up()",
)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels once, before the test processes would each do so for themselves."""
    if session.config.getoption("numprocesses", None):
        compilers = [subprocess.Popen([sys.executable, "-c", code]) for code in COMPILE]
        assert [compiler.wait() for compiler in compilers] == [0] * len(COMPILE)


def without_settings(environment: dict[str, str]) -> dict[str, str]:
    """The environment less every QUIVER_* setting: a test says itself what it sets."""
    return {name: value for name, value in environment.items() if not name.startswith("QUIVER_")}


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when GET /readyz answers 200; fail with the server's log when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as not_ready:
            not_ready.close()
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail(f"no server at {url} (exit status {server.poll()}):\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def live_server(
    tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Callable[[], int]
) -> Iterator[str]:
    """The URL of `python -m quiver_service` on a free port; one server for each test process."""
    port = unused_tcp_port_factory()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("live_server") / "server.log"
    settings = {"QUIVER_HOST": "127.0.0.1", "QUIVER_PORT": str(port)}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "quiver_service"],
            env=without_settings(dict(os.environ)) | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_ready(url, server, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
