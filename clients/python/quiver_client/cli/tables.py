"""Columns of text, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, left: int = 1, indent: int = 0) -> str:
    """Rows of cells below each other: the first `left` columns to the left, others to the right.

    Parameters
    ----------
    rows
        Of equal length; the first is the heading.
    left
        Columns of text.
    indent
        Spaces before each line.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; ``-`` for None."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{digits}g}"


def shape_of(shape: Sequence[int]) -> str:
    """``1000 x 20``; a scalar is ``one value``."""
    return " x ".join(str(length) for length in shape) or "one value"


def shortened(text: str, width: int) -> str:
    """`text`, printable, with its middle left out if it is longer than `width`."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    if len(shown) <= width:
        return shown
    head = (width - 3) // 2
    return f"{shown[:head]}...{shown[len(shown) - (width - 3 - head) :]}"
