"""Run the scenarios of load and faults; keep the results in docs.

Run ``python benchmarks/reliability/run.py overload`` for one scenario, several names for several,
no name for all. A scenario is a module of this folder with ``PROMISE``, ``add_options`` and
``measure``; options after a single name are its own (``overload --help``). Without ``--write``
nothing is kept: Markdown is printed, and ``--json PATH`` writes the figures.
"""

from __future__ import annotations

import argparse
import ast
import datetime as dt
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

HERE = Path(__file__).parent
if __name__ == "__main__":
    # The scenarios are a package of the benchmarks' folder, where a script's own folder is not.
    sys.path[0] = str(HERE.parent)

from reliability import pages  # noqa: E402 - found only now

if TYPE_CHECKING:
    from reliability.report import Report

DOCS = HERE.parents[1] / "docs"
# In the order of the page.
SCENARIOS = (
    "speed",
    "memory",
    "overload",
    "restarts",
    "kills",
    "aborts",
    "slow",
    "soak",
    "same_bits",
)

Section = dict[str, Any]


class Scenario(Protocol):
    """What this script asks of a module."""

    PROMISE: str  # as the goals number it, e.g. "R4"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """The module's own options, with the long form's values as defaults."""
        ...

    def measure(self, options: argparse.Namespace) -> Report:
        """Run the scenario and its control."""
        ...


def available() -> list[str]:
    """Names of the scenarios that are there."""
    return [name for name in SCENARIOS if (HERE / f"{name}.py").exists()]


def scenario(name: str) -> Scenario:
    """A scenario's module."""
    module: Any = importlib.import_module(f"reliability.{name}")
    return module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code counts the scenarios that did not pass."""
    names = available()
    parser = argparse.ArgumentParser(
        description="Show what the service does under load and faults."
    )
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)}; default: all")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--write", action="store_true", help="keep the results in docs")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder that --write writes to")
    options, own = parser.parse_known_args(arguments)
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(names)}")
    if own and len(options.names) != 1:
        parser.error(f"{' '.join(own)}: options of a scenario go with one name")

    chosen = options.names or names
    if len(chosen) == 1:
        return not run_one(chosen[0], own, options)
    if options.json is not None:
        parser.error("--json goes with one name")
    # Each in a process of its own: what breaks in one, or is left of it, is none of the next one's.
    write = ["--write", "--out", str(options.out)] if options.write else []
    commands = [[sys.executable, str(HERE / "run.py"), name, *write] for name in chosen]
    return sum(subprocess.run(command, check=False).returncode != 0 for command in commands)


def run_one(name: str, own: Sequence[str], options: argparse.Namespace) -> bool:
    """Run one scenario, print and keep what it found; whether it passed."""
    print(f"== {name}", file=sys.stderr, flush=True)
    begun = dt.datetime.now(dt.UTC)
    report = measure(name, own)
    print(f"## {title(name)}\n\n{report.markdown()}\n", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if options.write:
        seconds = (dt.datetime.now(dt.UTC) - begun).total_seconds()
        kept = section(name, own, report, begun, seconds)
        pages.keep(options.out, name, kept, SCENARIOS)
    return report.passed


def measure(name: str, own: Sequence[str]) -> Report:
    """Run one scenario with its own options."""
    chosen = scenario(name)
    parser = argparse.ArgumentParser(prog=f"run.py {name}")
    chosen.add_options(parser)
    return chosen.measure(parser.parse_args(own))


def title(name: str) -> str:
    """First line of a scenario's docstring, with the promise's number."""
    first = documentation(name).partition("\n")[0]
    return f"{scenario(name).PROMISE}: {first.rstrip('.')}"


def documentation(name: str) -> str:
    return ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or name


def section(
    name: str, own: Sequence[str], report: Report, begun: dt.datetime, seconds: float
) -> Section:
    """What is kept of one run."""
    from run import machine

    return {
        "title": title(name),
        "about": documentation(name).partition("\n")[2].strip().replace("``", "`"),
        "command": f'make soak ARGS="{" ".join([name, *own])}"',
        "date": begun.date().isoformat(),
        "seconds": round(seconds),
        "machine": machine(),
        "markdown": report.markdown(),
        **report.as_json(),
    }


if __name__ == "__main__":
    sys.exit(main())
