"""The parts of one running app, made together and handed to routes and middleware."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import TextIO, cast

from starlette.requests import Request

from quiver_kernels import dispatch
from quiver_service.auth import KeyRing
from quiver_service.body import UploadLimits
from quiver_service.budget import ByteBudget
from quiver_service.buffers import Buffers
from quiver_service.devices import Devices
from quiver_service.effort import NONE_TINY, SIZES
from quiver_service.engine import Engine
from quiver_service.lifecycle import Lifecycle
from quiver_service.logs import LineQuota, Logger, make_logger
from quiver_service.metrics import Metrics
from quiver_service.pool import WorkerPool
from quiver_service.quota import QuotaLimits, Quotas
from quiver_service.reporting import Lines, Reporter
from quiver_service.settings import Settings
from quiver_service.tracing import Tracer, make_tracer


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a request may need."""

    settings: Settings
    engine: Engine
    budget: ByteBudget
    buffers: Buffers
    lifecycle: Lifecycle
    metrics: Metrics
    logger: Logger
    reporter: Reporter
    tracer: Tracer
    keys: KeyRing
    quotas: Quotas
    upload_limits: UploadLimits

    @classmethod
    def create(cls, settings: Settings, engine: Engine | None = None) -> Services:
        """Make all parts; nothing is started."""
        lines = Lines(sys.stdout)
        logger = make_logger(settings.log_level, cast("TextIO", lines))
        if engine is None:
            pool = WorkerPool(settings.threads, settings.queue_size, logger)
            devices = Devices(
                dispatch, logger=logger, device=settings.device, memory=settings.gpu_memory
            )
            # A request on a GPU may wait for a lane: none of them on the event loop.
            sizes = NONE_TINY if settings.device == "gpu" else SIZES
            engine = Engine(pool, settings.max_output_bytes, devices, sizes)
        budget = ByteBudget(settings.budget_bytes)
        lifecycle = Lifecycle()
        metrics = Metrics(budget, engine, lifecycle)
        tracer = make_tracer(settings)
        quota = LineQuota(settings.log_requests_per_second)
        return cls(
            settings=settings,
            engine=engine,
            budget=budget,
            buffers=Buffers(settings.warm_bytes, budget),
            lifecycle=lifecycle,
            metrics=metrics,
            logger=logger,
            reporter=Reporter(metrics, logger, lines, tracer, quota),
            tracer=tracer,
            keys=KeyRing.create(settings),
            quotas=Quotas(QuotaLimits.create(settings)),
            upload_limits=UploadLimits(
                settings.body_idle_seconds,
                settings.body_grace_seconds,
                settings.body_min_bytes_per_second,
            ),
        )

    def draw_retry_after(self) -> int:
        """Seconds after which a refused client should try again, jittered so that not all do."""
        low, high = self.settings.retry_after_min_seconds, self.settings.retry_after_max_seconds
        return random.randint(low, high)  # noqa: S311 - spreads load, guards nothing


def services_of(request: Request) -> Services:
    """The services of the app that serves `request`."""
    services: Services = request.app.state.services
    return services
