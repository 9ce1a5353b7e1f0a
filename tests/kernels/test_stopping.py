"""Stopping: soon, in every operation, whoever computes; and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels import options, sharing, stopping
from quiver_kernels.cpu import certified, chunking, exact, layers, sorting
from quiver_kernels.errors import Stopped
from quiver_kernels.options import METHODS

SIZE = 6000


class After:
    """Stops at the look number `count`; counts the looks and the threads that made them."""

    def __init__(self, count: float = float("inf")) -> None:
        self.count = count
        self.looks = 0
        self.threads: set[int] = set()

    def __call__(self) -> bool:
        self.looks += 1
        self.threads.add(threading.get_ident())
        return self.looks >= self.count


def vector(size: int = SIZE, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(size).normal(size=size).astype(dtype)


X = vector()
WEIGHTS = np.random.default_rng(1).random(SIZE)
Q = [qk.quantize(X, 3, "uniform", seed=seed) for seed in range(3)]
LEVELS = np.linspace(-9, 9, 16)


def quantized(method: str, weights: NDArray[Any] | None, block_size: int | None) -> bytes:
    return qk.quantize(X, 3, method, seed=1, weights=weights, block_size=block_size).to_bytes()


CALLS: dict[str, Callable[[], bytes]] = {
    f"quantize {method} {form}": partial(quantized, method, given, block)
    for method in METHODS
    for form, given, block in (
        ("", None, None),
        ("weighted", WEIGHTS, None),
        ("short blocks", WEIGHTS, 100),
        ("blocks", None, 2500),
    )
    if method != "simba" or not form
}
CALLS |= {
    "quantize 256 levels": lambda: qk.quantize(X, 8, seed=1).to_bytes(),
    "quantize on the grid": lambda: qk.quantize(
        X, 3, "approx", seed=1, grid="uniform", block_size=300
    ).to_bytes(),
    "levels": lambda: qk.optimal_levels(X, 8).tobytes(),
    "dequantize": lambda: qk.dequantize(Q[0]).tobytes(),
    "aggregate": lambda: qk.aggregate(Q).tobytes(),
    "expected_mse": lambda: str(qk.expected_mse(X, LEVELS, WEIGHTS)).encode(),
    "sketch": lambda: qk.Sketch.from_vector(X).to_bytes(),
}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass in many steps, and the ways of long vectors for short ones."""
    monkeypatch.setattr(chunking, "CHUNK", 1000)
    monkeypatch.setattr(stopping, "STEP", 1000)
    monkeypatch.setattr(sorting, "_WEIGHTED", 500)
    monkeypatch.setattr(sorting, "_ALONE", 500)
    monkeypatch.setattr(sorting, "_MERGED", 300)
    monkeypatch.setattr(exact, "LARGE_WORK", 3000)
    monkeypatch.setattr(certified, "_WORK", 2000)
    for name in ("_SINGLE", "_DOUBLE", "_BISECTED"):
        monkeypatch.setattr(layers, name, 3000)


def looks(call: Callable[[], object]) -> int:
    after = After()
    with stopping.stopping_when(after):
        call()
    return after.looks


def untimed(result: bytes) -> bytes:
    """A message without its timings, which differ from call to call."""
    return result.split(b"timings_ms")[0]


class Unset:
    """In the place of the context's variable: never set."""

    def get(self) -> None:
        return None

    def set(self, value: object) -> None:
        return None

    def reset(self, token: object) -> None:
        return None


