"""The header: which tensors a file holds and how they are stored, as one MessagePack map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import msgspec
import numpy as np

from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer
from quiver_kernels.options import MAX_SEED
from quiver_kernels.quantized import decode_validated
from quiver_kernels.tensors import check_shape

STORED_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    **LEAF_DTYPES,
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}
"""Types of tensors that a file may hold; those of `WIRE_DTYPES` may be quantized."""

MAX_HEADER_BYTES: Final = 1 << 26
MAX_TENSORS: Final = 1 << 17
MAX_NAME_BYTES: Final = 1024
MAX_CHUNK: Final = 1 << 28
"""Values of a chunk."""
DEFAULT_CHUNK: Final = 1 << 22
MAX_SETTINGS: Final = 32
MAX_METADATA: Final = 1 << 14

Setting = bool | int | float | str | None

# A tensor is a map of six keys, with a shape of up to eight and the settings.
_MAX_ITEMS: Final = MAX_TENSORS * (16 + 8 + 2 * MAX_SETTINGS) + 2 * MAX_METADATA + 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file.

    Attributes
    ----------
    name
        Unique in the file; 1 to 1024 bytes of UTF-8.
    dtype, shape
        A name of `STORED_DTYPES`; the shape may be () or hold zeros.
    quantized
        Whether its chunks are quantized vectors. Single chunks may be raw all the same, where
        values are not finite; of other tensors all are.
    chunk
        Values of each chunk but the last, 1 to 2^28.
    settings
        What was asked for, such as bits and method; it says nothing that chunks do not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    quantized: bool = False
    chunk: int = DEFAULT_CHUNK
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check; `InvalidInput` names the attribute, its limits and what was got."""
        _check_name(self.name)
        types = WIRE_DTYPES if self.quantized else STORED_DTYPES
        if self.dtype not in types:
            raise InvalidInput(
                f"dtype of tensor {self.name!r:.100} must be one of {', '.join(types)}"
                f"{' to be quantized' if self.quantized else ''}; got {self.dtype!r:.40}",
                code="unsupported_dtype",
                field="dtype",
            )
        check_shape(list(self.shape), f"shape of tensor {self.name!r:.100}")
        _require(1 <= self.chunk <= MAX_CHUNK, "chunk", f"must be 1..{MAX_CHUNK}", self.chunk)
        count = len(self.settings)
        _require(count <= MAX_SETTINGS, "settings", f"must be at most {MAX_SETTINGS}", count)

    @property
    def size(self) -> int:
        """Number of values; 1 for shape ()."""
        return math.prod(self.shape)

    @property
    def chunks(self) -> int:
        """Number of chunks; none for a tensor without values."""
        return -(-self.size // self.chunk)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The little-endian NumPy type."""
        return STORED_DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded values."""
        return self.size * self.numpy_dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its chunks.

    Attributes
    ----------
    tensors
        In the order of their chunks.
    seed
        Unsigned 64-bit; `chunk_seed` makes those of the chunks from it.
    metadata
        Text for whoever reads the file.
    """

    tensors: tuple[Tensor, ...]
    seed: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check; `InvalidInput` names the attribute, its limits and what was got."""
        count = len(self.tensors)
        _require(count <= MAX_TENSORS, "tensors", f"must be at most {MAX_TENSORS}", count)
        _require(
            0 <= self.seed <= MAX_SEED, "seed", "must be an unsigned 64-bit integer", self.seed
        )
        entries = len(self.metadata)
        _require(entries <= MAX_METADATA, "metadata", f"must be at most {MAX_METADATA}", entries)
        seen: set[str] = set()
        for tensor in self.tensors:
            if tensor.name in seen:
                raise InvalidInput(
                    f"name must be unique; {tensor.name!r:.100} appears twice",
                    code="duplicate_key",
                    field="name",
                )
            seen.add(tensor.name)

    def to_bytes(self) -> bytes:
        """The map; the same for equal headers."""
        tensors = [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "stored": "quantized" if tensor.quantized else "raw",
                "chunk": tensor.chunk,
                "settings": dict(tensor.settings),
            }
            for tensor in self.tensors
        ]
        told = {"seed": self.seed, "metadata": dict(self.metadata), "tensors": tensors}
        data = msgspec.msgpack.encode(told)
        _require(
            len(data) <= MAX_HEADER_BYTES,
            "header",
            f"must have at most {MAX_HEADER_BYTES} bytes",
            len(data),
        )
        return data

    @classmethod
    def from_bytes(cls, data: Buffer) -> Header:
        """Read the map.

        Raises
        ------
        MalformedMessage, InvalidInput
            It is not one, or says what cannot be.
        """
        message = decode_validated(data, _DECODER, _MAX_ITEMS)
        tensors = []
        for one in message.tensors:
            _require(one.stored in _STORED, "stored", f"must be one of {_STORED}", one.stored)
            quantized = one.stored == "quantized"
            tensors.append(
                Tensor(one.name, one.dtype, tuple(one.shape), quantized, one.chunk, one.settings)
            )
        return cls(tuple(tensors), message.seed, message.metadata)


class _TensorMessage(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: list[int]
    stored: str
    chunk: int
    settings: dict[str, bool | int | float | str | None]


class _HeaderMessage(msgspec.Struct, forbid_unknown_fields=True):
    seed: int
    metadata: dict[str, str]
    tensors: list[_TensorMessage]


_DECODER = msgspec.msgpack.Decoder(_HeaderMessage)
_STORED: Final = ("raw", "quantized")


def _check_name(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    _require(
        1 <= size <= MAX_NAME_BYTES,
        "name",
        f"must have 1..{MAX_NAME_BYTES} bytes of UTF-8",
        f"{name!r:.100}",
    )


def _require(holds: bool, name: str, limit: str, got: object) -> None:
    if not holds:
        raise InvalidInput(
            f"{name} {limit}; got {str(got)[:120]}", code="invalid_option", field=name
        )
