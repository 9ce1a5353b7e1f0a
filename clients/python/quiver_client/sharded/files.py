"""Shards in files: ``.npy`` and ``.safetensors``, mapped into memory and read where they lie."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_kernels.dtypes import WIRE_DTYPES

# The types of safetensors that can be quantized.
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# Of a header: the format's own limit.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class NpyShard:
    """The array of a ``.npy`` file; called, it is mapped."""

    path: str

    def __call__(self) -> NDArray[Any]:
        """The values, flat, in C order."""
        try:
            array: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise Invalid(f"{self.path} is no .npy file of numbers: {error}") from None
        if not array.flags.c_contiguous:
            raise Invalid(f"{self.path} must hold its array in C order; it is in Fortran order")
        return array.reshape(-1)


@dataclass(frozen=True, slots=True)
class SafetensorsShard:
    """One tensor of a safetensors file; called, it is mapped."""

    path: str
    name: str

    def __call__(self) -> NDArray[Any]:
        """The values, flat."""
        begin, header = _header(Path(self.path))
        if self.name not in header:
            raise Invalid(f"{self.path} has no tensor {self.name!r}")
        dtype, offset, size = _entry(self.path, self.name, header[self.name])
        if begin + offset + size * dtype.itemsize > Path(self.path).stat().st_size:
            raise Invalid(f"{self.path} ends within tensor {self.name!r}")
        return np.memmap(self.path, dtype, "r", begin + offset, (size,))


FileShard = NpyShard | SafetensorsShard
"""What `shards_in` finds."""


def shards_in(directory: str | os.PathLike[str]) -> list[FileShard]:
    """The shards of a vector that lies in the files of `directory`.

    Files are taken in the order of their names, and of a ``.safetensors`` file all tensors in the
    order of theirs; other files are left out.

    Raises
    ------
    Invalid
        There is no such file, or one is not what its name says.
    """
    found: list[FileShard] = []
    for path in sorted(Path(directory).iterdir()):
        where = str(path.absolute())
        if path.suffix == ".npy":
            found.append(NpyShard(where))
        elif path.suffix == ".safetensors":
            _, header = _header(path)
            names = sorted(name for name in header if name != "__metadata__")
            found += [SafetensorsShard(where, name) for name in names]
    if not found:
        raise Invalid(f"{directory} must hold .npy or .safetensors files; it holds none")
    return found


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and the header's map."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise Invalid(f"{path} is no safetensors file: its header cannot have {size} bytes")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise Invalid(f"{path} is no safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise Invalid(f"{path} is no safetensors file: its header is no map")
    return 8 + size, header


def _entry(path: str, name: str, entry: Any) -> tuple[np.dtype[Any], int, int]:
    """Type, begin and number of the values of a tensor."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        known = all(type(number) is int and number >= 0 for number in numbers)
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise Invalid(f"{path}: the header of tensor {name!r} is not one of safetensors")
    if dtype not in _DTYPES:
        raise Invalid(
            f"{path}: tensor {name!r} must be one of {', '.join(_DTYPES)}; got {dtype!r:.40}"
        )
    kind, size = WIRE_DTYPES[_DTYPES[dtype]], math.prod(shape)
    if end - begin != size * kind.itemsize:
        raise Invalid(f"{path}: tensor {name!r} must have {size * kind.itemsize} bytes of data")
    return kind, begin, size
