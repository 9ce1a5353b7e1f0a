"""Worker threads for kernels: a bounded queue, abandoned jobs dropped, drain in order.

Kernels release the GIL, so threads compute in parallel without copying a vector to
another process.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from quiver_kernels import sharing
from quiver_service.errors import ServiceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    call: Callable[[], Any]
    future: Future[Any]


class WorkerPool:
    """A fixed number of threads and a queue of at most `queue_size` waiting jobs.

    Parameters
    ----------
    threads
        Jobs that run at the same time.
    queue_size
        Jobs that may wait beyond those; `submit` refuses more.
    """

    def __init__(self, threads: int, queue_size: int) -> None:
        self.threads = threads
        self.queue_size = queue_size
        self._waiting: deque[_Job] = deque()
        # What running jobs let idle threads do; in turn, one step at a time, after all jobs.
        self._lent: deque[Callable[[], bool]] = deque()
        self._running = 0
        self._closing = False
        self._changed = threading.Condition()
        self._workers: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; a second call does nothing."""
        with self._changed:
            if self._workers or self._closing:
                return
            self._workers = [
                # Daemons: a kernel that outlives the grace time must not keep the process.
                threading.Thread(target=self._work, name=f"quiver-worker-{i}", daemon=True)
                for i in range(self.threads)
            ]
        for worker in self._workers:
            worker.start()

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that run."""
        return self._running

    @property
    def alive(self) -> bool:
        """Whether every thread is there."""
        return bool(self._workers) and all(worker.is_alive() for worker in self._workers)

    def check_room(self) -> None:
        """Raise ``busy`` or ``draining`` if `submit` would refuse a job now."""
        with self._changed:
            self._check_room()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue `call`; its future can be cancelled until a thread takes it.

        Raises
        ------
        ServiceError
            ``busy``: the queue is full; ``draining``: the pool is closing.
        """
        future: Future[T] = Future()
        with self._changed:
            self._check_room()
            self._waiting.append(_Job(call, future))
            self._changed.notify()
        future.add_done_callback(self._forget)
        return future

    @contextlib.contextmanager
    def lend(self, step: Callable[[], bool]) -> Iterator[None]:
        """Let threads without a job call `step` while the context lasts.

        They look for a waiting job after every step, so a step should be short.
        """
        with self._changed:
            self._lent.append(step)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed, contextlib.suppress(ValueError):
                self._lent.remove(step)

    def close(self, timeout: float) -> bool:
        """Refuse new jobs, wait for those that are here, stop the threads.

        Returns
        -------
        bool
            Whether all jobs finished within `timeout` seconds; those that wait after it
            are cancelled, those that run are left behind.
        """
        with self._changed:
            self._closing = True
            finished = self._changed.wait_for(
                lambda: not self._waiting and not self._running, timeout
            )
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            job.future.cancel()
        if finished:
            for worker in self._workers:
                worker.join(timeout=1.0)
        return finished

    def _check_room(self) -> None:
        if self._closing:
            raise ServiceError("draining", "the service is shutting down; try another replica")
        idle = self.threads - self._running
        if len(self._waiting) >= self.queue_size + idle:
            raise ServiceError(
                "busy",
                f"{self._running} requests are being computed and {len(self._waiting)} wait; "
                "try again",
                limit=self.queue_size,
                got=len(self._waiting) + 1,
                setting="QUIVER_QUEUE_SIZE",
            )

    def _forget(self, done: Future[Any]) -> None:
        # A cancelled job leaves the queue at once, so that its place and buffers are free.
        if not done.cancelled():
            return
        with self._changed:
            for job in self._waiting:
                if job.future is done:
                    self._waiting.remove(job)
                    self._changed.notify_all()
                    return

    def _work(self) -> None:
        while (job := self._take()) is not None:
            try:
                with sharing.helped_by(self):
                    _run(job)
            finally:
                # The name would keep the job's buffers until the next one comes.
                del job
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _take(self) -> _Job | None:
        """The next job, with steps of other threads' jobs until it comes; None: no more come."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing or self._lent)
                if self._waiting:
                    self._running += 1
                    return self._waiting.popleft()
                if not self._lent:
                    return None
                step = self._lent[0]
                self._lent.rotate(-1)
            if not step():
                with self._changed, contextlib.suppress(ValueError):
                    self._lent.remove(step)
            # The name would keep the vector until the next job comes.
            del step


def _run(job: _Job) -> None:
    future = job.future
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job.call()
    except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
        future.set_exception(error)
        # The error's traceback holds this frame, and the future holds the error.
        del job, future
    else:
        future.set_result(result)
