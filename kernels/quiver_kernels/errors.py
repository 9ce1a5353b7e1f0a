"""Errors of the kernels package.

Every error carries a stable ``code`` that travels on the wire, and a text that
names the field, the limit and what was got::

    QuiverError
    |-- MalformedMessage   bytes that are not one well-formed message
    |-- InvalidInput       well-formed, but a value is missing, unknown or out of range
    |-- BackendUnavailable the device or the optional dependency is not there
    |-- DeviceFailed       the device was there and failed: no memory left, or lost
    `-- Stopped            whoever wanted the result does not want it any more
"""

from __future__ import annotations


class QuiverError(Exception):
    """Root of all errors raised on purpose by this package.

    Parameters
    ----------
    detail
        What is wrong: the field, the limit and what was got.
    code
        Stable identifier for programs, e.g. ``"invalid_option"``.
    field
        Name of the offending field, when there is one.
    """

    def __init__(self, detail: str, *, code: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.field = field


class MalformedMessage(QuiverError, ValueError):
    """The bytes are not exactly one well-formed message.

    Codes: ``malformed_message``, ``duplicate_key``, ``trailing_bytes``.
    """

    def __init__(self, detail: str, *, code: str = "malformed_message") -> None:
        super().__init__(detail, code=code)


class InvalidInput(QuiverError, ValueError):
    """A well-formed request or argument that cannot be served.

    Codes: ``invalid_type``, ``unknown_key``, ``missing_key``, ``invalid_option``,
    ``unsupported_dtype``, ``unsupported_method``, ``unsupported_version``, ``size_mismatch``,
    ``shape_mismatch``, ``empty_vector``, ``non_finite``, ``invalid_weights``,
    ``invalid_levels``, ``invalid_codes``, ``too_many_elements``.
    """


class BackendUnavailable(QuiverError, RuntimeError):
    """The requested device, or what it needs to be installed, is missing.

    Code: ``device_unavailable``.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail, code="device_unavailable", field="device")


class DeviceFailed(QuiverError, RuntimeError):
    """A device failed while it computed; the input is not to blame, another device may do it.

    Codes: ``device_out_of_memory``, ``device_error``.
    """

    def __init__(self, detail: str, *, code: str = "device_error") -> None:
        super().__init__(detail, code=code, field="device")


class Stopped(QuiverError, RuntimeError):
    """A computation ended early because it was told to (`quiver_kernels.stopping`).

    Code: ``stopped``.
    """

    def __init__(self, detail: str = "the computation was stopped") -> None:
        super().__init__(detail, code="stopped")
