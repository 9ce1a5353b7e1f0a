"""Exact levels from sums over cells: search, look closer where levels may be, search again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quiver_kernels.claims import claim
from quiver_kernels.cpu.certified import Certificate, Nodes, certified_path
from quiver_kernels.cpu.compile import Floats, Ints
from quiver_kernels.cpu.summary import Flags, Summary
from quiver_kernels.stopping import checkpoint

Look = Callable[[Summary, Ints], Summary | None]

_MAX_LOOKS = 64
# Cells by levels that a search hardly exceeds, and what one takes: beyond them memory is asked for.
_USUAL_CELLS = ((8, 1 << 16), (32, 9 << 14), (256, 1 << 18))
_CELL_BYTES = 600


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the search for levels has come.

    Attributes
    ----------
    levels
        The best levels among the points of the summary, ascending; fewer than asked for where
        there are fewer points.
    undecided
        Numbers of the cells that have to be looked into; if there are none, `levels` is optimal.
    certificate
        What was proved; None where all points are levels.
    kept
        Which points of the summary may be levels, or are beside data that may.
    points, alive, price
        As in `certified.Nodes`, with values instead of their numbers.
    """

    levels: Floats
    undecided: Ints
    certificate: Certificate | None
    kept: Flags
    points: Floats
    alive: Flags
    price: float


def narrowed_levels(summary: Summary, num_levels: int, look: Look) -> Progress | None:
    """Optimal `num_levels` >= 3 levels; None where ties defeat the search, or `look` gives up.

    Parameters
    ----------
    summary
        The vector's cells.
    look
        Gives a summary of the values in some cells of a summary, cut up finer; or None.
    """
    progress: Progress | None = None
    usual = next(cells for levels, cells in _USUAL_CELLS if num_levels <= levels)
    for _ in range(_MAX_LOOKS):
        checkpoint()
        claim((summary.minimum.size - usual) * _CELL_BYTES)
        progress = search(summary, num_levels, progress)
        if progress is None or progress.undecided.size == 0:
            return progress
        checkpoint()
        finer = look(summary, progress.undecided)
        if finer is None:
            return None
        if finer.minimum.size <= progress.undecided.size and not finer.known.any():
            return None  # nothing was cut: another look would find the same
        checkpoint()
        summary = summary.replaced(progress.undecided, finer, progress.kept)
    return None


def search(summary: Summary, num_levels: int, before: Progress | None = None) -> Progress | None:
    """The best `num_levels` >= 3 levels among the points of `summary`, and what is left open.

    Parameters
    ----------
    summary
        The vector's cells.
    before
        Found on a summary with coarser cells, to go on from there.

    Returns
    -------
    Progress or None
        None where ties defeat the search.
    """
    points, curve = summary.curve()
    checkpoint()
    if points.size <= num_levels:
        unknown = np.flatnonzero(~summary.known)
        every = np.ones(points.size, np.bool_)
        return Progress(points, unknown, None, every, points, every[1:], 0.0)
    start = None
    if before is not None and before.certificate is not None:
        start = Nodes(np.searchsorted(points, before.points), before.alive, before.price)
    found = certified_path(curve, num_levels - 1, start)
    if found is None:
        return None
    nodes = found.nodes
    # Points that begin a cell with data inside, within an alive stretch between nodes.
    alive = np.repeat(nodes.alive, np.diff(nodes.index))
    unsure = np.flatnonzero(alive & (curve.inside[:-1] > 0.0))
    kept = np.zeros(points.size, np.bool_)
    kept[nodes.index] = True
    kept[:-1] |= alive
    kept[1:] |= alive
    return Progress(
        levels=points[found.path],
        # Of cells that begin at one point, the last has the data beyond it.
        undecided=np.searchsorted(summary.first_points(), unsure, side="right") - 1,
        certificate=found.certificate,
        kept=kept,
        points=points[nodes.index],
        alive=nodes.alive,
        price=nodes.price,
    )
