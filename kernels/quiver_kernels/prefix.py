"""What the first bytes of a ``/quantize`` request say, before the rest of it has arrived.

That is for whoever wants to begin with the values that are there. Nothing of it is trusted: the
whole message is checked and read when it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from quiver_kernels.dtypes import WIRE_DTYPES, from_wire
from quiver_kernels.errors import QuiverError
from quiver_kernels.framing import Entry, decode_checked, first_entries
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.request import OptionsMessage
from quiver_kernels.wire import options_of_query

_OPTIONS = msgspec.msgpack.Decoder(OptionsMessage)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is known of a request.

    Attributes
    ----------
    options
        Those that stand before the vector.
    dtype
        Type of its values.
    start, size
        Where in the message they begin, and how many there are.
    """

    options: QuantizeOptions
    dtype: np.dtype[Any]
    start: int
    size: int


def read_prefix(view: memoryview, length: int) -> Prefix | None:
    """The prefix of a MessagePack request; None if it says nothing, too little, or is wrong.

    Parameters
    ----------
    view
        What is there of the message.
    length
        Bytes of the whole.
    """
    try:
        return _read(view, length)
    except (QuiverError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def raw_prefix(length: int, query: Sequence[tuple[str, str]]) -> Prefix | None:
    """The prefix of a body of float32 values alone; None if its options are wrong."""
    dtype = WIRE_DTYPES["float32"]
    size, rest = divmod(length, dtype.itemsize)
    try:
        return Prefix(options_of_query(query), dtype, 0, size) if size and not rest else None
    except QuiverError:
        return None


def _read(view: memoryview, length: int) -> Prefix | None:
    entries = first_entries(view, 0, "vector")
    # With weights, which stand before the vector, a pass over its values alone is of less use.
    if entries is None or any(entry.key == "weights" for entry in entries):
        return None
    vector = entries.pop()
    dtype = WIRE_DTYPES["float32"]
    if vector.is_map:
        parts = first_entries(view, vector.start, "data")
        names = [entry for entry in parts or () if entry.key == "dtype"]
        if parts is None or not names:
            return None
        vector = parts.pop()
        dtype = from_wire(msgspec.msgpack.decode(names[0].value, type=str), "vector.dtype")
    size, rest = divmod(vector.size, dtype.itemsize)
    if not vector.is_bin or rest or size == 0 or vector.payload + vector.size > length:
        return None
    return Prefix(_options(entries), dtype, vector.payload, size)


def _options(entries: Sequence[Entry]) -> QuantizeOptions:
    fields = {entry.key: msgspec.Raw(entry.value) for entry in entries}
    return decode_checked(msgspec.msgpack.encode(fields), _OPTIONS).checked()
