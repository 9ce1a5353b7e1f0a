"""A name that a client sends is looked up in a table, and never given to NumPy to interpret.

NumPy reads far more than type names: byte orders, structures, objects, sizes of gigabytes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.messages import (
    aggregate_request,
    levels_answer,
    packed,
    quantize_request,
    quantized,
    tensor,
)

from quiver_kernels import QuantizedVector, tensors, wire
from quiver_kernels.dtypes import WIRE_DTYPES

ROOT = Path(__file__).parents[2]
SOURCES = ("kernels/quiver_kernels", "service/quiver_service", "clients/python/quiver_client")
# A name that only the table knows: NumPy would refuse it.
OURS = "no name of NumPy's"

FLOATS = tensor(np.arange(6, dtype=np.float32), OURS)


def read_requests(fields: dict[str, Any]) -> Any:
    return wire.decode_quantize_request(packed(fields)).vector


READERS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: wire.decode_tensor(packed(FLOATS)),
    "vector": lambda: read_requests(quantize_request(vector=FLOATS, weights=None)),
    "weights": lambda: (
        wire.decode_quantize_request(
            packed(quantize_request(vector=FLOATS, weights=FLOATS))
        ).weights
    ),
    "levels": lambda: (
        wire.decode_levels(
            packed(levels_answer(levels=tensor(np.arange(3, dtype=np.float32), OURS)))
        ).levels
    ),
    "quantized": lambda: QuantizedVector.from_bytes(packed(quantized(dtype=OURS))).levels,
    "aggregate": lambda: (
        wire.decode_aggregate_request(
            packed(aggregate_request(vectors=[quantized(dtype=OURS)], weights=None))
        )
        .vectors[0]
        .levels
    ),
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIRE_DTYPES, OURS, np.dtype("<f4"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("known")
def test_a_name_that_numpy_does_not_know_is_enough(reader: str):
    assert READERS[reader]().dtype == np.float32


@pytest.mark.parametrize("reader", ["tensor", "vector", "weights"])
@pytest.mark.usefixtures("known")
def test_a_planted_reader_that_asks_numpy_is_found(reader: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensors, "from_wire", lambda name, field="dtype": np.dtype(name))

    with pytest.raises(TypeError, match="not understood"):
        READERS[reader]()


def asked_of_numpy(source: str) -> Iterator[int]:
    """Lines that make a NumPy type of anything but what the code itself names."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "dtype"
            and not all(named_in_code(argument) for argument in node.args)
        ):
            yield node.lineno


def named_in_code(argument: ast.expr) -> bool:
    """Whether it is a literal, a type such as `np.float32`, or a literal with an item size."""
    if isinstance(argument, ast.List | ast.Tuple):
        return all(named_in_code(element) for element in argument.elts)
    if isinstance(argument, ast.JoinedStr):
        sizes = [part for part in argument.values if isinstance(part, ast.FormattedValue)]
        return all(
            isinstance(size.value, ast.Attribute) and size.value.attr == "itemsize"
            for size in sizes
        )
    return isinstance(argument, ast.Constant | ast.Attribute)


def test_types_are_made_of_names_in_the_code_only():
    found = {
        f"{file.relative_to(ROOT)}:{line}"
        for source in SOURCES
        for file in (ROOT / source).rglob("*.py")
        for line in asked_of_numpy(file.read_text())
    }

    assert found == set()


@pytest.mark.parametrize("planted", ["np.dtype(name)", "np.dtype(f'<{name}')", "np.dtype(m['t'])"])
def test_a_planted_type_of_a_variable_is_found(planted: str):
    assert list(asked_of_numpy(f"x = 1\ny = {planted}\n")) == [2]
    assert list(asked_of_numpy("y = np.dtype('<f4'), np.dtype(np.float32)\n")) == []
