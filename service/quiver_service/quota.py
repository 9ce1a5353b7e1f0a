"""What one client may use, whatever the others do: requests per second, bytes in flight."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quiver_service.errors import ServiceError
from quiver_service.settings import Settings

MAX_REMEMBERED = 10_000
_IPV6_NETWORK = 64


@dataclass(slots=True)
class _Account:
    """One client: its bucket of tokens, filled up to `at`, and what it has in flight."""

    tokens: float
    at: float
    requests: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What every client may use; None: without limit.

    Attributes
    ----------
    requests_per_second
        Tokens that a bucket gains per second; a request takes one.
    burst
        Tokens that a bucket holds; None where there is no bucket.
    held_bytes
        Bytes of bodies in flight.
    """

    requests_per_second: float | None = None
    burst: int | None = None
    held_bytes: int | None = None

    @classmethod
    def create(cls, settings: Settings) -> QuotaLimits:
        """The limits of the settings."""
        rate, burst = settings.quota_requests_per_second, settings.quota_burst
        if rate is not None and burst is None:
            burst = math.ceil(rate)
        return cls(rate, burst, settings.quota_bytes)


class Quotas:
    """The accounts of all clients. Belongs to the event loop: it is not thread-safe.

    Clients that have nothing in flight are remembered up to a number, the latest of them, so
    that requests from ever new addresses take no memory. Whoever is forgotten starts anew.

    Parameters
    ----------
    limits
        Of each client.
    max_remembered
        Accounts kept of clients that have nothing in flight.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self,
        limits: QuotaLimits,
        max_remembered: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._max_remembered = max_remembered
        self._clock = clock
        self._active: dict[str, _Account] = {}
        self._idle: OrderedDict[str, _Account] = OrderedDict()

    @property
    def limited(self) -> bool:
        """Whether anything is counted."""
        limits = self.limits
        return limits.requests_per_second is not None or limits.held_bytes is not None

    def __len__(self) -> int:
        """Accounts in memory."""
        return len(self._active) + len(self._idle)

    def enter(self, client: str, length: int) -> Callable[[], None]:
        """Count a request whose body has `length` bytes; call what is returned when it ends.

        Raises
        ------
        ServiceError
            ``quota`` with the time to wait, or ``too_large`` for a body that no account holds.
        """
        if not self.limited:
            return _nothing
        limits = self.limits
        account = self._active.get(client) or self._idle.pop(client, None)
        if account is None:
            account = _Account(float(limits.burst or 0), self._clock())
        try:
            self._check_held(account, length)
            self._take_token(account)
            account.requests += 1
            account.held += length
        finally:
            self._file(client, account)
        return lambda: self._leave(client, account, length)

    def _leave(self, client: str, account: _Account, length: int) -> None:
        account.requests -= 1
        account.held -= length
        self._file(client, account)

    def _file(self, client: str, account: _Account) -> None:
        if account.requests:
            self._active[client] = account
            return
        self._active.pop(client, None)
        self._idle[client] = account
        while len(self._idle) > self._max_remembered:
            self._idle.popitem(last=False)

    def _check_held(self, account: _Account, length: int) -> None:
        limit = self.limits.held_bytes
        if limit is None or account.held + length <= limit:
            return
        if length > limit:
            code, found = "too_large", f"the body has {length} bytes"
        else:
            code, found = "quota", f"{account.held} bytes in flight, and {length} in this body"
        raise ServiceError(
            code,
            f"{found}; the limit of one client is {limit} (QUIVER_QUOTA_BYTES)",
            limit=limit,
            got=account.held + length,
            setting="QUIVER_QUOTA_BYTES",
        )

    def _take_token(self, account: _Account) -> None:
        rate, burst = self.limits.requests_per_second, self.limits.burst
        if rate is None or burst is None:
            return
        now = self._clock()
        gained = (now - account.at) * rate
        account.tokens = min(float(burst), account.tokens + gained)
        account.at = now
        if account.tokens >= 1:
            account.tokens -= 1
            return
        wait = math.ceil((1 - account.tokens) / rate)
        raise ServiceError(
            "quota",
            f"this client makes more than {rate:g} requests per second "
            f"(QUIVER_QUOTA_REQUESTS_PER_SECOND) with a burst of {burst}; "
            f"try again in {wait} s",
            limit=rate,
            setting="QUIVER_QUOTA_REQUESTS_PER_SECOND",
            headers={"retry-after": str(wait)},
        )


def client_of(key_id: str | None, scope: Mapping[str, Any]) -> str:
    """Who a request counts for: its key, or without keys the address it comes from.

    An IPv6 host owns a whole /64, so its addresses count as one.
    """
    if key_id is not None:
        return f"key {key_id}"
    peer = scope.get("client")
    if peer is None:
        return "local socket"
    try:
        address = ipaddress.ip_address(peer[0])
    except ValueError:
        return str(peer[0])[:64]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_NETWORK), strict=False))


def _nothing() -> None:
    """What ends a request that nobody counts."""
