"""The service asked directly, in JSON, for what a page should show; files that it is given."""

from __future__ import annotations

import array
import json
import struct
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ask(url: str, path: str, value: object) -> Any:
    """The JSON answer to a JSON request."""
    request = urllib.request.Request(
        url + path,
        json.dumps(value).encode(),
        {"content-type": "application/json", "accept": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def decoded(url: str, message: bytes) -> list[float]:
    """The float32 values of a message, by the service."""
    request = urllib.request.Request(
        url + "/dequantize",
        message,
        {"content-type": "application/vnd.msgpack"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        body = answer.read()
    # A tensor has three keys; its data is the only bin, and the longest part by far.
    at = body.index(b"\xa4data") + 5
    lengths = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
    form = lengths[body[at]]
    (length,) = struct.unpack_from(form, body, at + 1)
    start = at + 1 + struct.calcsize(form)
    return list(array.array("f", body[start : start + length]))


def npy(path: Path, descr: str, values: Sequence[float], *, fortran: bool = False) -> Path:
    """Write an .npy file of one or, in Fortran order, two dimensions."""
    shape = f"({len(values) // 2}, 2)" if fortran else f"({len(values)},)"
    head = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    letter = {"f2": "e", "f4": "f", "f8": "d", "i4": "i"}[descr[1:]]
    body = struct.pack(f"<{len(values)}{letter}", *values)
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + body)
    return path


def text_of(number: float) -> str:
    """A number as the page writes it: three digits."""
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e5:
        rounded = float(f"{number:.3g}")
        return str(int(rounded)) if rounded == int(rounded) else repr(rounded)
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"
