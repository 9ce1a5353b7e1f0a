"""Exit codes, and any error as one line that says what to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import click

from quiver_client.errors import (
    ConnectionFailed,
    ExtraMissing,
    LocalModeUnavailable,
    QuiverClientError,
    StatusError,
    TimedOut,
)
from quiver_kernels.errors import BackendUnavailable, QuiverError

OK: Final = 0
FAILED: Final = 1
"""What was asked for cannot be done with this file, or these values."""
USAGE: Final = 2
"""The command line itself is wrong (click's own code)."""
UNREACHABLE: Final = 3
"""The service did not answer, or refused."""
MISSING: Final = 4
"""Something that is needed is not installed here."""
INTERRUPTED: Final = 130
"""Ctrl-C, as shells count it."""
BROKEN_PIPE: Final = 141
"""Whoever read the output has gone, as shells count it."""

_MISSING = (LocalModeUnavailable, ExtraMissing)
_UNREACHABLE = (ConnectionFailed, TimedOut)


class CommandError(Exception):
    """An error of a command, told as one line.

    Parameters
    ----------
    detail
        What is wrong: the option or the file, the limit, what was got.
    hint
        What to do about it, where that is known.
    exit_code, code
        For the shell, and for programs that read ``--json``.
    """

    def __init__(
        self,
        detail: str,
        hint: str | None = None,
        *,
        exit_code: int = FAILED,
        code: str = "failed",
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.exit_code = exit_code
        self.code = code


@dataclass(frozen=True, slots=True)
class Failure:
    """What is told of an error."""

    exit_code: int
    code: str
    detail: str
    hint: str | None = None

    @property
    def line(self) -> str:
        """One line."""
        said = self.detail if self.hint is None else f"{self.detail}; {self.hint}"
        return " ".join(said.split())


def explain(error: BaseException) -> Failure | None:
    """What to tell of `error`; None: a fault of this program, to be shown as it is."""
    if isinstance(error, CommandError):
        return Failure(error.exit_code, error.code, error.detail, error.hint)
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted", "interrupted")
    if isinstance(error, click.UsageError):
        return _usage(error)
    if isinstance(error, click.ClickException):
        return Failure(error.exit_code, "failed", error.format_message())
    if isinstance(error, QuiverClientError):
        return _client(error)
    if isinstance(error, QuiverError):
        exit_code = MISSING if isinstance(error, BackendUnavailable) else FAILED
        return Failure(exit_code, error.code, error.detail)
    if isinstance(error, OSError):
        return _system(error)
    if isinstance(error, MemoryError):
        return Failure(FAILED, "out_of_memory", "there is not enough memory for this")
    return None


def _usage(error: click.UsageError) -> Failure:
    name = "quiver" if error.ctx is None else error.ctx.command_path
    return Failure(USAGE, "usage", error.format_message().rstrip("."), f"see {name} --help")


def _client(error: QuiverClientError) -> Failure:
    if isinstance(error, _MISSING):
        return Failure(MISSING, error.code, error.detail)
    if isinstance(error, _UNREACHABLE):
        hint = "is it running, and is --server right?"
        return Failure(UNREACHABLE, error.code, error.detail, hint)
    # A status came from the service; without one the values were refused here.
    refused = isinstance(error, StatusError) and error.status is not None
    # str() has the status and the request id, to find it in the service's log.
    return Failure(UNREACHABLE, error.code, str(error)) if refused else _values(error)


def _values(error: QuiverClientError) -> Failure:
    return Failure(FAILED, error.code, error.detail)


def _system(error: OSError) -> Failure:
    reason = error.strerror or str(error)
    name = error.filename
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    return Failure(FAILED, "system", f"{where}{reason}")
