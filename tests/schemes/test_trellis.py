"""Paths through the trellises: legal, and of least cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiver_kernels.schemes.trellis import paths
from quiver_kernels.schemes.trellis.machine import MACHINES

machines = pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))


def walked(bits, machine, chunk):
    """The quantizers along a path, by the table itself."""
    found, state = [], 0
    for i, bit in enumerate(bits):
        state = 0 if i % chunk == 0 else state
        found.append(machine.quantizers[state])
        state = machine.moves[state][bit]
    return np.array(found, np.uint8)


def cost_of(costs, bits, machine):
    subsets = 2 * walked(bits, machine, len(bits)) + np.array(bits)
    return costs[np.arange(len(bits)), subsets].sum()


@machines
@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_no_path_costs_less(machine, size, seed):
    costs = np.random.default_rng(seed).random((size, 4))
    subsets = paths.best_paths(costs, size, machine)
    assert np.array_equal(walked(subsets & 1, machine, size), subsets >> 1)
    found = costs[np.arange(size), subsets].sum()
    least = min(cost_of(costs, bits, machine) for bits in itertools.product((0, 1), repeat=size))
    assert found == pytest.approx(least, abs=1e-12)


@machines
@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (7, 3), (1000, 64), (1000, 5000), (9, 9)])
def test_kernels_and_numpy_agree(machine, size, chunk):
    rng = np.random.default_rng(size)
    # Small integers: many paths cost the same.
    for costs in (rng.random((size, 4)), rng.integers(0, 3, (size, 4)).astype(float)):
        subsets = paths.best_paths(costs, chunk, machine)
        assert np.array_equal(subsets, paths.plain_best_paths(costs, chunk, machine))
        bits = subsets & np.uint8(1)
        assert np.array_equal(paths.quantizers_along(bits, chunk, machine), subsets >> 1)
        assert np.array_equal(paths.plain_quantizers_along(bits, chunk, machine), subsets >> 1)
        assert np.array_equal(walked(bits, machine, chunk), subsets >> 1)


@machines
def test_each_state_has_two_ways_in_and_the_published_shift(machine):
    back = machine.back_table()
    for state, ways in enumerate(back):
        assert all(machine.moves[way & 7][way >> 3] == state for way in ways)
    if machine.num_states == 4:
        # ISO/IEC 15938-17 writes the table as one number.
        for state, bit in itertools.product(range(4), (0, 1)):
            assert machine.moves[state][bit] == (32040 >> (4 * state + 2 * bit)) & 3
