"""Reading a file: by name, by range, by chunk, with checksums."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import dispatch
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.qvr.damage import DamagedFile
from quiver_kernels.qvr.frames import (
    FOOTER_BYTES,
    FRAME_BYTES,
    QUANTIZED,
    BadFrame,
    Footer,
)
from quiver_kernels.qvr.header import Header, Tensor
from quiver_kernels.qvr.mapped import MappedFile
from quiver_kernels.qvr.places import Place, Places
from quiver_kernels.qvr.scanning import check_payload, read_frame, scan
from quiver_kernels.qvr.start import Start, read_start
from quiver_kernels.sharing import processors


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Some values of a tensor: its number, the first of them, and what is stored of them.

    `content` is a quantized vector of shape (count,), or the values themselves; both share the
    file's memory.
    """

    tensor: int
    first: int
    count: int
    nbytes: int
    content: QuantizedVector | NDArray[Any]


def open_file(path: str | os.PathLike[str]) -> Reader:
    """Open a ``.qvr`` file to read, for ``with``.

    Header, index and footer are read and checked; a chunk is when it is asked for.

    Raises
    ------
    DamagedFile
        It is cut short or changed, or no such file; with the byte.
    OSError
        It cannot be read.
    """
    return Reader(path)


class Reader:
    """An open file; made by `open_file`. Threads may share it.

    Attributes
    ----------
    path
        As it was given.
    header
        What the file holds.

    Notes
    -----
    The file is mapped, not read: what is asked for is all that is touched. As with any mapped
    file, one that is cut short while it is read ends the process; files that are replaced, as
    `Writer` does it, are safe.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = MappedFile(path)
        try:
            self.header, self._id, self._ends, self._begins = self._open()
        except BadFrame as bad:
            self._file.close()
            raise DamagedFile(self.path, bad.offset, bad.detail) from None
        except BaseException:
            self._file.close()
            raise
        self._numbers = {tensor.name: i for i, tensor in enumerate(self.header.tensors)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the file's order."""
        return tuple(self._numbers)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return {tensor.name: tensor for tensor in self.header.tensors}

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._file.data)

    def tensor(self, name: str) -> Tensor:
        """What the header says of a tensor; `InvalidInput` if there is none of this name."""
        return self.header.tensors[self._number(name)]

    def stored_bytes(self, name: str) -> int:
        """Bytes of the file that a tensor takes, frames counted. O(1)."""
        numbers = self._places.numbers(self._number(name), 0, self.tensor(name).size)
        if not numbers:
            return 0
        return int(self._ends[numbers[-1]] - self._begins[numbers[0]])

    def read(
        self,
        name: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        threads: int | None = 1,
    ) -> NDArray[Any]:
        """Decode a tensor, or some of its values.

        Parameters
        ----------
        name
            Of the tensor.
        start, stop
            Which of its values, in C order, 0 <= start <= stop <= size; None: from the first, to
            the last. Only chunks that hold some are read.
        threads
            Chunks decoded at a time; None: one for each processor. They change nothing but time.

        Returns
        -------
        ndarray
            Of the tensor's shape if neither is given, else flat; little-endian, of the tensor's
            type, in new memory.

        Raises
        ------
        InvalidInput
            No such tensor, or no such range.
        DamagedFile
            A chunk is not what was written.
        """
        tensor = self.tensor(name)
        whole = start is None and stop is None
        start, stop = _range(tensor, start, stop)
        values = np.empty(stop - start, tensor.numpy_dtype)
        number = self._number(name)
        chosen = [self._places[i] for i in self._places.numbers(number, start, stop)]

        def fill(place: Place) -> None:
            low, high = max(place.first, start), min(place.stop, stop)
            self._decode(place, low, values[low - start : high - start])

        count = min(len(chosen), processors() if threads is None else max(threads, 1))
        if count < 2:
            for place in chosen:
                fill(place)
        else:
            with ThreadPoolExecutor(count) as executor:
                # The first error, in the file's order.
                for _ in executor.map(fill, chosen):
                    pass
        return values.reshape(tensor.shape) if whole else values

    def chunks(self, name: str) -> Iterator[Chunk]:
        """The chunks of a tensor as they are stored, one after the other; errors as of `read`."""
        number = self._number(name)
        for i in self._places.numbers(number, 0, self.tensor(name).size):
            yield self._chunk(self._places[i])

    def verify(self) -> None:
        """Read the whole file; `DamagedFile` for the first byte that is not as written."""
        for name in self.names:
            for number in self._places.numbers(self._number(name), 0, self.tensor(name).size):
                self._chunk(self._places[number])
                self._release(number)

    def close(self) -> None:
        """Let the file go; chunks that are still there keep it in memory."""
        self._file.close()

    def __enter__(self) -> Self:
        """The reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    # -- inside ----------------------------------------------------------------------------

    def _open(self) -> tuple[Header, int, NDArray[np.int64], NDArray[np.int64]]:
        """Header, its CRC-32, and where each chunk ends and begins."""
        data = self._file.data
        start = read_start(data)
        self._places = Places(start.header.tensors)
        count = len(self._places)
        index = len(data) - FOOTER_BYTES - 8 * count
        try:
            footer = _footer(data, start, count, index)
        except BadFrame as bad:
            # A file that was cut short: where, and within what, the chunks themselves say.
            found = scan(
                data, start.begin, start.file, start.header.tensors, self._places, payloads=False
            )
            if found.fault is not None:
                raise BadFrame(found.at, found.fault) from None
            whole = found.end + 8 * count + FOOTER_BYTES
            if whole > len(data):
                detail = "the file ends within its index and footer"
                raise BadFrame(len(data), detail) from None
            if whole < len(data):
                raise BadFrame(whole, "there is more than index and footer") from None
            raise bad from None
        table = data[index : index + 8 * count]
        if zlib.crc32(table) != footer.index_crc:
            raise BadFrame(index, "the CRC-32 of the index does not fit")
        return start.header, start.file, *_extents(table, count, start.begin, index)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            raise InvalidInput(
                f"{self.path} has no tensor {name!r:.100}; it has {_some(self.names)}",
                code="missing_key",
                field="name",
            )
        return self._numbers[name]

    def _chunk(self, place: Place) -> Chunk:
        data, tensor = self._file.data, self.header.tensors[place.tensor]
        at, end = int(self._begins[place.number]), int(self._ends[place.number])
        try:
            frame = read_frame(data, at, end, self._id, tensor, place)
            payload = check_payload(data, at, frame, end)
        except BadFrame as bad:
            raise DamagedFile(self.path, bad.offset, bad.detail) from None
        content: QuantizedVector | NDArray[Any]
        if frame.kind == QUANTIZED:
            content = self._vector(payload, at + FRAME_BYTES, tensor, place)
        else:
            content = np.frombuffer(payload, np.uint8).view(tensor.numpy_dtype)
        return Chunk(place.tensor, place.first, place.count, end - at, content)

    def _vector(
        self, payload: memoryview, at: int, tensor: Tensor, place: Place
    ) -> QuantizedVector:
        try:
            q = QuantizedVector.from_bytes(payload)
        except QuiverError as error:
            detail = f"a chunk holds no quantized vector: {error.detail}"
            raise DamagedFile(self.path, at, detail) from None
        if q.shape != (place.count,) or q.dtype != tensor.dtype:
            expected = f"{place.count} values of {tensor.dtype}"
            detail = f"a chunk must hold {expected}; it holds {list(q.shape)} of {q.dtype}"
            raise DamagedFile(self.path, at, detail)
        return q

    def _decode(self, place: Place, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with values of a chunk, the first of them value `start` of the tensor."""
        content = self._chunk(place).content
        chosen = slice(start - place.first, start - place.first + out.size)
        if isinstance(content, QuantizedVector):
            decoder = dispatch.pick_decoder()
            try:
                if out.size == place.count:
                    decoder.dequantize(content, out)
                else:
                    out[:] = decoder.dequantize(content)[chosen]
            except QuiverError as error:
                at = int(self._begins[place.number]) + FRAME_BYTES
                detail = f"a chunk cannot be decoded: {error.detail}"
                raise DamagedFile(self.path, at, detail) from None
        else:
            out[:] = content[chosen]
        self._release(place.number)

    def _release(self, number: int) -> None:
        self._file.release(int(self._begins[number]), int(self._ends[number]))


