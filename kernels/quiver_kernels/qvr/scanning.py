"""Chunks one after the other from the beginning, as long as they are whole.

For files without an index: what an interrupted writer left, and what was cut off.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quiver_kernels.qvr.frames import FRAME_BYTES, QUANTIZED, BadFrame, Frame, padding
from quiver_kernels.qvr.header import Tensor
from quiver_kernels.qvr.places import Place, Places

_RELEASED: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Found:
    """Chunks that are whole.

    Attributes
    ----------
    lengths
        Of their payloads, in bytes.
    end
        Where the next chunk would begin.
    fault, at
        Why the next one is none, and the byte; None if there are all of them.
    """

    lengths: list[int]
    end: int
    fault: str | None
    at: int


def scan(
    data: memoryview,
    begin: int,
    file: int,
    tensors: tuple[Tensor, ...],
    places: Places,
    *,
    payloads: bool,
    release: Callable[[int, int], None] = lambda _begin, _end: None,
) -> Found:
    """Walk over the chunks of a file.

    Parameters
    ----------
    data, begin
        The file, and where its first chunk begins.
    file
        CRC-32 of its header.
    tensors, places
        What the header says.
    payloads
        Whether the payloads' CRC-32s are computed too.
    release
        Told the bytes that are not looked at again, some megabytes at a time.
    """
    lengths: list[int] = []
    end = released = begin
    for number in range(len(places)):
        place = places[number]
        try:
            frame = read_frame(data, end, len(data), file, tensors[place.tensor], place)
            if payloads:
                check_payload(data, end, frame)
        except BadFrame as bad:
            return Found(lengths, end, bad.detail, bad.offset)
        lengths.append(frame.length)
        end += FRAME_BYTES + frame.length + padding(frame.length)
        if end - released >= _RELEASED:
            release(released, end)
            released = end
    return Found(lengths, end, None, end)


def read_frame(
    data: memoryview, at: int, limit: int, file: int, tensor: Tensor, place: Place
) -> Frame:
    """The frame at byte `at`, of which all but the payload is checked.

    Raises
    ------
    BadFrame
        With the byte in the file. It ends beyond `limit`, or is not the chunk of `place`.
    """
    named = f"chunk {place.number}, of tensor {tensor.name!r:.100}"
    if at + FRAME_BYTES > limit:
        raise BadFrame(limit, f"the file ends within {named}, which begins at byte {at}")
    try:
        frame = Frame.from_bytes(data[at : at + FRAME_BYTES])
    except BadFrame as bad:
        raise BadFrame(at + bad.offset, f"{bad.detail}; there should be {named}") from None
    if frame.file != file:
        raise BadFrame(at + 40, f"{named} belongs to another file")
    if (frame.tensor, frame.first, frame.count) != (place.tensor, place.first, place.count):
        raise BadFrame(
            at + 4,
            f"there should be {named}, values {place.first} to {place.stop}; there are values "
            f"{frame.first} to {frame.first + frame.count} of tensor number {frame.tensor}",
        )
    if frame.kind == QUANTIZED and not tensor.quantized:
        raise BadFrame(at + 32, f"{named} must be raw; it is quantized")
    if frame.kind != QUANTIZED and frame.length != place.count * tensor.numpy_dtype.itemsize:
        expected = place.count * tensor.numpy_dtype.itemsize
        raise BadFrame(at + 24, f"{named} must have {expected} bytes; it has {frame.length}")
    if at + FRAME_BYTES + frame.length + padding(frame.length) > limit:
        raise BadFrame(limit, f"the file ends within {named}, which begins at byte {at}")
    return frame


def check_payload(
    data: memoryview, at: int, frame: Frame, next_at: int | None = None
) -> memoryview:
    """The payload of the frame at byte `at`; `BadFrame` if its CRC-32 or padding does not fit.

    `next_at` is where the next chunk begins, if that is known.
    """
    begin = at + FRAME_BYTES
    end = begin + frame.length
    if next_at is not None and end + padding(frame.length) != next_at:
        raise BadFrame(at + 24, "the length of a chunk is not that of the index")
    payload = data[begin:end]
    if zlib.crc32(payload) != frame.crc:
        raise BadFrame(begin, "the CRC-32 of a chunk's payload does not fit")
    if any(data[end : end + padding(frame.length)]):
        raise BadFrame(end, "what fills a payload up must be zeros")
    return payload
