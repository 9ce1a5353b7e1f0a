"""Paths through a trellis: by kernels where Numba is, else in NumPy, with the same result."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.trellis.machine import Machine
from quiver_kernels.stopping import checkpoint

# Steps of NumPy's forms between two looks whether to stop.
_LOOK = 64


def best_paths(costs: NDArray[np.float64], chunk: int, machine: Machine) -> NDArray[np.uint8]:
    """Subsets of the path of least total cost through each chunk (Viterbi).

    Parameters
    ----------
    costs
        Shape (n, 4): of the best code of each value by quantizer q with lowest bit b, at 2 q + b.
    chunk
        Values after which the trellis begins anew in state 0.
    machine
        The trellis.

    Returns
    -------
    uint8 array, shape (n,)
        2 q + b of each value. Of equal costs, the way from the lower state. O(n states).
    """
    if has_numba():
        from quiver_kernels.schemes.trellis import kernels

        subsets = np.empty(len(costs), np.uint8)
        kernels.best_paths(costs, min(chunk, len(costs)), machine.back_table(), subsets)
        return subsets
    return plain_best_paths(costs, chunk, machine)


def plain_best_paths(costs: NDArray[np.float64], chunk: int, machine: Machine) -> NDArray[np.uint8]:
    """`best_paths` in NumPy: all chunks in step."""
    rows = by_chunks(costs, chunk)
    back = machine.back_table()
    before, bits = back & 7, back >> 3
    subset = 2 * machine.quantizer_table()[before] + bits
    count, width = rows.shape[:2]
    totals = np.full((count, machine.num_states), np.inf)
    totals[:, 0] = 0
    second = np.zeros((width, count, machine.num_states), np.bool_)
    for i in range(width):
        if i % _LOOK == 0:
            checkpoint()
        ways = totals[:, before] + rows[:, i][:, subset]
        second[i] = ways[..., 1] < ways[..., 0]
        totals = ways.min(axis=2)
    # The costs that fill up the last chunk are zero: they do not change which end is least, but
    # they blur where it is, so it is traced back on its own.
    found = np.empty((count, width), np.uint8)
    state = totals.argmin(axis=1)
    for i in range(width - 1, -1, -1):
        way = second[i, np.arange(count), state].astype(np.int64)
        found[:, i] = subset[state, way]
        state = before[state, way].astype(np.int64)
    rest = len(costs) % width
    flat = found.reshape(-1)[: len(costs)]
    if rest and count > 1:
        flat[-rest:] = plain_best_paths(costs[-rest:], rest, machine)
    return flat


def quantizers_along(bits: NDArray[np.uint8], chunk: int, machine: Machine) -> NDArray[np.uint8]:
    """The quantizer, 0 or 1, of each value from the lowest bits of all codes, uint8, flat."""
    if has_numba():
        from quiver_kernels.schemes.trellis import kernels

        found = np.empty(bits.size, np.uint8)
        kernels.quantizers_along(
            bits, chunk, machine.move_table(), machine.quantizer_table(), found
        )
        return found
    return plain_quantizers_along(bits, chunk, machine)


def plain_quantizers_along(
    bits: NDArray[np.uint8], chunk: int, machine: Machine
) -> NDArray[np.uint8]:
    """`quantizers_along` in NumPy: all chunks in step."""
    rows = by_chunks(bits, chunk)
    moves, quantizers = machine.move_table(), machine.quantizer_table()
    found = np.empty(rows.shape, np.uint8)
    state = np.zeros(len(rows), np.uint8)
    for i in range(rows.shape[1]):
        if i % _LOOK == 0:
            checkpoint()
        found[:, i] = quantizers[state]
        state = moves[state, rows[:, i]]
    return found.reshape(-1)[: bits.size]


def by_chunks(flat: NDArray[np.generic], chunk: int) -> NDArray[np.generic]:
    """One row per chunk; the last is filled up with zeros."""
    width = min(chunk, len(flat))
    count = -(-len(flat) // width)
    rows = np.zeros((count * width, *flat.shape[1:]), flat.dtype)
    rows[: len(flat)] = flat
    return rows.reshape(count, width, *flat.shape[1:])


def has_numba() -> bool:
    """Whether kernels can be compiled here."""
    return importlib.util.find_spec("numba") is not None


def warm_up() -> None:
    """Compile the kernels."""
    from quiver_kernels.schemes.trellis.machine import MACHINES

    for machine in MACHINES.values():
        subsets = best_paths(np.zeros((2, 4)), 2, machine)
        quantizers_along(subsets & np.uint8(1), 2, machine)
