"""Rounding together: words that share the range out, and means that gain by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.strategies import DTYPES, dtype_names, methods, properties

import quiver_kernels as qk
from quiver_kernels.cpu import chunking
from quiver_kernels.cpu.encode import stratify
from quiver_kernels.dispatch import Backend
from quiver_kernels.dtypes import widen
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.reference import interval_of, round_codes
from quiver_kernels.rng import random_words
from quiver_kernels.rounding import rounding_table
from quiver_kernels.strata import MOST_UNITS, Strata, units

SHARED = 2**64 - 3


def place(world_size: int, rank: int, shared_seed: int = SHARED) -> Strata:
    options = QuantizeOptions.create(world_size=world_size, rank=rank, shared_seed=shared_seed)
    strata = Strata.of(options)
    assert strata is not None
    return strata


# -- the words ----------------------------------------------------------------------------


def is_permutation(strata: Sequence[NDArray[np.uint64]], world_size: int) -> bool:
    """Whether the strata of all ranks are, for each element, 0 .. n - 1 in some order."""
    expected = np.arange(world_size, dtype=np.uint64)[:, np.newaxis]
    return bool((np.sort(np.stack(strata), axis=0) == expected).all())


@pytest.mark.parametrize("world_size", range(1, 65))
def test_ranks_share_the_strata_out(world_size: int):
    strata = [place(world_size, rank).strata(5, 300) for rank in range(world_size)]

    assert is_permutation(strata, world_size)
    # A rank that is there twice leaves a stratum empty.
    if world_size > 1:
        assert not is_permutation([strata[0], *strata[:-1]], world_size)


@pytest.mark.parametrize("world_size", [256, 257, 1000])
def test_many_ranks_share_the_strata_out(world_size: int):
    assert is_permutation(
        [place(world_size, r).strata(0, 8) for r in range(world_size)], world_size
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 64, 255, 257, 5040, 65_521, 65_536])
def test_units_are_coprime_and_differ(world_size: int):
    found = units(world_size).tolist()
    coprime = [k for k in range(world_size) if math.gcd(k, world_size) == 1]

    assert set(found) <= set(coprime)
    assert len(set(found)) == len(found) == min(len(coprime), MOST_UNITS)


def test_ranks_change_places():
    # With shifts alone, neighbours in rank would be neighbours in every element.
    steps = place(16, 1).strata(0, 4000) - place(16, 0).strata(0, 4000)

    assert set((steps % np.uint64(16)).tolist()) == set(range(1, 16, 2))


def test_words_alone_are_the_private_ones():
    private = random_words(7, 0, 100)

    assert np.array_equal(place(1, 0).words(private, 0), private)
    assert not np.array_equal(place(2, 0).words(private, 0), private)


def test_a_known_word():
    # By hand, from the rule of the module's text: n = 5 has the units 1, 2, 3, 4.
    private, w = (int(random_words(seed, 9, 1, s)[0]) for seed, s in ((3, 0), (11, 2)))
    unit = (1, 2, 3, 4)[w * 4 >> 32]
    stratum = (unit * 2 + ((w * 4 % 2**32) * 5 >> 32)) % 5

    words = place(5, 2, shared_seed=11).words(np.array([private], np.uint32), 9)
    assert words.tolist() == [(stratum * 2**32 + private) // 5]


@properties
@given(
    st.integers(1, 65_536),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**30),
    st.sampled_from([0, 1, 2**31, 2**32 - 1, None]),
)
def test_compiled_words_are_the_reference_words(n: int, part: float, seed: int, group: int, word):
    strata = place(n, int(part * n), seed)
    private = random_words(seed ^ 1, 4 * group, 64)
    if word is not None:
        private[:] = word
    expected = strata.words(private, 4 * group)
    drawn = random_words(seed, 4 * group, 64, 2)
    stratify(private, drawn, strata.shifts, n)

    assert np.array_equal(private, expected)


def counted(words: NDArray[np.uint32], cells: int) -> NDArray[np.int64]:
    return np.bincount((words.astype(np.uint64) * np.uint64(cells) >> np.uint64(32)).astype(int))


def worst_sigmas(counts: NDArray[np.int64]) -> float:
    """How far the worst of counts of equal probability is off, in standard deviations."""
    total, p = counts.sum(), 1 / counts.size
    return float(np.abs(counts - total * p).max() / math.sqrt(total * p * (1 - p)))


@pytest.mark.parametrize("world_size", [2, 3, 16, 60, 1000, 65_521])
def test_each_ranks_words_are_uniform(world_size: int):
    for rank in (0, world_size // 2, world_size - 1):
        words = place(world_size, rank).words(random_words(1, 0, 2**18), 0)
        assert worst_sigmas(counted(words, 64)) < 5


def test_an_uneven_shift_is_noticed():
    words = place(16, 3).words(random_words(1, 0, 2**18), 0)
    # One stratum in sixteen is met a tenth less often than it should be.
    kept = (words >> np.uint32(28) != 5) | (np.arange(words.size) % 10 > 0)

    assert worst_sigmas(counted(words[kept], 64)) > 5


# -- codes ---------------------------------------------------------------------------------


def together(world_size: int, rank: int, shared_seed: int = SHARED) -> dict[str, int]:
    return {"world_size": world_size, "rank": rank, "shared_seed": shared_seed}


def reference_codes(x: NDArray, q: qk.QuantizedVector, strata: Strata) -> NDArray[np.uint8]:
    """The codes of `x` for the levels and the seed of `q`, by the oracle."""
    flat = widen(x).reshape(-1)
    block = q.block_size or flat.size
    tables = np.atleast_2d(q.levels)
    if not rounding_table(tables).narrow:
        tables = tables.astype(np.float64)
    return np.concatenate(
        [
            round_codes(flat[i : i + block], tables[i // block], q.seed, i, strata)
            for i in range(0, flat.size, block)
        ]
    )


@properties
@given(
    st.integers(1, 1500),
    dtype_names,
    methods,
    st.integers(2, 256),
    st.none() | st.integers(1, 700),
    st.integers(1, 65_536),
    st.integers(0, 2**64 - 1),
    st.sampled_from([8, 64, 512, chunking.CHUNK]),
)
def test_codes_are_the_reference_codes(
    size: int, dtype: str, method: str, s: int, block, n: int, seed: int, chunk: int
):
    x = np.random.default_rng(size).normal(size=size).astype(DTYPES[dtype])
    chosen = together(n, seed % n, seed ^ 2**40)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunking, "CHUNK", chunk)
        q = qk.quantize(x, num_levels=s, method=method, seed=seed, block_size=block, **chosen)

    expected = reference_codes(x, q, place(n, seed % n, seed ^ 2**40))
    assert np.array_equal(q.indices(), expected)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width(reference: Backend, dtype: str, bits: int):
    x = np.random.default_rng(bits).normal(size=(7, 61)).astype(DTYPES[dtype])
    q = qk.quantize(x, bits, "uniform", 5, **together(6, 4))
    options = QuantizeOptions.create(bits=bits, method="uniform", seed=5, **together(6, 4))

    assert np.array_equal(q.codes, reference.quantize(x, options, None).codes)
    assert not np.array_equal(q.codes, qk.quantize(x, bits, "uniform", 5).codes)


def test_threads_change_nothing():
    x = np.random.default_rng(1).normal(size=2 * chunking.CHUNK + 5).astype(np.float32)
    alone, shared = (
        qk.quantize(x, 4, "uniform", 5, threads=threads, **together(9, 8)) for threads in (1, 3)
    )

    assert np.array_equal(alone.codes, shared.codes)


def test_the_message_is_that_of_a_worker_alone():
    x = np.arange(100.0)
    fields = qk.quantize(x, 2, seed=5, **together(9, 8)), qk.quantize(x, 2, seed=5)

    assert fields[0].vnmse == fields[1].vnmse
    assert np.array_equal(fields[0].levels, fields[1].levels)
    assert len(fields[0].to_bytes()) == len(fields[1].to_bytes())


# -- means ---------------------------------------------------------------------------------


def sigmas_of_mean(ups: NDArray[np.int64], trials: int, p: NDArray[np.float64]) -> float:
    """The largest distance of a frequency from its probability, in standard deviations."""
    spread = np.sqrt(trials * p * (1 - p))
    return float((np.abs(ups - trials * p)[spread > 0] / spread[spread > 0]).max())


@pytest.mark.parametrize(("world_size", "rank"), [(16, 0), (16, 11), (3, 2), (1000, 999)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_worker_alone_is_unbiased(dtype: str, world_size: int, rank: int):
    places = np.array([0.003, 0.11, 1 / 3, 0.5, 0.77, 0.996])
    trials = 2**15
    x = np.concatenate([[0.0, 1.0], np.repeat(places, trials)]).astype(dtype)
    q = qk.quantize(x, bits=1, seed=99, **together(world_size, rank))
    ups = q.indices()[2:].astype(int).reshape(places.size, trials).sum(axis=1)

    assert sigmas_of_mean(ups, trials, places.astype(dtype).astype(float)) < 5
    # The check sees a word that stays in half of its range.
    half = place(world_size, rank).words(random_words(99, 2, x.size - 2), 2) >> np.uint32(1)
    thresholds = np.repeat(places * 2**32, trials)
    biased = (half < thresholds).reshape(places.size, trials).sum(axis=1)
    assert sigmas_of_mean(biased, trials, places) > 5


def test_the_mean_over_shared_seeds_is_the_value():
    # One private seed, many shared ones: the strata alone make the rounding unbiased to a 16th.
    x = np.linspace(0, 1, 101)
    trials = 4000
    ups = np.zeros(x.size, np.int64)
    for shared_seed in range(trials):
        q = qk.quantize(x, bits=1, seed=shared_seed + 1, **together(16, 5, shared_seed))
        ups += q.indices()

    assert sigmas_of_mean(ups, trials, x) < 5


def error_of_mean(vectors: Sequence[NDArray], s: int, ranks: Sequence[int] | None) -> float:
    """Squared error of the mean of quantized `vectors`; `ranks` None: each rounds alone."""
    n = len(vectors)
    quantized = [
        qk.quantize(x, num_levels=s, seed=i, **({} if ranks is None else together(n, ranks[i])))
        for i, x in enumerate(vectors)
    ]
    mean = qk.aggregate(quantized).astype(np.float64)
    return float(((mean - np.mean(vectors, axis=0)) ** 2).sum())


def gain(vectors: Sequence[NDArray], s: int, ranks: Sequence[int]) -> float:
    return error_of_mean(vectors, s, None) / error_of_mean(vectors, s, ranks)


def most_gain(x: NDArray, levels: NDArray) -> float:
    """The gain for many independent vectors like `x`, and the most any shared words can give.

    Rounding errors are g (up - p) in gaps g. What shared words may remove of the variance
    E g^2 p (1 - p) is what a worker's word alone explains of it: the variance over u of
    E g (1{u < p} - p).
    """
    wide, table = x.astype(float), levels.astype(float)
    k = interval_of(wide, table)
    gap = np.diff(table)[k]
    p = (wide - table[k]) / gap
    total = (gap**2 * p * (1 - p)).mean()
    order = np.argsort(p)
    above = np.cumsum(gap[order][::-1])[::-1] / x.size
    explained = (above**2 * np.diff(p[order], prepend=0)).sum() - (gap * p).mean() ** 2
    return float(total / (total - explained))


def inputs(kind: str, size: int, count: int) -> list[NDArray]:
    rng = np.random.default_rng(3)
    return [getattr(rng, kind)(size=size).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_means_of_sixteen_gain(kind: str):
    n, size = 16, 2**16
    different = inputs(kind, size, n)
    identical = [different[0]] * n

    assert gain(identical, 16, range(n)) >= 8
    found = gain(different, 16, range(n))
    # Wide gaps of heavy tails are too rare to have others to cancel with.
    assert found >= (1.6 if kind == "normal" else 1.35)
    limits = [most_gain(x, qk.quantize(x, 4, seed=0).levels) for x in different]
    assert found == pytest.approx(np.mean(limits), rel=0.05)
    # Whoever all have one rank round as if each were alone.
    assert gain(identical, 16, [3] * n) < 1.1
    assert gain(different, 16, [3] * n) < 1.1


def test_equal_values_are_nearly_exact_together():
    # Of n equal values, as many go up as should, or one more or less: in proof, below 1 / n.
    x = np.concatenate([[0.0, 1.0], np.random.default_rng(4).random(5000)])
    n = 10
    ups = sum(qk.quantize(x, 1, seed=r, **together(n, r)).indices().astype(int) for r in range(n))

    assert np.abs(ups - n * x).max() <= 1
    alone = sum(qk.quantize(x, 1, seed=r).indices().astype(int) for r in range(n))
    assert np.abs(alone - n * x).max() > 1


def test_the_squared_error_of_one_is_what_vnmse_says():
    x = np.random.default_rng(8).normal(size=2**17).astype(np.float32)
    q = qk.quantize(x, 3, "uniform", 1, **together(16, 2))
    wide, table = x.astype(float), q.levels.astype(float)
    k = interval_of(wide, table)
    error = (qk.dequantize(q).astype(float) - wide) ** 2
    gap = np.diff(table)[k]
    p = (wide - table[k]) / gap
    spread = math.sqrt((p * (1 - p) * (1 - 2 * p) ** 2 * gap**4).sum())

    assert abs(error.sum() - q.vnmse * (wide**2).sum()) < 5 * spread


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "field", "words"),
    [
        ({"world_size": 4}, "rank", "got world_size without rank and shared_seed"),
        ({"rank": 4, "shared_seed": 1}, "world_size", "got rank, shared_seed without world_size"),
        ({"world_size": 4, "rank": 1}, "shared_seed", "without shared_seed"),
        (together(4, 4), "rank", "from 0 to 3; got 4"),
        (together(0, 0), "world_size", "from 1 to 65536; got 0"),
        (together(2**16 + 1, 0), "world_size", "from 1 to 65536; got 65537"),
        (together(4, 0, 2**64), "shared_seed", "18446744073709551615"),
        ({**together(4, 1), "rank": True}, "rank", "got bool"),
        ({**together(4, 1), "shared_seed": 1.5}, "shared_seed", "got float"),
    ],
)
def test_options_that_are_refused(chosen: dict[str, int], field: str, words: str):
    with pytest.raises(InvalidInput) as caught:
        qk.quantize([1.0, 2.0], **chosen)

    assert caught.value.field == field
    assert words in caught.value.detail
