"""Who may use the service: bearer tokens, and no open door beyond this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from quiver_service.errors import ServiceError
from quiver_service.negotiation import Headers
from quiver_service.settings import Settings, SettingsError

SHORT_KEY = 16
_ID_DIGITS = 12


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Digests of the accepted tokens; empty: everybody is let in.

    Attributes
    ----------
    digests
        SHA-256 of each token.
    short
        How many tokens have fewer than `SHORT_KEY` characters, which can be guessed.
    """

    digests: tuple[bytes, ...]
    short: int = 0

    @classmethod
    def create(cls, settings: Settings) -> KeyRing:
        """The tokens of the settings, read once; several allow a change without a gap.

        Raises
        ------
        SettingsError
            The file cannot be read, or a source of keys is set but holds none.
        """
        if settings.api_keys_file is not None:
            try:
                text = settings.api_keys_file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"QUIVER_API_KEYS_FILE cannot be read: {error}") from None
            tokens = [line.strip() for line in text.splitlines()]
            name = "QUIVER_API_KEYS_FILE"
        elif settings.api_keys is not None:
            tokens = [token.strip() for token in settings.api_keys.get_secret_value().split(",")]
            name = "QUIVER_API_KEYS"
        else:
            return cls(())
        tokens = [token for token in tokens if token]
        if not tokens:
            raise SettingsError(f"{name} is set but holds no key")
        for number, token in enumerate(tokens, 1):
            if not all("!" <= character <= "~" for character in token):
                raise SettingsError(
                    f"{name}: key {number} holds a space or a character that is not ASCII, "
                    "which no header can carry"
                )
        digests = tuple(_digest(token.encode()) for token in tokens)
        return cls(digests, sum(len(token) < SHORT_KEY for token in tokens))

    def check(self, headers: Headers) -> str | None:
        """Name the key of a request: the first digits of its digest. None: no key is needed.

        Raises
        ------
        ServiceError
            ``unauthorized``: the request carries no accepted token.
        """
        if not self.digests:
            return None
        values = headers.get(b"authorization", [])
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        digest = _digest(token.strip())
        # Every key is compared, so that the time taken tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ServiceError(
                "unauthorized",
                "this service asks for a key: Authorization: Bearer <key>",
                field="Authorization",
            )
        return digest.hex()[:_ID_DIGITS]


def check_exposure(settings: Settings) -> None:
    """Refuse to listen where strangers may connect and nothing asks who they are.

    Raises
    ------
    SettingsError
        The address is not of this machine alone, and neither keys nor client certificates
        are asked for, and nobody said that this is meant.
    """
    keys = settings.api_keys is not None or settings.api_keys_file is not None
    guarded = keys or settings.tls_client_ca_file is not None
    if guarded or settings.allow_insecure or is_local(settings):
        return
    raise SettingsError(
        f"QUIVER_HOST={settings.host} can be reached from other machines and no key is asked for: "
        "set QUIVER_API_KEYS or QUIVER_API_KEYS_FILE (or QUIVER_TLS_CLIENT_CA_FILE), or set "
        "QUIVER_ALLOW_INSECURE=true if whoever reaches it may use it"
    )


def is_local(settings: Settings) -> bool:
    """Whether only this machine can connect: a Unix socket, localhost, 127.0.0.0/8 or ::1."""
    if settings.uds is not None or settings.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        # A name may resolve to anything, tomorrow if not today.
        return False


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
