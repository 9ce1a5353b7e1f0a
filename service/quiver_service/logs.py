"""JSON log lines on stdout: one per request, and those of the server itself."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

Logger = structlog.typing.FilteringBoundLogger


def _processors() -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.MaybeTimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("event"),
    ]


def make_logger(level: str, stream: TextIO | None = None) -> Logger:
    """A logger that writes lines of at least `level` to `stream`, None: stdout.

    No global configuration is touched.
    """
    logger: Logger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stdout if stream is None else stream),
        processors=[*_processors(), structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger


def configure_standard_logging(level: str) -> None:
    """Send the standard library's log records, e.g. uvicorn's, to stdout as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_processors(),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # uvicorn tells every start, stop and connection at info; our own lines say that already.
    floor = logging.INFO if level == "debug" else logging.WARNING
    logging.basicConfig(level=max(floor, _number(level)), handlers=[handler], force=True)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class LineQuota:
    """How many lines of one kind may be written per second.

    Parameters
    ----------
    per_second
        Lines; those beyond are counted instead.
    """

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self.left_out = 0
        self._second = -1
        self._written = 0

    def take(self, now: float) -> bool:
        """Whether a line may be written at `now`, in seconds of any clock."""
        second = int(now)
        if second != self._second:
            self._second, self._written = second, 0
        if self._written < self.per_second:
            self._written += 1
            return True
        self.left_out += 1
        return False

    def settle(self) -> int:
        """Lines left out since the last call."""
        left_out, self.left_out = self.left_out, 0
        return left_out
