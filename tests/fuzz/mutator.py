"""Messages broken in every way that can be told by a seed and a number.

A case is made from `random.Random` of its own, so that any case can be made again without those
before it. Bytes are changed blindly, headers are made to lie about lengths, two messages are
spliced, and values of a well-formed message are replaced by hostile ones.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

Path = tuple[Any, ...]

# A step of a path: into the message that a bin holds.
INSIDE = object()


@dataclass(frozen=True)
class Inside:
    """A message within a bin."""

    tree: Any


@dataclass(frozen=True)
class Pairs:
    """A map whose keys may repeat and be of any type."""

    items: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class Seed:
    """A valid message; `tree` holds its values, for MessagePack and JSON.

    Attributes
    ----------
    name
        What it is.
    data
        Its bytes.
    tree
        Its values, None for bodies that have no structure.
    json
        Whether it is JSON.
    paths
        To every value of the tree.
    """

    name: str
    data: bytes
    tree: Any = None
    json: bool = False
    paths: tuple[Path, ...] = ()

    @classmethod
    def of(cls, name: str, data: bytes) -> Seed:
        """A MessagePack message."""
        tree = _opened(msgspec.msgpack.decode(data))
        return cls(name, data, tree, paths=tuple(_paths(tree)))

    @classmethod
    def of_json(cls, name: str, data: bytes) -> Seed:
        """A JSON message."""
        tree = msgspec.json.decode(data)
        return cls(name, data, tree, json=True, paths=tuple(_paths(tree)))


def source(seed: int, number: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random((seed << 40) | number)


# -- hostile values -----------------------------------------------------------------------

# What no packer would write: reserved, extensions, timestamps, lengths that lie, bad UTF-8.
RAW = tuple(
    msgspec.Raw(data)
    for data in (
        b"\xc1",
        b"\xd4\x01x",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xd7\xff" + b"\xff" * 8,
        b"\xc7\x04\x05abcd",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xa2\xff\xfe",
        b"\xd9\x02\xc0\x80",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\x00\x01\x00\x00",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\x7f\xff\xff\xff",
        b"\xca\x7f\xc0\x00\x00",
        b"\xca\xff\x80\x00\x00",
        b"\xd3" + b"\x80" + bytes(7),
        b"\xcf" + b"\xff" * 8,
        b"\x91" * 7 + b"\xc0",
        b"\x81\xa1a" * 7 + b"\xc0",
        b"\xdc\x00\x00",
        b"\xde\x00\x00",
    )
)
RAW_JSON = tuple(
    msgspec.Raw(data)
    for data in (
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1e-999",
        b"1" + b"0" * 400,
        b"9" * 5000,
        b"01",
        b"+1",
        b"tru",
        b'"\xff"',
        b'"\\ud800"',
        b'"\\u0000"',
        b"[" * 2000,
        b'{"a":' * 500,
        b"",
        b"[1,]",
        b'{"v":1,"v":1}',
        b"-0",
        b"-0.0",
    )
)
INTEGERS = (
    *(-(2**63), -(2**31), -257, -129, -33, -1, 0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 127, 128),
    *(255, 256, 257, 1023, 4095, 65_535, 65_536, 65_537, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**32, 2**40, 2**40 + 1, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
FLOATS = (
    *(0.0, -0.0, 0.5, -1.0, 1.5, 1e-45, 5e-324, 1e38, 3.5e38, -1e39, 1e300, 1.7e308),
    *(float("nan"), float("inf"), float("-inf"), 2.0**53, 65_504.0, 65_520.0),
)
TEXTS = (
    *("", "exact", "approx", "accelerated", "uniform", "robust", "auto", "cpu", "gpu"),
    *("float16", "bfloat16", "float32", "float64", "float128", "int8", "object", "O", "<f4"),
    *("V1000000000", "f4,f4", "(1000000000,)f4", "M8[s]", "sketch", "details", "undecided"),
    *("x" * 33, "x" * 300, "\0", "é", "\U0001f4a3", "__class__", "../..", "%s%n", "NaN"),
)
BINS = (
    *(b"", b"\0", b"\xff", b"\xc1", b"\x80", b"\x90", bytes(3), bytes(4), bytes(8), bytes(16)),
    *(b"\xff" * 4, b"\xff" * 8, b"\x00\x00\x80\x7f" * 2, b"\x01\x00\x00\x80" * 4, bytes(4096)),
    *(b"\x00\x00\xc0\x7f" * 4, struct.pack("<4d", 1e308, -1e308, 5e-324, -0.0)),
)
CONTAINERS: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [{}],
    [None],
    [0],
    [0, 0],
    [1] * 9,
    [2**40, 2**40],
    [2**63 - 1, 2],
    [0, 2**62],
    [-1],
    [-1, -1],
    [1.5, -2.0, float("nan")],
    [0.0] * 100,
    [1e39, -1e39],
    [[[[[[[[1]]]]]]]],
    {"a": 1},
    {"dtype": "float32", "shape": [1], "data": bytes(4)},
    {"dtype": "float64", "shape": [2, 2], "data": bytes(32)},
    {"dtype": "bfloat16", "shape": [2**40], "data": b""},
    {"dtype": "float32", "shape": [], "data": bytes(4)},
    {"dtype": "float16", "shape": [0], "data": b""},
    {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}},
)
PLAIN: tuple[Any, ...] = (
    *(None, True, False),
    *INTEGERS,
    *FLOATS,
    *TEXTS,
    *BINS,
    *CONTAINERS,
)
HOSTILE: tuple[Any, ...] = (*PLAIN, *RAW)
HOSTILE_JSON: tuple[Any, ...] = (*PLAIN, *RAW_JSON)


# -- mutations ----------------------------------------------------------------------------


def mutated(rng: random.Random, seed: Seed, other: Seed) -> bytes:
    """`seed` changed once or a few times; splices take their second half from `other`."""
    kind = rng.random()
    if seed.tree is not None and kind < 0.6:
        return changed_tree(rng, seed)
    if kind < 0.67 and not seed.json and seed.tree is not None:
        return lying(rng, seed.data)
    if kind < 0.70:
        return spliced(rng, seed.data, other.data)
    if kind < 0.75:
        return seed.data[: rng.randrange(len(seed.data) + 1)]
    if kind < 0.80:
        return seed.data + rng.choice((b"\0", b"\xc0", b"\xff" * 9, b" ", b"}", other.data[:40]))
    return changed_bytes(rng, seed.data)


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """1 to 4 bytes replaced, flipped, inserted or taken out."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        place = rng.randrange(len(result) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(result):
            result[place] = rng.randrange(256)
        elif kind == 1 and place < len(result):
            result[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            result[place:place] = rng.randbytes(rng.randint(1, 4))
        elif kind == 3:
            del result[place : place + rng.randint(1, 4)]
        else:
            result[place : place + rng.randint(1, 8)] = rng.choice((b"\xff", b"\0", b"\x7f")) * 4
    return bytes(result)


def spliced(rng: random.Random, one: bytes, two: bytes) -> bytes:
    """The beginning of one message and the end of another."""
    return one[: rng.randrange(len(one) + 1)] + two[rng.randrange(len(two) + 1) :]


def lying(rng: random.Random, data: bytes) -> bytes:
    """One header of a MessagePack message with another length, in any width."""
    places = list(_headers(data))
    if not places:
        return changed_bytes(rng, data)
    begin, end, kind, size = rng.choice(places)
    claim = rng.choice(
        (0, 1, size - 1, size + 1, 2 * size, 255, 65_535, 65_536, 2**24 - 1, 2**31, 2**32 - 1)
    )
    code, width = rng.choice(_WIDE[kind])
    limit = 1 << (8 * width)
    return data[:begin] + bytes([code]) + (claim % limit).to_bytes(width, "big") + data[end:]


def changed_tree(rng: random.Random, seed: Seed) -> bytes:
    """The message with 1 to 3 of its values replaced, dropped, doubled or moved."""
    tree = seed.tree
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        # The root is first, and seldom of interest.
        paths = seed.paths if tree is seed.tree else tuple(_paths(tree))
        path = rng.choice(paths[1:] if len(paths) > 1 and rng.random() < 0.95 else paths)
        tree = _changed_at(tree, path, _change(rng, seed))
    return encoded(tree, json=seed.json)


def encoded(tree: Any, *, json: bool = False) -> bytes:
    """The bytes of a tree; what it holds may be invalid on purpose."""
    try:
        if json:
            return msgspec.json.encode(tree, enc_hook=_json_hook)
        return msgspec.msgpack.encode(tree, enc_hook=_hook)
    except (OverflowError, TypeError, ValueError):
        # A number beyond 64 bits, or a key that no JSON object may have.
        return b""


def _hook(value: Any) -> Any:
    if isinstance(value, Inside):
        return encoded(value.tree)
    if isinstance(value, Pairs):
        head = b"\xde" + len(value.items).to_bytes(2, "big")
        return msgspec.Raw(head + b"".join(encoded(part) for pair in value.items for part in pair))
    raise TypeError(type(value).__name__)


def _json_hook(value: Any) -> Any:
    if isinstance(value, Pairs):
        parts = (f"{k}:{v}" for k, v in ((_text(a), _text(b)) for a, b in value.items))
        return msgspec.Raw(("{" + ",".join(parts) + "}").encode("utf-8", "surrogateescape"))
    raise TypeError(type(value).__name__)


def _text(value: Any) -> str:
    return encoded(value, json=True).decode("utf-8", "surrogateescape")


Change = Callable[[Any], Any]


def _change(rng: random.Random, seed: Seed) -> Change:
    hostile = HOSTILE_JSON if seed.json else HOSTILE
    kind = rng.random()
    if kind < 0.2:
        value = rng.choice(hostile)
        return lambda _: value
    if kind < 0.75:
        return lambda value: _near(rng, value)
    if kind < 0.8:
        moved = _at(seed.tree, rng.choice(seed.paths))
        return lambda _: moved
    return lambda value: _reshaped(rng, value, hostile)


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same type, close to `value` or at a limit of it."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(value, int):
        near = (value - 1, value + 1, -value, 2 * value, value ^ 1, rng.choice(INTEGERS))
        return min(max(rng.choice(near), -(2**63)), 2**64 - 1)
    if isinstance(value, float):
        return rng.choice((-value, value * 2, value / 2, value + 1, rng.choice(FLOATS)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), rng.choice(TEXTS)))
    if isinstance(value, bytes):
        return _near_bytes(rng, value)
    if isinstance(value, Inside):
        return rng.choice((value.tree, [value], changed_bytes(rng, encoded(value.tree))))
    if rng.random() < 0.6:
        # Containers keep their form here more often than not: their values are changed elsewhere.
        return value
    return _reshaped(rng, value, HOSTILE)