def _range(tensor: Tensor, start: int | None, stop: int | None) -> tuple[int, int]:
    begin, end = 0 if start is None else start, tensor.size if stop is None else stop
    if not 0 <= begin <= end <= tensor.size:
        raise InvalidInput(
            f"start and stop must be 0 <= start <= stop <= {tensor.size} for tensor "
            f"{tensor.name!r:.100}; got {start} and {stop}",
            code="invalid_option",
            field="start",
        )
    return begin, end


def _footer(data: memoryview, start: Start, count: int, index: int) -> Footer:
    """The footer, checked against the header and the file's length."""
    if index < start.begin + count * FRAME_BYTES:
        raise BadFrame(len(data), f"the file ends before all of its {count} chunks")
    at = len(data) - FOOTER_BYTES
    try:
        footer = Footer.from_bytes(data[at:])
    except BadFrame as bad:
        raise BadFrame(at + bad.offset, bad.detail) from None
    if footer.file != start.file:
        raise BadFrame(at + 24, "the footer belongs to another file")
    if (footer.chunks, footer.index) != (count, index):
        raise BadFrame(
            at + 8,
            f"the footer must tell of {count} chunks and an index at byte {index}; it tells of "
            f"{footer.chunks} and {footer.index}",
        )
    return footer


def _extents(
    table: memoryview, count: int, begin: int, index: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where chunks end and begin, of their lengths; they fill the file up to its index."""
    lengths = np.frombuffer(table, np.uint8).view("<u8").astype(np.uint64)
    most = index - begin
    if count and int(lengths.max()) > most:
        number = int(lengths.argmax())
        raise BadFrame(index + 8 * number, f"chunk {number} is longer than the file")
    # No sum can overflow: each is at most the file's length, and there are 2^40 of them at most.
    sizes = lengths.astype(np.int64)
    sizes += FRAME_BYTES + -sizes % 8
    ends = begin + np.cumsum(sizes)
    end = int(ends[-1]) if count else begin
    if end != index:
        raise BadFrame(index, f"the chunks of the index end at byte {end}, not at byte {index}")
    return ends, ends - sizes


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name)[:60] for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"
