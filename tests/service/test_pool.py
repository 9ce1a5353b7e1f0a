"""The worker pool: bounded, in order, and untroubled by jobs that fail or are abandoned."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from quiver_kernels import sharing
from quiver_service.errors import ServiceError
from quiver_service.pool import WorkerPool


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(threads=1, queue_size=2)
    made.start()
    yield made
    made.close(1.0)


class Gate:
    """A job that waits until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self._open.wait(10)
        return "passed"

    def open(self) -> None:
        self._open.set()


def test_results_come_back(pool: WorkerPool):
    assert [pool.submit(lambda i=i: i * i).result(5) for i in range(5)] == [0, 1, 4, 9, 16]


def test_jobs_run_in_named_threads(pool: WorkerPool):
    assert pool.submit(lambda: threading.current_thread().name).result(5) == "quiver-worker-0"


def test_a_full_queue_is_busy_and_frees_again(pool: WorkerPool):
    gate = Gate()
    running = pool.submit(gate)
    assert gate.entered.wait(5)
    waiting = [pool.submit(lambda: 1) for _ in range(2)]
    assert (pool.running, pool.depth) == (1, 2)

    with pytest.raises(ServiceError) as refused:
        pool.submit(lambda: 1)
    with pytest.raises(ServiceError):
        pool.check_room()

    assert refused.value.code == "busy"
    gate.open()
    assert running.result(5) == "passed"
    assert [job.result(5) for job in waiting] == [1, 1]
    pool.check_room()


def test_without_a_queue_an_idle_thread_still_takes_a_job():
    pool = WorkerPool(threads=1, queue_size=0)
    pool.start()
    gate = Gate()

    first = pool.submit(gate)
    assert gate.entered.wait(5)
    with pytest.raises(ServiceError):
        pool.submit(lambda: 1)

    gate.open()
    assert first.result(5) == "passed"
    assert pool.close(5)


def test_a_job_that_raises_fails_alone(pool: WorkerPool):
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(5)
    with pytest.raises(SystemExit):
        pool.submit(lambda: exec("raise SystemExit")).result(5)

    assert pool.submit(lambda: "fine").result(5) == "fine"
    assert pool.alive


def test_an_abandoned_job_never_runs_and_gives_up_its_place(pool: WorkerPool):
    gate, ran = Gate(), threading.Event()
    running = pool.submit(gate)
    assert gate.entered.wait(5)
    abandoned = pool.submit(ran.set)

    assert abandoned.cancel()

    assert pool.depth == 0
    gate.open()
    running.result(5)
    pool.submit(lambda: None).result(5)
    assert not ran.is_set()


def test_a_running_job_cannot_be_abandoned(pool: WorkerPool):
    gate = Gate()
    running = pool.submit(gate)
    assert gate.entered.wait(5)

    assert not running.cancel()

    gate.open()
    assert running.result(5) == "passed"


def test_closing_finishes_what_is_here_and_refuses_more(pool: WorkerPool):
    gate = Gate()
    jobs = [pool.submit(gate), pool.submit(lambda: "second")]
    assert gate.entered.wait(5)
    closed: list[bool] = []
    closing = threading.Thread(target=lambda: closed.append(pool.close(5)))
    closing.start()
    while not pool._closing:
        pass

    with pytest.raises(ServiceError) as refused:
        pool.submit(lambda: 1)
    gate.open()
    closing.join(5)

    assert refused.value.code == "draining"
    assert closed == [True]
    assert [job.result(0) for job in jobs] == ["passed", "second"]


def test_closing_drops_what_waits_when_time_is_up(pool: WorkerPool):
    gate = Gate()
    running = pool.submit(gate)
    assert gate.entered.wait(5)
    waiting = pool.submit(lambda: 1)

    assert not pool.close(0.01)

    assert waiting.cancelled()
    gate.open()
    assert running.result(5) == "passed"


@pytest.mark.parametrize("fails", [False, True])
def test_a_finished_job_holds_no_memory(pool: WorkerPool, fails: bool):
    """Without help of the cyclic collector: large buffers must go at once."""
    array = np.zeros(10)
    alive = weakref.ref(array)

    def job(held: np.ndarray = array) -> int:
        if fails:
            raise ValueError("on purpose")
        return held.size

    gc.collect()
    gc.disable()
    try:
        future = pool.submit(job)
        if fails:
            with pytest.raises(ValueError, match="on purpose"):
                future.result(5)
        else:
            assert future.result(5) == 10
        del future, job, array
        # The thread is past the job when it has done the next one.
        pool.submit(lambda: None).result(5)
        assert alive() is None
    finally:
        gc.enable()


def test_idle_threads_help_a_running_job():
    pool = WorkerPool(threads=2, queue_size=0)
    pool.start()
    # Every part waits for the other: only two threads at once can finish.
    meeting = threading.Barrier(2, timeout=10)

    def meet(part: int) -> str:
        meeting.wait()
        return threading.current_thread().name

    names = pool.submit(lambda: sharing.run_parts([0, 1], meet)).result(15)

    assert sorted(names) == ["quiver-worker-0", "quiver-worker-1"]
    assert not pool._lent
    assert pool.close(5)


def test_a_job_does_not_wait_for_threads_that_are_busy():
    pool = WorkerPool(threads=2, queue_size=0)
    pool.start()
    gate = Gate()
    busy = pool.submit(gate)
    assert gate.entered.wait(5)

    alone = pool.submit(lambda: sharing.run_parts(range(20), lambda i: i * i)).result(5)

    assert alone == [i * i for i in range(20)]
    gate.open()
    assert busy.result(5) == "passed"
    assert pool.close(5)


def test_a_waiting_job_comes_before_help():
    pool = WorkerPool(threads=2, queue_size=0)
    pool.start()
    helping, job_done = threading.Event(), threading.Event()

    def run_pass() -> None:
        mine = threading.get_ident()

        def part(number: int) -> None:
            if threading.get_ident() != mine:
                helping.set()
            elif number > 0:
                # The helper alone goes on, without an end unless it leaves for the job.
                assert job_done.wait(10)
                raise InterruptedError

        sharing.run_parts(range(10**9), part)

    lender = pool.submit(run_pass)
    assert helping.wait(5)
    pool.submit(job_done.set).result(5)

    with pytest.raises(InterruptedError):
        lender.result(5)
    assert pool.close(5)


def test_a_step_that_failed_reaches_the_job_and_not_its_helpers():
    pool = WorkerPool(threads=3, queue_size=0)
    pool.start()

    def fail(part: int) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError, match="0"):
        pool.submit(lambda: sharing.run_parts(range(8), fail)).result(5)

    assert pool.alive
    assert pool.submit(lambda: 1).result(5) == 1
    assert pool.close(5)


def test_a_closing_pool_lets_a_pass_end():
    pool = WorkerPool(threads=2, queue_size=0)
    pool.start()
    started = threading.Event()

    def part(number: int) -> int:
        started.set()
        return number

    job = pool.submit(lambda: sharing.run_parts(range(2000), part))
    assert started.wait(5)

    assert pool.close(10)
    assert job.result(0) == list(range(2000))
