"""Sizes: what a message weighs and what computing it takes, against what is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.measured import (
    measured_memory,
    memory_now,
    memory_peak,
)
from quiver_kernels.schemes.conformance.subject import Subject

_SIZES = (1, 2, 7, 24, 25, 100, 1000, 4097)
# Where all messages have one size, a bound so far above it is no account.
_LOOSE = 1.5
_LOOSE_SIZE, _LOOSE_BITS = 1 << 14, 1 << 14
_MEMORY_SIZE = 1 << 19
# Objects of the interpreter, and what is allocated once.
_MEMORY_SLACK = 1 << 21


def accounts(subject: Subject) -> Iterator[str]:
    """`message_bits` holds for every vector."""
    for size in _SIZES:
        declared = subject.scheme.message_bits(subject.choice, size)
        for kind, bits in _sizes(subject, size).items():
            if bits > declared:
                yield f"{size} {kind} values take {bits} bits; declared are at most {declared:g}"


def bounds(subject: Subject) -> Iterator[str]:
    """`message_bits` is near the truth where all messages have one size."""
    found = set(_sizes(subject, _LOOSE_SIZE).values())
    declared = subject.scheme.message_bits(subject.choice, _LOOSE_SIZE)
    if len(found) == 1 and declared > _LOOSE * max(found) + _LOOSE_BITS:
        yield f"{_LOOSE_SIZE} values take {max(found)} bits; declared are {declared:g}, far more"


def _sizes(subject: Subject, size: int) -> dict[str, int]:
    """Bits of messages of so many values of several kinds."""
    kinds: dict[str, NDArray[Any]] = {
        "normal": vectors.normal(size, "float64"),
        "heavy": vectors.heavy(size, "float64"),
        "constant": np.full(size, 0.7),
        "few": (np.arange(size) % 5 == 0).astype(np.float64),
    }
    return {kind: 8 * subject.quantize(x).nbytes for kind, x in kinds.items()}


def memory(subject: Subject) -> Iterator[str]:
    """Memory beside input and output is within `working_bytes`, as far as NumPy allocates it."""
    x = vectors.normal(_MEMORY_SIZE)
    declared = subject.scheme.working_bytes(subject.choice, x.size)
    # Compiled, imported and cached before it is measured.
    subject.quantize(x[:5000])
    q, used = _peak(lambda: subject.quantize(x))
    if used > declared + q.nbytes + _MEMORY_SLACK:
        yield f"encoding {x.size} values took {used} bytes; declared are {declared}"
    api.dequantize(subject.quantize(x[:5000]))
    read = QuantizedVector.from_bytes(q.to_bytes())
    decoded, used = _peak(lambda: api.dequantize(read))
    if used > declared + decoded.nbytes + _MEMORY_SLACK:
        yield f"decoding {x.size} values took {used} bytes; declared are {declared}"


def _peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """What `call` returns, and the most memory that it held at a time beyond that before."""
    with measured_memory():
        before = memory_now()
        result = call()
        return result, memory_peak() - before
