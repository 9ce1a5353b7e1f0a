"""The beginning of a file: preamble and header."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from quiver_kernels.errors import QuiverError
from quiver_kernels.qvr.frames import PREAMBLE_BYTES, BadFrame, Preamble, padding
from quiver_kernels.qvr.header import MAX_HEADER_BYTES, Header


@dataclass(frozen=True, slots=True)
class Start:
    """What a file begins with.

    Attributes
    ----------
    header
        Its header.
    file
        CRC-32 of the header's bytes, which every chunk repeats.
    begin
        Where the first chunk begins.
    """

    header: Header
    file: int
    begin: int


def start_bytes(header: Header) -> tuple[bytes, int]:
    """Preamble, header and what fills it up; and the CRC-32 of the header."""
    body = header.to_bytes()
    crc = zlib.crc32(body)
    return Preamble(len(body), crc).to_bytes() + body + bytes(padding(len(body))), crc


def read_start(data: memoryview) -> Start:
    """Read them; `BadFrame` with the byte of the file if they are none."""
    if len(data) < PREAMBLE_BYTES:
        short = f"the file ends within its first {PREAMBLE_BYTES} bytes"
        raise BadFrame(len(data), short)
    preamble = Preamble.from_bytes(data[:PREAMBLE_BYTES])
    if preamble.header_bytes > MAX_HEADER_BYTES:
        limit = f"the header must have at most {MAX_HEADER_BYTES} bytes"
        raise BadFrame(12, f"{limit}; got {preamble.header_bytes}")
    end = PREAMBLE_BYTES + preamble.header_bytes
    begin = end + padding(preamble.header_bytes)
    if begin > len(data):
        raise BadFrame(len(data), "the file ends within its header")
    body = data[PREAMBLE_BYTES:end]
    if zlib.crc32(body) != preamble.header_crc:
        raise BadFrame(PREAMBLE_BYTES, "the CRC-32 of the header does not fit")
    if any(data[end:begin]):
        raise BadFrame(end, "what fills the header up must be zeros")
    try:
        header = Header.from_bytes(body)
    except QuiverError as error:
        raise BadFrame(PREAMBLE_BYTES, f"its header cannot be read: {error.detail}") from None
    return Start(header, preamble.header_crc, begin)
