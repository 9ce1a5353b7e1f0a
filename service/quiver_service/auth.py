"""Bearer tokens: who may use the service, where keys are set."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from quiver_service.errors import ServiceError
from quiver_service.negotiation import Headers
from quiver_service.settings import Settings, SettingsError


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Digests of the accepted tokens; empty: everybody is let in."""

    digests: tuple[bytes, ...]

    @classmethod
    def create(cls, settings: Settings) -> KeyRing:
        """The tokens of the settings; several allow a change without a gap.

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
        digests = tuple(_digest(token.encode()) for token in tokens if token)
        if not digests:
            raise SettingsError(f"{name} is set but holds no key")
        return cls(digests)

    def check(self, headers: Headers) -> None:
        """Raise ``unauthorized`` unless the request carries an accepted token."""
        if not self.digests:
            return
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


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
