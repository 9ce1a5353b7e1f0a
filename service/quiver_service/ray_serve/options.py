"""What an application of Ray Serve is deployed with, and what a replica makes of its settings."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from quiver_service import machine
from quiver_service.settings import PREFIX, Settings, SettingsError, load_settings

# Serve owns the socket.
_NOT_HERE = ("uds", "tls_cert_file", "tls_key_file", "tls_client_ca_file")
# Requests that Serve lets in beside those that the service has room for: probes and refusals.
_SPARE_REQUESTS = 32
# Serve's own: with direct ingress a replica stays for 30 s after it is told to go, and 5 more.
_LEAST_SHUTDOWN_SECONDS = 35.0


class ServeOptions(BaseModel):
    """Arguments of the application, as in the ``args`` of a config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int | None = Field(
        None, ge=1, le=10_000, description="A fixed number of replicas, in place of autoscaling."
    )
    min_replicas: int = Field(1, ge=1, le=10_000, description="Least number of replicas.")
    max_replicas: int = Field(8, ge=1, le=10_000, description="Greatest number of replicas.")
    max_replicas_per_node: int | None = Field(
        None, ge=1, le=100, description="Most replicas of one node; null: as many as fit."
    )
    num_cpus: float = Field(
        1.0, gt=0, le=1024, description="Processors of a replica: its kernel threads, rounded up."
    )
    num_gpus: float = Field(0.0, ge=0, le=64, description="GPUs of a replica.")
    target_held: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of its byte budget that a replica should hold on average; more or "
        "fewer replicas make it so.",
    )
    upscale_seconds: float = Field(
        10.0, ge=0, le=3600, description="How long more replicas must be wanted."
    )
    downscale_seconds: float = Field(
        120.0, ge=0, le=86_400, description="How long fewer replicas must be wanted."
    )
    settings: dict[str, str] = Field(
        default_factory=dict,
        description="Settings of the replicas: QUIVER_* names with their values. They can be read "
        "by whoever may see the cluster: put keys into a file (QUIVER_API_KEYS_FILE).",
    )

    @field_validator("settings")
    @classmethod
    def _own_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not name.startswith(PREFIX):
                raise ValueError(f"must be {PREFIX}* names; got {name!r}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must not exceed max_replicas={self.max_replicas}; "
                f"got {self.min_replicas}"
            )
        return self

    @property
    def threads(self) -> int:
        """Kernel threads of a replica."""
        return max(1, math.ceil(self.num_cpus))


def replica_settings(options: ServeOptions, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a replica in this process.

    What neither `options` nor the environment say is sized for the replica's share of the
    machine, since several replicas may share it.

    Parameters
    ----------
    options
        Of the application; its settings win over the environment.
    environ
        Where unknown names are looked for; None: the process environment.

    Raises
    ------
    SettingsError
        A setting is wrong, or one of those that belong to a socket of our own.
    """
    names = os.environ if environ is None else environ
    given = {name.removeprefix(PREFIX).lower(): value for name, value in options.settings.items()}
    unknown = sorted(set(given) - set(Settings.model_fields))
    if unknown:
        raise SettingsError(f"unknown setting {PREFIX}{unknown[0].upper()} in settings")
    settings = load_settings(names, **given)
    for name in _NOT_HERE:
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"{PREFIX}{name.upper()} has no meaning on Ray Serve, whose sockets these are: "
                "unset it, and have a proxy in front speak TLS"
            )
    known = settings.model_fields_set
    sized = dict(given)
    if "threads" not in known:
        sized["threads"] = str(options.threads)
    if "budget_bytes" not in known:
        share = min(1.0, options.num_cpus / machine.cpu_limit())
        sized["budget_bytes"] = str(max(64 << 20, int(settings.budget_bytes * share)))
    return load_settings(names, **sized)


def most_ongoing(settings: Settings) -> int:
    """Requests that Serve may have in one replica: the service itself refuses those beyond.

    It refuses by bytes, at once, with Retry-After, and before a body is read.
    """
    return settings.threads + settings.queue_size + _SPARE_REQUESTS


def shutdown_seconds(settings: Settings) -> float:
    """How long Serve must wait for a replica that it takes out of service."""
    return max(settings.drain_seconds + settings.grace_seconds + 5.0, _LEAST_SHUTDOWN_SECONDS)
