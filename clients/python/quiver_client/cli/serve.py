"""``quiver serve``."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import click

from quiver_client.cli.errors import MISSING, OK, CommandError
from quiver_client.cli.output import Output, output_options, pass_output

# By name: the service is another distribution, which clients never import.
SERVICE = "quiver_service"
POSIX = os.name == "posix"


@click.command("serve")
@click.option("--host", metavar="HOST", help="Address to listen on, as QUIVER_HOST. [127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on, as QUIVER_PORT; 0: a free one. [8000]",
)
@output_options
@pass_output
def command(output: Output, host: str | None, port: int | None) -> int:
    """Start the service on this machine, if it is installed.

    All its settings are environment variables that begin with QUIVER_, as docs/operations.md
    lists them. It prints its URL when it is ready and stops at Ctrl-C.
    """
    if importlib.util.find_spec(SERVICE) is None:
        raise CommandError(
            "the service is not installed here",
            "pip install quiver-service, or run its image: docker compose up",
            exit_code=MISSING,
            code="service_missing",
        )
    environment = dict(os.environ)
    if host is not None:
        environment["QUIVER_HOST"] = host
    if port is not None:
        environment["QUIVER_PORT"] = str(port)
    output.note(f"starting {SERVICE}; Ctrl-C stops it")
    return _become([sys.executable, "-m", SERVICE], environment)


def _become(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a program in the place of this one; where that cannot be, wait for it."""
    if POSIX:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(arguments[0], arguments, environment)  # noqa: S606 - our own interpreter
    try:
        return subprocess.run(arguments, env=environment, check=False).returncode  # noqa: S603
    except KeyboardInterrupt:
        return OK
