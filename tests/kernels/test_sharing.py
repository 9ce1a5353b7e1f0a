"""Passes shared among threads: the same results, whoever helps, and nobody waits in vain."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.support.strategies import DTYPES

import quiver_kernels as qk
from quiver_kernels import sharing
from quiver_kernels.cpu import chunking


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
