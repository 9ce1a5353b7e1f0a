"""``.npy`` and ``.npz`` files, read a stretch at a time; never pickled objects."""

from __future__ import annotations

import contextlib
import io
import lzma
import mmap
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.files.positioned import closed_on_error, open_positioned, read_values, size_of
from quiver_client.files.source import Entry, Source, no_file, stored_name

# What the modules that unpack raise: encrypted, unknown, damaged, cut short, impossible places.
_UNREADABLE = (
    zipfile.BadZipFile,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
)
_NO_BFLOAT16 = "; .npy files cannot say bfloat16: use safetensors, or raw values with --dtype"


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What an array's header says, and how many bytes it has."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    length: int


class NpySource(Source):
    """The array of a ``.npy`` file, called as the file is."""

    format = "npy"

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO | None = None) -> None:
        self.path = os.fspath(path)
        self.metadata = {}
        self._file = open_positioned(path) if file is None else file
        self._map: mmap.mmap | None = None
        with closed_on_error(self._file):
            size = size_of(self._file)
            self._file.seek(0)
            self._header = read_header(self._file, self.path)
            name = Path(self.path).stem or "array"
            entry = Entry(name, _name(self._header, self.path), self._header.shape)
            expected = self._header.length + entry.nbytes
            if expected != size:
                raise no_file(self.path, f"must have {expected} bytes by its header; it has {size}")
        self.entries = (entry,)

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        if self._header.is_fortran:
            return self._gathered(start, stop)
        dtype = self._header.dtype
        offset = self._header.length + start * dtype.itemsize
        values = read_values(self._file, self.path, offset, dtype, stop - start)
        return values.astype(self.entries[number].numpy_dtype, copy=False)

    def close(self) -> None:
        """As `Source.close`."""
        self._map = None
        self._file.close()

    def _gathered(self, start: int, stop: int) -> NDArray[Any]:
        """Values of an array in Fortran order; those of a stretch lie anywhere in the file."""
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        header = self._header
        flat = np.frombuffer(self._map, header.dtype, offset=header.length)
        array = flat.reshape(header.shape, order="F")
        values: NDArray[Any] = array.flat[start:stop]
        return values.astype(self.entries[0].numpy_dtype, copy=False)


class NpzSource(Source):
    """The arrays of a ``.npz`` file; what it holds besides is skipped.

    Compressed ones are unpacked as they are read, one after the other.
    """

    format = "npz"

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO | None = None) -> None:
        self.path = os.fspath(path)
        self.metadata = {}
        with _readable(self.path):
            self._zip = zipfile.ZipFile(path if file is None else file)
        # Which array is being unpacked, by what, and how far.
        self._member: tuple[int, Any, int] | None = None
        self._whole: tuple[int, NDArray[Any]] | None = None
        self._headers: list[NpyHeader] = []
        members = self._zip.infolist()
        chosen = [info for info in members if info.filename.endswith(".npy")]
        self._names = [info.filename for info in chosen]
        self.skipped = tuple(info.filename for info in members if info not in chosen)
        with closed_on_error(self._zip), _readable(self.path):
            self.entries = tuple(self._entry(info) for info in chosen)

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        header, entry = self._headers[number], self.entries[number]
        with _readable(f"{self.path}:{self._names[number]}"):
            if header.is_fortran:
                values: NDArray[Any] = self._unpacked(number).flat[start:stop]
            else:
                size = header.dtype.itemsize
                values = self._bytes(number, start * size, stop * size).view(header.dtype)
        return values.astype(entry.numpy_dtype, copy=False)

    def close(self) -> None:
        """As `Source.close`."""
        self._leave()
        self._zip.close()

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        where = f"{self.path}:{info.filename}"
        with self._zip.open(info) as member:
            header = read_header(member, where)
        entry = Entry(info.filename.removesuffix(".npy"), _name(header, where), header.shape)
        expected = header.length + entry.nbytes
        if expected != info.file_size:
            raise no_file(where, f"must have {expected} bytes; it has {info.file_size}")
        self._headers.append(header)
        return entry

    def _unpacked(self, number: int) -> NDArray[Any]:
        """An array in Fortran order: no stretch of it can be found without all of it."""
        if self._whole is None or self._whole[0] != number:
            self._whole = None
            header = self._headers[number]
            raw = self._bytes(number, 0, self.entries[number].nbytes).view(header.dtype)
            self._whole = (number, raw.reshape(header.shape, order="F"))
        return self._whole[1]

    def _bytes(self, number: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes of an array's values, from where the last ones ended if that is possible."""
        start += self._headers[number].length
        stop += self._headers[number].length
        if self._member is None or self._member[0] != number or self._member[2] > start:
            self._leave()
            self._member = (number, self._zip.open(self._names[number]), 0)
        member: Any = self._member[1]
        member.seek(start - self._member[2], io.SEEK_CUR)
        values = np.empty(stop - start, np.uint8)
        left = values.data
        while left:
            got = member.readinto(left)
            if not got:
                raise EOFError("it ends within its values")
            left = left[got:]
        if stop == self._headers[number].length + self.entries[number].nbytes:
            # Its checksum is compared where it ends.
            member.read(1)
        self._member = (number, member, stop)
        return values

    def _leave(self) -> None:
        if self._member is not None:
            self._member[1].close()
            self._member = None


def read_header(file: Any, path: str) -> NpyHeader:
    """The header of an array, of which `file` stands at the beginning; `Invalid` for any other."""
    counted = _Counted(file)
    try:
        version = npy_format.read_magic(counted)
        if version == (1, 0):
            shape, is_fortran, dtype = npy_format.read_array_header_1_0(counted)
        elif version == (2, 0):
            shape, is_fortran, dtype = npy_format.read_array_header_2_0(counted)
        else:
            raise no_file(path, f"has version {version} of .npy, which is for arrays of records")
    except (ValueError, SyntaxError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise no_file(path, f"is no .npy file of numbers: {text[:200]}") from None
    if min(shape, default=0) < 0:
        raise no_file(path, f"is no .npy file of numbers: its shape is {shape}")
    # Of one dimension both orders are the same.
    return NpyHeader(dtype, shape, is_fortran and len(shape) > 1, counted.read_bytes)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Say of what `zipfile` cannot read that the file is damaged, encrypted or of another kind."""
    try:
        yield
    except Invalid:
        raise
    except _UNREADABLE as error:
        raise no_file(path, f"is damaged, or no .npz file that can be read: {error}") from None


class _Counted:
    """Counts what is read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.read_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._file.read(size)
        self.read_bytes += len(data)
        return data


def _name(header: NpyHeader, where: str) -> str:
    hint = _NO_BFLOAT16 if header.dtype.str == "|V2" else ""
    return stored_name(header.dtype, where, hint)
