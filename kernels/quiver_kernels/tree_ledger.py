"""Where the bytes of a tree message go, and what its quantization is expected to cost."""

from __future__ import annotations

import numpy as np

from quiver_kernels import varints
from quiver_kernels.checks import finite_range
from quiver_kernels.dispatch import pick_decoder
from quiver_kernels.tree import Group, Ledger, QuantizedSection, QuantizedTree, RawSection, Section


def account(tree: QuantizedTree, *, errors: bool) -> Ledger:
    """The ledger of `tree`; O(leaves + sections + outliers), O(values) with `errors`."""
    codes = levels = raw = outliers = 0
    for section in (section for group in tree.groups for section in group.sections):
        if isinstance(section, RawSection):
            raw += section.values.nbytes
            continue
        codes += section.vector.codes.nbytes
        levels += section.vector.levels.nbytes
        if section.vector.wrap is not None and section.vector.wrap.outliers is not None:
            outliers += section.vector.wrap.outliers.nbytes
        if section.outliers is not None:
            places = varints.encode_ascending(section.outliers.indices)
            outliers += places.nbytes + section.outliers.values.nbytes
    found = {}
    if errors:
        for group in tree.groups:
            found.update(_errors(group))
    return Ledger(
        codes=codes,
        levels=levels,
        raw=raw,
        outliers=outliers,
        headers=tree.nbytes - codes - levels - raw - outliers,
        values=tree.size,
        squared_errors={leaf.name: found[leaf.name] for leaf in tree.leaves()} if errors else {},
    )


def _errors(group: Group) -> dict[str, float | None]:
    """Expected squared errors of the leaves of a group."""
    found: dict[str, float | None] = {}
    sections = [(start, start + section.size, section) for start, section in group.placed()]
    begin = at = 0
    for leaf in group.leaves:
        end = begin + leaf.size
        # Leaves and sections both lie in order, so one walk over both is enough.
        while at < len(sections) and sections[at][1] <= begin:
            at += 1
        total: float | None = 0.0
        k = at
        while k < len(sections) and sections[k][0] < end:
            low, high, section = sections[k]
            part = _section_error(section, whole=begin <= low and high <= end)
            total = None if total is None or part is None else total + part
            k += 1
        found[leaf.name] = total if leaf.size else 0.0
        begin = end
    return found


def _section_error(section: Section, *, whole: bool) -> float | None:
    if not isinstance(section, QuantizedSection) or section.vector.vnmse == 0:
        return 0.0
    if not whole:
        return None
    # Unbiased: the decoded vector's squared norm is that of the vector and the error.
    vnmse = section.vector.vnmse
    decoded = pick_decoder().dequantize(section.vector)
    unit = finite_range(decoded).unit
    scaled = decoded.astype(np.float64) * unit
    return float(scaled @ scaled) / unit**2 * vnmse / (1 + vnmse)
