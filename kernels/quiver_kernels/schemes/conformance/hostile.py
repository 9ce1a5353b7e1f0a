"""Hostile messages: every part changed; only refusals, or finite values of the right shape.

Bounded time and memory: what a message asks for is checked before it is allocated.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from quiver_kernels import api
from quiver_kernels.dtypes import LEAF_DTYPES
from quiver_kernels.errors import QuiverError
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.measured import (
    measured_memory,
    memory_now,
    memory_peak,
)
from quiver_kernels.schemes.conformance.subject import Subject

Message = dict[str, Any]

_SIZE = 75
_FLIPS = 40
# A small message: seconds of the processor's time, and bytes, that no decoding of it takes.
_SECONDS = 2.0
_BYTES = 32 << 20
_HUGE = (2**31, 2**40, 2**62)


def hostile(subject: Subject) -> Iterator[str]:
    """Change a message in every part, one at a time, and in random bytes."""
    if not subject.scheme.parameters and not subject.quantize(vectors.normal(8)).is_scheme:
        return
    data = subject.quantize(vectors.heavy(_SIZE)).to_bytes()
    whole: Message = msgspec.msgpack.decode(data)
    changed = ((what, msgspec.msgpack.encode(fields)) for what, fields in _mutations(whole))
    with measured_memory():
        for what, message in itertools.chain(changed, _damaged(data)):
            yield from _refused_or_read(message, what)


def _refused_or_read(data: bytes, what: str) -> Iterator[str]:
    before, begun = memory_now(), time.process_time()
    try:
        q = QuantizedVector.from_bytes(data)
        # Whoever reads it asks for this much, and may know better.
        if q.size > _BYTES // 64:
            yield f"{what}: {len(data)} bytes pass for {q.size} values"
            return
        decoded = api.dequantize(q)
        if decoded.shape != q.shape or decoded.dtype.name != q.dtype:
            yield f"{what}: decoded to {decoded.dtype} of shape {decoded.shape}"
        elif not np.isfinite(decoded.astype(np.float64)).all():
            yield f"{what}: decoded to values that are not finite"
    except QuiverError:
        pass
    except Exception as error:  # noqa: BLE001
        # Nothing but our own errors may come of a message, whatever is in it.
        yield f"{what}: {type(error).__name__} was raised: {error}"
    finally:
        took, peak = time.process_time() - begun, memory_peak() - before
    if took > _SECONDS:
        yield f"{what}: took {took:.1f} s"
    if peak > _BYTES:
        yield f"{what}: took {peak} bytes"


def _mutations(whole: Message) -> Iterator[tuple[str, Message]]:
    """What was changed, and the message with it."""
    for key in whole:
        yield f"no {key}", {name: value for name, value in whole.items() if name != key}
    numbers = (-1, 0, 1, 2, 3, 5, 8, 9, 17, 255, 256, 2**31, 2**63 - 1, None, 1.5, "x", True)
    for key in ("bits", "num_levels", "block_size", "seed", "vnmse", "level_sets"):
        for number in numbers:
            yield f"{key} {number}", {**whole, key: number}
    for shape in ([], [0], [1], [_SIZE - 1], [_SIZE + 1], [2 * _SIZE], [3, 25], [-1], "x"):
        yield f"shape {shape}", {**whole, "shape": shape}
    for size in _HUGE:
        yield f"shape [{size}]", {**whole, "shape": [size]}
        yield f"shape [{size}], no codes", {**whole, "shape": [size], "codes": b""}
        yield f"shape [{size}], blocks", {**whole, "shape": [size], "block_size": 1}
        yield f"shape [{size}], one block", {**whole, "shape": [size], "block_size": size}
    for dtype in ("float16", "bfloat16", "float32", "float64", "int8", "object", ""):
        yield f"dtype {dtype}", {**whole, "dtype": dtype}
        levels = {**whole["levels"], "dtype": dtype}
        yield f"levels of {dtype}", {**whole, "dtype": dtype, "levels": levels}
    for what, data in _changed_bytes(whole["codes"]):
        yield f"codes {what}", {**whole, "codes": data}
    yield from _levels(whole)
    yield from _sides(whole)
    yield from _parameters(whole)


def _levels(whole: Message) -> Iterator[tuple[str, Message]]:
    count = whole["num_levels"]
    kind = "float64" if whole["dtype"] == "float64" else "float32"
    tables: Mapping[str, Any] = {
        "none": np.zeros(0),
        "ascending": np.arange(count) / count,
        "equal": np.zeros(count),
        "descending": -np.arange(count),
        "NaN": np.full(count, np.nan),
        "infinite": np.full(count, np.inf),
        "huge": np.linspace(-3e38, 3e38, count),
        "too many": np.zeros(count + 1),
        "two-dimensional": np.zeros((2, count)),
    }
    for what, table in tables.items():
        part = {"dtype": kind, "shape": list(table.shape), "data": table.astype(kind).tobytes()}
        yield f"levels {what}", {**whole, "levels": part}


def _sides(whole: Message) -> Iterator[tuple[str, Message]]:
    side: dict[str, list[Any]] = whole.get("side") or {}
    yield "side of another name", {**whole, "side": {**side, "other": ["float32", bytes(4)]}}
    yield "too many side parts", {**whole, "side": {f"s{i}": ["uint8", b""] for i in range(99)}}
    for key, (kind, data) in side.items():
        rest = {name: part for name, part in side.items() if name != key}
        yield f"no {key} in side", {**whole, "side": rest}
        for other in ("float16", "float32", "float64", "uint8", "int8", "uint64", "bool", "x"):
            yield f"{key} of {other}", {**whole, "side": {**rest, key: [other, data]}}
        for what, changed in _changed_bytes(data):
            yield f"{key} {what}", {**whole, "side": {**rest, key: [kind, changed]}}
        if not kind.startswith("float"):
            continue
        for number in (np.nan, np.inf, -np.inf, -1.0, 0.0, -0.0, 6e4, 3e38, 1e300, 5e-324):
            with np.errstate(over="ignore", under="ignore"):
                filled = np.full(len(data) // LEAF_DTYPES[kind].itemsize, number)
                filled = filled.astype(LEAF_DTYPES[kind])
            parts = {**rest, key: [kind, filled.tobytes()]}
            yield f"{key} all {number}", {**whole, "side": parts}


def _parameters(whole: Message) -> Iterator[tuple[str, Message]]:
    given: dict[str, Any] = whole.get("parameters") or {}
    yield "an unknown parameter", {**whole, "parameters": {**given, "other": 1}}
    for key in given:
        rest = {name: value for name, value in given.items() if name != key}
        yield f"no {key}", {**whole, "parameters": rest}
        values = (-1, 0, 1, 2, 0.5, 7.0, 1e300, float("nan"), 2**63, True, False, "", "x" * 99)
        for value in values:
            yield f"{key} {value!r:.20}", {**whole, "parameters": {**given, key: value}}


def _changed_bytes(data: bytes) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(len(data))
    yield "empty", b""
    yield "cut", data[:-1]
    yield "cut in half", data[: len(data) // 2]
    yield "longer", data + b"\0"
    yield "twice", data + data
    yield "ones", b"\xff" * len(data)
    yield "zeros", bytes(len(data))
    for number in range(6):
        yield f"random {number}", rng.bytes(len(data))


def _damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(1)
    for _ in range(_FLIPS):
        place = int(rng.integers(len(data)))
        value = int(rng.integers(256))
        yield f"byte {place} is {value}", data[:place] + bytes([value]) + data[place + 1 :]
    for _ in range(_FLIPS // 4):
        end = int(rng.integers(len(data)))
        yield f"cut at {end}", data[:end]
