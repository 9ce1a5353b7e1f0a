"""The fixed parts of the format: preamble, frame of a chunk, footer. All numbers little-endian."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from quiver_kernels.framing import Buffer

VERSION: Final = 1
MAGIC: Final = b"\x89QVR\r\n\x1a\n"
"""As of PNG: a transfer that changes line ends or the eighth bit changes these bytes."""
CHUNK_MAGIC: Final = b"QCHK"
END_MAGIC: Final = b"QVREND\r\n"
ALIGNMENT: Final = 8
"""Header and payloads are filled up with zeros to a multiple of so many bytes."""
RAW: Final = 0
QUANTIZED: Final = 1
KINDS: Final = (RAW, QUANTIZED)

_CRC: Final = struct.Struct("<I")
_PREAMBLE: Final = struct.Struct("<8sHHIIQ")
_FRAME: Final = struct.Struct("<4sIQQQIII")
_FOOTER: Final = struct.Struct("<8sQQIII")

PREAMBLE_BYTES: Final = _PREAMBLE.size + _CRC.size
FRAME_BYTES: Final = _FRAME.size + _CRC.size
FOOTER_BYTES: Final = _FOOTER.size + _CRC.size


class BadFrame(Exception):
    """Bytes that are not the part they should be: where in the part, and why."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(detail)
        self.offset = offset
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Preamble:
    """Bytes 0 to 32: length and CRC-32 of the header that follows."""

    header_bytes: int
    header_crc: int

    def to_bytes(self) -> bytes:
        """The 32 bytes."""
        return _sealed(_PREAMBLE.pack(MAGIC, VERSION, 0, self.header_bytes, self.header_crc, 0))

    @classmethod
    def from_bytes(cls, data: Buffer) -> Preamble:
        """Read them; `BadFrame` if they are none."""
        if bytes(data[: len(MAGIC)]) != MAGIC:
            raise BadFrame(0, "it does not begin as a .qvr file")
        body = _unsealed(data, "the preamble")
        _, version, flags, length, crc, reserved = _PREAMBLE.unpack(body)
        if version != VERSION:
            raise BadFrame(8, f"its version must be {VERSION}; got {version}")
        if flags or reserved:
            raise BadFrame(10, "reserved bytes of the preamble must be 0")
        return cls(length, crc)


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before a chunk's payload.

    Attributes
    ----------
    tensor, first, count
        Number of the tensor, and which of its values.
    length, crc
        Of the payload, without what fills it up.
    kind
        `RAW` or `QUANTIZED`.
    file
        CRC-32 of the file's header: a chunk of another file does not pass for one of this.
    """

    tensor: int
    first: int
    count: int
    length: int
    kind: int
    crc: int
    file: int

    def to_bytes(self) -> bytes:
        """The 48 bytes."""
        return _sealed(
            _FRAME.pack(
                CHUNK_MAGIC,
                self.tensor,
                self.first,
                self.count,
                self.length,
                self.kind,
                self.crc,
                self.file,
            )
        )

    @classmethod
    def from_bytes(cls, data: Buffer) -> Frame:
        """Read them; `BadFrame` if they are none."""
        if bytes(data[: len(CHUNK_MAGIC)]) != CHUNK_MAGIC:
            raise BadFrame(0, "no chunk begins here")
        _, tensor, first, count, length, kind, crc, file = _FRAME.unpack(
            _unsealed(data, "a chunk's frame")
        )
        if kind not in KINDS:
            raise BadFrame(32, f"a chunk's kind must be {RAW} or {QUANTIZED}; got {kind}")
        return cls(tensor, first, count, length, kind, crc, file)


@dataclass(frozen=True, slots=True)
class Footer:
    """The last 40 bytes: where the index is, and how many chunks there are."""

    index: int
    chunks: int
    file: int
    index_crc: int

    def to_bytes(self) -> bytes:
        """The 40 bytes."""
        return _sealed(
            _FOOTER.pack(END_MAGIC, self.index, self.chunks, self.file, self.index_crc, 0)
        )

    @classmethod
    def from_bytes(cls, data: Buffer) -> Footer:
        """Read them; `BadFrame` if they are none."""
        if bytes(data[: len(END_MAGIC)]) != END_MAGIC:
            raise BadFrame(0, "no footer stands at the end")
        _, index, chunks, file, crc, reserved = _FOOTER.unpack(_unsealed(data, "the footer"))
        if reserved:
            raise BadFrame(32, "reserved bytes of the footer must be 0")
        return cls(index, chunks, file, crc)


def padding(length: int) -> int:
    """How many zeros follow so many bytes."""
    return -length % ALIGNMENT


def _sealed(body: bytes) -> bytes:
    return body + _CRC.pack(zlib.crc32(body))


def _unsealed(data: Buffer, what: str) -> bytes:
    """What `_sealed` was given."""
    body, seal = bytes(data[: -_CRC.size]), bytes(data[-_CRC.size :])
    if seal != _CRC.pack(zlib.crc32(body)):
        raise BadFrame(0, f"the CRC-32 of {what} does not fit")
    return body
