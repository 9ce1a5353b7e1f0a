"""Safetensors files, read by their specification: one JSON header, then bytes without gaps."""

from __future__ import annotations

import json
import math
import os
from typing import Any, BinaryIO, Final

from numpy.typing import NDArray

from quiver_client.files.positioned import closed_on_error, open_positioned, read_values, size_of
from quiver_client.files.source import Entry, Source, no_file
from quiver_kernels.qvr.header import STORED_DTYPES

DTYPES: Final = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}
"""Name of a type there, and ours."""
MAX_HEADER: Final = 100_000_000
"""The format's own limit, in bytes."""
_METADATA: Final = "__metadata__"


class SafetensorsSource(Source):
    """The tensors of a safetensors file."""

    format = "safetensors"

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO | None = None) -> None:
        self.path = os.fspath(path)
        self._file = open_positioned(path) if file is None else file
        with closed_on_error(self._file):
            header, begin, size = self._header()
            self.metadata = _metadata(self.path, header.pop(_METADATA, {}))
            found = [_entry(self.path, name, told) for name, told in header.items()]
            found.sort(key=lambda one: (one[1], one[2]))
            end = 0
            for entry, first, stop in found:
                if first != end:
                    raise no_file(
                        self.path,
                        f"has a gap or an overlap before tensor {entry.name!r:.100}: it begins at "
                        f"byte {first} of the data, not at {end}",
                    )
                end = stop
            if begin + end != size:
                raise no_file(
                    self.path, f"must have {begin + end} bytes by its header; it has {size}"
                )
        self.entries = tuple(entry for entry, _, _ in found)
        self._offsets = [begin + first for _, first, _ in found]

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        dtype = self.entries[number].numpy_dtype
        offset = self._offsets[number] + start * dtype.itemsize
        return read_values(self._file, self.path, offset, dtype, stop - start)

    def close(self) -> None:
        """As `Source.close`."""
        self._file.close()

    def _header(self) -> tuple[dict[str, Any], int, int]:
        """The header's map, where the data begin, and the file's length."""
        size = size_of(self._file)
        self._file.seek(0)
        length = int.from_bytes(self._file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise no_file(
                self.path, f"is no safetensors file: its header cannot have {length} bytes"
            )
        text = self._file.read(length)
        try:
            header = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise no_file(self.path, f"is no safetensors file: its header: {error}") from None
        if not isinstance(header, dict):
            raise no_file(self.path, "is no safetensors file: its header is no map")
        return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _metadata(path: str, told: Any) -> dict[str, str]:
    if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
        raise no_file(path, f"is no safetensors file: its {_METADATA} must be a map of text")
    return told


def _entry(path: str, name: str, told: Any) -> tuple[Entry, int, int]:
    """A tensor, and where it begins and ends in the data."""
    where = f"tensor {name!r:.100}"
    try:
        dtype, shape, (begin, end) = told["dtype"], told["shape"], told["data_offsets"]
        numbers = [*shape, begin, end]
        known = len(told) == 3 and all(type(number) is int and number >= 0 for number in numbers)
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise no_file(path, f"is no safetensors file: the header of {where} is not one")
    if dtype not in DTYPES:
        raise no_file(path, f"has {where} of {dtype!r:.40}; known are {', '.join(DTYPES)}")
    kind = DTYPES[dtype]
    size = math.prod(shape) * STORED_DTYPES[kind].itemsize
    if end - begin != size:
        raise no_file(path, f"must have {size} bytes for {where}; it has {end - begin}")
    return Entry(name, kind, tuple(shape)), begin, end
