"""JSON log lines on stdout: one per request, and those of the server itself."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

Logger = structlog.typing.FilteringBoundLogger


def _processors() -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("event"),
    ]


def make_logger(level: str) -> Logger:
    """A logger that writes lines of at least `level`; no global configuration is touched."""
    logger: Logger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stdout),
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
