"""Levels over a histogram, drawn with characters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.plots.histogram import Histogram, columns

MIN_WIDTH, MAX_WIDTH = 20, 160
_BLOCKS = " ▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = "   ...:::"
_MARKS, _PLAIN_MARKS = "▲◆", "^*"
_COLOUR, _RESET = "\x1b[38;5;208m", "\x1b[0m"


def draw(
    counted: Histogram,
    levels: NDArray[Any],
    *,
    height: int = 8,
    colour: bool = False,
    unicode: bool = True,
) -> str:
    """Bars, a row of marks where levels are, and the ends of the range.

    Parameters
    ----------
    counted
        As many parts as the picture is wide.
    levels
        In the vector's units. A column with one level has ``▲`` below, with more ``◆``.
    height
        Rows of the bars; heights are square roots of counts.
    colour
        Whether bars with a level are coloured.
    unicode
        Whether the terminal can show block characters; plain ones are used otherwise.
    """
    counts = counted.counts
    most = max(int(counts.max(initial=0)), 1)
    # In eighths of a row; what is there at all is seen.
    tall = np.ceil(8 * height * np.sqrt(counts / most)).astype(np.int64)
    marks = _columns(counted, levels)
    blocks, signs = (_BLOCKS, _MARKS) if unicode else (_PLAIN_BLOCKS, _PLAIN_MARKS)
    lines = []
    for row in range(height, 0, -1):
        filled = np.clip(tall - 8 * (row - 1), 0, 8)
        cells = ["#" if full == 8 and not unicode else blocks[full] for full in filled.tolist()]
        lines.append(_painted(cells, marks) if colour else "".join(cells))
    below = ["" if found == 0 else signs[0] if found == 1 else signs[1] for found in marks]
    lines.append("".join(sign or " " for sign in below))
    lines.append(_ends(counted, counts.size))
    return "\n".join(line.rstrip() for line in lines)


def _columns(counted: Histogram, levels: NDArray[Any]) -> list[int]:
    """How many levels each column has."""
    found = np.zeros(counted.counts.size, np.int64)
    values = np.unique(levels.astype(np.float64).reshape(-1))
    values = values[(values >= counted.low) & (values <= counted.high)]
    np.add.at(found, columns(values, counted.low, counted.high, found.size), 1)
    return [int(count) for count in found]


def _painted(cells: list[str], marks: list[int]) -> str:
    return "".join(
        f"{_COLOUR}{cell}{_RESET}" if mark and cell != " " else cell
        for cell, mark in zip(cells, marks, strict=True)
    )


def _ends(counted: Histogram, width: int) -> str:
    low, high = f"{counted.low:.4g}", f"{counted.high:.4g}"
    return low + high.rjust(max(width - len(low), len(high) + 1))


def bars_for(columns: int) -> int:
    """How many bars fit into a terminal of so many columns."""
    return max(MIN_WIDTH, min(columns - 2, MAX_WIDTH))


def fits(encoding: str | None) -> bool:
    """Whether a stream of this encoding can show the blocks."""
    try:
        (_BLOCKS + _MARKS).encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def nice_height(lines: int) -> int:
    """Rows for the bars in a terminal of so many lines."""
    return max(4, min(10, math.floor(lines / 3)))
