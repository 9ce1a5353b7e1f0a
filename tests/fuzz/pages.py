"""The rows of the fuzzers in docs/reliability.md, beside those of load and faults."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.findings import Finding, markdown

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAME = "fuzz"
TITLE = "R10: Broken messages and requests"
ABOUT = """\
Messages and requests are broken by a mutator: bytes changed, lengths that lie, two messages
spliced, values replaced by hostile ones, heads of requests in ways that fooled servers.
A case is made from a seed and a number, and can be run again alone:
`python tests/fuzz/run.py codec --replay SEED:NUMBER`. `make test` runs the same code in short forms
(`tests/fuzz`). The service runs on the real backend in a process of its own."""


def keep(folder: Path, found: Sequence[Finding], names: Sequence[str], begun: float) -> None:
    """Put the findings into the files of `folder`; what others wrote there stays."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    from reliability import pages
    from reliability.run import SCENARIOS

    from run import machine

    section = {
        "title": TITLE,
        "about": ABOUT,
        "command": f'make fuzz ARGS="{" ".join(names)}"' if names else "make fuzz",
        "date": dt.datetime.fromtimestamp(begun, dt.UTC).date().isoformat(),
        "seconds": round(time.time() - begun),
        "machine": machine(),
        "markdown": markdown(found),
        "passed": all(finding.passed for finding in found),
        "checks": [_row(finding) for finding in found if not finding.control],
        "controls": [_row(finding) for finding in found if finding.control],
        "results": {f.promise: f.figures for f in found if f.figures},
    }
    pages.keep(folder, NAME, section, SCENARIOS)


def _row(finding: Finding) -> dict[str, object]:
    return {
        "promise": finding.promise,
        "bound": finding.bound,
        "found": finding.found,
        "held": finding.held,
    }
