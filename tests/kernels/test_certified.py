"""The certified search against the dynamic programme over all points, and its proof's teeth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from quiver_kernels.cpu import certified
from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.path import best_path

Floats = NDArray[np.float64]
# Both solvers minimise sums of up to 256 interval costs whose rounding is about 2^-53 * 6 N^2
# of the optimum (docs/numerics.md), and more where an outlier spreads the scale.
RELATIVE = 1e-9


def vectors(rng: np.random.Generator, count: int, longest: int) -> Iterator[Floats]:
    """Hostile kinds in turn: bulk, ties, heavy tails, offsets, outliers, clusters."""
    kinds = [
        lambda n: rng.normal(size=n),
        lambda n: rng.integers(0, 40, n).astype(float),
        lambda n: rng.lognormal(0, 3, n),
        lambda n: 1e7 + rng.normal(size=n),
        lambda n: np.append(rng.normal(size=n), 1e6),
        lambda n: np.append(rng.normal(size=n), -1e6),
        lambda n: np.append(rng.normal(size=n), 1e30),
        lambda n: np.round(rng.normal(size=n), 1),
        lambda n: np.concatenate([1e-3 * rng.normal(size=n), rng.normal(size=n // 8 + 1)]),
        lambda n: 1e-310 * rng.normal(size=n),
        rng.standard_cauchy,
    ]
    for i in range(count):
        yield kinds[i % len(kinds)](int(rng.integers(20, longest)))


def curve_of(x: Floats, weights: Floats | None = None) -> Curve:
    points, inverse = np.unique(x, return_inverse=True)
    masses = np.bincount(inverse, weights=weights).astype(float)
    keep = masses > 0
    keep[[0, -1]] = True
    return Curve.of(points[keep], masses[keep])


def programme(curve: Curve, num_levels: int) -> float:
    path = np.empty(num_levels, np.int64)
    return best_path(curve.x, curve.area, curve.first, curve.last, num_levels, path)


def cost_of(curve: Curve, path: NDArray[np.int64]) -> float:
    return certified.path_cost(
        curve.x, curve.area, curve.first, curve.last, path.astype(np.int64), path.size - 1
    )


def few_nodes(curve: Curve, links: int) -> certified.Nodes:
    """Fewer nodes than usual, so that small inputs need several stages."""
    price, index = certified.first_nodes(curve.x, curve.slope, links)
    step = max(1, int(index.size / max(3.0, 1.2 * links)))
    index = np.unique(np.append(index[::step], index[-1]))
    return certified.Nodes(index, np.ones(index.size - 1, np.bool_), price)


def worst_excess(
    rng: np.random.Generator, count: int, longest: int, sparse: bool = False, caution: float = 1.0
) -> tuple[float, int]:
    """Largest relative excess of the search's cost over the programme's, and cases proved."""
    worst, seen = 0.0, 0
    for i, x in enumerate(vectors(rng, count, longest)):
        weights = rng.choice([0.0, 0.1, 1.0, 2.5], x.size) if i % 4 == 0 else None
        curve = curve_of(x, weights)
        if curve.x.size < 5:
            continue
        num_levels = int(rng.integers(3, min(curve.x.size, 40)))
        start = few_nodes(curve, num_levels - 1) if sparse else None
        found = certified.certified_path(curve, num_levels - 1, start, caution)
        assert found is not None
        path, proof = found.path, found.certificate
        assert path[0] == 0
        assert path[-1] == curve.x.size - 1
        assert (np.diff(path) >= 0).all()
        assert path.size == num_levels
        if proof.gap > 1e-9:
            continue
        best = programme(curve, num_levels)
        worst = max(worst, (cost_of(curve, path) - best) / max(best, 1e-300))
        seen += 1
    return worst, seen


def test_equals_the_programme_on_hostile_inputs() -> None:
    worst, seen = worst_excess(np.random.default_rng(1), 600, 1500)
    assert seen >= 590
    assert worst <= RELATIVE


def test_equals_the_programme_through_many_stages() -> None:
    worst, seen = worst_excess(np.random.default_rng(2), 600, 600, sparse=True)
    assert seen >= 590
    assert worst <= RELATIVE


def test_a_bound_that_is_too_small_is_noticed() -> None:
    worst, _ = worst_excess(np.random.default_rng(2), 200, 600, sparse=True, caution=0.0)
    assert worst > 1e-4


@pytest.mark.parametrize("num_levels", [4, 16, 64, 256])
def test_large_vector_equals_the_programme(num_levels: int) -> None:
    curve = curve_of(np.random.default_rng(3).lognormal(0, 1, 1 << 14))
    found = certified.certified_path(curve, num_levels - 1)
    assert found is not None
    assert cost_of(curve, found.path) == pytest.approx(programme(curve, num_levels), rel=RELATIVE)
    # The point of it: few candidates, whatever the size.
    if num_levels <= 16:
        assert found.certificate.most_nodes < 2000


def test_ties_are_spliced() -> None:
    # Equal steps: every price gives all or nothing, so exact counts need a splice.
    curve = curve_of(np.arange(0.0, 700.0))
    for num_levels in (3, 7, 50, 200):
        found = certified.certified_path(curve, num_levels - 1)
        assert found is not None
        assert cost_of(curve, found.path) == pytest.approx(programme(curve, num_levels), rel=1e-9)


def test_many_ties_beside_many_levels() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        curve = curve_of(np.round(rng.normal(size=2000) * rng.choice([20, 60, 100])))
        for num_levels in (16, 64, 256):
            if curve.x.size <= num_levels:
                continue
            found = certified.certified_path(curve, num_levels - 1)
            assert found is not None
            best = programme(curve, num_levels)
            assert cost_of(curve, found.path) == pytest.approx(best, rel=1e-9), (seed, num_levels)
