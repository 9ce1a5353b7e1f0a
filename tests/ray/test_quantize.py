"""Shards on several nodes: the bits of one machine, also where a node is lost."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_client.sharded.files import NpyShard, shards_in
from quiver_client.sharded.on_ray import FAN_IN, Loaded, OfActor, RayShards
from quiver_kernels.sharded import quantize_shards
from ray_cluster import LocalCluster

# This file's classes go to other processes whole; they cannot import it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

X = np.random.default_rng(5).standard_normal(2_500_000).astype(np.float32)
CUTS = (100, 900_000, 900_001, 1_600_000, 2_300_000)


class Rank:
    """A training process with its part of a gradient; NumPy, no Ray in it."""

    def __init__(self, gradient: NDArray[Any]) -> None:
        self._gradient = gradient

    def gradient(self) -> NDArray[Any]:
        """The part."""
        return self._gradient


@pytest.fixture(scope="module")
def nodes(cluster: LocalCluster) -> list[str]:
    """Two nodes beside the head."""
    return [cluster.add(), cluster.add()]


@pytest.fixture(scope="module")
def expected() -> qk.QuantizedVector:
    """What one machine gives."""
    return qk.quantize(X, bits=4, seed=7)


@pytest.fixture
def files(tmp_path: Path) -> list[NpyShard]:
    """The vector in files."""
    for number, part in enumerate(np.split(X, CUTS)):
        np.save(tmp_path / f"{number:03}.npy", part)
    return [shard for shard in shards_in(tmp_path) if isinstance(shard, NpyShard)]


def same(a: qk.QuantizedVector, b: qk.QuantizedVector) -> bool:
    """Whether two messages are the same but for the time that they took."""
    return replace(a, timings_ms={}).to_bytes() == replace(b, timings_ms={}).to_bytes()


@ray.remote(num_cpus=1)
def part_of(number: int) -> NDArray[Any]:
    """A shard that a task of the cluster makes, and makes again if it is lost."""
    made = np.random.default_rng(5).standard_normal(2_500_000).astype(np.float32)
    return np.split(made, (100, 900_000, 900_001, 1_600_000, 2_300_000))[number]


@pytest.mark.usefixtures("nodes")
def test_objects_of_the_cluster(expected: qk.QuantizedVector, tmp_path: Path):
    told = []
    shards = RayShards([part_of.remote(number) for number in range(len(CUTS) + 1)])

    q = quantize_shards(shards, bits=4, seed=7, progress=lambda *event: told.append(event))
    q.write(tmp_path / "vector")

    assert same(q.to_vector(), expected)
    assert same(qk.QuantizedVector.from_bytes((tmp_path / "vector").read_bytes()), expected)
    assert [done for stage, done, _ in told if stage == "measure"] == [1, 2, 3, 4, 5, 6]


def test_files_of_nodes_more_than_are_joined_at_once(nodes: list[str], tmp_path: Path):
    x = X[:50_000]
    for number, part in enumerate(np.array_split(x, FAN_IN**2 // 4 + 3)):
        np.save(tmp_path / f"{number:03}.npy", part)
    shards = [Loaded(load, nodes[i % 2]) for i, load in enumerate(shards_in(tmp_path))]

    for options in ({"bits": 4}, {"bits": 3, "method": "approx"}):
        q = quantize_shards(RayShards(shards), seed=7, **options)
        assert same(q.to_vector(), qk.quantize(x, seed=7, **options))


@pytest.mark.usefixtures("nodes")
def test_arrays_that_ranks_hold(expected: qk.QuantizedVector):
    ranks = [ray.remote(Rank).options(num_cpus=0).remote(part) for part in np.split(X, CUTS[::2])]

    q = quantize_shards(RayShards([OfActor(rank, "gradient") for rank in ranks]), bits=4, seed=7)

    assert same(q.to_vector(), expected)
    for rank in ranks:
        ray.kill(rank)


@pytest.mark.usefixtures("nodes")
def test_what_a_shard_refuses_is_told_here():
    bad = np.ones(10)
    bad[4] = np.inf
    shards = RayShards([ray.put(np.ones(5)), ray.put(bad)])

    with pytest.raises(qk.InvalidInput, match="shard 1: shard must be finite; got inf at index 4"):
        quantize_shards(shards, seed=1)
    with pytest.raises(qk.InvalidInput, match=r"shards\[1\] must be an ObjectRef.* got ndarray"):
        RayShards([ray.put(bad), bad])


@pytest.mark.parametrize(("stage", "after"), [("count", 1), ("encode", 6)])
def test_a_node_that_is_lost(
    cluster: LocalCluster,
    files: list[NpyShard],
    expected: qk.QuantizedVector,
    stage: str,
    after: int,
):
    """Lost in the middle, and with all the codes that lay on it."""
    doomed = cluster.add()
    killed = []

    def progress(at: str, done: int, of: int) -> None:
        if at == stage and done >= min(after, of) and not killed:
            killed.append(doomed)
            cluster.kill(doomed)

    shards = RayShards([Loaded(load, doomed) for load in files])
    q = quantize_shards(shards, bits=4, seed=7, progress=progress)

    assert killed
    assert same(q.to_vector(), expected)


def test_without_second_tries_a_lost_node_is_a_lost_vector(
    cluster: LocalCluster, files: list[NpyShard]
):
    """The control of the test above: nobody does again what was lost."""
    doomed = cluster.add()
    shards = RayShards([Loaded(load, doomed) for load in files], max_retries=0)
    q = quantize_shards(shards, bits=4, seed=7)
    cluster.kill(doomed)

    with pytest.raises(ray.exceptions.RayError):
        q.to_vector()
