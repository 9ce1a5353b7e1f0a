"""Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns hold words and the others figures."""
    rules = ["---" if i < left else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rules, *rows))


def size(number: int) -> str:
    """A number of values, as a power of two where it is one."""
    return f"2^{number.bit_length() - 1}" if number & (number - 1) == 0 else f"{number:,}"


def figure(value: float, digits: int = 3) -> str:
    """A figure with so many significant digits, without an exponent where that is readable."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text
