"""What a run found, as a row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One promise: its bound, what was found, and all that breaks it.

    Attributes
    ----------
    promise, bound, found
        In words.
    problems
        Each breaks the bound.
    figures
        For machines.
    control
        Whether a fault was planted, so that there must be problems.
    """

    promise: str
    bound: str
    found: str
    problems: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)
    control: bool = False

    @property
    def held(self) -> bool:
        """Whether nothing breaks the bound."""
        return not self.problems

    @property
    def passed(self) -> bool:
        """Whether it came out as it must."""
        return self.held is not self.control


def markdown(found: Sequence[Finding]) -> str:
    """All findings as one table."""
    lines = ["| promise | bound | found | holds |", "|:--|:--|:--|:--|"]
    for finding in found:
        name = f"control: {finding.promise}" if finding.control else finding.promise
        cells = (name, finding.bound, finding.found, _verdict(finding))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _verdict(finding: Finding) -> str:
    if finding.control:
        return "no, as it must" if finding.passed else "**yes**"
    return "yes" if finding.passed else "**no**"
