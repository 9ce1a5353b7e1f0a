"""Flower's simulation without Ray: its engine, messages and apps, and threads for clients.

The engine knows one kind of worker, Ray's actors. It loads their module when it starts; here
another one stands in its place, whose workers call the ClientApp in the engine's own threads.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import Backend
from flwr.serverapp import ServerApp
from flwr.simulation.run_simulation import run_simulation

RAY = "flwr.server.superlink.fleet.vce.backend.raybackend"


class Threads(Backend):
    """Two clients at a time."""

    def __init__(self, backend_config: object) -> None:
        self._load: Callable[[], ClientApp] | None = None

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self._load = app_fn

    @property
    def num_workers(self) -> int:
        return 2

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        assert self._load is not None
        return self._load()(message, context), context


def simulate(patch: pytest.MonkeyPatch, server: ServerApp, client: ClientApp, nodes: int) -> None:
    """Run a whole training in this process."""
    module = types.ModuleType(RAY)
    module.RayBackend = Threads
    patch.setitem(sys.modules, RAY, module)
    run_simulation(server, client, nodes, backend_name="threads")
