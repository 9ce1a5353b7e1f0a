"""Memory that only unlucky values make necessary is asked for before it is taken."""

from __future__ import annotations

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels.claims import claim, granted_by
from quiver_kernels.cpu import narrowing

# So that few values are enough to need more than the usual.
FEW = ((256, 64),)


class Refused(Exception):
    """The answer of a granter."""


def test_without_a_granter_anything_is_granted():
    claim(1 << 60)


def test_a_granter_is_told_of_no_less_than_nothing():
    asked: list[int] = []
    with granted_by(asked.append):
        claim(5)
        claim(-5)

    assert asked == [5, 0]


def test_a_search_asks_for_its_cells_and_may_be_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(narrowing, "_USUAL_CELLS", FEW)
    x = np.random.default_rng(0).standard_normal(1 << 17)
    asked: list[int] = []

    def refuse(extra: int) -> None:
        asked.append(extra)
        if extra:
            raise Refused

    expected = qk.optimal_levels(x, 8)
    with granted_by(refuse), pytest.raises(Refused):
        qk.optimal_levels(x, 8)
    assert asked[-1] > 0

    with granted_by(asked.append):
        assert np.array_equal(qk.optimal_levels(x, 8), expected)


def test_usual_values_ask_for_nothing():
    asked: list[int] = []
    with granted_by(asked.append):
        qk.optimal_levels(np.random.default_rng(0).standard_normal(1 << 17), 8)

    assert set(asked) == {0}
