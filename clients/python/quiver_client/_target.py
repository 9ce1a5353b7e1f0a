"""Where the service is: a checked URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from quiver_client.errors import InvalidURL

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """An address taken apart.

    Attributes
    ----------
    host, port
        Of the TCP connection; ``host`` is ``localhost`` for a Unix socket.
    tls
        Whether the connection is encrypted.
    socket_path
        Path of a Unix-domain socket, used instead of host and port.
    prefix
        Path put before every route: empty, or beginning and not ending with a slash.
    """

    host: str
    port: int
    tls: bool = False
    socket_path: str | None = None
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read ``http://host:port/prefix``, ``https://...`` or ``http+unix:///path.sock``.

        A Unix socket with a prefix is written percent-encoded in the place of the host:
        ``http+unix://%2Frun%2Fquiver.sock/prefix``.

        Raises
        ------
        InvalidURL
            Another scheme, no host, or a user name, query or fragment.
        """
        if not all("!" <= character <= "~" for character in url):
            raise InvalidURL(
                f"url must hold printable ASCII only (percent-encode the rest); got {url!r}"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidURL(f"url {url!r} cannot be read: {error}") from None
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise InvalidURL(f"url must not have a user name, query or fragment; got {url!r}")
        if parts.scheme == "http+unix":
            return cls._unix(parts, url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise InvalidURL(
                f"url must be http://host:port, https://host:port or http+unix:///path; got {url!r}"
            )
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            tls=parts.scheme == "https",
            prefix=parts.path.rstrip("/"),
        )

    @classmethod
    def _unix(cls, parts: SplitResult, url: str) -> Target:
        path, prefix = unquote(parts.netloc), parts.path.rstrip("/")
        if not path:
            path, prefix = unquote(parts.path), ""
        if not path.startswith("/") or path == "/":
            raise InvalidURL(f"url must name a socket file, http+unix:///path; got {url!r}")
        return cls(host="localhost", port=0, socket_path=path, prefix=prefix)

    @property
    def host_header(self) -> str:
        """Value of the Host header."""
        if self.socket_path is not None:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"
        )

    def __str__(self) -> str:
        """The address as a URL."""
        if self.socket_path is not None:
            return f"http+unix://{self.socket_path}"
        return f"{'https' if self.tls else 'http'}://{self.host_header}{self.prefix}"
