"""The rotation: kernels and NumPy alike, an orthogonal matrix, its inverse, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import rotation
from quiver_kernels.schemes.rotation import pairs


def turned(x: np.ndarray, seed: int, start: int, *, back: bool = False) -> np.ndarray:
    rows = x.copy()
    (rotation.rotate_back if back else rotation.rotate)(rows, seed, start)
    return rows


@given(
    st.integers(1, 5),
    st.one_of(st.integers(1, 70), st.sampled_from([100, 255, 256, 257, 1000, 2048, 4096, 5000])),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
)
@settings(max_examples=40, deadline=None)
def test_kernels_give_the_bits_of_numpy_and_turn_back(rows: int, size: int, seed: int, start: int):
    x = np.random.default_rng(size).normal(size=(rows, size))
    plain = x.copy()
    rotation.rotate_plainly(plain, seed, start, back=False)
    fast = turned(x, seed, start)
    assert fast.tobytes() == plain.tobytes()

    rotation.rotate_plainly(plain, seed, start, back=True)
    fast = turned(fast, seed, start, back=True)
    assert fast.tobytes() == plain.tobytes()
    np.testing.assert_allclose(fast, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 300, 512])
def test_it_is_an_orthogonal_matrix(size: int):
    # Each row has signs of its own, so one row is turned at a time.
    matrix = np.concatenate([turned(row[np.newaxis], 5, 40) for row in np.eye(size)])

    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        turned(np.arange(size)[np.newaxis] * 1.0, 5, 40)[0], np.arange(size) @ matrix, atol=1e-9
    )


def test_one_pass_is_signs_and_sylvesters_matrix():
    size = 512
    hadamard = np.ones((1, 1))
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    x = np.random.default_rng(0).normal(size=size)
    bits = rotation.signs(9, 1000, size)
    wanted = x
    for number in range(2):
        wanted = hadamard @ (wanted * np.where(bits >> number & 1, -1, 1)) / np.sqrt(size)

    np.testing.assert_allclose(turned(x[np.newaxis], 9, 1000)[0], wanted, atol=1e-12)


def test_blocks_are_turned_by_index_in_any_order():
    x = np.random.default_rng(0).normal(size=(6, 300))
    together = turned(x, 3, 600)
    apart = [turned(row[np.newaxis], 3, 600 + 300 * i) for i, row in enumerate(x)]

    assert together.tobytes() == np.concatenate(apart).tobytes()
    assert together.tobytes() != turned(x, 4, 600).tobytes()


def kurtosis(x: np.ndarray) -> float:
    return float(np.mean(x**4) / np.mean(x**2) ** 2)


@pytest.mark.parametrize("size", [512, 1000, 1025, 4096, 3000])
def test_turned_values_are_close_to_normal(size: int):
    rng = np.random.default_rng(1)
    spike = np.zeros((200, size))
    spike[:, 7] = 1.0
    heavy = np.tile(rng.standard_t(1.5, size), (200, 1))
    for x in (spike, heavy, np.ones((200, size))):
        values = turned(x, 5, 0) * np.sqrt(size) / np.linalg.norm(x[0])
        assert kurtosis(values) == pytest.approx(3.0, abs=0.2)
        # No place has more than its part of the energy.
        assert np.mean(values**2, axis=0).max() < 2.2
    # Without the rotation it would be seen.
    assert kurtosis(heavy) > 10


def test_short_blocks_take_all_directions():
    # Of two values, the angle is spread evenly: no direction is preferred.
    rows = np.zeros((1 << 15, 2))
    rows[:, 0] = 1.0
    found = turned(rows, 2, 0)
    angles = np.arctan2(found[:, 1], found[:, 0])
    counts = np.histogram(angles, 16, (-np.pi, np.pi))[0]
    assert (np.abs(counts - 2048) < 6 * np.sqrt(2048)).all()
    # Random signs alone take few: the detector sees it.
    rows[:] = [1.0, 0.0]
    bits = rotation.signs(2, 0, rows.size).reshape(rows.shape)
    signs = np.where(bits & 1, -1.0, 1.0)
    counts = np.histogram(np.arctan2(signs[:, 1], signs[:, 0]), 16, (-np.pi, np.pi))[0]
    assert (np.abs(counts - 2048) > 6 * np.sqrt(2048)).any()


def test_rounds_draw_words_of_their_own():
    starts = [pairs.first_index(number) for number in range(17)]
    assert len(set(starts)) == 17
    assert min(np.diff(starts)) >= 2**52


def test_rows_of_another_kind_are_refused():
    whole = np.zeros((4, 100))
    frozen = np.zeros((4, 100))
    frozen.flags.writeable = False
    wrong = [whole[:, :50], whole.T, whole[0], whole.astype(np.float32), frozen]
    for rows in [*wrong, np.zeros((1, rotation.MAX_BLOCK + 1)), np.zeros((3, 0))]:
        with pytest.raises(InvalidInput, match="rows must be"):
            rotation.rotate(rows, 1, 0)
    rotation.rotate(np.zeros((0, 5)), 1, 0)
