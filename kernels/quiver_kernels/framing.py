"""MessagePack at the level of bytes: a strict structural check and copy-free output.

Typed decoding is left to msgspec. What msgspec does not check is checked here first,
on the raw bytes and before anything is allocated: duplicate keys, keys that are not
text, extension types, depth and the number of items.

`pack` writes a message as a list of segments, so that a large ``bin`` value goes from
its array to the socket without being copied into a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from quiver_kernels.errors import MalformedMessage

Buffer = bytes | bytearray | memoryview
Segment = bytes | memoryview

T = TypeVar("T")

MAX_DEPTH = 6
MAX_ITEMS = 65_536
_INLINE_BYTES = 4096
# Values that a glance at the beginning of a message looks at, at most.
_GLANCE_ITEMS = 1024

# Types of values that hold no view.
_PLAIN = frozenset({int, float, str, bool, bytes, type(None)})
_SEQUENCES = frozenset({list, tuple})
_MAP, _ARRAY, _STR, _BIN, _SCALAR = range(5)

# Kind, items or payload bytes, and bytes of a length that follows.
_Header = tuple[int, int, int]


def _headers() -> tuple[_Header | None, ...]:
    """What each first byte of a value means; None: never valid here."""
    table: list[_Header | None] = [None] * 256
    for first in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        table[first] = (_SCALAR, 0, 0)
    for size in range(16):
        table[0x80 | size], table[0x90 | size] = (_MAP, size, 0), (_ARRAY, size, 0)
    for size in range(32):
        table[0xA0 | size] = (_STR, size, 0)
    for first, size in zip(range(0xCA, 0xD4), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True):
        table[first] = (_SCALAR, size, 0)
    for start, kind, widths in (
        (0xC4, _BIN, (1, 2, 4)),
        (0xD9, _STR, (1, 2, 4)),
        (0xDC, _ARRAY, (2, 4)),
        (0xDE, _MAP, (2, 4)),
    ):
        for step, width in enumerate(widths):
            table[start + step] = (kind, 0, width)
    return tuple(table)


_HEADERS = _headers()
# Kind and size, of those that say all in one byte.
_SHORT_HEADERS = tuple(None if header is None or header[2] else header[:2] for header in _HEADERS)


class _Truncated(Exception):
    """The buffer ends inside a value."""


def _header(view: memoryview, pos: int) -> tuple[int, int, int]:
    """Kind of the value at `pos`, its length (items, or payload bytes), and where that begins."""
    if pos >= len(view):
        raise _Truncated
    header = _HEADERS[view[pos]]
    if header is None:
        raise MalformedMessage(
            f"byte 0x{view[pos]:02x} at offset {pos} starts no value allowed here "
            "(extension types are not accepted)"
        )
    kind, size, width = header
    pos += 1
    if not width:
        return kind, size, pos
    end = pos + width
    if end > len(view):
        raise _Truncated
    return kind, int.from_bytes(view[pos:end], "big"), end


def check_structure(buffer: Buffer, max_items: int = MAX_ITEMS, max_depth: int = MAX_DEPTH) -> int:
    """Refuse anything but exactly one plain MessagePack value.

    Refused: truncated or trailing bytes, duplicate or non-text map keys, extension
    types, more than `max_depth` levels, more than `max_items` values. Reads headers
    only, O(values); ``bin`` and ``str`` payloads are skipped.

    Returns
    -------
    int
        Values of the message, keys among them.

    Raises
    ------
    MalformedMessage
        With code ``malformed_message``, ``duplicate_key`` or ``trailing_bytes``.
    """
    view = memoryview(buffer).cast("B")
    try:
        end, items = _walk(view, max_items, max_depth)
    except _Truncated:
        raise MalformedMessage(f"message is cut short: it ends at byte {len(view)}") from None
    if end != len(view):
        raise MalformedMessage(
            f"{len(view) - end} bytes follow the message, which ends at byte {end}",
            code="trailing_bytes",
        )
    return items


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a map in a message of which only the beginning may be there.

    Attributes
    ----------
    key
        Its key.
    start, payload
        Where the value begins, and where its bytes or items do.
    size
        Payload bytes of the value, or items.
    value
        The whole value; empty if it was not to be read.
    """

    key: str
    start: int
    payload: int
    size: int
    kind: int
    value: bytes = b""

    @property
    def is_map(self) -> bool:
        """Whether the value is a map."""
        return self.kind == _MAP

    @property
    def is_bin(self) -> bool:
        """Whether the value is a bin."""
        return self.kind == _BIN


def first_entries(view: memoryview, pos: int, last: str) -> list[Entry] | None:
    """The entries of the map at `pos` up to the one called `last`, of whose value the head is read.

    For a glance at what will be checked later: None if there is no such map or entry, or not all
    of it is there, or something is wrong with it.
    """
    entries: list[Entry] = []
    try:
        kind, items, pos = _header(view, pos)
        for _ in range(min(items, _GLANCE_ITEMS) if kind == _MAP else 0):
            kind, size, start = _header(view, pos)
            key = bytes(view[start : start + size]).decode()
            start += size
            kind, size, payload = _header(view, start)
            if key == last:
                return [*entries, Entry(key, start, payload, size, kind)]
            pos = start + _walk(view[start:], _GLANCE_ITEMS, MAX_DEPTH)[0]
            entries.append(Entry(key, start, payload, size, kind, bytes(view[start:pos])))
    except (_Truncated, MalformedMessage, UnicodeDecodeError):
        return None
    return None


