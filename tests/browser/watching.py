"""What a page asks for and complains about, and what axe finds in it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, Request

# Refusals that tests ask for; the browser logs each. And networks of the machine that come and
# go, those of containers too, upon which Chromium breaks its connections.
_EXPECTED = re.compile(
    r"Failed to load resource: (the server responded with a status of 4\d\d|"
    r"net::ERR_NETWORK_CHANGED)"
)
SERIOUS = {"serious", "critical"}


class Traffic:
    """The requests and complaints of a page since it was opened.

    Parameters
    ----------
    page
        Watched from now on.
    """

    def __init__(self, page: Page) -> None:
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.torn = False
        page.on("request", self._note)
        page.on("requestfailed", self._tear)
        page.on("websocket", lambda socket: self.complaints.append(f"web socket {socket.url}"))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def _note(self, request: Request) -> None:
        self.requests.append(request)

    def _tear(self, request: Request) -> None:
        self.torn |= request.resource_type == "script" and "NETWORK" in (request.failure or "")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not _EXPECTED.match(message.text):
            self.complaints.append(f"{message.type}: {message.text}")

    def hosts(self) -> set[str]:
        """Whom the page asked anything, as ``host:port``; its own data is nobody."""
        parts = [urlsplit(request.url) for request in self.requests]
        return {part.netloc for part in parts if part.scheme not in {"data", "blob"}}

    def count(self, path: str) -> int:
        """How often `path` was asked for."""
        return sum(urlsplit(request.url).path == path for request in self.requests)


def serious_issues(page: Page) -> list[str]:
    """What axe calls serious or critical, one line for each element."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for violation in found
        if violation["impact"] in SERIOUS
        for node in violation["nodes"]
    ]
