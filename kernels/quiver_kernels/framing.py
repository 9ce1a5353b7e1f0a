"""MessagePack at the level of bytes: a strict structural check and copy-free output.

Typed decoding is left to msgspec. What msgspec does not check is checked here first,
on the raw bytes and before anything is allocated: duplicate keys, keys that are not
text, extension types, depth and the number of items.

`pack` writes a message as a list of segments, so that a large ``bin`` value goes from
its array to the socket without being copied into a message.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from quiver_kernels.errors import MalformedMessage

Buffer = bytes | bytearray | memoryview
Segment = bytes | memoryview

T = TypeVar("T")

MAX_DEPTH = 6
MAX_ITEMS = 65_536
_INLINE_BYTES = 4096

_MAP, _ARRAY, _STR, _BIN, _SCALAR = range(5)

# First byte -> (kind, bytes of length or of payload that follow); None = never valid here.
_FIXED: dict[int, tuple[int, int]] = {
    0xC0: (_SCALAR, 0),
    0xC2: (_SCALAR, 0),
    0xC3: (_SCALAR, 0),
    0xCA: (_SCALAR, 4),
    0xCB: (_SCALAR, 8),
    0xCC: (_SCALAR, 1),
    0xCD: (_SCALAR, 2),
    0xCE: (_SCALAR, 4),
    0xCF: (_SCALAR, 8),
    0xD0: (_SCALAR, 1),
    0xD1: (_SCALAR, 2),
    0xD2: (_SCALAR, 4),
    0xD3: (_SCALAR, 8),
}
_COUNTED: dict[int, tuple[int, int]] = {
    0xC4: (_BIN, 1),
    0xC5: (_BIN, 2),
    0xC6: (_BIN, 4),
    0xD9: (_STR, 1),
    0xDA: (_STR, 2),
    0xDB: (_STR, 4),
    0xDC: (_ARRAY, 2),
    0xDD: (_ARRAY, 4),
    0xDE: (_MAP, 2),
    0xDF: (_MAP, 4),
}


class _Truncated(Exception):
    """The buffer ends inside a value."""


def _header(view: memoryview, pos: int) -> tuple[int, int, int]:
    """Kind of the value at `pos`, its length (items, or payload bytes), and where that begins."""
    if pos >= len(view):
        raise _Truncated
    first = view[pos]
    pos += 1
    if first <= 0x7F or first >= 0xE0:
        return _SCALAR, 0, pos
    if first <= 0x8F:
        return _MAP, first & 0x0F, pos
    if first <= 0x9F:
        return _ARRAY, first & 0x0F, pos
    if first <= 0xBF:
        return _STR, first & 0x1F, pos
    if first in _FIXED:
        kind, size = _FIXED[first]
        return kind, size, pos
    if first in _COUNTED:
        kind, width = _COUNTED[first]
        end = pos + width
        if end > len(view):
            raise _Truncated
        return kind, int.from_bytes(view[pos:end], "big"), end
    raise MalformedMessage(
        f"byte 0x{first:02x} at offset {pos - 1} starts no value allowed here "
        "(extension types are not accepted)"
    )


def check_structure(buffer: Buffer, max_items: int = MAX_ITEMS) -> None:
    """Refuse anything but exactly one plain MessagePack value.

    Refused: truncated or trailing bytes, duplicate or non-text map keys, extension
    types, more than `MAX_DEPTH` levels, more than `max_items` values. Reads headers
    only, O(values); ``bin`` and ``str`` payloads are skipped.

    Raises
    ------
    MalformedMessage
        With code ``malformed_message``, ``duplicate_key`` or ``trailing_bytes``.
    """
    view = memoryview(buffer).cast("B")
    try:
        end = _walk(view, max_items)
    except _Truncated:
        raise MalformedMessage(f"message is cut short: it ends at byte {len(view)}") from None
    if end != len(view):
        raise MalformedMessage(
            f"{len(view) - end} bytes follow the message, which ends at byte {end}",
            code="trailing_bytes",
        )


def _walk(view: memoryview, max_items: int) -> int:
    # Each open container: [values still to come, keys seen (None for an array), key is next].
    open_containers: list[list[Any]] = []
    pos = 0
    for _ in range(max_items):
        kind, size, pos = _header(view, pos)
        container = open_containers[-1] if open_containers else None
        if container is not None and container[2]:
            pos = _read_key(view, kind, size, pos, container[1])
            container[2] = False
            continue
        if kind in (_MAP, _ARRAY):
            if size > len(view) - pos:
                raise _Truncated
            if size and len(open_containers) == MAX_DEPTH:
                raise MalformedMessage(f"message nests deeper than {MAX_DEPTH} levels")
            if size:
                is_map = kind == _MAP
                open_containers.append([size, set() if is_map else None, is_map])
                continue
        else:
            if size > len(view) - pos:
                raise _Truncated
            pos += size
        while open_containers:
            container = open_containers[-1]
            container[0] -= 1
            if container[0]:
                container[2] = container[1] is not None
                break
            open_containers.pop()
        if not open_containers:
            return pos
    raise MalformedMessage(
        f"message holds more than {max_items} values; send numbers as bin, not as a list"
    )


def _read_key(view: memoryview, kind: int, size: int, pos: int, seen: set[bytes]) -> int:
    if kind != _STR:
        raise MalformedMessage(f"map key at offset {pos} is not text")
    end = pos + size
    if end > len(view):
        raise _Truncated
    key = bytes(view[pos:end])
    if key in seen:
        shown = key[:40].decode("utf-8", "replace")
        raise MalformedMessage(f"key {shown!r} appears twice in one map", code="duplicate_key")
    seen.add(key)
    return end


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
    buffer: Buffer, decoder: msgspec.msgpack.Decoder[T], max_items: int = MAX_ITEMS
) -> T:
    """Structure check, then typed decoding; ``memoryview`` fields share `buffer`'s memory.

    Raises
    ------
    MalformedMessage
        Not one well-formed message.
    msgspec.ValidationError
        Well-formed, but not of the decoder's type.
    """
    check_structure(buffer, max_items)
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
    if isinstance(value, memoryview):
        return value.nbytes >= _INLINE_BYTES
    if isinstance(value, dict):
        return any(map(_has_large, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_large, value))
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
