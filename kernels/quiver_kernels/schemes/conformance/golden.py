"""Messages that were written once: later versions must decode them to the same bits.

One file for each scheme, JSON, with a list of cases: the message in base64, the vector and the
decoded values. A file is never rewritten; `write` adds the cases that are not there yet.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.subject import Subject, subjects
from quiver_kernels.schemes.contract import Scheme

_SEEDS = (7, 2**64 - 1)


def file_of(scheme: Scheme, folder: Path) -> Path:
    """Where a scheme's messages lie."""
    return folder / f"{scheme.name}.json"


def write(scheme: Scheme, folder: Path) -> int:
    """Write the cases that are not in the scheme's file yet; how many these were."""
    path = file_of(scheme, folder)
    cases = _read(path)
    known = {case["name"] for case in cases}
    new = [case for case in _cases(scheme) if case["name"] not in known]
    if new:
        lines = ",\n".join(json.dumps(case, allow_nan=False) for case in [*cases, *new])
        path.write_text(f"[\n{lines}\n]\n")
    return len(new)


def check(scheme: Scheme, folder: Path) -> Iterator[str]:
    """Every message decodes to the values that it decoded to; every choice has a message."""
    written = {case["name"] for case in _read(file_of(scheme, folder))}
    for name in sorted({name for name, _ in _made(scheme)} - written):
        yield f"there is no message for {name} in {folder.name}; write it once"
    yield from decodes(scheme, folder)


def decodes(scheme: Scheme, folder: Path) -> Iterator[str]:
    """The first half of `check`; encodes nothing, so it works where nothing can be compiled."""
    for case in _read(file_of(scheme, folder)):
        q = QuantizedVector.from_bytes(base64.b64decode(case["message"]))
        decoded = api.dequantize(q)
        wanted = np.array(case["decoded"]).astype(WIRE_DTYPES[q.dtype])
        if decoded.reshape(-1).tobytes() != wanted.tobytes():
            yield f"the message for {case['name']} decodes to other values than it did"
        if q.method != scheme.name:
            yield f"the message for {case['name']} is of method {q.method}"


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def _cases(scheme: Scheme) -> Iterator[dict[str, Any]]:
    for name, (subject, x, seed) in _made(scheme):
        q = replace(subject.quantize(x, seed), timings_ms={})
        yield {
            "name": name,
            "message": base64.b64encode(q.to_bytes()).decode(),
            "decoded": _numbers(api.dequantize(q)),
            "vector": _numbers(x),
        }


def _made(scheme: Scheme) -> Iterator[tuple[str, tuple[Subject, NDArray[Any], int]]]:
    """What there is a message for: every choice, of one type or the other; every type."""
    for number, subject in enumerate(subjects(scheme)):
        dtype = list(WIRE_DTYPES)[2 + number % 2]
        x = vectors.heavy(37, dtype, seed=number)
        yield f"{subject.label}, {dtype}", (subject, x, _SEEDS[number % 2])
        if number:
            continue
        for name in WIRE_DTYPES:
            x = vectors.normal(30, name).reshape(2, 3, 5)
            yield f"{subject.label}, {name} [2, 3, 5]", (subject, x, 11)


def _numbers(x: NDArray[Any]) -> list[float]:
    numbers: list[float] = x.astype(np.float64).reshape(-1).tolist()
    return numbers
