"""Messages of differing lengths from every rank to every rank.

Two collectives, in the same order on all ranks, and none of them in a callback: ranks whose
futures complete in different orders would start collectives in different orders, which gloo
answers with mixed up sizes or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist


class Wish(IntEnum):
    """What a rank has for the others; the greatest of all ranks is what all of them do."""

    MESSAGE = 0
    """A message."""
    PLAIN = 1
    """None: its values cannot be quantized, all ranks shall reduce in full precision."""
    FAILED = 2
    """None: it found an error, all ranks shall stop."""


def gather_messages(
    message: bytes, wish: Wish, group: dist.ProcessGroup
) -> tuple[Wish, list[int], list[memoryview]]:
    """Send `message` to all ranks and receive theirs.

    Parameters
    ----------
    message
        Empty unless `wish` is MESSAGE.
    wish
        What this rank wants.
    group
        The ranks.

    Returns
    -------
    tuple
        The greatest wish; the ranks that have it; every rank's message in rank order, none
        if the wish is not MESSAGE.

    Notes
    -----
    Sizes first, then the messages, padded to the longest: with n ranks each receives n times the
    longest message, and holds that many bytes. Blocks until all ranks have called.
    """
    header = torch.tensor([int(wish), len(message)], dtype=torch.int64)
    headers = _all_gather(header, group)
    wishes = [Wish(int(found[0])) for found in headers]
    greatest = max(wishes)
    having = [rank for rank, found in enumerate(wishes) if found == greatest]
    if greatest != Wish.MESSAGE:
        return greatest, having, []
    sizes = [int(found[1]) for found in headers]
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    received = _all_gather(torch.from_numpy(padded), group)
    messages = [
        memoryview(tensor.numpy())[:size] for tensor, size in zip(received, sizes, strict=True)
    ]
    return greatest, having, messages


def _all_gather(tensor: torch.Tensor, group: dist.ProcessGroup) -> Sequence[torch.Tensor]:
    received = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, tensor, group=group)
    return received
