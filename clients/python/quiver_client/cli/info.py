"""``quiver info``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import click
import numpy as np

from quiver_client._version import __version__
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.tables import shortened, table
from quiver_client.cli.where import Where, where_options


@click.command("info")
@where_options
@output_options
@pass_output
def command(output: Output, where: Where) -> None:
    """Versions, devices and methods, of this process or of a service (--server).

    Example: quiver info --server http://127.0.0.1:8000
    """
    with where.connect() as client:
        found = client.info()
    here = {"client": __version__, "python": platform.python_version(), "numpy": np.__version__}
    output.result(
        {"where": where.name, "here": here, "info": found}, lambda: _text(where.name, here, found)
    )


def _text(where: str, here: Mapping[str, str], found: Mapping[str, Any]) -> str:
    about = [
        ["computed by", f"{where}, version {found['version']}"],
        ["this client", ", ".join(f"{name} {version}" for name, version in here.items())],
        ["devices", _devices(found["devices"])],
        ["types", ", ".join(found.get("dtypes", ()))],
    ]
    methods = [["method", "rounding", "levels", "what it is"]]
    methods += [
        [
            one["name"],
            one["rounding"],
            _levels(one["num_levels"]),
            shortened(one["summary"], 76),
        ]
        for one in found.get("schemes", ())
    ]
    return f"{table(about, left=2)}\n\n{table(methods, left=4)}"


def _devices(found: Mapping[str, bool]) -> str:
    """``cpu; gpu is not here``."""
    works = ", ".join(name for name, there in found.items() if there) or "none"
    missing = [f"{name} is not here" for name, there in found.items() if not there]
    return "; ".join([works, *missing])


def _levels(counts: list[int]) -> str:
    """``2..256``, or the counts themselves where there are few."""
    if len(counts) > 3:
        return f"{counts[0]}..{counts[-1]}"
    return ", ".join(str(count) for count in counts)
