"""Passes shared among threads: the same results, whoever helps, and nobody waits in vain."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.strategies import DTYPES

import quiver_kernels as qk
from quiver_kernels import options, sharing, stopping
from quiver_kernels.cells import Cells, Cut
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu import chunking, exact, streaming
from quiver_kernels.partition import Partition, layout_of


class Busy:
    """Helpers that never come."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], bool]] = []

    @contextlib.contextmanager
    def lend(self, step: Callable[[], bool]) -> Iterator[None]:
        self.steps.append(step)
        yield


def results(threads: int | None) -> list[bytes | float]:
    found: list[bytes | float] = []
    for dtype in sorted(DTYPES):
        x = np.random.default_rng(5).normal(size=3000).astype(DTYPES[dtype])
        for bits in (1, 3, 4, 8):
            for block in (None, 37, 256):
                q = qk.quantize(x, bits, "uniform", seed=3, block_size=block, threads=threads)
                mean = qk.aggregate([q, q, q], [1, 2, 3], threads=threads)
                levels = np.array([-9.0, 0.0, 9.0])
                found += [q.codes.tobytes(), q.vnmse, mean.tobytes()]
                found += [qk.dequantize(q, threads=threads).tobytes()]
                found += [qk.expected_mse(x, levels, np.abs(x), threads=threads)]
    return found


def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunking, "CHUNK", 256)
    alone = results(1)

    assert results(2) == alone
    assert results(5) == alone
    assert results(None) == alone


def test_helpers_who_are_busy_are_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunking, "CHUNK", 256)
    alone = results(1)
    busy = Busy()
    with sharing.helped_by(busy):
        assert results(1) == alone

    assert busy.steps
    assert not any(step() for step in busy.steps)


def test_several_threads_take_part():
    # Every part waits for the other: only two threads at once can finish.
    meeting = threading.Barrier(2, timeout=30)

    def meet(part: int) -> int:
        meeting.wait()
        return threading.get_ident()

    with sharing.threads(2):
        assert len(set(sharing.run_parts([0, 1], meet))) == 2


