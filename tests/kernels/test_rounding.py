"""Rounding is unbiased and has the variance the objective says: by statistics.

Every bound below is on a probability: a correct implementation fails with less than
`ERROR` for a test. Seeds are fixed, so the outcome is the same on every run.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.strategies import DTYPES

import quiver_kernels as qk
from quiver_kernels.reference import interval_of
from quiver_kernels.rng import random_words

ERROR = 1e-9


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of coins with probabilities p and q, in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads = np.where(p > 0, p * np.log(p / q), 0.0)
        tails = np.where(p < 1, (1 - p) * np.log((1 - p) / (1 - q)), 0.0)
    return heads + tails


def biased(ups: NDArray[np.int64], trials: int, p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which counts of ups are no counts of coins with probability p.

    Chernoff: a frequency f at least as far from p has probability below 2 exp(-n D(f || p)).
    Bonferroni over the elements: all of them together fail with probability below ERROR.
    """
    return trials * divergence(ups / trials, p) > math.log(2 * p.size / ERROR)


def probabilities(x: NDArray, levels: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Interval and exact-enough probability of going up, in float64."""
    wide, table = x.astype(np.float64), levels.astype(np.float64)
    k = interval_of(wide, table)
    return k, (wide - table[k]) / (table[k + 1] - table[k])


def nearest(x: NDArray, levels: NDArray, seed: int) -> NDArray[np.int64]:
    k, p = probabilities(x, levels)
    return k + (p >= 0.5)


def a_little_high(x: NDArray, levels: NDArray, seed: int) -> NDArray[np.int64]:
    k, p = probabilities(x, levels)
    return k + (random_words(seed, 0, x.size) < (np.minimum(p * 1.05, 1.0) * 2**32))


def three_bits(x: NDArray, levels: NDArray, seed: int) -> NDArray[np.int64]:
    # Stochastic rounding with a coarse random number: biased by up to 1/8.
    k, p = probabilities(x, levels)
    return k + ((random_words(seed, 0, x.size) >> np.uint32(29)) < np.floor(p * 8))


def one_seed(x: NDArray, levels: NDArray, seed: int) -> NDArray[np.int64]:
    k, p = probabilities(x, levels)
    return k + (random_words(3, 0, x.size) < p * 2**32)


BAD_RULES = [nearest, a_little_high, three_bits, one_seed]


def grid_of_values(dtype: str) -> NDArray:
    """Values at 0 .. 63 64ths of an interval [0, 1], in several intervals, ends included."""
    inside = np.arange(64) / 64 + 0.003
    return np.concatenate([[-3.0], inside - 2, inside, 2 * inside + 1, [4.0]]).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_mean_over_seeds_is_the_value(dtype: str):
    x = grid_of_values(dtype)
    trials = 4000
    ups = np.zeros(x.size, dtype=np.int64)
    for seed in range(trials):
        q = qk.quantize(x, num_levels=8, method="uniform", seed=seed)
        k, p = probabilities(x, q.levels)
        ups += q.indices() - k

    assert not biased(ups, trials, p).any()


@pytest.mark.parametrize("rule", BAD_RULES)
def test_a_biased_rule_is_noticed(rule):
    x = grid_of_values("float64")
    levels = qk.optimal_levels(x, 8, "uniform")
    trials = 4000
    k, p = probabilities(x, levels)
    ups = sum(rule(x, levels, seed) - k for seed in range(trials))

    assert biased(ups, trials, p).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e37])
def test_mean_over_elements_is_the_value(dtype: str, scale: float):
    # Many equal values in one vector: the words of different elements serve as the trials.
    places = np.array([0.001, 0.1, 1 / 3, 0.5, 0.77, 0.999])
    trials = 2**16
    x = np.concatenate([[0.0, 1.0], np.repeat(places, trials)]) * scale
    x = x.astype(dtype)
    q = qk.quantize(x, bits=1, seed=99)
    k, p = probabilities(x, q.levels)
    ups = (q.indices() - k)[2:].reshape(places.size, trials).sum(axis=1)

    assert not biased(ups, trials, p[2:].reshape(places.size, trials)[:, 0]).any()


def squared_error_sigmas(x: NDArray, levels: NDArray, decoded: list[NDArray]) -> float:
    """How far the summed squared error is from sum (b - x)(x - a), in standard deviations."""
    k, p = probabilities(x, levels)
    table, wide = levels.astype(np.float64), x.astype(np.float64)
    down, up = (wide - table[k]) ** 2, (table[k + 1] - wide) ** 2
    expected = len(decoded) * ((table[k + 1] - wide) * (wide - table[k])).sum()
    spread = math.sqrt(len(decoded) * (p * (1 - p) * (up - down) ** 2).sum())
    found = sum(((y.astype(np.float64) - wide) ** 2).sum() for y in decoded)
    return (found - expected) / spread


@pytest.mark.parametrize("method", ["exact", "approx", "uniform"])
def test_squared_error_is_what_vnmse_says(method: str):
    # A sum of 200 000 bounded terms is normal; 6.2 sigma: below one in 10^9.
    x = np.random.default_rng(8).normal(size=20_000).astype(np.float32)
    quantized = [qk.quantize(x, bits=3, method=method, seed=seed) for seed in range(10)]
    decoded = [qk.dequantize(q) for q in quantized]
    norm = (x.astype(np.float64) ** 2).sum()
    found = np.mean([((y.astype(np.float64) - x) ** 2).sum() for y in decoded])

    assert abs(squared_error_sigmas(x, quantized[0].levels, decoded)) < 6.2
    assert found / norm == pytest.approx(quantized[0].vnmse, rel=0.02)


@pytest.mark.parametrize("rule", [nearest, three_bits])
def test_a_wrong_variance_is_noticed(rule):
    x = np.random.default_rng(8).normal(size=20_000)
    levels = qk.optimal_levels(x, 8)
    decoded = [levels[rule(x, levels, seed)] for seed in range(10)]

    assert abs(squared_error_sigmas(x, levels, decoded)) > 6.2


def test_the_mean_error_vanishes_like_one_over_n():
    # Averages of independent codes: the error of the mean of n is 1/n of one's.
    x = np.random.default_rng(5).normal(size=50_000).astype(np.float32)
    n = 64
    mean = qk.aggregate([qk.quantize(x, bits=2, seed=seed) for seed in range(n)])
    vnmse = qk.quantize(x, bits=2, seed=0).vnmse
    error = ((mean.astype(np.float64) - x) ** 2).sum() / (x.astype(np.float64) ** 2).sum()

    assert error == pytest.approx(vnmse / n, rel=0.05)


def test_neighbouring_elements_are_independent():
    # 2^18 pairs of fair coins in four cells: chi-square with 3 degrees of freedom beyond 45 has
    # a probability below ERROR.
    x = np.full(2**19 + 2, 0.5, dtype=np.float32)
    x[-2:] = 0.0, 1.0
    ups = qk.quantize(x, bits=1, seed=4).indices()[:-2]
    for distance in (1, 2, 3, 4, 8, 512):
        pairs = 2 * ups[:-distance:2] + ups[distance::2][: ups[:-distance:2].size]
        counts = np.bincount(pairs, minlength=4)
        expected = counts.sum() / 4
        assert ((counts - expected) ** 2 / expected).sum() < 45
