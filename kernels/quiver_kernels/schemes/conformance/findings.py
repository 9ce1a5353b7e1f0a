"""What is wrong with a scheme."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a scheme does not hold.

    Attributes
    ----------
    scheme
        Its name.
    check
        What was checked, one of `conformance.CHECKS`, or ``golden`` or ``registered``.
    choice
        With which levels, block size and parameters.
    detail
        What was expected, and what was got.
    """

    scheme: str
    check: str
    choice: str
    detail: str

    def __str__(self) -> str:
        return f"{self.scheme} ({self.choice}): {self.check}: {self.detail}"
