"""A vector of a thousand million values in files, quantized on a Ray cluster of three nodes.

``.venv/ray/bin/python benchmarks/cluster/shards.py`` (`make test-ray` makes that environment)
writes float32 files, starts a head and three nodes of one processor each as processes of this
machine, has `quantize_shards` quantize the files, writes the message and prints how long each step
took.
``--values``, ``--files``, ``--nodes`` and ``--block-size`` change the size of all that.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quiver_client.sharded.files import shards_in
from quiver_kernels.sharded import quantize_shards

STORE_BYTES = 200 << 20


@dataclass
class Watch:
    """Seconds from step to step, told by `quantize_shards`."""

    begun: float = field(default_factory=time.perf_counter)
    stage: str = ""
    spent: dict[str, float] = field(default_factory=dict)

    def __call__(self, stage: str, done: int, of: int) -> None:
        """A shard is done; what has passed since the last one is this step's."""
        del done, of
        now = time.perf_counter()
        self.spent[stage] = self.spent.get(stage, 0.0) + now - self.begun
        self.begun = now


def write_files(folder: Path, values: int, count: int) -> None:
    """Normal values, the same each time."""
    for number, size in enumerate(np.diff(np.linspace(0, values, count + 1).astype(np.int64))):
        made = np.random.default_rng(number).standard_normal(int(size), dtype=np.float32)
        np.save(folder / f"{number:04}.npy", made)


def started(nodes: int) -> tuple[Any, list[str]]:
    """A cluster in processes of this machine, and the ids of its nodes but for the head."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    added = [
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, include_dashboard=False)
        for _ in range(nodes)
    ]
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster, [str(node.node_id) for node in added]


def timed(call: Callable[[], int]) -> tuple[int, float]:
    """What it gives, and how long it took."""
    begun = time.perf_counter()
    return call(), time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    """Write, start, quantize, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--values", type=int, default=1_000_000_000)
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=None)
    parser.add_argument("--folder", type=Path, help="where 4 bytes a value fit (default: /tmp)")
    given = parser.parse_args(arguments)
    # Before Ray is imported: it reports nothing to anybody, and keeps no token in the home folder.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    import ray

    from quiver_client.sharded.on_ray import Loaded, RayShards

    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name) / "shards"
        folder.mkdir()
        write_files(folder, given.values, given.files)
        cluster, nodes = started(given.nodes)
        try:
            shards = RayShards(
                [Loaded(load, nodes[i % len(nodes)]) for i, load in enumerate(shards_in(folder))]
            )
            watch = Watch()
            begun = time.perf_counter()
            q = quantize_shards(shards, bits=4, seed=7, block_size=given.block_size, progress=watch)
            took = time.perf_counter() - begun
            size, writing = timed(lambda: q.write(Path(name) / "vector.quiver"))
        finally:
            ray.shutdown()
            cluster.shutdown()
    steps = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in watch.spent.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{given.values:,} values in {given.files} files, {given.nodes} nodes: {took:.1f} s")
    print(f"of these: {steps}")
    print(f"a message of {size:,} bytes written in {writing:.1f} s; this process took {peak} MiB")
    print(f"vNMSE {q.vnmse:.6g}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()}")


if __name__ == "__main__":
    main()
