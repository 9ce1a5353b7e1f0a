"""Writing a file: chunk by chunk, so that a run that was interrupted can go on."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Segment
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.qvr.frames import (
    FOOTER_BYTES,
    FRAME_BYTES,
    MAGIC,
    QUANTIZED,
    RAW,
    BadFrame,
    Footer,
    Frame,
    padding,
)
from quiver_kernels.qvr.header import Header
from quiver_kernels.qvr.mapped import MappedFile
from quiver_kernels.qvr.places import Place, Places
from quiver_kernels.qvr.scanning import scan
from quiver_kernels.qvr.start import read_start, start_bytes
from quiver_kernels.tensors import byte_view

if sys.platform != "win32":
    import fcntl

StrPath = str | os.PathLike[str]
_SEND_BYTES = 16 << 20


class StreamWriter:
    """The format, written to a stream that need not seek.

    Parameters
    ----------
    stream
        Open for bytes; it is neither flushed nor closed.
    header
        What will be written: the chunks of its tensors, in order.
    done
        Lengths of payloads that the stream holds already, behind the header; None: it is empty.
    """

    def __init__(self, stream: BinaryIO, header: Header, done: list[int] | None = None) -> None:
        self.header = header
        self.places = Places(header.tensors)
        self._stream = stream
        start, self._id = start_bytes(header)
        self._lengths = [] if done is None else done
        self._at = len(start) + sum(map(_frame_size, self._lengths))
        if done is None:
            stream.write(start)

    @property
    def written(self) -> int:
        """Chunks that are there."""
        return len(self._lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that are there."""
        return self._at

    def remaining(self) -> Iterator[Place]:
        """The chunks that are still to be written, in order."""
        return (self.places[number] for number in range(self.written, len(self.places)))

    def write(self, content: QuantizedVector | NDArray[Any]) -> int:
        """Append the next chunk.

        Parameters
        ----------
        content
            A quantized vector of shape (count,) and the tensor's type; or the values themselves,
            shape (count,), for tensors that are stored raw or values that are not finite. Its
            timings are not kept: equal values shall make equal files.

        Returns
        -------
        int
            Bytes that were written.

        Raises
        ------
        InvalidInput
            It is not what the header says, or all chunks are there.
        """
        if self.written == len(self.places):
            raise InvalidInput(
                f"chunks must be at most {len(self.places)}; all of them are written",
                code="size_mismatch",
                field="content",
            )
        place = self.places[self.written]
        tensor = self.header.tensors[place.tensor]
        dtype = content.dtype if isinstance(content, QuantizedVector) else content.dtype.name
        if content.shape != (place.count,) or dtype != tensor.dtype:
            raise InvalidInput(
                f"content must be {place.count} values of {tensor.dtype}, from value {place.first} "
                f"of tensor {tensor.name!r:.100}; got {list(content.shape)} of {dtype}",
                code="size_mismatch",
                field="content",
            )
        segments: list[Segment]
        if isinstance(content, QuantizedVector):
            if not tensor.quantized:
                raise InvalidInput(
                    f"content must be raw for tensor {tensor.name!r:.100}; got a quantized vector",
                    code="invalid_option",
                    field="content",
                )
            kind, segments = QUANTIZED, replace(content, timings_ms={}).to_segments()
        else:
            flat = np.ascontiguousarray(content, dtype=tensor.numpy_dtype)
            kind, segments = RAW, [byte_view(flat)]
        length = sum(map(len, segments))
        crc = 0
        for segment in segments:
            crc = zlib.crc32(segment, crc)
        frame = Frame(place.tensor, place.first, place.count, length, kind, crc, self._id)
        for segment in (frame.to_bytes(), *segments, bytes(padding(length))):
            self._stream.write(segment)
        before = self._at
        self._at += _frame_size(length)
        self._lengths.append(length)
        return self._at - before

    def finish(self) -> int:
        """Append index and footer; the bytes of the whole file.

        Raises
        ------
        InvalidInput
            Chunks are missing.
        """
        missing = len(self.places) - self.written
        if missing:
            raise InvalidInput(
                f"chunks must be {len(self.places)}; {missing} of them are missing",
                code="size_mismatch",
                field="content",
            )
        index = struct.pack(f"<{self.written}Q", *self._lengths)
        footer = Footer(self._at, self.written, self._id, zlib.crc32(index))
        self._stream.write(index + footer.to_bytes())
        return self._at + len(index) + FOOTER_BYTES


