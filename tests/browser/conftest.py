"""A service as a user starts it, and pages of it in headless Chromium."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))

from watching import Traffic

START_SECONDS = 240
# For whatever a page is waited for; machines may be busy.
PATIENCE_MILLISECONDS = 30_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEY = "a-key-of-the-tests-0123456789"


def chromium_path() -> str:
    """The browser of this machine: QUIVER_TEST_CHROMIUM, or the first of the usual names."""
    named = os.environ.get("QUIVER_TEST_CHROMIUM")
    found = [path for name in NAMES if (path := shutil.which(name))]
    if named is None and not found:
        pytest.exit(
            "no Chromium on this machine: install it (Debian: apt-get install chromium), or name "
            "one in QUIVER_TEST_CHROMIUM",
            returncode=3,
        )
    return named or found[0]


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[str]:
    """The URL of a service on a free port, for as long as the block runs."""
    log = folder / "server.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUIVER_")}
    python = os.environ.get("QUIVER_TEST_PYTHON", sys.executable)
    with log.open("wb") as output:
        server = subprocess.Popen(
            [python, "-m", "quiver_service", "--port", "0"],
            env=clean | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and server.poll() is None:
            if ready := re.search(r"^QUIVER is ready at (\S+)$", log.read_text(), re.MULTILINE):
                yield ready[1]
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"the service did not start:\n{log.read_text()[-4000:]}")
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service without keys."""
    with serving(tmp_path_factory.mktemp("open")) as found:
        yield found


@pytest.fixture(scope="session")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for `KEY` and takes small bodies."""
    folder = tmp_path_factory.mktemp("guarded")
    limits = {"QUIVER_API_KEYS": KEY, "QUIVER_MAX_BODY_BYTES": "300000"}
    with serving(folder, **limits) as found:
        yield found


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    # As root Chromium has no sandbox; all that it loads here is our own.
    browser = playwright.chromium.launch(
        executable_path=chromium_path(), args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., tuple[Page, Traffic]]]:
    """Opens pages, each with its `Traffic`; at the end no page may have complained."""
    opened: list[tuple[Page, Traffic]] = []

    def opening(address: str, **options: object) -> tuple[Page, Traffic]:
        width, height = options.pop("size", (1280, 900))
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        for _ in range(3):
            page = context.new_page()
            traffic = Traffic(page)
            page.goto(address)
            if not traffic.torn:
                break
            # A module of the page was lost to a network that changed.
            page.close()
        opened.append((page, traffic))
        return page, traffic

    yield opening
    complaints = [line for _, traffic in opened for line in traffic.complaints]
    for page, _ in opened:
        page.context.close()
    assert complaints == []
