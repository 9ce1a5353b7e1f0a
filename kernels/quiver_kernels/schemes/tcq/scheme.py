"""TCQ under the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import finite_range
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.packing import packed_size
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.tcq import coding
from quiver_kernels.schemes.tcq.costs import nearest
from quiver_kernels.schemes.trellis import machine as trellis
from quiver_kernels.schemes.trellis import paths


@dataclass(frozen=True, slots=True)
class Tcq:
    """Points of a table twice as large as codes tell apart; the trellis says which half."""

    @property
    def name(self) -> str:
        """``tcq``."""
        return "tcq"

    @property
    def summary(self) -> str:
        """One line for lists."""
        return "trellis-coded quantization at a fixed rate, points fitted to the vector"

    @property
    def source(self) -> str:
        """Where it is from."""
        return "Marcellin and Fischer 1990; trellises of Ungerboeck 1982"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The trellis."""
        return (trellis.parameter(),)

    @property
    def level_counts(self) -> tuple[int, ...]:
        """Whole bits a value."""
        return tuple(1 << bits for bits in range(1, 9))

    @property
    def default_levels(self) -> int:
        """4 bits."""
        return 16

    @property
    def side_information(self) -> str:
        """In words."""
        return "2 num_levels points, float32 (float64 for float64 vectors)"

    @property
    def rounding(self) -> str:
        """Along a trellis."""
        return "Viterbi"

    def promises(self, choice: Choice) -> Promises:  # noqa: ARG002
        """A contraction: every point is the mean of its values."""
        return Promises(contraction=True, deterministic=True)

    def message_bits(self, choice: Choice, size: int) -> float:
        """Codes and points of 64 bits."""
        chunk = _layout(choice).chunk
        return 8 * (packed_size(size, choice.bits, chunk) + 8 * 2 * choice.num_levels)

    def working_bytes(self, choice: Choice, size: int) -> int:
        """Indices of all values; costs of parts."""
        return 4 * size + 128 * max(1 << 18, _layout(choice).chunk)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:  # noqa: ARG002
        """Encode along the path of least squared error."""
        bounds = finite_range(x)
        kept = levels_dtype(wire_name(x.dtype))
        layout = _layout(choice)
        if bounds.low == bounds.high == 0:
            codes = np.zeros(packed_size(x.size, choice.bits, layout.chunk), np.uint8)
            points, found = np.zeros(2 * choice.num_levels, kept), 0.0
        else:
            points, codes, found = coding.encode(x, bounds.unit, layout)
        return Encoded(np.empty(0, kept), codes, {"points": points}, found)

    def check(self, q: Coded) -> None:
        """Refuse parts that do not fit."""
        kept = levels_dtype(q.dtype)
        _require(not q.levels.size, "levels", "must be empty", q.levels.size, "size_mismatch")
        names = ", ".join(name[:32] for name in q.side) or "none"
        _require(set(q.side) == {"points"}, "side", "must be points", names)
        points = q.side["points"]
        right = points.dtype == kept and points.size == 2 * q.num_levels
        limit = f"must hold {2 * q.num_levels} of {kept.name}"
        _require(right, "side.points", limit, f"{points.size} of {points.dtype.name}")
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(points.astype(WIRE_DTYPES[q.dtype])).all()
        limit = f"must be finite as {q.dtype}"
        _require(bool(finite), "side.points", limit, "NaN or infinity", "invalid_levels")
        wanted = packed_size(q.size, q.bits, _layout(q.choice).chunk)
        limit = f"must have {wanted} bytes for {q.size} values of {q.bits} bits"
        _require(q.codes.size == wanted, "codes", limit, q.codes.size, "size_mismatch")

    def decode(self, q: Coded) -> NDArray[Any]:
        """The decoded vector, flat."""
        dtype = WIRE_DTYPES[q.dtype]
        return coding.decode(q.codes, q.size, q.side["points"], _layout(q.choice), dtype)

    def warm_up(self) -> None:
        """Compile the kernels."""
        paths.warm_up()
        nearest(np.zeros(2), np.zeros(4))


def _layout(choice: Choice) -> coding.Layout:
    machine = trellis.MACHINES[str(choice.parameters["trellis"])]
    return coding.Layout(choice.bits, choice.block_size, machine)


def _require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)
