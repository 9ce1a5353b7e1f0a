"""Does a scheme hold what it declares? `check` runs it through everything that all must hold.

For built-in schemes and for those of other packages, which call it in their own tests::

    from quiver_kernels.schemes.conformance import check

    def test_my_scheme_conforms():
        assert check("my_scheme") == []

What is checked lies in a module each: round trips and edge values (`trips`), sizes and memory
(`sizes`), repeated and shared computation (`repeats`), promises by statistics (`unbiased`,
`contraction`, `additive`), hostile messages (`hostile`) and messages written once (`golden`).
Needs NumPy and msgspec alone, beside what the scheme itself needs.
"""

from quiver_kernels.schemes.conformance.findings import Finding
from quiver_kernels.schemes.conformance.runner import CHECKS, check
from quiver_kernels.schemes.conformance.subject import Subject, subjects

__all__ = ["CHECKS", "Finding", "Subject", "check", "subjects"]