def _near_bytes(rng: random.Random, value: bytes) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return value[: -rng.choice((1, 2, 4, 8))]
    if kind == 1:
        return value + rng.randbytes(rng.choice((1, 2, 4, 8, 4096)))
    if kind == 2:
        return rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * len(value)
    if kind == 3:
        return rng.randbytes(len(value))
    if kind == 4:
        place = rng.randrange(len(value) + 1)
        special = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f"))
        return value[:place] + special + value[place + 4 :]
    return changed_bytes(rng, value)


def _reshaped(rng: random.Random, value: Any, hostile: tuple[Any, ...]) -> Any:
    """Another arrangement: a key or an item more, less, twice, renamed; or wrapped."""
    if isinstance(value, dict) and value:
        return _other_map(rng, value, hostile)
    if isinstance(value, list) and value:
        kind = rng.randrange(5)
        if kind == 0:
            return value[:-1]
        if kind == 1:
            return [*value, rng.choice(value)]
        if kind == 2:
            return value * rng.choice((2, 3, 40))
        if kind == 3:
            return rng.sample(value, len(value))
        return [*value, rng.choice(hostile)]
    return rng.choice(([value], {"x": value}, [value] * 2, [[value]]))


def _other_map(rng: random.Random, value: dict[str, Any], hostile: tuple[Any, ...]) -> Any:
    key = rng.choice(list(value))
    others = {name: item for name, item in value.items() if name != key}
    kind = rng.randrange(7)
    if kind == 0:
        return others
    if kind == 1:
        return {**value, rng.choice(TEXTS): rng.choice(hostile)}
    if kind == 2:
        return {**others, key.upper(): value[key]}
    if kind == 3:
        return Pairs((*value.items(), (key, rng.choice((value[key], None)))))
    if kind == 4:
        return Pairs((*others.items(), (rng.choice(hostile), value[key])))
    if kind == 5:
        return {name: value[name] for name in rng.sample(list(value), len(value))}
    return list(value.values())


