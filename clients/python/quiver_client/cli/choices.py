"""Types of options that hold several values, separated by commas."""

from __future__ import annotations

from typing import Any

import click


class Integers(click.ParamType):  # type: ignore[type-arg]
    """``1,2,5-8``: whole numbers and ranges of them, each once."""

    name = "numbers"
    _MOST = 1000

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers in the order given."""
        if not isinstance(value, str):
            return tuple(value)
        found: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            try:
                low = int(first)
                high = int(last) if dash else low
            except ValueError:
                self.fail(f"{part.strip()[:40]!r} is no whole number or range like 2-5", param, ctx)
            if not low <= high < low + self._MOST:
                self.fail(
                    f"the range {part.strip()[:40]!r} must ascend, with at most 1000", param, ctx
                )
            found.extend(range(low, high + 1))
        return tuple(dict.fromkeys(found))


class Names(click.ParamType):  # type: ignore[type-arg]
    """``exact,approx``: names, each once."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names in the order given."""
        if not isinstance(value, str):
            return tuple(value)
        found = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
        if not all(found):
            self.fail(f"{value[:40]!r} has an empty name", param, ctx)
        return found


INTEGERS = Integers()
NAMES = Names()