def _walk(view: memoryview, max_items: int, max_depth: int) -> tuple[int, int]:
    # Of the open container: values still to come, keys seen (None for an array).
    left: int = 1
    keys: set[bytes] | None = None
    outer: list[tuple[int, set[bytes] | None]] = []
    key_is_next = False
    pos, end = 0, len(view)
    short = _SHORT_HEADERS
    for number in range(max_items):
        if pos < end and (header := short[view[pos]]) is not None:
            # Most values say all in one byte.
            kind, size = header
            pos += 1
        else:
            kind, size, pos = _header(view, pos)
        if size > end - pos:
            raise _Truncated
        if key_is_next and keys is not None:
            if kind != _STR:
                raise MalformedMessage(f"map key at offset {pos} is not text")
            key = view[pos : pos + size].tobytes()
            if key in keys:
                raise _duplicate(key)
            keys.add(key)
            pos += size
            key_is_next = False
            continue
        if kind > _ARRAY:
            pos += size
        elif size:
            if len(outer) == max_depth:
                raise MalformedMessage(f"message nests deeper than {max_depth} levels")
            outer.append((left, keys))
            left, keys = size, set() if kind == _MAP else None
            key_is_next = kind == _MAP
            continue
        left -= 1
        while not left:
            if not outer:
                return pos, number + 1
            left, keys = outer.pop()
            left -= 1
        key_is_next = keys is not None
    raise MalformedMessage(
        f"message holds more than {max_items} values; send numbers as bin, not as a list"
    )


def _duplicate(key: bytes) -> MalformedMessage:
    shown = key[:40].decode("utf-8", "replace")
    return MalformedMessage(f"key {shown!r} appears twice in one map", code="duplicate_key")


def is_well_formed(buffer: Buffer, max_items: int) -> bool:
    """Whether `check_structure` passes; at most `max_items` values are looked at."""
    try:
        check_structure(buffer, max_items)
    except MalformedMessage:
        return False
    return True


def count_items(value: Buffer | msgspec.Raw) -> int | None:
    """Entries of the map, or items of the array, that a checked value is; None for others."""
    kind, size, _ = _header(memoryview(value), 0)
    return size if kind in (_MAP, _ARRAY) else None


def is_map(value: Buffer | msgspec.Raw) -> bool:
    """Whether a checked value is a map."""
    return _header(memoryview(value), 0)[0] == _MAP


def decode_typed(
    buffer: Buffer,
    decoder: msgspec.msgpack.Decoder[T],
    max_items: int = MAX_ITEMS,
    max_depth: int = MAX_DEPTH,
) -> T:
    """Structure check, then typed decoding; ``memoryview`` fields share `buffer`'s memory.

    Raises
    ------
    MalformedMessage
        Not one well-formed message.
    msgspec.ValidationError
        Well-formed, but not of the decoder's type.
    """
    check_structure(buffer, max_items, max_depth)
    return decode_checked(buffer, decoder)


def decode_checked(buffer: Buffer | msgspec.Raw, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Typed decoding of a value whose structure was checked; errors as for `decode_typed`."""
    try:
        return decoder.decode(buffer)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"message cannot be read: {error}") from None


def pack(fields: dict[str, Any]) -> list[Segment]:
    """One MessagePack map as segments; large ``memoryview`` values stay where they are.

    Parameters
    ----------
    fields
        Values that msgspec can encode, nested dicts, lists and tuples of such, and flat
        ``memoryview`` values, which become ``bin``.

    Returns
    -------
    list of bytes or memoryview
        Their concatenation is the message. O(number of values), no copy of a view of
        4 KiB or more.
    """
    segments: list[Segment] = []
    head = bytearray()
    _pack_value(fields, head, segments)
    if head:
        segments.append(bytes(head))
    return segments


def _pack_value(value: Any, head: bytearray, segments: list[Segment]) -> None:
    if not _has_large(value):
        # The same bytes, an order of magnitude sooner.
        head += msgspec.msgpack.encode(value)
    elif isinstance(value, memoryview):
        head += _bin_header(value.nbytes)
        segments.append(bytes(head))
        segments.append(value)
        head.clear()
    elif isinstance(value, dict):
        head += _count_header(len(value), 0x80, 0xDE)
        for key, item in value.items():
            head += msgspec.msgpack.encode(key)
            _pack_value(item, head, segments)
    else:
        head += _count_header(len(value), 0x90, 0xDC)
        for item in value:
            _pack_value(item, head, segments)


def _has_large(value: Any) -> bool:
    """Whether a view that is too large to copy is in `value`."""
    kind = type(value)
    if kind is memoryview:
        return bool(value.nbytes >= _INLINE_BYTES)
    if kind is not dict and kind not in _SEQUENCES:
        return False
    for item in value.values() if kind is dict else value:
        # Most hold no view, and are not worth a call.
        if type(item) not in _PLAIN and _has_large(item):
            return True
    return False


def _count_header(count: int, fixed: int, wide: int) -> bytes:
    if count < 16:
        return bytes([fixed | count])
    if count < 1 << 16:
        return bytes([wide]) + count.to_bytes(2, "big")
    return bytes([wide + 1]) + count.to_bytes(4, "big")


def _bin_header(size: int) -> bytes:
    for first, width in ((0xC4, 1), (0xC5, 2), (0xC6, 4)):
        if size < 1 << (8 * width):
            return bytes([first]) + size.to_bytes(width, "big")
    raise ValueError(f"a MessagePack bin holds at most 4 GiB - 1; got {size} bytes")
