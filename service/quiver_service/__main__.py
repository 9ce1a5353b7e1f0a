"""Command line: ``quiver-serve`` or ``python -m quiver_service``."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from quiver_service._version import __version__
from quiver_service.settings import SettingsError, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the service; returns the exit code.

    Parameters
    ----------
    arguments
        Command line without the program's name; None: the process's.
    """
    parser = argparse.ArgumentParser(
        prog="quiver-serve",
        description="Serve adaptive stochastic quantization over HTTP. Settings come from the "
        "environment (QUIVER_HOST, QUIVER_PORT, ...); --print-config lists them.",
    )
    parser.add_argument("--host", help="address to listen on (QUIVER_HOST)")
    parser.add_argument("--port", help="TCP port, 0 for a free one (QUIVER_PORT)")
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    given = {"host": options.host, "port": options.port}
    try:
        settings = load_settings(**{k: v for k, v in given.items() if v is not None})
        if options.print_config:
            sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
            return 0
        # Imported late, so that a bad setting is told without waiting for the rest.
        from quiver_service.server import run

        return run(settings)
    except SettingsError as error:
        sys.stderr.write(f"QUIVER cannot start: {error}\n")
        return 2


def command() -> NoReturn:
    """Run `main` and end the process, even while a thread still compiles or computes."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.daemon for thread in threading.enumerate()):
        # A kernel cannot be stopped, and must not run on while the interpreter is taken down.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
