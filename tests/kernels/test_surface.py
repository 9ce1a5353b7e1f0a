"""The package as its users meet it: what imports what, and what is documented and typed."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import quiver_kernels as qk

FUNCTIONS = [getattr(qk, name) for name in qk.__all__ if inspect.isfunction(getattr(qk, name))]
CLASSES = [getattr(qk, name) for name in qk.__all__ if inspect.isclass(getattr(qk, name))]
METHODS = [
    member
    for owner in CLASSES
    for name, member in inspect.getmembers(owner, inspect.isroutine)
    if not name.startswith("_") and getattr(member, "__module__", "").startswith("quiver_kernels")
]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )


def test_importing_loads_no_compiler():
    done = run(
        "import sys, quiver_kernels\n"
        "loaded = {'numba', 'cupy', 'llvmlite'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )

    assert done.returncode == 0, done.stderr


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import numpy as np
import quiver_kernels as qk
from quiver_kernels import dispatch, wire

with open({path!r}, "rb") as file:
    blob = file.read()
q = qk.QuantizedVector.from_bytes(blob)
y = qk.dequantize(q)
assert y.shape == q.shape and y.dtype == np.float32
assert np.array_equal(qk.aggregate([q, q], [1, 3]), y)
assert qk.expected_mse([0.0, 1.0, 2.0], [0.0, 2.0]) == 1 / 3
assert q.to_bytes() == blob
assert dispatch.available() == {{"cpu": False, "gpu": False}}
for call in (
    lambda: qk.quantize([1.0]),
    lambda: qk.optimal_levels([1.0], device="cpu"),
):
    try:
        call()
    except qk.BackendUnavailable as error:
        assert "quiver-kernels[cpu]" in str(error), error
        assert error.code == "device_unavailable"
    else:
        raise AssertionError("quantized without a compiler")
"""


def test_decoding_needs_no_compiler(tmp_path: Path):
    q = qk.quantize([[1, 2.5, 3], [4, 5, 6]], num_levels=3, seed=1, block_size=4)
    blob = qk.QuantizedVector.from_bytes(
        qk.quantize(qk.dequantize(q).astype("float32"), bits=3, seed=2).to_bytes()
    ).to_bytes()
    path = tmp_path / "quantized.msgpack"
    path.write_bytes(blob)
    done = run(WITHOUT_NUMBA.format(path=str(path)))

    assert done.returncode == 0, done.stderr


def test_the_public_names():
    assert set(qk.__all__) == {
        "BackendUnavailable",
        "BitPlan",
        "GridLevels",
        "IntegerSum",
        "InvalidInput",
        "MalformedMessage",
        "QuantizeOptions",
        "QuantizedTree",
        "QuantizedVector",
        "QuiverError",
        "Sketch",
        "Stopped",
        "__version__",
        "aggregate",
        "block_statistics",
        "dequantize",
        "expected_mse",
        "grid_levels",
        "optimal_levels",
        "plan",
        "quantize",
        "qvr",
        "sign_quantize",
        "stopping_when",
    }
    assert qk.__version__.count(".") == 2


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_are_documented(function):
    text = inspect.getdoc(function)
    signature = inspect.signature(function)

    assert text
    assert "Returns\n-------" in text
    assert "Parameters\n----------" in text
    for name in signature.parameters:
        assert name in text, f"{function.__name__}: {name} is not described"


@pytest.mark.parametrize("owner", CLASSES, ids=lambda c: c.__name__)
def test_classes_and_their_members_are_documented(owner):
    members = [
        (name, member)
        for name, member in vars(owner).items()
        if not name.startswith("_")
        and (callable(member) or isinstance(member, property | classmethod))
    ]

    assert inspect.getdoc(owner)
    for name, member in members:
        assert inspect.getdoc(member), f"{owner.__name__}.{name}"


@pytest.mark.parametrize(
    "owner", [qk.QuantizedVector, qk.QuantizeOptions], ids=lambda c: c.__name__
)
def test_attributes_are_documented(owner):
    text = inspect.getdoc(owner)

    assert all(name in text for name in typing.get_type_hints(owner))


@pytest.mark.parametrize("function", FUNCTIONS + METHODS, ids=lambda f: f.__qualname__)
def test_everything_public_is_typed(function):
    hints = typing.get_type_hints(function)
    parameters = [
        name for name in inspect.signature(function).parameters if name not in {"self", "cls"}
    ]

    assert "return" in hints
    assert set(parameters) <= set(hints)


def test_type_checkers_are_told():
    assert (Path(qk.__file__).parent / "py.typed").is_file()
