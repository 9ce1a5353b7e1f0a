"""The files of the pages, read once, and how they are served.

A page that came from elsewhere could send vectors elsewhere, so the pages load nothing from
another host, and their policy forbids it to whatever might get into them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

FOLDER = "/ui"
"""Where the files lie that the pages load; their label in logs and metrics."""
PLAYGROUND = "/"
DOCS = "/docs"

_MEDIA_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, but asked about each time: a new version of the service is a new page at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One file as it is served.

    Attributes
    ----------
    body
        Its bytes.
    media_type
        By the end of its name.
    etag
        The beginning of the SHA-256 of `body`, quoted.
    """

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def create(cls, name: str, body: bytes) -> Page:
        """The page of a file called `name`."""
        media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        """The file, or 304 for who has it already."""
        headers = {**_HEADERS, "etag": self.etag}
        if _names(request.headers.getlist("if-none-match"), self.etag):
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def load(*, playground: bool) -> dict[str, Page]:
    """All pages by path, read from the package.

    Parameters
    ----------
    playground
        Whether ``/`` is among them; ``/docs`` always is.
    """
    root = resources.files("quiver_service.playground") / "static"
    files = {name: Page.create(name, body) for name, body in _read(root, "")}
    pages = {DOCS: files.pop("docs.html")}
    index = files.pop("index.html")
    if playground:
        pages[PLAYGROUND] = index
    return pages | {f"{FOLDER}/{name}": page for name, page in files.items()}


def routes(pages: Mapping[str, Page]) -> list[Route]:
    """Routes for `pages`, which are no part of the OpenAPI document."""
    found = [_route(path, page) for path, page in pages.items()]
    return [*found, Route("/redoc", _to_docs, include_in_schema=False)]


def labels(pages: Mapping[str, Page]) -> dict[str, str]:
    """What the paths of `pages` are called in logs and metrics."""
    return {path: FOLDER if path.startswith(f"{FOLDER}/") else path for path in pages}


def _read(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = prefix + entry.name
        if entry.is_dir():
            found += _read(entry, f"{name}/")
        elif entry.name.rpartition(".")[2] in _MEDIA_TYPES:
            found.append((name, entry.read_bytes()))
    return found


def _route(path: str, page: Page) -> Route:
    async def answer(request: Request) -> Response:
        return page.answer(request)

    return Route(path, answer, methods=["GET"], include_in_schema=False)


async def _to_docs(_: Request) -> Response:
    return RedirectResponse("docs", status_code=308)


def _names(values: list[str], etag: str) -> bool:
    """Whether ``If-None-Match`` holds `etag`."""
    given = {one.strip().removeprefix("W/") for value in values for one in value.split(",")}
    return bool(given & {etag, "*"})
