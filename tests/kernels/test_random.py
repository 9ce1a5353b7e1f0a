"""Philox4x32-10: known answers, and one stream for every way to ask for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import properties

from quiver_kernels.cpu.encode import fill_random
from quiver_kernels.rng import STRATA_STREAM, philox4x32, random_words

SEED = 0x0123456789ABCDEF


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
        ("0 0 0 0", "89abcdef 01234567", "b850222e c58cb04b 14a7a020 7a84fff9"),
        ("1 0 0 0", "89abcdef 01234567", "adca1466 523e0d85 65401425 b299da3f"),
        ("0 1 0 0", "89abcdef 01234567", "d9412d6a 59dd3f68 9d46a012 5d27ddd9"),
    ],
)
def test_known_answers(counter: str, key: str, answer: str):
    low, high = words(key)
    found = philox4x32(np.array([words(counter)], dtype=np.uint32), (low, high))

    assert found.tolist() == [words(answer)]


@pytest.mark.parametrize(
    ("seed", "first", "answer"),
    [
        (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (SEED, 0, "b850222e c58cb04b 14a7a020 7a84fff9"),
        (SEED, 4, "adca1466 523e0d85 65401425 b299da3f"),
        (SEED, 2**34, "d9412d6a 59dd3f68 9d46a012 5d27ddd9"),
    ],
)
def test_known_answers_by_element(seed: int, first: int, answer: str):
    compiled = np.empty(4, dtype=np.uint32)
    fill_random(np.uint64(seed), np.uint64(0), first // 4, compiled)

    assert random_words(seed, first, 4).tolist() == words(answer)
    assert compiled.tolist() == words(answer)


@properties
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 64))
def test_numpy_and_compiled_words_are_the_same(seed: int, group: int, groups: int):
    compiled = np.empty(4 * groups, dtype=np.uint32)
    for stream in (0, STRATA_STREAM, 2**32 - 1):
        fill_random(np.uint64(seed), np.uint64(stream), group, compiled)
        assert np.array_equal(random_words(seed, 4 * group, 4 * groups, stream), compiled)


@properties
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**36),
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
)
def test_any_cut_of_the_stream_is_the_stream(seed: int, start: int, sizes: list[int]):
    whole = random_words(seed, start, sum(sizes))
    starts = start + np.cumsum([0, *sizes[:-1]])
    pieces = [random_words(seed, int(at), n) for at, n in zip(starts, sizes, strict=True)]

    assert np.array_equal(np.concatenate(pieces), whole)


def test_words_are_uniform_and_independent():
    # Chi-square with Wilson and Hilferty's normal approximation; 6 sigma: one in 10^9.
    drawn = random_words(1, 0, 2**20)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((drawn >> np.uint32(shift)) & np.uint32(255), minlength=256)
        assert abs(chi_square_sigmas(counts)) < 6
    pairs = (drawn[:-1] >> np.uint32(28)) * np.uint32(16) + (drawn[1:] >> np.uint32(28))
    assert abs(chi_square_sigmas(np.bincount(pairs, minlength=256))) < 6
    seeds = np.array([random_words(seed, 0, 1)[0] >> 24 for seed in range(5_000)])
    assert abs(chi_square_sigmas(np.bincount(seeds, minlength=256))) < 6


def test_the_chi_square_sees_a_slight_slope():
    drawn = np.random.default_rng(0).choice(
        256, 2**20, p=np.linspace(0.97, 1.03, 256) / np.linspace(0.97, 1.03, 256).sum()
    )

    assert chi_square_sigmas(np.bincount(drawn, minlength=256)) > 6


def chi_square_sigmas(counts) -> float:
    """How many standard deviations the counts are from those of equal probabilities."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2).sum() / expected
    freedom = counts.size - 1
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)
