"""Messages for tests of the service, made by hand: also ones that no library would make."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

VND = "application/vnd.msgpack"
VALUES = np.array([0.5, -1.25, 3.0, 2.0, 0.0, 1.5, -2.0, 4.0], dtype=np.float32)


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack(data: bytes) -> Any:
    return msgspec.msgpack.decode(data)


def tensor(array: np.ndarray = VALUES, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(array.shape), "data": array.tobytes()}


def quantize_fields(**changes: Any) -> dict[str, Any]:
    return {"vector": tensor(), "bits": 2, "seed": 7, **changes}


def quantized_fields(**changes: Any) -> dict[str, Any]:
    """A quantized vector of eight values with levels 0, 1, 2, 3."""
    return {
        "v": 1,
        "method": "exact",
        "bits": 2,
        "num_levels": 4,
        "shape": [8],
        "dtype": "float32",
        "block_size": None,
        "seed": 7,
        "levels": tensor(np.arange(4, dtype=np.float32)),
        "codes": bytes([0b11100100, 0b00011011]),
        "vnmse": 0.0,
        "device": "cpu",
        "timings_ms": {},
        **changes,
    }


DECODED = np.array([0, 1, 2, 3, 3, 2, 1, 0], dtype=np.float32)


def map_of(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """A map from packed keys and values, which may repeat or be of any type."""
    return struct.pack(">BH", 0xDE, len(pairs)) + b"".join(key + value for key, value in pairs)


def with_raw(fields: Mapping[str, Any], *extra: tuple[bytes, bytes]) -> bytes:
    """The map `fields` with further packed pairs at its end."""
    return map_of([*((pack(key), pack(value)) for key, value in fields.items()), *extra])


def without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
