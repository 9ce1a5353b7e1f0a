"""Quantizing a vector whose shards lie apart: on several machines, in files, in other processes.

    q = quantize_shards(HeldShards([first, second, third]), bits=4, seed=7)
    q.write("vector.quiver")

The shards, one after the other, are the vector; the result is that of `quiver_kernels.quantize`
of it, bit for bit. Shards are read where they lie, once for their range, some times for the
levels and once to be encoded; what travels are sums over cells, a few values, and of a chunk
that two shards share the part that lies in the second.
"""

from quiver_kernels.sharded.holders import Handle, HeldShards, Progress, Shards, Step, of_shard
from quiver_kernels.sharded.vector import MOST_GATHERED, ShardedVector, quantize_shards

__all__ = [
    "MOST_GATHERED",
    "Handle",
    "HeldShards",
    "Progress",
    "ShardedVector",
    "Shards",
    "Step",
    "of_shard",
    "quantize_shards",
]