class Writer:
    """A file in the making, for ``with``: a part beside its place, renamed when it is complete.

    Parameters
    ----------
    path
        Of the file. It is not touched before the new one is complete.
    header
        What will be written.
    part
        Of the part; None: `path` with ``.part`` behind.
    resume
        Whether to go on with a part that is there, whose chunks are checked and kept as far as
        they are whole; False: begin anew.

    Attributes
    ----------
    part
        Of the part, as a `Path`.
    resumed
        Chunks that the part held already.

    Raises
    ------
    InvalidInput
        The part that is there has another header or is no part, or another process writes it.
    OSError
        It cannot be written.

    Notes
    -----
    ::

        with Writer("model.qvr", header) as writer:
            for place in writer.remaining():
                writer.write(...)

    If the ``with`` block ends by an exception the part stays, and the same again goes on after
    its last chunk. A chunk is made of the header's seed and its position alone (`chunk_seed`), so
    the file is the same in the end.
    """

    def __init__(
        self, path: StrPath, header: Header, *, part: StrPath | None = None, resume: bool = True
    ) -> None:
        self._path = Path(path)
        self.part = Path(f"{os.fspath(path)}.part") if part is None else Path(part)
        # Not truncated before it is known to be nobody else's.
        handle = os.open(self.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._file = os.fdopen(handle, "r+b")
        try:
            _lock(self._file, self.part)
            _require_part(self._file, self.part)
            done, end = _resumable(self.part, header) if resume else (None, 0)
            self._file.truncate(end)
            self._file.seek(end)
            self._writer = StreamWriter(self._file, header, done)
        except BaseException:
            self._file.close()
            raise
        self.resumed = self._writer.written
        self._sent = self._writer.nbytes

    @property
    def header(self) -> Header:
        """What will be written."""
        return self._writer.header

    @property
    def places(self) -> Places:
        """All chunks of the file."""
        return self._writer.places

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return self._writer.nbytes

    def remaining(self) -> Iterator[Place]:
        """The chunks that are still to be written, in order."""
        return self._writer.remaining()

    def write(self, content: QuantizedVector | NDArray[Any]) -> int:
        """As `StreamWriter.write`."""
        size = self._writer.write(content)
        if self.nbytes - self._sent >= _SEND_BYTES:
            self._send()
        return size

    def _send(self) -> None:
        """Have the disk begin with what was written, so that the end waits for little."""
        self._file.flush()
        if sys.platform == "linux":
            count = self.nbytes - self._sent
            # Advice only: a file system may not take it.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file.fileno(), self._sent, count, os.POSIX_FADV_DONTNEED)
        self._sent = self.nbytes

    def finish(self) -> int:
        """Complete the file and put it into its place; its bytes. Done once, by ``with`` too."""
        if self._file.closed:
            return self._path.stat().st_size
        size = self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.part.replace(self._path)
        self._file.close()
        _sync_folder(self._path.parent)
        return size

    def close(self) -> None:
        """Leave the part as it is, safe on the disk, to go on another time."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish, or leave the part if the block failed."""
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


def part_header(part: StrPath) -> Header | None:
    """The header of a part that a writer left; None if there is none that can be read."""
    try:
        file = MappedFile(part)
    except OSError:
        return None
    try:
        return read_start(file.data).header
    except BadFrame:
        return None
    finally:
        file.close()


def _resumable(part: Path, header: Header) -> tuple[list[int] | None, int]:
    """Lengths of the chunks of a part that are whole, and where they end; None: there is none."""
    file = MappedFile(part)
    try:
        try:
            start = read_start(file.data)
        except BadFrame:
            # It was interrupted before its header was there.
            return None, 0
        if start_bytes(start.header)[1] != start_bytes(header)[1]:
            raise InvalidInput(
                f"{part} was begun with other tensors, options or seed; finish it with those, or "
                "begin anew without it",
                code="invalid_option",
                field="part",
            )
        places = Places(start.header.tensors)
        found = scan(
            file.data,
            start.begin,
            start.file,
            start.header.tensors,
            places,
            payloads=True,
            release=file.release,
        )
        return found.lengths, found.end
    finally:
        file.close()


def _require_part(file: BinaryIO, part: Path) -> None:
    """Refuse to write over a file that no writer has begun."""
    head = file.read(len(MAGIC))
    if not MAGIC.startswith(head):
        raise InvalidInput(
            f"part must be a new file, or one that a writer has begun; {part} is another",
            code="invalid_option",
            field="part",
        )


def _lock(file: BinaryIO, part: Path) -> None:
    # Windows has no such locks: there, two writers of one part are not found out.
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidInput(
            f"{part} is being written by another process", code="invalid_option", field="part"
        ) from None


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk; folders cannot be opened everywhere."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _frame_size(length: int) -> int:
    return FRAME_BYTES + length + padding(length)
