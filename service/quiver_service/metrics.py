"""Prometheus metrics of one app, in a registry of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quiver_service._version import __version__
from quiver_service.budget import ByteBudget
from quiver_service.context import RequestContext
from quiver_service.engine import Engine
from quiver_service.lifecycle import Lifecycle, Phase

# The middle ones are OpenTelemetry's for HTTP; both ends are ours, for tiny and huge vectors.
_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1),
    *(0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60),
)
_BYTES = tuple(float(1 << shift) for shift in range(10, 31, 2))


class Metrics:
    """All metrics of one app.

    Parameters
    ----------
    budget, engine, lifecycle
        Read when the metrics are asked for.
    """

    def __init__(self, budget: ByteBudget, engine: Engine, lifecycle: Lifecycle) -> None:
        pool = engine.pool
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = Counter(
            "quiver_requests",
            "Requests by route, HTTP status and reason",
            ("route", "code", "reason"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "quiver_request_duration_seconds",
            "Time from the head of a request to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._phase = Histogram(
            "quiver_phase_duration_seconds",
            "Time per phase: receive, queue, decode, kernel, encode, send",
            ("phase",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._size = Histogram(
            "quiver_request_size_bytes",
            "Bytes of request bodies as received",
            ("route",),
            buckets=_BYTES,
            registry=self.registry,
        )
        self._elements = Counter(
            "quiver_elements",
            "Values quantized, solved for, decoded or averaged",
            ("method", "device"),
            registry=self.registry,
        )
        # Looking a child up by its labels costs more than counting; the labels are few.
        self._requests_of = functools.cache(self._requests.labels)
        self._duration_of = functools.cache(self._duration.labels)
        self._elements_of = functools.cache(self._elements.labels)
        self._phase_of = functools.cache(self._phase.labels)
        # Counted by the event loop alone, so a number does.
        self.inflight_requests = 0
        self._gauge(
            "quiver_inflight_requests", "Requests being served", lambda: self.inflight_requests
        )
        self._gauge("quiver_inflight_bytes", "Bytes lent to requests", lambda: budget.used)
        self._gauge("quiver_budget_bytes", "Bytes there are to lend", lambda: budget.capacity)
        self._gauge("quiver_queue_depth", "Jobs that wait for a thread", lambda: pool.depth)
        self._gauge(
            "quiver_queue_depth_small",
            "Jobs that wait for a thread and are small",
            lambda: pool.depth_small,
        )
        self._gauge("quiver_jobs_running", "Jobs that run", lambda: pool.running)
        self._gauge("quiver_threads", "Kernel threads", lambda: pool.threads)
        self._gauge("quiver_ready", "1 when ready", lambda: float(lifecycle.phase is Phase.READY))
        self.registry.register(_Counts(engine))
        Info("quiver_build", "Versions", registry=self.registry).info(
            {"version": __version__, "numba": _installed("numba"), "numpy": _installed("numpy")}
        )

    def record(self, context: RequestContext) -> None:
        """Count a finished request."""
        self._requests_of(context.route, str(context.status), context.reason).inc()
        self._duration_of(context.route).observe(context.phases["total"])
        if context.declared_bytes:
            self._size.labels(context.route).observe(context.bytes_in)
        if "kind" in context.notes:
            self._elements_of(context.notes["kind"], context.notes["device"]).inc(
                context.notes["n"]
            )
        for phase, seconds in context.phases.items():
            if phase != "total":
                self._phase_of(phase).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)


class _Counts(Collector):
    """What pool and devices count themselves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Their counts now."""
        pool, devices = self._engine.pool, self._engine.devices
        yield CounterMetricFamily(
            "quiver_worker_restarts", "Threads replaced after they were lost", pool.restarts
        )
        yield CounterMetricFamily(
            "quiver_jobs_retried", "Jobs tried again after an unexpected failure", pool.retries
        )
        yield CounterMetricFamily(
            "quiver_jobs_stopped", "Jobs that ran when nobody waited any more", pool.stopped
        )
        fallbacks = CounterMetricFamily(
            "quiver_device_fallbacks",
            "Requests computed on the CPU because their device failed",
            labels=("device", "reason"),
        )
        for (device, reason), count in devices.fallbacks.items():
            fallbacks.add_metric((device, reason), count)
        yield fallbacks
        up = GaugeMetricFamily("quiver_device_up", "1 where a device works", labels=("device",))
        for device in devices.available:
            up.add_metric((device,), float(devices.is_up(device)))
        yield up
        lanes = devices.lanes
        cards = GaugeMetricFamily("quiver_device_lanes", "GPUs", labels=("device", "state"))
        total = 0 if lanes is None else len(lanes.lanes)
        working = devices.lanes_up()
        cards.add_metric(("gpu", "up"), working)
        cards.add_metric(("gpu", "resting"), total - working)
        yield cards
        waiting = 0 if lanes is None else lanes.waiting
        yield GaugeMetricFamily("quiver_device_waiting", "Requests that wait for a GPU", waiting)


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"
