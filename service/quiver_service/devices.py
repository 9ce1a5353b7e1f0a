"""Which device computes a request, and what happens when a device fails.

The CPU is always there and gives the same bits as any other device, so a request whose device
fails is computed on the CPU. GPUs are lanes, each used by one request at a time. A lane that failed
rests (`rests`); the others go on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from quiver_kernels.costs import CPU, GPU, CostModel, Work
from quiver_kernels.dispatch import Backend, Survey
from quiver_kernels.errors import BackendUnavailable, DeviceFailed, QuiverError
from quiver_kernels.lanes import Lane, Lanes
from quiver_kernels.options import QuantizeOptions
from quiver_service.logs import Logger
from quiver_service.rests import Rests

T = TypeVar("T")

AUTO = "auto"
FALLBACK = CPU
DOES_NOT_FIT = "does_not_fit"
"""Why the CPU computes what no lane has the memory for."""


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

    def open_lanes(self, memory: float) -> Sequence[Lane]:
        """The GPUs, each limited to a share of its memory or, above 1, to bytes."""
        ...

    def cost_model(self) -> CostModel | None:
        """What CPU and GPU cost; None where there is no GPU."""
        ...

    def warm_up_schemes(self) -> None:
        """Compile what methods beside the backends' own use."""
        ...

    def begin_survey(self, flat: NDArray[Any], options: QuantizeOptions) -> Survey | None:
        """A first pass over a vector that the CPU's backend may go on from; None: it cannot."""
        ...


