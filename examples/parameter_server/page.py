"""The figures in the documentation: the table between two marks, the picture, the results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
from parameter_server import plot, report
from parameter_server.records import Result

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "parameter-server-example.md"
FIGURES = DOCS / "parameter-server-example.json"
PICTURE = DOCS / "images" / "parameter-server.png"
MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end of measured -->)", re.DOTALL)


def write(results: Sequence[Result]) -> None:
    """Put these results in place of those that are there."""
    # What every round counted is for tests; here it would be most of the file.
    slim = [msgspec.structs.replace(result, rounds=[]) for result in results]
    FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(slim), indent=1) + b"\n")
    plot.draw(PICTURE, report.by_scheme(results))
    PAGE.write_text(filled(PAGE.read_text(), results))


def filled(text: str, results: Sequence[Result]) -> str:
    """The page with the table of these results."""
    return MEASURED.sub(lambda _: report.table(report.rows(results)) + "\n", text)


def figures() -> list[Result]:
    """The results that the page shows."""
    return msgspec.json.decode(FIGURES.read_bytes(), type=list[Result])
