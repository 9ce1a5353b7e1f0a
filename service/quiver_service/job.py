"""One job of the worker pool: what to compute, for whom, and whether anybody still waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from quiver_kernels.errors import QuiverError, Stopped
from quiver_kernels.stopping import stopping_when
from quiver_service.errors import ServiceError

MAX_TRIES = 2


class Job(Future[Any]):
    """A call, its future result, and how often it was tried.

    Parameters
    ----------
    call
        Pure: it may be made twice.
    small
        Whether it may take the place that is kept for small jobs.

    Attributes
    ----------
    failure
        Name of the error that ended the last try; None: none did.
    """

    def __init__(self, call: Callable[[], Any], *, small: bool) -> None:
        super().__init__()
        self._call: Callable[[], Any] | None = call
        self.small = small
        self.failure: str | None = None
        self._tries = 0
        self._started = False
        self._unwanted = False

    def abandon(self) -> None:
        """Nobody waits any more: drop the job if no thread has it, else let it stop soon."""
        self._unwanted = True
        self.cancel()

    @property
    def unwanted(self) -> bool:
        """Whether it was abandoned."""
        return self._unwanted

    def run(self) -> bool:
        """Compute in this thread; False if the job should be tried once more.

        What the kernels and the service raise on purpose is the answer. Anything else may be
        the fault of the thread or its device, so the job gets a second try.

        Raises
        ------
        BaseException
            What ends a thread, such as SystemExit: the job is untouched and the thread ends.
        """
        # A future can be set running once only.
        if not self._started:
            if not self.set_running_or_notify_cancel():
                return True
            self._started = True
        call = self._call
        if call is None:
            return True
        self._tries += 1
        try:
            with stopping_when(lambda: self._unwanted):
                result = call()
        except (QuiverError, ServiceError, MemoryError) as error:
            self._fail(error)
            # The error's traceback holds this frame, and the job holds the error.
            del self, call
        except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
            self.failure = type(error).__name__
            if self.may_try_again:
                return False
            self._fail(error)
            del self, call
        else:
            self._finish(result)
        return True

    @property
    def may_try_again(self) -> bool:
        """Whether another try is left and wanted."""
        return self._tries < MAX_TRIES and not self._unwanted

    def give_up(self) -> None:
        """End a job whose threads ended under it."""
        if self.cancel() or self.done():
            return
        reason = Stopped() if self._unwanted else _lost()
        self._fail(reason)

    def _finish(self, result: Any) -> None:
        # Whoever abandoned the job has gone; a result would only hold memory.
        self.set_result(None if self._unwanted else result)
        self._call = None

    def _fail(self, error: BaseException) -> None:
        self.set_exception(error)
        self._call = None


def _lost() -> ServiceError:
    return ServiceError("internal", f"the worker thread was lost, {MAX_TRIES} times in a row")