# -- trees and headers --------------------------------------------------------------------


def _opened(value: Any) -> Any:
    """The tree with bins that hold a map opened."""
    if isinstance(value, dict):
        return {key: _opened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_opened(item) for item in value]
    if isinstance(value, bytes) and value[:1] in b"\x80\x81\x82\x83\x8d\xde":
        try:
            inner = msgspec.msgpack.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return value
        return Inside(_opened(inner)) if isinstance(inner, dict) and inner else value
    return value


def _paths(tree: Any, so_far: Path = ()) -> Iterator[Path]:
    yield so_far
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield from _paths(item, (*so_far, key))
    elif isinstance(tree, list):
        # The items of a long list are alike.
        for number, item in enumerate(tree[:6]):
            yield from _paths(item, (*so_far, number))
    elif isinstance(tree, Inside):
        yield from _paths(tree.tree, (*so_far, INSIDE))


def _at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree.tree if step is INSIDE else tree[step]
    return tree


def _changed_at(tree: Any, path: Path, change: Change) -> Any:
    if not path:
        return change(tree)
    step, rest = path[0], path[1:]
    if step is INSIDE:
        return Inside(_changed_at(tree.tree, rest, change))
    copy = tree.copy()
    copy[step] = _changed_at(tree[step], rest, change)
    return copy


