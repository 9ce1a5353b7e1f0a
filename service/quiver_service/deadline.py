"""When a request must be answered: the service's limit, or the client's if that is less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quiver_service.errors import ServiceError
from quiver_service.negotiation import Headers

HEADER = "X-Request-Timeout"
SETTING = "QUIVER_DEADLINE_SECONDS"
_LONGEST_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the event loop's clock, and whose wish it is.

    Attributes
    ----------
    at
        The moment.
    seconds
        The time that was allowed.
    setting, field
        The setting or the header that it comes from; the other is None.
    """

    at: float
    seconds: float
    setting: str | None = None
    field: str | None = None

    @classmethod
    def of_client(cls, headers: Headers, now: float) -> Deadline | None:
        """What the client asks for, counted from `now`; None if it asks for nothing.

        Raises
        ------
        ServiceError
            ``malformed_request``: not one positive number of seconds.
        """
        values = headers.get(HEADER.lower().encode("ascii"), [])
        if not values:
            return None
        seconds = _seconds(values[0]) if len(values) == 1 else None
        if seconds is None:
            raise ServiceError(
                "malformed_request",
                f"{HEADER} must be one number of seconds above 0 and at most "
                f"{_LONGEST_SECONDS:.0f}; got {values[0][:40].decode('latin-1')!r}",
                field=HEADER,
            )
        return cls(now + seconds, seconds, field=HEADER)

    @classmethod
    def of_service(cls, seconds: float, now: float) -> Deadline:
        """The limit of the settings, counted from `now`."""
        return cls(now + seconds, seconds, setting=SETTING)

    def passed(self) -> ServiceError:
        """The error that tells it."""
        name = self.setting or self.field
        return ServiceError(
            "deadline",
            f"no result within {self.seconds:g} s ({name})",
            limit=self.seconds,
            field=self.field,
            setting=self.setting,
        )


def earlier(first: Deadline | None, second: Deadline) -> Deadline:
    """The earlier of two."""
    return second if first is None or second.at < first.at else first


def _seconds(text: bytes) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= _LONGEST_SECONDS else None
