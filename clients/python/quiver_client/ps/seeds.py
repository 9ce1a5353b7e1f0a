"""Seeds of messages: a hash of what is sent, by whom, in which round.

The noise of rounding must differ between clients, rounds, leaves and chunks, or it does not
average out; and a message that is made again must be the same message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from quiver_kernels.options import DRAWN_SEED_BITS
from quiver_kernels.tree import Tag


def derived_seed(
    job: int, tag: Tag, names: Sequence[str], chunk: int, *, shared: bool = False
) -> int:
    """A seed for one section: 53 bits of BLAKE2b of what it is as a MessagePack array.

    Parameters
    ----------
    job
        Seed of the whole training, any unsigned 64-bit integer.
    tag
        Whose message it is, and of which round.
    names, chunk
        Of the leaves, and which section of these.
    shared
        Whether all clients shall have this seed; one that they share is none of a client's own.
    """
    who = ["shared"] if shared else ["private", tag.client]
    text = msgspec.msgpack.encode([*who, job, tag.round, list(names), chunk])
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - DRAWN_SEED_BITS)
