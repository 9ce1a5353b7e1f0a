"""TLS: the certificate of the service, and whose clients it takes."""

from __future__ import annotations

import ssl
from pathlib import Path

from quiver_service.settings import Settings, SettingsError


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """What the listener encrypts with; None: plain HTTP.

    TLS 1.2 and 1.3, with the ciphers that the standard library trusts. A client certificate
    is required as soon as authorities for them are set.

    Raises
    ------
    SettingsError
        A file is missing, unreadable or not what it should be; the text names the setting.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, "TLS", settings.tls_cert_file, settings.tls_key_file)
    if settings.tls_client_ca_file is not None:
        _load_authorities(context, settings.tls_client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def probe_context(settings: Settings) -> ssl.SSLContext:
    """What the health check of the same container or machine connects with.

    It does not verify: the name in the certificate is not that of the loopback address, and
    it learns nothing but a status.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.healthcheck_cert_file is not None and settings.healthcheck_key_file is not None:
        _load_pair(
            context, "HEALTHCHECK", settings.healthcheck_cert_file, settings.healthcheck_key_file
        )
    return context


def _load_pair(context: ssl.SSLContext, what: str, certificate: Path, key: Path) -> None:
    cert_name, key_name = f"QUIVER_{what}_CERT_FILE", f"QUIVER_{what}_KEY_FILE"
    _check_readable(cert_name, certificate)
    _check_readable(key_name, key)
    try:
        context.load_cert_chain(certificate, key, password=_no_pass_phrase)
    except ssl.SSLError as error:
        # OpenSSL says what, not which of the two files.
        raise SettingsError(
            f"{cert_name} and {key_name} are not a certificate and its key (PEM, without a pass "
            f"phrase): {error.reason or 'they cannot be read'}; got {certificate} and {key}"
        ) from None


def _load_authorities(context: ssl.SSLContext, file: Path) -> None:
    _check_readable("QUIVER_TLS_CLIENT_CA_FILE", file)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise SettingsError(
            f"QUIVER_TLS_CLIENT_CA_FILE holds no certificate (PEM); got {file}"
        ) from None


def _check_readable(name: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error}") from None


def _no_pass_phrase() -> str:
    # Without this OpenSSL would ask at the terminal.
    return ""
