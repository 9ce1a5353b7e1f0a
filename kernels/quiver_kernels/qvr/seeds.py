"""The seed of each chunk, so that a chunk is the same whenever it is made."""

from __future__ import annotations

import hashlib
import struct

from quiver_kernels.options import DRAWN_SEED_BITS


def chunk_seed(seed: int, tensor: int, first: int) -> int:
    """53 bits of BLAKE2b of the file's seed and the chunk's position.

    Parameters
    ----------
    seed
        Of the file, unsigned 64-bit.
    tensor, first
        The tensor's number in the file, and the chunk's first value in the tensor.
    """
    text = struct.pack("<QQQ", seed, tensor, first)
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - DRAWN_SEED_BITS)