def test_results_come_in_the_order_of_the_parts():
    second_done = threading.Event()

    def square(part: int) -> int:
        if part == 0:
            assert second_done.wait(30)
        elif part == 1:
            second_done.set()
        return part * part

    with sharing.threads(3):
        assert sharing.run_parts(range(50), square) == [i * i for i in range(50)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_earliest_error_is_raised_and_later_parts_are_left(threads: int):
    begun: list[int] = []

    def fail(part: int) -> None:
        begun.append(part)
        if part >= 3:
            raise ValueError(part)

    with sharing.threads(threads), pytest.raises(ValueError, match=r"^3$"):
        sharing.run_parts(range(1000), fail)
    assert max(begun) < 3 + threads


def test_a_part_begun_by_a_helper_is_waited_for():
    begun, done = threading.Event(), []

    def work(part: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(30)
            return
        begun.set()
        threading.Event().wait(0.05)
        done.append(part)

    with sharing.threads(2):
        sharing.run_parts([0, 1], work)
        assert len(done) == 1


def test_an_invalid_code_is_refused_whoever_finds_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunking, "CHUNK", 64)
    q = qk.quantize(np.arange(1000.0), num_levels=5, method="uniform", seed=1)
    spoiled = q.codes.copy()
    spoiled[200:] = 0xFF
    bad = dataclasses.replace(q, codes=spoiled)
    for threads in (1, 2, 5):
        with pytest.raises(qk.InvalidInput, match="got 7"):
            qk.dequantize(bad, threads=threads)


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(threads: int):
    with pytest.raises(qk.InvalidInput, match="threads") as caught:
        qk.quantize([1.0, 2.0], threads=threads)
    assert caught.value.code == "invalid_option"


# -- finding levels ----------------------------------------------------------------------

COLUMNS = ("index", "count", "whole", "part", "nearest", "farthest")


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short vectors take the ways of long ones: many chunks, cells that are cut up and collected.

    None is sorted after all.
    """
    monkeypatch.setattr(options, "STREAM_FROM", 0)
    monkeypatch.setattr(chunking, "CHUNK", 500)
    monkeypatch.setattr(stopping, "STEP", 500)
    monkeypatch.setattr(streaming, "CELLS", ((256, 128),))
    monkeypatch.setattr(streaming, "COLLECTED", 300)
    monkeypatch.setattr(exact, "solve_row", None)


def tables(threads: int | None) -> list[bytes]:
    """Levels by every way of finding them in passes."""
    found = []
    for dtype in sorted(DTYPES):
        x = np.random.default_rng(6).lognormal(size=5000).astype(DTYPES[dtype])
        for method, bits in (("exact", 2), ("exact", 4), ("approx", 4)):
            for weights in (None, np.arange(x.size) % 3):
                q = qk.quantize(x, bits, method, weights=weights, bins=64, seed=3, threads=threads)
                found.append(q.levels.tobytes() + q.codes.tobytes())
    return found


@pytest.mark.usefixtures("streamed")
def test_levels_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch):
    used = []
    for name in ("count", "collect", "refine"):
        call = getattr(counting, name)
        monkeypatch.setattr(
            counting, name, lambda *a, _n=name, _c=call, **k: used.append(_n) or _c(*a, **k)
        )
    alone = tables(1)

    assert set(used) == {"count", "collect", "refine"}
    for threads in (2, 4):
        assert tables(threads) == alone


def meet(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the first two calls of a kernel wait for each other: two threads have to take part."""
    kernel, calls, meeting = getattr(counting, name), itertools.count(), threading.Barrier(2)

    def met(*arguments: Any) -> Any:
        if next(calls) < 2:
            meeting.wait(30)
        return kernel(*arguments)

    monkeypatch.setattr(counting, name, met)


def chunks(dtype: type, size: int = 300) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    x = np.random.default_rng(2).normal(size=20 * size).astype(dtype)
    x[::7] = 0.5
    return [(part, np.empty(0)) for part in np.split(x, 20)]


def bounds(parts: Sequence[tuple[NDArray[Any], Any]]) -> tuple[float, float]:
    x = np.concatenate([values for values, _ in parts])
    return float(x.min()), float(x.max())


def counted(dtype: type) -> Cells:
    parts = chunks(dtype)
    low, high = bounds(parts)
    partition = Partition.of(low, high, 64, layout_of(np.dtype(dtype)))
    return counting.count(parts, partition, low, high)


def slowly(cells: Cells, parts: Sequence[tuple[NDArray[Any], Any]]) -> list[list[int]]:
    """Cell, number, exact sum, least and largest offset, with Python's integers."""
    index, offset = cells.partition.locate(np.concatenate([values for values, _ in parts]))
    found = []
    for cell in np.unique(index):
        places = offset[index == cell].tolist()
        found.append([int(cell), len(places), sum(places), min(places), max(places)])
    return found


def rows(cells: Cells) -> list[list[int]]:
    bits = cells.partition.layout.offset_bits
    columns = zip(*(getattr(cells, name).tolist() for name in COLUMNS), strict=True)
    return [[i, n, (whole << bits) + part, a, b] for i, n, whole, part, a, b in columns]


@pytest.mark.parametrize("full", [1 << 23, 700])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tables_side_by_side_add_up(monkeypatch: pytest.MonkeyPatch, dtype: type, full: int):
    monkeypatch.setattr(counting, "_FULL", full)
    meet(monkeypatch, "count_cells")
    with sharing.threads(2):
        cells = counted(dtype)

    assert rows(cells) == slowly(cells, chunks(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_side_by_side_add_up(monkeypatch: pytest.MonkeyPatch, dtype: type):
    cut = Cut.of(counted(dtype), np.ones(counted(dtype).index.size, np.bool_), 3)
    alone = counting.count_pieces(chunks(dtype), cut)
    meet(monkeypatch, "tally_pieces")
    with sharing.threads(2):
        shared = counting.count_pieces(chunks(dtype), cut)

    assert rows(shared) == rows(alone)
    assert shared.size == 6000


def forget_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    finish, calls = counting._Counter.finish, itertools.count()
    monkeypatch.setattr(
        counting._Counter, "finish", lambda self: finish(self) if next(calls) == 0 else None
    )


def skip_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        counting, "run_parts", lambda parts, work: sharing.run_parts(parts[1:], work)
    )


def forget_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_join", lambda *_: None)


@pytest.mark.parametrize("fault", [forget_a_table, skip_a_part])
def test_what_is_left_out_is_noticed(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        test_tables_side_by_side_add_up(monkeypatch, np.float32, 1 << 23)


def test_pieces_that_are_left_out_are_noticed(monkeypatch: pytest.MonkeyPatch):
    forget_pieces(monkeypatch)
    with pytest.raises(AssertionError):
        test_pieces_side_by_side_add_up(monkeypatch, np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_value_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch, threads: int):
    monkeypatch.setattr(stopping, "STEP", 100)
    x = np.zeros(5000)
    x[[1234, 1250, 1301, 4000]] = np.nan, np.inf, -np.inf, np.nan
    with pytest.raises(qk.InvalidInput, match=r"got nan at index 1234$"):
        qk.quantize(x, 4, "uniform", threads=threads)


def test_no_more_things_to_work_in_are_made_than_allowed():
    at_once, most = [], 0
    scratch = sharing.Scratch(3, list[int])
    together = threading.Barrier(3)

    def work(part: int) -> None:
        nonlocal most
        with scratch.one() as own:
            at_once.append(part)
            most = max(most, len(at_once))
            own.append(part)
            together.wait(10)
            at_once.remove(part)

    with sharing.threads(8):
        sharing.run_parts(range(60), work)
    assert most <= 3
    assert len(scratch.made) <= 3
    assert sorted(itertools.chain.from_iterable(scratch.made)) == list(range(60))


def test_one_thread_makes_one_thing_and_failures_give_it_back():
    scratch = sharing.Scratch(1, list[int])
    for _ in range(3):
        with pytest.raises(ValueError, match="on purpose"), scratch.one():
            raise ValueError("on purpose")
    with scratch.one() as own:
        assert scratch.made == [own]
