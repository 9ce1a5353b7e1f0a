"""The same again: results depend on values, choice and seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quiver_kernels import api
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.subject import Subject

# Several chunks of every scheme.
_LONG = (1 << 18) + 4099
_AT_ONCE = 4


def repeats(subject: Subject) -> Iterator[str]:
    """Again, after other vectors, in other memory, and at the same time in several threads."""
    kinds = [vectors.normal(500), vectors.heavy(333, "float64"), vectors.normal(64, seed=1)]
    first = [_content(subject.quantize(x, seed)) for seed, x in enumerate(kinds)]
    again = [_content(subject.quantize(x.copy(), seed)) for seed, x in enumerate(kinds)][::-1]
    if again[::-1] != first:
        yield "the same vector and seed give another message the second time"
    strided = np.repeat(kinds[0], 2)[::2]
    if _content(subject.quantize(strided, 0)) != first[0]:
        yield "a vector that is not contiguous gives another message"
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = [
            (number % 3, pool.submit(subject.quantize, kinds[number % 3], number % 3))
            for number in range(3 * _AT_ONCE)
        ]
        if any(_content(job.result()) != first[number] for number, job in jobs):
            yield "computed beside others in threads, a vector gives another message"


def shared(subject: Subject) -> Iterator[str]:
    """A long vector, shared by threads or not."""
    x = vectors.normal(_LONG, seed=5)
    alone = subject.quantize(x)
    if _content(subject.quantize(x, threads=_AT_ONCE)) != _content(alone):
        yield f"{_LONG} values give another message on {_AT_ONCE} threads than on one"
    one, more = (api.dequantize(alone, threads=count) for count in (1, _AT_ONCE))
    if one.tobytes() != more.tobytes():
        yield f"{_LONG} values decode otherwise on {_AT_ONCE} threads than on one"


def deterministic(subject: Subject) -> Iterator[str]:
    """Where it is promised, the seed does not matter."""
    if not subject.promises.deterministic:
        return
    for x in (vectors.normal(700), vectors.heavy(100)):
        messages = [subject.quantize(x, seed) for seed in (0, 1, 2**64 - 1)]
        decoded = {api.dequantize(q).tobytes() for q in messages}
        if len({_content(q) for q in messages}) > 1 or len(decoded) > 1:
            yield "promised to be deterministic, but another seed gives another message"


def blocks(subject: Subject) -> Iterator[str]:
    """Where streaming is promised, the first of equal blocks is encoded as if it were alone.

    Of equal ones, since a pass over all may have found a scale for all.
    """
    block = subject.choice.block_size
    if not subject.promises.streaming or block is None:
        return
    x = np.tile(vectors.heavy(block), 5)
    whole = api.dequantize(subject.quantize(x))[:block]
    if api.dequantize(subject.quantize(x[:block])).tobytes() != whole.tobytes():
        yield "promised to stream, but the first block depends on those after it"


def _content(q: QuantizedVector) -> tuple[object, ...]:
    """All of a message that must be the same."""
    side = tuple((name, part.dtype.name, part.tobytes()) for name, part in q.side.items())
    return q.levels.tobytes(), q.codes.tobytes(), side, q.vnmse, q.num_levels