@contextmanager
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without any checkpoint."""
    with monkeypatch.context() as patched:
        patched.setattr(stopping, "_should_stop", Unset())
        yield


@pytest.mark.parametrize("name", CALLS)
def test_a_stop_ends_every_operation_wherever_it_comes(name: str, small_steps: None) -> None:
    call = CALLS[name]
    before = untimed(call())
    total = looks(call)
    assert total >= 4
    for count in sorted({1, 2, total // 3, total // 2, total}):
        after = After(count)
        with pytest.raises(Stopped), stopping.stopping_when(after):
            call()
        # Nothing went on after the look that said so.
        assert after.looks == count
    assert untimed(call()) == before


@pytest.mark.parametrize("name", CALLS)
def test_steps_of_any_size_give_the_same(name: str, request: pytest.FixtureRequest) -> None:
    whole = CALLS[name]()
    request.getfixturevalue("small_steps")

    q = name.startswith("quantize")
    one, other = (qk.QuantizedVector.from_bytes(b) if q else b for b in (whole, CALLS[name]()))
    if isinstance(one, qk.QuantizedVector) and isinstance(other, qk.QuantizedVector):
        assert np.array_equal(one.levels, other.levels)
        assert np.array_equal(one.codes, other.codes)
    elif name != "expected_mse":
        assert one == other


# Looks per chunk: in the range, each pass over weights, the parts of a pass, and each column of
# its sums. One that is taken out is missed here.
PER_CHUNK: dict[str, tuple[float, Callable[[NDArray[Any]], object]]] = {
    "expected_mse": (5, lambda x: qk.expected_mse(x, LEVELS)),
    "expected_mse weighted": (7, lambda x: qk.expected_mse(x, LEVELS, np.abs(x))),
    "levels": (1, lambda x: qk.optimal_levels(x, 4, "uniform")),
    "uniform": (4, lambda x: qk.quantize(x, 2, "uniform", seed=1)),
    "uniform weighted": (8, lambda x: qk.quantize(x, 2, "uniform", seed=1, weights=np.abs(x))),
    "uniform in blocks": (6, lambda x: qk.quantize(x, 2, "uniform", seed=1, block_size=10)),
    "quantize and dequantize": (5, lambda x: qk.dequantize(qk.quantize(x, 2, "uniform", seed=1))),
    "quantize and aggregate": (8, lambda x: qk.aggregate([qk.quantize(x, 2, "uniform")] * 3)),
    "approx": (4, lambda x: qk.quantize(x, 2, "approx", seed=1)),
}


@pytest.mark.parametrize("name", PER_CHUNK)
def test_every_pass_looks_at_every_chunk(
    name: str, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate, call = PER_CHUNK[name]
    short, long = vector(5000), vector(64000)
    grown = looks(lambda: call(long)) - looks(lambda: call(short))
    # A few looks are between the passes, and those of a search differ.
    assert grown == pytest.approx(59 * rate, abs=3)
    # Control: without checkpoints none is counted, and a stop is not heeded.
    with deaf(monkeypatch):
        assert looks(lambda: call(long)) == 0
        with stopping.stopping_when(lambda: True):
            call(short)


@pytest.mark.parametrize("method", ["exact", "accelerated"])
def test_solvers_of_sorted_values_look_oftener_the_more_there_are(
    method: str, small_steps: None
) -> None:
    short, long = vector(4000), vector(64000)
    sort = 64000 // sorting._ALONE
    assert looks(lambda: qk.optimal_levels(long, 8, method)) > sort + 2 * looks(
        lambda: qk.optimal_levels(short, 8, method)
    )


def test_long_rows_of_a_grid_are_solved_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> NDArray[Any]:
        return qk.optimal_levels(X, 9, "approx", grid="uniform", bins=3000, block_size=2000)

    whole, few = call(), looks(call)
    monkeypatch.setattr(exact, "LARGE_WORK", 100)
    assert looks(call) > few + 9
    assert np.array_equal(call(), whole)


@pytest.mark.parametrize("name", ["quantize uniform ", "aggregate", "dequantize"])
def test_helpers_heed_the_stop_of_the_one_they_help(name: str, small_steps: None) -> None:
    call = CALLS[name]
    with sharing.threads(3):
        total = looks(call)
        for count in range(1, total + 1, 2):
            after = After(count)
            with pytest.raises(Stopped), stopping.stopping_when(after):
                call()
            # Parts begun by the others may have looked once more.
            assert after.looks <= count + 2
        assert looks(call) == total


def test_a_helper_looks_with_the_callers_eyes() -> None:
    after, meeting = After(), threading.Barrier(2, timeout=30)

    def work(part: int) -> None:
        meeting.wait()
        stopping.checkpoint()

    with sharing.threads(2), stopping.stopping_when(after):
        sharing.run_parts([0, 1], work)
    assert len(after.threads) == 2
    assert after.looks == 4


def test_no_helper_works_on_once_the_pass_has_ended() -> None:
    stop, begun = threading.Event(), threading.Barrier(3, timeout=30)
    running: list[int] = []

    def work(part: int) -> None:
        running.append(part)
        begun.wait()
        stop.set()
        threading.Event().wait(0.02)
        running.remove(part)

    with sharing.threads(3), stopping.stopping_when(stop.is_set):
        with pytest.raises(Stopped):
            sharing.run_parts(range(3000), work)
        assert running == []


def test_a_stop_from_around_is_heeded_inside() -> None:
    with stopping.stopping_when(lambda: True):
        with pytest.raises(Stopped), stopping.stopping_when(lambda: False):
            stopping.checkpoint()
        with stopping.obeying(None):
            stopping.checkpoint()
    stopping.checkpoint()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_long_vector_is_stopped_soon(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = vector(1 << (24 if streamed else 20))
    monkeypatch.setattr(options, "STREAM_FROM", 1 << 21)
    seen: list[float] = []

    def should_stop() -> bool:
        if time.perf_counter() - begun > 0.05:
            seen.append(time.perf_counter())
        return bool(seen)

    begun = time.perf_counter()
    with pytest.raises(Stopped), stopping.stopping_when(should_stop):
        qk.quantize(x, 8, seed=1)
    # It was due 50 ms after the beginning.
    assert time.perf_counter() - begun < 0.05 + 0.5