class Devices:
    """The backends of one service and the state of each lane. Thread-safe.

    Parameters
    ----------
    backends
        Source of backends.
    fall_back
        Whether requests of a failed device go to the CPU; otherwise they fail.
    clock
        Seconds, monotonic.
    logger
        Told of failures and recoveries.
    device
        What ``auto`` means: itself, the cheaper device; or ``cpu``, which also leaves GPUs alone;
        or ``gpu``, without which the service does not start.
    memory
        What a lane may hold: up to 1 a share of the GPU's memory, above that bytes.
    """

    def __init__(
        self,
        backends: Backends,
        *,
        fall_back: bool = True,
        clock: Callable[[], float] = time.monotonic,
        logger: Logger | None = None,
        device: str = AUTO,
        memory: float = 1.0,
    ) -> None:
        self._backends = backends
        self._fall_back = fall_back
        self._logger = logger
        self._device = device
        self._memory = memory
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._rests = Rests(clock)
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._available: dict[str, bool] = {}
        self._lanes: Lanes | None = None
        self._model: CostModel | None = None
        # What was chosen last, by kind of work and order of magnitude.
        self._chosen: dict[tuple[str | None, int, int], str] = {}

    @property
    def available(self) -> dict[str, bool]:
        """Devices a request may name, and whether each is here; empty before `warm_up`."""
        return dict(self._available)

    @property
    def fallbacks(self) -> dict[tuple[str, str], int]:
        """Requests computed on the CPU in place of (device, for this reason)."""
        with self._lock:
            return dict(self._fallbacks)

    @property
    def lanes(self) -> Lanes | None:
        """The GPUs; None before they are asked for, or without any."""
        return self._lanes

    def is_up(self, device: str) -> bool:
        """Whether `device` is here and works; of several GPUs, whether one does."""
        if not self._available.get(device, False):
            return False
        return device != GPU or self._lanes is None or self.lanes_up() > 0

    def lanes_up(self) -> int:
        """GPUs that have not failed since they last worked."""
        lanes = () if self._lanes is None else self._lanes.lanes
        return sum(lane.number not in self._rests for lane in lanes)

    def complaints(self) -> list[str]:
        """What is wrong with devices that are here, in words."""
        return [
            f"device {self._name_of(number)} failed {rest.failures} times in a row "
            f"({rest.reason}); requests go to {FALLBACK if self.lanes_up() == 0 else 'others'}, "
            f"next try in {seconds:.0f} s"
            for number, (rest, seconds) in self._rests.now().items()
        ]

    def describe(self) -> dict[str, Any]:
        """What ``auto`` means here, the lanes, and what was measured of them; for ``/info``."""
        lanes = () if self._lanes is None else self._lanes.lanes
        return {
            "device": self._device,
            "lanes": [
                {
                    "number": lane.number,
                    "card": lane.card,
                    "memory_bytes": lane.memory,
                    "up": lane.number not in self._rests,
                }
                for lane in lanes
            ],
            "costs": None if self._model is None else self._model.describe(),
        }

    def warm_up_schemes(self) -> None:
        """Compile what methods beside the backends' own use; `warm_up` comes before it."""
        self._backends.warm_up_schemes()

    def warm_up(self) -> None:
        """Compile every kernel of every device that is here. Seconds; run it in a thread.

        Raises
        ------
        BackendUnavailable
            No device can compute, or the one that was asked for is not here.
        """
        if self._device == CPU:
            # GPUs are not even looked for.
            self._available = {CPU: True, GPU: False}
        else:
            self._available = self._backends.available()
        if self._available.get(CPU):
            self._backends.pick(CPU).warm_up()
        if self._available.get(GPU):
            for lane in self._open().lanes:
                self._warm_up(lane)
            self._measure()
        # Raises if nothing can compute: a service without any device must not become ready.
        self._backends.pick(self._device)

    def _warm_up(self, lane: Lane) -> None:
        try:
            lane.backend.warm_up()
        except Exception as error:
            if not self._fall_back:
                raise
            self._note_failure(lane.number, error)

    def _measure(self) -> None:
        if self._device != AUTO or self.lanes_up() == 0:
            return
        try:
            self._model = self._backends.cost_model()
        except Exception as error:
            # Without figures `auto` is the CPU: nothing to fail for.
            if not self._fall_back:
                raise
            if self._logger is not None:
                self._logger.warning("device not measured", error=type(error).__name__)

    def begin_survey(self, flat: NDArray[Any], options: QuantizeOptions) -> Survey | None:
        """A first pass over a vector that is not all here; None if a GPU may have it, or none can.

        Parameters
        ----------
        flat
            Room for its values.
        options
            As far as known.
        """
        if options.device not in (AUTO, CPU) or self._has_gpu():
            return None
        return self._backends.begin_survey(flat, options)

    def compute(self, device: str, call: Callable[[Backend], T], work: Work | None = None) -> T:
        """``call(backend)`` on the backend for `device`, or on the CPU if that one fails.

        Parameters
        ----------
        device
            The request's.
        call
            What to compute; may be called twice.
        work
            What it costs depends on; None: ``auto`` is the CPU, and any lane has the memory.

        Raises
        ------
        BackendUnavailable
            The device is not here at all.
        Exception
            What `call` raised on the CPU, or on purpose (`QuiverError`) elsewhere.
        """
        chosen = self._place(device, work)
        if chosen == GPU:
            return self._on_gpu(call, work, lambda: self._backends.pick(FALLBACK))
        return call(self._backends.pick(chosen))

    def decode(self, call: Callable[[Backend], T], work: Work | None = None) -> T:
        """``call(backend)`` on a backend that can decode: a GPU if that is cheaper."""
        if work is not None and self._has_gpu() and self._place(AUTO, work) == GPU:
            return self._on_gpu(call, work, self._backends.pick_decoder)
        return call(self._backends.pick_decoder())

    def _has_gpu(self) -> bool:
        return self._model is not None or self._device == GPU

    def _place(self, device: str, work: Work | None) -> str:
        """The device that is to compute: ``cpu``, ``gpu``, or another that backends name."""
        if device == GPU and self._device == CPU:
            raise BackendUnavailable("device gpu is turned off here; use cpu or auto")
        if device != AUTO:
            return device
        if self._device != AUTO:
            return self._device
        if self._model is None or work is None:
            return GPU if self._backends.pick(AUTO).name == GPU else AUTO
        return self._choose(self._model, work)

    def _choose(self, model: CostModel, work: Work) -> str:
        kind = (work.operation, work.itemsize, work.values.bit_length())
        waiting = self._open().backlog
        chosen = model.choose(work, waiting=waiting, now=self._chosen.get(kind, CPU))
        self._chosen[kind] = chosen
        return chosen

    def _open(self) -> Lanes:
        with self._opening:
            if self._lanes is None:
                self._lanes = Lanes(self._backends.open_lanes(self._memory))
            return self._lanes

    def _on_gpu(
        self, call: Callable[[Backend], T], work: Work | None, fallback: Callable[[], Backend]
    ) -> T:
        lanes = self._open()
        needed = 0 if work is None or work.operation is None else work.device_bytes
        fit = [lane.number for lane in lanes.lanes if lane.memory is None or needed <= lane.memory]
        if not fit and not self._fall_back:
            raise DeviceFailed(
                f"device gpu has not the memory: {needed} bytes are needed",
                code="device_out_of_memory",
            )
        reason = DOES_NOT_FIT
        if fit:
            seconds = None if self._model is None or work is None else self._model.cost(GPU, work)
            # The lane is given back before the CPU takes over.
            with lanes.taken(lambda: self._usable(fit), seconds or 0.0) as lane:
                done, result, reason = self._try(lane, call, fit)
            if done:
                return result  # type: ignore[return-value]
        with self._lock:
            self._fallbacks[GPU, reason] += 1
        return call(fallback())

    def _usable(self, fit: Sequence[int]) -> Sequence[int]:
        return self._rests.usable(fit) if self._fall_back else fit

    def _try(
        self, lane: Lane | None, call: Callable[[Backend], T], fit: Sequence[int]
    ) -> tuple[bool, T | None, str]:
        """Whether the lane did it, what it gave, and else why not."""
        if lane is None:
            return False, None, self._rests.reason(fit) or "device_error"
        rest = self._rests.claim(lane.number) if self._fall_back else None
        if rest is not None:
            return False, None, rest.reason
        try:
            result = call(lane.backend)
        except Exception as error:
            if isinstance(error, QuiverError) and not isinstance(error, DeviceFailed):
                raise
            reason = self._note_failure(lane.number, error)
            if not self._fall_back:
                raise
            return False, None, reason
        if self._rests.worked(lane.number) and self._logger is not None:
            self._logger.warning("device works again", device=self._name_of(lane.number))
        return True, result, ""

    def _note_failure(self, number: int, error: Exception) -> str:
        reason = error.code if isinstance(error, DeviceFailed) else "device_error"
        self._rests.failed(number, reason)
        if self._logger is not None:
            self._logger.error(
                "device failed",
                device=self._name_of(number),
                reason=reason,
                error=type(error).__name__,
            )
        return reason

    def _name_of(self, number: int) -> str:
        alone = self._lanes is None or len(self._lanes.lanes) == 1
        return GPU if alone else f"{GPU}:{number}"
