"""Whom the client trusts over TLS, and what it shows of itself."""

from __future__ import annotations

import os
import ssl

from quiver_client.errors import Invalid

StrPath = str | os.PathLike[str]


def encryption(
    context: ssl.SSLContext | None,
    ca_file: StrPath | None,
    client_cert: StrPath | tuple[StrPath, StrPath] | None,
) -> ssl.SSLContext | None:
    """The context for these files; None where the defaults do.

    Raises
    ------
    Invalid
        A file cannot be read or is no PEM file, or files and a context are given.
    """
    if ca_file is None and client_cert is None:
        return context
    if context is not None:
        raise _invalid("ssl_context", "ssl_context stands in place of ca_file and client_cert")
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise _invalid("ca_file", f"ca_file cannot be used: {error}; got {ca_file}") from None
    if client_cert is not None:
        certificate, key = client_cert if isinstance(client_cert, tuple) else (client_cert, None)
        try:
            made.load_cert_chain(certificate, key, password=_no_pass_phrase)
        except OSError as error:
            raise _invalid(
                "client_cert", f"client_cert cannot be used: {error}; got {client_cert}"
            ) from None
    return made


def _invalid(field: str, detail: str) -> Invalid:
    return Invalid(detail, code="invalid_option", field=field)


def _no_pass_phrase() -> str:
    # Without this OpenSSL would ask at the terminal.
    return ""
