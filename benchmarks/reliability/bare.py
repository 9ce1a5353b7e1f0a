"""A plain uvicorn server, without any limit on time: the control of `slow`.

Its one handler does what one writes first: it reads the whole body and answers.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def count(request: Request) -> Response:
    """The body's length."""
    return Response(str(len(await request.body())))


def main() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(os.environ.get("QUIVER_PORT", "0"))))
    app = Starlette(routes=[Route("/quantize", count, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    # The line that `servers` waits for; the socket's queue holds who comes before the loop runs.
    listener.listen(2048)
    print(f"QUIVER is ready at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    sys.exit(main())
