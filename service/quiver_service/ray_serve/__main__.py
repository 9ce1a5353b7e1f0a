"""Command line: ``python -m quiver_service.ray_serve`` starts the service on a running cluster."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from quiver_service.auth import check_exposure
from quiver_service.ray_serve.options import ServeOptions, replica_settings
from quiver_service.settings import PREFIX, Settings, SettingsError

# Where Serve runs proxies, in its words.
_PROXIES = {"every": "EveryNode", "head": "HeadOnly"}
# Of the proxies, not of the replicas.
_OF_PROXIES = (f"{PREFIX}HOST", f"{PREFIX}PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy, and wait for a signal unless told not to; returns the exit code.

    Parameters
    ----------
    arguments
        Command line without the program's name; None: the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m quiver_service.ray_serve",
        description="Serve adaptive stochastic quantization on a Ray cluster. QUIVER_* settings "
        "of this environment go to the replicas; QUIVER_HOST and QUIVER_PORT are the proxies'.",
    )
    parser.add_argument("--address", default="auto", help="of the cluster (default: auto)")
    parser.add_argument("--detach", action="store_true", help="return when it is ready")
    parser.add_argument(
        "--proxies", choices=list(_PROXIES), default="every", help="which nodes have one"
    )
    for name, field in ServeOptions.model_fields.items():
        if name != "settings":
            # A % would be a format's.
            text = f"{field.description} (default: {field.default})".replace("%", "%%")
            parser.add_argument(f"--{name.replace('_', '-')}", help=text)
    given = vars(parser.parse_args(arguments))
    chosen = {
        name: given[name] for name in ServeOptions.model_fields if given.get(name) is not None
    }
    own = {
        name: value
        for name, value in os.environ.items()
        if name.removeprefix(PREFIX).lower() in Settings.model_fields
        and name.startswith(PREFIX)
        and name not in _OF_PROXIES
    }
    try:
        options = ServeOptions(**chosen, settings=own)
        settings = replica_settings(options)
        check_exposure(settings)
    except ValidationError as error:
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            sys.stderr.write(f"QUIVER cannot start: {where}: {item['msg']}\n")
        return 2
    except SettingsError as error:
        sys.stderr.write(f"QUIVER cannot start: {error}\n")
        return 2
    placed = Placed(str(given["address"]), _PROXIES[str(given["proxies"])])
    return _deploy(options, settings, placed, detach=bool(given["detach"]))


@dataclass(frozen=True, slots=True)
class Placed:
    """Which cluster, and on which of its nodes Serve runs proxies."""

    address: str
    proxies: str


def _deploy(options: ServeOptions, settings: Settings, where: Placed, *, detach: bool) -> int:
    # Imported late, so that a bad setting is told without Ray.
    import ray
    from ray import serve

    from quiver_service.ray_serve.app import NAME, build

    try:
        ray.init(address=where.address, log_to_driver=False)
    except ConnectionError as error:
        sys.stderr.write(
            f"QUIVER cannot start: there is no Ray cluster at {where.address}: {error}\n"
        )
        return 1
    serve.start(
        proxy_location=where.proxies, http_options={"host": settings.host, "port": settings.port}
    )
    serve.run(build(options), name=NAME, route_prefix="/")
    sys.stdout.write(f"QUIVER is ready at http://{settings.host}:{settings.port}\n")
    sys.stdout.flush()
    if detach:
        return 0
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    # Replicas finish what they have; other applications of the cluster stay.
    serve.delete(NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
