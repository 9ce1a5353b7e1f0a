"""Which device computes a request, and what happens when a device fails.

The CPU is always there and gives the same bits as any other device, so a request whose device
fails is computed on the CPU. The failed device rests, twice as long after every further
failure; then one request tries it again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import DeviceFailed, QuiverError
from quiver_service.logs import Logger

T = TypeVar("T")

FALLBACK = "cpu"
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 60.0


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


@dataclass(frozen=True, slots=True)
class Rest:
    """A failed device: why, how often in a row, and until when it is left alone."""

    reason: str
    failures: int
    until: float


def _rest_seconds(failures: int) -> float:
    return min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** min(failures - 1, 10))


class Devices:
    """The backends of one service and the state of each device. Thread-safe.

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
    """

    def __init__(
        self,
        backends: Backends,
        *,
        fall_back: bool = True,
        clock: Callable[[], float] = time.monotonic,
        logger: Logger | None = None,
    ) -> None:
        self._backends = backends
        self._fall_back = fall_back
        self._clock = clock
        self._logger = logger
        self._lock = threading.Lock()
        self._resting: dict[str, Rest] = {}
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._available: dict[str, bool] = {}

    @property
    def available(self) -> dict[str, bool]:
        """Devices a request may name, and whether each is here; empty before `warm_up`."""
        return dict(self._available)

    @property
    def fallbacks(self) -> dict[tuple[str, str], int]:
        """Requests computed on the CPU in place of (device, for this reason)."""
        with self._lock:
            return dict(self._fallbacks)

    def is_up(self, device: str) -> bool:
        """Whether `device` is here and has not failed since it last worked."""
        return self._available.get(device, False) and device not in self._resting

    def complaints(self) -> list[str]:
        """What is wrong with devices that are here, in words."""
        now = self._clock()
        return [
            f"device {name} failed {rest.failures} times in a row ({rest.reason}); requests go to "
            f"{FALLBACK}, next try in {max(0.0, rest.until - now):.0f} s"
            for name, rest in sorted(self._resting.items())
        ]

    def warm_up(self) -> None:
        """Compile every kernel of every device that is here. Seconds; run it in a thread."""
        self._available = self._backends.available()
        for device, works in self._available.items():
            if works:
                self._warm_up(device)
        # Raises if nothing can compute: a service without any device must not become ready.
        self._backends.pick("auto")

    def _warm_up(self, device: str) -> None:
        backend = self._backends.pick(device)
        try:
            backend.warm_up()
        except Exception as error:
            if backend.name == FALLBACK or not self._fall_back:
                raise
            self._note_failure(backend.name, error)

    def compute(self, device: str, call: Callable[[Backend], T]) -> T:
        """``call(backend)`` on the backend for `device`, or on the CPU if that one fails.

        Raises
        ------
        BackendUnavailable
            The device is not here at all.
        Exception
            What `call` raised on the CPU, or on purpose (`QuiverError`) elsewhere.
        """
        backend = self._backends.pick(device)
        if backend.name == FALLBACK:
            return call(backend)
        rest = self._claim(backend.name)
        if rest is None:
            try:
                result = call(backend)
            except DeviceFailed as error:
                rest = self._note_failure(backend.name, error)
                if not self._fall_back:
                    raise
            except QuiverError:
                raise
            except Exception as error:
                rest = self._note_failure(backend.name, error)
                if not self._fall_back:
                    raise
            else:
                self._note_success(backend.name)
                return result
        with self._lock:
            self._fallbacks[backend.name, rest.reason] += 1
        return call(self._backends.pick(FALLBACK))

    def decode(self, call: Callable[[Backend], T]) -> T:
        """``call(backend)`` on a backend that can decode."""
        return call(self._backends.pick_decoder())

    def _claim(self, device: str) -> Rest | None:
        """None if this request may use the device; else why not."""
        with self._lock:
            rest = self._resting.get(device)
            if rest is None or not self._fall_back:
                return None
            now = self._clock()
            if now < rest.until:
                return rest
            # This request tries; others keep away until it has succeeded.
            until = now + _rest_seconds(rest.failures)
            self._resting[device] = Rest(rest.reason, rest.failures, until)
            return None

    def _note_failure(self, device: str, error: Exception) -> Rest:
        reason = error.code if isinstance(error, DeviceFailed) else "device_error"
        with self._lock:
            before = self._resting.get(device)
            failures = 1 if before is None else before.failures + 1
            rest = Rest(reason, failures, self._clock() + _rest_seconds(failures))
            self._resting[device] = rest
        if self._logger is not None:
            self._logger.error(
                "device failed", device=device, reason=reason, error=type(error).__name__
            )
        return rest

    def _note_success(self, device: str) -> None:
        if device not in self._resting:
            return
        with self._lock:
            self._resting.pop(device, None)
        if self._logger is not None:
            self._logger.warning("device works again", device=device)
