"""The key ``wrap`` of a message: what wrappers add, as arrays and on the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_kernels import varints
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.tensors import MAX_ELEMENTS, byte_view

CODES, BYTES = "codes", "bytes"
"""Symbols of an entropy coded payload: its codes of `bits` bits, or its bytes."""

_SCALE_BYTES = 8


@dataclass(frozen=True, eq=False, slots=True)
class Exact:
    """Values that stand in place of decoded ones.

    Attributes
    ----------
    gaps
        Their ascending positions in the flat vector as `varints` writes them, uint8.
    values
        Of the vector's type, at least one.
    """

    gaps: NDArray[np.uint8]
    values: NDArray[Any]

    @classmethod
    def of(cls, positions: NDArray[np.int64], values: NDArray[Any]) -> Exact:
        """Values at ascending positions."""
        return cls(varints.encode_ascending(positions), values)

    def positions(self, size: int, field: str = "wrap.outliers.indices") -> NDArray[np.int64]:
        """Where they belong in a vector of `size` values; `InvalidInput` if they do not fit."""
        return varints.decode_ascending(byte_view(self.gaps), self.values.size, size, field)

    @property
    def nbytes(self) -> int:
        """Bytes of positions and values."""
        return self.gaps.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class Packed:
    """What an entropy coded payload was.

    Attributes
    ----------
    symbols
        ``codes`` or ``bytes``.
    size
        Bytes of the payload.
    """

    symbols: Literal["codes", "bytes"]
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Wrap:
    """What wrappers add to a message; at least one of them.

    Attributes
    ----------
    outliers
        Values kept exactly.
    entropy
        The message's codes are an entropy coded payload (`quiver_kernels.schemes.entropy`).
    scale
        What decoded values, not those kept exactly, are multiplied by; between 0 and 1.
    """

    outliers: Exact | None = None
    entropy: Packed | None = None
    scale: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is added."""
        return self.outliers is None and self.entropy is None and self.scale is None

    @property
    def nbytes(self) -> int:
        """Bytes beside the message's codes, levels and side information."""
        exact = 0 if self.outliers is None else self.outliers.nbytes
        return exact + (0 if self.scale is None else _SCALE_BYTES)


# -- on the wire --------------------------------------------------------------------------


class _ExactMessage(msgspec.Struct, forbid_unknown_fields=True):
    indices: memoryview
    values: memoryview


class _PackedMessage(msgspec.Struct, forbid_unknown_fields=True):
    symbols: str
    size: int


class WrapMessage(msgspec.Struct, forbid_unknown_fields=True):
    """The map as it stands on the wire."""

    outliers: _ExactMessage | None = None
    entropy: _PackedMessage | None = None
    scale: float | None = None


def fields(wrap: Wrap) -> dict[str, Any]:
    """The map, for `framing.pack`; what is absent is left out."""
    found: dict[str, Any] = {}
    if wrap.outliers is not None:
        values = np.ascontiguousarray(wrap.outliers.values)
        found["outliers"] = {
            "indices": byte_view(wrap.outliers.gaps),
            "values": byte_view(values),
        }
    if wrap.entropy is not None:
        found["entropy"] = {"symbols": wrap.entropy.symbols, "size": wrap.entropy.size}
    if wrap.scale is not None:
        found["scale"] = wrap.scale
    return found


def read(m: WrapMessage, size: int, dtype: str, where: str) -> Wrap:
    """The wrap of a message of `size` values of a wire type; `where` prefixes field names.

    Raises
    ------
    InvalidInput
        Nothing is wrapped, or a part does not fit the message.
    """
    name = f"{where}wrap"
    _require(
        not (m.outliers is None and m.entropy is None and m.scale is None),
        name,
        "must hold outliers, entropy or scale",
        "none of them",
        "missing_key",
    )
    if m.scale is not None:
        fine = math.isfinite(m.scale) and 0 < m.scale < 1
        _require(fine, f"{name}.scale", "must be between 0 and 1", m.scale)
    entropy = None if m.entropy is None else _packed(m.entropy, f"{name}.entropy")
    exact = None if m.outliers is None else _exact(m.outliers, size, dtype, f"{name}.outliers")
    return Wrap(exact, entropy, m.scale)


def _packed(m: _PackedMessage, name: str) -> Packed:
    most = 8 * MAX_ELEMENTS
    _require(1 <= m.size <= most, f"{name}.size", f"must be 1..{most}", m.size)
    if m.symbols == CODES:
        return Packed("codes", m.size)
    _require(
        m.symbols == BYTES, f"{name}.symbols", f"must be {CODES} or {BYTES}", repr(m.symbols[:40])
    )
    return Packed("bytes", m.size)


def _exact(m: _ExactMessage, size: int, dtype: str, name: str) -> Exact:
    kind = WIRE_DTYPES[dtype]
    nbytes = m.values.nbytes
    _require(
        nbytes > 0 and nbytes % kind.itemsize == 0,
        f"{name}.values",
        f"must have a positive multiple of {kind.itemsize} bytes, for {dtype}",
        nbytes,
        "size_mismatch",
    )
    values = np.frombuffer(m.values, np.uint8).view(kind)
    _require(
        bool(np.isfinite(values).all()),
        f"{name}.values",
        "must be finite",
        "NaN or infinity",
        "non_finite",
    )
    exact = Exact(np.frombuffer(m.indices, np.uint8), values)
    # No more memory than eight times the values and their positions.
    exact.positions(size, f"{name}.indices")
    return exact


def _require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)
