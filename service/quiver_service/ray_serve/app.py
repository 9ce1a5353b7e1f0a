"""The application of Ray Serve: ``quiver_service.ray_serve.app:build`` of a config file."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from quiver_service.ray_serve.options import (
    ServeOptions,
    most_ongoing,
    replica_settings,
    shutdown_seconds,
)
from quiver_service.ray_serve.replica import Replica

NAME = "quiver"
_HEALTH_SECONDS = 2.0
_HEALTH_TIMEOUT_SECONDS = 10.0
_LOOK_BACK_SECONDS = 5.0


def build(args: ServeOptions) -> Any:
    """The application.

    Parameters
    ----------
    args
        See `ServeOptions`.

    Returns
    -------
    ray.serve.Application
        For `ray.serve.run`, or for ``serve deploy``.

    Raises
    ------
    SettingsError
        The settings of `args`, or of the environment here, are wrong.
    """
    settings = replica_settings(args)
    numbers: dict[str, Any] = (
        {"autoscaling_config": _autoscaling(args)}
        if args.replicas is None
        else {"num_replicas": args.replicas}
    )
    if args.max_replicas_per_node is not None:
        numbers["max_replicas_per_node"] = args.max_replicas_per_node
    most = most_ongoing(settings)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        max_ongoing_requests=most,
        # Of each proxy; what it holds has no budget, so it is no more than one replica has.
        max_queued_requests=most,
        backpressure_config={
            "status_code": 503,
            "retry_after_s": settings.retry_after_max_seconds,
        },
        graceful_shutdown_timeout_s=shutdown_seconds(settings),
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=_HEALTH_TIMEOUT_SECONDS,
        **numbers,
    )
    return deployment.bind(args)


def _autoscaling(args: ServeOptions) -> AutoscalingConfig:
    policy = AutoscalingPolicy(
        policy_function="quiver_service.ray_serve.scaling:ByHeldBytes",
        policy_kwargs={"target": args.target_held},
    )
    return AutoscalingConfig(
        min_replicas=args.min_replicas,
        max_replicas=args.max_replicas,
        upscale_delay_s=args.upscale_seconds,
        downscale_delay_s=args.downscale_seconds,
        look_back_period_s=_LOOK_BACK_SECONDS,
        policy=policy,
    )
