"""What a scenario found: checks that must hold, and controls that must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from common.tables import table


@dataclass(frozen=True)
class Check:
    """One promise with its bound, what was found, and whether it holds."""

    promise: str
    bound: str
    found: str
    held: bool


@dataclass(frozen=True)
class Report:
    """The outcome of one scenario.

    Attributes
    ----------
    checks
        Each must hold.
    controls
        The same checks with a planted fault: of each promise here at least one must fail, or the
        checks see nothing.
    notes
        Markdown below the tables: conditions, and figures that no check looks at.
    results
        The figures, for machines.
    """

    checks: Sequence[Check]
    controls: Sequence[Check]
    notes: str = ""
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all checks hold and every control fails."""
        return all(c.held for c in self.checks) and not any(c.held for c in self.controls)

    def markdown(self) -> str:
        rows = [[c.promise, c.bound, c.found, "yes" if c.held else "**no**"] for c in self.checks]
        rows += [
            [f"control: {c.promise}", c.bound, c.found, "**yes**" if c.held else "no, as it must"]
            for c in self.controls
        ]
        parts = [table(["promise", "bound", "found", "holds"], rows, left=4), self.notes]
        return "\n\n".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "controls": [asdict(check) for check in self.controls],
            "results": self.results,
        }
