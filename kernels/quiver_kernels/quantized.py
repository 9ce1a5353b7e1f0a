"""The quantized vector: levels, packed codes and what is needed to read them.

Its bytes are one self-contained message, the answer of ``POST /quantize`` and the
input of ``/dequantize`` and ``/aggregate``.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, from_wire, levels_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import (
    MAX_DEPTH,
    MAX_ITEMS,
    Buffer,
    Segment,
    decode_checked,
    decode_typed,
    pack,
)
from quiver_kernels.options import (
    MAX_BITS,
    MAX_LEVEL_SETS,
    MAX_LEVELS,
    MAX_SEED,
    METHODS,
    MIN_BITS,
    MIN_LEVEL_SETS,
    MIN_LEVELS,
    SIMBA,
)
from quiver_kernels.packing import num_blocks, packed_size, unpack_codes
from quiver_kernels.schemes import registry, sidewire
from quiver_kernels.schemes.contract import Choice, Coded, Value
from quiver_kernels.tensors import TensorMessage, byte_view, check_shape, tensor_fields, to_array
from quiver_kernels.wrapping import parts
from quiver_kernels.wrapping.parts import Wrap, WrapMessage

WIRE_VERSION = 1
_MAX_NAME = 32
_MAX_TIMINGS = 16
_MAX_TEXT = 200
# Where a type error is, in msgspec's words.
_PLACE = re.compile(r" - at `\$\.([^`]+)`$")


@dataclass(frozen=True, eq=False, slots=True)
class QuantizedVector:
    """A vector as level tables and packed codes.

    Attributes
    ----------
    method
        How the levels were chosen.
    bits, num_levels
        Bits per code (1..8) and levels per table (2..256).
    shape, dtype
        Of the vector that was quantized; ``dtype`` is a wire name.
    block_size
        Values that share one table; None: one table for all.
    seed
        Key of the rounding's random numbers.
    levels
        Ascending, shape (s,), or (blocks, s) with a `block_size`; float32, or float64 for
        float64 vectors.
    codes
        Packed codes, uint8, `bits` per value, least significant bit first; each block
        starts on a byte.
    vnmse
        Expected squared error of the rounding over the squared norm of the vector.
    device, timings_ms
        Where it was computed and how long the stages took, in milliseconds.
    level_sets
        Number of level sets l of method ``simba``: `levels` has shape (l, s), and which row an
        element's code points into follows from `seed` (`quiver_kernels.simba`). None otherwise.
    parameters
        Of a scheme (`quiver_kernels.schemes`), which alone can read `codes` and `side` then; None:
        codes are packed and point into `levels`, as above.
    side
        A scheme's side information by name, flat arrays.
    wrap
        What wrappers add (`quiver_kernels.wrapping`): values kept exactly, a scale, and whether
        `codes` are entropy coded; None: nothing.
    """

    method: str
    bits: int
    num_levels: int
    shape: tuple[int, ...]
    dtype: str
    block_size: int | None
    seed: int
    levels: NDArray[Any]
    codes: NDArray[np.uint8]
    vnmse: float
    device: str = "cpu"
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    level_sets: int | None = None
    parameters: Mapping[str, Value] | None = None
    side: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    wrap: Wrap | None = None

    @property
    def is_scheme(self) -> bool:
        """Whether a scheme alone can read codes and side information."""
        return self.parameters is not None

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether packed codes point straight into one table for each block."""
        return self.level_sets is None and not self.is_scheme and self.wrap is None

    @property
    def coded(self) -> Coded:
        """The parts that a scheme decodes."""
        choice = Choice(self.num_levels, self.block_size, self.parameters or {})
        parts = (self.levels, self.codes, self.side)
        return Coded(self.size, self.dtype, choice, self.seed, *parts)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, levels, side information and what wrappers add."""
        side = sum(part.nbytes for part in self.side.values())
        added = 0 if self.wrap is None else self.wrap.nbytes
        return int(self.codes.nbytes + self.levels.nbytes + side + added)

    @property
    def bits_per_value(self) -> float:
        """Bits per value with level tables and side information counted."""
        return 8 * self.nbytes / self.size

    def indices(self) -> NDArray[np.uint8]:
        """The codes unpacked, one uint8 per value, in the vector's shape.

        Not of schemes, nor of entropy coded ones.
        """
        _require(not self.is_scheme, "method", "must have packed codes", self.method)
        coded = self.wrap is not None and self.wrap.entropy is not None
        _require(not coded, "codes", "must be packed", "entropy coded ones")
        flat = unpack_codes(self.codes, self.size, self.bits, self.block_size)
        return flat.reshape(self.shape)

    def to_segments(self) -> list[Segment]:
        """The message in pieces, without copying levels or codes (large ones)."""
        return pack(quantized_fields(self))

    def to_bytes(self) -> bytes:
        """The message as one string of bytes."""
        return b"".join(self.to_segments())

    @classmethod
    def from_bytes(cls, data: Buffer) -> QuantizedVector:
        """Read a message; levels and codes share the memory of `data`.

        Raises
        ------
        MalformedMessage
            Not one well-formed message.
        InvalidInput
            A key is missing, unknown, out of range, or sizes disagree.
        """
        return from_message(decode_validated(data, _DECODER))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The decoded vector, for ``np.asarray``; computed whenever it is asked for."""
        decoded: NDArray[Any] = _above("interop").as_array(self, dtype, copy)
        return decoded

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """The decoded vector on the host, for ``from_dlpack`` of any library."""
        return _above("interop").as_capsule(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """The host, where decoded values lie."""
        return 1, 0

    def _repr_html_(self) -> str:
        """A table and a small picture, for notebooks."""
        shown: str = _above("notebook").to_html(self)
        return shown


def _above(name: str) -> Any:
    """A module that stands above this one, by name: it is needed by few."""
    return importlib.import_module(f"quiver_kernels.{name}")


def quantized_fields(q: QuantizedVector) -> dict[str, Any]:
    """The message's map, for `framing.pack`; levels and codes are views."""
    # Only where it says something: messages of other methods stay what they were.
    sets = {} if q.level_sets is None else {"level_sets": q.level_sets}
    scheme = {} if q.parameters is None else sidewire.fields(q.parameters, q.side)
    wrap = {} if q.wrap is None else {"wrap": parts.fields(q.wrap)}
    return {
        "v": WIRE_VERSION,
        "method": q.method,
        "bits": q.bits,
        "num_levels": q.num_levels,
        "shape": list(q.shape),
        "dtype": q.dtype,
        "block_size": q.block_size,
        "seed": q.seed,
        "vnmse": q.vnmse,
        "device": q.device,
        "timings_ms": dict(q.timings_ms),
        **sets,
        **scheme,
        **wrap,
        "levels": tensor_fields(q.levels, "levels"),
        "codes": byte_view(q.codes),
    }


class QuantizedMessage(msgspec.Struct, forbid_unknown_fields=True):
    """The quantized vector map as it stands on the wire."""

    v: int
    method: str
    bits: int
    num_levels: int
    shape: list[int]
    dtype: str
    block_size: int | None
    seed: int
    levels: TensorMessage
    codes: memoryview
    vnmse: float
    device: str = "cpu"
    timings_ms: dict[str, float] = {}
    level_sets: int | None = None
    parameters: dict[str, bool | int | float | str] | None = None
    side: dict[str, tuple[str, memoryview]] | None = None
    wrap: WrapMessage | None = None


_DECODER = msgspec.msgpack.Decoder(QuantizedMessage)


def decode_validated(
    data: Buffer,
    decoder: msgspec.msgpack.Decoder[Any],
    max_items: int = MAX_ITEMS,
    *,
    checked: bool = False,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """`decode_typed` with msgspec's type errors turned into `InvalidInput`.

    `checked`: the caller has found the structure well formed.
    """
    try:
        if checked:
            return decode_checked(data, decoder)
        return decode_typed(data, decoder, max_items, max_depth)
    except msgspec.ValidationError as error:
        raise schema_error(error) from None


def schema_error(error: msgspec.ValidationError | UnicodeEncodeError) -> InvalidInput:
    """A msgspec type error as ours: unknown key, missing key, or wrong type.

    Only an unknown key that is no text at all (a lone surrogate) makes msgspec raise the other.
    """
    if isinstance(error, UnicodeEncodeError):
        return InvalidInput("Object contains an unknown field that is not text", code="unknown_key")
    text = str(error)
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}... ({len(text)} characters)"
    place = _PLACE.search(text)
    field = None if place is None else place[1]
    if "unknown field" in text:
        return InvalidInput(text, code="unknown_key", field=field)
    if "missing required field" in text:
        return InvalidInput(text, code="missing_key", field=field)
    return InvalidInput(text, code="invalid_type", field=field)


def from_message(m: QuantizedMessage, where: str = "") -> QuantizedVector:
    """Check every value of `m` against the others; `where` prefixes field names in errors."""
    _require(
        m.v == WIRE_VERSION, f"{where}v", f"must be {WIRE_VERSION}", m.v, "unsupported_version"
    )
    _check_ranges(m, where)
    shape = check_shape(m.shape, f"{where}shape")
    size = math.prod(shape)
    _require(size > 0, f"{where}shape", "must hold at least one value", m.shape, "empty_vector")
    from_wire(m.dtype, f"{where}dtype")
    if m.parameters is not None:
        return _of_scheme(m, shape, where)
    _require(m.side is None, f"{where}side", "needs parameters", "none", "missing_key")
    levels = _levels(m, size, where)
    wrap = None if m.wrap is None else parts.read(m.wrap, size, m.dtype, where)
    codes = _codes(m, size, wrap, where)
    return QuantizedVector(
        method=m.method,
        bits=m.bits,
        num_levels=m.num_levels,
        shape=shape,
        dtype=m.dtype,
        block_size=m.block_size,
        seed=m.seed,
        levels=levels,
        codes=codes,
        vnmse=m.vnmse,
        device=m.device,
        timings_ms=m.timings_ms,
        level_sets=m.level_sets,
        wrap=wrap,
    )


def _of_scheme(m: QuantizedMessage, shape: tuple[int, ...], where: str) -> QuantizedVector:
    """The vector of a message that a scheme reads, checked by it."""
    scheme = registry.find(m.method) if m.method not in METHODS else None
    if scheme is None or m.parameters is None:
        raise InvalidInput(
            f"{where}method must be a scheme where there are parameters; got {m.method!r}",
            code="unsupported_method",
            field=f"{where}method",
        )
    name = f"{where}levels"
    levels = to_array(m.levels, name)
    wanted = levels_dtype(m.dtype).name
    _require(
        m.levels.dtype == wanted,
        f"{name}.dtype",
        f"must be {wanted} for {m.dtype} vectors",
        m.levels.dtype[:40],
        "unsupported_dtype",
    )
    _require(
        levels.shape in {(0,), (m.num_levels,)},
        f"{name}.shape",
        f"must be [0] or [{m.num_levels}]",
        m.levels.shape[:9],
        "size_mismatch",
    )
    ascending = bool(np.isfinite(levels).all() and (levels[1:] >= levels[:-1]).all())
    _require(ascending, name, "must be finite and ascend", "something else", "invalid_levels")
    _require(
        m.num_levels in scheme.level_counts,
        f"{where}num_levels",
        f"must be one of {registry.in_words(scheme.level_counts)}",
        m.num_levels,
    )
    fewest = (m.num_levels - 1).bit_length()
    _require(
        m.bits == fewest, f"{where}bits", f"must be {fewest} for {m.num_levels} levels", m.bits
    )
    q = QuantizedVector(
        method=m.method,
        bits=m.bits,
        num_levels=m.num_levels,
        shape=shape,
        dtype=m.dtype,
        block_size=m.block_size,
        seed=m.seed,
        levels=levels,
        codes=np.frombuffer(m.codes, dtype=np.uint8),
        vnmse=m.vnmse,
        device=m.device,
        timings_ms=m.timings_ms,
        parameters=registry.parameters_of(scheme, m.parameters),
        side=sidewire.arrays(m.side or {}, where),
        wrap=None if m.wrap is None else parts.read(m.wrap, math.prod(shape), m.dtype, where),
    )
    if q.wrap is None or q.wrap.entropy is None:
        scheme.check(q.coded)
        return q
    # The scheme can check its parts when the payload is there: before it decodes.
    most = math.ceil(scheme.message_bits(q.coded.choice, q.size) / 8)
    _require(
        q.wrap.entropy.size <= most,
        f"{where}wrap.entropy.size",
        f"must be at most {most} for {q.size} values",
        q.wrap.entropy.size,
        "size_mismatch",
    )
    _check_stream(q.codes, q.wrap.entropy, m, q.size, where)
    return q


def _check_ranges(m: QuantizedMessage, where: str) -> None:
    _require(
        MIN_BITS <= m.bits <= MAX_BITS, f"{where}bits", f"must be {MIN_BITS}..{MAX_BITS}", m.bits
    )
    _require(
        MIN_LEVELS <= m.num_levels <= min(MAX_LEVELS, 1 << m.bits),
        f"{where}num_levels",
        f"must be {MIN_LEVELS}..{1 << m.bits} for {m.bits} bits",
        m.num_levels,
    )
    _require(
        m.block_size is None or 1 <= m.block_size < 2**63,
        f"{where}block_size",
        "must be positive or null",
        m.block_size,
    )
    _check_sets(m, where)
    _require(0 <= m.seed <= MAX_SEED, f"{where}seed", "must be an unsigned 64-bit integer", m.seed)
    _require(
        math.isfinite(m.vnmse) and m.vnmse >= 0,
        f"{where}vnmse",
        "must be finite and not negative",
        m.vnmse,
    )
    for name, text in (("method", m.method), ("device", m.device)):
        _require(
            0 < len(text) <= _MAX_NAME,
            f"{where}{name}",
            f"must have 1..{_MAX_NAME} characters",
            len(text),
        )
    _require(
        len(m.timings_ms) <= _MAX_TIMINGS,
        f"{where}timings_ms",
        f"must have at most {_MAX_TIMINGS} entries",
        len(m.timings_ms),
    )
    _require(
        all(math.isfinite(value) for value in m.timings_ms.values()),
        f"{where}timings_ms",
        "must be finite",
        "NaN or infinity",
    )


def _check_sets(m: QuantizedMessage, where: str) -> None:
    name = f"{where}level_sets"
    if m.method != SIMBA:
        _require(m.level_sets is None, name, f"is for method {SIMBA} only", m.level_sets)
        return
    _require(
        m.level_sets is not None and MIN_LEVEL_SETS <= m.level_sets <= MAX_LEVEL_SETS,
        name,
        f"must be {MIN_LEVEL_SETS}..{MAX_LEVEL_SETS} for method {SIMBA}",
        m.level_sets,
    )
    _require(
        m.block_size is None, f"{where}block_size", f"must be null for method {SIMBA}", m.block_size
    )


def _levels(m: QuantizedMessage, size: int, where: str) -> NDArray[Any]:
    blocks = num_blocks(size, m.block_size)
    expected = [m.num_levels] if m.block_size is None else [blocks, m.num_levels]
    if m.level_sets is not None:
        expected = [m.level_sets, m.num_levels]
    name = f"{where}levels"
    _require(
        m.levels.shape == expected,
        f"{name}.shape",
        f"must be {expected}",
        m.levels.shape[:9],
        "size_mismatch",
    )
    wanted = levels_dtype(m.dtype)
    _require(
        m.levels.dtype == wanted.name,
        f"{name}.dtype",
        f"must be {wanted.name} for {m.dtype} vectors",
        m.levels.dtype[:40],
        "unsupported_dtype",
    )
    levels = to_array(m.levels, name)
    # Values beyond the type, and signalling NaNs, are refused below.
    with np.errstate(over="ignore", invalid="ignore"):
        decoded = levels.astype(WIRE_DTYPES[m.dtype])
    _require(
        bool(np.isfinite(decoded).all()),
        name,
        f"must be finite as {m.dtype}",
        "NaN or infinity",
        "invalid_levels",
    )
    _require(
        bool((levels[..., 1:] >= levels[..., :-1]).all()),
        name,
        "must ascend",
        "a descending pair",
        "invalid_levels",
    )
    return levels


def _codes(m: QuantizedMessage, size: int, wrap: Wrap | None, where: str) -> NDArray[np.uint8]:
    if wrap is not None and wrap.entropy is not None:
        stream = np.frombuffer(m.codes, dtype=np.uint8)
        limit = f"must be {parts.CODES} for method {m.method}"
        symbols = wrap.entropy.symbols
        _require(symbols == parts.CODES, f"{where}wrap.entropy.symbols", limit, symbols)
        _check_stream(stream, wrap.entropy, m, size, where)
        return stream
    expected = packed_size(size, m.bits, m.block_size)
    _require(
        m.codes.nbytes == expected,
        f"{where}codes",
        f"must have {expected} bytes for {size} values of {m.bits} bits",
        m.codes.nbytes,
        "size_mismatch",
    )
    return np.frombuffer(m.codes, dtype=np.uint8)


def _check_stream(
    stream: NDArray[np.uint8], how: parts.Packed, m: QuantizedMessage, size: int, where: str
) -> None:
    """Refuse an entropy coded payload whose sizes do not fit."""
    # What decodes it stands among the kernels.
    _above("wrapping.payload").check(stream, how, size, m.bits, m.block_size, where)


def _require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)
