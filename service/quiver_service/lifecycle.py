"""Where the process stands: starting, ready, draining or failed."""

from __future__ import annotations

import threading
from enum import Enum

from quiver_service.errors import ServiceError


class Phase(Enum):
    """Stages of the process, in order; `FAILED` follows `STARTING` only."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """The phase of one app; set by warm-up and by the server's signals, read by all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = Phase.STARTING
        self.failure: str | None = None

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._phase

    def mark_ready(self) -> None:
        """Kernels are compiled; a drain that has begun goes on."""
        with self._lock:
            if self._phase is Phase.STARTING:
                self._phase = Phase.READY

    def mark_failed(self, failure: str) -> None:
        """Warm-up failed; the service will not become ready."""
        with self._lock:
            if self._phase is Phase.STARTING:
                self.failure = failure
                self._phase = Phase.FAILED

    def mark_draining(self) -> None:
        """The process is about to stop; requests are still taken."""
        self._phase = Phase.DRAINING

    def check_serving(self) -> None:
        """Raise ``not_ready`` unless requests can be served."""
        if self._phase in (Phase.STARTING, Phase.FAILED):
            raise ServiceError(
                "not_ready", f"the service is {self._phase.value}: kernels are not ready; try again"
            )
