"""From an address to a client."""

from __future__ import annotations

import os
import ssl
from typing import TypedDict, Unpack

from quiver_client._async import LOCAL, AsyncClient
from quiver_client._local import LocalClient
from quiver_client._retry import RetryPolicy
from quiver_client._sync import Client
from quiver_client._tls import StrPath
from quiver_client.errors import InvalidURL

URL_VARIABLE = "QUIVER_URL"
KEY_VARIABLE = "QUIVER_API_KEY"


class ConnectOptions(TypedDict, total=False):
    """Keyword arguments of `Client`."""

    api_key: str | None
    timeout: float
    connect_timeout: float
    retry: RetryPolicy | None
    ca_file: StrPath | None
    client_cert: StrPath | tuple[StrPath, StrPath] | None
    ssl_context: ssl.SSLContext | None


def connect(url: str | None = None, **options: Unpack[ConnectOptions]) -> Client | LocalClient:
    """The client for an address.

    Parameters
    ----------
    url
        ``http://host:port``, ``https://host``, ``http+unix:///path/to.sock``, or
        ``local:`` to compute in this process. None: the environment variable QUIVER_URL.
    options
        Keyword arguments of `Client`; without meaning, and ignored, for ``local:``. The
        ``api_key`` defaults to the environment variable QUIVER_API_KEY.

    Raises
    ------
    InvalidURL
        No URL, or one that names no service.
    LocalModeUnavailable
        ``local:`` without its extra installed.
    """
    address = _address(url)
    if address == LOCAL:
        return LocalClient()
    return Client(address, **_with_key(options))


def connect_async(url: str | None = None, **options: Unpack[ConnectOptions]) -> AsyncClient:
    """`connect` for an `AsyncClient`; nothing is sent before the first call."""
    return AsyncClient(_address(url), **_with_key(options))


def _address(url: str | None) -> str:
    found = url if url is not None else os.environ.get(URL_VARIABLE)
    if not found:
        raise InvalidURL(f"no service is named: pass a url, or set {URL_VARIABLE}")
    return found


def _with_key(options: ConnectOptions) -> ConnectOptions:
    key = os.environ.get(KEY_VARIABLE)
    return options if "api_key" in options or not key else {**options, "api_key": key}
