"""Vectors in shards: the bits of one vector, however they are cut, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels.cpu.chunking import CHUNK
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.options import STREAM_FROM
from quiver_kernels.sharded import HeldShards, quantize_shards, steps
from quiver_kernels.sharded.passes import cut_at_chunks

# Beyond it exact levels are found in passes, not by sorting.
LONG = STREAM_FROM + 12_345
RNG = np.random.default_rng(11)
NORMAL = RNG.standard_normal(LONG).astype(np.float32)
CUTS = (3, CHUNK, CHUNK + 1, 700_001, 700_002, 2 * CHUNK * 3)


@dataclass(frozen=True, eq=False, slots=True)
class TreeShards(HeldShards):
    """Shards whose results are joined two by two, as a cluster does."""

    def join(self, join: Callable[[list[Any]], Any], parts: Sequence[Any], /) -> Any:
        """Until one is left."""
        left = list(parts)
        while len(left) > 1:
            left = [join(left[at : at + 2]) for at in range(0, len(left), 2)]
        return join(left)


def same(a: qk.QuantizedVector, b: qk.QuantizedVector) -> bool:
    """Whether two messages are the same but for the time that they took."""
    return replace(a, timings_ms={}).to_bytes() == replace(b, timings_ms={}).to_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"num_levels": 5},
        {"bits": 3, "method": "approx"},
        {"bits": 3, "method": "approx", "grid": "uniform", "bins": 100},
        {"bits": 2, "method": "uniform"},
        {"bits": 1},
        {"bits": 8, "method": "uniform"},
        {"levels": [-8.0, -1.0, 0.0, 1.0, 8.0]},
    ],
)
def test_shards_give_the_bits_of_one_vector(options: dict[str, Any]):
    whole = qk.quantize(NORMAL, seed=7, **options)
    sharded = quantize_shards(TreeShards(np.split(NORMAL, CUTS)), seed=7, **options)

    assert same(sharded.to_vector(), whole)
    assert sharded.vnmse == whole.vnmse


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
@pytest.mark.parametrize("size", [1, 7, CHUNK + 5, LONG])
def test_any_type_and_any_size(dtype: str, size: int):
    x = (1000 * NORMAL[:size]).astype(WIRE_DTYPES[dtype])
    cuts = [cut for cut in CUTS if cut < size]

    sharded = quantize_shards(HeldShards(np.split(x, cuts)), bits=3, seed=1)

    assert same(sharded.to_vector(), qk.quantize(x, bits=3, seed=1))


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    block=st.integers(1, 90),
    method=st.sampled_from(["exact", "approx", "uniform"]),
    bits=st.sampled_from([1, 3, 4, 8]),
)
def test_blocks_are_those_of_one_vector(sizes: list[int], block: int, method: str, bits: int):
    x = NORMAL[: sum(sizes)]
    options: dict[str, Any] = {"bits": bits, "method": method, "block_size": block, "seed": 5}

    shards = HeldShards(np.split(x, np.cumsum(sizes)[:-1]))
    sharded = quantize_shards(shards, **options)

    assert same(sharded.to_vector(), qk.quantize(x, **options))
    assert sharded.code_bytes == sharded.to_vector().codes.size


@pytest.mark.parametrize("block", [1000, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_blocks_across_shards_and_chunks(block: int, tmp_path: Path):
    x = NORMAL[: CHUNK + 5000]
    options: dict[str, Any] = {"bits": 3, "method": "uniform", "seed": 7, "block_size": block}
    sharded = quantize_shards(TreeShards(np.split(x, CUTS[:3])), **options)
    sharded.write(tmp_path / "vector")

    read = qk.QuantizedVector.from_bytes((tmp_path / "vector").read_bytes())
    assert same(read, qk.quantize(x, **options))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "tcq"}, "method must be one of exact, approx, uniform for shards; got 'tcq'"),
        ({"levels": [-9.0, 9.0], "block_size": 4}, "levels and block_size exclude each other"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_what_shards_cannot_do_is_refused(options: dict[str, Any], told: str):
    with pytest.raises(qk.InvalidInput, match=told):
        quantize_shards(HeldShards([NORMAL[:10]]), seed=1, **options)


def test_few_distinct_values_and_values_that_are_all_alike():
    for x in (np.tile(np.float32([1, -0.0, 0, 5]), LONG // 4), np.full(LONG, 2.5)):
        sharded = quantize_shards(HeldShards(np.split(x, CUTS)), bits=3, seed=1)

        assert same(sharded.to_vector(), qk.quantize(x, bits=3, seed=1))


def test_ties_are_sorted_where_they_fit_and_refused_where_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("quiver_kernels.cpu.solving.stream_levels", lambda *_: None)
    shards = HeldShards(np.split(NORMAL, CUTS))

    sharded = quantize_shards(shards, bits=2, seed=1)

    assert same(sharded.to_vector(), qk.quantize(NORMAL, bits=2, seed=1))
    with pytest.raises(qk.InvalidInput, match=f"up to 1000 values .* got {LONG}"):
        quantize_shards(shards, bits=2, most_gathered=1000)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    chunk=st.sampled_from([1, 2, 8, 16]),
)
def test_every_chunk_is_encoded_once_where_it_begins(sizes: list[int], chunk: int):
    owner = np.repeat(np.arange(len(sizes)), sizes)
    plan = cut_at_chunks(sizes, chunk)

    for number, part in enumerate(plan):
        mine = np.flatnonzero(owner == number)
        begun = [at for at in mine.tolist() if at % chunk == 0]
        assert part.encodes == bool(begun)
        assert part.lends == (begun[0] - mine[0] if begun else mine.size)
        if begun:
            last = owner[begun[-1] : begun[-1] + chunk].tolist()
            assert part.first == begun[0]
            assert set(part.borrows) == set(last) - {number}


def test_a_file_is_the_message(tmp_path: Path):
    sharded = quantize_shards(HeldShards(np.split(NORMAL, CUTS)), bits=4, seed=7, shape=(1, LONG))
    path = tmp_path / "vector.quiver"

    size = sharded.write(path)

    assert size == path.stat().st_size
    assert [entry.name for entry in tmp_path.iterdir()] == ["vector.quiver"]
    whole = qk.quantize(NORMAL.reshape(1, -1), bits=4, seed=7)
    assert same(qk.QuantizedVector.from_bytes(path.read_bytes()), whole)


def test_a_small_file_is_the_message(tmp_path: Path):
    sharded = quantize_shards(HeldShards([NORMAL[:5], NORMAL[5:9]]), bits=4, seed=7)
    sharded.write(tmp_path / "small")

    read = qk.QuantizedVector.from_bytes((tmp_path / "small").read_bytes())
    assert same(read, qk.quantize(NORMAL[:9], bits=4, seed=7))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    sharded = quantize_shards(HeldShards([NORMAL[:100]]), seed=7)

    with pytest.raises(AttributeError):
        replace(sharded, parts=(None,)).write(tmp_path / "vector")
    assert list(tmp_path.iterdir()) == []


def test_shards_are_asked_for_again_at_every_pass_and_progress_is_told():
    asked, told = [], []

    def shard(number: int) -> NDArray[Any]:
        asked.append(number)
        return np.split(NORMAL, CUTS)[number]

    count = len(CUTS) + 1
    shards = HeldShards([lambda number=number: shard(number) for number in range(count)])
    quantize_shards(shards, bits=4, seed=7, progress=lambda *event: told.append(event))

    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["measure", "count"]
    assert stages[-1] == "encode"
    assert {of for stage, _, of in told if stage != "encode"} == {count}
    assert asked[:count] == list(range(count))


@pytest.mark.parametrize(
    ("shards", "options", "text"),
    [
        ([], {}, "at least one"),
        ([[1.0], []], {}, "shard 1: shard must hold at least one value"),
        ([[1.0], [1.0, np.nan]], {}, "shard 1: shard must be finite; got nan at index 1"),
        ([np.zeros(1), np.zeros(1, np.float32)], {}, "shard 1 has float32"),
        (
            [[1.0]],
            {"method": "accelerated"},
            "exact, approx, uniform for shards; got 'accelerated'",
        ),
        ([[1.0]], {"method": "seq"}, "got 'seq'"),
        ([[1.0, 2.0]], {"shape": (3,)}, "the 2 values of all shards; got \\[3\\]"),
        ([[1.0, 2.0]], {"shape": (-1, -2)}, "got \\[-1, -2\\]"),
        ([[1.0, 9.0]], {"levels": [0.0, 2.0]}, "bracket"),
        ([[1.0]], {"bits": 9}, "bits"),
    ],
)
def test_what_is_refused(shards: list[Any], options: dict[str, Any], text: str):
    with pytest.raises(qk.InvalidInput, match=text):
        quantize_shards(HeldShards(shards), **options)


# Half of the values in place of them, seen only by the count, is as good a vector as any.
@pytest.mark.parametrize(
    ("spoilt_from", "change"),
    [(2, "longer"), (2, "beyond"), (3, "longer"), (3, "beyond"), (3, "half")],
)
def test_shards_that_change_meanwhile_are_noticed(spoilt_from: int, change: str):
    """Spoilt from the count on, or from the closer look on."""
    calls = 0

    def shard() -> NDArray[Any]:
        nonlocal calls
        calls += 1
        x = NORMAL[: LONG // 2]
        if calls < spoilt_from:
            return x
        if change == "longer":
            return np.concatenate([x, x])
        return 10 * x if change == "beyond" else 0.5 * x

    with pytest.raises(qk.InvalidInput, match=r"must be what it was before|must not change"):
        quantize_shards(HeldShards([shard, NORMAL[LONG // 2 :]]), bits=4, seed=7)


def test_the_comparison_finds_a_planted_offset(monkeypatch: pytest.MonkeyPatch):
    """Shards that count their elements from 0 draw the wrong random numbers."""
    encode = steps.Encode.__call__

    def planted(self: steps.Encode, shard: NDArray[Any], *rests: NDArray[Any]) -> Any:
        return encode(replace(self, first=0), shard, *rests)

    monkeypatch.setattr(steps.Encode, "__call__", planted)
    sharded = quantize_shards(HeldShards(np.split(NORMAL, CUTS)), bits=4, seed=7)

    assert not same(sharded.to_vector(), qk.quantize(NORMAL, bits=4, seed=7))