_MAP, _ARRAY, _STR, _BIN = range(4)
_WIDE = {
    _MAP: ((0xDE, 2), (0xDF, 4)),
    _ARRAY: ((0xDC, 2), (0xDD, 4)),
    _STR: ((0xD9, 1), (0xDA, 2), (0xDB, 4)),
    _BIN: ((0xC4, 1), (0xC5, 2), (0xC6, 4)),
}
_COUNTED = {code: (kind, width) for kind, forms in _WIDE.items() for code, width in forms}
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def _headers(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Headers that state a length, as (begin, end, kind, length), of a valid message."""
    pos = 0
    while pos < len(data):
        begin, first = pos, data[pos]
        pos += 1
        if first in _COUNTED:
            kind, width = _COUNTED[first]
            size = int.from_bytes(data[pos : pos + width], "big")
            pos += width
        elif 0x80 <= first <= 0x8F:
            kind, size = _MAP, first & 0x0F
        elif 0x90 <= first <= 0x9F:
            kind, size = _ARRAY, first & 0x0F
        elif 0xA0 <= first <= 0xBF:
            kind, size = _STR, first & 0x1F
        else:
            pos += _FIXED.get(first, 0)
            continue
        yield begin, pos, kind, size
        if kind in (_STR, _BIN):
            pos += size
