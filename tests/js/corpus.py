"""Damaged messages with what Python says of each, in a file that other languages read.

Little-endian, one case after the other: uint32 bytes of the message; the message; uint8 0 if it
is refused, 1 if it is accepted, 2 if nobody knows; and if 1, uint32 number of values and these as
float64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import numpy as np
from tests.fuzz.mutator import Seed, changed_bytes, mutated, source
from tests.js.golden import golden
from tests.support.messages import packed, quantized, tensor

import quiver_kernels as qk
from quiver_kernels.errors import QuiverError

MOST_VALUES = 1 << 20
"""Messages of more values count as refused: readers are told to."""

_REFUSED, _ACCEPTED, _UNKNOWN = range(3)


def verdict(message: bytes) -> np.ndarray | None:
    """The decoded values in float64, or None where the message is refused."""
    try:
        q = qk.QuantizedVector.from_bytes(message)
        if q.size > MOST_VALUES:
            return None
        return qk.dequantize(q).reshape(-1).astype(np.float64)
    except QuiverError:
        return None


def judged(messages: Iterable[bytes]) -> Iterator[bytes]:
    """The cases of messages with Python's verdict."""
    for message in messages:
        yield case(message, verdict(message))


def unjudged(messages: Iterable[bytes]) -> Iterator[bytes]:
    """The cases of messages of which only an answer is wanted, either way."""
    for message in messages:
        yield _head(message) + bytes([_UNKNOWN])


def case(message: bytes, values: np.ndarray | None) -> bytes:
    """The case of a message that has these values, or is to be refused."""
    if values is None:
        return _head(message) + bytes([_REFUSED])
    return _head(message) + struct.pack("<BI", _ACCEPTED, values.size) + values.tobytes()


def damaged(count: int, seed: int = 1) -> Iterator[bytes]:
    """Golden messages, changed in ways that `seed` and the case's number tell."""
    seeds = [Seed.of(name, message) for name, message, _ in golden()]
    for number in range(count):
        rng = source(seed, number)
        yield mutated(rng, rng.choice(seeds), rng.choice(seeds))


def knocked(count: int, seed: int = 1) -> Iterator[bytes]:
    """Golden messages cut short, or with some bytes changed blindly."""
    messages = [message for _, message, _ in golden()]
    for number in range(count):
        rng = source(seed, number)
        message = rng.choice(messages)
        cut = rng.random() < 0.3
        yield message[: rng.randrange(len(message))] if cut else changed_bytes(rng, message)


def chosen() -> Iterator[bytes]:
    """Messages with one thing wrong each, the first with none; see also `tests.wire`."""
    message = packed(quantized())
    yield message
    yield from (message[:end] for end in range(len(message)))
    yield message.replace(b"\x8d\xa1v\x01", b"\x8e\xa1v\x01\xa1v\x01")
    yield message.replace(b"\xa1v\x01", b"\xa1v\x02")
    yield message + b"\xc0"
    # A code beyond three levels; a table that descends, or is infinite; a code too many.
    yield packed(quantized(codes=bytes([0b11, 0])))
    yield packed(quantized(levels=tensor(np.array([[0, -1, 2.5], [3, 3, 3]], np.float32))))
    yield packed(quantized(levels=tensor(np.array([[-1, 0, np.inf], [3, 3, 3]], np.float32))))
    yield packed(quantized(codes=bytes(3)))
    yield packed(quantized(seed=-1))
    yield packed(quantized(bits=2.0))
    yield packed(quantized(vnmse=float("nan")))
    yield packed(quantized(shape=[2**40, 2**40]))
    yield packed(quantized(level_sets=2))
    yield packed(quantized(side={"scales": ["float32", bytes(4)]}))
    yield packed(quantized(wrap={}))


def _head(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message
