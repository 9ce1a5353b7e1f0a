"""How many replicas there should be: by the bytes that requests hold, not by how many there are.

Sixty requests of 1 KiB are nothing, six of 64 MiB fill a replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

HELD = "quiver_held_share"
"""What replicas report: the share of their byte budget that is held."""


class Context(Protocol):
    """What Serve tells a policy (`ray.serve.config.AutoscalingContext`)."""

    @property
    def current_num_replicas(self) -> int:
        """Replicas that run."""
        ...

    @property
    def target_num_replicas(self) -> int:
        """Replicas that are wanted by now."""
        ...

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]]:
        """What replicas report, by name and replica, over the last seconds."""
        ...


class ByHeldBytes:
    """A policy of Ray Serve: as many replicas as bring the share held to `target`.

    Delays and bounds are Serve's, after this.

    Parameters
    ----------
    target
        Share of its budget that a replica should hold on average, above 0.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, ctx: Context) -> tuple[float, dict[str, Any]]:
        """How many replicas there should be, and nothing to remember."""
        shares = list((ctx.aggregated_metrics or {}).get(HELD, {}).values())
        if not shares or ctx.current_num_replicas == 0:
            # Nobody has reported yet: no reason for a change.
            return float(ctx.target_num_replicas), {}
        held = sum(shares) / len(shares) * ctx.current_num_replicas
        return held / self._target, {}
