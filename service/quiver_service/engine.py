"""The service without its transport: requests in, results out, in a pool of threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from quiver_kernels import dispatch
from quiver_kernels.dispatch import Backend
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import AggregateRequest, LevelsRequest, LevelsResult, QuantizeRequest
from quiver_service import footprint
from quiver_service.budget import Lease
from quiver_service.errors import ServiceError
from quiver_service.footprint import Footprint
from quiver_service.pool import WorkerPool

T = TypeVar("T")


class Backends(Protocol):
    """Where backends come from; `quiver_kernels.dispatch` is one, tests bring their own."""

    def pick(self, device: str) -> Backend:
        """The backend for a request's ``device``."""
        ...

    def pick_decoder(self) -> Backend:
        """A backend that can decode."""
        ...

    def available(self) -> dict[str, bool]:
        """Devices a request may name, and whether each works here."""
        ...


class Engine:
    """Computes requests; knows nothing of HTTP.

    The four operations are plain calls and safe in any thread; `run` brings one, or any
    other call, to the pool and awaits it.

    Parameters
    ----------
    pool
        Threads that compute; the engine starts and closes it.
    max_output_bytes
        Largest answer; a request that needs more is refused before it is allocated.
    backends
        Source of backends.
    """

    def __init__(
        self, pool: WorkerPool, max_output_bytes: int, backends: Backends = dispatch
    ) -> None:
        self.pool = pool
        self.max_output_bytes = max_output_bytes
        self._backends = backends
        self.devices: dict[str, bool] = {}

    def start(self) -> None:
        """Start the threads."""
        self.pool.start()

    def warm_up(self) -> None:
        """Compile every kernel of every device that is here. Seconds; run it in a thread."""
        self.devices = self._backends.available()
        for device, works in self.devices.items():
            if works:
                self._backends.pick(device).warm_up()
        # Raises if nothing can compute: a service without any device must not become ready.
        self._backends.pick("auto")

    def close(self, timeout: float) -> bool:
        """Finish what is queued, stop the threads; whether all was done within `timeout` s."""
        return self.pool.close(timeout)

    async def run(
        self,
        call: Callable[[], T],
        *,
        deadline_seconds: float | None = None,
        lease: Lease | None = None,
    ) -> T:
        """Await `call` in the pool.

        Cancelling this drops the call if no thread has taken it yet; otherwise the thread
        finishes it and the result is dropped.

        Parameters
        ----------
        call
            What to compute.
        deadline_seconds
            Longest wait for the result, queueing included.
        lease
            Memory that the call uses; held until the call has ended or was dropped, which
            may be after `run` itself has ended.

        Raises
        ------
        ServiceError
            ``busy`` or ``draining`` from the pool, ``deadline``.
        """
        job = self.pool.submit(call)
        if lease is not None:
            lease.hold()
            job.add_done_callback(lambda _: lease.release())
        # asyncio.wrap_future leaves a reference cycle that holds the result, and with it large
        # buffers, until the cyclic collector comes.
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        job.add_done_callback(functools.partial(_tell, loop, done))
        try:
            async with asyncio.timeout(deadline_seconds):
                await done
            return job.result()
        except TimeoutError:
            # A kernel's own TimeoutError would be a finished job.
            if done.done() and not done.cancelled():
                raise
            raise ServiceError(
                "deadline",
                f"no result within {deadline_seconds} s",
                limit=deadline_seconds,
                setting="QUIVER_DEADLINE_SECONDS",
            ) from None
        finally:
            job.cancel()
            # An error's traceback holds this frame, and the job holds the error.
            del job

    def quantize(self, request: QuantizeRequest) -> QuantizedVector:
        """Quantize a vector; a seed is drawn when the request has none.

        Raises
        ------
        InvalidInput, BackendUnavailable
            From the kernels.
        ServiceError
            ``too_large``: the answer would exceed the limit.
        """
        self._check_output(footprint.of_quantize(request), request.options.block_size)
        backend = self._backends.pick(request.options.device)
        return backend.quantize(request.vector, request.options.with_seed(), request.weights)

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """Decode a quantized vector; errors as for `quantize`."""
        self._check_output(footprint.of_dequantize(q), q.block_size)
        return self._backends.pick_decoder().dequantize(q)

    def levels(self, request: LevelsRequest) -> LevelsResult:
        """Level tables of a vector; errors as for `quantize`."""
        self._check_output(footprint.of_levels(request), request.options.block_size)
        backend = self._backends.pick(request.options.device)
        return backend.levels(request.vector, request.options, request.weights)

    def aggregate(self, request: AggregateRequest) -> NDArray[Any] | QuantizedVector:
        """Weighted mean of quantized vectors, quantized again if the request asks for it."""
        block_size = None if request.quantize is None else request.quantize.block_size
        self._check_output(footprint.of_aggregate(request), block_size)
        mean = self._backends.pick_decoder().aggregate(request.vectors, request.weights)
        if request.quantize is None:
            return mean
        backend = self._backends.pick(request.quantize.device)
        return backend.quantize(mean, request.quantize.with_seed(), None)

    def _check_output(self, needed: Footprint, block_size: int | None) -> None:
        if needed.output <= self.max_output_bytes:
            return
        hint = "" if block_size is None else f" (block_size={block_size})"
        raise ServiceError(
            "too_large",
            f"the answer would have {needed.output} bytes{hint}; "
            f"the limit is {self.max_output_bytes}",
            field=None if block_size is None else "block_size",
            limit=self.max_output_bytes,
            got=needed.output,
            setting="QUIVER_MAX_OUTPUT_BYTES",
        )


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], _: Future[Any]) -> None:
    # A loop that was closed while the thread computed has nobody left to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, done)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
