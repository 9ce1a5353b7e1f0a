"""Where the codes of `eden` lie: which values are sent, which have one bit more, how many bytes.

Which values these are follows from the seed. Value i is picked where the sum
``(i + 1) share + offset`` passes a whole number, the offset a random number in [0, 1): each value
with the probability that is asked for, and how many are picked is known without counting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.packing import packed_size
from quiver_kernels.rng import ROTATION_STREAM, random_words
from quiver_kernels.schemes.rotation import MAX_BLOCK
from quiver_kernels.schemes.scaled import Bits

DEFAULT_BLOCK = 1 << 14
"""Values that are turned together where no block size is given: fast, and long enough."""
SPAN = 1 << 16
"""Values that are coded at a time, at least a block."""

# Elements whose random words are offsets: signs never take these words.
_OFFSETS_AT = 1 << 60
_ONE = 1 << 32


@dataclass(frozen=True, slots=True)
class Share:
    """A share of values, picked evenly from a random offset; both in units of 2**-32."""

    share: int
    offset: int

    @property
    def is_all(self) -> bool:
        """Whether every value is picked."""
        return self.share == _ONE

    def count(self, stop: int) -> int:
        """How many of the first `stop` values are picked."""
        return (stop * self.share + self.offset) // _ONE

    def picked(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the values from `start` to `stop` are picked."""
        # Modulo 2**64, of which the lower half counts.
        ahead = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(self.share)
        rest = (ahead + np.uint64(self.offset)) & np.uint64(_ONE - 1)
        return rest < np.uint64(self.share)


def units(share: float) -> int:
    """A share from 0 to 1 in units of 2**-32; at least one unit unless it is 0."""
    return 0 if share == 0 else max(1, round(share * _ONE))


@dataclass(frozen=True, slots=True)
class Layout:
    """How the codes of a vector are laid out.

    Attributes
    ----------
    size, block
        Values of the vector and of a block.
    bits
        Of a code.
    kept
        Values that have a code.
    longer
        Of these, the ones with one bit more. That bit is apart: the codes of a span without it,
        from a whole byte on, are followed by these bits, from a whole byte on.
    """

    size: int
    block: int
    bits: int
    kept: Share
    longer: Share

    @classmethod
    def of(
        cls, size: int, block_size: int | None, bits: int, keep: float, extra: float, seed: int
    ) -> Layout:
        """The layout of a message."""
        block = min(size, DEFAULT_BLOCK if block_size is None else min(block_size, MAX_BLOCK))
        offsets = random_words(seed, _OFFSETS_AT, 2, ROTATION_STREAM).tolist()
        kept, longer = Share(units(keep), offsets[0]), Share(units(extra), offsets[1])
        return cls(size, block, bits, kept, longer)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.size // self.block)

    @property
    def is_plain(self) -> bool:
        """Whether all values have codes of equal length, packed as `packing.pack_codes` does."""
        return self.kept.is_all and self.longer.share == 0

    def spans(self) -> list[Span]:
        """The vector in parts of whole blocks of equal length."""
        whole, rest = divmod(self.size, self.block)
        rows = max(1, SPAN // self.block)
        found, begin = [], 0
        for first in range(0, whole, rows):
            found.append(
                Span(self, first * self.block, min(rows, whole - first), self.block, begin)
            )
            begin += found[-1].nbytes
        return [*found, Span(self, whole * self.block, 1, rest, begin)] if rest else found

    def payload(self) -> int:
        """Bytes of all codes."""
        if self.is_plain:
            return packed_size(self.size, self.bits, self.block)
        return sum(span.nbytes for span in self.spans())


@dataclass(frozen=True, slots=True)
class Span:
    """Some blocks of equal length.

    Attributes
    ----------
    layout
        Of the vector.
    start
        Index of the first value.
    rows, length
        Number of blocks, and values of each.
    begin
        Bytes of the payload before those of the span, of a layout that is not plain.
    """

    layout: Layout
    start: int
    rows: int
    length: int
    begin: int

    @property
    def stop(self) -> int:
        """Index behind the last value."""
        return self.start + self.rows * self.length

    @property
    def blocks(self) -> slice:
        """Numbers of the blocks."""
        first = self.start // self.layout.block
        return slice(first, first + self.rows)

    @property
    def run(self) -> tuple[int, int]:
        """How many values have a code, and how many of these have one bit more."""
        kept, longer = self.layout.kept, self.layout.longer
        first, last = kept.count(self.start), kept.count(self.stop)
        return last - first, longer.count(last) - longer.count(first)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes of a layout that is not plain."""
        kept, longer = self.run
        return packed_size(kept, self.layout.bits) + packed_size(longer, 1)

    def kept(self) -> NDArray[np.intp]:
        """Places in the span of the values that have a code."""
        return np.flatnonzero(self.layout.kept.picked(self.start, self.stop))

    def longer(self) -> NDArray[np.bool_]:
        """Of the values that have a code, whether it has one bit more."""
        kept = self.layout.kept
        return self.layout.longer.picked(kept.count(self.start), kept.count(self.stop))


def write_codes(span: Span, codes: NDArray[np.uint8], payload: NDArray[np.uint8]) -> None:
    """Pack the codes, shape (kept values,), of a layout that is not plain."""
    bits = span.layout.bits
    head = _packed(codes & np.uint8((1 << bits) - 1), bits)
    # The bit above 8 is none: there are no longer codes then.
    tail = _packed((codes >> np.uint8(bits % 8))[span.longer()], 1)
    payload[span.begin : span.begin + span.nbytes] = np.concatenate([head, tail])


def read_codes(span: Span, payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `write_codes`."""
    bits, (kept, longer) = span.layout.bits, span.run
    own = payload[span.begin : span.begin + span.nbytes]
    head = packed_size(kept, bits)
    codes = _unpacked(own[:head], kept, bits)
    if longer:
        codes[span.longer()] |= _unpacked(own[head:], longer, 1) << np.uint8(bits)
    return codes


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    out = np.empty(packed_size(codes.size, bits), np.uint8)
    if codes.size:
        room = np.zeros(-(-codes.size // 8) * 8, np.uint8)
        room[: codes.size] = codes
        Bits(bits).pack(room, codes.size, 0, codes.size, out)
    return out


def _unpacked(packed: NDArray[np.uint8], size: int, bits: int) -> NDArray[np.uint8]:
    # What is unpacked may be shared with the message, so it is copied.
    return Bits(bits).unpack(packed, 0, size, size).copy() if size else np.zeros(0, np.uint8)
