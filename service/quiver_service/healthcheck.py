"""``python -m quiver_service.healthcheck``: exit code 0 if the service here is ready.

Reads the same settings as the service, so a container needs no curl and no arguments.
"""

from __future__ import annotations

import http.client
import socket
import sys
from pathlib import Path

from quiver_service.settings import Settings, SettingsError, load_settings
from quiver_service.tls import probe_context

_TIMEOUT_SECONDS = 3.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def is_ready(settings: Settings, timeout: float = _TIMEOUT_SECONDS) -> bool:
    """Whether ``GET /readyz`` of the service with these settings answers 200.

    Raises
    ------
    SettingsError
        The client certificate of the settings cannot be used.
    """
    connection: http.client.HTTPConnection
    if settings.uds is not None:
        connection = _UnixConnection(settings.uds, timeout)
    else:
        connection = _tcp_connection(settings, timeout)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tcp_connection(settings: Settings, timeout: float) -> http.client.HTTPConnection:
    host = _WILDCARDS.get(settings.host, settings.host)
    if settings.tls_cert_file is None:
        return http.client.HTTPConnection(host, settings.port, timeout=timeout)
    return http.client.HTTPSConnection(
        host, settings.port, timeout=timeout, context=probe_context(settings)
    )


def main() -> int:
    """Exit code: 0 ready, 1 not ready or wrongly configured."""
    try:
        return 0 if is_ready(load_settings()) else 1
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
