"""Plain servers that `speed` compares with: ``python rivals.py sink|naive|echo``.

``sink`` is bare ASGI that only receives a body into an array, with the same heap settings as the
service. ``naive`` is the FastAPI handler that one writes first: ``request.body()``, ``unpackb``,
the kernel on the event loop. ``echo`` is a FastAPI handler that sends the body back.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from quiver_service.heap import keep_heap

MEDIA_TYPE = "application/vnd.msgpack"


async def sink(scope: Any, receive: Any, send: Any) -> None:
    """Receive a body into an array, and no more."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    length = int(dict(scope["headers"])[b"content-length"])
    view, filled = np.empty(length, np.uint8).data, 0
    while True:
        message = await receive()
        chunk = message.get("body", b"")
        view[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
        if not message.get("more_body", False):
            break
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


def naive() -> FastAPI:
    """What one writes first, with probes."""
    # Its folder is not that of a script here.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from big_body import plain_app

    app = plain_app()

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    return app


def echo() -> FastAPI:
    """The body, back."""
    app = FastAPI()

    @app.post("/quantize")
    async def quantize(request: Request) -> Response:
        return Response(await request.body(), media_type=MEDIA_TYPE)

    return app


def main(kind: str) -> None:
    """Serve until stopped."""
    app: Any
    if kind == "sink":
        keep_heap()
        app = sink
    else:
        app = {"naive": naive, "echo": echo}[kind]()
    listener = socket.create_server(("127.0.0.1", int(os.environ.get("QUIVER_PORT", "0"))))
    print(f"QUIVER is ready at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
