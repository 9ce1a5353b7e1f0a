"""The worker pool: bounded, in order, and untroubled by jobs that fail or are abandoned."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from quiver_kernels import sharing
from quiver_kernels.errors import InvalidInput, Stopped
from quiver_kernels.stopping import checkpoint
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
    assert running.unwanted
    gate.open()
    assert running.result(5) is None


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


# -- lost threads and unexpected failures ---------------------------------------------------


def kill(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread, wherever it is."""
    assert thread.ident is not None
    reached = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    )
    assert reached == 1


class Tries:
    """A job that fails `failures` times, then gives its threads' names."""

    def __init__(self, failures: int, error: type[BaseException]) -> None:
        self.names: list[str] = []
        self._failures = failures
        self._error = error

    def __call__(self) -> list[str]:
        self.names.append(threading.current_thread().name)
        if len(self.names) <= self._failures:
            raise self._error
        return self.names


def test_an_unexpected_failure_is_tried_again(pool: WorkerPool):
    job = Tries(1, ZeroDivisionError)

    assert len(pool.submit(job).result(5)) == 2
    assert pool.retries == 1
    assert pool.restarts == 0


def test_the_second_failure_is_the_answer(pool: WorkerPool):
    job = Tries(2, ZeroDivisionError)

    with pytest.raises(ZeroDivisionError):
        pool.submit(job).result(5)

    assert len(job.names) == 2


@pytest.mark.parametrize(
    "error",
    [InvalidInput("on purpose", code="non_finite"), ServiceError("busy", "later"), MemoryError()],
)
def test_an_answer_is_not_tried_again(pool: WorkerPool, error: Exception):
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        pool.submit(fail).result(5)

    assert calls == [1]
    assert pool.retries == 0


def test_a_lost_thread_is_replaced_and_its_job_done_by_another():
    pool = WorkerPool(threads=2, queue_size=2)
    pool.start()
    job = Tries(1, SystemExit)

    assert len(pool.submit(job).result(5)) == 2

    assert (pool.restarts, pool.retries, pool.alive) == (1, 1, True)
    assert pool.close(5)


def test_a_job_that_loses_its_threads_twice_is_given_up(pool: WorkerPool):
    job = Tries(2, SystemExit)

    with pytest.raises(ServiceError) as given_up:
        pool.submit(job).result(5)

    assert given_up.value.code == "internal"
    assert pool.submit(lambda: "fine").result(5) == "fine"
    assert pool.restarts == 2
    assert pool.alive


@pytest.mark.parametrize("busy", [False, True])
def test_a_thread_killed_from_outside_is_replaced(pool: WorkerPool, busy: bool):
    stop = threading.Event()

    def wait() -> str:
        # In short steps: an error from outside is seen between two of them.
        while not stop.wait(0.01):
            pass
        return "done"

    victim = next(thread for thread in pool._workers if thread.name == "quiver-worker-0")
    running = pool.submit(wait) if busy else None
    if busy:
        while pool.running == 0:
            pass
    kill(victim)
    if not busy:
        # A waiting thread sees it when it wakes.
        pool.submit(lambda: None)
    victim.join(5)

    assert not victim.is_alive()
    stop.set()
    if running is not None:
        assert running.result(5) == "done"
    assert pool.submit(lambda: "fine").result(5) == "fine"
    assert (pool.restarts, pool.alive) == (1, True)


def test_a_pool_that_replaces_nobody_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """The control: without replacement the same loss leaves a pool that cannot work."""
    pool = WorkerPool(threads=1, queue_size=2)
    pool.start()
    monkeypatch.setattr(pool, "_start_worker", lambda *_, **__: None)

    pool.submit(Tries(1, SystemExit))
    with pytest.raises(TimeoutError):
        pool.submit(lambda: "fine").result(0.2)

    assert not pool.alive


# -- small jobs ------------------------------------------------------------------------------


def test_a_small_job_does_not_wait_for_large_ones(pool: WorkerPool):
    gate = Gate()
    large = [pool.submit(gate), pool.submit(lambda: "large")]
    assert gate.entered.wait(5)

    name = pool.submit(lambda: threading.current_thread().name, small=True).result(5)

    assert name == "quiver-worker-small"
    assert not large[1].done()
    gate.open()


def test_large_jobs_keep_their_turn_beside_many_small_ones(pool: WorkerPool):
    gates = [Gate(), Gate()]
    pool.submit(gates[0])
    pool.submit(gates[1], small=True)
    assert all(gate.entered.wait(5) for gate in gates)
    order: list[str] = []
    jobs = [
        pool.submit(lambda name=name: order.append(name), small=name.startswith("small"))
        for name in ("small 1", "large", "small 2")
    ]
    # The thread for small jobs stays busy: the other one takes all three, first come first served.
    gates[0].open()
    for job in jobs:
        job.result(5)

    assert order == ["small 1", "large", "small 2"]
    gates[1].open()


def test_small_and_large_jobs_fill_queues_of_their_own(pool: WorkerPool):
    gates = [Gate(), Gate()]
    pool.submit(gates[0])
    pool.submit(gates[1], small=True)
    assert all(gate.entered.wait(5) for gate in gates)
    for _ in range(2):
        pool.submit(lambda: 1)

    with pytest.raises(ServiceError):
        pool.check_room()
    pool.check_room(small=True)
    for _ in range(2):
        pool.submit(lambda: 1, small=True)
    with pytest.raises(ServiceError) as refused:
        pool.submit(lambda: 1, small=True)

    assert "small" in refused.value.detail
    assert (pool.depth, pool.depth_small) == (4, 2)
    for gate in gates:
        gate.open()


# -- stopping --------------------------------------------------------------------------------


def test_an_abandoned_job_stops_at_its_next_checkpoint(pool: WorkerPool):
    begun, passed = threading.Event(), []

    def work() -> None:
        while True:
            checkpoint()
            passed.append(1)
            begun.set()
            time.sleep(0.001)

    job = pool.submit(work)
    assert begun.wait(5)

    job.abandon()

    with pytest.raises(Stopped):
        job.result(5)
    assert pool.stopped == 1
    assert pool.submit(lambda: "fine").result(5) == "fine"
