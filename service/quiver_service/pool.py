"""Worker threads for kernels: bounded queues, abandoned jobs dropped, lost threads replaced.

Kernels release the GIL, so threads compute in parallel without copying a vector to
another process. One thread more than asked for takes small jobs only: however many large ones
are being computed, a small one waits for small ones, and shares the processors with the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from quiver_kernels import sharing
from quiver_service.errors import ServiceError
from quiver_service.job import Job
from quiver_service.logs import Logger

T = TypeVar("T")


class WorkerPool:
    """A fixed number of threads and two queues of at most `queue_size` waiting jobs each.

    Jobs start in the order in which they came, small and large alike; small ones may start
    earlier, on the thread that takes no others.

    Parameters
    ----------
    threads
        Jobs of any size that run at the same time.
    queue_size
        Jobs that may wait beyond those, large and small counted apart; `submit` refuses more.
    logger
        Told of lost threads and of jobs that are tried again.
    """

    def __init__(self, threads: int, queue_size: int, logger: Logger | None = None) -> None:
        self.threads = threads
        self.queue_size = queue_size
        self.restarts = 0
        self.retries = 0
        self.stopped = 0
        self._logger = logger
        self._numbers = itertools.count()
        self._large: deque[tuple[int, Job]] = deque()
        self._small: deque[tuple[int, Job]] = deque()
        # What jobs, and requests that still arrive, let idle threads do; in turn, one step at a
        # time, after all jobs.
        self._lent: deque[Callable[[], bool]] = deque()
        self._current: dict[threading.Thread, Job] = {}
        self._closing = False
        self._lock = threading.Lock()
        # Threads for any job, and the one for small jobs, wait apart: a wake-up is not cheap.
        self._any_job = threading.Condition(self._lock)
        self._small_job = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._workers: set[threading.Thread] = set()

    def start(self) -> None:
        """Start the threads; a second call does nothing."""
        with self._lock:
            if self._workers or self._closing:
                return
            for number in range(self.threads):
                self._start_worker(f"quiver-worker-{number}", small_only=False)
            self._start_worker("quiver-worker-small", small_only=True)

    @property
    def depth(self) -> int:
        """Jobs that wait, of any size."""
        return len(self._large) + len(self._small)

    @property
    def depth_small(self) -> int:
        """Small jobs that wait."""
        return len(self._small)

    @property
    def running(self) -> int:
        """Jobs that run."""
        return len(self._current)

    @property
    def alive(self) -> bool:
        """Whether every thread is there."""
        workers = list(self._workers)
        return len(workers) == self.threads + 1 and all(worker.is_alive() for worker in workers)

    def check_room(self, *, small: bool = False) -> None:
        """Raise ``busy`` or ``draining`` if `submit` would refuse a job now."""
        with self._lock:
            self._check_room(small)

    def submit(self, call: Callable[[], T], *, small: bool = False) -> Job:
        """Queue `call`.

        Parameters
        ----------
        call
            Pure: it is made again if a thread is lost, or fails unexpectedly, while it runs.
        small
            Whether it is done in a few milliseconds.

        Returns
        -------
        Job
            Its future result; `abandon` gives it up.

        Raises
        ------
        ServiceError
            ``busy``: the queue is full; ``draining``: the pool is closing.
        """
        job = Job(call, small=small)
        with self._lock:
            self._check_room(small)
            self._queue_of(job).append((next(self._numbers), job))
            self._wake(job)
        job.add_done_callback(self._forget)
        return job

    @contextlib.contextmanager
    def lend(self, step: Callable[[], bool]) -> Iterator[None]:
        """Let threads without a job call `step` while the context lasts.

        They look for a waiting job after every step, so a step should be short.
        """
        with self._lock:
            self._lent.append(step)
            self._any_job.notify_all()
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._lent.remove(step)

    def offer(self, step: Callable[[], bool]) -> None:
        """Let a thread without a job call `step` until it returns False; once at a time."""
        with self._lock:
            if step not in self._lent:
                self._lent.append(step)
                self._any_job.notify()

    def withdraw(self, step: Callable[[], bool]) -> None:
        """Have nobody begin with a step that was offered any more."""
        with self._lock, contextlib.suppress(ValueError):
            self._lent.remove(step)

    def close(self, timeout: float) -> bool:
        """Refuse new jobs, wait for those that are here, stop the threads.

        Returns
        -------
        bool
            Whether all jobs finished within `timeout` seconds. Those that wait after it are
            cancelled; those that run are told to stop, and left behind if they do not.
        """
        with self._lock:
            self._closing = True
            finished = self._ended.wait_for(lambda: not self.depth and not self.running, timeout)
            left = [job for _, job in (*self._large, *self._small)]
            self._large.clear()
            self._small.clear()
            left += self._current.values()
            workers = list(self._workers)
            self._any_job.notify_all()
            self._small_job.notify_all()
        for job in left:
            job.abandon()
        if finished:
            for worker in workers:
                worker.join(timeout=1.0)
        return finished

    def _queue_of(self, job: Job) -> deque[tuple[int, Job]]:
        return self._small if job.small else self._large

    def _check_room(self, small: bool) -> None:
        if self._closing:
            raise ServiceError("draining", "the service is shutting down; try another replica")
        waiting = len(self._small if small else self._large)
        idle = self.threads + int(small) - len(self._current)
        if waiting >= self.queue_size + max(idle, 0):
            which = "small requests" if small else "requests"
            raise ServiceError(
                "busy",
                f"{len(self._current)} requests are being computed and {waiting} {which} wait; "
                "try again",
                limit=self.queue_size,
                got=waiting + 1,
                setting="QUIVER_QUEUE_SIZE",
            )

    def _forget(self, done: Future[Any]) -> None:
        # A cancelled job leaves the queue at once, so that its place and buffers are free.
        if not done.cancelled():
            return
        with self._lock:
            for queue in (self._large, self._small):
                for entry in queue:
                    if entry[1] is done:
                        queue.remove(entry)
                        self._ended.notify_all()
                        return

    # -- threads ---------------------------------------------------------------------------

    def _start_worker(self, name: str, *, small_only: bool) -> None:
        worker = threading.Thread(
            # Daemons: a kernel that outlives the grace time must not keep the process.
            target=self._serve,
            args=(name, small_only),
            name=name,
            daemon=True,
        )
        self._workers.add(worker)
        worker.start()

    def _serve(self, name: str, small_only: bool) -> None:
        """Work until the pool closes; whatever else ends the thread, another takes its place."""
        try:
            self._work(small_only)
        except BaseException as error:  # noqa: BLE001 - a thread that ends is replaced
            reason = type(error).__name__
        else:
            return
        worker = threading.current_thread()
        with self._lock:
            self._workers.discard(worker)
            self.restarts += 1
            if not self._closing:
                self._start_worker(name, small_only=small_only)
        if self._logger is not None:
            self._logger.error("worker thread lost", thread=name, error=reason)
        job = self._current.get(worker)
        if job is not None:
            self._leave(worker, job, done=False)

    def _work(self, small_only: bool) -> None:
        worker = threading.current_thread()
        while (job := self._take(worker, small_only)) is not None:
            with sharing.helped_by(self):
                done = job.run()
            self._leave(worker, job, done)
            # The name would keep the job's buffers until the next one comes.
            del job

    def _take(self, worker: threading.Thread, small_only: bool) -> Job | None:
        """The next job, with steps of other threads' jobs until it comes; None: no more come."""
        while True:
            with self._lock:
                waiting = self._small_job if small_only else self._any_job
                waiting.wait_for(lambda: self._has_work(small_only))
                queue = self._next_queue(small_only)
                if queue is not None:
                    # Noted before it leaves the queue: a thread that ends here loses no job.
                    job = queue[0][1]
                    self._current[worker] = job
                    queue.popleft()
                    return job
                if self._closing and (small_only or not self._lent):
                    return None
                step = self._lent[0]
                self._lent.rotate(-1)
            if not step():
                with self._lock, contextlib.suppress(ValueError):
                    self._lent.remove(step)
            # The name would keep the vector until the next job comes.
            del step

    def _has_work(self, small_only: bool) -> bool:
        if self._small or self._closing:
            return True
        return not small_only and bool(self._large or self._lent)

    def _next_queue(self, small_only: bool) -> deque[tuple[int, Job]] | None:
        """The queue whose first job came first, of those that this thread may take from."""
        if small_only or not self._large:
            return self._small or None
        if not self._small:
            return self._large
        return min(self._large, self._small, key=lambda queue: queue[0][0])

    def _wake(self, job: Job) -> None:
        self._any_job.notify()
        if job.small:
            self._small_job.notify()

    def _leave(self, worker: threading.Thread, job: Job, done: bool) -> None:
        """Note that a thread has left a job, which is over or gets its second try."""
        again = not done and job.may_try_again
        if not done and not again:
            job.give_up()
        with self._lock:
            del self._current[worker]
            self.stopped += job.unwanted
            if again:
                self.retries += 1
                # Before all others: it has waited already, and closing does not end it.
                self._queue_of(job).appendleft((-1, job))
                self._wake(job)
            self._ended.notify_all()
        if again and self._logger is not None:
            self._logger.warning("job is tried again", error=job.failure, small=job.small)
