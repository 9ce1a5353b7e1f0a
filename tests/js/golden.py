"""Every message that must be readable for ever, with the numbers that it stands for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]


def golden() -> Iterator[tuple[str, bytes, list[float]]]:
    """Name, message and decoded values, of every golden quantized vector."""
    for path in sorted((TESTS / "schemes" / "golden").glob("*.json")):
        for case in json.loads(path.read_text()):
            name = f"{path.stem}: {case['name']}"
            yield name, base64.b64decode(case["message"]), case["decoded"]
    vectors = sorted((TESTS / "wire" / "golden").glob("vector-*.msgpack"))
    for path in [*vectors, *sorted((TESTS / "kernels" / "golden").glob("*.msgpack"))]:
        decoded = json.loads(path.with_suffix(".json").read_text())["decoded"]
        yield path.stem, path.read_bytes(), list(_flat(decoded))


def _flat(numbers: object) -> Iterator[float]:
    if isinstance(numbers, list):
        for item in numbers:
            yield from _flat(item)
    else:
        assert isinstance(numbers, int | float)
        yield float(numbers)
