"""Settings of the service: environment names with the prefix ``QUIVER_``, checked at start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    DirectoryPath,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from quiver_service import machine

PREFIX = "QUIVER_"
MIB = 1 << 20
GIB = 1 << 30

# Names with our prefix that other parts of the project read.
_FOREIGN_NAMES = frozenset({"QUIVER_URL", "QUIVER_API_KEY"})
_FOREIGN_PREFIXES = ("QUIVER_TEST_", "QUIVER_CLIENT_", "QUIVER_BENCH_", "QUIVER_DEMO_")


class SettingsError(Exception):
    """The environment or the command line holds a setting that cannot be used."""


def _default_budget() -> int:
    return max(64 * MIB, int(machine.memory_limit() * 0.6))


def _default_max_body(known: dict[str, Any]) -> int:
    return min(GIB, int(known.get("budget_bytes", GIB)))


class Settings(BaseSettings):
    """Every setting, its default and its bounds; the environment name is ``QUIVER_`` + name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=False
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="TCP port; 0 takes a free one.")
    uds: Path | None = Field(
        None, description="Path of a Unix socket to listen on instead of host and port."
    )
    threads: int = Field(
        default_factory=machine.cpu_limit,
        ge=1,
        le=1024,
        description="Kernel threads: requests computed at the same time.",
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto",
        description="What a request's auto means: the cheaper device, as measured at the start; or "
        "always this one. cpu also leaves GPUs alone; gpu does not start without one.",
    )
    gpu_memory: float = Field(
        0.8,
        gt=0,
        le=2**50,
        description="What computations may hold on each GPU: up to 1 a share of its memory, above "
        "that bytes, at least 64 MiB. What does not fit goes to the CPU.",
    )
    queue_size: int = Field(
        64, ge=0, le=100_000, description="Requests that may wait for a kernel thread; more: 503."
    )
    budget_bytes: int = Field(
        default_factory=_default_budget,
        ge=MIB,
        description="Bytes that all requests in flight may hold (bodies, working memory, "
        "answers); more: 503. Default: 60 % of the memory this process may use.",
    )
    warm_bytes: int = Field(
        512 * MIB,
        ge=0,
        description="Bytes of the budget that, while nobody needs them, may stay with buffers of "
        "large bodies for about a second after their use; 0: none.",
    )
    max_body_bytes: int = Field(
        default_factory=_default_max_body,
        ge=1024,
        description="Largest request body; more: 413. Default: 1 GiB, or budget_bytes if less.",
    )
    max_output_bytes: int = Field(
        4 * GIB, ge=1024, description="Largest answer; a request that needs more: 413."
    )
    max_json_bytes: int = Field(
        MIB, ge=1024, description="Largest JSON request and largest JSON answer; more: 413."
    )
    body_idle_seconds: float = Field(
        10.0, gt=0, le=3600, description="Longest pause within an upload; longer: 408."
    )
    body_grace_seconds: float = Field(
        30.0, gt=0, le=3600, description="Time every upload has, however slow it is."
    )
    body_min_bytes_per_second: float = Field(
        1_000_000.0, gt=0, description="Slowest average upload after the grace time; slower: 408."
    )
    send_idle_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Longest time a client may take for one piece (1 MiB) of its answer; longer: "
        "the connection is cut.",
    )
    header_seconds: float = Field(
        10.0, gt=0, le=3600, description="Longest time for the head of a request to arrive."
    )
    keep_alive_seconds: int = Field(
        5, ge=0, le=3600, description="Idle time after which a kept connection is closed."
    )
    deadline_seconds: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="Longest time from a complete upload to its result; longer: 504.",
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="After SIGTERM: time in which /readyz is 503 but requests are still taken.",
    )
    grace_seconds: int = Field(
        25, ge=0, le=3600, description="After that: time for requests in flight to finish."
    )
    retry_after_min_seconds: int = Field(
        1, ge=0, le=3600, description="Least Retry-After of a 503; it is drawn between the two."
    )
    retry_after_max_seconds: int = Field(
        3, ge=0, le=3600, description="Greatest Retry-After of a 503."
    )
    saturated_seconds: float = Field(
        30.0, gt=0, description="Time with an exhausted byte budget after which /readyz is 503."
    )
    api_keys: SecretStr | None = Field(
        None, description="Accepted bearer tokens, comma-separated; none: no key is asked for."
    )
    api_keys_file: Path | None = Field(
        None, description="File of accepted bearer tokens, one a line, in place of api_keys."
    )
    protect_all: bool = Field(
        False, description="Ask for a key everywhere but at the probes: metrics, info, docs, too."
    )
    allow_insecure: bool = Field(
        False, description="Listen beyond this machine without keys or client certificates."
    )
    tls_cert_file: Path | None = Field(
        None, description="Certificate chain (PEM); with it the service speaks HTTPS only."
    )
    tls_key_file: Path | None = Field(
        None, description="Private key of the certificate (PEM, without a pass phrase)."
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="Authorities (PEM); clients must then show a certificate of one of them.",
    )
    healthcheck_cert_file: Path | None = Field(
        None,
        description="Client certificate (PEM) of the health check, for tls_client_ca_file.",
    )
    healthcheck_key_file: Path | None = Field(
        None, description="Private key of healthcheck_cert_file (PEM)."
    )
    quota_requests_per_second: float | None = Field(
        None, gt=0, le=1e6, description="Requests one client may make on average; more: 429."
    )
    quota_burst: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Requests one client may make at once. Default: a second's worth.",
    )
    quota_bytes: int | None = Field(
        None,
        ge=1024,
        description="Bytes of bodies one client may have in flight; more: 429, one greater "
        "body: 413.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level of log lines; one line per request is info."
    )
    log_requests_per_second: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="Lines per second for requests that succeeded; the others are counted in one.",
    )
    traces: bool = Field(
        False,
        description="Send an OpenTelemetry span per request, as the OTEL_* names say; needs "
        "quiver-service[otel].",
    )
    playground: bool = Field(
        True, description="Serve the page at / on which people quantize vectors."
    )
    precompiled_dir: DirectoryPath | None = Field(
        None, description="Folder of kernels compiled in advance; the image brings one."
    )

    @field_validator("precompiled_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # So that the image's own can be taken away.
        return None if value == "" else value

    @field_validator("gpu_memory")
    @classmethod
    def _share_or_bytes(cls, value: float) -> float:
        if 1 < value < 64 * MIB:
            raise ValueError(f"must be a share of at most 1, or at least {64 * MIB} bytes")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_body_bytes > self.budget_bytes:
            raise ValueError(
                f"max_body_bytes must not exceed budget_bytes={self.budget_bytes}; "
                f"got {self.max_body_bytes}"
            )
        if self.retry_after_min_seconds > self.retry_after_max_seconds:
            raise ValueError(
                f"retry_after_min_seconds must not exceed retry_after_max_seconds="
                f"{self.retry_after_max_seconds}; got {self.retry_after_min_seconds}"
            )
        if self.api_keys is not None and self.api_keys_file is not None:
            raise ValueError("api_keys and api_keys_file exclude each other")
        if self.protect_all and self.api_keys is None and self.api_keys_file is None:
            raise ValueError("protect_all needs api_keys or api_keys_file")
        if self.quota_burst is not None and self.quota_requests_per_second is None:
            raise ValueError("quota_burst needs quota_requests_per_second")
        self._check_tls()
        return self

    def _check_tls(self) -> None:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file need each other")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file")
        if (self.healthcheck_cert_file is None) != (self.healthcheck_key_file is None):
            raise ValueError("healthcheck_cert_file and healthcheck_key_file need each other")
        if self.tls_cert_file is not None and self.uds is not None:
            raise ValueError("tls_cert_file and uds exclude each other: a Unix socket has no TLS")


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read and check the settings of this process.

    Parameters
    ----------
    environ
        Where unknown names are looked for; None: the process environment. Values are
        always read from the process environment.
    overrides
        Values that win over the environment, e.g. from the command line.

    Raises
    ------
    SettingsError
        A value is out of range, or a name with our prefix is not a setting; the text
        names each.
    """
    unknown = unknown_names(os.environ if environ is None else environ)
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}; known are {', '.join(known_names())}"
        )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        # A default that follows from a wrong setting is no fault of its own.
        faults = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise SettingsError("; ".join(_line(item) for item in faults)) from None


def known_names() -> list[str]:
    """Environment names of all settings."""
    return [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """Names in `environ` that look like settings of this service but are not."""
    known = {*known_names(), *_FOREIGN_NAMES}
    return sorted(
        name
        for name in environ
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not name.upper().startswith(_FOREIGN_PREFIXES)
    )


# In the text of a rule; single words would be found in its prose as well.
_ENVIRONMENT_NAMES = re.compile(
    rf"\b({'|'.join(name for name in Settings.model_fields if '_' in name)}|uds)\b"
)


def _line(item: Mapping[str, Any]) -> str:
    location = item["loc"]
    if not location:
        # A rule between settings: its text names them.
        return _ENVIRONMENT_NAMES.sub(
            lambda found: f"{PREFIX}{found[0].upper()}",
            str(item["msg"]).removeprefix("Value error, "),
        )
    name = f"{PREFIX}{str(location[0]).upper()}"
    secret = "API_KEYS" in name
    got = "" if secret else f"; got {str(item.get('input'))[:80]!r}"
    return f"{name}: {item['msg']}{got}"
