"""Where a command computes: a service, or this process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from quiver_client._connect import KEY_VARIABLE, URL_VARIABLE, connect
from quiver_client._local import LocalClient
from quiver_client._sync import Client

F = TypeVar("F", bound=Callable[..., Any])
LOCAL = "local:"


@dataclass(frozen=True, slots=True)
class Where:
    """A service's URL with what it asks for, or, without one, this process."""

    server: str | None
    api_key: str | None
    timeout: float

    @property
    def is_local(self) -> bool:
        """Whether this process computes."""
        return self.server is None or self.server == LOCAL

    @property
    def name(self) -> str:
        """For people."""
        return "this process" if self.is_local else str(self.server)

    def connect(self) -> Client | LocalClient:
        """The client, for ``with``; `quiver_client.connect` says what it raises."""
        if self.server is None or self.is_local:
            return LocalClient()
        return connect(self.server, api_key=self.api_key, timeout=self.timeout)


def where_options(command: F) -> F:
    """The options ``--server``, ``--api-key`` and ``--timeout``, as the argument ``where``."""

    @functools.wraps(command)
    def collected(
        *values: Any, server: str | None, api_key: str | None, timeout: float, **named: Any
    ) -> Any:
        return command(*values, where=Where(server, api_key, timeout), **named)

    decorated: Any = collected
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="For one request to the service.",
        ),
        click.option(
            "--api-key",
            envvar=KEY_VARIABLE,
            metavar="KEY",
            help=f"For the service; better in {KEY_VARIABLE}, where nobody sees it.",
        ),
        click.option(
            "--server",
            envvar=URL_VARIABLE,
            metavar="URL",
            help=f"A service that computes, also by {URL_VARIABLE}; without one this process does.",
        ),
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
