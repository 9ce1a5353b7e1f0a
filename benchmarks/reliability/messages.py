"""Requests as bytes, made of seeded vectors."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.quantized import QuantizedVector

# Differ between two answers to one request.
INFORMATIVE = ("timings_ms", "device")


def vector(size: int, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    """Normal values."""
    return np.random.default_rng(seed).normal(size=size).astype(dtype)


def tensor(x: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": x.dtype.name, "shape": list(x.shape), "data": x.tobytes()}


def quantize(x: NDArray[Any], **options: Any) -> bytes:
    """The body of a request of ``/quantize`` or, without a seed, of ``/levels``."""
    return msgspec.msgpack.encode({"vector": tensor(x), **options})


def fingerprint(answer: bytes) -> str:
    """A hash of what a message says, less what may differ between two equal answers."""
    fields = msgspec.msgpack.decode(answer)
    said = {key: value for key, value in fields.items() if key not in INFORMATIVE}
    return hashlib.sha256(msgspec.msgpack.encode(said)).hexdigest()


def bits_of(q: QuantizedVector) -> str:
    """A hash of levels and codes alone."""
    return hashlib.sha256(q.levels.tobytes() + bytes(q.codes)).hexdigest()
