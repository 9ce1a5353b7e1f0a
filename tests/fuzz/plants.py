"""Faults planted on purpose: what the fuzzers must find.

Run ``python plants.py FAULT`` for a server with one of them, on the quick backend of the tests.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from quiver_kernels import quantized, tensors, treerequest, wire
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.quantized import QuantizedVector

SLEEP_SECONDS = 1.2
ROOT = Path(__file__).parents[2]


def _raises() -> None:
    """An unknown type name is looked up without a thought: a KeyError."""

    def careless(name: str, field: str = "dtype") -> Any:
        return WIRE_DTYPES[name]

    tensors.from_wire = careless
    quantized.from_wire = careless


def _amplifies() -> None:
    """A request is decoded without types first: a byte becomes 73."""
    for module in (wire, treerequest):
        module.decode_aggregate_request = _amplifying(module.decode_aggregate_request)


def _amplifying(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def careless(data: Any) -> Any:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            msgspec.msgpack.decode(data)
        return decode(data)

    return careless


def _sleeps() -> None:
    """A quantized vector with blocks takes its time."""
    read = quantized.from_message

    def careless(message: Any, where: str = "") -> QuantizedVector:
        if message.block_size is not None:
            time.sleep(SLEEP_SECONDS)
        return read(message, where)

    quantized.from_message = careless


def _lies() -> None:
    """A large expected error is cut to a million."""
    read = quantized.from_message

    def careless(message: Any, where: str = "") -> QuantizedVector:
        q = read(message, where)
        return replace(q, vnmse=min(q.vnmse, 1e6))

    quantized.from_message = careless


FAULTS: Mapping[str, Callable[[], None]] = {
    "raises": _raises,
    "amplifies": _amplifies,
    "sleeps": _sleeps,
    "lies": _lies,
}


# Where the planted faults lie, to be put right again.
_PLACES = (
    (tensors, "from_wire"),
    (quantized, "from_wire"),
    (quantized, "from_message"),
    (wire, "decode_aggregate_request"),
    (treerequest, "decode_aggregate_request"),
)


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """The fault is there for as long as the block runs."""
    before = [(module, name, getattr(module, name)) for module, name in _PLACES]
    FAULTS[fault]()
    try:
        yield
    finally:
        for module, name, right in before:
            setattr(module, name, right)


def command(fault: str) -> Sequence[str]:
    """Arguments of the interpreter for a server with `fault`."""
    return (__file__, fault)


def main(fault: str) -> int:
    """Serve with `fault`."""
    sys.path[0] = str(ROOT / "tests" / "service")
    import service_fakes

    FAULTS[fault]()
    return service_fakes.serve(0.0, "exact")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
